"""Steps with a body: branches, loops and scans, whose layers are in the body, or outside it, or both."""

from __future__ import annotations

import numpy as np
import onnx

from tests.build import BOOL, INT64, Body
from tests.graphs.maker import Maker, Value, step


def _layer(g: Maker, body: Body, x: str, rows: int, columns: int) -> str:
    """Weights of the body's own, as initialisers or in Constant nodes, or those of the graph outside."""
    where = g.pick("inside", "outside", "constant")
    if where == "outside":
        w = g.matrix(rows, columns, fan=rows)
        g.read.add(w)
    else:
        w = body.weight(rows, columns, fan=rows)
    if where == "constant":
        tensor = body.weights.pop()
        body.nodes.append(onnx.helper.make_node("Constant", [], [w], value=tensor))
    y = body.op("MatMul", x, w)
    if g.flip():
        bias = g.vector(columns)
        g.read.add(bias)
        y = body.op("Add", y, bias)
    kind = g.pick("", "Tanh", "Sigmoid", "Elu")
    return body.op(kind, y) if kind else y


def _positive(g: Maker, x: str) -> str:
    return g.op("Greater", g.op("ReduceSum", x, keepdims=0), g.net.const(0, np.float32))


@step("rows", "tokens")
def branches(g: Maker, x: Value) -> None:
    """One of two layers, by what the data say; once in three times the one holds two more."""
    out, made = g.channels(), []
    for turn in range(2):
        body = Body(g.net)
        y = _layer(g, body, x.name, x.width, out)
        if turn and g.flip(3):
            inner = []
            for _ in range(2):
                deep = Body(g.net, 2)
                inner.append(deep.graph(_layer(g, deep, y, out, out)))
            yes = body.op("Less", body.op("ReduceSum", y, keepdims=0), body.const(0, np.float32))
            y = body.op("If", yes, then_branch=inner[0], else_branch=inner[1])
        made.append(body.graph(y))
    g.read.add(x.name)
    g.put(g.op("If", _positive(g, x.name), then_branch=made[0], else_branch=made[1]), *x.shape[:-1], out)


@step("rows", "tokens")
def repeat(g: Maker, x: Value) -> None:
    """A layer several times over; now and then what it gave each time, too."""
    body, history = Body(g.net), x.flavour == "rows" and g.flip(3)
    body.given(INT64, [])
    go = body.op("Identity", body.given(BOOL, []))
    state = body.given(shape=None if g.flip() else [None] * (len(x.shape) - 1) + [x.width])
    after = body.op("Tanh", body.op("Add", _layer(g, body, state, x.width, x.width), x.name))
    ends = [go, after] + ([body.op("Sin", after)] if history else [])
    count, yes = g.net.const(g.pick(1, 3)), g.net.const(True, np.bool_)
    made = g.ops("Loop", count, yes, x.name, outs=1 + history, body=body.graph(*ends, condition=True))
    g.put(made[0], *x.shape)
    if history:
        g.put(g.op("ReduceMax", made[1], g.net.const([0]), keepdims=0), *x.shape)


@step("tokens")
def recur(g: Maker, x: Value) -> None:
    """A recurrent layer over the sequence, forwards or backwards."""
    size, body = g.channels(), Body(g.net)
    state, now = body.given(), body.given()
    after = body.op("Tanh", body.op("Add", _layer(g, body, state, size, size), _layer(g, body, now, x.width, size)))
    first = g.op(
        "MatMul", g.op("ReduceMean", x.name, g.net.const([1]), keepdims=0), g.matrix(x.width, size, fan=x.width)
    )
    attrs = {"scan_input_axes": [1], "scan_output_axes": [1], "scan_input_directions": [g.pick(0, 1)]}
    graph = body.graph(after, body.op("Sigmoid", after), shape=[None, size])
    last, every = g.ops("Scan", first, x.name, outs=2, body=graph, num_scan_inputs=1, **attrs)
    g.put(every, *x.shape[:-1], size)
    g.put(last, x.shape[0], size)
