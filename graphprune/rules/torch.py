"""Ops that only torch spells this way. Everything else it calls is a rule it shares with ONNX."""

from __future__ import annotations

import math

import numpy as np

from graphprune.dims import Dim, product, sum_
from graphprune.rules.indexing import PICKED, TABLE
from graphprune.rules.norm import group_norm, layer_norm
from graphprune.rules.positions import looks_up
from graphprune.rules.registry import HEAD, HEAD_SIZE, MLP, Op, frozen, rule
from graphprune.rules.shape import ORDERED, regroup
from graphprune.signature import Layout

rule("image", text="b c * -> b c *, b c *")
rule("grouped_matmul", text="t k, e k n, e -> t n", macs="t k n", n=MLP)
rule("bilinear", text="... i, ... j, o i j, o -> ... o", macs="... i j o", o=MLP)
rule("matrix_vector", text="m k, k -> m", macs="m k")
rule("dot", text="k, k -> ", macs="k")

frozen(
    "its body is a graph of its own, which is not entered",
    *"torch.cond torch.while_loop torch.map_impl torch.scan torch.associative_scan".split(),
)


@rule("pointwise")
def pointwise(op: Op) -> None:
    """any number of "..." -> "..." """
    op.ins = [layout for layout in op.ins if layout is not None]
    op.axes(", ".join(["..."] * len(op.ins)) + " -> ..." + ", ..." * (len(op.outs) - 1))


@rule("linear")
def linear(op: Op) -> None:
    """ "... i, o i, o -> ... o" """
    letters = op.axes("... i, o i, o -> ... o", macs="... i o")
    for letter in "o":
        if letter in letters:
            op.role(letters[letter], MLP)


@rule("baddbmm")
def baddbmm(op: Op) -> None:
    """ "..., b m k, b k n -> b m n" """
    op.broadcast(op.x, op.y)
    added, op.ins = op.ins, [None, *op.ins[1:]]
    letters = op.axes("..., b m k, b k n -> b m n", macs="b m k n")
    op.ins = added
    if letters:
        op.role(letters["b"], HEAD)


@rule("torch_norm")
def torch_norm(op: Op) -> None:
    """ "... c, c, c -> ... c", inexact over c"""
    layer_norm(op)
    axis = op.attr("axis", -1)
    for i, dim in enumerate(op.x[axis:]):
        op.slot("normalized_shape", i, dim)


@rule("native_group_norm")
def native_group_norm(op: Op) -> None:
    """ "b (g c) *, (g c), (g c) -> b (g c) *", inexact over c"""
    rest, op.outs = op.outs, op.outs[:1]
    group_norm(op)
    op.slot("channels", 0, op.x[1])
    op.outs = rest


@rule("torch_instance_norm")
def torch_instance_norm(op: Op) -> None:
    """ "b c *, c, c, c, c -> b c *", inexact over the rest"""
    op.axes("b c *, c, c, c, c -> b c *")


@rule("max_pool_indices")
def max_pool_indices(op: Op) -> None:
    """ "b c * -> b c *, b c *": an index counts places in its own channel"""
    op.axes("b c * -> b c *, b c *")


@rule("torch_prelu")
def torch_prelu(op: Op) -> None:
    """ "b c *, c -> b c *", or one slope for all"""
    op.tie_same(op.x, op.y)
    for slope in op.ins[1] or ():
        if slope.size != 1:
            op.tie(slope, op.x[1 if len(op.x) > 1 else 0])


@rule("glu")
def glu(op: Op) -> None:
    """ "... (2 c) ... -> ... c ..." """
    axis, halves = op.attr("axis", -1) % len(op.x), Dim(2)
    op.freeze(halves, "its positions are the value and its gate")
    op.tie_same(op.x, op.y, leave=[axis])
    op.tie(op.x[axis], product(halves, op.y[axis]))
    op.speak_of(op.y[axis])


@rule("weight_norm")
def weight_norm(op: Op) -> None:
    """ "..., ... -> ...", inexact over every axis but `axis`"""
    op.tie_same(op.x, op.y)
    op.broadcast(op.ins[1] or (), op.y)
    for i, dim in enumerate(op.x):
        if i != op.attr("axis", 0) % len(op.x):
            op.inexact(dim, "the weight is normalised over it")


@rule("extreme")
def extreme(op: Op) -> None:
    """ "... c ... -> ... ..." over `axis`, inexact; frozen where the position of the extreme is read"""
    axis = op.attr("axis", -1) % len(op.x)
    read = any(name in op.facts.graph.consumers or name in op.facts.graph.outputs for name in op.node.outputs[1:])
    for layout in op.outs:
        kept = layout or ()
        rest = [i for i in range(len(op.x)) if i != axis]
        for i, dim in zip(rest, kept if len(kept) < len(op.x) else [kept[i] for i in rest], strict=True):
            op.tie(op.x[i], dim)
    if read:
        op.freeze(op.x[axis], "its positions are the result")
    else:
        op.inexact(op.x[axis], f"{op.node.kind} is computed over it")


@rule("embedding_bag")
def embedding_bag(op: Op) -> None:
    """ "_ c, .. -> b c": the table is indexed, its width passes through"""
    op.tie(op.x[1], op.y[1])
    op.freeze(op.x[0], TABLE)


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Op) -> None:
    """ "b c * -> b (c r) *", r the block squared"""
    _gather_places(op, op.attr("blocksize", 1) ** 2, "its positions are places in the image")


@rule("im2col")
def im2col(op: Op) -> None:
    """ "b c * -> b (c r) _", r the elements of the kernel"""
    _gather_places(op, math.prod(op.attr("kernel", [1])), "its positions are places in the kernel")


def _gather_places(op: Op, count: int, why: str) -> None:
    """``count`` places become the inner factor of the channels."""
    inside = Dim(count)
    op.freeze(inside, why)
    op.tie(op.x[0], op.y[0])
    op.tie(product(op.x[1], inside), op.y[1])
    op.speak_of(op.x[1])


@rule("unflatten")
def unflatten(op: Op) -> None:
    """one axis as a product"""
    axis = op.attr("axis", 0) % len(op.x)
    regroup(op, op.x, op.y)
    for i in range(len(op.attr("sizes", []))):
        op.slot("sizes", i, op.y[axis + i])


@rule("expand_as")
def expand_as(op: Op) -> None:
    """ "..., ... -> ..." """
    for layout in op.ins:
        op.broadcast(layout or (), op.y)


@rule("reshape_as")
def reshape_as(op: Op) -> None:
    """the first regrouped in row-major order to the axes of the second"""
    regroup(op, op.x, op.y)
    op.tie_same(op.ins[1] or (), op.y)


@rule("repeat")
def repeat(op: Op) -> None:
    """an axis n repeated r times is the product (r n); repeats without an axis make new ones in front"""
    times, new = op.known(1), len(op.y) - len(op.x)
    for i, out in enumerate(op.y):
        dim = op.x[i - new] if i >= new else Dim(1)
        if times is None or np.isnan(times[i]) or dim.size is None:
            for axis in (dim, out):
                op.freeze(axis, "how often it is repeated is only known when the model runs")
            continue
        copies = Dim(int(times[i]))
        op.tie(out, product(copies, dim))
        op.speak_of(dim)
        op.slot(1, i, copies)


@rule("repeat_interleave")
def repeat_interleave(op: Op) -> None:
    """an axis n with every position repeated r times is the product (n r)"""
    axis = op.attr("axis", 0) % len(op.x)
    copies = Dim(op.attr("repeats", 1))
    op.tie_same(op.x, op.y, leave=[axis])
    op.tie(product(op.x[axis], copies), op.y[axis])
    op.speak_of(op.x[axis])
    op.slot("repeats", 0, copies)


@rule("stack")
def stack(op: Op) -> None:
    """a new axis; all others are the same"""
    axis = op.attr("axis", 0) % len(op.y)
    rest = (*op.y[:axis], *op.y[axis + 1 :])
    for layout in op.ins:
        op.tie_same(layout or (), rest)
    op.tie(op.y[axis], sum_(*(Dim(1) for _ in op.ins)))


@rule("unbind")
def unbind(op: Op) -> None:
    """an axis taken apart; all others are the same"""
    axis = op.attr("axis", 0) % len(op.x)
    rest = (*op.x[:axis], *op.x[axis + 1 :])
    for layout in op.outs:
        if layout is not None:
            op.tie_same(rest, layout)
    op.tie(op.x[axis], sum_(*(Dim(1) for _ in op.outs)))


@rule("ordered")
def ordered(op: Op) -> None:
    """ "... _ ... -> ... _ ...": the order along `axes` counts"""
    op.tie_same(op.x, op.y)
    for axis in op.attr("axes", range(len(op.x))) or range(len(op.x)):
        op.freeze(op.x[axis], ORDERED)


@rule("index")
def index(op: Op) -> None:
    """indexed axes stay whole (a boolean index takes as many as it has); the axes beside them pass through"""
    indexed = [i for i, layout in enumerate(op.ins[1:]) if layout is not None]
    if len(indexed) == 1 and _one_position(op, indexed[0]):
        return
    axis, used, picks = 0, list[int](), list[Layout]()
    for i, layout in enumerate(op.ins[1:], start=1):
        if layout is not None and op.facts.graph.values[op.node.inputs[i]].dtype in ("bool", "uint8"):
            op.tie_same(layout, op.x[axis : axis + len(layout)])
            used += range(axis, axis + len(layout))
        elif layout is not None:
            picks.append(layout)
            used.append(axis)
        axis += 1 if layout is None else used[-1] + 1 - axis
    width = max([len(layout) for layout in picks], default=1)
    first = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    looked_up = len(indexed) == len(used) == 1 and looks_up(op, op.x[used[0]], 1 + indexed[0])
    for i in () if looked_up else used:
        op.freeze(op.x[i], PICKED)
    for layout in picks:
        op.broadcast(layout, op.y[first : first + width])
    rest = [dim for i, dim in enumerate(op.x) if i not in used]
    op.tie_same(tuple(rest), (*op.y[:first], *op.y[first + width :]))


def _one_position(op: Op, axis: int) -> bool:
    """Whether one constant position is taken; the positions that it is counted past then stay, and the others are free.

    A position from the end (-1) stays right whatever is removed in front of it.
    """
    taken, dim = op.known(1 + axis), op.x[axis]
    if taken is None or taken.shape != (1,) or np.isnan(taken).any() or not dim.size:
        return False
    at = int(taken[0])
    before, after = Dim(at % dim.size), Dim(dim.size - at % dim.size - 1)
    op.freeze(after if at < 0 else before, "a position behind it is taken by its number")
    op.tie(dim, sum_(*(part for part in (before, op.y[axis], after) if part.size)))
    op.tie_same(op.x, op.y, leave=[axis])
    op.speak_of(op.y[axis], *(op.ins[1 + axis] or ()))
    return True


@rule("torch_size")
def torch_size(op: Op) -> None:
    """the size of `axis`, read when the model runs: what else enters it stays whole"""
    op.facts.shapes.append((op.node, (op.x[op.attr("axis", 0)],)))
    op.speak_of(*op.x)


@rule("filled")
def filled(op: Op) -> None:
    """a constant along every axis: each is a Dim of its own"""
    for dim in (op.ins[-1] or ()) if op.ins else ():
        op.freeze(dim, "it lists axes")
    op.speak_of(*op.y)
    for i, dim in enumerate(op.y):
        op.slot(len(op.node.inputs) - 1, i, dim)


@rule("sdpa")
def sdpa(op: Op) -> None:
    """ "... h s d, ... k t d, ... k t v, ... -> ... h s v", h = (k r) with grouped queries, softmax over t"""
    query, key, value = (layout or () for layout in op.ins[:3])
    grouped = bool(op.attr("gqa")) and len(query) > 2
    heads, s = query[:-1], len(query) - 2
    op.tie(query[-1], key[-1])
    op.tie(value[-1], op.y[-1])
    op.tie(key[-2], value[-2])
    op.tie(query[s], op.y[s])
    lead = len(query) - 3 if grouped else len(query) - 2
    for layout in (query, key, value):
        op.broadcast(layout[:lead], op.y[:lead])
    if grouped and query[-3].size and key[-3].size and query[-3].size % key[-3].size == 0:
        copies = Dim(query[-3].size // key[-3].size)
        op.tie(key[-3], value[-3])
        op.tie(query[-3], op.y[-3])
        op.tie(query[-3], product(key[-3], copies))
        op.speak_of(key[-3])
    if len(op.ins) > 3 and op.ins[3] is not None:
        op.broadcast(op.ins[3], (*heads[:-1], query[s], key[-2]))
    op.inexact(key[-2], "softmax is computed over it")
    for dim in heads[:-1][1:]:
        op.role(dim, HEAD)
    for dim in (query[-1], value[-1]):
        op.role(dim, HEAD_SIZE)
    op.mask(0, len(query) - 1)
    op.macs(1, *query, key[-2])
    op.macs(1, *op.y, key[-2])
    if op.attr("scale") is None:
        op.pin("scale", 1 / math.sqrt(query[-1].size or 1), query[-1])
