"""Steps on (batch, time, features)."""

from __future__ import annotations

import math

import numpy as np

from tests.graphs.maker import MOST_POSITIONS, Maker, Value, divisors, step


def linear(g: Maker, name: str, inside: int, out: int) -> str:
    """A matrix product, with or without a bias."""
    y = g.op("MatMul", name, g.matrix(inside, out, fan=inside))
    return g.op("Add", y, g.vector(out)) if g.flip() else y


@step("tokens", "rows")
def mix(g: Maker, x: Value) -> None:
    """One layer."""
    out = g.channels()
    g.put(g.activation(linear(g, x.name, x.width, out)), *x.shape[:-1], out)


@step("tokens", "rows")
def mlp(g: Maker, x: Value) -> None:
    """Two layers beside a shortcut, the inner one gated or not."""
    inside = g.channels()
    y = g.activation(linear(g, x.name, x.width, inside))
    if g.flip():
        y = g.op("Mul", y, linear(g, x.name, x.width, inside))
    g.put(g.op("Add", x.name, linear(g, y, inside, x.width)), *x.shape)


@step("tokens", "rows")
def normalise(g: Maker, x: Value) -> None:
    """Layer normalisation as one op, or root mean square spelled out."""
    if g.flip():
        g.put(g.op("LayerNormalization", x.name, g.vector(x.width), g.vector(x.width), epsilon=1e-2), *x.shape)
        return
    square = g.op("ReduceMean", g.op("Mul", x.name, x.name), g.net.const([-1]), keepdims=1)
    root = g.op("Sqrt", g.op("Add", square, g.net.const(1e-2, np.float32)))
    g.put(g.op("Mul", g.op("Div", x.name, root), g.vector(x.width)), *x.shape)


@step("tokens")
def attend(g: Maker, x: Value) -> None:
    """Attention with heads: separate or fused projections, keys for each head or for a group of them."""
    kv, group, width = g.pick(1, 2, 3), g.pick(1, 1, 2), g.pick(2, 3, 4)
    heads = kv * group
    if group == 1 and g.flip():
        q, k, v = _fused(g, x, heads, width)
    else:
        q, k, v = (_heads(g, linear(g, x.name, x.width, n * width), x, n, width) for n in (heads, kv, kv))
        k, v = (_repeat(g, name, x, kv, group, width) for name in (k, v))
    if x.shape[1] is not None and width % 2 == 0 and g.flip():
        q, k = (_rotate(g, name, x.size(1), width) for name in (q, k))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    seen = g.op("Softmax", g.op("Mul", scores, g.net.const(1 / math.sqrt(width), np.float32)), axis=-1)
    mixed = g.op("Transpose", g.op("MatMul", seen, v), perm=[0, 2, 1, 3])
    flat = g.reshape(mixed, (*x.shape[:2], heads, width), [*x.shape[:2], heads * width])
    y = linear(g, flat, heads * width, x.width)
    g.put(g.op("Add", y, x.name) if g.flip() else y, *x.shape)


def _rotate(g: Maker, name: str, time: int, width: int) -> str:
    """Rotary position: the halves of a head are swapped, one of them negated, and mixed by place."""
    axis, half = g.net.const([-1]), g.net.const([width // 2])
    left = g.op("Slice", name, g.net.const([0]), half, axis)
    right = g.op("Slice", name, half, g.net.const([2**62]), axis)
    turned = g.op("Concat", g.op("Neg", right), left, axis=-1)
    return g.op(
        "Add", g.op("Mul", name, g.net.weight(time, width)), g.op("Mul", turned, g.net.weight(1, 1, time, width))
    )


def _heads(g: Maker, name: str, x: Value, heads: int, width: int) -> str:
    """(batch, heads, time, width)"""
    y = g.reshape(name, (*x.shape[:2], heads * width), [*x.shape[:2], heads, width])
    return g.op("Transpose", y, perm=[0, 2, 1, 3])


def _repeat(g: Maker, name: str, x: Value, kv: int, group: int, width: int) -> str:
    """Each head of keys as often as there are queries in its group."""
    if group == 1:
        return name
    shape = (x.shape[0], kv, x.shape[1], width)
    wide = g.op("Unsqueeze", name, g.net.const([2]))
    wide = g.op("Expand", wide, g.net.const([1, 1, group, 1, 1]))
    return g.reshape(wide, (shape[0], kv, group, *shape[2:]), [shape[0], kv * group, *shape[2:]])


def _fused(g: Maker, x: Value, heads: int, width: int) -> list[str]:
    """One projection for all three: split first, or told apart by an index after the heads are."""
    y = linear(g, x.name, x.width, 3 * heads * width)
    if g.flip():
        parts = g.ops("Split", y, outs=3, axis=-1, num_outputs=3)
        return [_heads(g, part, x, heads, width) for part in parts]
    whole = g.reshape(y, (*x.shape[:2], 3 * heads * width), [*x.shape[:2], 3, heads, width])
    turned = g.op("Transpose", whole, perm=[2, 0, 3, 1, 4])
    return [g.op("Gather", turned, g.net.const(i), axis=0) for i in range(3)]


@step("tokens", "rows")
def share(g: Maker, x: Value) -> None:
    """Features that sum to one, as weights of a choice."""
    g.put(g.op(g.pick("Softmax", "LogSoftmax"), x.name, axis=-1), *x.shape)


@step("tokens", "rows")
def scale(g: Maker, x: Value) -> None:
    """Divided by the root of their number, which the model works out when it runs."""
    size = g.op("Gather", g.op("Shape", x.name), g.net.const(-1))
    g.put(g.op("Div", x.name, g.op("Sqrt", g.op("Cast", size, to=1))), *x.shape)


@step("tokens", "rows")
def leak(g: Maker, x: Value) -> None:
    """What is below zero is damped, each feature by a factor of its own."""
    below = g.op("Less", x.name, g.net.const(0, np.float32))
    g.put(g.op("Where", below, g.op("Mul", x.name, g.vector(x.width)), x.name), *x.shape)


@step("tokens", "rows")
def repeat(g: Maker, x: Value) -> None:
    """All features twice."""
    times = [*([1] * (len(x.shape) - 1)), 2]
    if 2 * x.width <= MOST_POSITIONS:
        g.put(g.op("Tile", x.name, g.net.const(times)), *x.shape[:-1], 2 * x.width)


@step("tokens", "rows")
def order(g: Maker, x: Value) -> None:
    """Sums of all features before, inside a layer: their order counts, so that they stay."""
    inside = g.channels()
    y = g.op("CumSum", linear(g, x.name, x.width, inside), g.net.const(-1))
    g.put(g.op("Add", x.name, linear(g, y, inside, x.width)), *x.shape)


@step("tokens")
def recur(g: Maker, x: Value) -> None:
    """An LSTM or GRU over time, its first state left out."""
    kind, gates = g.pick(("LSTM", 4), ("GRU", 3))
    state = g.pick(2, 3, 4)
    turned = g.op("Transpose", x.name, perm=[1, 0, 2])
    weights = [
        g.net.weight(1, gates * state, x.width, fan=x.width),
        g.net.weight(1, gates * state, state, fan=state),
        g.net.weight(1, 2 * gates * state),
    ]
    y = g.op(kind, turned, *weights, hidden_size=state)
    y = g.op("Squeeze", y, g.net.const([1]))
    g.put(g.op("Transpose", y, perm=[1, 0, 2]), *x.shape[:2], state)


@step("tokens")
def place(g: Maker, x: Value) -> None:
    """A learned vector for each place, where the number of places is known."""
    if x.shape[1] is not None:
        g.put(g.op("Add", x.name, g.net.weight(1, x.size(1), x.width)), *x.shape)


@step("tokens")
def turn(g: Maker, x: Value) -> None:
    """A convolution along time: features become channels and back."""
    out = g.channels()
    y = g.op("Transpose", x.name, perm=[0, 2, 1])
    groups = g.pick(1, *divisors(math.gcd(out, x.width)))
    w = g.matrix(out, x.width // groups, 3, fan=3 * x.width // groups)
    y = g.op("Conv", y, w, g.vector(out), group=groups, pads=[1, 1])
    g.put(g.op("Transpose", g.activation(y), perm=[0, 2, 1]), *x.shape[:2], out)


@step("tokens")
def fold(g: Maker, x: Value) -> None:
    """All tokens of all batches as rows, through a layer, and back."""
    out = g.channels()
    flat = g.op("Reshape", x.name, g.net.const([-1, x.width]))
    y = g.op("Gemm", flat, g.matrix(x.width, out, fan=x.width), g.vector(out))
    sizes = g.op("Slice", g.op("Shape", x.name), g.net.const([0]), g.net.const([2]))
    y = g.op("Reshape", g.activation(y), g.op("Concat", sizes, g.net.const([out]), axis=0))
    g.put(y, *x.shape[:2], out)


@step("tokens")
def to_rows(g: Maker, x: Value) -> None:
    """One token, or the mean of all."""
    if g.flip():
        g.put(g.op("Gather", x.name, g.net.const(g.pick(0, -1)), axis=1), x.shape[0], x.width)
    else:
        g.put(g.op("ReduceMean", x.name, g.net.const([1]), keepdims=0), x.shape[0], x.width)
