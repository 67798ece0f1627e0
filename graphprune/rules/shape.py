"""Ops that move, split, join or repeat positions: their axes depend on their arguments, so each is a function.

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
    parameters(op, 1)
    regroup(op, op.x, op.y)
    target = op.known(1)
    entries = [float("nan")] * len(op.y) if target is None or target.size != len(op.y) else list(target.reshape(-1))
    for i, (dim, entry) in enumerate(zip(op.y, entries, strict=True)):
        op.slot(1, i, dim)
        if entry == 0 and not op.attr("allowzero", 0):
            op.slot(1, i, dim, watch=op.x[i])
        if dim.size is None and entry != -1 and -1 in entries:
            op.freeze(dim, "its size cannot be written: the target leaves another size open")


def regroup(op: Op, a: Layout, b: Layout) -> None:
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
    parameters(op, 1)
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
            op.least(dim, 2)


@rule("unsqueeze")
def unsqueeze(op: Op) -> None:
    """axes of size 1 added"""
    parameters(op, 1)
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
    parameters(op, 1)
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
    parameters(op, 1)
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
    parameters(op, 1)
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


@rule("pad")
def pad(op: Op) -> None:
    """(before + n + after) along the padded axes, for constant padding; other modes keep padded axes whole"""
    parameters(op, 1)
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
    parameters(op, 1)
    newer = op.node.op == "resize" and op.facts.graph.opset >= 11
    scales = op.attr("scales", op.known(2 if newer else 1))
    sized = newer and op.given("sizes", 3)
    if op.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        op.freeze_all("it crops")
        return
    axes = [axis % len(op.x) for axis in op.attr("axes", range(len(op.x)))]
    op.tie_same(op.x, op.y, leave=axes)
    same = [
        op.x[axis].size is not None
        and op.x[axis].size == op.y[axis].size
        and (sized or (scales is not None and len(scales) > i and scales[i] == 1))
        for i, axis in enumerate(axes)
    ]
    alike = op.attr("keep_aspect_ratio_policy", "stretch") != "stretch"  # one scale for all, made of all sizes
    for i, axis in enumerate(axes):
        dim, out = op.x[axis], op.y[axis]
        if all(same) if alike else same[i]:
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
    parameters(op, 0)
    op.speak_of(*op.y)
    for i, dim in enumerate(op.y):
        op.slot(0, i, dim)


def parameters(op: Op, first: int) -> None:
    """Inputs from ``first`` on are parameters: vectors of sizes, which no cut may shorten."""
    for layout in op.ins[first:]:
        for dim in layout or ():
            op.freeze(dim, "it lists axes")
