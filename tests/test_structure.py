"""What files are made of beside nodes in a row: bodies, local functions, weights that are inputs, narrow types."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune
from graphprune.analysis import analyse
from graphprune.cost import CostModel
from graphprune.errors import UsageError
from graphprune.formats import onnx as format_
from graphprune.formats.onnx.bodies import bodies
from tests.build import BOOL, FEATURES, FLOAT, INT64, OUTPUTS, Body, Net
from tests.prove import Subject

HIDDEN = 32


def branching(sizes: tuple[int, int] = (16, 24)) -> Net:
    """A layer of 32, then one of two branches with a layer of their own size inside; both bodies use the same names."""
    net = Net()
    x = net.op("Tanh", net.op("MatMul", net.input("N", FEATURES), net.weight(FEATURES, HIDDEN, fan=FEATURES)))
    branches = []
    for size in sizes:
        body = Body(net)
        y = body.op("Tanh", body.op("MatMul", x, body.weight(HIDDEN, size, fan=HIDDEN)))
        branches.append(body.graph(body.op("MatMul", y, body.weight(size, OUTPUTS, fan=size))))
    yes = net.op("Greater", net.op("ReduceSum", x, keepdims=0), net.const(0, np.float32))
    net.output(net.op("If", yes, then_branch=branches[0], else_branch=branches[1], name="choice"))
    return net


def body(model: onnx.ModelProto, node: str, number: int) -> onnx.GraphProto:
    """One body of a node."""
    (found,) = [n for n in model.graph.node if n.name == node]
    made: onnx.GraphProto = bodies(found)[number]
    return made


def weights(graph: onnx.GraphProto) -> list[list[int]]:
    """Sizes of the initialisers of a body."""
    return [list(tensor.dims) for tensor in graph.initializer]


def test_layers_inside_branches_are_cut_and_both_branches_proved() -> None:
    subject = Subject(branching().model())
    assert subject.sizes == [HIDDEN, 16, 24]
    assert [proof.way for proof in subject.proof.others] == ["first branch of every If", "second branch of every If"]
    kept = {subject.atom(size).dim: np.arange(0, size, 2) for size in subject.sizes}
    assert subject.failures(kept) == []
    made = subject.pruned(kept).inline()
    assert weights(body(made, "choice", 0)) == [[16, 8], [8, OUTPUTS]]
    assert weights(body(made, "choice", 1)) == [[16, 12], [12, OUTPUTS]]


def test_a_body_that_is_not_cut_stays_byte_for_byte() -> None:
    """Only one branch has a layer of 24: the other, and whatever it holds that nobody knows, is as it was."""
    model = branching().model()
    then = body(model, "choice", 0)
    then.doc_string = "about the branch"
    then.node[0].metadata_props.add(key="who", value="knows")
    then.MergeFromString(b"\xaa\x38\x03abc")
    subject = Subject(model)
    made = subject.pruned(size_24=[0, 5, 7]).inline()
    assert body(made, "choice", 0).SerializeToString() == then.SerializeToString()
    assert weights(body(made, "choice", 1)) == [[HIDDEN, 3], [3, OUTPUTS]]


def test_a_wrong_cut_in_the_branch_that_is_not_taken_fails_the_proof() -> None:
    """On the inputs tried one branch runs by itself; positions of the other that are out of order show all the same."""
    subject = Subject(branching().model())
    for size in (16, 24):
        assert subject.scrambled(subject.atom(size), 1e-3) > 1e-3
    natural = subject.proof
    natural.others = []
    assert min(subject.scrambled(subject.atom(size), 1e-3) for size in (16, 24)) == 0


def test_the_dearer_branch_and_every_iteration_count() -> None:
    model = format_.read(branching().model())
    macs = CostModel(analyse(model.graph)).macs({})
    batch = model.graph.example["N"]
    assert macs == batch * (FEATURES * HIDDEN + HIDDEN * 24 + 24 * OUTPUTS)

    first = branching().model()
    choice = next(node for node in first.graph.node if node.name == "choice")
    first.graph.initializer.append(onnx.numpy_helper.from_array(np.array([True]), "always"))
    choice.input[0] = "always"
    macs = CostModel(analyse(format_.read(first).graph)).macs({})
    assert macs == batch * (FEATURES * HIDDEN + HIDDEN * 16 + 16 * OUTPUTS), "the other one never runs"

    net, inside = Net(), None
    x = net.op("MatMul", net.input(1, FEATURES), net.weight(FEATURES, HIDDEN, fan=FEATURES))
    inside = Body(net)
    inside.given(INT64, [])
    go = inside.op("Identity", inside.given(BOOL, []))
    state = inside.op("Tanh", inside.op("MatMul", inside.given(), inside.weight(HIDDEN, HIDDEN, fan=HIDDEN)))
    graph = inside.graph(go, state, condition=True)
    net.output(net.op("Loop", net.const(5), net.const(True, np.bool_), x, body=graph))
    assert CostModel(analyse(format_.read(net.model()).graph)).macs({}) == FEATURES * HIDDEN + 5 * HIDDEN * HIDDEN


def test_scores_that_need_gradients_say_that_a_body_has_none() -> None:
    pytest.importorskip("torch")
    data = [{"input_1": np.ones((2, FEATURES), np.float32)}]
    with pytest.raises(UsageError, match="no gradient is known of If"):
        graphprune.prune(branching().model(), keep=0.5, score="taylor", calib=data)


def test_data_change_no_weight_inside_a_body() -> None:
    data = [{"input_1": np.random.default_rng(0).standard_normal((64, FEATURES)).astype(np.float32)}]
    model = branching().model()
    result = graphprune.prune(model, keep=0.5, multiple=1, score="obs", calib=data, timing=False)
    assert result.report.verified
    then, cut = body(model, "choice", 0), body(result.model, "choice", 0)
    kept = {cutting.size: list(cutting.keep) for cutting in result.plan.cuts}
    whole = numpy_helper.to_array(then.initializer[0])
    assert np.array_equal(numpy_helper.to_array(cut.initializer[0]), whole[np.ix_(kept[HIDDEN], kept[16])])


# Local functions.


def calling() -> onnx.ModelProto:
    """Two layers, each a call that is handed its weights; between them a call with sizes of its own inside."""
    net = Net(opset=18)
    layer = helper.make_function(
        "my",
        "Layer",
        ["x", "w"],
        ["y"],
        [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("LeakyRelu", ["t"], ["y"])],
        [helper.make_opsetid("", 18)],
        attribute_protos=[helper.make_attribute("slope", 0.4)],
    )
    slope = onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    layer.node[1].attribute.append(slope)
    shapes = [numpy_helper.from_array(np.array(shape)) for shape in ([0, 4, 6], [0, 24])]
    fold = helper.make_function(
        "my",
        "Fold",
        ["x"],
        ["y"],
        [
            helper.make_node("Constant", [], ["heads"], value=shapes[0]),
            helper.make_node("Constant", [], ["flat"], value=shapes[1]),
            helper.make_node("Reshape", ["x", "heads"], ["split"]),
            helper.make_node("Softmax", ["split"], ["mixed"], axis=-1),
            helper.make_node("Reshape", ["mixed", "flat"], ["y"]),
        ],
        [helper.make_opsetid("", 18)],
    )
    x = net.input("N", FEATURES)
    for rows, columns in ((FEATURES, HIDDEN), (HIDDEN, 24)):
        x = net.op("Layer", x, net.weight(rows, columns, fan=rows), domain="my")
    net.output(net.op("Layer", net.op("Fold", x, domain="my"), net.weight(24, OUTPUTS, fan=24), domain="my"))
    net.infos.append(helper.make_tensor_value_info(net.outputs[0], FLOAT, ["N", OUTPUTS]))
    model = net.model()
    model.functions.extend([layer, fold])
    return model


def test_calls_stay_where_nothing_in_their_functions_changes() -> None:
    model = calling()
    result = graphprune.prune(model, keep=0.5, multiple=1, include=("constant_2",), timing=False)
    assert result.report.verified
    assert [cut.size for cut in result.plan.cuts] == [HIDDEN]
    assert [node.op_type for node in result.model.graph.node] == [node.op_type for node in model.graph.node]
    assert list(result.model.functions) == list(model.functions)
    assert not any("function" in note for note in result.report.notes)


def test_calls_are_spelled_out_where_a_size_inside_changes() -> None:
    result = graphprune.prune(calling(), keep=0.5, multiple=1, allow="all", timing=False)
    assert result.report.verified
    assert not result.model.functions
    assert any("model-local functions" in note and "Layer, Fold" in note for note in result.report.notes)


def test_a_plan_without_cuts_gives_back_the_calls() -> None:
    model = calling()
    read = format_.read(model)
    assert format_.apply(read, analyse(read.graph), {}).inline().SerializeToString() == model.SerializeToString()


def test_spelled_out_calls_compute_the_same() -> None:
    """Attributes that a call leaves to their defaults included, which onnx's inliner forgets."""
    import onnxruntime

    model = calling()
    spelled = format_.read(model).proto
    assert not spelled.functions
    feeds = {"input_1": np.random.default_rng(0).standard_normal((3, FEATURES)).astype(np.float32)}
    runs = [onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds)[0] for m in (model, spelled)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-6)


# Weights that are inputs.


@pytest.mark.parametrize(("version", "cut"), [(3, True), (10, False)])
def test_weights_that_callers_may_give_are_cut_on_request(version: int, cut: bool) -> None:
    """Before version 4 of the format every weight was listed as an input; since then such a weight is a default."""
    net = Net(opset=9)
    x = net.op("Tanh", net.op("MatMul", net.input("N", FEATURES), net.weight(FEATURES, HIDDEN, fan=FEATURES)))
    net.output(net.op("MatMul", x, net.weight(HIDDEN, OUTPUTS, fan=HIDDEN)))
    model = net.model()
    model.ir_version = version
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result = graphprune.prune(model, keep=0.5, timing=False)
    assert bool(result.plan.cuts) == cut
    assert any("--allow defaults" in note for note in result.report.notes) != cut
    allowed = graphprune.prune(model, keep=0.5, allow="defaults", timing=False)
    assert allowed.report.verified
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in allowed.model.graph.input}
    assert all(shapes[tensor.name] == list(tensor.dims) for tensor in allowed.model.graph.initializer)
    assert any("changed shape" in note for note in allowed.report.notes) != cut


# Narrow types.

FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
QUANTISED = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN)
KEPT = [0, 3, 4, 7, 9]


@pytest.mark.parametrize("kind", [*FLOATS, *QUANTISED], ids=TensorProto.DataType.Name)
def test_weights_are_cut_as_they_are_stored(kind: int) -> None:
    """An odd number of columns, so that halves of bytes move."""
    random, dtype = np.random.default_rng(0), helper.tensor_dtype_to_np_dtype(kind)
    whole = {name: (random.uniform(0, 8, shape)).astype(dtype) for name, shape in (("a", (6, 10)), ("b", (10, 4)))}
    tensors, nodes, read = [numpy_helper.from_array(value, name) for name, value in whole.items()], [], ["a", "b"]
    if kind in QUANTISED:
        tensors += [numpy_helper.from_array(random.uniform(0.1, 1, n).astype(np.float32), f"s{n}") for n in (10, 4)]
        for name, scale in (("a", "s10"), ("b", "s4")):
            nodes.append(helper.make_node("DequantizeLinear", [name, scale], [f"{name}/float"], axis=1))
        read = ["a/float", "b/float"]
    nodes += [helper.make_node("MatMul", ["x", read[0]], ["h"]), helper.make_node("MatMul", ["h", read[1]], ["y"])]
    ends = [
        helper.make_tensor_value_info(n, kind if kind in FLOATS else FLOAT, s)
        for n, s in (("x", (2, 6)), ("y", (2, 4)))
    ]
    graph = helper.make_graph(nodes, "narrow", ends[:1], ends[1:], tensors)
    model = format_.read(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    analysis = analyse(model.graph)
    (atom,) = analysis.prunable
    made = format_.apply(model, analysis, {atom.dim: np.array(KEPT)}).inline()
    onnx.checker.check_model(made)
    stored = {tensor.name: tensor for tensor in made.graph.initializer}
    assert {stored[name].data_type for name in whole} == {kind}
    assert np.array_equal(numpy_helper.to_array(stored["a"]), whole["a"][:, KEPT])
    assert np.array_equal(numpy_helper.to_array(stored["b"]), whole["b"][KEPT])


# Dead ends.


def test_a_branch_that_nobody_reads_is_cut_along_and_holds_nobody_up() -> None:
    net = Net()
    x = net.op("Tanh", net.op("MatMul", net.input(2, FEATURES), net.weight(FEATURES, HIDDEN, fan=FEATURES)))
    net.op("MatMul", x, net.weight(HIDDEN, 9, fan=HIDDEN))
    net.output(net.op("MatMul", x, net.weight(HIDDEN, OUTPUTS, fan=HIDDEN)))
    subject = Subject(net.model())
    assert HIDDEN in subject.sizes
    assert subject.failures() == []


def test_sequences_and_optional_values_freeze_what_they_hold_and_nothing_else() -> None:
    net = Net()
    x = net.op("MatMul", net.input(2, FEATURES), net.weight(FEATURES, 9, fan=FEATURES))
    y = net.op("SequenceAt", net.op("SequenceConstruct", x, net.op("Tanh", x)), net.const(1))
    y = net.op("OptionalGetElement", net.op("Optional", y))
    hidden = net.op("Tanh", net.op("MatMul", y, net.weight(9, 7, fan=9)))
    net.output(net.op("MatMul", hidden, net.weight(7, OUTPUTS, fan=7)))
    subject = Subject(net.model())
    assert subject.sizes == [7]
    assert any("sequences and optional values" in str(atom.reason) for atom in subject.analysis.frozen)
    assert subject.failures() == []


def test_a_body_that_reads_dequantised_values_through_a_reshape_does_not_take_the_process_down() -> None:
    """ONNX Runtime moves the dequantising over the reshape, and looks for an input of the node that reads the value."""
    net = Net()
    x = net.op("MatMul", net.input("N", FEATURES), net.weight(FEATURES, HIDDEN, fan=FEATURES))
    scale = [net.const(0.05, np.float32), net.const(100, np.uint8)]
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", x, *scale), *scale)
    x = net.op("Reshape", x, net.const([-1, HIDDEN]))
    body = Body(net)
    _, yes, y = body.given(INT64, []), body.given(BOOL, []), body.given()
    ends = body.op("Identity", yes), body.op("Tanh", body.op("Add", y, x))
    loop = net.op("Loop", net.const(2, np.int64), net.const(True, np.bool_), x, body=body.graph(*ends, condition=True))
    net.output(net.op("MatMul", loop, net.weight(HIDDEN, OUTPUTS, fan=HIDDEN)))
    assert Subject(net.model()).format is format_
