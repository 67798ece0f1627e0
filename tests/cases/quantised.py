"""Integers with a scale: scales and zero points are weights on the same Dim as what they scale."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.build import FLOAT, Net
from tests.cases.table import add, case


def _bytes(net: Net, *shape: int, dtype: Any = np.int8) -> str:
    low, high = (-127, 128) if dtype == np.int8 else (0, 255)
    return net.const(net.random.integers(low, high, shape), dtype)


def _scale(net: Net, *shape: int) -> str:
    return net.const(net.random.uniform(0.01, 0.03, shape), np.float32)


@case("dequantize_linear", "a scale a column", "++ + + -> ++")
def dequantize(net: Net) -> None:
    w = net.op("DequantizeLinear", _bytes(net, 6, 5), _scale(net, 5), _bytes(net, 5), axis=1, name="tested")
    net.sink(net.op("MatMul", net.free(3, 6), w))


@case("dequantize_linear", "one scale", "++ 1 -> ++")
def dequantize_one(net: Net) -> None:
    w = net.op("DequantizeLinear", _bytes(net, 6, 5), _scale(net), name="tested")
    net.sink(net.op("MatMul", net.free(3, 6), w))


@case("dequantize_linear", "negative axis, shared scale", "++ + -> ++")
def dequantize_rows(net: Net) -> None:
    w = net.op("DequantizeLinear", _bytes(net, 6, 5), _scale(net, 6), axis=-2, name="tested")
    net.sink(net.op("MatMul", net.free(3, 6), w))


@case("dequantize_linear", "blocks", ".+ .+ .+ -> .+")
def dequantize_blocks(net: Net) -> None:
    inputs = _bytes(net, 6, 5), _scale(net, 2, 5), _bytes(net, 2, 5)
    w = net.op("DequantizeLinear", *inputs, axis=0, block_size=3, name="tested")
    net.sink(net.op("MatMul", net.free(3, 6), w))


def _quantize(title: str, free: str, *scales: int, **attrs: Any) -> None:
    def build(net: Net) -> None:
        scale, zero = _scale(net, *scales), _bytes(net, *scales, dtype=np.uint8)
        q = net.op("QuantizeLinear", net.free(3, 4, 5), scale, zero, name="tested", **attrs)
        net.sink(net.op("DequantizeLinear", q, scale, zero, **attrs))

    add("quantize_linear", title, free, build)


_quantize("one scale", "+++ 1 1 -> +++")
_quantize("a scale a channel", "+++ + + -> +++", 4, axis=1)
_quantize("default axis", "+++ + + -> +++", 4)


@case("dynamic_quantize_linear", "", "~~~ -> ~~~ 1 1")
def dynamic_quantize(net: Net) -> None:
    """Its scale is taken over all positions, so that a cut changes it."""
    parts = net.ops("DynamicQuantizeLinear", net.free(3, 4, 5), outs=3, name="tested")
    net.sink(net.op("DequantizeLinear", *parts))


def _conv_integer(title: str, free: str, group: int, zeros: int | None) -> None:
    def build(net: Net) -> None:
        zero = net.const(100, np.uint8)
        q = net.op("QuantizeLinear", net.free(2, 4, 4, 4), net.const(0.02, np.float32), zero)
        w = _bytes(net, 6, 4 // group, 2, 2, dtype=np.uint8)
        points = [] if zeros is None else [_bytes(net, *([zeros] if zeros else []), dtype=np.uint8)]
        made = net.op("ConvInteger", q, w, zero, *points, group=group, name="tested")
        net.sink(net.op("Mul", net.op("Cast", made, to=FLOAT), net.const(1e-4, np.float32)))

    add("conv_integer", title, free, build)


_conv_integer("", "++.. ++.. 1 -> ++..", 1, None)
_conv_integer("zero point", "++.. ++.. 1 1 -> ++..", 1, 0)
_conv_integer("grouped", "++.. ++.. 1 1 -> ++..", 2, 0)
