"""Nothing is lost on the way through: byte for byte with an empty plan, node by node after a real cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune
from graphprune.dims import Chosen, touched
from graphprune.errors import WriteError
from graphprune.formats import onnx as format_
from graphprune.formats.onnx import OnnxModel
from models import digits, real
from models.light import light
from tests.command import command, contents, untouched

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

REAL: dict[str, Callable[[], Path]] = {
    "ocr_rec": real.ocr_rec,
    "ocr_det": real.ocr_det,
    "ocr_cls": real.ocr_cls,
    "silero_vad": real.silero_vad,
    "minilm_int8": real.minilm_int8,
    "mobilenet_v2": real.mobilenet_v2,
    "llama_tiny": real.llama_tiny,
    "digits": lambda: digits.PATH,
    "squeezenet": lambda: light("squeezenet"),
    "shufflenet, weights listed as inputs": lambda: light("shufflenet", weights_as_inputs=True),
}


def through(path: Path, out: Path) -> onnx.ModelProto:
    """The file read and saved with an empty plan."""
    model = format_.read(path)
    analysis = graphprune.analyse(model.graph)
    format_.save(format_.apply(model, analysis, {}), out)
    return onnx.load(out, load_external_data=False)


@pytest.mark.parametrize("name", REAL)
def test_empty_plan_leaves_every_byte(name: str, tmp_path: Path) -> None:
    path = REAL[name]()
    through(path, tmp_path / "out.onnx")
    before = onnx.load(path, load_external_data=False).SerializeToString(deterministic=True)
    assert (tmp_path / "out.onnx").read_bytes() == before


# A model with one of everything.


def entry(key: str, value: str = "kept") -> onnx.StringStringEntryProto:
    return onnx.StringStringEntryProto(key=key, value=value)


def value(name: str, shape: list[int | str], dtype: int = FLOAT) -> onnx.ValueInfoProto:
    """A value info with everything a value info may have."""
    info = helper.make_tensor_value_info(name, dtype, shape, doc_string=f"about {name}")
    info.metadata_props.append(entry(f"{name} meta"))
    info.type.denotation = "TENSOR"
    if shape:
        info.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    return info


def node(op: str, inputs: list[str], outputs: list[str], domain: str = "", **attrs: Any) -> onnx.NodeProto:
    """A node with everything a node may have."""
    name = f"{op} {outputs[0]}"
    made = helper.make_node(op, inputs, outputs, name=name, doc_string=f"about {name}", domain=domain, **attrs)
    made.metadata_props.extend([entry("namespace", "block/layer"), entry("", "")])
    for attribute in made.attribute:
        attribute.doc_string = f"about {attribute.name}"
    return made


def tensor(name: str, array: np.ndarray, dtype: int | None = None) -> onnx.TensorProto:
    """A tensor with documentation; with ``dtype`` in the typed fields that older writers use."""
    if dtype is None:
        made = numpy_helper.from_array(array, name)
    else:
        made = helper.make_tensor(name, dtype, array.shape, array.ravel().tolist())
    made.doc_string = f"about {name}"
    made.metadata_props.append(entry(f"{name} meta"))
    return made


def odd_weights(runnable: bool) -> list[onnx.TensorProto]:
    """One unused initialiser of every element type (that ONNX Runtime knows), as raw bytes and in typed fields."""
    made = []
    for name, dtype in TensorProto.DataType.items():
        if dtype not in (TensorProto.UNDEFINED, TensorProto.STRING) and not (runnable and name.startswith("FLOAT6")):
            numbers = np.array([0, 1, 1, 0, 1])
            made.append(helper.make_tensor(f"typed {name}", dtype, [5], numbers))
            made.append(numpy_helper.from_array(numpy_helper.to_array(made[-1]), f"raw {name}"))
    return [*made, tensor("words", np.array([["a", "bc"], ["", "déf"]], dtype=object), TensorProto.STRING)]


def branch(name: str, sign: float) -> onnx.GraphProto:
    """A body that captures x and has an initialiser, a value info and documentation of its own."""
    nodes = [
        node("Mul", ["x", f"{name} scale"], [f"{name} scaled"]),
        node("Identity", [f"{name} scaled"], [f"{name} out"]),
    ]
    scale = tensor(f"{name} scale", np.full((1,), sign, np.float32))
    infos = [value(f"{name} scaled", ["batch", 6])]
    body = helper.make_graph(nodes, name, [], [value(f"{name} out", ["batch", 6])], [scale], f"about {name}", infos)
    body.metadata_props.append(entry(f"{name} meta"))
    return body


def function() -> onnx.FunctionProto:
    """A local function with attributes, documentation and value infos."""
    inner = [node("LeakyRelu", ["a"], ["b"]), node("Identity", ["b"], ["c"])]
    inner[0].attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    made = helper.make_function(
        "local", "Leaky", ["a"], ["c"], inner, [helper.make_opsetid("", 21)], [], [helper.make_attribute("slope", 0.2)]
    )
    made.doc_string = "about Leaky"
    made.metadata_props.append(entry("Leaky meta"))
    made.value_info.append(value("b", ["batch", 6]))
    made.overload = "first"
    return made


def everything(runnable: bool = True) -> onnx.ModelProto:
    """x [batch, 6] through a layer of 64 that can be cut, an If, a local function and a sequence, with all there is."""
    rng = np.random.default_rng(0)

    def random(name: str, *shape: int) -> onnx.TensorProto:
        return tensor(name, rng.standard_normal(shape).astype(np.float32))

    weights = [random("w1", 6, 64), random("b1", 64), random("w2", 64, 6), *odd_weights(runnable)]
    call = node("Leaky", ["chosen"], ["leaked"], domain="local")
    call.overload = "first"
    nodes = [
        node("Constant", [], ["flag"], value=tensor("", np.array(True))),
        node("If", ["flag"], ["chosen"], then_branch=branch("then", 1.0), else_branch=branch("else", -1.0)),
        call,
        node("Gemm", ["leaked", "w1", "b1"], ["hidden"], alpha=0.5, beta=2.0),
        node("Softplus", ["hidden"], ["active"]),
        node("Constant", [], ["w3"], value=random("w3 inside", 64, 64)),
        node("MatMul", ["active", "w3"], ["mixed"]),
        node("MatMul", ["mixed", "w2"], ["y"]),
        node("Constant", [], ["floats"], value_floats=[1.0, 2.0]),
        node("Constant", [], ["ints"], value_ints=[1, 2]),
        node("Constant", [], ["sparse"], sparse_value=sparse("")),
        node("SequenceConstruct", ["y", "y"], ["list"]),
        node("ConcatFromSequence", ["list"], ["both"], axis=1),
    ]
    infos = [value("hidden", ["batch", 64]), value("leaked", ["batch", 6])]
    infos.append(helper.make_value_info("list", helper.make_sequence_type_proto(infos[0].type), "about list"))
    outputs = [value("y", ["batch", 6]), value("both", ["batch", 12])]
    graph = helper.make_graph(nodes, "main", [value("x", ["batch", 6])], outputs, weights, "about main", infos)
    graph.sparse_initializer.append(sparse("scattered"))
    graph.metadata_props.append(entry("graph meta"))
    note = graph.quantization_annotation.add(tensor_name="hidden")
    note.quant_parameter_tensor_names.extend(
        [entry("SCALE_TENSOR", "raw FLOAT"), entry("ZERO_POINT_TENSOR", "raw INT8")]
    )
    opsets = [helper.make_opsetid("local", 1), helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function()], ir_version=11)
    model.producer_name, model.producer_version, model.domain = "a test", "1.2.3", "org.example"
    model.model_version, model.doc_string = 7, "about the model"
    model.metadata_props.extend([entry("character", "a\nb\nc"), entry("empty", "")])
    training = model.training_info.add()
    training.algorithm.CopyFrom(helper.make_graph([node("Identity", ["w1"], ["w1 new"])], "training", [], []))
    training.update_binding.append(entry("w1", "w1 new"))
    model.configuration.add(name="two devices", num_devices=2, device=["cpu", "gpu"])
    nodes_on = graph_node(model, "MatMul mixed").device_configurations.add(configuration_id="two devices")
    nodes_on.pipeline_stage = 1
    return model


def sparse(name: str) -> onnx.SparseTensorProto:
    values = tensor(name, np.array([1.5, 2.5], np.float32))
    return helper.make_sparse_tensor(values, tensor("", np.array([1, 3])), [5])


def graph_node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = [node for node in model.graph.node if node.name == name]
    assert isinstance(found, onnx.NodeProto)
    return found


UNKNOWN = (
    b"\xa0\x38\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # field 900, a varint of 64 bits
    b"\xaa\x38\x03abc"  # field 901, bytes
    b"\xb5\x38\x01\x02\x03\x04"  # field 902, 32 bits
    b"\xb9\x38\x01\x02\x03\x04\x05\x06\x07\x08"  # field 903, 64 bits
)
"""Fields of a format that is newer than the installed onnx."""


def test_everything_is_there() -> None:
    """The model is valid, runs, can be cut, and uses every field of ONNX but those that belong elsewhere."""
    model = everything(runnable=False)
    onnx.checker.check_model(model)
    assert [atom.size for atom in graphprune.load(model).analysis.prunable] == [64, 64]
    seen: set[str] = set()

    def walk(message: object) -> None:
        for field, found in message.ListFields():  # type: ignore[attr-defined]
            seen.add(f"{type(message).__name__}.{field.name}")
            if hasattr(found, "ListFields"):
                walk(found)
            elif field.is_repeated and len(found) and hasattr(found[0], "ListFields"):
                for part in found:
                    walk(part)

    walk(model)
    kinds = (
        onnx.ModelProto, onnx.GraphProto, onnx.NodeProto, onnx.TensorProto, onnx.ValueInfoProto, onnx.FunctionProto,
        onnx.SparseTensorProto, onnx.TensorAnnotation, onnx.TrainingInfoProto,
    )  # fmt: skip
    every = {f"{kind.__name__}.{field.name}" for kind in kinds for field in kind.DESCRIPTOR.fields}
    elsewhere = {"TensorProto.external_data", "TensorProto.data_location", "TensorProto.segment"}
    elsewhere |= {"TrainingInfoProto.initialization", "TrainingInfoProto.initialization_binding"}
    assert every - seen - elsewhere == {"FunctionProto.attribute"}  # attribute_proto holds what has a default


def test_one_of_everything_survives(tmp_path: Path) -> None:
    model = everything(runnable=False)
    for part in (model, model.graph, model.graph.node[3], model.graph.initializer[0], model.graph.node[3].attribute[0]):
        part.MergeFromString(UNKNOWN)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    assert path.read_bytes().count(UNKNOWN) == 5
    through(path, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_the_library_that_edits_would_not_keep_it() -> None:
    """The twin: a round trip through onnx-graphsurgeon loses what the test above holds to."""
    model = everything()
    made = gs.export_onnx(gs.import_onnx(model), do_type_check=False)
    assert made != model
    assert not made.metadata_props
    assert not made.graph.node[0].doc_string


# After a cut.


def nodes_concerned(model: OnnxModel, analysis: graphprune.Analysis, chosen: Chosen) -> set[str]:
    """First outputs of the nodes with an operand that carries a cut atom, and of constants that hold one."""
    facts, found = analysis.facts, set()
    for one in analysis.graph.nodes:
        layouts = [facts.private.get((one.index, i), facts.layouts.get(name)) for i, name in enumerate(one.inputs)]
        layouts += [facts.layouts.get(name) for name in one.outputs]
        if any(touched(dim, chosen) for layout in layouts if layout for dim in layout):
            found |= {one.outputs[0], *one.inputs}
    return found


def compare(before: onnx.ModelProto, after: onnx.ModelProto, concerned: set[str]) -> dict[str, list[str]]:
    """What differs between two models: names of nodes, weights and value infos, and the attributes of each node."""
    bare = [onnx.ModelProto.FromString(model.SerializeToString()) for model in (before, after)]
    for model in bare:
        for field in ("node", "initializer", "value_info", "input"):
            model.graph.ClearField(field)
    assert bare[0] == bare[1], "the model outside nodes, weights and shapes"
    changed: dict[str, list[str]] = {"nodes": [], "weights": [], "shapes": []}
    made = {one.output[0]: one for one in after.graph.node}
    old = {one.output[0] for one in before.graph.node}
    for one in before.graph.node:
        other = made.get(f"{one.output[0]}/after", made[one.output[0]])  # a Shape whose result is mended after it
        if one != other:
            assert one.output[0] in concerned, f"{one.name} carries nothing that was cut"
            compare_nodes(one, other, set(made) - old)
            changed["nodes"].append(one.output[0])
    order = [one.output[0] for one in after.graph.node if one.output[0] in old]
    assert order == [one.output[0] for one in before.graph.node]
    assert [t.name for t in after.graph.initializer] == [t.name for t in before.graph.initializer]
    for left, right in zip(before.graph.initializer, after.graph.initializer, strict=True):
        if left != right:
            assert left.name in concerned, f"{left.name} carries nothing that was cut"
            assert documentation(left) == documentation(right)
            changed["weights"].append(left.name)
    for field in ("value_info", "input"):
        for info, new in zip(getattr(before.graph, field), getattr(after.graph, field), strict=True):
            if info != new:
                assert info.name in concerned
                resized = onnx.ValueInfoProto.FromString(new.SerializeToString())
                for size, wanted in zip(
                    resized.type.tensor_type.shape.dim, info.type.tensor_type.shape.dim, strict=True
                ):
                    assert size.dim_value <= wanted.dim_value
                    size.CopyFrom(wanted)
                assert resized == info
                changed["shapes"].append(info.name)
    return changed


def compare_nodes(one: onnx.NodeProto, other: onnx.NodeProto, helpers: set[str]) -> None:
    """A node that was cut keeps everything but sizes in its attributes and inputs that were made for it."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (one, other)]
    if other.op_type == "Shape":
        kept[1].output[0] = one.output[0]
    for node in kept:
        node.ClearField("attribute")
        node.ClearField("input")
    assert kept[0] == kept[1]
    assert all(new == name or new in helpers for name, new in zip(one.input, other.input, strict=True))
    attributes = {a.name: a for a in other.attribute}
    for attribute in one.attribute:
        new = attributes[attribute.name]
        assert new.type == attribute.type
        if new != attribute:
            assert attribute.name in ("group", "value", "hidden_size", "num_heads"), attribute.name
            if attribute.name == "value":
                assert documentation(attribute.t) == documentation(new.t)


def documentation(tensor: onnx.TensorProto) -> tuple[object, ...]:
    return tensor.name, tensor.data_type, tensor.doc_string, list(tensor.metadata_props), len(tensor.dims)


def cut(path: Path) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, list[str]]]:
    """The model before and after half of everything was cut, and what changed."""
    loaded = graphprune.load(path)
    plan = loaded.plan(graphprune.Request(keep=0.5, multiple=1, allow=("all",)))
    result = loaded.apply(plan, verify="none")
    concerned = nodes_concerned(loaded.model, loaded.analysis, plan.chosen(loaded.analysis))
    before = onnx.load(path)
    return before, result.model, compare(before, result.model, concerned)


@pytest.mark.parametrize("name", ["ocr_rec", "ocr_cls", "silero_vad", "llama_tiny", "digits", "mobilenet_v2"])
def test_a_cut_changes_only_what_it_must(name: str) -> None:
    before, after, changed = cut(REAL[name]())
    weights = len(changed["weights"]) + sum(
        n.op_type == "Constant" for n in before.graph.node if n.output[0] in changed["nodes"]
    )
    assert weights > 5
    assert len(after.SerializeToString()) < 0.7 * len(before.SerializeToString())


def test_a_cut_of_one_of_everything() -> None:
    model = everything()
    loaded = graphprune.load(model)
    plan = loaded.plan(graphprune.Request(keep=0.5))
    result = loaded.apply(plan)
    changed = compare(model, result.model, nodes_concerned(loaded.model, loaded.analysis, plan.chosen(loaded.analysis)))
    assert changed == {"nodes": ["w3"], "weights": ["w1", "b1", "w2"], "shapes": ["hidden"]}
    gemm = graph_node(result.model, "Gemm hidden")
    assert gemm == graph_node(model, "Gemm hidden")
    constant = graph_node(result.model, "Constant w3")
    assert constant.attribute[0].doc_string == "about value"
    assert constant.metadata_props == graph_node(model, "Constant w3").metadata_props


def test_the_comparison_sees_a_loss() -> None:
    """The twin: one doc string, one attribute, one property, one weight less is noticed."""
    losses: list[Callable[[onnx.ModelProto], object]] = [
        lambda m: m.ClearField("metadata_props"),
        lambda m: m.graph.node[3].ClearField("doc_string"),
        lambda m: m.graph.node[3].attribute.pop(),
        lambda m: m.graph.node[0].metadata_props.pop(),
        lambda m: m.graph.initializer[0].ClearField("doc_string"),
        lambda m: m.graph.initializer.pop(),
        lambda m: m.graph.value_info[0].ClearField("doc_string"),
        lambda m: m.graph.node[1].attribute[0].g.node[0].ClearField("name"),
    ]
    model = everything()
    concerned = {"w1", "hidden"}
    compare(model, everything(), concerned)
    for loss in losses:
        made = everything()
        loss(made)
        with pytest.raises((AssertionError, ValueError, KeyError)):
            compare(model, made, concerned)


def test_the_recogniser_keeps_its_characters(tmp_path: Path) -> None:
    """Without them the pruned file would load and be useless."""
    graphprune.prune(real.ocr_rec(), keep=0.5, verify="none").save(tmp_path / "small.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    kept, dense = (
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).get_modelmeta()
        for path in (tmp_path / "small.onnx", real.ocr_rec())
    )
    assert kept.custom_metadata_map == dense.custom_metadata_map
    assert len(kept.custom_metadata_map["character"].splitlines()) == 6623
    assert (kept.producer_name, kept.version, kept.graph_name) == (dense.producer_name, dense.version, dense.graph_name)


# External data.


def words(count: int) -> onnx.TensorProto:
    return tensor("many words", np.array([f"word {i}" for i in range(count)], dtype=object), TensorProto.STRING)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with m.onnx and its weights in weights.data."""
    model = onnx.load(digits.PATH)
    model.graph.initializer.append(words(500))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.data", size_threshold=256)
    assert (tmp_path / "weights.data").stat().st_size > 100_000
    return tmp_path


def within(path: Path) -> onnx.ModelProto:
    """The model with its weights inside, as if they had never been anywhere else."""
    model = onnx.load(path)
    for weight in model.graph.initializer:
        weight.ClearField("data_location")
    return model


def externals(path: Path) -> dict[str, dict[str, str]]:
    """What a file says of each weight that lies outside it."""
    model = onnx.load(path, load_external_data=False)
    return {
        t.name: {item.key: item.value for item in t.external_data}
        for t in model.graph.initializer
        if t.data_location == TensorProto.EXTERNAL
    }


def test_external_data_stays_external(folder: Path) -> None:
    """One file beside the model, 4096-aligned; tensors below 1 KB inside; text stays text; the input is not touched."""
    before = contents(folder)
    command("prune", folder / "m.onnx", "-o", folder / "m2.onnx", "--keep", "0.5").done()
    after = contents(folder)
    assert set(after) - set(before) == {"m2.onnx", "m2.onnx.data"}
    assert {name: after[name] for name in before} == before
    said = externals(folder / "m2.onnx")
    model = onnx.load(folder / "m2.onnx")
    inside = {t.name: t for t in model.graph.initializer}
    assert said
    end = 0
    for name, where in said.items():
        assert where["location"] == "m2.onnx.data"
        assert int(where["offset"]) % 4096 == 0
        assert int(where["offset"]) >= end
        end = int(where["offset"]) + int(where["length"])
        assert 1024 <= int(where["length"]) == numpy_helper.to_array(inside[name]).nbytes
    assert end == len(after["m2.onnx.data"])
    small = [t for name, t in inside.items() if name not in said and t.data_type != TensorProto.STRING]
    assert small
    assert all(numpy_helper.to_array(t).nbytes < 1024 for t in small)
    assert inside["many words"] == words(500)


def test_external_data_reads_back_the_same(folder: Path) -> None:
    """The pruned model with its weights outside is the one that is made with all of them inside."""
    whole = folder / "whole.onnx"
    onnx.save(within(folder / "m.onnx"), whole)
    inside, outside = (graphprune.prune(folder / name, keep=0.5) for name in ("whole.onnx", "m.onnx"))
    assert inside.plan == outside.plan
    outside.save(folder / "m2.onnx")
    read = format_.read(folder / "m2.onnx")
    assert read.external
    assert not format_.read(whole).external
    assert format_.same(read, outside.pruned)
    assert within(folder / "m2.onnx") == inside.model == outside.model
    assert digits.accuracy(folder / "m2.onnx") == digits.accuracy(inside.model.SerializeToString())


def test_every_external_weight_cut_is_still_external(tmp_path: Path) -> None:
    """Also where no weight of the cut model is where it was."""
    rng = np.random.default_rng(0)
    weights = [tensor(n, rng.standard_normal(s).astype(np.float32)) for n, s in (("a", (8, 640)), ("b", (640, 8)))]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    infos = [helper.make_tensor_value_info(name, FLOAT, [2, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="d", size_threshold=0)
    command("prune", tmp_path / "m.onnx", "-o", tmp_path / "m2.onnx", "--keep", "0.5").done()
    assert set(externals(tmp_path / "m2.onnx")) == {"a", "b"}
    assert {tuple(t.dims) for t in onnx.load(tmp_path / "m2.onnx").graph.initializer} == {(8, 320), (320, 8)}


def test_empty_plan_of_a_model_with_external_data(folder: Path) -> None:
    made = through(folder / "m.onnx", folder / "m2.onnx")
    assert made.graph.initializer[0].name
    assert within(folder / "m2.onnx") == within(folder / "m.onnx")


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_the_input_s_data_file_is_never_overwritten(options: tuple[str, ...], folder: Path) -> None:
    """The input's data file is called what the output's would be; or is itself named as the output."""
    (folder / "weights.data").rename(folder / "m2.onnx.data")
    model = onnx.load(folder / "m.onnx", load_external_data=False)
    for weight in model.graph.initializer:
        for item in weight.external_data:
            item.value = "m2.onnx.data" if item.key == "location" else item.value
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    line = ("prune", folder / "m.onnx", "--keep", "0.5", *options, "-o")
    with untouched(folder):
        command(*line, folder / "m2.onnx").refused(
            7, "would overwrite", "m2.onnx.data", "choose another name or folder"
        )
        command(*line, folder / "m2.onnx.data").refused(2, "is the input itself, or a file that this run reads")
    with untouched(folder), pytest.raises(WriteError, match="would overwrite"):
        graphprune.prune(folder / "m.onnx", keep=0.5).save(folder / "m2.onnx")
    command(*line, folder / "m3.onnx").done()


def test_a_second_run_replaces_the_first(folder: Path) -> None:
    line = ("prune", folder / "m.onnx", "-o", folder / "m2.onnx", "--keep")
    command(*line, "0.5").done()
    first = contents(folder)
    command(*line, "0.75").done()
    assert contents(folder)["m2.onnx.data"] != first["m2.onnx.data"]
    command(*line, "0.5").done()
    assert contents(folder) == first


def test_weights_of_bodies_that_lie_outside_are_taken_along(tmp_path: Path) -> None:
    """The pruned file may stand in another folder: nothing in it may point back."""
    model = everything()
    body = graph_node(model, "If chosen").attribute[0].g
    data = body.initializer[0].raw_data
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "inner.data").write_bytes(bytes(8) + data)
    body.initializer[0].ClearField("raw_data")
    body.initializer[0].data_location = TensorProto.EXTERNAL
    for key, said in (("location", "inner.data"), ("offset", "8"), ("length", str(len(data)))):
        body.initializer[0].external_data.add(key=key, value=said)
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(model.SerializeToString())
    graphprune.prune(path, keep=0.5).save(tmp_path / "out.onnx")
    made = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert graph_node(made, "If chosen") == graph_node(everything(), "If chosen")
