"""Steps on (batch, features)."""

from __future__ import annotations

from tests.graphs.maker import MOST_POSITIONS, Maker, Value, divisors, step


@step("rows")
def gemm(g: Maker, x: Value) -> None:
    """A layer with its weights the one way or the other."""
    out, turned = g.channels(), g.pick(0, 1)
    w = g.matrix(out, x.width, fan=x.width) if turned else g.matrix(x.width, out, fan=x.width)
    inputs = [x.name, w] + ([g.vector(out)] if g.flip() else [])
    g.put(g.activation(g.op("Gemm", *inputs, transB=turned)), x.shape[0], out)


@step("rows")
def experts(g: Maker, x: Value) -> None:
    """A stack of layers, each with its own weights, mixed by a softmax: (batch, expert, features)."""
    count, inside = g.pick(2, 3), g.pick(2, 3, 4)
    gates = g.op("Softmax", g.op("MatMul", x.name, g.matrix(x.width, count, fan=x.width)), axis=-1)
    y = g.op("Einsum", x.name, g.net.weight(count, x.width, inside, fan=x.width), equation="bi,eio->beo")
    y = g.op("Einsum", g.activation(y), gates, equation="beo,be->bo")
    g.put(y, x.shape[0], inside)


@step("rows")
def heads(g: Maker, x: Value) -> None:
    """Features as (heads, width), each head mixed by its own matrix, and flat again."""
    count = g.pick(*divisors(x.width))
    width, out = x.width // count, g.pick(1, 2, 3)
    y = g.reshape(x.name, x.shape, [x.shape[0], count, width])
    y = g.op("Einsum", y, g.net.weight(count, width, out, fan=width), equation="bhi,hio->bho")
    g.put(g.reshape(y, (x.shape[0], count, out), [x.shape[0], count * out]), x.shape[0], count * out)


@step("rows")
def swap(g: Maker, x: Value) -> None:
    """Features as a table, its axes swapped."""
    count = g.pick(*divisors(x.width))
    y = g.reshape(x.name, x.shape, [x.shape[0], count, x.width // count])
    y = g.op("Transpose", y, perm=[0, 2, 1])
    g.put(g.reshape(y, (x.shape[0], x.width // count, count), x.shape), *x.shape)


@step("rows")
def outer(g: Maker, x: Value) -> None:
    """Products of each feature with each of a second layer's."""
    size = g.pick(2, 3)
    if size * x.width > MOST_POSITIONS:
        return
    y = g.op("MatMul", x.name, g.matrix(x.width, size, fan=x.width))
    left = g.op("Unsqueeze", x.name, g.net.const([2]))
    right = g.op("Unsqueeze", y, g.net.const([1]))
    made = g.reshape(g.op("Mul", left, right), (x.shape[0], x.width, size), [x.shape[0], x.width * size])
    g.put(made, x.shape[0], x.width * size)


@step("rows")
def normed(g: Maker, x: Value) -> None:
    """Divided by its length, which a sum of squares gives."""
    length = g.op("ReduceL2", x.name, g.net.const([1]), keepdims=1)
    g.put(g.op("Div", x.name, g.op("Add", length, g.net.const(0.3, "float32"))), *x.shape)


@step("rows")
def to_tokens(g: Maker, x: Value) -> None:
    """Features as a short sequence."""
    time = g.pick(*divisors(x.width))
    g.put(g.reshape(x.name, x.shape, [x.shape[0], time, x.width // time]), x.shape[0], time, x.width // time)
