"""Known answers: what exactly stays, goes and is rewritten around the ops that are easiest to get wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphprune.dims import resolve
from graphprune.formats import onnx as format_
from graphprune.graph import Array
from tests.build import FEATURES, OUTPUTS, Body, Net
from tests.prove import Subject, attribute, describe, parameter

LAST = np.iinfo(np.int64).max


def reasons(subject: Subject) -> str:
    """Why what is frozen is frozen."""
    return "; ".join(str(atom.reason) for atom in subject.analysis.frozen)


# What stays whole.


def test_the_channels_of_lrn_stay() -> None:
    net = Net()
    x = net.op("Conv", net.input(1, 3, 6, 6), net.weight(8, 3, 3, 3, fan=27), net.weight(8))
    y = net.op("LRN", net.op("Relu", x), size=3, alpha=0.5, name="tested")
    net.output(net.op("Conv", net.op("Conv", y, net.weight(5, 8, 1, 1, fan=8)), net.weight(2, 5, 1, 1, fan=5)))
    subject = Subject(net.model())
    assert [atom.size for atom in subject.analysis.prunable] == [5]
    assert "a window slides over its positions, so their order counts (node tested)" in reasons(subject)
    assert subject.failures() == []


def test_the_channels_of_max_pool_with_indices_stay() -> None:
    net = Net()
    x = net.op("Conv", net.input(1, 3, 6, 6), net.weight(8, 3, 3, 3, fan=27))
    y, where = net.ops("MaxPool", x, outs=2, kernel_shape=[2, 2], name="tested")
    net.output(where)
    net.output(net.op("Conv", net.op("Conv", y, net.weight(5, 8, 1, 1, fan=8)), net.weight(2, 5, 1, 1, fan=5)))
    subject = Subject(net.model())
    assert [atom.size for atom in subject.analysis.prunable] == [5]
    assert "indices that MaxPool returns count over all channels (node tested)" in reasons(subject)
    assert subject.failures() == []


def test_squeeze_without_axes_keeps_two_positions() -> None:
    net = Net()
    net.sink(net.op("Transpose", net.op("Squeeze", net.free(1, 7, 5), name="tested"), perm=[1, 0]))
    subject = Subject(net.model())
    assert [atom.least for atom in subject.analysis.prunable] == [2, 2]
    assert subject.failures(subject.cut(few=True)) == []
    too_few = {atom.dim: np.array([0]) for atom in subject.analysis.prunable}
    assert any("runs" in failure for failure in subject.failures(too_few)), "one position: the axis would vanish"


def test_squeeze_with_axes_may_keep_one() -> None:
    net = Net()
    net.sink(net.op("Squeeze", net.free(1, 7, 5), net.const([0]), name="tested"))
    subject = Subject(net.model())
    assert [atom.least for atom in subject.analysis.prunable] == [1, 1]
    assert subject.failures(subject.cut(few=True)) == []


# Numbers that are computed from sizes.


def test_a_scale_computed_from_a_size_keeps_its_value() -> None:
    """1/sqrt(Shape(x)[-1]): attention is scaled by the head size that it was trained with."""
    net = Net(seed=3)
    w, out = net.weight(FEATURES, 8, fan=FEATURES), net.weight(8, OUTPUTS, fan=8)
    x = net.op("MatMul", net.input(2, FEATURES), w)
    size = net.op("Cast", net.op("Gather", net.op("Shape", x), net.const(-1)), to=1)
    net.output(net.op("MatMul", net.op("Div", x, net.op("Sqrt", size)), out))
    subject = Subject(net.model())
    keep = [1, 4, 6]
    pruned = subject.pruned(size_8=keep)
    feeds = subject.proof.trials[0][1]
    (found,) = format_.run(pruned)(feeds).values()
    one, two = (subject.analysis.graph.weights[name].load() for name in (w, out))
    (x_in,) = feeds.values()
    np.testing.assert_allclose(found, x_in @ one[:, keep] / np.sqrt(8) @ two[keep], rtol=1e-5)


def test_attention_writes_its_scale_out_when_the_head_shrinks() -> None:
    net = Net(opset=23)
    heads = [net.free(1, 2, 3, 8) for _ in range(3)]
    net.sink(net.op("Attention", *heads, name="tested"))
    subject = Subject(net.model())
    node = subject.node("tested")
    head_size = resolve((subject.layouts(node)[0][0] or ())[3])
    pruned = subject.pruned({head_size: np.arange(4)})
    assert attribute(pruned, "tested", "scale") == pytest.approx(1 / np.sqrt(8))
    assert attribute(subject.pruned({}), "tested", "scale") is None


# Numbers that are sizes.


def sliced(start: int, end: int) -> Subject:
    """A slice of 8 positions, and the whole beside it."""
    net = Net()
    x = net.op("MatMul", net.input(1, FEATURES), net.weight(FEATURES, 8, fan=FEATURES))
    net.sink(net.op("Relu", net.op("Slice", x, net.const([start]), net.const([end]), net.const([1]), name="tested")))
    net.sink(net.op("Tanh", x))
    return Subject(net.model())


@pytest.mark.parametrize(
    ("start", "end", "starts", "ends"),
    [(-6, -1, 1, 3), (2, 7, 1, 3), (2, LAST, 1, 4), (-6, 8, 1, 4), (0, 7, 0, 3), (-100, -1, 0, 3)],
)
def test_slice_bounds_follow_the_cut(start: int, end: int, starts: int, ends: int) -> None:
    """Of 8 positions 0, 3, 5 and 7 stay: one before 2, one behind 7."""
    subject = sliced(start, end)
    axis = resolve((subject.layouts(subject.node("tested"))[0][0] or ())[1])
    kept, first = {}, 0
    for part in axis.parts:
        kept[part] = np.array([p - first for p in (0, 3, 5, 7) if first <= p < first + part.extent])
        first += part.extent
    pruned = subject.pruned(kept)
    assert parameter(pruned, "tested", 1) == [starts]
    assert parameter(pruned, "tested", 2) == [ends]
    assert subject.failures() == []


def test_reshape_targets_follow_the_cut_and_minus_one_stays() -> None:
    net = Net()
    x = net.free(3, 4, 5)
    y = net.op("Reshape", x, net.const([0, -1, 5]), name="kept")
    z = net.op("Reshape", net.op("Tanh", y), net.const([12, 5]), name="numbers")
    net.sink(z)
    pruned = Subject(net.model()).pruned(size_4=[0, 2, 3], size_3=[0, 1], size_5=[4])
    assert parameter(pruned, "kept", 1)[1] == -1
    assert parameter(pruned, "kept", 1)[2] == 1
    assert parameter(pruned, "numbers", 1) == [6, 1]


def test_a_constant_that_two_nodes_read_is_rewritten_for_each() -> None:
    """The same target serves two reshapes of equal sizes, which are then cut differently."""
    net = Net()
    target = net.const([1, 3, 4])
    made = []
    for name in ("one", "two"):
        x = net.op("MatMul", net.input(1, FEATURES), net.weight(FEATURES, 12, fan=FEATURES))
        made.append(net.op("Reshape", x, target, name=name))
    net.sink(made[0])
    net.sink(made[1])
    subject = Subject(net.model())
    dims = [resolve((subject.layouts(subject.node(name))[1][0] or ())[2]) for name in ("one", "two")]
    pruned = subject.pruned({dims[0]: np.array([0, 1]), dims[1]: np.array([1, 2, 3])})
    assert parameter(pruned, "one", 1) == [1, 3, 2]
    assert parameter(pruned, "two", 1) == [1, 3, 3]


def test_a_computed_reshape_target_is_overwritten_where_it_is_static() -> None:
    net = Net()
    x = net.op("MatMul", net.input("N", FEATURES), net.weight(FEATURES, 12, fan=FEATURES))
    first = net.op("Gather", net.op("Shape", x), net.const([0]))
    y = net.op("Reshape", x, net.op("Concat", first, net.const([3, 4]), axis=0), name="tested")
    net.output(net.op("Einsum", net.op("Tanh", y), net.weight(3, 4, OUTPUTS, fan=12), equation="nab,abo->no"))
    subject = Subject(net.model())
    runner = format_.run(subject.pruned(size_3=[0, 2], size_4=[1]))
    for rows in (1, 2, 5):
        feeds: dict[str, Array] = {net.inputs[0].name: np.ones((rows, FEATURES), np.float32)}
        assert [value.shape for value in runner(feeds).values()] == [(rows, OUTPUTS)]
    assert subject.failures() == []


def test_expand_copies_follow_the_cut() -> None:
    net = Net()
    made = net.op("Expand", net.free(3, 1), net.const([3, 7]), name="tested")
    net.sink(net.op("Mul", made, net.weight(3, 7)))
    subject = Subject(net.model())
    assert parameter(subject.pruned(size_7=[2, 5], size_3=[0]), "tested", 1) == [1, 2]


def halves(opset: int, **attrs: int) -> Subject:
    """A split in two without sizes, each half with a consumer of its own."""
    net = Net(opset=opset)
    x = net.op("MatMul", net.input(1, FEATURES), net.weight(FEATURES, 8, fan=FEATURES))
    for part in net.ops("Split", x, outs=2, axis=1, name="tested", **attrs):
        net.sink(net.op("Tanh", part))
    return Subject(net.model())


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_split_without_sizes_gets_them_when_its_parts_differ(opset: int) -> None:
    subject = halves(opset, **({"num_outputs": 2} if opset == 18 else {}))
    left, right = (atom.dim for atom in subject.analysis.prunable)
    pruned = subject.pruned({left: np.array([0, 1, 3]), right: np.array([2])})
    if opset == 11:
        assert list(attribute(pruned, "tested", "split")) == [3, 1]
    else:
        assert parameter(pruned, "tested", 1) == [3, 1]
    assert attribute(pruned, "tested", "num_outputs") is None
    assert subject.failures({left: np.array([0, 1, 3]), right: np.array([2])}) == []


def test_padding_of_channels_is_cut_like_channels() -> None:
    """A shortcut that pads its channels in front and behind, added to a convolution: as in old residual networks."""
    net = Net()
    x = net.op("Conv", net.input(1, 3, 4, 4), net.weight(4, 3, 1, 1, fan=3))
    padded = net.op("Pad", x, net.const([0, 2, 0, 0, 0, 3, 0, 0]), net.const(0, np.float32), name="tested")
    wide = net.op("Add", padded, net.op("Conv", x, net.weight(9, 4, 1, 1, fan=4)))
    net.output(net.op("Conv", wide, net.weight(2, 9, 1, 1, fan=9)))
    subject = Subject(net.model())
    _, (out,) = subject.layouts(subject.node("tested"))
    assert describe(out or ()) == "1!, (2+4+3), 4!, 4!"
    pruned = subject.pruned(size_2=[0], size_4=[1, 2, 3], size_3=[0, 2])
    assert parameter(pruned, "tested", 1) == [0, 1, 0, 0, 0, 2, 0, 0]
    assert subject.failures() == []


def test_an_input_concatenated_twice_is_cut_twice_alike() -> None:
    net = Net()
    x = net.op("MatMul", net.input(1, FEATURES), net.weight(FEATURES, 4, fan=FEATURES))
    w = net.weight(8, OUTPUTS, fan=8)
    net.output(net.op("MatMul", net.op("Concat", x, x, axis=1, name="tested"), w))
    subject = Subject(net.model())
    assert describe(subject.layouts(subject.node("tested"))[1][0] or ()) == "1!, (4+4)"
    pruned = subject.pruned(size_4=[1, 3])
    np.testing.assert_array_equal(
        pruned.graph.weights[w].load(), subject.analysis.graph.weights[w].load()[[1, 3, 5, 7]]
    )


def test_a_negative_gather_index_finds_its_position_after_the_cut() -> None:
    """Position -3 of 8 is 5: of 0, 2, 5, 6 that stay it is the third."""
    net = Net()
    x = net.free(8, 3)
    net.sink(net.op("Relu", net.op("Gather", x, net.const(-3), axis=0, name="tested")))
    net.sink(net.op("Tanh", x))
    subject = Subject(net.model())
    assert describe(subject.layouts(subject.node("tested"))[0][0] or ()) == "(5+1+2), 3"
    pruned = subject.pruned(size_5=[0, 2], size_2=[0])
    assert parameter(pruned, "tested", 1) == [2]
    assert subject.failures() == []


def test_an_index_that_may_lose_places_is_no_constant_position() -> None:
    """It names one position, twice: which of its own places stay decides what its numbers are."""
    net = Net()
    x = net.free(8, 3)
    net.sink(net.op("Relu", net.op("GatherND", x, net.const([[5], [5]]), name="tested")))
    net.sink(net.op("Tanh", x))
    subject = Subject(net.model())
    assert subject.freedom(subject.node("tested")) == ".+ +. -> ++"
    assert subject.failures() == []


# Weights that several nodes read.


def test_biases_that_an_exporter_merged_are_told_apart() -> None:
    """Two layers of equal size share one bias; cutting one leaves the other alone, and each gets a bias of its own."""
    net = Net()
    bias = net.weight(6)
    x = net.op("Gemm", net.input(1, FEATURES), net.weight(FEATURES, 6, fan=FEATURES), bias, name="first")
    y = net.op("Gemm", net.op("Tanh", x), net.weight(6, 6, fan=6), bias, name="second")
    net.output(net.op("MatMul", net.op("Tanh", y), net.weight(6, OUTPUTS, fan=6)))
    subject = Subject(net.model())
    first, second = subject.analysis.prunable
    pruned = subject.pruned({first.dim: np.array([0, 5]), second.dim: np.array([1, 2, 3])})
    nodes = {node.name: node for node in pruned.proto.graph.node}
    whole = subject.analysis.graph.weights[bias].load()
    for name, kept in (("first", [0, 5]), ("second", [1, 2, 3])):
        np.testing.assert_array_equal(pruned.graph.weights[nodes[name].input[2]].load(), whole[kept])
    assert subject.failures() == []


def test_tables_that_an_exporter_merged_couple_nothing() -> None:
    """Two layers gather along equal tables of places, stored once: each may lose heads of its own."""
    net = Net()
    table = net.const(net.random.integers(0, 5, (3, 7)))
    for name in ("first", "second"):
        net.sink(net.op("GatherElements", net.free(3, 5), table, axis=1, name=name), hidden=6)
    subject = Subject(net.model())
    first, second = (atom for atom in subject.analysis.prunable if atom.size == 3)
    pruned = subject.pruned({first.dim: np.array([0, 2]), second.dim: np.array([1])})
    nodes = {node.name: node for node in pruned.proto.graph.node}
    whole = subject.analysis.graph.weights[table].load()
    for name, kept in (("first", [0, 2]), ("second", [1])):
        np.testing.assert_array_equal(pruned.graph.weights[nodes[name].input[1]].load(), whole[kept])
    assert subject.failures() == []


def test_an_embedding_tied_to_the_head_stays_tied() -> None:
    net = Net()
    table = net.weight(10, 6, fan=6)
    x = net.op("Gather", table, net.input(1, 5, dtype=onnx.TensorProto.INT64), name="embed")
    inside = net.op("MatMul", net.op("Relu", net.op("MatMul", x, net.weight(6, 7, fan=6))), net.weight(7, 6, fan=7))
    head = net.op("Transpose", table, perm=[1, 0])
    net.output(net.op("MatMul", net.op("Add", x, inside), head, name="head"))
    subject = Subject(net.model())
    assert [use.weight for use in subject.atom(6).uses].count(table) == 1
    pruned = subject.pruned(size_6=[0, 2, 3], size_7=[1, 4])
    assert pruned.graph.weights[table].shape == (10, 3)
    nodes = {node.name: node for node in pruned.proto.graph.node}
    assert nodes["embed"].input[0] == table
    assert [node.input[0] for node in nodes.values() if node.op_type == "Transpose"] == [table]
    assert subject.failures() == []


def test_one_weight_in_two_layers_ties_them() -> None:
    net = Net()
    shared = net.weight(6, 6, fan=6)
    x = net.op("MatMul", net.input(1, FEATURES), net.weight(FEATURES, 6, fan=FEATURES))
    y = net.op("Tanh", net.op("MatMul", net.op("Tanh", x), shared))
    z = net.op("MatMul", y, shared)
    net.output(net.op("MatMul", z, net.weight(6, OUTPUTS, fan=6)))
    subject = Subject(net.model())
    assert [atom.size for atom in subject.analysis.prunable] == [6]
    assert subject.pruned(size_6=[1, 2]).graph.weights[shared].shape == (2, 2)
    assert subject.failures() == []


def test_weights_may_lie_in_constant_nodes() -> None:
    net = Net()
    x = net.op("Conv", net.input(1, 3, 5, 5), net.weight(6, 3, 3, 3, fan=27), net.weight(6))
    x = net.op("Reshape", net.op("Relu", x), net.const([1, 54]))
    net.output(net.op("Gemm", x, net.weight(54, OUTPUTS, fan=54), net.weight(OUTPUTS)))
    proto = net.model()
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    nodes = [*constants, *proto.graph.node]
    del proto.graph.initializer[:]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    subject = Subject(proto)
    assert [atom.size for atom in subject.analysis.prunable] == [6]
    assert subject.pruned(size_6=[0, 1]).graph.weights[constants[0].output[0]].shape == (2, 3, 3, 3)
    assert subject.failures() == []


def test_two_nodes_that_hide_their_first_output_are_masked_apart() -> None:
    """Both LSTMs leave Y out: the proof may not take them for one."""
    net = Net()
    ends = []
    for name in ("one", "two"):
        weights = net.weight(1, 20, 4, fan=4), net.weight(1, 20, 5, fan=5)
        x = net.op("Tanh", net.op("MatMul", net.input(3, 2, FEATURES), net.weight(FEATURES, 4, fan=FEATURES)))
        net.nodes.append(helper.make_node("LSTM", [x, *weights], ["", name], name=name, hidden_size=5))
        ends.append(name)
    net.output(net.op("MatMul", net.op("Concat", *ends, axis=2), net.weight(10, OUTPUTS, fan=10)))
    subject = Subject(net.model())
    assert len(subject.analysis.prunable) == 4
    assert subject.failures() == []


def test_what_a_body_that_is_not_read_captures_stays() -> None:
    """The body of a SequenceMap is a graph of its own, which nothing edits."""
    net = Net()
    data, body = net.input(1, FEATURES), Body(net)
    first, outside = (net.op("MatMul", data, net.weight(FEATURES, 6, fan=FEATURES)) for _ in range(2))
    body.nodes.append(helper.make_node("Add", [body.given(), outside], ["sum"]))
    many = net.op("SequenceMap", net.op("SequenceConstruct", first, first), body=body.graph("sum"), name="tested")
    y = net.op("ConcatFromSequence", many, axis=0)
    hidden = net.op("Tanh", net.op("MatMul", y, net.weight(6, 7, fan=6)))
    net.output(net.op("MatMul", hidden, net.weight(7, OUTPUTS, fan=7)))
    subject = Subject(net.model())
    assert [atom.size for atom in subject.analysis.prunable] == [7]
    assert "it is read inside the body of SequenceMap (node tested)" in reasons(subject)
    assert subject.failures() == []


def test_quantised_weights_keep_their_scales() -> None:
    net = Net()
    w = net.const(net.random.integers(-127, 128, (6, 5)), np.int8)
    scale = net.const(net.random.uniform(0.01, 0.03, 5), np.float32)
    made = net.op("DequantizeLinear", w, scale, axis=1)
    x = net.op("MatMul", net.input(2, 6), made)
    net.output(net.op("MatMul", net.op("Relu", x), net.weight(5, OUTPUTS, fan=5)))
    subject = Subject(net.model())
    pruned = subject.pruned(size_5=[0, 3])
    assert pruned.graph.weights[scale].shape == (2,)
    stored = next(t for t in pruned.proto.graph.initializer if t.name == w)
    np.testing.assert_array_equal(numpy_helper.to_array(stored), numpy_helper.to_array(net.weights[0])[:, [0, 3]])
    assert stored.data_type == onnx.TensorProto.INT8
