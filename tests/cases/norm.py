"""Normalisation and softmax: axes that a mean or a sum runs over may be cut, but not exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.build import Net
from tests.cases.table import STANDARD, add, case


def _batch_norm(title: str, opset: int, **attrs: Any) -> None:
    def build(net: Net) -> None:
        inputs = net.weight(5), net.weight(5), net.weight(5), net.weight(5, positive=True)
        net.sink(net.op("BatchNormalization", net.free(2, 5, 3, 3), *inputs, name="tested", **attrs))

    add("batch_norm", title, "++.. + + + + -> ++..", build, opset=opset)


_batch_norm("", 15, epsilon=1e-3)
_batch_norm("opset 9", 9)


@case("batch_norm", "in training mode", ".... . . . . -> .... . .", opset=15)
def batch_norm_training(net: Net) -> None:
    inputs = net.weight(5), net.weight(5), net.weight(5), net.weight(5, positive=True)
    attrs: dict[str, Any] = {"training_mode": 1, "outs": 3, "name": "tested"}
    net.sink(net.ops("BatchNormalization", net.free(2, 5, 3, 3), *inputs, **attrs)[0], hidden=5)


@case("batch_norm", "in training mode, before opset 14", ".... . . . . -> .... / / / /", opset=9)
def batch_norm_training_old(net: Net) -> None:
    """That it trains shows in its further outputs alone."""
    inputs = net.weight(5), net.weight(5), net.weight(5), net.weight(5, positive=True)
    outputs = net.ops("BatchNormalization", net.free(2, 5, 3, 3), *inputs, outs=5, name="tested")
    net.sink(outputs[0], hidden=5)


def _layer_norm(title: str, free: str, axis: int, shape: tuple[int, ...], outs: int = 1) -> None:
    def build(net: Net) -> None:
        size = net.weight(*shape), net.weight(*shape)
        for name in net.ops("LayerNormalization", net.free(3, 4, 5), *size, outs=outs, axis=axis, name="tested"):
            net.sink(name)

    add("layer_norm", title, free, build)


_layer_norm("last axis", "++~ ~ ~ -> ++~", -1, (5,))
_layer_norm("two axes", "+~~ ~~ ~~ -> +~~", 1, (4, 5))
_layer_norm("with mean and deviation", "++~ ~ ~ -> ++~ ++. ++.", -1, (5,), outs=3)


@case("layer_norm", "no bias", "++~ ~ -> ++~")
def layer_norm_no_bias(net: Net) -> None:
    net.sink(net.op("LayerNormalization", net.free(3, 4, 5), net.weight(5), name="tested"))


@case("layer_norm", "two axes, scale along the last", "+~~ ~ ~. -> +~~")
def layer_norm_broadcast(net: Net) -> None:
    inputs = net.free(3, 4, 5), net.weight(5), net.weight(4, 1)
    net.sink(net.op("LayerNormalization", *inputs, axis=1, name="tested"))


@case("rms_norm", "", "++~ ~ -> ++~", opset=23)
def rms_norm(net: Net) -> None:
    net.sink(net.op("RMSNormalization", net.free(3, 4, 5), net.weight(5), name="tested"))


@case("rms_norm", "two axes", "+~~ ~~ -> +~~", opset=23)
def rms_norm_two(net: Net) -> None:
    net.sink(net.op("RMSNormalization", net.free(3, 4, 5), net.weight(4, 5), axis=1, name="tested"))


@case("instance_norm", "", "++~~ + + -> ++~~")
def instance_norm(net: Net) -> None:
    net.sink(net.op("InstanceNormalization", net.free(2, 5, 3, 3), net.weight(5), net.weight(5), name="tested"))


def _group_norm(title: str, free: str, opset: int, groups: int, scales: int) -> None:
    def build(net: Net) -> None:
        inputs = net.free(2, 12, 2, 3), net.weight(scales), net.weight(scales)
        net.sink(net.op("GroupNormalization", *inputs, num_groups=groups, name="tested"), shape=(2, 12, 2, 3))

    add("group_norm", title, free, build, opset=opset)


_group_norm("scale a channel", "++~~ + + -> ++~~", 21, 3, 12)
_group_norm("a group a channel", "++~~ + + -> ++~~", 21, 12, 12)
_group_norm("one group", "+~~~ ~ ~ -> +~~~", 21, 1, 12)


def _mvn(title: str, free: str, **attrs: Any) -> None:
    def build(net: Net) -> None:
        x = net.free(2, 5, 3, 3)
        net.sink(net.op("MeanVarianceNormalization", x, name="tested", **attrs), shape=(2, 5, 3, 3))

    add("mean_variance_normalization", title, free, build)


_mvn("", "~+~~ -> ~+~~")
_mvn("axes", "++~~ -> ++~~", axes=[-2, -1])


@case("lrn", "", "+... -> +...")
def lrn(net: Net) -> None:
    net.sink(net.op("LRN", net.free(2, 6, 3, 3), size=3, alpha=0.5, name="tested"))


def _softmax(op: str, opset: int, axis: int | None, free: str) -> None:
    attrs = {} if axis is None else {"axis": axis}

    def build(net: Net) -> None:
        scaled = net.op("Mul", net.free(3, 4, 5), net.const(2, np.float32))
        net.sink(net.op(STANDARD[op], scaled, name="tested", **attrs))

    add(op, f"opset {opset} axis {axis}", f"{free} -> {free}", build, opset=opset)


for _op in ("softmax", "log_softmax", "hardmax"):
    _softmax(_op, 13, None, "++~")
    _softmax(_op, 13, 1, "+~+")
    _softmax(_op, 11, None, "+~~")
    _softmax(_op, 11, -1, "++~")
    _softmax(_op, 11, 0, "~~~")
_softmax("lp_normalization", 21, None, "++~")
_softmax("lp_normalization", 21, 1, "+~+")
_softmax("lp_normalization", 11, 0, "~++")
