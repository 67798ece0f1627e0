"""Recurrent layers: the hidden state is one Dim in every gate."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.build import Net
from tests.cases.table import STANDARD, add, case

T, B, I, H = 3, 2, 4, 5
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def _weights(net: Net, op: str, directions: int) -> list[str]:
    rows = GATES[op] * H
    return [
        net.weight(directions, rows, I, fan=I),
        net.weight(directions, rows, H, fan=H),
        net.weight(directions, 2 * rows),
    ]


def _last(op: str, title: str, free: str, direction: str = "forward", **attrs: Any) -> None:
    """All outputs used; the sequence free in its features alone."""
    directions = 2 if direction == "bidirectional" else 1
    shape = (B, T, I) if attrs.get("layout") else (T, B, I)

    def build(net: Net) -> None:
        x = net.free(*shape)
        inputs = [x, *_weights(net, op, directions)]
        options = {"hidden_size": H, "direction": direction, "outs": 3 if op == "lstm" else 2, **attrs}
        for name in net.ops(STANDARD[op], *inputs, name="tested", **options):
            net.sink(name)

    add(op, title, free, build)


for _op, _outs in (("lstm", ".1++ .++ .++"), ("gru", ".1++ .++"), ("rnn", ".1++ .++")):
    _outs = _outs.replace("1", ".")
    _last(_op, "", f".++ .++ .++ .+ -> {_outs}")
    _last(_op, "reverse", f".++ .++ .++ .+ -> {_outs}", "reverse")
    _last(_op, "bidirectional", f".++ .++ .++ .+ -> {_outs}", "bidirectional")

_last("gru", "linear before reset", ".++ .++ .++ .+ -> ..++ .++", linear_before_reset=1)
_last("lstm", "clipped, input and forget tied", ".++ .++ .++ .+ -> ..++ .++ .++", clip=0.8, input_forget=1)
_last("rnn", "relu", ".++ .++ .++ .+ -> ..++ .++", activations=["Relu"])


@case("lstm", "lengths, first states and peepholes", ".++ .++ .++ .+ + .++ .++ .+ -> ..++ .++ .++")
def lstm_full(net: Net) -> None:
    x, weights = net.free(T, B, I), _weights(net, "lstm", 1)
    states = [net.free(1, B, H), net.free(1, B, H)]
    inputs = [x, *weights, net.const([3, 2], np.int32), *states, net.weight(1, 3 * H)]
    for name in net.ops("LSTM", *inputs, outs=3, hidden_size=H, name="tested"):
        net.sink(name)


@case("lstm", "no bias, last output alone", ".++ .++ .++ -> / .++")
def lstm_last(net: Net) -> None:
    x, weights = net.free(T, B, I), _weights(net, "lstm", 1)
    net.nodes.append(_node("LSTM", [x, *weights[:2]], ["", "last"]))
    net.sink("last")


for _op, _free in (("lstm", "+..+ +.+ +.+"), ("gru", "+..+ +.+"), ("rnn", "+..+ +.+")):
    _last(_op, "batch first", f"+.+ .++ .++ .+ -> {_free}", layout=1)


@case("gru", "lengths", ".++ .++ .++ .+ + -> ..++ .++")
def gru_lengths(net: Net) -> None:
    inputs = [net.free(T, B, I), *_weights(net, "gru", 1), net.const([3, 2], np.int32)]
    for name in net.ops("GRU", *inputs, outs=2, hidden_size=H, name="tested"):
        net.sink(name)


@case("gru", "first state", ".++ .++ .++ .+ / .++ -> ..++ .++")
def gru_state(net: Net) -> None:
    inputs = [net.free(T, B, I), *_weights(net, "gru", 1), "", net.free(1, B, H)]
    for name in net.ops("GRU", *inputs, outs=2, hidden_size=H, name="tested"):
        net.sink(name)


@case("lstm", "two layers", "..+ .++ .++ .+ -> ...+ ..+ ..+")
def lstm_two(net: Net) -> None:
    """The state of one layer is the input of the next: met on three axes of two weights."""
    x = net.input(T, B, I)
    first = net.ops("LSTM", x, *_weights(net, "lstm", 1), outs=1, hidden_size=H)[0]
    inside = net.op("Squeeze", first, net.const([1]))
    weights = [net.weight(1, 4 * H, H, fan=H), net.weight(1, 4 * H, H, fan=H), net.weight(1, 8 * H)]
    for name in net.ops("LSTM", inside, *weights, outs=3, hidden_size=H, name="tested"):
        net.sink(name)


def _node(kind: str, inputs: list[str], outputs: list[str]) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, name="tested", hidden_size=H)
