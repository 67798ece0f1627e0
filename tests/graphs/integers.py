"""Steps whose layers compute with integers, or have their weights in integers."""

from __future__ import annotations

import numpy as np

from tests.build import FLOAT
from tests.graphs.maker import Maker, Value, step


def _ends(g: Maker, *shape: int, dtype: type = np.uint8) -> list[str]:
    """Scales and zero points."""
    low = 100 if dtype is np.uint8 else -5
    scale = g.net.const(g.net.random.uniform(0.02, 0.04, shape), np.float32)
    return [scale, g.net.const(g.net.random.integers(low, low + 10, shape), dtype)]


def _integers(g: Maker, *shape: int) -> str:
    return g.net.const(g.net.random.integers(-60, 60, shape), np.int8)


@step("tokens", "rows")
def round_(g: Maker, x: Value) -> None:
    """To integers and back: one scale, or one a channel."""
    axis = len(x.shape) - 1
    ends = _ends(g, *([x.width] if g.flip() else []))
    rounded = g.op("QuantizeLinear", x.name, *ends, axis=axis)
    g.put(g.op("DequantizeLinear", rounded, *ends, axis=axis), *x.shape)


@step("image")
def convolve_integers(g: Maker, x: Value) -> None:
    """Weights behind DequantizeLinear, or a convolution of integers."""
    out, each = g.channels(), g.flip()
    ends, w = _ends(g, *([out] if each else []), dtype=np.int8), _integers(g, out, x.width, 1, 1)
    given = _ends(g)
    if g.flip():
        y = g.op("Conv", x.name, g.op("DequantizeLinear", w, *ends, axis=0), g.vector(out))
    else:
        ends[1] = g.net.const(np.zeros([out] if each else []), np.int8)
        rounded, made = g.op("QuantizeLinear", x.name, *given), _ends(g)
        y = g.op("DequantizeLinear", g.op("QLinearConv", rounded, *given, w, *ends, *made), *made)
    g.put(y, x.shape[0], out, *x.shape[2:])


@step("tokens", "rows")
def multiply_integers(g: Maker, x: Value) -> None:
    """Integers made when the model runs, or of a scale of their own."""
    out = g.channels()
    ends, w = _ends(g, *([out] if g.flip() else []), dtype=np.int8), _integers(g, x.width, out)
    if g.flip():
        rounded, scale, zero = g.ops("DynamicQuantizeLinear", x.name, outs=3)
        y = g.op("Cast", g.op("MatMulInteger", rounded, w, zero, ends[1]), to=FLOAT)
        y = g.op("Mul", y, g.op("Mul", scale, ends[0]))
    else:
        given, made = _ends(g), _ends(g)
        rounded = g.op("QuantizeLinear", x.name, *given)
        y = g.op("DequantizeLinear", g.op("QLinearMatMul", rounded, *given, w, *ends, *made), *made)
    g.put(y, *x.shape[:-1], out)
