"""Ops that move, split, join, repeat or pick positions: their axes depend on their arguments, so each is a function.

Where an argument is a size, an offset or a count of a Dim, a slot says so, and the writer keeps it right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphprune.dims import Dim, product, sum_
from graphprune.rules.registry import Op, rule
from graphprune.signature import Layout

ORDERED = "the order of its positions counts"


@rule("reshape")
def reshape(op: Op) -> None:
    """axes regrouped in row-major order: a factor, a product, or both cut to common factors"""
    _parameters(op, 1)
    _regroup(op, op.x, op.y)
    target = op.known(1)
    entries = [float("nan")] * len(op.y) if target is None or target.size != len(op.y) else list(target.reshape(-1))
    for i, (dim, entry) in enumerate(zip(op.y, entries, strict=True)):
        op.slot(1, i, dim)
        if entry == 0 and not op.attr("allowzero", 0):
            op.slot(1, i, dim, watch=op.x[i])
        if dim.size is None and entry != -1 and -1 in entries:
            op.freeze(dim, "its size cannot be written: the target leaves another size open")


def _regroup(op: Op, a: Layout, b: Layout) -> None:
    """Equal leading axes first, then blocks of equal size from the right, then what is left around unknown sizes."""
    left, right = (list(op.facts.graph.shape(name) or ()) for name in (op.node.inputs[0], op.node.outputs[0]))
    front = 0
    while front < min(len(a), len(b)) and left[front] == right[front]:
        op.tie(a[front], b[front])
        front += 1
    left, right, a, b = left[front:], right[front:], a[front:], b[front:]
    while left or right:
        block = _last_block(left, right)
        i, j = block or (0, 0)
        ours, theirs = a[i : len(left)], b[j : len(right)]
        op.tie(product(*ours) if ours else Dim(1), product(*theirs) if theirs else Dim(1))
        op.speak_of(*ours, *theirs)
        del left[i:], right[j:]


def _last_block(left: Sequence[int | str], right: Sequence[int | str]) -> tuple[int, int] | None:
    """Where the shortest tails of equal size start; None where a size is unknown or they never meet."""
    if left and right and left[-1] == right[-1]:
        return len(left) - 1, len(right) - 1
    i, j, p, q = len(left), len(right), 1, 1
    while p != q or (i == len(left) and j == len(right)):
        if p < q or (p == q and i > 0):
            i -= 1
            size = left[i] if i >= 0 else None
            p *= size if isinstance(size, int) else 0
        else:
            j -= 1
            size = right[j] if j >= 0 else None
            q *= size if isinstance(size, int) else 0
        if not isinstance(size, int) or not size:
            return None
    return i, j


@rule("flatten")
def flatten(op: Op) -> None:
    """two axes: the product of the axes before `axis`, and of those from it on"""
    axis = op.attr("axis", 1) % (len(op.x) + 1) if op.attr("axis", 1) >= 0 else op.attr("axis", 1) + len(op.x)
    for dims, out in ((op.x[:axis], op.y[0]), (op.x[axis:], op.y[1])):
        op.tie(product(*dims) if dims else Dim(1), out)
        op.speak_of(*dims)


@rule("transpose")
def transpose(op: Op) -> None:
    """axes in the order of `perm`"""
    for i, source in enumerate(op.attr("perm") or range(len(op.x))[::-1]):
        op.tie(op.x[source], op.y[i])


@rule("squeeze")
def squeeze(op: Op) -> None:
    """axes of size 1 dropped; where `axes` is not given, the others must keep two positions"""
    _parameters(op, 1)
    rank = len(op.x)
    axes = op.param("axes", 1)
    if axes is None and op.given("axes", 1):
        op.freeze_all("its axes are only known when the model runs")
        return
    drop = {axis % rank for axis in axes} if axes is not None else {i for i, dim in enumerate(op.x) if dim.size == 1}
    rest = [dim for i, dim in enumerate(op.x) if i not in drop]
    if len(rest) != len(op.y):
        op.freeze_all("which axes it drops is only known when the model runs")
        return
    for dim, out in zip(rest, op.y, strict=True):
        op.tie(dim, out)
        if axes is None:
            op.facts.least.append((dim, 2))


@rule("unsqueeze")
def unsqueeze(op: Op) -> None:
    """axes of size 1 added"""
    _parameters(op, 1)
    axes = op.param("axes", 1)
    if axes is None:
        op.freeze_all("its axes are only known when the model runs")
        return
    new = {axis % len(op.y) for axis in axes}
    rest = [dim for i, dim in enumerate(op.y) if i not in new]
    op.tie_same(op.x, tuple(rest))


@rule("expand")
def expand(op: Op) -> None:
    """axes of size 1 repeated: the copies are a Dim of their own"""
    _parameters(op, 1)
    op.broadcast(op.x, op.y)
    op.speak_of(*op.y)
    target = op.ins[1]
    length = target[0].size if target else None
    if length is None:
        for dim in op.y:
            op.freeze(dim, "its target shape is only known when the model runs")
        return
    for i, dim in enumerate(op.y[len(op.y) - length :]):
        op.slot(1, i, dim)


@rule("tile")
def tile(op: Op) -> None:
    """an axis n repeated r times is the product (r n)"""
    _parameters(op, 1)
    repeats = op.known(1)
    for i, (dim, out) in enumerate(zip(op.x, op.y, strict=True)):
        times = None if repeats is None or np.isnan(repeats[i]) else int(repeats[i])
        if times == 1:
            op.tie(dim, out)
        elif times and dim.size and out.size == times * dim.size:
            copies = Dim(times)
            op.tie(product(copies, dim), out)
            op.speak_of(dim)
            op.slot(1, i, copies)
        else:
            op.freeze(dim, "how often it is repeated is only known when the model runs")
            op.freeze(out, "how often it is repeated is only known when the model runs")


@rule("concat")
def concat(op: Op) -> None:
    """the sum of the inputs along `axis`; all other axes are the same"""
    axis = op.attr("axis", 1) % max(1, len(op.y))
    for layout in op.ins:
        op.tie_same(layout or (), op.y, leave=[axis])
    parts = [layout[axis] for layout in op.ins if layout]
    op.tie(sum_(*parts), op.y[axis])
    op.speak_of(*parts)


@rule("split")
def split(op: Op) -> None:
    """the terms of a sum along `axis`; all other axes are the same"""
    _parameters(op, 1)
    axis = op.attr("axis", 0) % max(1, len(op.x))
    parts = []
    for layout in op.outs:
        if layout is None:
            op.freeze_all("an output that nobody reads hides one of its parts")
            return
        op.tie_same(op.x, layout, leave=[axis])
        parts.append(layout[axis])
    op.tie(op.x[axis], sum_(*parts))
    op.speak_of(*parts)
    for i, part in enumerate(parts):
        op.slot(op.place("split", 1, 13), i, part, watch=op.x[axis])


@rule("slice")
def slice_(op: Op) -> None:
    """the middle of a sum (before + taken + after); a stride takes one factor of a product"""
    _parameters(op, 1)
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
    """ "a.. c z.., i.. -> a.. i.. z..": c is indexed and stays whole, unless the index is one constant position"""
    rank = len(op.x)
    axis = op.attr("axis", 0) % max(1, rank)
    indices = op.ins[1] or ()
    op.tie_same(op.x[:axis], op.y[:axis])
    op.tie_same(indices, op.y[axis : axis + len(indices)])
    op.tie_same(op.x[axis + 1 :], op.y[axis + len(indices) :])
    dim, index = op.x[axis], op.known(1)
    if dim.size and index is not None and index.size == 1 and not np.isnan(index).any():
        at = int(index.reshape(-1)[0]) % dim.size
        before, one, after = Dim(at), Dim(1), Dim(dim.size - at - 1)
        op.tie(dim, sum_(*(part for part in (before, one, after) if part.size)))
        op.slot(1, 0, before, watch=dim)
    else:
        op.freeze(dim, "its positions are picked by an index")


@rule("gather_elements")
def gather_elements(op: Op) -> None:
    """ "... _ ..." along `axis`; other axes are the same where their sizes are"""
    axis = op.attr("axis", 0) % max(1, len(op.x))
    op.tie_same(op.ins[1] or (), op.y)
    for i, (dim, out) in enumerate(zip(op.x, op.y, strict=True)):
        if i != axis and dim.size == out.size:
            op.tie(dim, out)
        else:
            op.freeze(dim, "its positions are picked by an index")
        if i != axis and dim.size != out.size:
            op.freeze(out, "it goes along an axis that is longer, position by position")


@rule("gather_nd")
def gather_nd(op: Op) -> None:
    """leading axes of the data are indexed and stay whole; the axes behind them and those of the index pass through"""
    batch, indices = op.attr("batch_dims", 0), op.ins[1] or ()
    depth = indices[-1].size
    if depth is None:
        op.freeze_all("how many axes it indexes is only known when the model runs")
        return
    op.tie_same(indices[:-1], op.y[: len(indices) - 1])
    op.freeze(indices[-1], "it holds coordinates")
    op.tie_same(op.x[:batch], op.y[:batch])
    for dim in op.x[batch : batch + depth]:
        op.freeze(dim, "its positions are picked by an index")
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
            op.freeze(dim, "its positions are picked by an index")
            op.freeze(index, "its positions are picked by an index")


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
        op.freeze(dim, "its positions are picked by an index")
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


@rule("pad")
def pad(op: Op) -> None:
    """(before + n + after) along the padded axes, for constant padding; other modes keep padded axes whole"""
    _parameters(op, 1)
    pads, axes = op.param("pads", 1) or op.attr("paddings"), op.param("axes", 3)
    rank = len(op.x)
    if pads is None or (axes is None and op.given("axes", 3)):
        op.freeze_all("its padding is only known when the model runs")
        return
    where = [axis % rank for axis in axes] if axes is not None else list(range(rank))
    op.tie_same(op.x, op.y, leave=where)
    for i, axis in enumerate(where):
        before, after = pads[i], pads[i + len(where)]
        if not before and not after:
            op.tie(op.x[axis], op.y[axis])
        elif op.attr("mode", "constant") == "constant" and min(before, after) >= 0 and op.x[axis].size:
            head, tail = Dim(before), Dim(after)
            op.tie(sum_(*(part for part in (head, op.x[axis], tail) if part.size)), op.y[axis])
            op.speak_of(op.x[axis])
            place = op.place("pads", 1, 11)
            op.slot(place, i, head, watch=op.y[axis])
            op.slot(place, i + len(where), tail, watch=op.y[axis])
        else:
            op.freeze(op.x[axis], ORDERED)
            op.freeze(op.y[axis], ORDERED)


@rule("resize", "upsample")
def resize(op: Op) -> None:
    """axes whose scale is 1 are the same; resized axes are ordered"""
    _parameters(op, 1)
    newer = op.node.op == "resize" and op.facts.graph.opset >= 11
    scales = op.attr("scales", op.known(2 if newer else 1))
    sized = newer and op.given("sizes", 3)
    if op.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        op.freeze_all("it crops")
        return
    axes = [axis % len(op.x) for axis in op.attr("axes", range(len(op.x)))]
    op.tie_same(op.x, op.y, leave=axes)
    for i, axis in enumerate(axes):
        dim, out = op.x[axis], op.y[axis]
        same = dim.size is not None and dim.size == out.size
        if same and (sized or (scales is not None and len(scales) > i and scales[i] == 1)):
            op.tie(dim, out)
            if sized:
                op.slot(3, i, out)
        else:
            op.freeze(dim, ORDERED)
            op.freeze(out, ORDERED)


@rule("shape")
def shape(op: Op) -> None:
    """the sizes themselves: after a cut they still read as before, and whoever uses them is given the new ones"""
    op.speak_of(*op.x)
    op.freeze(op.y[0], "it lists axes")
    start, end, _ = slice(op.attr("start", 0), op.attr("end")).indices(len(op.x))
    op.facts.shapes.append((op.node, op.x[start:end]))


@rule("constant_of_shape")
def constant_of_shape(op: Op) -> None:
    """a constant along every axis: each is a Dim of its own"""
    _parameters(op, 0)
    op.speak_of(*op.y)
    for i, dim in enumerate(op.y):
        op.slot(0, i, dim)


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
    """ "... _ ... -> ... _ ...": positions along `axis` are the result"""
    for layout in op.outs:
        axis = op.attr("axis", -1) % max(1, len(op.x))
        op.tie_same(op.x, layout or op.x, leave=[axis])
        for dim in (op.x[axis], (layout or op.x)[axis]):
            op.freeze(dim, "its positions are the result")


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


@rule("quantize_linear", "dequantize_linear")
def quantize(op: Op) -> None:
    """ "... -> ...", scale and zero point along `axis`; blocks stay whole"""
    op.tie_same(op.x, op.y)
    axis = op.attr("axis", 1)
    for layout in op.ins[1:]:
        if layout is None:
            continue
        if len(layout) == 1 and layout[0].size != 1:
            op.tie(layout[0], op.x[axis])
        elif len(layout) > 1:
            for dim, scale in zip(op.x, layout, strict=True):
                if dim.size == scale.size:
                    op.tie(dim, scale)
                else:
                    op.freeze(dim, "it is quantised in blocks")
                    op.freeze(scale, "it is quantised in blocks")


def _ordered_along(op: Op, axes: Sequence[int] | None) -> None:
    if axes is None:
        op.freeze_all("its axis is only known when the model runs")
        return
    op.tie_same(op.x, op.y)
    for axis in axes:
        op.freeze(op.x[axis], ORDERED)


def _parameters(op: Op, first: int) -> None:
    """Inputs from ``first`` on are parameters: vectors of sizes, which no cut may shorten."""
    for layout in op.ins[first:]:
        for dim in layout or ():
            op.freeze(dim, "it lists axes")
