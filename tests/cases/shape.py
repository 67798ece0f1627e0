"""Ops that regroup, move, join, repeat or pad axes."""

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


# Joining and splitting.


@case("concat", "", "+++ +++ -> +++")
def concat(net: Net) -> None:
    net.sink(net.op("Concat", net.free(3, 4, 5), net.free(3, 2, 5), axis=1, name="tested"))


@case("concat", "three, last axis", "+++ +++ ++. -> +++")
def concat_last(net: Net) -> None:
    parts = net.free(2, 3, 4), net.free(2, 3, 3), net.free(2, 3, 1)
    net.sink(net.op("Concat", *parts, axis=-1, name="tested"))


@case("concat", "alone", "+++ -> +++")
def concat_alone(net: Net) -> None:
    net.sink(net.op("Concat", net.free(2, 3, 4), axis=1, name="tested"))


@case("concat", "an input twice", "+++ +++ -> +++")
def concat_twice(net: Net) -> None:
    x = net.free(3, 4, 5)
    net.sink(net.op("Concat", x, x, axis=0, name="tested"))


@case("concat", "break points that do not meet", "++ ++ -> ++")
def concat_breaks(net: Net) -> None:
    one = net.op("Concat", net.free(2, 3), net.free(2, 5), axis=1, name="tested")
    net.sink(net.op("Add", one, net.op("Concat", net.free(2, 6), net.free(2, 2), axis=1)))


def _split(title: str, free: str, opset: int, sizes: Sequence[int] | None, count: int, **attrs: Any) -> None:
    size = attrs.pop("size", 6)

    def build(net: Net) -> None:
        x = net.free(3, size, 5)
        inputs = [net.const(sizes)] if sizes is not None and opset >= 13 else []
        options = {"split": list(sizes)} if sizes is not None and opset < 13 else {}
        parts = net.ops("Split", x, *inputs, outs=count, axis=1, name="tested", **options, **attrs)
        for part in parts:
            net.sink(net.op("Relu", part))

    add("split", title, free, build, opset=opset)


_split("sizes an attribute", "+++ -> +++ +++", 11, [2, 4], 2)
_split("sizes an input", "+++ . -> +++ +++ +++", 13, [2, 3, 2], 3, size=7)
_split("no attribute", "+++ -> +++ +++", 11, None, 2)
_split("no input", "+++ -> +++ +++", 13, None, 2)
_split("num_outputs", "+++ -> +++ +++", 18, None, 2, num_outputs=2)
_split("num_outputs, uneven", "+++ -> +++ +++ +.+", 18, None, 3, size=7, num_outputs=3)


@case("split", "negative axis", "+++ . -> +++ +++")
def split_negative(net: Net) -> None:
    for part in net.ops("Split", net.free(3, 4, 5), net.const([2, 3]), outs=2, axis=-1, name="tested"):
        net.sink(net.op("Relu", part))


@case("split", "fused query, key and value", "+++ . -> +++ +++ +++")
def split_fused(net: Net) -> None:
    """Each part is cut by itself: the one weight that makes all three loses different positions in each third."""
    x = net.op("MatMul", net.free(2, 3, 4), net.weight(4, 12, fan=4))
    parts = net.ops("Split", x, net.const([4, 4, 4]), outs=3, axis=2, name="tested")
    net.sink(net.op("Mul", parts[0], parts[1]))
    net.sink(parts[2])


# Padding, resizing.


def _pad(title: str, free: str, pads: Sequence[int], opset: int = 13, **attrs: Any) -> None:
    def build(net: Net) -> None:
        inputs = [net.const(pads), net.const(0.3, np.float32)] if opset >= 11 else []
        old = {"pads": list(pads), "value": 0.3} if opset < 11 else {}
        made = net.op("Pad", net.free(3, 4, 5), *inputs, name="tested", **old, **attrs)
        net.sink(net.op("Mul", made, net.weight(*net.shape(made))))

    add("pad", title, free, build, opset=opset)


_pad("in front and behind", "+++ . 1 -> +++", [0, 2, 0, 0, 3, 1])
_pad("in front alone", "+++ . 1 -> +++", [0, 4, 0, 0, 0, 0])
_pad("attribute", "+++ -> +++", [0, 2, 0, 0, 3, 1], 10)
_pad("reflected", "++. . 1 -> ++.", [0, 0, 2, 0, 0, 1], mode="reflect")
_pad("cropped", "++. . 1 -> ++.", [0, 0, -1, 0, 0, 0])


@case("pad", "axes", "+++ . 1 . -> +++", opset=18)
def pad_axes(net: Net) -> None:
    inputs = net.const([2, 3]), net.const(0.3, np.float32), net.const([-2])
    made = net.op("Pad", net.free(3, 4, 5), *inputs, name="tested")
    net.sink(net.op("Mul", made, net.weight(*net.shape(made))))


def _resize(title: str, free: str, opset: int, inputs: Sequence[Any], **attrs: Any) -> None:
    """``inputs``: a list is written as int64 sizes, a tuple as float scales."""

    def build(net: Net) -> None:
        names = [
            "" if value is None else net.const(value, np.float32 if isinstance(value, tuple) else np.int64)
            for value in inputs
        ]
        net.sink(net.op("Resize", net.free(2, 5, 3, 4), *names, name="tested", **attrs))

    add("resize", title, free, build, opset=opset)


_resize("scales", "++.. / . -> ++..", 19, [None, (1, 1, 2, 2)], mode="linear")
_resize("sizes", "++.+ / / . -> ++.+", 19, [None, None, [2, 5, 6, 4]])
_resize("sizes of two axes", "++.. / / . -> ++..", 18, [None, None, [6, 8]], axes=[2, 3])
_ratio = {"keep_aspect_ratio_policy": "not_larger"}
_resize("sizes that keep the ratio", "++++ / / . -> ++++", 19, [None, None, [2, 5, 6, 8]], **_ratio)
_resize("sizes of two axes, from the end", "++.. / / . -> ++..", 18, [None, None, [8, 6]], axes=[-1, -2])
_resize("channels resized", "+.+. / . -> +.+.", 19, [None, (1, 2, 1, 2)])
_resize("opset 10", "++.. . -> ++..", 10, [(1, 1, 2, 2)])
_resize("opset 11", "++.. . . -> ++..", 11, [(0, 0, 0, 0, 1, 1, 1, 1), (1, 1, 2, 2)])


@case("resize", "it crops", ".... . . -> ....", opset=19)
def resize_crop(net: Net) -> None:
    region, scales = net.const([0, 0, 0, 0, 1, 1, 0.5, 0.5], np.float32), net.const([1, 1, 2, 2], np.float32)
    attrs = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}
    net.sink(net.op("Resize", net.free(2, 5, 3, 4), region, scales, name="tested", **attrs), hidden=5)


@case("upsample", "scales an input", "++.. . -> ++..", opset=9)
def upsample(net: Net) -> None:
    net.sink(net.op("Upsample", net.free(2, 5, 3, 4), net.const([1, 1, 2, 2], np.float32), name="tested"))


@case("upsample", "scales an attribute", "++.. -> ++..", opset=7)
def upsample_old(net: Net) -> None:
    net.sink(net.op("Upsample", net.free(2, 5, 3, 4), scales=[1.0, 1.0, 2.0, 2.0], name="tested"))


@case("center_crop_pad", "", ".+. . -> .+.", opset=18)
def center_crop_pad(net: Net) -> None:
    net.sink(net.op("CenterCropPad", net.free(3, 4, 5), net.const([2, 7]), axes=[0, 2], name="tested"))


# Sizes themselves.


@case("shape", "", "+++ -> .")
def shape(net: Net) -> None:
    """1/sqrt(last size) keeps its old value after a cut, as the scale of attention must."""
    x = net.free(3, 4, 5)
    size = net.op("Cast", net.op("Gather", net.op("Shape", x, name="tested"), net.const(-1)), to=1)
    net.sink(net.op("Div", x, net.op("Sqrt", size)))


@case("shape", "start and end", "+++ -> .")
def shape_part(net: Net) -> None:
    x = net.free(3, 4, 5)
    sizes = net.op("Cast", net.op("Shape", x, start=1, end=-1, name="tested"), to=1)
    net.sink(net.op("Mul", x, net.op("ReduceProd", sizes, keepdims=0)))


@case("constant_of_shape", "", ". -> +++")
def constant_of_shape(net: Net) -> None:
    value = net.op("ConstantOfShape", net.const([3, 4, 5]), value=_tensor(0.5), name="tested")
    net.sink(net.op("Add", value, net.free(3, 4, 5)))


@case("constant_of_shape", "computed", ". -> +++")
def constant_of_shape_computed(net: Net) -> None:
    x = net.free(3, 4, 5)
    net.sink(net.op("Add", net.op("ConstantOfShape", net.op("Shape", x), value=_tensor(0.5), name="tested"), x))


def _tensor(value: float) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array([value], np.float32))


@case("trilu", "", "+.. -> +..")
def trilu(net: Net) -> None:
    net.sink(net.op("Trilu", net.free(3, 4, 4), name="tested"))


@case("trilu", "upper by one", "+.. 1 -> +..")
def trilu_upper(net: Net) -> None:
    net.sink(net.op("Trilu", net.free(3, 4, 4), net.const(1), upper=0, name="tested"))


@case("reverse_sequence", "", "..+ . -> ..+")
def reverse_sequence(net: Net) -> None:
    net.sink(net.op("ReverseSequence", net.free(4, 3, 5), net.const([2, 4, 1]), name="tested"))
