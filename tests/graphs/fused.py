"""Steps on (batch, time, features) in the fused ops of ONNX Runtime, the shapes of whose results onnx does not know."""

from __future__ import annotations

import numpy as np

from tests.graphs.maker import Maker, Value, step
from tests.graphs.tokens import linear

DOMAIN = "com.microsoft"


@step("tokens", "rows")
def bend(g: Maker, x: Value) -> None:
    """A layer with its bias in the activation."""
    kind, out = g.pick("Gelu", "QuickGelu", "FastGelu", "BiasGelu"), g.channels()
    biased = kind == "BiasGelu" or (kind == "FastGelu" and g.flip())
    y = g.op("MatMul", x.name, g.matrix(x.width, out, fan=x.width))
    g.put(g.op(kind, y, *([g.vector(out)] if biased else []), domain=DOMAIN), *x.shape[:-1], out)


@step("tokens", "rows")
def multiply(g: Maker, x: Value) -> None:
    """A layer whose matrix is turned around, and which is scaled."""
    out = g.channels()
    w = g.matrix(out, x.width, fan=x.width)
    g.put(g.op("FusedMatMul", x.name, w, transB=1, alpha=g.pick(0.5, 2.0), domain=DOMAIN), *x.shape[:-1], out)


@step("tokens")
def skip(g: Maker, x: Value) -> None:
    """A sum of two values and its norm, both of which may be used."""
    other = g.other(x) or x
    kind, vectors = g.pick(("SkipLayerNormalization", 2), ("SkipSimplifiedLayerNormalization", 1))
    inputs = [x.name, other.name, *(g.vector(x.width) for _ in range(vectors + g.flip()))]
    y, mean, spread, total = g.ops(kind, *inputs, outs=4, epsilon=1e-2, domain=DOMAIN)
    outputs = g.net.nodes[-1].output
    outputs[:] = ["" if name in (mean, spread) else name for name in outputs]
    g.put(y, *x.shape)
    if g.flip():
        g.put(total, *x.shape)


@step("tokens")
def look(g: Maker, x: Value) -> None:
    """Attention as one op: projections inside or before it, or keys for groups of heads, whose size is 8."""
    kind = g.pick("Attention", "MultiHeadAttention", "GroupQueryAttention")
    heads, groups = g.pick((2, 1), (2, 2), (4, 2), (3, 3))
    width = 8 if kind == "GroupQueryAttention" else g.pick(2, 3, 4)
    groups = groups if kind == "GroupQueryAttention" else heads
    inside = heads * width
    if kind == "Attention":
        inputs = [x.name, g.matrix(x.width, 3 * inside, fan=x.width), g.vector(3 * inside)]
    else:
        inputs = [linear(g, x.name, x.width, n * width) for n in (heads, groups, groups)]
    attrs = {"num_heads": heads}
    if kind == "GroupQueryAttention":
        inputs += ["", "", *_lengths(g, x)]
        attrs["kv_num_heads"] = groups
    elif kind == "MultiHeadAttention" and g.flip():
        inputs.append(g.vector(3 * inside))
    elif g.flip():
        attrs["unidirectional"] = 1
    y = linear(g, g.op(kind, *inputs, domain=DOMAIN, **attrs), inside, x.width)
    g.put(g.op("Add", y, x.name) if g.flip() else y, *x.shape)


def _lengths(g: Maker, x: Value) -> list[str]:
    """The last place of each row, and how many places there are."""
    size = g.op("Shape", x.name)
    batch, time = (g.op("Slice", size, g.net.const([i]), g.net.const([i + 1])) for i in (0, 1))
    last = g.op("Expand", g.op("Sub", time, g.net.const([1])), batch)
    total = g.op("Squeeze", time, g.net.const(np.array([0])))
    return [g.op("Cast", name, to=6) for name in (last, total)]
