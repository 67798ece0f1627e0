"""Ops that join, split, pad and resize axes, or tell their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.build import Net
from tests.cases.table import add, case


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


@case("pad", "as torch's older exporter computes it", "+++ . 1 -> +++")
def pad_computed(net: Net) -> None:
    """Given from the last axis to the first, each with both its sides: filled up, turned around, and laid out anew."""
    given = net.op("Concat", net.const([0, 1, 2, 3]), net.op("ConstantOfShape", net.const([2]), value=_ZERO), axis=0)
    rows = net.op("Reshape", given, net.const([-1, 2]))
    turned = net.op("Slice", rows, *(net.const([number]) for number in (-1, -(2**63) + 1, 0, -1)))
    pads = net.op("Reshape", net.op("Transpose", turned, perm=[1, 0]), net.const([-1]))
    made = net.op("Pad", net.free(3, 4, 5), pads, net.const(0.3, np.float32), name="tested")
    net.sink(net.op("Mul", made, net.weight(3, 9, 6)), shape=(3, 9, 6))


_ZERO = helper.make_tensor("zero", TensorProto.INT64, [1], [0])


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
_larger = {"keep_aspect_ratio_policy": "not_smaller"}
_ratio = {"keep_aspect_ratio_policy": "not_larger"}
_resize("sizes that keep the ratio", "++++ / / . -> ++++", 19, [None, None, [2, 5, 6, 8]], **_ratio)
_resize("sizes of which some stay", ".++. / / . -> .++.", 18, [None, None, [1, 3]], axes=[0, 3], **_larger)
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
