"""Convolution, pooling and what else works on (batch, channel, space)."""

from __future__ import annotations

import math

from graphprune.dims import Dim
from graphprune.rules.registry import CHANNEL, PLACE, Op, rule

SLIDES = "a kernel slides over its positions, so their order counts"


@rule("conv")
def conv(op: Op) -> None:
    """ "b (g i) *x, (g o) i *k, (g o) -> b (g o) *y"; an axis of space on which the kernel is a point passes through"""
    _convolve(op, "b (g i) {0}, (g o) i {1}, (g o) -> b (g o) {0}")


@rule("com.microsoft.fused_conv")
def fused_conv(op: Op) -> None:
    """ "b (g i) *x, (g o) i *k, (g o), b (g o) *y -> b (g o) *y"; a point as in Conv"""
    _convolve(op, "b (g i) {0}, (g o) i {1}, (g o), b (g o) {0} -> b (g o) {0}")


def _convolve(op: Op, text: str) -> None:
    """The axis text ``text`` with a letter for each axis of space on which nothing but the same place is looked at."""
    space = range(len(op.ins[1] or ()) - 2)
    names = {i: "stuvw"[i] for i in space[:5] if _is_point(op, i)}
    over = math.prod(op.extent(False, 1, 2 + i) for i in space)
    over *= math.prod(op.extent(True, 0, 2 + i) for i in space if i not in names)
    places = " ".join(names.get(i, "_") for i in space)
    macs = f"{over} b g o i {' '.join(names.values())}"
    letters = op.axes(text.format(places, "_ " * len(space)), sizes={"g": "group"}, macs=macs, why=SLIDES)
    for letter, dim in letters.items():
        if letter in "og" or letter in names.values():
            op.role(dim, CHANNEL if letter in "og" else PLACE)


def _is_point(op: Op, i: int) -> bool:
    """Whether the kernel is of size 1 on axis ``i`` of space, and moves from each place to the next."""
    pads, size = op.attr("pads", ()), op.attr("auto_pad", "NOTSET")
    still = (op.ins[1] or ())[2 + i].size == 1 and [*op.attr("strides", ())][i : i + 1] in ([], [1])
    return still and size in ("NOTSET", "VALID", "valid") and not any(pads[i :: max(1, len(pads) // 2)])


rule(
    "conv_transpose",
    text="b (g i) *x, (g i) o *k, (g o) -> b (g o) *y",
    sizes={"g": "group"},
    macs="b g o i k x",
    o=CHANNEL,
    g=CHANNEL,
)
rule("average_pool", "lp_pool", text="b c * -> b c *")
rule("com.microsoft.nhwc_max_pool", text="b * c -> b * c")
rule("global_average_pool", "global_max_pool", "global_lp_pool", text="b c * -> b c *")
rule("grid_sample", text="b c *, b * _ -> b c *")
rule("roi_align", text="_ c *, n _, n -> n c *")
rule("max_roi_pool", text="_ c *, n _ -> n c *")


@rule("causal_conv_with_state", "com.microsoft.causal_conv_with_state")
def causal_conv(op: Op) -> None:
    """ "b c *x, c 1 *k, c, b c * -> b c *, b c *"; frozen with channels last and with a window of states"""
    if op.attr("channels_last", 0) or op.attr("state_window", 0):
        op.freeze_all("its channels are last, or it keeps several states")
        return
    letters = op.axes("b c *x, c 1 *k, c, b c * -> b c *, b c *", macs="b c k x")
    if letters:
        op.role(letters["c"], CHANNEL)


@rule("max_pool")
def max_pool(op: Op) -> None:
    """ "b c * -> b c *"; frozen where the positions of the maxima are asked for"""
    if len(op.outs) > 1 and op.outs[1] is not None:
        op.freeze_all("the indices that MaxPool returns count over all channels")
    else:
        op.axes("b c * -> b c *")


@rule("deform_conv")
def deform_conv(op: Op) -> None:
    """ "b (g i) *x, (g o) i *k, b _ *, (g o), b _ * -> b (g o) *y"; frozen with several offset groups"""
    if op.attr("offset_group", 1) != 1:
        op.freeze_all("several offset groups share its channels")
        return
    text = "b (g i) *x, (g o) i *k, b _ *, (g o), b _ * -> b (g o) *y"
    letters = op.axes(text, sizes={"g": "group"}, macs="b g o i k y")
    for letter in "go":
        if letter in letters:
            op.role(letters[letter], CHANNEL)


@rule("depth_to_space")
def depth_to_space(op: Op) -> None:
    """ "b (r c) * -> b c *" (DCR) or "b (c r) * -> b c *" (CRD), r the block squared"""
    block = op.attr("blocksize", 1) ** 2
    op.axes("b (r c) * -> b c *" if op.attr("mode", "DCR") == "DCR" else "b (c r) * -> b c *", sizes={"r": block})
    _freeze_block(op, op.x[1], block, op.attr("mode", "DCR") == "DCR")


@rule("space_to_depth")
def space_to_depth(op: Op) -> None:
    """ "b c * -> b (r c) *", r the block squared"""
    block = op.attr("blocksize", 1) ** 2
    op.axes("b c * -> b (r c) *", sizes={"r": block})
    _freeze_block(op, op.y[1], block, True)


@rule("col2im")
def col2im(op: Op) -> None:
    """ "b (c r) _ -> b c *", r the elements of the block"""
    block = op.param("block_shape", 2)
    if block is None:
        op.freeze_all("its block shape is only known when the model runs")
        return
    for i in (1, 2):
        for dim in op.ins[i] or ():
            op.freeze(dim, "it counts the axes of the image")
    op.ins = op.ins[:1]
    op.axes("b (c r) _ -> b c *", sizes={"r": math.prod(block)})
    _freeze_block(op, op.x[1], math.prod(block), False)


def _freeze_block(op: Op, axis: Dim, block: int, outermost: bool) -> None:
    """The positions inside a block are places in the image: they stay."""
    from graphprune.dims import product

    if axis.size is None or axis.size % block:
        op.freeze_all("its channels are not a multiple of the block")
        return
    inside, channels = Dim(block), Dim(axis.size // block)
    op.freeze(inside, "its positions are places in the image")
    op.tie(axis, product(inside, channels) if outermost else product(channels, inside))
