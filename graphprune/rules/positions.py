"""What numbers pick: constants that take positions in an order that Dims can tell, and results that name positions.

A constant index is read as a product where it counts in strides (every other one, a channel shuffle, each head twice),
and as a sum where it takes runs. What TopK finds are positions of the axis that it looks at: a table in which nothing
but these are looked up has an entry for each of them, so the two axes are one Dim.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graphprune.dims import Dim, product, sum_
from graphprune.graph import Node
from graphprune.rules.registry import Facts, Op

Ints = npt.NDArray[np.int64]
_MOVES = frozenset("cast expand flatten identity reshape slice squeeze transpose unsqueeze".split())
_SIZES = frozenset(("shape", "size"))


def arranged(op: Op, index: Ints, size: int) -> tuple[Dim, Dim] | None:
    """An axis of ``size`` positions, and what ``index`` [n] takes of it; None where it is in no order."""
    digits = _digits(index)
    found = _strided(digits, int(index[0]), size) if digits else None
    if found is None or found.lanes:
        runs = _runs(index, size)
        if runs or found is None:
            return runs
    for lane in found.lanes:
        op.freeze(lane, "the same ones of its positions are always taken")
    return found.axis, found.taken


class _Strided(NamedTuple):
    """An axis, what is taken of it, and its ``lanes``: factors of which one position is."""

    axis: Dim
    taken: Dim
    lanes: list[Dim]


def _digits(index: Ints) -> list[tuple[int, int]] | None:
    """Counts and steps, outermost first, where ``index`` counts like a number of several digits."""
    digits: list[tuple[int, int]] = []
    while len(index) > 1:
        step = int(index[1] - index[0])
        breaks = np.flatnonzero(np.diff(index) != step)
        count = int(breaks[0]) + 1 if len(breaks) else len(index)
        if len(index) % count:
            return None
        rows = index.reshape(-1, count)
        if (rows != rows[:, :1] + step * np.arange(count)).any():
            return None
        digits.insert(0, (count, step))
        index = rows[:, 0]
    return digits


def _strided(digits: list[tuple[int, int]], start: int, size: int) -> _Strided | None:
    """The digits are factors of the axis, the smallest step innermost; what is between them are lanes."""
    unit, parts, taken, lanes, first = 1, list[Dim](), dict[int, Dim](), list[Dim](), 0
    stepping = sorted((i for i, (_, step) in enumerate(digits) if step), key=lambda i: digits[i][1])
    for number, (count, step) in [*((i, digits[i]) for i in stepping), (-1, (1, size))]:
        if step < unit or step % unit:
            return None
        lane, taken[number] = Dim(step // unit), Dim(count)
        lanes += [lane] * (step > unit)
        first += start // unit % (step // unit) * unit
        parts[:0] = [taken[number], lane]
        unit = step * count
    made = [taken[i] if step else Dim(count) for i, (count, step) in enumerate(digits)]
    return _Strided(product(*parts), product(*made), lanes) if first == start else None


def _runs(index: Ints, size: int) -> tuple[Dim, Dim] | None:
    """The axis cut wherever a run of neighbours begins or ends; None where most runs are of one position."""
    breaks = [0, *(np.flatnonzero(np.diff(index) != 1) + 1), len(index)]
    runs = [(int(index[a]), int(index[b - 1]) + 1) for a, b in pairwise(breaks)]
    if 2 * len(runs) > len(index):
        return None
    marks = sorted({0, size, *(mark for run in runs for mark in run)})
    parts = {before: Dim(after - before) for before, after in pairwise(marks)}
    taken = [parts[mark] for begin, end in runs for mark in marks if begin <= mark < end]
    return sum_(*parts.values()), sum_(*taken)


def looks_up(op: Op, dim: Dim, i: int) -> bool:
    """Whether input ``i`` names positions that an op has found: ``dim`` then has an entry for each of them."""
    facts, name = op.facts, op.node.inputs[i]
    node = facts.graph.producers.get(name)
    while node is not None and node.op in _MOVES:
        name = node.inputs[0]
        node = facts.graph.producers.get(name)
    found = facts.found.get(node.index) if node is not None else None
    if node is None or found is None or name not in _named(node):
        return False
    op.tie(dim, found)
    facts.looked_up.add((op.node.index, i))
    return True


def only_looked_up(facts: Facts, node: Node) -> bool:
    """Whether all that is done with positions that ``node`` has found is to look up entries."""
    graph, todo, seen = facts.graph, list(_named(node)), {""}
    outer = {captured for other in graph.nodes for captured in other.outer}
    while todo:
        name = todo.pop()
        if name in outer or name in graph.outputs:
            return False
        for reader, i in graph.consumers.get(name, ()) if name not in seen else ():
            if reader.op in _MOVES and i == 0:
                todo += reader.outputs
            elif reader.op not in _SIZES and (reader.index, i) not in facts.looked_up:
                return False
        seen.add(name)
    return True


def _named(node: Node) -> tuple[str, ...]:
    """Outputs that name positions of the axis that the node looks at."""
    return node.outputs[1:] if node.op == "top_k" else node.outputs
