"""What tools that go by names or shapes leave whole, each as exporters write it: what may be cut of it, and the proofs.

Sizes of prunable atoms are in the order of the model, ~ where the cut is a different function. What stays has a reason
that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from graphprune import analysis as analysis_
from graphprune import dims
from graphprune.analysis import analyse
from graphprune.dims import Dim, product, sum_
from graphprune.formats import onnx as format_
from graphprune.rules import Op, indexing
from graphprune.rules import conv as convolution
from tests.build import OUTPUTS, Net
from tests.prove import Subject, describe, parameter
from tests.test_rule_answers import reasons

Build = Callable[[Net], object]
END = np.iinfo(np.int64).max


def free(subject: Subject) -> str:
    """Sizes of all prunable atoms."""
    return " ".join(f"{atom.size}{'~' if atom.inexact else ''}" for atom in subject.analysis.prunable)


def proved(subject: Subject) -> None:
    """For random cuts, for the smallest, and no position may be out of its place."""
    for chosen in (subject.cut(), subject.cut(few=True)):
        assert subject.failures(chosen) == []
    assert min(subject.scrambled(atom, 1e-3) for atom in subject.analysis.prunable) > 1e-3


def conv(net: Net, x: str, channels: int, out: int, kernel: int = 1, group: int = 1) -> str:
    """A convolution that keeps the size of the image, and an activation."""
    weight = net.weight(out, channels // group, kernel, kernel, fan=channels // group * kernel**2)
    return net.op("Elu", net.op("Conv", x, weight, net.weight(out), group=group, pads=[kernel // 2] * 4), alpha=2.0)


def linear(net: Net, x: str, width: int, out: int) -> str:
    return net.op("Add", net.op("MatMul", x, net.weight(width, out, fan=width)), net.weight(out))


def end(net: Net, x: str, channels: int) -> None:
    """Places are summed over by a kernel, so that the image tells their order."""
    size = net.shape(x)[-1]
    y = net.op("Conv", x, net.weight(OUTPUTS, channels, size, size, fan=channels * size**2))
    net.output(net.op("Reshape", y, net.const([0, OUTPUTS])))


# Groups.


def unequal_parts(net: Net, parts: Sequence[int] = (12, 20), groups: int = 4) -> None:
    x, whole = net.input(1, 3, 4, 4), sum(parts)
    joined = net.op("Concat", *(conv(net, x, 3, part, 3) for part in parts), axis=1)
    end(net, conv(net, joined, whole, 2 * groups, 3, groups), 2 * groups)


def three_parts(net: Net) -> None:
    unequal_parts(net, (5, 11, 8), 2)


def shuffled_in_factors(net: Net) -> None:
    """Three groups of 12, shuffled, three groups again: 12 is a multiple of 3."""
    x = conv(net, net.input(1, 3, 4, 4), 3, 36)
    x = net.op("Reshape", conv(net, x, 36, 36, 1, 3), net.const([1, 3, 12, 4, 4]))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.const([1, 36, 4, 4]))
    end(net, conv(net, conv(net, x, 36, 36, 3, 36), 36, 6, 1, 3), 6)


# Positions by a constant index.


def reordered(net: Net, index: Sequence[int] | np.ndarray[Any, Any], nd: bool = False, size: int = 12) -> None:
    """Channels in another order, or some of them, or some of them twice; as the two exporters of torch write it."""
    x, index = conv(net, net.input(1, 3, 4, 4), 3, size, 3), np.asarray(index)
    if nd:
        swap = net.op("Transpose", x, perm=[1, 0, 2, 3])
        taken = net.op("GatherND", swap, net.op("Unsqueeze", net.const(index), net.const([-1])), name="tested")
        taken = net.op("Transpose", taken, perm=[1, 0, 2, 3])
    else:
        taken = net.op("Gather", x, net.const(index), axis=1, name="tested")
    end(net, conv(net, taken, len(index), 5, 3), 5)
    end(net, conv(net, x, size, 3, 3), 3)


SHUFFLE = np.arange(12).reshape(3, 4).T.reshape(-1)
TURN = np.roll(np.arange(12), 5)


def grouped_keys(net: Net) -> None:
    """Each key head twice by an index, for four query heads."""
    x = net.input(1, 5, 6)

    def heads(count: int) -> str:
        split = net.op("Reshape", linear(net, x, 6, 8 * count), net.const([1, 5, count, 8]))
        return net.op("Transpose", split, perm=[0, 2, 1, 3])

    query = heads(4)
    key, value = (net.op("Gather", heads(2), net.const([0, 0, 1, 1]), axis=1) for _ in range(2))
    scores = net.op("Softmax", net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2])), axis=-1)
    merged = net.op("Transpose", net.op("MatMul", scores, value), perm=[0, 2, 1, 3])
    net.output(linear(net, net.op("Reshape", merged, net.const([1, 5, 32])), 32, OUTPUTS))


# Strides.


def every_other(net: Net, x: str, start: int, axis: int) -> str:
    return net.op("Slice", x, *(net.const([v]) for v in (start, END, axis, 2)))


def interleaved_rotary(net: Net) -> None:
    """Pairs side by side: taken apart, turned, put together by a stack."""
    x, made = net.input(1, 5, 6), []
    tables = [net.weight(5, 4) for _ in range(2)]
    for _ in range(2):
        split = net.op("Reshape", linear(net, x, 6, 24), net.const([1, 5, 3, 8]))
        heads = net.op("Transpose", split, perm=[0, 2, 1, 3])
        a, b = (every_other(net, heads, start, 3) for start in (0, 1))
        turned = [
            net.op(kind, net.op("Mul", a, one), net.op("Mul", b, other))
            for kind, one, other in (("Sub", *tables), ("Add", *tables[::-1]))
        ]
        stack = net.op("Concat", *(net.op("Unsqueeze", part, net.const([-1])) for part in turned), axis=-1)
        made.append(net.op("Reshape", stack, net.const([1, 3, 5, 8])))
    scores = net.op("MatMul", made[0], net.op("Transpose", made[1], perm=[0, 1, 3, 2]))
    value = net.op("Reshape", linear(net, x, 6, 21), net.const([1, 5, 3, 7]))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), net.op("Transpose", value, perm=[0, 2, 1, 3]))
    merged = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.const([1, 5, 21]))
    net.output(linear(net, merged, 21, OUTPUTS))


def unshuffled_by_op(net: Net) -> None:
    x = conv(net, net.input(1, 3, 4, 4), 3, 6, 3)
    end(net, conv(net, net.op("SpaceToDepth", x, blocksize=2), 24, 5), 5)


def unshuffled_by_reshape(net: Net) -> None:
    """Pixel unshuffle as torch's older exporter writes it: places innermost."""
    x = net.op("Reshape", conv(net, net.input(1, 3, 4, 4), 3, 6, 3), net.const([1, 6, 2, 2, 2, 2]))
    y = net.op("Reshape", net.op("Transpose", x, perm=[0, 1, 3, 5, 2, 4]), net.const([1, 24, 2, 2]))
    end(net, conv(net, y, 24, 5), 5)


def unshuffled_by_slices(net: Net) -> None:
    """The first layer of a YOLO, and the patch merging of Swin."""
    x = conv(net, net.input(1, 3, 4, 4), 3, 6, 3)
    parts = [every_other(net, every_other(net, x, i, 2), j, 3) for j in (0, 1) for i in (0, 1)]
    end(net, conv(net, net.op("Concat", *parts, axis=1), 24, 5), 5)


# Windows.


def windows(net: Net) -> None:
    """An image of 5 by 5 padded to 6 by 6, shifted, in windows of 3 by 3; a bias table for each of three heads."""
    x = net.op("Transpose", conv(net, net.input(1, 2, 5, 5), 2, 12, 3), perm=[0, 2, 3, 1])
    y = net.op("LayerNormalization", x, net.weight(12), net.weight(12))
    y = net.op("Pad", y, net.const([0, 0, 0, 0, 0, 1, 1, 0]))
    for axis in (1, 2):
        y = roll(net, y, 1, axis)
    y = net.op("Transpose", net.op("Reshape", y, net.const([1, 2, 3, 2, 3, 12])), perm=[0, 1, 3, 2, 4, 5])
    y = linear(net, net.op("Reshape", y, net.const([-1, 9, 12])), 12, 36)
    y = net.op("Transpose", net.op("Reshape", y, net.const([-1, 9, 3, 3, 4])), perm=[2, 0, 3, 1, 4])
    query, key, value = (net.op("Gather", y, net.const(i), axis=0) for i in range(3))
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2]))
    places = net.const(net.random.permutation(np.arange(81) % 25))
    bias = net.op("Reshape", net.op("Gather", net.weight(25, 3), places, axis=0, name="bias"), net.const([9, 9, 3]))
    scores = net.op("Add", scores, net.op("Transpose", bias, perm=[2, 0, 1]))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    y = linear(net, net.op("Reshape", y, net.const([-1, 9, 12])), 12, 12)
    y = net.op("Transpose", net.op("Reshape", y, net.const([1, 2, 2, 3, 3, 12])), perm=[0, 1, 3, 2, 4, 5])
    y = net.op("Reshape", y, net.const([1, 6, 6, 12]))
    for axis in (1, 2):
        y = roll(net, y, 5, axis)
    y = net.op("Slice", y, net.const([0, 0]), net.const([5, 5]), net.const([1, 2]))
    end(net, net.op("Transpose", net.op("Add", x, y), perm=[0, 3, 1, 2]), 12)


def roll(net: Net, x: str, by: int, axis: int) -> str:
    cut = [net.const([v]) for v in (by, END, 0)]
    return net.op("Concat", *(net.op("Slice", x, a, b, net.const([axis])) for a, b in (cut[:2], cut[2::-2])), axis=axis)


# Gates and attention over channels.


def squeezed(net: Net, x: str, kind: str = "ReduceMean") -> str:
    return net.op(kind, x, net.const([2, 3]), keepdims=0)


def gated(net: Net, x: str, gate: str, channels: int) -> None:
    """The gate is one number a channel."""
    gate = net.op("Unsqueeze", net.op("Sigmoid", gate), net.const([2, 3]))
    end(net, conv(net, net.op("Mul", x, gate), channels, 5), 5)


def squeeze_and_excite(net: Net) -> None:
    x = conv(net, net.input(1, 3, 4, 4), 3, 12, 3)
    gated(net, x, linear(net, net.op("Relu", linear(net, squeezed(net, x), 12, 4)), 4, 12), 12)


def gate_of_neighbours(net: Net) -> None:
    """ECA: a kernel slides over the channels."""
    x = conv(net, net.input(1, 3, 4, 4), 3, 12, 3)
    row = net.op("Unsqueeze", squeezed(net, x), net.const([1]))
    row = net.op("Conv", row, net.weight(1, 1, 3, fan=3), pads=[1, 1], name="tested")
    gated(net, x, net.op("Squeeze", row, net.const([1])), 12)


def gate_of_groups(net: Net) -> None:
    """One gate for four channels side by side, repeated by Expand and Reshape."""
    x = conv(net, net.input(1, 3, 4, 4), 3, 12, 3)
    few = net.op("Unsqueeze", linear(net, squeezed(net, x), 12, 3), net.const([2]))
    gated(net, x, net.op("Reshape", net.op("Expand", few, net.const([1, 3, 4])), net.const([1, 12])), 12)


def attention_over_channels(net: Net) -> None:
    """Channels attend to channels: x xᵀ over all places."""
    x = conv(net, net.input(1, 3, 4, 4), 3, 12, 3)
    flat = net.op("Reshape", x, net.const([1, 12, 16]))
    scores = net.op(
        "MatMul", net.op("Mul", flat, net.const(0.1, np.float32)), net.op("Transpose", flat, perm=[0, 2, 1])
    )
    mixed = net.op("Reshape", net.op("MatMul", net.op("Softmax", scores, axis=-1), flat), net.const([1, 12, 4, 4]))
    end(net, conv(net, net.op("Add", mixed, x), 12, 5), 5)


def gate_of_heads(net: Net) -> None:
    """One gate for each head, over the width of it, and one for all."""
    x = net.input(1, 5, 6)
    heads = net.op("Reshape", linear(net, x, 6, 24), net.const([1, 5, 3, 8]))
    gate = net.op("Unsqueeze", net.op("Sigmoid", linear(net, x, 6, 3)), net.const([-1]))
    flat = net.op("Reshape", net.op("Mul", heads, gate), net.const([1, 5, 24]))
    net.output(linear(net, net.op("Mul", flat, net.op("Sigmoid", linear(net, x, 6, 1))), 24, OUTPUTS))


# Experts.


def dispatch(net: Net, nd: bool = False) -> str:
    """Five experts of 7 units on 6 features; weights of those that TopK takes are looked up, for 3 rows. The index."""
    x = net.input(3, 6)
    router = linear(net, x, 6, 5)
    values, index = net.ops("TopK", net.op("Softmax", router, axis=-1), net.const([2]), outs=2, name="router")
    share = net.op("Unsqueeze", net.op("Reshape", values, net.const([-1])), net.const([1]))
    flat = net.op("Reshape", index, net.const([-1]))
    rows = net.op("Reshape", net.op("Expand", net.op("Unsqueeze", x, net.const([1])), net.const([3, 2, 6])),
                  net.const([-1, 6, 1]))  # fmt: skip
    where = net.op("Unsqueeze", flat, net.const([-1])) if nd else flat
    up, down = (
        net.op("GatherND" if nd else "Gather", net.weight(5, *shape, fan=shape[1]), where) for shape in ((7, 6), (6, 7))
    )
    hidden = net.op("Tanh", net.op("MatMul", up, rows))
    made = net.op("Mul", net.op("Squeeze", net.op("MatMul", down, hidden), net.const([2])), share)
    made = net.op("ReduceSum", net.op("Reshape", made, net.const([3, 2, 6])), net.const([1]), keepdims=0)
    net.output(linear(net, made, 6, OUTPUTS))
    return flat


def routed_by_another_score(net: Net) -> None:
    """Which experts is told by scores with a correction, how much by the scores: both axes are the experts."""
    x = net.input(3, 6)
    scores = net.op("Sigmoid", linear(net, x, 6, 5))
    _, index = net.ops("TopK", net.op("Add", scores, net.weight(5)), net.const([2]), outs=2)
    share = net.op("Unsqueeze", net.op("GatherElements", scores, index, axis=1), net.const([2]))
    found = net.op("Gather", net.weight(5, 7, fan=2), index)
    net.output(linear(net, net.op("ReduceSum", net.op("Mul", found, share), net.const([1]), keepdims=0), 7, OUTPUTS))


def masked_groups(net: Net) -> None:
    """Scores of all experts but the best ones are made zero by a scatter."""
    x = net.input(3, 6)
    scores = net.op("Sigmoid", linear(net, x, 6, 5))
    _, index = net.ops("TopK", scores, net.const([2]), outs=2)
    none = net.op("Mul", scores, net.const(0, np.float32))
    ones = net.const(np.ones((3, 2)), np.float32)
    mask = net.op("ScatterElements", none, index, ones, axis=1)
    net.output(linear(net, net.op("Mul", scores, mask), 5, OUTPUTS))


def best_alone(net: Net) -> None:
    """One expert for each row, by ArgMax."""
    x = net.input(3, 6)
    best = net.op("ArgMax", linear(net, x, 6, 5), axis=-1, keepdims=0)
    net.output(linear(net, net.op("Gather", net.weight(5, 7), best), 7, OUTPUTS))


# Places that pass.


def points(net: Net) -> None:
    """A convolution of kernel 1 over tokens, as in gated MLPs: features are its places, and pass."""
    x = linear(net, net.input(1, 5, 6), 6, 8)
    y = net.op("Add", net.op("Conv", x, net.weight(7, 5, 1, fan=5), net.weight(7)), net.weight(7, 8))
    net.output(linear(net, net.op("Conv", net.op("Tanh", y), net.weight(5, 7, 1, fan=7)), 8, OUTPUTS))


def one_way(net: Net) -> None:
    """A kernel of 3 by 1: along the second axis every place is on its own."""
    x = net.op("Reshape", linear(net, net.input(1, 12), 12, 40), net.const([1, 2, 4, 5]))
    y = net.op("Tanh", net.op("Conv", x, net.weight(3, 2, 3, 1, fan=6), pads=[1, 0, 1, 0]))
    net.sink(y)


EXAMPLES: list[tuple[str, Build, str]] = [
    ("unequal parts under groups", unequal_parts, "4 4 2 2"),
    ("three parts under two groups", three_parts, "4 7 2"),
    ("a shuffle of groups", shuffled_in_factors, "12 3 4 3 2"),
    ("channels shuffled by an index", lambda net: reordered(net, SHUFFLE), "3 4 5 3"),
    ("channels shuffled by GatherND", lambda net: reordered(net, SHUFFLE, nd=True), "3 4 5 3"),
    ("channels rolled by an index", lambda net: reordered(net, TURN), "7 5 5 3"),
    ("every third channel by an index", lambda net: reordered(net, np.arange(1, 12, 3)), "4 5 3"),
    ("some channels, one run of them twice", lambda net: reordered(net, [*range(3, 7), *range(5, 9)]), "3 2 2 2 3 5 3"),
    ("key heads by an index", grouped_keys, "2 2 8 8"),
    ("interleaved rotary", interleaved_rotary, "3 4 7"),
    ("space to depth", unshuffled_by_op, "6 5"),
    ("space to depth by Reshape", unshuffled_by_reshape, "6 5"),
    ("space to depth by slices", unshuffled_by_slices, "6 5"),
    ("windows", windows, "12~ 3 4"),
    ("squeeze and excite", squeeze_and_excite, "12 4 5"),
    ("gates of groups", gate_of_groups, "3 4 5"),
    ("attention over channels", attention_over_channels, "12~ 5"),
    ("gates of heads", gate_of_heads, "3 8"),
    ("experts by Gather", dispatch, "5~ 7 6"),
    ("experts by GatherND", lambda net: dispatch(net, nd=True), "5~ 7 6"),
    ("experts by another score", routed_by_another_score, "5~ 7"),
    ("experts that are masked", masked_groups, "5~"),
    ("one expert", best_alone, "5~ 7"),
    ("kernels of one place", points, "8 7"),
    ("kernels of one row", one_way, "2 5 3"),
]


@pytest.mark.parametrize(("build", "sizes"), [example[1:] for example in EXAMPLES], ids=[e[0] for e in EXAMPLES])
def test_example(build: Build, sizes: str) -> None:
    net = Net()
    build(net)
    subject = Subject(net.model())
    assert sorted(free(subject).split()) == sorted(sizes.split())
    proved(subject)


def test_what_is_free_takes_half_of_every_group() -> None:
    """Of the groups of 8 the middle one is of both parts: halves of it are cut by themselves, in all groups."""
    net = Net()
    unequal_parts(net)
    subject = Subject(net.model())
    grouped = next(node for node in subject.analysis.graph.nodes if node.attrs.get("group") == 4)
    assert describe(subject.layouts(grouped)[0][0] or ()) == "1!, ((1+1+2)·(4+4)), 4!, 4!"


@pytest.mark.parametrize("nd", [False, True])
def test_an_index_is_numbered_anew(nd: bool) -> None:
    """Of (3 4) read as (4 3) two of three and three of four stay: (2 3) read as (3 2)."""
    net = Net()
    reordered(net, SHUFFLE, nd)
    subject = Subject(net.model())
    axis = next(iter(d for d in subject.layouts(subject.node("tested"))[0][0] or () if d.size == 12))
    outer, inner = dims.resolve(axis).parts
    made = subject.pruned({outer: np.array([0, 2]), inner: np.array([1, 2, 3])})
    assert parameter(made, "tested", 1) == [0, 3, 1, 4, 2, 5]


# What stays, and why.


def picked_by_data(net: Net) -> None:
    ids = net.input(2, 3, dtype=onnx.TensorProto.INT64)
    net.output(linear(net, net.op("Gather", net.weight(9, 6), ids, name="tested"), 6, OUTPUTS))


def picked_out_of_line(net: Net) -> None:
    reordered(net, [3, 0, 7, 1])


def shuffled_across(net: Net) -> None:
    """Three groups of 4, shuffled, three groups again: 4 is no multiple of 3."""
    x = conv(net, net.input(1, 3, 4, 4), 3, 12)
    x = net.op("Reshape", conv(net, x, 12, 12, 1, 3), net.const([1, 3, 4, 4, 4]))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.const([1, 12, 4, 4]))
    end(net, conv(net, x, 12, 6, 1, 3), 6)


def experts_that_are_told(net: Net) -> None:
    """The numbers of the experts are an output, too."""
    net.output(dispatch(net))


def experts_that_are_compared(net: Net) -> None:
    net.output(net.op("Cast", net.op("Equal", dispatch(net), net.const(0)), to=1))


def experts_of_two_sizes(net: Net) -> None:
    """The same numbers look up a table that has an entry more."""
    net.output(net.op("Gather", net.weight(6, 2), dispatch(net)))


STAYING: list[tuple[str, Build, str, str]] = [
    ("a gate of neighbours", gate_of_neighbours, "5", "a kernel slides over its positions, so their order counts"),
    ("a table", picked_by_data, "6", "it is a table, and the data say which of its entries are read (node tested)"),
    ("no order", picked_out_of_line, "4 5 3", "its positions are picked by an index (node tested)"),
    ("every third", lambda net: reordered(net, range(1, 12, 3)), "4 5 3", "the same ones of its positions are always"),
    ("pairs", interleaved_rotary, "3 4 7", "every other position is taken"),
    ("places in a block", unshuffled_by_op, "6 5", "its positions are places in the image"),
    ("a shuffle across groups", shuffled_across, "4 2", "the layouts (3·4) and (4·3) do not reconcile"),
    ("bias of places", windows, "12~ 3 4", "its positions are picked by an index (node bias)"),
    ("experts that are told", experts_that_are_told, "7 6", "its positions are the result (node router)"),
    ("experts that are compared", experts_that_are_compared, "7 6", "its positions are the result (node router)"),
    ("experts of two sizes", experts_of_two_sizes, "7 6", "positions meet on one axis"),
]


@pytest.mark.parametrize(("build", "sizes", "why"), [entry[1:] for entry in STAYING], ids=[e[0] for e in STAYING])
def test_what_stays_says_why(build: Build, sizes: str, why: str) -> None:
    net = Net()
    build(net)
    subject = Subject(net.model())
    assert sorted(free(subject).split()) == sorted(sizes.split())
    assert why in reasons(subject)
    assert subject.failures() == []


def test_blocks_of_channels_name_the_setting_that_makes_them() -> None:
    net = Net()
    net.domains.append("com.microsoft.nchwc")
    x = net.op("ReorderInput", conv(net, net.input(1, 3, 4, 4), 3, 16), domain="com.microsoft.nchwc")
    y = net.op("Conv", x, net.weight(16, 16, 1, 1), domain="com.microsoft.nchwc")
    net.output(net.op("ReorderOutput", y, channels=16, domain="com.microsoft.nchwc"))
    model = net.model()
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(net.outputs[0], 1, (1, 16, 4, 4)))
    analysis = analyse(format_.read(model).graph)
    assert not analysis.prunable
    assert any("(ORT_ENABLE_ALL): prune the file it was made of" in str(atom.reason) for atom in analysis.frozen)


# Wrong on purpose: the proofs say so.


def swapped(prod: Dim, total: Dim, node: str) -> None:
    """Each part takes the group in the middle whole, from its own side."""
    outer, *inner = dims.resolve(prod).parts
    left, right = dims.resolve(total).parts
    u, v = Dim(4), Dim(4)
    dims.tie(outer, sum_(Dim(1), Dim(1), Dim(2)))
    first, _, last = dims.resolve(outer).parts
    dims.tie(product(*inner), sum_(u, v))
    dims.tie(left, sum_(v, product(first, sum_(u, v))))
    dims.tie(right, sum_(product(last, sum_(u, v)), u))


def not_turned(op: Op, index: np.ndarray[Any, Any], size: int) -> tuple[Dim, Dim]:
    """What is taken is in the order of the axis."""
    whole = product(Dim(3), Dim(4))
    return whole, whole


def untied(op: Op, dim: Dim, i: int) -> bool:
    """The table has entries of its own."""
    op.speak_of(dim)
    op.facts.looked_up.add((op.node.index, i))
    return True


WRONG: list[tuple[str, Build, Any, str, Any]] = [
    ("parts swapped", unequal_parts, dims, "_align_mixed", swapped),
    ("order forgotten", EXAMPLES[3][1], indexing, "arranged", not_turned),
    ("old numbers", EXAMPLES[3][1], Op, "names", lambda *_: None),
    ("a table of its own", dispatch, indexing, "looks_up", untied),
    ("numbers that count", experts_that_are_told, analysis_, "only_looked_up", lambda *_: True),
    ("every kernel a point", one_way, convolution, "_is_point", lambda *_: True),
]


@pytest.mark.parametrize(("build", "where", "name", "wrong"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_rule_is_caught(
    build: Build, where: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    build(net)
    monkeypatch.setattr(where, name, wrong)
    subject = Subject(net.model())
    assert [*subject.failures(), *subject.failures(subject.cut(few=True))]
