"""Normalisation, softmax and reductions."""

from __future__ import annotations

from graphprune.dims import Dim, product
from graphprune.rules.registry import HIDDEN, Op, rule


@rule("batch_norm")
def batch_norm(op: Op) -> None:
    """ "b c *, c, c, c, c -> b c *"; frozen in training mode, which before opset 14 shows in further outputs"""
    old = 0 < op.facts.graph.opset < 14
    if op.attr("training_mode", old and any(op.node.outputs[1:])):
        op.freeze_all("BatchNormalization is in training mode: export the model in evaluation mode")
    elif not op.attr("spatial", 1):
        op.freeze_all("BatchNormalization has statistics for every place (spatial=0)")
    else:
        op.axes("b c *, c, c, c, c -> b c *, _, _, _, _")


@rule("layer_norm", "rms_norm")
def layer_norm(op: Op) -> None:
    """ "... c, c, c -> ... c", inexact over c (several axes from `axis` on)"""
    axis = op.attr("axis", -1) % max(1, len(op.x))
    for layout in (*op.ins, *op.outs):
        op.broadcast(layout or (), op.x)
    _computed_over(op, op.x[axis:], hidden=True)


rule(
    "com.microsoft.skip_layer_normalization",
    text="... c, ... c, c, c, c -> ... c, *, *, ... c",
    inexact="c",
    c=HIDDEN,
)
rule(
    "com.microsoft.skip_simplified_layer_normalization",
    text="... c, ... c, c, c -> ... c, *, *, ... c",
    inexact="c",
    c=HIDDEN,
)
rule(
    "com.microsoft.embed_layer_normalization",
    text="*, *, _ c, _ c, _ c, c, c, *, * -> * c, *, * c",
    inexact="c",
    c=HIDDEN,
)


@rule("instance_norm")
def instance_norm(op: Op) -> None:
    """ "b c *, c, c -> b c *", inexact over the rest"""
    op.tie_same(op.x, op.y)
    for layout in op.ins[1:]:
        op.tie((layout or ())[0], op.x[1])
    _computed_over(op, op.x[2:], hidden=False)


@rule("group_norm")
def group_norm(op: Op) -> None:
    """ "b (g c) *, (g c), (g c) -> b (g c) *", inexact over c; scale and bias a group in opset 18"""
    groups = op.attr("num_groups", 1)
    width = op.x[1].size
    if width is None or width % groups:
        op.freeze_all("its channels are not a multiple of its groups")
        return
    group, channel = Dim(groups), Dim(width // groups)
    op.tie_same(op.x, op.y)
    op.tie(op.x[1], product(group, channel))
    for layout in op.ins[1:]:
        scale = (layout or ())[0]
        op.tie(scale, group if scale.size == groups else product(group, channel))
    op.slot("num_groups", 0, group)
    _computed_over(op, (channel, *op.x[2:]), hidden=False)


@rule("mean_variance_normalization")
def mean_variance_norm(op: Op) -> None:
    """ "... -> ...", inexact over `axes`"""
    op.tie_same(op.x, op.y)
    _computed_over(op, [op.x[axis] for axis in op.attr("axes", [0, 2, 3])], hidden=False)


@rule("softmax", "log_softmax", "hardmax", "lp_normalization")
def softmax(op: Op) -> None:
    """ "... c -> ... c", inexact over c (opsets below 13: over all axes from `axis` on)"""
    old = op.attr("opset", op.facts.graph.opset) < 13 and op.node.op != "lp_normalization"
    axis = op.attr("axis", 1 if old else -1) % max(1, len(op.x))
    op.tie_same(op.x, op.y)
    _computed_over(op, op.x[axis:] if old else op.x[axis : axis + 1], hidden=False)


@rule("lrn")
def lrn(op: Op) -> None:
    """ "b _ * -> b _ *": a window slides over the channels, so their order counts"""
    op.tie(op.x[0], op.y[0])
    for dim in (*op.x[1:], *op.y[1:]):
        op.freeze(dim, "a window slides over its positions, so their order counts")


def _computed_over(op: Op, dims: object, hidden: bool) -> None:
    for dim in dims:  # type: ignore[attr-defined]
        op.inexact(dim, f"{op.node.kind} is computed over it")
        if hidden:
            op.role(dim, HIDDEN)


@rule(
    *"reduce_sum reduce_mean reduce_max reduce_min reduce_prod reduce_l1 reduce_l2".split(),
    *"reduce_log_sum reduce_log_sum_exp reduce_sum_square".split(),
)
def reduce(op: Op) -> None:
    """ "... c -> ... 1" over `axes`: exact for sums (a zero adds nothing), inexact for the others"""
    axes = op.param("axes", 1)
    if axes is None and (op.given("axes", 1) or op.attr("noop_with_empty_axes", 0)):
        op.freeze_all("its axes are only known when the model runs")
        return
    rank = len(op.x)
    over = {axis % max(1, rank) for axis in axes} if axes else set(range(rank))
    if not axes and axes is not None and op.attr("noop_with_empty_axes", 0):
        over = set()
    kept = [axis for axis in range(rank) if axis not in over]
    out = [op.y[axis] for axis in kept] if op.attr("keepdims", 1) else list(op.y)
    for axis, dim in zip(kept, out, strict=True):
        op.tie(op.x[axis], dim)
    for dim in op.ins[1] or () if len(op.ins) > 1 else ():
        op.freeze(dim, "it lists axes")
    additive = op.node.op in ("reduce_sum", "reduce_l1", "reduce_l2", "reduce_sum_square")
    for axis in over:
        op.tie(op.x[axis], op.x[axis])
        if additive:
            op.mask(0, axis)
        else:
            op.inexact(op.x[axis], f"{op.node.kind} is computed over it")
        if op.node.op == "reduce_mean" and axis == rank - 1:
            op.role(op.x[axis], HIDDEN)


@rule("arg_max", "arg_min")
def arg(op: Op) -> None:
    """ "... c -> ... 1": the result is a position, computed over c if all that is done with it is to look up entries"""
    rank = len(op.x)
    axis = op.attr("axis", 0) % max(1, rank)
    kept = [i for i in range(rank) if i != axis]
    out = [op.y[i] for i in kept] if op.attr("keepdims", 1) else list(op.y)
    for i, dim in zip(kept, out, strict=True):
        op.tie(op.x[i], dim)
    op.finds(op.x[axis])
