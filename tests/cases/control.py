"""If, Loop and Scan: what their bodies hold is cut with the rest."""

from __future__ import annotations

import numpy as np

from tests.build import BOOL, INT64, Body, Net
from tests.cases.table import case

B, C, H = 2, 4, 5


def _positive(net: Net, x: str) -> str:
    """A condition that hangs on the data."""
    return net.op("Greater", net.op("ReduceSum", x, keepdims=0), net.const(0, np.float32))


def _times(net: Net, count: int) -> tuple[str, str]:
    """The first two inputs of a Loop."""
    return net.const(count), net.const(True, np.bool_)


def _layer(body: Net, x: str, rows: int, columns: int, activation: str) -> str:
    y = body.op("MatMul", x, body.weight(rows, columns, fan=rows))
    return body.op(activation, body.op("Add", y, body.weight(columns)))


@case("if", "layers in both branches", "1 .+ .+ -> .+")
def if_layers(net: Net) -> None:
    x = net.op("MatMul", net.input(B, 6), net.weight(6, C, fan=6))
    branches = []
    for activation in ("Tanh", "Elu"):
        body = Body(net)
        branches.append(body.graph(_layer(body, x, C, H, activation)))
    net.sink(net.op("If", _positive(net, x), then_branch=branches[0], else_branch=branches[1], name="tested"))


@case("if", "what is read from outside", "1 ++ ++ -> ++")
def if_outside(net: Net) -> None:
    x, branches = net.free(B + 1, C), []
    for activation in ("Tanh", "Sigmoid"):
        body = Body(net)
        branches.append(body.graph(body.op(activation, x)))
    net.sink(net.op("If", _positive(net, x), then_branch=branches[0], else_branch=branches[1], name="tested"))


@case("if", "one in the other, two outputs", "1 ++ ++ ++ ++ -> ++ ++")
def if_nested(net: Net) -> None:
    x, outer, inner = net.free(B + 1, C), [], []
    for activation in ("Tanh", "Sigmoid"):
        deep = Body(net, 2)
        inner.append(deep.graph(_layer(deep, x, C, H, activation)))
    for turned in (False, True):
        body = Body(net)
        y = body.op("If", _positive(body, x), then_branch=inner[turned], else_branch=inner[not turned])
        ends = body.op("Softplus", y), body.op("MatMul", x, body.weight(C, C, fan=C))
        outer.append(body.graph(*ends))
    yes = _positive(net, net.op("Neg", x))
    for name in net.ops("If", yes, outs=2, then_branch=outer[0], else_branch=outer[1], name="tested"):
        net.sink(name)


@case("if", "a branch that is never taken", "1 ++ + -> ++")
def if_never(net: Net) -> None:
    """As an exporter writes it that cannot tell the rank."""
    x, body, other = net.free(B + 1, C), Body(net), Body(net)
    branches = body.graph(body.op("Tanh", x)), other.graph(other.op("ReduceSum", x, other.const([0]), keepdims=0))
    rank = net.op("Size", net.op("Shape", x))
    yes = net.op("Not", net.op("Equal", rank, net.const(1)))
    y = net.op("If", yes, then_branch=branches[0], else_branch=branches[1], name="tested")
    net.sink(y, shape=(B + 1, C))


@case("loop", "a state and its history", "1 .+ .+ .+ -> .+ ..+")
def loop_state(net: Net) -> None:
    x, body = net.op("MatMul", net.input(B, 6), net.weight(6, C, fan=6)), Body(net)
    body.given(INT64, [])
    go = body.op("Identity", body.given(BOOL, []))
    state = body.given()
    y = body.op("Tanh", body.op("Add", body.op("MatMul", state, body.weight(C, C, fan=C)), x))
    step = body.op("Sigmoid", body.op("Mul", y, state))
    made = net.ops("Loop", *_times(net, 3), x, outs=2, body=body.graph(go, y, step, condition=True), name="tested")
    for name, shape in zip(made, ((B, C), (3, B, C)), strict=True):
        net.sink(name, shape=shape)


@case("loop", "a recurrent layer from a constant", "1 .+ .+ -> .+")
def loop_layer(net: Net) -> None:
    x, body = net.op("MatMul", net.input(B, 6), net.weight(6, C, fan=6)), Body(net)
    body.given(INT64, [])
    go, state = body.op("Identity", body.given(BOOL, [])), body.given()
    gates = body.op("Add", body.op("MatMul", state, body.weight(H, H, fan=H)), _layer(body, x, C, H, "Sin"))
    first = net.op("Expand", net.weight(1, H), net.const([B, H]))
    graph = body.graph(go, body.op("Tanh", gates), condition=True)
    net.sink(net.op("Loop", *_times(net, 3), first, body=graph, name="tested"), shape=(B, H))


@case("loop", "two states that change places, until the data say so", "1 .+ .+ .+ .+ -> .+ .+")
def loop_swap(net: Net) -> None:
    x, body = net.op("MatMul", net.input(B, 6), net.weight(6, C, fan=6)), Body(net)
    body.given(INT64, [])
    body.given(BOOL, [])
    a, b = body.given(), body.given()
    after = body.op("Tanh", body.op("MatMul", b, body.weight(C, C, fan=C)))
    size = body.op("ReduceSum", body.op("Abs", after), keepdims=0)
    go = body.op("Greater", size, body.const(0.5, np.float32))
    ends = after, body.op("Sin", a)
    first = net.op("Cos", x)
    made = net.ops("Loop", *_times(net, 4), x, first, outs=2, body=body.graph(go, *ends, condition=True), name="tested")
    for name in made:
        net.sink(name, shape=(B, C))


@case("loop", "a list that grows", "1 .~ .. .~ .. -> .~ ..")
def loop_grows(net: Net) -> None:
    """One state is longer after each iteration."""
    x, body = net.op("MatMul", net.input(B, 6), net.weight(6, C, fan=6)), Body(net)
    body.given(INT64, [])
    go = body.op("Identity", body.given(BOOL, []))
    state, past = body.given(), body.given()
    y = body.op("Tanh", body.op("MatMul", state, body.weight(C, C, fan=C)))
    whole = body.op("Concat", past, body.op("ReduceMax", y, body.const([1]), keepdims=1), axis=1)
    first = net.op("ReduceMin", x, net.const([1]), keepdims=1)
    made = net.ops(
        "Loop", *_times(net, 3), x, first, outs=2, body=body.graph(go, y, whole, condition=True), name="tested"
    )
    for name, shape in zip(made, ((B, C), (B, 4)), strict=True):
        net.sink(name, shape=shape)


@case("scan", "a recurrent layer", "/ .+ .+ .+ -> .+ ..+")
def scan_layer(net: Net) -> None:
    x, body = net.op("MatMul", net.input(3, B, 6), net.weight(6, C, fan=6)), Body(net)
    state, now = body.given(), body.given()
    gates = body.op("Add", body.op("MatMul", state, body.weight(H, H, fan=H)), _layer(body, now, C, H, "Identity"))
    after = body.op("Tanh", gates)
    graph = body.graph(after, body.op("Sigmoid", after))
    first = net.op("Expand", net.weight(1, H), net.const([B, H]))
    made = net.ops("Scan", first, x, outs=2, body=graph, num_scan_inputs=1, name="tested")
    for name, shape in zip(made, ((B, H), (3, B, H)), strict=True):
        net.sink(name, shape=shape)


@case("scan", "along other axes", "/ .+ .+ .+ -> .+ .+.")
def scan_axes(net: Net) -> None:
    x, body = net.op("MatMul", net.input(B, 3, 6), net.weight(6, C, fan=6)), Body(net)
    state, now = body.given(), body.given()
    after = body.op("Tanh", body.op("Add", body.op("MatMul", state, body.weight(C, C, fan=C)), now))
    graph = body.graph(after, body.op("Sigmoid", after))
    first = net.op("ReduceSum", x, net.const([1]), keepdims=0)
    options = {"scan_input_axes": [1], "scan_output_axes": [-1], "scan_input_directions": [1]}
    made = net.ops("Scan", first, x, outs=2, body=graph, num_scan_inputs=1, name="tested", **options)
    for name, shape in zip(made, ((B, C), (B, C, 3)), strict=True):
        net.sink(name, shape=shape)
