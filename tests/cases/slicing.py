"""Ops that take positions: slices, gathers, scatters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.build import Net
from tests.cases.table import STANDARD, add, case

LAST = np.iinfo(np.int64).max


def _slice(title: str, free: str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], *steps: int) -> None:
    """Of a tensor (3, 8, 5); the whole of it is used as well, so that what is not taken matters."""

    def build(net: Net) -> None:
        x = net.free(3, 8, 5)
        inputs = [net.const(starts), net.const(ends), net.const(axes)] + ([net.const(steps)] if steps else [])
        made = net.op("Slice", x, *inputs, name="tested")
        net.sink(net.op("Relu", made))
        net.sink(net.op("Tanh", x))

    add("slice", title, free, build)


_slice("from the front", "+++ . . . -> +++", [0], [3], [1])
_slice("from the middle", "+++ . . . -> +++", [2], [5], [1])
_slice("to the end", "+++ . . . -> +++", [3], [LAST], [1])
_slice("negative start", "+++ . . . -> +++", [-5], [LAST], [1])
_slice("negative start and end", "+++ . . . -> +++", [-6], [-1], [-2])
_slice("two axes", "+++ . . . -> +++", [1, 2], [6, 4], [1, 2])
_slice("nothing cut off", "+++ . . . -> +++", [-100], [100], [1])
_slice("step of one", "+++ . . . . -> +++", [2], [5], [1], 1)
_slice("every other", "+++ . . . . -> +++", [0], [LAST], [1], 2)
_slice("every other, from one", "+++ . . . . -> +++", [1], [LAST], [1], 2)
_slice("every other, to the size", "+++ . . . . -> +++", [1], [8], [1], 2)
_slice("every other, to a fixed end", "+.+ . . . . -> +.+", [0], [7], [1], 2)
_slice("backwards", "+.+ . . . . -> +.+", [-1], [-100], [1], -1)
_slice("every third of eight", "+.+ . . . . -> +.+", [0], [LAST], [1], 3)


@case("slice", "two slices that meet", "+++ . . . -> +++")
def slice_two(net: Net) -> None:
    x = net.free(3, 8, 5)
    axis, three = net.const([1]), net.const([3])
    one = net.op("Slice", x, net.const([0]), three, axis, name="tested")
    two = net.op("Slice", x, three, net.const([LAST]), axis)
    net.sink(net.op("Concat", net.op("Neg", two), one, axis=1))


@case("slice", "two slices that overlap", "+++ . . . -> +++")
def slice_overlap(net: Net) -> None:
    x = net.free(3, 8, 5)
    one = net.op("Slice", x, net.const([0]), net.const([5]), net.const([1]), name="tested")
    two = net.op("Slice", x, net.const([2]), net.const([8]), net.const([1]))
    net.sink(net.op("Relu", one))
    net.sink(net.op("Tanh", two))


@case("slice", "attributes", "+++ -> +++", opset=9)
def slice_attributes(net: Net) -> None:
    x = net.free(3, 8, 5)
    net.sink(net.op("Slice", x, starts=[2], ends=[-1], axes=[1], name="tested"))
    net.sink(net.op("Tanh", x))


@case("slice", "attributes, no axes", "+++ -> +++", opset=9)
def slice_no_axes(net: Net) -> None:
    x = net.free(3, 8, 5)
    net.sink(net.op("Slice", x, starts=[1, 2], ends=[LAST, 7], name="tested"))
    net.sink(net.op("Tanh", x))


@case("slice", "no axes", "+++ . . -> +++")
def slice_inputs_no_axes(net: Net) -> None:
    x = net.free(3, 8, 5)
    net.sink(net.op("Slice", x, net.const([1, 2]), net.const([LAST, 7]), name="tested"))
    net.sink(net.op("Tanh", x))


@case("slice", "rotate half", "++ . . . -> ++")
def rotate_half(net: Net) -> None:
    """The two halves of the head are one Dim, met twice; the bound is computed from the size, as exporters write it."""
    x = net.free(3, 8)
    half = net.op("Div", net.op("Gather", net.op("Shape", x), net.const([-1])), net.const([2]))
    left = net.op("Slice", x, net.const([0]), half, net.const([1]), name="tested")
    right = net.op("Slice", x, half, net.const([LAST]), net.const([1]))
    turned = net.op("Concat", net.op("Neg", right), left, axis=1)
    table = net.weight(4)
    cosine = net.op("Concat", net.op("Identity", table), net.op("Identity", table), axis=0)
    net.sink(net.op("Add", net.op("Mul", x, cosine), turned))


def _gather(title: str, free: str, index: Any, axis: int) -> None:
    """The whole is used as well, as above."""

    def build(net: Net) -> None:
        x = net.free(4, 5, 6)
        net.sink(net.op("Relu", net.op("Gather", x, net.const(index), axis=axis, name="tested")))
        net.sink(net.op("Tanh", x))

    add("gather", title, free, build)


_gather("one position", "+++ 1 -> ++", 2, 1)
_gather("the first", "+++ 1 -> ++", 0, 0)
_gather("the last", "+++ 1 -> ++", -1, 2)
_gather("one from the end, a vector", "+++ . -> +.+", [-2], 1)
_gather("several", "+.+ + -> +++", [3, 0, 1], 1)
_gather("a table of places", "+.+ ++ -> ++++", [[3, 0], [1, 1]], 1)


@case("gather", "all in order", "++ ++. -> +++.")
def gather_all(net: Net) -> None:
    """A reshape written as an index, as exporters write as_strided."""
    index = np.arange(12).reshape(3, 4, 1)
    net.sink(net.op("Gather", net.free(5, 12), net.const(index), axis=1, name="tested"))


@case("gather", "all three of a stack", ".+++ 1 -> +++")
def gather_stack(net: Net) -> None:
    """Fused query, key and value, told apart by an index: the three positions are taken one at a time."""
    x = net.free(3, 2, 4, 5)
    parts = [net.op("Gather", x, net.const(i), axis=0, name="tested" if i == 1 else "") for i in range(3)]
    net.sink(net.op("Mul", net.op("Sub", parts[0], parts[2]), parts[1]))


@case("gather", "embedding", ".+ + -> ++")
def embedding(net: Net) -> None:
    ids = net.const([3, 1, 4, 1, 5])
    found = net.op("Gather", net.weight(9, 6), ids, name="tested")
    net.sink(net.op("MatMul", net.free(2, 5), found))


@case("gather", "a computed index", "+++ 1 -> ++")
def gather_computed(net: Net) -> None:
    x = net.free(4, 5, 6)
    size = net.op("Gather", net.op("Shape", x), net.const(1))
    net.sink(net.op("Relu", net.op("Gather", x, net.op("Sub", size, net.const(1)), axis=1, name="tested")))
    net.sink(net.op("Tanh", x))


@case("gather", "a computed index of several axes", "+++ .. -> +..+")
def gather_computed_table(net: Net) -> None:
    x = net.free(4, 5, 6)
    size = net.op("Slice", net.op("Shape", x), net.const([1]), net.const([2]))
    index = net.op("Reshape", net.op("Sub", size, net.const([2])), net.const([1, 1]))
    net.sink(net.op("Relu", net.op("Gather", x, index, axis=1, name="tested")))
    net.sink(net.op("Tanh", x))


@case("gather_elements", "", "+.+ +++ -> +++")
def gather_elements(net: Net) -> None:
    index = net.const(net.random.integers(-4, 4, (3, 2, 5)))
    net.sink(net.op("GatherElements", net.free(3, 4, 5), index, axis=1, name="tested"))


@case("gather_elements", "negative axis", "++. +++ -> +++")
def gather_elements_negative(net: Net) -> None:
    index = net.const(net.random.integers(0, 5, (3, 4, 2)))
    net.sink(net.op("GatherElements", net.free(3, 4, 5), index, axis=-1, name="tested"))


@case("gather_elements", "fewer rows", "..+ .++ -> .++")
def gather_elements_fewer(net: Net) -> None:
    index = net.const(net.random.integers(0, 4, (2, 2, 5)))
    net.sink(net.op("GatherElements", net.free(3, 4, 5), index, axis=1, name="tested"))


@case("gather_nd", "", "..+ +. -> ++")
def gather_nd(net: Net) -> None:
    index = net.const(np.stack([net.random.integers(0, 3, 6), net.random.integers(0, 4, 6)], 1))
    found = net.op("GatherND", net.free(3, 4, 5), index, name="tested")
    net.sink(net.op("Mul", found, net.free(6, 5)))


@case("gather_nd", "batch", "+.+ ++. -> +++")
def gather_nd_batch(net: Net) -> None:
    index = net.const(net.random.integers(0, 4, (3, 2, 1)))
    found = net.op("GatherND", net.free(3, 4, 5), index, batch_dims=1, name="tested")
    net.sink(net.op("Mul", found, net.free(3, 2, 5)))


@case("gather_nd", "one position of two axes", "+++ .. -> .+")
def gather_nd_one(net: Net) -> None:
    """The whole is used as well, as above."""
    x = net.free(5, 4, 3)
    net.sink(net.op("Relu", net.op("GatherND", x, net.const([[2, -1]]), name="tested")))
    net.sink(net.op("Tanh", x))


def _scatter_elements(op: str, title: str, opset: int, **attrs: Any) -> None:
    def build(net: Net) -> None:
        index = net.const(np.argsort(net.random.random((3, 4, 5)), axis=1)[:, :2])
        inputs = net.free(3, 4, 5), index, net.free(3, 2, 5)
        net.sink(net.op(STANDARD[op], *inputs, axis=1, name="tested", **attrs))

    add(op, title, "+.+ +.+ +.+ -> +.+", build, opset=opset)


_scatter_elements("scatter_elements", "", 18)
_scatter_elements("scatter_elements", "added", 18, reduction="add")
_scatter_elements("scatter", "", 9)


@case("scatter_nd", "", ".++ +. +++ -> .++", opset=18)
def scatter_nd(net: Net) -> None:
    inputs = net.free(4, 5, 3), net.const([[1], [3]]), net.free(2, 5, 3)
    net.sink(net.op("ScatterND", *inputs, name="tested"))


@case("tensor_scatter", "", "++.+ ++.+ + -> ++.+", opset=24)
def tensor_scatter(net: Net) -> None:
    inputs = net.free(2, 3, 6, 4), net.free(2, 3, 2, 4), net.const([1, 3])
    net.sink(net.op("TensorScatter", *inputs, name="tested"))


@case("tensor_scatter", "axis, no places", "+.+ +.+ -> +.+", opset=24)
def tensor_scatter_axis(net: Net) -> None:
    net.sink(net.op("TensorScatter", net.free(2, 6, 4), net.free(2, 3, 4), axis=1, name="tested"))


def _one_hot(title: str, axis: int, free: str) -> None:
    def build(net: Net) -> None:
        near = net.op("Cast", net.op("Abs", net.op("Mul", net.free(3, 4), net.const(2, np.float32))), to=7)
        made = net.op("OneHot", near, net.const(5), net.const([-0.5, 1.0], np.float32), axis=axis, name="tested")
        net.sink(made)

    add("one_hot", title, free, build)


_one_hot("", -1, "++ 1 . -> ++.")
_one_hot("axis 1", 1, "++ 1 . -> +.+")
