"""Ops that regroup, move or repeat axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.build import Net
from tests.cases.table import add, case

# Regrouping.


def _reshape(title: str, free: str, shape: Sequence[int], target: Sequence[int], **attrs: Any) -> None:
    def build(net: Net) -> None:
        net.sink(net.op("Reshape", net.free(*shape), net.const(target), name="tested", **attrs), hidden=5)

    add("reshape", title, f"{free}", build)


_reshape("split an axis", "++ . -> +++", (3, 20), [3, 4, 5])
_reshape("join two axes", "+++ . -> ++", (3, 4, 5), [3, 20])
_reshape("both cut to common factors", "++ . -> ++", (4, 6), [8, 3])
_reshape("no common factors", ".. . -> ..", (4, 6), [6, 4])
_reshape("zero copies, minus one follows", "+++ . -> ++", (3, 4, 5), [0, -1])
_reshape("minus one in front", "+++ . -> ++", (3, 4, 5), [-1, 5])
_reshape("one added and dropped", "+.++ . -> +++.", (3, 1, 4, 5), [3, 4, 5, 1])
_reshape("to a vector", "+++ . -> +", (3, 4, 5), [-1])
_reshape("heads", "+++ . -> ++++", (2, 3, 12), [2, 3, 4, 3])


@case("reshape", "computed target", "+++ . -> ++")
def reshape_computed(net: Net) -> None:
    x = net.free(3, 4, 5)
    first = net.op("Slice", net.op("Shape", x), net.const([0]), net.const([1]))
    net.sink(net.op("Reshape", x, net.op("Concat", first, net.const([20]), axis=0), name="tested"))


@case("reshape", "computed product", "+++ . -> ++")
def reshape_product(net: Net) -> None:
    x = net.free(3, 4, 5)
    size = net.op("Shape", x)
    b, c = (net.op("Gather", size, net.const([i])) for i in (1, 2))
    target = net.op("Concat", net.const([-1]), net.op("Mul", b, c), axis=0)
    net.sink(net.op("Reshape", x, target, name="tested"))


def _flatten(axis: int) -> None:
    free = ".+" if axis in (0, -3) else "++" if axis != 3 else "+."

    def build(net: Net) -> None:
        net.sink(net.op("Flatten", net.free(3, 4, 5), axis=axis, name="tested"))

    add("flatten", f"axis {axis}", f"+++ -> {free}", build)


for _axis in (1, 2, 0, 3, -1, -3):
    _flatten(_axis)


def _transpose(title: str, shape: Sequence[int], **attrs: Any) -> None:
    free = "+" * len(shape)

    def build(net: Net) -> None:
        net.sink(net.op("Transpose", net.free(*shape), name="tested", **attrs))

    add("transpose", title, f"{free} -> {free}", build)


_transpose("reversed", (3, 4, 5))
_transpose("perm", (3, 4, 5), perm=[1, 2, 0])
_transpose("equal sizes", (3, 3, 3), perm=[2, 0, 1])


def _squeeze(title: str, free: str, opset: int, axes: Sequence[int] | None) -> None:
    def build(net: Net) -> None:
        x = net.free(3, 1, 4, 1, 5)
        inputs = [net.const(axes)] if axes is not None and opset >= 13 else []
        attrs = {"axes": list(axes)} if axes is not None and opset < 13 else {}
        net.sink(net.op("Squeeze", x, *inputs, name="tested", **attrs))

    add("squeeze", title, free, build, opset=opset)


_squeeze("attribute", "+.+.+ -> +++", 11, [1, -2])
_squeeze("input", "+.+.+ . -> +++", 13, [1, -2])
_squeeze("one of two", "+.+.+ . -> ++.+", 13, [1])
_squeeze("all", "+.+.+ -> +++", 13, None)
_squeeze("all, older", "+.+.+ -> +++", 11, None)


def _unsqueeze(title: str, free: str, opset: int, axes: Sequence[int]) -> None:
    def build(net: Net) -> None:
        inputs = [net.const(axes)] if opset >= 13 else []
        attrs = {"axes": list(axes)} if opset < 13 else {}
        net.sink(net.op("Unsqueeze", net.free(3, 4, 5), *inputs, name="tested", **attrs))

    add("unsqueeze", title, free, build, opset=opset)


_unsqueeze("attribute", "+++ -> .+++", 11, [0])
_unsqueeze("input", "+++ . -> .++.+", 13, [0, -2])


# Repeating.


def _expand(title: str, free: str, shape: Sequence[int], target: Sequence[int]) -> None:
    """The copies meet a weight, so that they are a Dim that may be cut."""

    def build(net: Net) -> None:
        made = net.op("Expand", net.free(*shape), net.const(target), name="tested")
        net.sink(net.op("Mul", made, net.weight(*net.shape(made))))

    add("expand", title, free, build)


_expand("copies", "+.+ . -> +++", (3, 1, 5), [3, 4, 5])
_expand("target of ones", "+.+ . -> +++", (3, 1, 5), [1, 4, 1])
_expand("more axes", "++ . -> +++", (4, 5), [3, 4, 5])
_expand("fewer axes", "+++ . -> +++", (3, 4, 5), [4, 5])


@case("expand", "a number", "1 . -> ++")
def expand_number(net: Net) -> None:
    made = net.op("Expand", net.const(0.7, np.float32), net.const([4, 5]), name="tested")
    net.sink(net.op("Mul", made, net.free(4, 5)))


@case("expand", "computed target", "+.+ . -> +++")
def expand_computed(net: Net) -> None:
    other = net.free(3, 4, 5)
    made = net.op("Expand", net.free(3, 1, 5), net.op("Shape", other), name="tested")
    net.sink(net.op("Mul", made, other))


def _tile(title: str, free: str, repeats: Sequence[int]) -> None:
    def build(net: Net) -> None:
        made = net.op("Tile", net.free(3, 4, 5), net.const(repeats), name="tested")
        net.sink(net.op("Mul", made, net.weight(*net.shape(made))))

    add("tile", title, free, build)


_tile("", "+++ . -> +++", [1, 2, 3])
_tile("nothing", "+++ . -> +++", [1, 1, 1])
