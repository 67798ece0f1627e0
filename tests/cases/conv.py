"""Convolution, pooling and what else works on (batch, channel, space)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.build import Net
from tests.cases.table import STANDARD, add, case


def _conv(title: str, free: str, groups: int, inside: int, out: int, **attrs: Any) -> None:
    """``inside`` and ``out``: channels a group."""

    def build(net: Net) -> None:
        x = net.free(2, groups * inside, 5, 4)
        w = net.weight(groups * out, inside, 3, 3, fan=9 * inside)
        net.sink(net.op("Conv", x, w, net.weight(groups * out), group=groups, name="tested", **attrs))

    add("conv", title, free, build)


_conv("plain", "++.. ++.. + -> ++..", 1, 4, 6)
_conv("strided", "++.. ++.. + -> ++..", 1, 4, 6, strides=[2, 1], pads=[1, 1, 1, 1], dilations=[1, 1])
_conv("grouped", "++.. ++.. + -> ++..", 3, 2, 4)
_conv("depthwise", "++.. +... + -> ++..", 6, 1, 1)
_conv("depthwise times two", "++.. +... + -> ++..", 4, 1, 2)
_conv("one channel a group out", "++.. ++.. + -> ++..", 3, 2, 1)


@case("conv", "one axis of space, no bias, no group", "++. ++. -> ++.")
def conv1d(net: Net) -> None:
    net.sink(net.op("Conv", net.free(2, 4, 7), net.weight(5, 4, 3, fan=12), name="tested"))


def _conv_transpose(title: str, groups: int, inside: int, out: int, free: str = "++.. ++.. + -> ++..") -> None:
    def build(net: Net) -> None:
        x = net.free(2, groups * inside, 4, 3)
        w = net.weight(groups * inside, out, 3, 3, fan=9 * inside)
        bias = net.weight(groups * out)
        net.sink(net.op("ConvTranspose", x, w, bias, group=groups, strides=[2, 2], name="tested"))

    add("conv_transpose", title, free, build)


_conv_transpose("plain", 1, 4, 5)
_conv_transpose("grouped", 3, 2, 4)
_conv_transpose("depthwise", 5, 1, 1, "++.. +... + -> ++..")


def _deform(title: str, groups: int, free: str, offset_groups: int = 1) -> None:
    def build(net: Net) -> None:
        x = net.free(2, groups * 2, 4, 4)
        w = net.weight(groups * 3, 2, 2, 2, fan=8)
        offset, mask = net.free(2, 8 * offset_groups, 3, 3), net.free(2, 4 * offset_groups, 3, 3)
        made = net.op(
            "DeformConv", x, w, offset, net.weight(groups * 3), mask,
            group=groups, offset_group=offset_groups, kernel_shape=[2, 2], name="tested",
        )  # fmt: skip
        net.sink(made, hidden=5)

    add("deform_conv", title, free, build, opset=19)


_deform("plain", 1, "++.. ++.. +... + +... -> ++..")
_deform("grouped", 2, "++.. ++.. +... + +... -> ++..")
_deform("two offset groups", 1, ".... .... .... . .... -> ....", 2)


@case("causal_conv_with_state", "", "++. +.. + ++. -> ++. ++.", opset=27)
def causal_conv(net: Net) -> None:
    x, state = net.free(2, 4, 5), net.free(2, 4, 2)
    inputs = x, net.weight(4, 1, 3, fan=3), net.weight(4), state
    y, now = net.ops("CausalConvWithState", *inputs, outs=2, activation="silu", name="tested")
    net.sink(net.op("Concat", y, now, axis=2))


def _pool(op: str, title: str, opset: int = 21, **attrs: Any) -> None:
    def build(net: Net) -> None:
        net.sink(net.op(STANDARD[op], net.free(2, 5, 4, 4), name="tested", **attrs))

    add(op, title, "++.. -> ++..", build, opset=opset)


_pool("average_pool", "", kernel_shape=[2, 2])
_pool("average_pool", "padded", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], count_include_pad=1)
_pool("lp_pool", "", kernel_shape=[2, 2], p=2)
_pool("max_pool", "", kernel_shape=[2, 2], strides=[2, 2])
_pool("global_average_pool", "")
_pool("global_max_pool", "")
_pool("global_lp_pool", "", p=2)


@case("max_pool", "with indices", ".... -> .... ....")
def max_pool_indices(net: Net) -> None:
    """The indices count over all channels, so the channels stay; the weights around the pool do not."""
    y, where = net.ops("MaxPool", net.free(2, 5, 4, 4), outs=2, kernel_shape=[2, 2], name="tested")
    net.sink(net.op("Add", net.op("Mul", net.op("Cast", where, to=1), net.const(0.01, np.float32)), y), hidden=5)


@case("grid_sample", "", "++.. +... -> ++..")
def grid_sample(net: Net) -> None:
    grid = net.op("Tanh", net.free(2, 3, 3, 2))
    net.sink(net.op("GridSample", net.free(2, 5, 4, 4), grid, align_corners=1, name="tested"))


def _regions(net: Net, count: int) -> Any:
    random = net.random.uniform(0, 3, (count, 2))
    return np.concatenate([random, random + net.random.uniform(1, 4, (count, 2))], 1)


@case("roi_align", "", ".+.. +. + -> ++..")
def roi_align(net: Net) -> None:
    boxes = net.const(_regions(net, 5), np.float32)
    batch = net.const([0, 1, 0, 1, 1])
    x = net.free(2, 4, 6, 6)
    net.sink(net.op("RoiAlign", x, boxes, batch, output_height=2, output_width=2, name="tested"))


@case("max_roi_pool", "", ".+.. +. -> ++..")
def max_roi_pool(net: Net) -> None:
    boxes = np.concatenate([np.array([[0.0], [1], [0], [1], [1]]), np.floor(_regions(net, 5))], 1)
    x = net.free(2, 4, 8, 8)
    net.sink(net.op("MaxRoiPool", x, net.const(boxes, np.float32), pooled_shape=[2, 2], name="tested"))


@case("depth_to_space", "DCR", "++.. -> ++..")
def depth_to_space(net: Net) -> None:
    net.sink(net.op("DepthToSpace", net.free(2, 12, 2, 3), blocksize=2, name="tested"))


@case("depth_to_space", "CRD", "++.. -> ++..")
def depth_to_space_crd(net: Net) -> None:
    net.sink(net.op("DepthToSpace", net.free(2, 12, 2, 3), blocksize=2, mode="CRD", name="tested"))


@case("space_to_depth", "", "++.. -> ++..")
def space_to_depth(net: Net) -> None:
    net.sink(net.op("SpaceToDepth", net.free(2, 3, 4, 6), blocksize=2, name="tested"))


@case("col2im", "", "++. . . -> ++..")
def col2im(net: Net) -> None:
    image, block = net.const([4, 5]), net.const([2, 3])
    net.sink(net.op("Col2Im", net.free(2, 18, 9), image, block, name="tested"))
