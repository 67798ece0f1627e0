"""Ops that pick, place or order positions: what a constant picks is a term of a sum, anything else stays whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphprune.dims import Dim, product, sum_
from graphprune.rules.positions import arranged, looks_up
from graphprune.rules.registry import FOUND, Op, rule
from graphprune.rules.shape import ORDERED, parameters

PICKED = "its positions are picked by an index"
TABLE = "it is a table, and the data say which of its entries are read"


@rule("slice")
def slice_(op: Op) -> None:
    """the middle of a sum (before + taken + after); a stride takes one factor of a product"""
    parameters(op, 1)
    starts, ends, steps = op.param("starts", 1), op.param("ends", 2), op.param("steps", 4)
    axes = op.param("axes", 3)
    if axes is None and not op.given("axes", 3) and len(op.ins) > 1 and op.ins[1]:
        axes = list(range(op.ins[1][0].size or 0))
    elif axes is None and starts is not None and not op.given("axes", 3):
        axes = list(range(len(starts)))
    if axes is None:
        op.freeze_all("the axes it slices are only known when the model runs")
        return
    rank = len(op.x)
    sliced = [axis % rank for axis in axes]
    op.tie_same(op.x, op.y, leave=sliced)
    for i, axis in enumerate(sliced):
        begin = _entry(op, "starts", 1, i, starts)
        end = _entry(op, "ends", 2, i, ends)
        step = 1 if not op.given("steps", 4) else _entry(op, "steps", 4, i, steps)
        _slice_axis(op, axis, i, begin, end, step)


def _entry(op: Op, name: str, i: int, element: int, whole: list[int] | None) -> int | None:
    """One element of a parameter, even where other elements are unknown."""
    if whole is not None:
        return whole[element]
    values = op.known(i) if name not in op.node.attrs else None
    if values is None or np.isnan(np.reshape(values, -1)[element]):
        return None
    return int(np.reshape(values, -1)[element])


def _slice_axis(op: Op, axis: int, i: int, start: int | None, end: int | None, step: int | None) -> None:
    dim, out = op.x[axis], op.y[axis]
    size = dim.size
    if size and start is not None and end is not None and step == 1:
        low, high, _ = slice(start, end).indices(size)
        if high - low != out.size:
            op.freeze(dim, "its slice does not fit its size")
            op.freeze(out, "its slice does not fit its size")
            return
        before, after = Dim(low), Dim(size - high)
        op.tie(dim, sum_(*(part for part in (before, out, after) if part.size)))
        op.speak_of(out)
        if (low, high) != (0, size):
            op.slot(op.place("starts", 1, 10), i, before, watch=dim)
            op.slot(op.place("ends", 2, 10), i, sum_(before, out) if low else out, watch=dim)
    elif size and step and step > 1 and start is not None and size % step == 0 and out.size == size // step:
        lane = Dim(step)
        op.freeze(lane, "every other position is taken")
        op.tie(dim, product(out, lane))
        op.speak_of(out)
        _stride_slots(op, dim, out, i, start, end)
    else:
        why = ORDERED if size else "it is sliced at a place only known when the model runs"
        op.freeze(dim, why)
        op.freeze(out, why)


def _stride_slots(op: Op, dim: Dim, out: Dim, i: int, start: int, end: int | None) -> None:
    """A strided slice to the far end stays right after a cut; any other end would not."""
    if start < 0 or end is None or (0 <= end < 2**31 - 1) or end < 0:
        if end is not None and dim.size is not None and start >= 0 and end >= dim.size:
            return
        op.freeze(out, "it is sliced with a stride to a fixed end")


@rule("gather")
def gather(op: Op) -> None:
    """ "a.. c z.., i.. -> a.. i.. z..": c is in the order of a constant index, or has an entry for each TopK result"""
    rank = len(op.x)
    axis = op.attr("axis", 0) % max(1, rank)
    indices = op.ins[1] or ()
    op.tie_same(op.x[:axis], op.y[:axis])
    op.tie_same(indices, op.y[axis : axis + len(indices)])
    op.tie_same(op.x[axis + 1 :], op.y[axis + len(indices) :])
    if not _arrange(op, op.x[axis], indices):
        _pick(op, op.x[axis], 0, 1)


def _arrange(op: Op, dim: Dim, indices: Sequence[Dim]) -> bool:
    """Whether a constant index of several numbers takes positions of ``dim`` in an order, which its own axes then have.

    Only files are given other numbers.
    """
    index, size = op.known(1), dim.size
    if index is None or index.size < 2 or not size or np.isnan(index).any() or not op.facts.graph.merged:
        return False
    positions = index.astype(np.int64) % size
    found = arranged(op, positions.reshape(-1), size)
    if found is None:
        return False
    whole, taken = found
    op.tie(dim, whole)
    op.tie(product(*indices), taken)
    op.speak_of(dim, *indices)
    op.names(1, dim, positions)
    return True


def _pick(op: Op, dim: Dim, at: int, depth: int, i: int = 1) -> None:
    """Entry ``at`` of input ``i`` says which position of ``dim`` is taken: a term of a sum if it is one tuple."""
    index = op.known(i)
    if depth == 1 and looks_up(op, dim, i):
        return
    if index is None or np.isnan(index).any():
        table = op.node.inputs[0] in op.facts.constant
        op.freeze(dim, TABLE if table else PICKED)
    elif not dim.size or index.size != depth:
        op.freeze(dim, PICKED)
    else:
        count = int(index.reshape(-1)[at]) % dim.size
        before, one, after = Dim(count), Dim(1), Dim(dim.size - count - 1)
        op.tie(dim, sum_(*(part for part in (before, one, after) if part.size)))
        op.slot(i, at, before, watch=dim)


@rule("gather_elements")
def gather_elements(op: Op) -> None:
    """ "... _ ..." along `axis`; other axes are the same where their sizes are"""
    axis = op.attr("axis", 0) % max(1, len(op.x))
    op.tie_same(op.ins[1] or (), op.y)
    for i, (dim, out) in enumerate(zip(op.x, op.y, strict=True)):
        if i != axis and dim.size == out.size:
            op.tie(dim, out)
        else:
            _pick_along(op, dim, i == axis)
        if i != axis and dim.size != out.size:
            op.freeze(out, "it goes along an axis that is longer, position by position")


def _pick_along(op: Op, dim: Dim, along: bool) -> None:
    """An axis whose positions are named one by one, if it goes ``along`` it, or that is longer than the index."""
    if not along or not looks_up(op, dim, 1):
        op.freeze(dim, PICKED)


@rule("gather_nd")
def gather_nd(op: Op) -> None:
    """leading axes are indexed and stay whole, unless by one constant position; all others pass through"""
    batch, indices = op.attr("batch_dims", 0), op.ins[1] or ()
    depth = indices[-1].size
    if depth is None:
        op.freeze_all("how many axes it indexes is only known when the model runs")
        return
    op.tie_same(indices[:-1], op.y[: len(indices) - 1])
    op.freeze(indices[-1], "it holds coordinates")
    op.tie_same(op.x[:batch], op.y[:batch])
    if depth != 1 or batch or not _arrange(op, op.x[0], indices):
        for i, dim in enumerate(op.x[batch : batch + depth]):
            _pick(op, dim, i, depth)
    op.tie_same(op.x[batch + depth :], op.y[len(indices) - 1 :])


@rule("scatter_elements", "scatter")
def scatter_elements(op: Op) -> None:
    """ "... _ ..." along `axis`; other axes are the same where their sizes are"""
    axis = op.attr("axis", 0) % max(1, len(op.x))
    op.tie_same(op.x, op.y)
    indices, updates = op.ins[1] or (), op.ins[2] or ()
    op.tie_same(indices, updates)
    for i, (dim, index) in enumerate(zip(op.x, indices, strict=True)):
        if i != axis and dim.size == index.size:
            op.tie(dim, index)
        else:
            op.freeze(index, PICKED)
            _pick_along(op, dim, i == axis)


@rule("scatter_nd")
def scatter_nd(op: Op) -> None:
    """leading axes of the data are indexed and stay whole; the axes behind them pass through"""
    indices, updates = op.ins[1] or (), op.ins[2] or ()
    depth = indices[-1].size
    op.tie_same(op.x, op.y)
    if depth is None:
        op.freeze_all("how many axes it indexes is only known when the model runs")
        return
    op.freeze(indices[-1], "it holds coordinates")
    op.tie_same(indices[:-1], updates[: len(indices) - 1])
    for dim in op.x[:depth]:
        op.freeze(dim, PICKED)
    op.tie_same(op.x[depth:], updates[len(indices) - 1 :])


@rule("tensor_scatter")
def tensor_scatter(op: Op) -> None:
    """the cache axis is ordered; all other axes of cache and update are the same"""
    axis = op.attr("axis", -2) % max(1, len(op.x))
    update = op.ins[1] or ()
    op.tie_same(op.x, op.y)
    op.tie_same(op.x, update, leave=[axis])
    for dim in (op.x[axis], update[axis]):
        op.freeze(dim, "its positions are places in the sequence")
    if len(op.ins) > 2 and op.ins[2]:
        op.tie(op.ins[2][0], op.x[0])


@rule("trilu")
def trilu(op: Op) -> None:
    """ "... _ _ -> ... _ _": the order of the last two axes counts"""
    op.tie_same(op.x, op.y)
    for dim in op.x[-2:]:
        op.freeze(dim, ORDERED)


@rule("cum_sum", "cum_prod")
def cumulative(op: Op) -> None:
    """ "... _ ... -> ... _ ...": the order along the axis counts"""
    _ordered_along(op, op.param("axis", 1))


@rule("top_k")
def top_k(op: Op) -> None:
    """ "... c ... -> ... _ ...": computed over c, if all that is done with positions is to look up entries"""
    axis, count = op.attr("axis", -1) % max(1, len(op.x)), op.param("k", 1)
    for layout in filter(None, op.outs):
        op.tie_same(op.x, layout, leave=[axis])
        op.freeze(layout[axis], FOUND)
    if count:
        op.finds(op.x[axis])
        op.least(op.x[axis], count[0])
    else:
        op.freeze(op.x[axis], FOUND)


@rule("reverse_sequence")
def reverse_sequence(op: Op) -> None:
    """ "... _ ... -> ... _ ...": the order along `time_axis` counts"""
    _ordered_along(op, [op.attr("time_axis", 0), op.attr("batch_axis", 1)])


@rule("center_crop_pad")
def center_crop_pad(op: Op) -> None:
    """ "... _ ... -> ... _ ...": cropped axes are ordered"""
    axes = op.attr("axes", range(len(op.x)))
    op.tie_same(op.x, op.y, leave=[axis % len(op.x) for axis in axes])


@rule("one_hot")
def one_hot(op: Op) -> None:
    """ "i.. -> i.. _": the new axis is indexed"""
    axis = op.attr("axis", -1) % len(op.y)
    op.freeze(op.y[axis], "its positions are an index")
    op.tie_same(op.x, (*op.y[:axis], *op.y[axis + 1 :]))


def _ordered_along(op: Op, axes: Sequence[int] | None) -> None:
    if axes is None:
        op.freeze_all("its axis is only known when the model runs")
        return
    op.tie_same(op.x, op.y)
    for axis in axes:
        op.freeze(op.x[axis], ORDERED)
