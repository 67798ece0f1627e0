"""What moves elements: numpy's own ops on the layout of a `State`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphprune.propagate.call import Call, does
from graphprune.propagate.state import Floats, State, apart, moved, stacked
from graphprune.values import EVALUATE


@does(
    "identity cast cast_like dropout alpha_dropout feature_dropout to _to_copy type_as masked_fill contiguous copy lrn "
    "max_pool average_pool global_average_pool global_max_pool image max_pool_indices resize upsample lp_normalization "
    "log_softmax nan_to_num pad"
)
def same(call: Call) -> State:
    """The same variables, in the shape of the result."""
    state = call.state()
    layout = state.layout
    if len(call.shape()) != layout.ndim or any(
        a not in (1, b) for a, b in zip(layout.shape, call.shape(), strict=True)
    ):
        raise ValueError("it changes the axis of the variables")
    return replace(state, shape=call.shape())


@does("reshape flatten unflatten reshape_as squeeze unsqueeze")
def reshape(call: Call) -> State:
    """Places that end up among the variables of one axis are told apart."""
    found = moved(call.state(), call.state().whole.reshape(call.shape()))
    wide = [axis for axis, size in enumerate(found.layout.shape) if size > 1]
    return apart(found, wide[0]) if len(wide) == 1 else found


@does("expand expand_as")
def expand(call: Call) -> State:
    """Copies."""
    return moved(call.state(), np.broadcast_to(call.state().whole, call.shape()))


@does("transpose")
def transpose(call: Call) -> State:
    """Axes in another order."""
    perm = call.attr("perm")
    state = call.state()
    return replace(state, layout=state.layout.transpose(perm), shape=call.shape())


@does("slice")
def sliced(call: Call) -> State:
    """Some of the elements."""
    return moved(call.state(), EVALUATE["slice"](call.node, [call.state().whole.astype(float), *_numbers(call)]))


def _numbers(call: Call) -> list[Floats | None]:
    return [call.known(name) if name else None for name in call.node.inputs[1:]]


@does("split unbind")
def split(call: Call) -> list[State]:
    """Parts, one after the other."""
    axis, state = call.attr("axis", 0), call.state()
    ends = np.cumsum([call.shape(i)[axis] if call.node.op == "split" else 1 for i in range(len(call.node.outputs))])
    parts = np.split(state.whole, ends[:-1], axis)
    return [moved(state, part.reshape(call.shape(i))) for i, part in enumerate(parts)]


@does("concat")
def concat(call: Call) -> State:
    """One after the other."""
    states = [x if isinstance(x, State) else None for x in call.ins]
    if None in states:
        raise ValueError("a part of it is a constant")
    return stacked([s for s in states if s is not None], call.attr("axis", 0))


@does("gather")
def gather(call: Call) -> State:
    """Rows of a table, each as likely as the others; or elements that are known by number."""
    if isinstance(call.ins[0], State):
        found = EVALUATE["gather"](call.node, [call.state().whole.astype(float), *_numbers(call)])
        return moved(call.state(), found)
    held = call.array(0)
    if held is None or held.ndim != 2 or call.attr("axis", 0) != 0:
        raise ValueError("no table of rows")
    mean = held.mean(0)
    layout = np.arange(len(mean)).reshape([1] * (len(call.shape()) - 1) + [-1])
    return State(mean, held.T @ held / len(held) - np.outer(mean, mean), layout, call.shape())
