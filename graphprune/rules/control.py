"""If, Loop and Scan: what goes into a body and what comes out of it.

A body is read as further nodes of the graph. What is left of the op itself stands behind them and takes the outputs of
its bodies; where a body has inputs, an op of its own in front of it hands them out (``loop_enter``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphprune.rules.registry import Op, rule
from graphprune.signature import Layout


@rule("if_enter", gate=True)
def if_enter(op: Op) -> None:
    """condition"""
    branch = taken(op.known(0))
    if branch is not None:
        op.never(1 - branch)


@rule("if", gate=True)
def if_(op: Op) -> None:
    """condition, what each branch gives -> what the one that is taken gives"""
    count, which = len(op.outs), taken(op.known(0))
    for branch, given in enumerate((op.ins[1 : 1 + count], op.ins[1 + count :])):
        for value, out in zip(given, op.outs, strict=True):
            if which in (branch, None):
                _same(op, value, out)
            else:
                op.speak_of(*value or ())


def taken(condition: npt.NDArray[np.float64] | None) -> int | None:
    """The branch of an If whose condition hangs on sizes alone, or on nothing; None where it hangs on data."""
    if condition is None or condition.size != 1 or np.isnan(condition).any():
        return None
    return 0 if condition.reshape(-1)[0] else 1


@rule("loop_enter", gate=True)
def loop_enter(op: Op) -> None:
    """count, condition, states -> iteration, condition, states"""
    for given, state in zip(op.ins[2:], op.outs[2:], strict=True):
        _same(op, given, state)
    count = op.known(0)
    if count is not None and count.size == 1 and count.reshape(-1)[0] > 0:
        op.repeat(int(count.reshape(-1)[0]))


@rule("scan_enter", gate=True)
def scan_enter(op: Op) -> None:
    """states, sequences -> states, a step of each sequence"""
    states = op.attr("states")
    for given, state in zip(op.ins[:states], op.outs[:states], strict=True):
        _same(op, given, state)
    axes = op.attr("scan_input_axes") or [0] * (len(op.ins) - states)
    for i, (sequence, step, axis) in enumerate(zip(op.ins[states:], op.outs[states:], axes, strict=True)):
        _stacked(op, step, sequence, axis)
        if sequence:
            op.repeat(op.extent(False, states + i, axis))


@rule("loop", "scan", gate=True)
def loop(op: Op) -> None:
    """condition, states before and after, steps -> states, steps one after the other"""
    count = op.attr("states")
    before, after, steps = op.ins[1 : 1 + count], op.ins[1 + count : 1 + 2 * count], op.ins[1 + 2 * count :]
    outs = [*op.outs, *[None] * (count + len(steps) - len(op.outs))]
    for i in range(count):
        _same(op, before[i], after[i])
        if i < len(op.node.outputs) and op.node.outputs[i]:
            _same(op, before[i], outs[i])
    axes = op.attr("scan_output_axes") or [0] * len(steps)
    for i, (step, axis) in enumerate(zip(steps, axes, strict=True)):
        if count + i < len(op.node.outputs) and op.node.outputs[count + i]:
            _stacked(op, step, outs[count + i], axis)
        else:
            op.speak_of(*step or ())


def _stacked(op: Op, step: Layout | None, whole: Layout | None, axis: int) -> None:
    """``whole`` has one axis more than ``step``: the iterations, in their order."""
    if whole:
        axis %= len(whole)
        op.freeze(whole[axis], "it is the order of iterations")
        whole = (*whole[:axis], *whole[axis + 1 :])
    _same(op, step, whole)


def _same(op: Op, a: Layout | None, b: Layout | None) -> None:
    """Axis by axis, for as long as both are of one known rank."""
    if a is not None and b is not None and len(a) == len(b):
        op.tie_same(a, b)
    else:
        for layout in (a, b):
            op.freeze_layout(layout, f"not all that {op.node.kind} hands on has one known rank")
