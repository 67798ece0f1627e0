"""Ops that treat every element alike, alone and broadcast."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.build import OPSET, Net
from tests.cases.table import STANDARD, add, case

REAL = (
    "abs asinh atan celu ceil cos cosh elu erf exp floor gelu hard_sigmoid hard_swish identity leaky_relu mish neg "
    "relu round selu shrink sigmoid sign sin sinh softplus softsign swish tan tanh thresholded_relu"
).split()
SHAPE = (3, 4, 5)


def real(net: Net, *shape: int) -> str:
    """Numbers of either sign."""
    return net.free(*(shape or SHAPE))


def positive(net: Net, *shape: int) -> str:
    """Numbers above zero."""
    return net.free(*(shape or SHAPE), positive=True)


def unit(net: Net, *shape: int) -> str:
    """Numbers between -1 and 1."""
    return net.op("Tanh", real(net, *shape))


def above_one(net: Net, *shape: int) -> str:
    """Numbers above 1."""
    return net.op("Add", positive(net, *shape), net.const(1, np.float32))


def whole(net: Net, *shape: int, to: int = TensorProto.INT32) -> str:
    """Small whole numbers, from 0 on."""
    scaled = net.op("Mul", positive(net, *shape), net.const(4, np.float32))
    return net.op("Cast", scaled, to=to)


def truth(net: Net, *shape: int) -> str:
    """True and false."""
    scaled = net.op("Mul", real(net, *shape), net.const(7, np.float32))
    return net.op("Greater", net.op("Sin", scaled), net.const(0, np.float32))


def infinite(net: Net, *shape: int) -> str:
    """Some numbers infinite."""
    return net.op("Reciprocal", net.op("Relu", real(net, *shape)))


def undefined(net: Net, *shape: int) -> str:
    """Some numbers not a number."""
    return net.op("Log", real(net, *shape))


DOMAINS = {
    "acos": unit, "acosh": above_one, "asin": unit, "atanh": unit, "log": positive, "reciprocal": above_one,
    "sqrt": positive, "bitwise_not": whole, "not": truth, "is_inf": infinite, "is_nan": undefined,
}  # fmt: skip
SINCE = {"swish": 24, "swiglu": 28}


def _unary(op: str) -> None:
    make = DOMAINS.get(op, real)
    opset = SINCE.get(op, OPSET)
    add(op, "", "+++ -> +++", lambda net: net.sink(net.op(STANDARD[op], make(net), name="tested")), opset=opset)


for _op in [*REAL, *DOMAINS]:
    _unary(_op)


@case("cast", "to integers", "+++ -> +++")
def cast(net: Net) -> None:
    scaled = net.op("Mul", net.free(*SHAPE), net.const(9, np.float32))
    net.sink(net.op("Cast", scaled, to=TensorProto.INT32, name="tested"))


@case("cast_like", "", "+++ 1 -> +++")
def cast_like(net: Net) -> None:
    scaled = net.op("Mul", net.free(*SHAPE), net.const(9, np.float32))
    net.sink(net.op("CastLike", scaled, net.const(0), name="tested"))


@case("cast_like", "a vector", "+++ . -> +++")
def cast_like_vector(net: Net) -> None:
    net.sink(net.op("CastLike", net.free(*SHAPE), net.const([1, 2, 3, 4, 5], np.float32), name="tested"))


BINARY: dict[str, tuple[Any, dict[str, Any]]] = {
    "add": (real, {}), "sub": (real, {}), "mul": (real, {}), "div": (above_one, {}), "pow": (positive, {}),
    "mod": (positive, {"fmod": 1}), "equal": (whole, {}), "greater": (real, {}), "greater_or_equal": (real, {}),
    "less": (real, {}), "less_or_equal": (real, {}), "and": (truth, {}), "or": (truth, {}), "xor": (truth, {}),
    "bitwise_and": (whole, {}), "bitwise_or": (whole, {}), "bitwise_xor": (whole, {}),
}  # fmt: skip


def _binary(op: str) -> None:
    make, attrs = BINARY[op]

    def build(net: Net, *shape: int) -> None:
        net.sink(net.op(STANDARD[op], make(net), make(net, *shape), name="tested", **attrs))

    add(op, "same shape", "+++ +++ -> +++", lambda net: build(net, *SHAPE))
    add(op, "broadcast", "+++ +. -> +++", lambda net: build(net, 4, 1))
    add(op, "reversed", "+.+ +. -> +++", lambda net: _reversed(net, make, STANDARD[op], attrs))


def _reversed(net: Net, make: Any, kind: str, attrs: dict[str, Any]) -> None:
    net.sink(net.op(kind, make(net, 3, 1, 5), make(net, 4, 1), name="tested", **attrs))


for _op in BINARY:
    _binary(_op)


@case("add", "a vector of one", "+++ . -> +++")
def add_one(net: Net) -> None:
    net.sink(net.op("Add", net.free(*SHAPE), net.const([0.7], np.float32), name="tested"))


@case("mul", "by itself", "+++ +++ -> +++")
def square(net: Net) -> None:
    x = net.free(*SHAPE)
    net.sink(net.op("Mul", x, x, name="tested"))


@case("bit_shift", "", "+++ + -> +++")
def bit_shift(net: Net) -> None:
    x = whole(net, to=TensorProto.UINT8)
    net.sink(net.op("BitShift", x, net.const([0, 1, 2, 3, 1], np.uint8), direction="LEFT", name="tested"))


@case("prelu", "slope a channel", "+++ +. -> +++")
def prelu(net: Net) -> None:
    net.sink(net.op("PRelu", net.free(*SHAPE), net.weight(4, 1), name="tested"))


@case("prelu", "one slope", "+++ . -> +++")
def prelu_one(net: Net) -> None:
    net.sink(net.op("PRelu", net.free(*SHAPE), net.weight(1), name="tested"))


@case("swiglu", "", "+++ +++ -> +++", opset=28)
def swiglu(net: Net) -> None:
    net.sink(net.op("SwiGLU", net.free(*SHAPE), net.free(*SHAPE), name="tested"))


@case("where", "", "++ +++ +++ -> +++")
def where(net: Net) -> None:
    net.sink(net.op("Where", truth(net, 4, 5), net.free(*SHAPE), net.free(*SHAPE), name="tested"))


@case("where", "three broadcasts", "+. + +.. -> +++")
def where_broadcast(net: Net) -> None:
    net.sink(net.op("Where", truth(net, 4, 1), net.free(5), net.free(3, 1, 1), name="tested"))


@case("clip", "inputs", "+++ 1 1 -> +++")
def clip(net: Net) -> None:
    low, high = net.const(-0.5, np.float32), net.const(0.8, np.float32)
    net.sink(net.op("Clip", net.free(*SHAPE), low, high, name="tested"))


@case("clip", "one bound", "+++ / 1 -> +++")
def clip_one(net: Net) -> None:
    net.sink(net.op("Clip", net.free(*SHAPE), "", net.const(0.8, np.float32), name="tested"))


@case("clip", "attributes", "+++ -> +++", opset=10)
def clip_old(net: Net) -> None:
    net.sink(net.op("Clip", net.free(*SHAPE), min=-0.5, max=0.8, name="tested"))


def _variadic(op: str) -> None:
    kind = STANDARD[op]

    def three(net: Net) -> None:
        net.sink(net.op(kind, net.free(*SHAPE), net.free(4, 1), net.weight(5), name="tested"))

    add(op, "three", "+++ +. + -> +++", three)
    add(op, "one", "+++ -> +++", lambda net: net.sink(net.op(kind, net.free(*SHAPE), name="tested")))


for _op in ("max", "min", "sum", "mean"):
    _variadic(_op)


@case("dropout", "", "+++ -> +++", opset=11)
def dropout(net: Net) -> None:
    net.sink(net.op("Dropout", net.free(*SHAPE), ratio=0.4, name="tested"))


@case("dropout", "in training mode", "... 1 1 -> ...")
def dropout_training(net: Net) -> None:
    """What it drops is drawn anew at each run; a ratio of nothing keeps this one still."""
    ratio, training = net.const(0.0, np.float32), net.const(True, np.bool_)
    net.sink(net.op("Dropout", net.free(*SHAPE), ratio, training, name="tested"), hidden=5)


@case("dropout", "inputs and mask", "+++ 1 1 -> +++ +++")
def dropout_mask(net: Net) -> None:
    ratio, training = net.const(0.4, np.float32), net.const(False, np.bool_)
    y, mask = net.ops("Dropout", net.free(*SHAPE), ratio, training, outs=2, name="tested")
    net.sink(net.op("Where", mask, y, y))
