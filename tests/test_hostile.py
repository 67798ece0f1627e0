"""Files from strangers: what fuzzing found, one test for each kind; and a short run of the fuzzer.

A file is refused with a clear error or pruned with proof. Nothing giant is allocated, nothing outside the folder of the
model is read or written, no library is loaded.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune
from graphprune.analysis import analyse
from graphprune.errors import GraphpruneError, ReadError, VerifyError, printable
from graphprune.explain import network
from graphprune.formats.onnx import view
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.probe import merge
from graphprune.formats.onnx.read import DEEPEST
from graphprune.graph import Graph, Node, Value, Weight
from graphprune.values import Values
from tests.build import BOOL, FLOAT, INT64, Body, Net
from tests.command import command
from tools import child, fuzz
from tools.mutate import MUTATIONS

GIANT = 2**40
ROOT = Path(graphprune.__file__).parent


def layers(net: Net) -> tuple[Net, str]:
    """``net`` with an input and a layer of 16 units."""
    return net, net.op("Relu", net.op("MatMul", net.input("N", 6), net.weight(6, 16, fan=6)))


def model(net: Net, y: str) -> onnx.ModelProto:
    """The model that ends in a layer behind ``y``; onnx is not asked for its shapes, which is what it dies of."""
    y = net.op("MatMul", y, net.weight(16, 4, fan=16))
    ends = [helper.make_tensor_value_info(y, FLOAT, ["N", 4])]
    graph = helper.make_graph(net.nodes, "hostile", net.inputs, ends, net.weights, value_info=net.infos)
    domains = [helper.make_opsetid(domain, 1) for domain in net.domains]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.opset), *domains], ir_version=10)


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    """A file in a folder of its own inside ``folder``."""
    path = folder / "in" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(proto.SerializeToString())
    return path


# Sizes that are declared, or computed, and are not there.


def added(op: str, inputs: Sequence[Any]) -> onnx.ModelProto:
    """A model that reshapes to a size made of an entry of a giant vector."""
    net, y = layers(Net())
    giant = net.op(op, *(net.const(value) for value in inputs))
    entry = net.op("Gather", net.op("Add", giant, giant), net.const([0]))
    size = net.op("Add", net.op("Mul", entry, net.const([0])), net.const([16]))
    return model(net, net.op("Reshape", y, net.op("Concat", net.const([0]), size, axis=0)))


@pytest.mark.parametrize(("op", "inputs"), [("Range", (0, GIANT, 1)), ("Expand", ([3], [GIANT]))])
def test_giant_vectors_are_not_made(op: str, inputs: Sequence[Any], tmp_path: Path) -> None:
    """onnx makes an object of each entry of one that is added up."""
    path = saved(added(op, inputs), tmp_path)
    done = child.run([sys.executable, "-m", "graphprune", "inspect", str(path)], limit=60, memory=8 << 30)
    assert "Traceback" not in done.error
    assert "out of memory" not in done.error
    assert done.peak < 1 << 31


@pytest.mark.parametrize(
    ("op", "inputs"), [("constant_of_shape", [[GIANT]]), ("range", [0, GIANT, 1]), ("one_hot", [[1], GIANT, [0, 1]])]
)
def test_giant_constants_are_not_computed(op: str, inputs: list[Any]) -> None:
    """Whatever shape the file tells of them."""
    arrays = {f"x{i}": np.array(value) for i, value in enumerate(inputs)}
    weights = {name: Weight(name, array.shape, "int64", partial(np.copy, array)) for name, array in arrays.items()}
    node = Node(0, op, "", tuple(arrays), ("y",), {})
    graph = Graph((node,), {"y": Value("y", (1, 2), "int64")}, weights, (), ("y",))
    assert Values(graph)("y") is None


@pytest.mark.parametrize("text", [b"Relu", b"relu_4"])
def test_nodes_whose_words_are_no_text(text: bytes, tmp_path: Path) -> None:
    """protobuf gives bytes for them."""
    path = saved(model(*layers(Net())), tmp_path)
    content = path.read_bytes()
    assert text in content
    path.write_bytes(content.replace(text, b"\x80" + text[1:]))
    with pytest.raises(ReadError, match="for text"):
        graphprune.load(path)


def test_a_body_that_gives_nothing() -> None:
    """Neither onnx's checker nor its shape inference minds."""
    net, y = layers(Net())
    body = Body(net)
    body.given(INT64, [])
    ends = body.op("Identity", body.given(BOOL, [])), body.op("Tanh", body.given())
    graph = body.graph(*ends, condition=True)
    loop = net.op("Loop", net.const(3), net.const(True, np.bool_), y, body=graph)
    proto = model(net, loop)
    (attribute,) = next(node for node in proto.graph.node if node.op_type == "Loop").attribute
    del attribute.g.output[:]
    with pytest.raises(GraphpruneError):
        graphprune.prune(proto, keep=0.5)


def test_a_rank_that_is_not_so() -> None:
    """What the file tells of a value, and what comes out when it runs, are of different ranks."""
    assert merge(("N",), [(2, 3), (4, 4)], {(2, 3): "n"}) == ("n", 4)


@pytest.mark.parametrize("size", [GIANT, 1 << 26])
def test_giant_inputs(size: int) -> None:
    net, y = layers(Net())
    net.inputs.append(helper.make_tensor_value_info("giant", FLOAT, [size, 2]))
    with pytest.raises(VerifyError, match=rf"input 'giant' of shape \[{size}, 2\] is too large for random numbers"):
        graphprune.prune(model(net, y), keep=0.5)


@pytest.mark.parametrize("sizes", [[0, GIANT], [GIANT, 0]])
def test_nothing_times_a_lot(sizes: list[int]) -> None:
    """No bytes are missing, and scores would have one number for each position."""
    net, y = layers(Net())
    net.weights.append(TensorProto(name="w", data_type=FLOAT, dims=sizes, raw_data=b""))
    with pytest.raises(ReadError, match="holds nothing, and its sizes are"):
        graphprune.load(model(net, y))


@pytest.mark.parametrize("data", [[], [1.0]])
def test_weights_that_hold_less_than_they_say(data: list[float]) -> None:
    """Those that are not stored as bytes, too: the checker is not shown large ones."""
    net, y = layers(Net())
    net.weights.append(TensorProto(name="w", data_type=FLOAT, dims=[GIANT], float_data=data))
    with pytest.raises(ReadError, match=r"'w' of sizes .* cannot be read"):
        graphprune.load(model(net, y))


@pytest.mark.parametrize("size", [GIANT, -(2**31) - 1])
def test_attributes_of_more_than_32_bits(size: int) -> None:
    """ONNX Runtime divides by what it cuts this one down to, and ends the process."""
    net, y = layers(Net())
    image = net.op("DepthToSpace", net.op("Unsqueeze", y, net.const([2, 3])), blocksize=size)
    with pytest.raises(ReadError, match="'blocksize' of DepthToSpace"):
        graphprune.load(model(net, net.op("Squeeze", image, net.const([2, 3]))))
    net, y = layers(Net())
    added = net.op("Mul", net.op("Constant", value_int=2**40), net.const(0))
    assert graphprune.load(model(net, net.op("Add", y, net.op("Cast", added, to=FLOAT)))).analysis.prunable


def test_axes_that_are_not_there() -> None:
    """ONNX Runtime takes this one for 0; how many rows a table has is asked before anybody refuses the axis."""
    net, y = layers(Net())
    picked = net.op("Gather", y, net.input("M", dtype=INT64), axis=2**31 - 1)
    with pytest.raises(GraphpruneError):
        graphprune.load(model(net, picked)).proved()
    node = Node(0, "gather", "", ("x", "ids"), ("y",), {"axis": 5})
    assert Graph((node,), {"x": Value("x", (3, 4))}, {}, ("x", "ids"), ("y",)).picked("ids") == 0


# Nesting.


def nested(depth: int) -> onnx.ModelProto:
    """Branches around a layer, one in the other."""
    net, y = layers(Net())
    yes = net.const(True, np.bool_)
    body = helper.make_graph([helper.make_node("Neg", [y], ["b0"])], "body", [], [onnx.ValueInfoProto(name="b0")])
    for level in range(1, depth + 1):
        other = helper.make_graph(
            [helper.make_node("Neg", [y], [f"e{level}"])], "body", [], [onnx.ValueInfoProto(name=f"e{level}")]
        )
        node = helper.make_node("If", [yes], [f"b{level}"], then_branch=body, else_branch=other)
        body = helper.make_graph([node], "body", [], [onnx.ValueInfoProto(name=f"b{level}")])
    net.nodes.append(body.node[0])
    return model(net, f"b{depth}")


def test_bodies_in_bodies() -> None:
    """What onnx adds to a model has to fit in, too."""
    assert graphprune.load(nested(DEEPEST)).analysis.prunable
    with pytest.raises(ReadError, match=f"lie {DEEPEST + 1} deep in each other"):
        graphprune.load(nested(DEEPEST + 1))


def calling(calls: Sequence[Sequence[str]]) -> onnx.ModelProto:
    """A model that calls function F0; each of them calls those named."""
    net, y = layers(Net(opset=18))
    made = model(net, net.op("F0", y, domain="my"))
    for level, kinds in enumerate(calls):
        names = ["x", *(f"t{i}" for i in range(len(kinds) - 1)), "y"]
        nodes = [
            helper.make_node(kind, [names[i]], [names[i + 1]], domain="my" if kind.startswith("F") else "")
            for i, kind in enumerate(kinds)
        ]
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
        made.functions.append(helper.make_function("my", f"F{level}", ["x"], ["y"], nodes, opsets))
    return made


def test_functions_that_stand_for_too_much() -> None:
    """Each calls the next one twice: onnx and ONNX Runtime go through all of it, which takes for ever."""
    assert graphprune.load(calling([["F1", "F1"], ["Tanh"]])).analysis.prunable
    doubling = [[f"F{level + 1}"] * 2 for level in range(40)]
    with pytest.raises(ReadError, match="stand for more than 50,000 nodes"):
        graphprune.load(calling([*doubling, ["Tanh"]]))


@pytest.mark.parametrize("version", [7, 10])
@pytest.mark.parametrize("calls", [[["F0"]], [["F1"], ["F0"]], [["Tanh"], ["F2"], ["F1"]]])
def test_functions_that_call_themselves(calls: list[list[str]], version: int) -> None:
    """The checker looks at functions from version 8 of the format on."""
    made = calling(calls)
    made.ir_version = version
    with pytest.raises(ReadError, match=r"call themselves|Cycle detected"):
        graphprune.load(made)


# Text that is meant to do something.


@pytest.mark.parametrize("text", ["-" * 200_000 + "1", "[" * 5000, "__import__('os')", "['', 'a.b', 'c']"])
def test_scopes_are_not_evaluated(text: str) -> None:
    net, y = layers(Net())
    made = model(net, y)
    made.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=text)
    scope = graphprune.load(made).analysis.graph.nodes[0].scope
    assert scope == ("a.b" if "a.b" in text else "")


def test_names_that_a_terminal_or_a_page_obeys(tmp_path: Path) -> None:
    name = "\x1b[2J\x9b0m<script>alert(1)</script>\x07"
    net, y = layers(Net())
    made = model(net, y)
    made.graph.node[0].input[1] = made.graph.initializer[0].name = name
    made.graph.node[0].name = name
    path = saved(made, tmp_path)
    for args in (("inspect", path), ("inspect", path, "--explain", name)):
        shown = command(*args).done().out
        assert printable(shown) == shown
        assert "\\x1b[2J" in shown
    command("prune", path, "-o", tmp_path / "out.onnx", "--keep", "0.5", "--report", tmp_path / "r.html").done()
    result = graphprune.prune(made, keep=0.5, timing=False)
    assert "<script" not in (tmp_path / "r.html").read_text()
    assert printable(str(result.report)) == str(result.report)
    ElementTree.fromstring("\n".join(nx.generate_graphml(network(graphprune.load(made).analysis))))


def test_nodes_whose_outputs_have_no_name() -> None:
    """A rule that counts what is computed looks for it (found by atheris)."""
    net, y = layers(Net())
    made = model(net, y)
    made.graph.node.append(helper.make_node("MatMul", list(made.graph.node[0].input), [""]))
    graph = view._graph(made, view._weights(OnnxModel(made)), {"input_1": ("N", 6)}, {}, {})
    shapes = {n: Value(n, w.shape) for n, w in graph.weights.items()} | {"input_1": Value("input_1", ("N", 6))}
    assert analyse(replace(graph, values=shapes)).atoms


# Other files.


def outside(tensor: TensorProto, location: str) -> TensorProto:
    """``tensor`` in the file ``location``."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def holding(where: str, tensor: TensorProto) -> onnx.ModelProto:
    """A model that holds ``tensor`` there."""
    net, y = layers(Net(opset=18))
    if where == "weight":
        net.weights.append(tensor)
        return model(net, net.op("Add", y, tensor.name))
    if where == "sparse":
        places = numpy_helper.from_array(np.arange(16), "places")
        sparse = onnx.SparseTensorProto(values=tensor, indices=places, dims=[16])
        return model(net, net.op("Add", y, net.op("Constant", sparse_value=sparse)))
    made = model(net, net.op("F", y, domain="my"))
    nodes = [helper.make_node("Constant", [], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    nodes[0].attribute.append(onnx.AttributeProto(name="value", ref_attr_name="k", type=onnx.AttributeProto.TENSOR))
    default = [helper.make_attribute("k", tensor)]
    opsets = [helper.make_opsetid("", 18)]
    made.functions.append(helper.make_function("my", "F", ["x"], ["y"], nodes, opsets, attribute_protos=default))
    return made


@pytest.mark.parametrize("where", ["weight", "sparse", "default of a function"])
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link", "linked/secret.bin", "loop", "x" * 5000])
def test_data_outside_the_folder(where: str, location: str, tmp_path: Path) -> None:
    tensor = outside(numpy_helper.from_array(np.ones(16, np.float32), "w"), location)
    path = saved(holding(where, tensor), tmp_path)
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    for link, target in (("link", "../secret.bin"), ("linked", ".."), ("loop", "loop")):
        (path.parent / link).symlink_to(target)
    with pytest.raises(ReadError, match=r"points outside the model's folder"):
        graphprune.load(path)


@pytest.mark.parametrize("key", [b"location", b"offset", b"length"])
def test_entries_that_are_no_text(key: bytes, tmp_path: Path) -> None:
    """protobuf gives them as bytes."""
    tensor = outside(numpy_helper.from_array(np.ones(16, np.float32), "w"), "model.onnx")
    for name in ("offset", "length"):
        tensor.external_data.add(key=name, value="????")
    path = saved(holding("weight", tensor), tmp_path)
    data, spoilt = path.read_bytes(), b"model.onnx" if key == b"location" else b"????"
    path.write_bytes(data.replace(spoilt, b"\xff" * len(spoilt)))
    with pytest.raises(ReadError, match=r"is missing|bytes by its sizes"):
        graphprune.load(path)


@pytest.mark.parametrize("name", ["small.onnx", "small.onnx.data"])
def test_links_in_the_place_of_outputs_are_replaced(name: str, tmp_path: Path) -> None:
    """And what they lead to stays as it is."""
    net, y = layers(Net())
    proto, folder = model(net, y), tmp_path / "in"
    folder.mkdir()
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "victim").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "victim")
    graphprune.prune(folder / "model.onnx", keep=0.5, timing=False).save(tmp_path / "small.onnx")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / name).is_symlink()


def test_no_code_of_a_file_is_run() -> None:
    """Nowhere are custom-op libraries registered, text evaluated, or objects unpickled."""
    banned = {"register_custom_ops_library", "eval", "exec", "literal_eval", "compile", "pickle", "dill"}
    for path in (*(ROOT / "formats" / "onnx").glob("*.py"), *ROOT.glob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "re"}
        calls = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        modules = {
            alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
        }
        evaluated = {name for name in names & banned if name not in ("eval", "compile")}  # of torch modules
        assert not (evaluated | (calls | modules) & banned), path


# The fuzzer.


def spoilt(root: Path, cases: int, work: Any = fuzz.use) -> list[fuzz.Case]:
    """So many cases over the rules table."""
    groups = [[seed for at, seed in enumerate(fuzz.table_seeds()) if at % 9 == 0], list(fuzz.structures())]
    fuzzer = fuzz.Fuzzer(1, [groups[0], groups[0], groups[1]], root.resolve(), work, seconds=2)
    return [fuzzer.case(number) for number in range(cases)]


def test_fuzzing(tmp_path: Path) -> None:
    cases = spoilt(tmp_path, 120)
    assert [case for case in cases if case.outcome == fuzz.BUG] == []
    assert {case.outcome for case in cases} >= {fuzz.PROVED, fuzz.REFUSED}
    assert {name for case in cases for name in case.mutations} >= set(MUTATIONS)


def _raise(path: Path, out: Path) -> tuple[str, str]:
    raise KeyError("x")


def _write(path: Path, out: Path) -> tuple[str, str]:
    (out / "other.bin").write_bytes(b"x")
    return fuzz.PROVED, ""


def _escape(path: Path, out: Path) -> tuple[str, str]:
    (out.parent.parent / "secret.bin").write_bytes(b"x")
    return fuzz.PROVED, ""


def _crash(path: Path, out: Path) -> tuple[str, str]:
    os.abort()


def _start(path: Path, out: Path) -> tuple[str, str]:
    os.system("true")
    return fuzz.PROVED, ""


def _grow(path: Path, out: Path) -> tuple[str, str]:
    np.ones(1 << 33)
    return fuzz.PROVED, ""


def _partial(path: Path, out: Path) -> tuple[str, str]:
    (out / "small.onnx").write_bytes(b"x")
    raise ReadError("the file is bad")


@pytest.mark.parametrize("work", [_raise, _write, _escape, _crash, _start, _grow, _partial])
def test_the_fuzzer_sees(work: Any, tmp_path: Path) -> None:
    assert spoilt(tmp_path, 1, work)[0].outcome == fuzz.BUG
