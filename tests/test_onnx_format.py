"""The ONNX format: shapes by inference and by probing, every place a weight can be in, dynamic axes, large files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune
from graphprune.analysis import Analysis, analyse
from graphprune.cost import CostModel
from graphprune.errors import UsageError, VerifyError
from graphprune.formats import onnx as format_
from graphprune.formats.onnx import view
from graphprune.formats.onnx.probe import probe
from graphprune.formats.onnx.runtime import PATIENCE, first_line
from graphprune.verify import difference, moved
from models import digits, real
from models.light import light
from tests.build import Net
from tests.command import contents

FLOAT = TensorProto.FLOAT
Feeds = dict[str, npt.NDArray[Any]]


def run(model: onnx.ModelProto, feeds: Feeds) -> list[npt.NDArray[Any]]:
    """The outputs of a model on ``feeds``."""
    return list(format_.run(format_.OnnxModel(model))(feeds).values())


def sizes(analysis: Analysis) -> list[int]:
    """Sizes of the prunable Dims."""
    return sorted(atom.size for atom in analysis.prunable)


def frozen(analysis: Analysis, size: int) -> set[str]:
    """Why the frozen Dims of this size are whole."""
    return {str(atom.reason) for atom in analysis.frozen if atom.size == size}


def masked(model: onnx.ModelProto, weights: dict[str, tuple[int, Sequence[int]]]) -> onnx.ModelProto:
    """The model with zeros in weight ``name`` at all positions of ``axis`` but the ones kept."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name in weights:
            axis, kept = weights[tensor.name]
            data = np.zeros_like(numpy_helper.to_array(tensor))
            index = (slice(None),) * axis + (list(kept),)
            data[index] = numpy_helper.to_array(tensor)[index]
            tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))
    return made


# Shapes.


def typed(net: Net, *shape: int | str) -> onnx.ModelProto:
    """The model, with the type of its output said where inference does not find it."""
    model = net.model()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, FLOAT, shape))
    return model


def contrib() -> tuple[onnx.ModelProto, dict[str, str]]:
    """x [rows, 8] through a layer of 64, an op of ONNX Runtime's own (distances to 24 centres), a layer of 40."""
    net = Net()
    net.domains.append("com.microsoft")
    x = net.input("rows", 8)
    hidden = net.op("Tanh", net.op("MatMul", x, net.weight(8, 64, fan=8)))
    distance = net.op("CDist", hidden, net.weight(24, 64), domain="com.microsoft", metric="euclidean")
    inner = net.op("Tanh", net.op("MatMul", distance, net.weight(24, 40, fan=24)))
    net.output(net.op("MatMul", inner, net.weight(40, 3, fan=40)))
    return typed(net, "rows", 3), {"hidden": hidden, "distance": distance, "inner": inner}


def test_probing_fills_what_inference_leaves_open() -> None:
    proto, names = contrib()
    model = format_.read(proto)
    inferred = onnx.shape_inference.infer_shapes(model.proto).graph.value_info
    assert names["distance"] not in {info.name for info in inferred}, "inference knows it: the test needs another op"
    assert {name: model.graph.shape(value) for name, value in names.items()} == {
        "hidden": ("rows", 64),
        "distance": ("rows", 24),
        "inner": ("rows", 40),
    }


def test_other_weights_leave_shapes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is not run for them again; where a bias was added it is. Attributes are those of the new weights."""
    net = Net()
    weight = net.op("Constant", value=numpy_helper.from_array(np.ones((8, 6), np.float32)))
    net.output(net.op("MatMul", net.op("Expand", net.input("rows", 8), net.const(np.array([1, 8]), np.int64)), weight))
    model = format_.read(net.model())
    graph, runs = model.graph, list[object]()
    product = next(node for node in graph.nodes if node.op == "matmul")

    def counted(*args: Any) -> dict[str, int]:
        runs.append(args)
        return probe(*args)

    monkeypatch.setattr(view, "probe", counted)
    twos = np.full((8, 6), 2, np.float32)
    other = format_.replaced(model, {product.inputs[1]: twos}, {})
    assert (other.graph.values, other.graph.example) == (graph.values, graph.example)
    assert np.array_equal(other.graph.weights[product.inputs[1]].load(), twos)
    for node in other.graph.nodes:
        if node.kind == "Constant" and node.outputs[0] == product.inputs[1]:
            assert np.array_equal(node.attrs["value"], twos)
    assert not runs
    assert format_.replaced(model, {}, {product.outputs[0]: np.ones(6, np.float32)}).graph.shape(product.outputs[0])
    format_.give(other, {graph.inputs[0]: np.ones((5, 8), np.float32)})
    assert other.graph.example["rows"] == 5
    assert len(runs) == 2


def test_an_op_that_only_the_runtime_knows_is_frozen_and_its_neighbours_are_not() -> None:
    proto, names = contrib()
    analysis = analyse(format_.read(proto).graph)
    assert sizes(analysis) == [40]
    why = {f"there is no rule for CDist (node {names['distance']})"}
    assert frozen(analysis, 64) == frozen(analysis, 24) == why
    result = graphprune.prune(proto, keep=0.5)
    assert result.report.verified
    assert [len(cut.keep) for cut in result.plan.cuts] == [24]


def test_an_op_that_the_runtime_knows_earlier_than_the_standard() -> None:
    """ONNX Runtime's optimisers put LayerNormalization, of opset 17, into files of any opset."""
    net = Net(opset=17)
    hidden = net.op("MatMul", net.input("rows", 8), net.weight(8, 32, fan=8))
    normal = net.op("LayerNormalization", hidden, net.weight(32), net.weight(32))
    net.output(net.op("MatMul", normal, net.weight(32, 3, fan=32)))
    proto = net.model()
    proto.opset_import[0].version = 13
    result = graphprune.prune(proto, keep=0.5, allow="all")
    assert result.report.verified
    assert [len(cut.keep) for cut in result.plan.cuts] == [16]
    assert {node.domain for node in result.model.graph.node} == {""}


def test_weights_that_no_node_of_the_graph_reads() -> None:
    """One is read in the bodies of an If alone, one is an output of the model and nothing else."""
    net = Net()
    x, weight = net.input("batch", 8), net.weight(8)
    nodes = [helper.make_node(kind, [weight], [kind]) for kind in ("Identity", "Neg")]
    bodies = [
        helper.make_graph([node], node.op_type, [], [helper.make_tensor_value_info(node.op_type, FLOAT, [8])])
        for node in nodes
    ]
    chosen = net.op("If", net.const(True, bool), then_branch=bodies[0], else_branch=bodies[1])
    net.output(net.op("Add", x, chosen))
    proto = net.model()
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "kept"))
    proto.graph.output.append(helper.make_tensor_value_info("kept", FLOAT, [4]))
    analysis = analyse(format_.read(proto).graph)
    assert frozen(analysis, 8) == {"it is the shape of an input of the model, 'input_1'"}
    assert not frozen(analysis, 4)


def test_axes_that_only_a_run_tells_apart() -> None:
    """An axis that follows an input gets the input's symbol; one that follows a product of two gets its own."""
    net = Net()
    net.domains.append("com.microsoft")
    x = net.input("batch", "length", 8)
    flat = net.op("Reshape", x, net.const([-1, 8]))
    far = net.op("CDist", flat, net.weight(24, 8), domain="com.microsoft", metric="euclidean")
    turned = net.op("Transpose", x, perm=[1, 0, 2])
    first = net.op("Squeeze", net.op("Slice", turned, net.const([0]), net.const([1])), net.const([0]))
    near = net.op("CDist", first, net.weight(24, 8), domain="com.microsoft", metric="euclidean")
    net.output(net.op("Add", net.op("ReduceSum", far, keepdims=0), net.op("ReduceSum", near, keepdims=0)))
    graph = format_.read(typed(net)).graph
    assert graph.shape(near) == ("batch", 24)
    shape = graph.shape(far)
    assert shape is not None
    assert shape[1] == 24
    assert isinstance(shape[0], str)
    assert shape[0] not in ("batch", "length")
    assert graph.extent(shape[0]) == graph.extent("batch") * graph.extent("length")


def test_shapes_without_a_run() -> None:
    """Where inference finds everything nothing is run, and an op nobody can run leaves its shape unknown."""
    model, names = contrib()
    node = next(node for node in model.graph.node if node.op_type == "CDist")
    node.op_type, node.domain = "Frob", "nobody.knows"
    model.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    graph = format_.read(model).graph
    assert graph.shape(names["hidden"]) == ("rows", 64)
    assert graph.shape(names["distance"]) is None
    assert not analyse(graph).prunable


def test_inputs_that_a_model_takes() -> None:
    """Integers stay within the table they index, masks are ones, symbols of one name have one size."""
    net = Net()
    ids, mask = (
        net.input("batch", "length", dtype=TensorProto.INT64),
        net.input("batch", "length", dtype=TensorProto.INT64),
    )
    net.inputs[1].name = mask = "attention_mask"
    rows = net.op("Gather", net.weight(5, 16), ids)
    scaled = net.op("Mul", rows, net.op("Cast", net.op("Unsqueeze", mask, net.const([2])), to=FLOAT))
    net.output(net.op("MatMul", scaled, net.weight(16, 3)))
    model = format_.read(net.model())
    trials = format_.trials(model, format_.run(model))
    assert len(trials) == 2
    assert trials[0][0].keys() == {"batch", "length"}
    assert all(trials[0][0][name] != trials[1][0][name] for name in ("batch", "length"))
    for found, feeds in trials:
        assert feeds[ids].shape == feeds[mask].shape == (found["batch"], found["length"])
        assert feeds[ids].min() >= 0
        assert feeds[ids].max() < 5
        assert np.array_equal(feeds[mask], np.ones_like(feeds[mask]))
    assert feeds[ids].max() > 1


def test_model_that_runs_at_no_size() -> None:
    net = Net()
    net.output(net.op("Reshape", net.input("rows", 8), net.const([5, 7])))
    model = format_.read(net.model())
    with pytest.raises(VerifyError, match="runs at none of the input sizes tried"):
        format_.trials(model, format_.run(model))


def test_the_search_for_sizes_ends() -> None:
    """Four axes that hang together in no way have hundreds of sizes to try, the last of them large."""
    net = Net()
    net.output(net.op("Relu", net.input("rows", "a", "b", "c", "d")))
    made = []

    def refuses(feeds: Mapping[str, Any]) -> dict[str, Any]:
        made.append(sum(value.size for value in feeds.values()))
        assert sum(made[:-1]) <= PATIENCE
        raise VerifyError("not at these sizes")

    with pytest.raises(VerifyError, match="runs at none of the input sizes tried: not at these sizes"):
        format_.trials(format_.read(net.model()), refuses)
    assert len(made) > 5


def test_the_search_for_sizes_ends_with_those_of_a_deep_cache() -> None:
    """The keys and values of thirty layers are many numbers: which axis is a sum of others comes before odd sizes."""
    net = Net()
    ids, mask = net.input("batch", "new"), net.input("batch", "all")
    past = [net.input("batch", 3, "past", 64) for _ in range(60)]
    for value in (ids, mask, *past):
        net.output(net.op("Relu", value))

    def decoder(feeds: Mapping[str, Any]) -> dict[str, Any]:
        if feeds[mask].shape[1] != feeds[ids].shape[1] + feeds[past[0]].shape[2]:
            raise VerifyError("not at these sizes")
        return {}

    found = format_.trials(format_.read(net.model()), decoder)
    assert [sizes["all"] - sizes["new"] - sizes["past"] for sizes, _ in found] == [0, 0]


def test_inputs_given_are_used_everywhere() -> None:
    images = digits.split()[2][:7]
    loaded = graphprune.load(digits.PATH, inputs={"image": images.astype(np.float64)})
    (trial,) = format_.trials(loaded.model, format_.run(loaded.model))
    assert trial[0] == {"batch": 7}
    assert trial[1]["image"].dtype == np.float32
    assert np.array_equal(trial[1]["image"], images)
    one = graphprune.load(digits.PATH, inputs={"image": images[:1]})
    assert CostModel(loaded.analysis).macs({}) == 7 * CostModel(one.analysis).macs({}) > 0


def test_words_of_the_runtime_are_cut_to_what_they_say() -> None:
    place = "[ONNXRuntimeError] : 1 : FAIL : /src/model.cc:256 void f(std::function<int(int)>, g&&) Unsupported (9)."
    assert first_line(RuntimeError(place)) == "Unsupported (9)."
    assert first_line(RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got 3 for x\nmore")) == "Got 3 for x"
    assert first_line(RuntimeError("")) == "RuntimeError"
    assert len(first_line(RuntimeError("a" * 999))) == 300


# Where weights are.


def test_initialisers_that_an_exporter_merged() -> None:
    """One zero bias serves two layers of one width; they are cut apart all the same, and the original stays if read."""
    net = Net()
    x, bias = net.input("rows", 8), net.weight(64)
    first = net.op("Relu", net.op("Gemm", x, net.weight(8, 64), bias))
    second = net.op("Relu", net.op("Gemm", net.op("MatMul", first, net.weight(64, 8)), net.weight(8, 64), bias))
    net.output(net.op("Add", net.op("MatMul", second, net.weight(64, 3)), net.op("MatMul", first, net.weight(64, 3))))
    proto = net.model()
    loaded = graphprune.load(proto)
    assert sizes(loaded.analysis) == [8, 64, 64]
    plan = loaded.plan(graphprune.Request(keep=0.5, multiple=1, include=(loaded.analysis.prunable[0].name,)))
    assert len(plan.cuts) == 1
    made = loaded.apply(plan)
    assert made.report.verified
    biases = [tuple(loaded.format.read(made.model).graph.shape(node.input[2]) or ()) for node in gemms(made.model)]
    assert sorted(biases) == [(32,), (64,)]
    both = loaded.apply(loaded.plan(graphprune.Request(keep=0.25, multiple=1)))
    assert both.report.verified
    first_bias, second_bias = (numpy_of(both.model, node.input[2]) for node in gemms(both.model))
    assert len(first_bias) == len(second_bias) == 16
    assert not np.array_equal(first_bias, second_bias), "each layer keeps positions of its own"


def gemms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Gemm"]


def numpy_of(model: onnx.ModelProto, name: str) -> npt.NDArray[Any]:
    return format_.read(model).graph.weights[name].load()


def test_weights_listed_as_inputs(tmp_path: Path) -> None:
    """IR version 3: every initialiser is an input too. Only the image is fed, and the list follows the cut."""
    path = light("shufflenet", weights_as_inputs=True)
    loaded = graphprune.load(path)
    assert loaded.model.proto.ir_version == 3
    assert len(loaded.analysis.graph.inputs) == 1
    result = loaded.apply(loaded.plan(graphprune.Request(keep=0.5)))
    assert result.report.verified
    result.save(tmp_path / "small.onnx")
    made = onnx.load(tmp_path / "small.onnx")
    assert made.ir_version == 3
    weights = {tensor.name: list(tensor.dims) for tensor in made.graph.initializer}
    listed = {
        i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in made.graph.input if i.name in weights
    }
    assert listed == weights
    assert sum(np.prod(dims) for dims in weights.values()) < 0.6 * result.report.dense.params


CONSTANTS: dict[str, dict[str, Any]] = {
    "value": {"value": numpy_helper.from_array(np.linspace(-1, 1, 64, dtype=np.float32), "inside")},
    "value_floats": {"value_floats": np.linspace(-1, 1, 64).tolist()},
}


@pytest.mark.parametrize("kind", CONSTANTS)
@pytest.mark.parametrize("readers", [1, 2])
def test_weights_in_constant_nodes(kind: str, readers: int) -> None:
    net = Net()
    scale = net.op("Constant", **CONSTANTS[kind])
    x, total = net.input("rows", 8), ""
    for _ in range(readers):
        scaled = net.op("Mul", net.op("MatMul", x, net.weight(8, 64)), scale)
        y = net.op("MatMul", net.op("Relu", scaled), net.weight(64, 3))
        total = net.op("Add", total, y) if total else y
    net.output(total)
    proto = net.model()
    loaded = graphprune.load(proto)
    assert sizes(loaded.analysis) == [64] * readers
    result = loaded.apply(loaded.plan(graphprune.Request(keep=0.5)))
    assert result.report.verified
    graph = format_.read(result.model).graph
    read = [graph.weights[node.inputs[1]].load() for node in graph.nodes if node.op == "mul"]
    assert [len(values) for values in read] == [32] * readers
    for cut, values in zip(result.plan.cuts, read, strict=True):
        assert np.array_equal(values, np.linspace(-1, 1, 64, dtype=np.float32)[list(cut.keep)])


def test_single_numbers_in_constant_nodes() -> None:
    """value_float, value_int and value_ints are known where axes and sizes depend on them."""
    net = Net()
    hidden = net.op("MatMul", net.input("rows", 8), net.weight(8, 64))
    scaled = net.op("Mul", hidden, net.op("Constant", value_float=0.5))
    shaped = net.op("Reshape", scaled, net.op("Constant", value_ints=[0, 4, 16]))
    shifted = net.op("Unsqueeze", shaped, net.op("Unsqueeze", net.op("Constant", value_int=1), net.const([0])))
    flat = net.op("Reshape", shifted, net.op("Constant", value_ints=[0, 64]))
    net.output(net.op("MatMul", flat, net.weight(64, 3)))
    loaded = graphprune.load(net.model())
    assert sizes(loaded.analysis) == [4, 16]
    assert loaded.apply(loaded.plan(graphprune.Request(keep=0.5, multiple=1, allow=("all",)))).report.verified


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.FLOAT])
@pytest.mark.parametrize("raw", [True, False])
def test_element_types(dtype: int, raw: bool) -> None:
    """A weight keeps its type and its values, whether its bytes are raw or in the typed fields of older writers."""
    net = Net()
    hidden = net.op("MatMul", net.input(2, 8), net.op("Cast", "w", to=FLOAT))
    net.output(net.op("MatMul", net.op("Relu", hidden), net.weight(64, 3)))
    values = np.random.default_rng(0).standard_normal((8, 64))
    typed = helper.make_tensor("w", dtype, [8, 64], values.ravel().tolist())
    dense = numpy_helper.to_array(typed)
    net.weights.append(numpy_helper.from_array(dense, "w") if raw else typed)
    result = graphprune.prune(net.model(), keep=0.5)
    assert result.report.verified
    (cut,) = result.plan.cuts
    made = next(tensor for tensor in result.model.graph.initializer if tensor.name == "w")
    assert made.data_type == dtype
    assert np.array_equal(numpy_helper.to_array(made), dense[:, list(cut.keep)])


def test_words_as_weights() -> None:
    """A layer that tells words apart by a list of them: the list is cut with the Dim."""
    words = np.array([f"word {i}" for i in range(64)], dtype=object)
    net = Net()
    net.weights.append(numpy_helper.from_array(words, "words"))
    hidden = net.op("Cast", net.op("Equal", net.input("rows", 1, dtype=TensorProto.STRING), "words"), to=FLOAT)
    net.output(net.op("MatMul", hidden, net.weight(64, 3)))
    result = graphprune.prune(net.model(), keep=0.5, verify="structure")
    (cut,) = result.plan.cuts
    made = next(tensor for tensor in result.model.graph.initializer if tensor.name == "words")
    assert numpy_helper.to_array(made).tolist() == words[list(cut.keep)].tolist()


def test_a_model_in_memory_is_not_changed() -> None:
    proto = onnx.load(digits.PATH)
    before = proto.SerializeToString()
    result = graphprune.prune(proto, keep=0.5)
    assert proto.SerializeToString() == before
    assert result.model.SerializeToString() == graphprune.prune(digits.PATH, keep=0.5).model.SerializeToString()
    assert len(result.model.SerializeToString()) < 0.4 * len(before)
    again = graphprune.prune(result.model, keep=0.5)
    assert again.report.dense == result.report.pruned


# Axes that stay dynamic, and sizes that are computed.


@pytest.mark.parametrize(
    ("load", "shapes"),
    [
        (lambda: digits.PATH, [{"image": (1, 1, 8, 8)}, {"image": (17, 1, 8, 8)}]),
        (real.ocr_cls, [{"x": (1, 3, 48, 192)}, {"x": (5, 3, 48, 192)}]),
        (real.ocr_rec, [{"x": (1, 3, 48, 200)}, {"x": (3, 3, 48, 328)}]),
        (real.mobilenet_v2, [{"image": (1, 3, 224, 224)}]),
    ],
)
def test_image_axes_stay_dynamic(load: Callable[[], Path], shapes: list[dict[str, tuple[int, ...]]]) -> None:
    """The written file runs at sizes that nothing was probed at, with outputs of the same shape as before."""
    dense = onnx.load(load())
    result = graphprune.prune(dense, keep=0.5, verify="none")
    assert list(result.model.graph.output) == list(dense.graph.output)
    for shape in shapes:
        feeds = {name: np.random.default_rng(0).random(size, dtype=np.float32) for name, size in shape.items()}
        outputs = [run(model, feeds) for model in (dense, result.model)]
        assert [value.shape for value in outputs[0]] == [value.shape for value in outputs[1]]


def test_batch_and_sequence_stay_dynamic() -> None:
    dense = onnx.load(real.llama_tiny())
    result = graphprune.prune(dense, keep=0.5, allow=["all"], multiple=1, verify="none")
    for batch, length in ((1, 1), (1, 37), (5, 3), (7, 11)):
        ids = np.arange(batch * length).reshape(batch, length) % 97
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        assert run(result.model, feeds)[0].shape == run(dense, feeds)[0].shape == (batch, length, 97)


def computed() -> tuple[onnx.ModelProto, dict[str, str]]:
    """Heads told apart and joined again by shapes that the model computes from its input when it runs."""
    net = Net()
    x, one = net.input("batch", "length", 8), net.const([1])
    lengths = [net.op("Gather", net.op("Shape", x), net.const([i])) for i in (0, 1)]
    w, scale = net.weight(8, 24, fan=8), net.weight(24, fan=1)
    wide = net.op("MatMul", x, w)
    split = net.op("Concat", *lengths, net.const([4]), net.const([6]), axis=0)
    heads = net.op("Transpose", net.op("Reshape", wide, split), perm=[0, 2, 1, 3])
    bias = net.op("Reshape", scale, net.const([1, 4, 1, 6]))
    grown = net.op("Expand", bias, net.op("Concat", lengths[0], net.const([4]), lengths[1], one, axis=0))
    mixed = net.op("Tanh", net.op("Mul", heads, grown))
    joined = net.op(
        "Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.op("Concat", *lengths, net.const([24]), axis=0)
    )
    net.output(net.op("MatMul", joined, net.weight(24, 3, fan=24)))
    return net.model(), {"w": w, "scale": scale}


def test_computed_reshape_and_expand_targets() -> None:
    """Static entries are overwritten, dynamic ones go on being computed: right at sizes that nothing was probed at."""
    proto, names = computed()
    loaded = graphprune.load(proto)
    assert sizes(loaded.analysis) == [4, 6]
    result = loaded.apply(loaded.plan(graphprune.Request(keep=0.5, multiple=1, allow=("all",))))
    assert result.report.verified
    kept = {cut.positions.shape[-1]: cut.positions for cut in result.plan.cuts}
    positions = [6 * int(head) + int(i) for head in kept[2] for i in kept[3][head]]
    zeros = masked(proto, {names["w"]: (1, positions)})
    for batch, length in ((1, 1), (3, 5), (7, 2)):
        feeds = {proto.graph.input[0].name: np.random.default_rng(0).random((batch, length, 8), dtype=np.float32)}
        np.testing.assert_allclose(run(result.model, feeds)[0], run(zeros, feeds)[0], rtol=1e-4, atol=1e-6)


# Comparing, measuring, and files too large for one protobuf.


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_differences_of_outputs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the largest of the first, wherever that stands; infinite where only one of the two is."""
    monkeypatch.setattr(sys.modules["graphprune.verify"], "_BLOCK", block)
    a = np.array([[1.0, -8.0, 2.0], [0.5, np.nan, 3.0]], np.float32)
    assert difference({"y": a}, {"y": a}) == 0
    inf = np.inf
    for at, other, expected in (((1, 2), 5.0, 2 / 8), ((0, 1), 0.0, 1.0), ((1, 1), 4.0, inf), ((1, 2), inf, inf)):
        b = a.copy()
        b[at] = other
        assert difference({"y": a}, {"y": b}) == expected
    assert difference({"y": a}, {"y": a[:1]}) == inf
    assert difference({"y": a[1:, 1:2]}, {"y": a[1:, 1:2]}) == inf, "no number at all proves nothing"
    assert difference({"y": a[:0]}, {"y": a[:0]}) == 0
    x, y = np.arange(7.0), np.arange(7.0)[::-1]
    assert moved([{"y": x}], [{"y": y}]) == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x))


def test_same() -> None:
    """Nodes, wiring, metadata, types and every weight; not where the bytes lie."""
    read = format_.read
    assert format_.same(read(digits.PATH), read(onnx.load(digits.PATH)))
    changes: list[Callable[[onnx.ModelProto], object]] = [
        lambda m: m.graph.node[0].ClearField("name"),
        lambda m: m.metadata_props.add(key="a", value="b"),
        lambda m: m.graph.initializer.pop(),
        lambda m: m.graph.initializer.add(name="new", data_type=FLOAT, dims=[0], raw_data=b""),
        lambda m: setattr(m.graph.initializer[0], "doc_string", "other"),
        lambda m: m.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(
                numpy_helper.to_array(m.graph.initializer[0]) * 1.0000001, m.graph.initializer[0].name
            )
        ),
        lambda m: m.graph.initializer[0].dims.__setitem__(slice(None), [1, 24, 3, 3]),
    ]
    for change in changes:
        made = onnx.load(digits.PATH)
        change(made)
        assert not format_.same(read(digits.PATH), format_.OnnxModel(made))


def test_same_words() -> None:
    """Text has no raw bytes, and still counts."""
    models = []
    for words in (["a", "b"], ["a", "b"], ["a", "c"]):
        proto = onnx.load(digits.PATH)
        proto.graph.initializer.append(numpy_helper.from_array(np.array(words, dtype=object), "words"))
        models.append(format_.OnnxModel(proto))
    assert format_.same(models[0], models[1])
    assert not format_.same(models[0], models[2])


def test_disk_bytes(tmp_path: Path) -> None:
    """The file and the data files that it names, each once; not what else lies beside it."""
    assert format_.disk_bytes(digits.PATH) == digits.PATH.stat().st_size
    onnx.save(onnx.load(digits.PATH), tmp_path / "m.onnx", save_as_external_data=True, location="d", size_threshold=0)
    (tmp_path / "other").write_bytes(bytes(1000))
    wanted = sum((tmp_path / name).stat().st_size for name in ("m.onnx", "d"))
    assert format_.disk_bytes(tmp_path / "m.onnx") == wanted


def test_a_file_is_the_protobuf_byte_for_byte(tmp_path: Path) -> None:
    """A file is written in pieces: cut, with more than the graph in the model and fields that no version knows."""
    net = Net()
    net.output(net.op("MatMul", net.op("MatMul", net.input(2, 256), net.weight(256, 512)), net.weight(512, 256)))
    proto = net.model()
    proto.producer_name, proto.graph.doc_string = "one", "another"
    proto.metadata_props.add(key="who", value="me")
    for message in (proto, proto.graph):
        message.MergeFromString(bytes([0x98, 0xBF, 0x04, 0x07]))  # field 9203 is 7
    result = graphprune.prune(proto, keep=0.5)
    assert result.pruned.edits
    written = result.save(tmp_path / "small.onnx").read_bytes()
    assert written == result.model.SerializeToString()
    read = onnx.load_from_string(written)
    assert all(bytes([0x98, 0xBF, 0x04, 0x07]) in part.SerializeToString() for part in (read, read.graph))
    assert format_.save(format_.read(proto), tmp_path / "whole.onnx").read_bytes() == proto.SerializeToString()


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything above 10 KB is too large for one protobuf."""
    monkeypatch.setattr("graphprune.formats.onnx.model.INLINE_LIMIT", 10_000)


@pytest.mark.usefixtures("small_limit")
def test_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is verified by structure, written with its weights beside it, and is what a small one would become."""
    loaded = graphprune.load(digits.PATH)
    assert loaded.model.large
    done: list[float] = []
    result = loaded.apply(loaded.plan(graphprune.Request(keep=0.5)))
    assert [check.name for check in result.report.checks] == ["structure"]
    assert result.report.notes == ["too large to run beside its own copy: verified by structure only"]
    result.save(tmp_path / "small.onnx", done.append)
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1, abs=0.1)
    assert set(contents(tmp_path)) == {"small.onnx", "small.onnx.data"}
    assert digits.accuracy(tmp_path / "small.onnx") == digits.accuracy(result.model.SerializeToString())
    read = format_.read(tmp_path / "small.onnx")
    assert format_.same(read, result.pruned)
    monkeypatch.setattr(format_.OnnxModel, "inline", lambda model: pytest.fail("it is too large for one protobuf"))
    assert format_.trials(read, format_.run(read)), "a large model runs from a folder of its own"


@pytest.mark.usefixtures("small_limit")
def test_large_model_that_is_cut_wrongly() -> None:
    """The twin: the structural check of a large model does find a size that does not fit."""
    loaded = graphprune.load(digits.PATH)
    result = loaded.apply(loaded.plan(graphprune.Request(keep=0.5)), verify="none")
    format_.check(result.pruned)
    tensor = next(t for t in result.pruned.proto.graph.initializer if t.name == "block1.conv2.weight")
    assert list(tensor.dims) == [12, 16, 3, 3]
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((13, 16, 3, 3), np.float32), tensor.name))
    with pytest.raises(VerifyError, match="not valid ONNX"):
        format_.check(result.pruned)


def test_weights_are_read_when_they_are_needed(tmp_path: Path) -> None:
    """Reading and analysing a model leaves large external weights where they are."""
    net = Net()
    net.output(net.op("MatMul", net.op("MatMul", net.input(2, 8), net.weight(8, 2048)), net.weight(2048, 8)))
    path = tmp_path / "m.onnx"
    onnx.save(net.model(), path, save_as_external_data=True, location="d", size_threshold=0)
    loaded = graphprune.load(path)
    assert not any(tensor.HasField("raw_data") for tensor in loaded.model.proto.graph.initializer)
    plan = loaded.plan(graphprune.Request(keep=0.5))
    result = loaded.apply(plan, verify="structure")
    for model in (loaded.model, result.pruned):
        assert not any(tensor.HasField("raw_data") for tensor in model.proto.graph.initializer)
    assert [[axis for axis, _ in edit.picks] for edit in result.pruned.edits.values()] == [[1], [0]]


def test_formats_are_told_apart() -> None:
    with pytest.raises(graphprune.ReadError, match="cannot read a builtins"):
        graphprune.load(b"bytes")
    with pytest.raises(UsageError, match="the model takes"):
        graphprune.load(digits.PATH, inputs={})


def test_larger_weights_lie_beside_the_protobuf_and_are_shared(tmp_path: Path) -> None:
    """One array serves the view, every session and every copy; what is written is what was read."""
    random = np.random.default_rng(0)
    w = onnx.numpy_helper.from_array(random.standard_normal((256, 128)).astype(np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["batch", s]) for n, s in (("x", 256), ("y", 128))]
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [w])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    model = format_.read(path)
    assert not model.proto.graph.initializer[0].HasField("raw_data")
    array = model.graph.weights["w"].load()
    assert format_.run(model.copy()).weights["w"].data_ptr() == array.ctypes.data
    assert format_.save(model, tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    other = model.copy()
    other.put({"w": -array})
    feeds = {"x": np.ones((1, 256), np.float32)}
    assert np.allclose(format_.run(other)(feeds)["y"], -format_.run(model)(feeds)["y"])
    native = format_.native(model)
    native.graph.initializer[0].raw_data = (2 * array).tobytes()
    assert np.array_equal(model.graph.weights["w"].load(), 2 * array)
