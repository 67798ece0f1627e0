"""Whatever is wrong with the input: one clear message, the right exit code, no partial file, the input untouched."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune
from graphprune.compensate import Changed
from graphprune.errors import BudgetError, PlanError, ReadError, UsageError, VerifyError, WriteError
from graphprune.formats import onnx as onnx_format
from graphprune.verify import Check, Proof
from models import digits
from models.light import light
from tests.build import Net
from tests.command import command, contents, process, untouched

USAGE, READ, BUDGET, PLAN, VERIFY, WRITE, STOPPED = 2, 3, 4, 5, 6, 7, 130
DIGITS = digits.PATH.read_bytes()
HALF = ("--keep", "0.5")
Change = Callable[[onnx.ModelProto], object]


def model() -> onnx.ModelProto:
    """The digits model, to be spoilt."""
    return onnx.load_model_from_string(DIGITS)


def spoilt(folder: Path, change: Change) -> Path:
    """A file with the digits model after ``change``."""
    proto, path = model(), folder / "model.onnx"
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A copy of the digits model in a folder of its own."""
    path = tmp_path / "model.onnx"
    path.write_bytes(DIGITS)
    return path


def prune(path: Path, *options: object) -> Any:
    """``graphprune prune`` to out.onnx beside ``path``."""
    return command("prune", path, "-o", path.with_name("out.onnx"), *(options or HALF))


# Files that are no models.


def zipped() -> bytes:
    """What torch.save writes today."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return memory.getvalue()


NOT_ONNX = {
    "empty": (b"", "is empty"),
    "text": (b"hello, this is no model\n" * 9, "is not an ONNX file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "an image"),
    "zip": (zipped(), "PyTorch saves .pt files so"),
    "pickle": (b"\x80\x02}q\x00.", "a pickle"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "tflite": (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
    "safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00" + b'{"a": 1}' + bytes(8), "safetensors"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    "page": (b"<!DOCTYPE html><html>not found</html>", "a web page"),
    "zeros": (bytes(100), "is not an ONNX file"),
}


@pytest.mark.parametrize("kind", NOT_ONNX)
def test_no_onnx_file(kind: str, tmp_path: Path) -> None:
    content, words = NOT_ONNX[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with untouched(tmp_path):
        prune(path).refused(READ, str(path), words, "What to do: ")
    with pytest.raises(ReadError, match=words):
        graphprune.load(path)


def test_every_command_says_the_same_of_a_missing_file(tmp_path: Path) -> None:
    missing, out, plan = tmp_path / "no.onnx", tmp_path / "out.onnx", tmp_path / "plan.json"
    plan.write_text(graphprune.Plan("0" * 16, ()).to_json())
    lines: list[tuple[object, ...]] = [
        ("inspect", missing),
        ("plan", missing, *HALF, "-o", tmp_path / "new.json"),
        ("apply", missing, plan, "-o", out),
        ("prune", missing, "-o", out, *HALF),
        ("verify", missing),
    ]
    with untouched(tmp_path):
        for line in lines:
            command(*line).refused(READ, f"there is no file {missing}", "check the path")


def test_folder_in_place_of_a_model(tmp_path: Path) -> None:
    command("inspect", tmp_path).refused(READ, f"{tmp_path} is a folder", "name the .onnx file")


def test_unreadable_file(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    command("inspect", given).refused(READ, f"cannot read {given}", "Permission denied")


@pytest.mark.parametrize("share", [1e-5, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99, 0.9999])
def test_truncated(share: float, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(DIGITS[: max(1, int(share * len(DIGITS)))])
    with untouched(tmp_path):
        prune(path).refused(READ, "truncated or damaged", "download it again")


def test_cut_off_at_every_byte_of_the_head_and_the_tail(tmp_path: Path) -> None:
    """Where the rest happens to be a whole message, it is still no model."""
    path = tmp_path / "model.onnx"
    for length in (*range(1, 40), *range(len(DIGITS) - 40, len(DIGITS))):
        path.write_bytes(DIGITS[:length])
        with pytest.raises(ReadError):
            graphprune.load(path)


def test_any_extension_will_do(tmp_path: Path) -> None:
    for name in ("model.bin", "model", "model.onnx.backup", ".onnx"):
        path = tmp_path / name
        path.write_bytes(DIGITS)
        command("prune", path, "-o", tmp_path / "small.whatever", *HALF).done()
        assert (tmp_path / "small.whatever").stat().st_size < 0.4 * len(DIGITS)


# Graphs that are not valid.


def reverse(proto: onnx.ModelProto) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[::-1])


def raw(proto: onnx.ModelProto, keep: int) -> None:
    tensor = proto.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:keep]


def typed(proto: onnx.ModelProto) -> None:
    """A large weight in float_data, some of it gone."""
    tensor = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(tensor).ravel()[:-5].tolist()
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values)


INVALID: dict[str, tuple[Change, tuple[str, ...]]] = {
    "dangling input": (lambda m: m.graph.node[0].input.__setitem__(0, "nobody"), ("nobody", "/conv/Conv")),
    "output twice": (
        lambda m: m.graph.node[1].output.__setitem__(0, m.graph.node[0].output[0]),
        ("/conv/Conv_output_0", "multiple times"),
    ),
    "unknown attribute": (
        lambda m: m.graph.node[0].attribute.append(helper.make_attribute("frobnicate", 3)),
        ("frobnicate", "Conv"),
    ),
    "unknown op": (lambda m: setattr(m.graph.node[3], "op_type", "Frob"), ("Frob",)),
    "unknown domain": (lambda m: setattr(m.graph.node[3], "domain", "my.domain"), ("my.domain",)),
    "cycle": (
        lambda m: m.graph.node[0].input.__setitem__(0, m.graph.node[2].output[0]),
        ("has a cycle: ", "Conv /conv/Conv > BatchNormalization", " > Relu"),
    ),
    "loop of one": (
        lambda m: m.graph.node[2].input.__setitem__(0, m.graph.node[2].output[0]),
        ("has a cycle: Relu", "> Relu"),
    ),
    "out of order": (reverse, ("sorted",)),
    "no nodes": (lambda m: m.graph.ClearField("node"), ("logits",)),
    "no input": (lambda m: m.graph.ClearField("input"), ("image",)),
    "no output": (lambda m: m.graph.ClearField("output"), ("has no output",)),
    "weight twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), ("conv.weight", "unique")),
    "input without a type": (lambda m: m.graph.input[0].type.Clear(), ("image",)),
    "newer opset": (lambda m: setattr(m.opset_import[0], "version", 999), ("opset 999", "upgrade the onnx package")),
    "ancient opset": (lambda m: setattr(m.opset_import[0], "version", 6), ("opset 6", "version_converter")),
    "no opset": (lambda m: m.ClearField("opset_import"), ("which opset",)),
    "newer format": (lambda m: setattr(m, "ir_version", 999), ("ir_version 999",)),
    "no format": (lambda m: m.ClearField("ir_version"), ("ir_version",)),
    "short weight": (lambda m: raw(m, 8), ("conv.weight", "holds 8 bytes", "864")),
    "empty weight": (lambda m: raw(m, 0), ("conv.weight", "holds 0 bytes")),
    "short typed weight": (typed, ("block2.conv2.weight", "14400")),
    "negative size": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), ("conv.weight", "[-1, 1, 3, 3]")),
    "huge size": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**62), ("conv.weight", "holds 864 bytes")),
    "unknown element type": (lambda m: setattr(m.graph.initializer[0], "data_type", 77), ("element type 77",)),
}


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_graph(kind: str, tmp_path: Path) -> None:
    change, words = INVALID[kind]
    path = spoilt(tmp_path, change)
    with untouched(tmp_path):
        prune(path).refused(READ, *words, "What to do: ")


def test_op_that_nothing_here_can_run(tmp_path: Path) -> None:
    """Analysis works, the proof cannot: the message says that it is ONNX Runtime, and that a lighter check exists."""

    def custom(proto: onnx.ModelProto) -> None:
        proto.graph.node[3].op_type, proto.graph.node[3].domain = "Frob", "my.domain"
        proto.opset_import.append(helper.make_opsetid("my.domain", 1))

    path = spoilt(tmp_path, custom)
    with untouched(tmp_path):
        prune(path).refused(VERIFY, "ONNX Runtime does not load the model", "Frob")
    assert "there is no rule for Frob" in command("inspect", path).done().out
    prune(path, *HALF, "--verify", "structure").done()


def test_text_that_is_no_text(tmp_path: Path) -> None:
    """A damaged name of a size is bytes where text should be; it is a name all the same."""
    path = tmp_path / "model.onnx"
    assert DIGITS.count(b"batch") == 2
    path.write_bytes(DIGITS.replace(b"batch", b"\xffatch"))
    prune(path).done()


def test_damage_anywhere(tmp_path: Path) -> None:
    """A byte changed outside the large weights is harmless or refused, never a traceback."""
    random, path, ends = np.random.default_rng(0), tmp_path / "model.onnx", set()
    large = [t.raw_data for t in model().graph.initializer if len(t.raw_data) > 64]
    inside = {i for data in large for i in range(DIGITS.index(data), DIGITS.index(data) + len(data))}
    places = sorted(set(range(len(DIGITS))) - inside)
    for _ in range(200):
        content = bytearray(DIGITS)
        content[random.choice(places)] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        try:
            graphprune.prune(path, keep=0.5, verify="structure")
            ends.add(0)
        except graphprune.GraphpruneError as error:
            ends.add(error.exit_code)
    assert {0, READ} <= ends <= {0, READ, VERIFY}


# External data.


def outside(folder: Path, location: str, **entries: str) -> Path:
    """A model whose first weight lies in ``location``; ``entries`` replace what is said of it."""

    def move(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        said = {"location": location, "offset": "0", "length": str(len(tensor.raw_data)), **entries}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in said.items():
            tensor.external_data.add(key=key.rstrip("_"), value=value)

    return spoilt(folder, move)


EXTERNAL: dict[str, tuple[str, dict[str, str], str]] = {
    "missing": ("none.data", {}, "is missing"),
    "short": ("short.data", {}, "has 863 bytes"),
    "too far": ("good.data", {"offset": "1"}, "ends at 865"),
    "before": ("good.data", {"offset": "-1"}, "-1"),
    "no number": ("good.data", {"offset": "x"}, "from x on"),
    "other length": ("good.data", {"length": "8"}, "is 864 bytes by its sizes; the model says 8"),
    "no length": ("good.data", {"length": "y"}, "says y"),
    "parent": ("../secret", {}, "points outside the model's folder"),
    "through a folder": ("inner/../../secret", {}, "points outside the model's folder"),
    "absolute": ("/etc/passwd", {}, "points outside the model's folder"),
    "link": ("link.data", {}, "points outside the model's folder"),
    "linked folder": ("linked/secret", {}, "points outside the model's folder"),
    "nowhere": ("", {}, "points outside the model's folder"),
    "itself": (".", {}, "points outside the model's folder"),
    "a zero byte": ("good\0.data", {}, "points outside the model's folder"),
    "said twice": ("good.data", {"location_": "../secret"}, "points outside the model's folder"),
    "a folder": ("inner", {}, "is missing"),
}


@pytest.mark.parametrize("kind", EXTERNAL)
def test_external_data(kind: str, tmp_path: Path) -> None:
    location, entries, words = EXTERNAL[kind]
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(864))
    (folder / "good.data").write_bytes(bytes(864))
    (folder / "short.data").write_bytes(bytes(863))
    (folder / "link.data").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    path = outside(folder, location, **entries)
    with untouched(tmp_path):
        prune(path).refused(READ, "conv.weight", words, "What to do: ")


def test_external_data_in_order(tmp_path: Path) -> None:
    """The table above fails for the reasons it names: with good data the same file is read."""
    (tmp_path / "good.data").write_bytes(model().graph.initializer[0].raw_data)
    prune(outside(tmp_path, "good.data")).done()


def test_external_data_of_a_model_without_a_folder(tmp_path: Path) -> None:
    proto = onnx.load(outside(tmp_path, "good.data"), load_external_data=False)
    with pytest.raises(ReadError, match="given without a path"):
        graphprune.load(proto)


def test_external_data_inside_a_body_may_not_point_outside_either(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "folder").mkdir()
    tensor = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    body = helper.make_graph([helper.make_node("Identity", ["inner"], ["y"])], "body", [], [info], [tensor])
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    node = helper.make_node("If", ["condition"], ["out"], then_branch=body, else_branch=body)
    graph = helper.make_graph(
        [node], "main", [condition], [helper.make_tensor_value_info("out", TensorProto.FLOAT, [4])]
    )
    path = tmp_path / "folder" / "model.onnx"
    path.write_bytes(helper.make_model(graph, ir_version=10).SerializeToString())
    command("inspect", path).refused(READ, "'inner' points outside", "../secret")


# Models that are odd, not wrong.


def test_zero_size_tensors(tmp_path: Path) -> None:
    """A weight without a position, and a value that is empty at run time, are no reason to stop."""
    net = Net()
    x = net.input("rows", 8)
    none = net.op("Slice", x, net.const([0]), net.const([0]), net.const([1]))
    wide = net.op("Concat", x, none, axis=1)
    net.weights.append(numpy_helper.from_array(np.zeros((0, 8), np.float32), "empty"))
    tall = net.op("Concat", wide, "empty", axis=0)
    hidden = net.op("Relu", net.op("MatMul", tall, net.weight(8, 64, fan=8)))
    net.output(net.op("MatMul", hidden, net.weight(64, 3, fan=64)))
    path = tmp_path / "model.onnx"
    onnx.save(net.model(), path)
    prune(path).done()
    shapes = {tuple(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert {(0, 8), (8, 32), (32, 3)} <= shapes


def test_axis_that_is_empty_at_run_time(tmp_path: Path) -> None:
    """A dynamic axis may have no position when the model runs, before the cut and after it."""
    net = Net()
    past, now = net.input("past", 8), net.input("now", 8)
    rows = net.op("Concat", past, now, axis=0)
    net.output(net.op("MatMul", net.op("Relu", net.op("MatMul", rows, net.weight(8, 64))), net.weight(64, 3)))
    path = tmp_path / "model.onnx"
    onnx.save(net.model(), path)
    prune(path).done()
    runner = onnx_format.run(onnx_format.read(tmp_path / "out.onnx"))
    for first, second in ((0, 2), (2, 0), (0, 0)):
        feeds = {past: np.ones((first, 8), np.float32), now: np.ones((second, 8), np.float32)}
        (found,) = runner(feeds).values()
        assert found.shape == (first + second, 3)


def test_input_of_size_zero(tmp_path: Path) -> None:
    """Nothing can be proven on inputs that hold nothing; nothing is written."""
    net = Net()
    net.output(net.op("MatMul", net.op("MatMul", net.input(0, 8), net.weight(8, 64)), net.weight(64, 3)))
    path = tmp_path / "model.onnx"
    onnx.save(net.model(), path)
    with untouched(tmp_path):
        prune(path).refused(VERIFY, "prove")


@pytest.fixture
def rigid(tmp_path: Path) -> Path:
    """A model without a prunable Dim."""
    net = Net()
    net.output(net.op("Softmax", net.op("MatMul", net.input("rows", 8), net.weight(8, 5)), axis=-1))
    path = tmp_path / "model.onnx"
    onnx.save(net.model(), path)
    return path


@pytest.mark.parametrize("target", [("--keep", "0.5"), ("--params", "0.5"), ("--macs", "0.1")])
def test_no_prunable_dim(target: tuple[str, str], rigid: Path) -> None:
    """Exit code 0, the reasons, and no file."""
    with untouched(rigid.parent):
        said = prune(rigid, *target).done().out
    assert "nothing was cut, so nothing was written (--force writes anyway)" in said
    assert "it is the shape of an output of the model" in said
    assert "frozen: it is the shape of an input of the model" in command("inspect", rigid).done().out


def test_no_prunable_dim_written_when_asked(rigid: Path) -> None:
    prune(rigid, *HALF, "--force").done()
    assert (rigid.parent / "out.onnx").read_bytes() == rigid.read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("score", ["l1", "l2", "bn-scale"])
def test_weights_that_are_not_finite(value: float, score: str, tmp_path: Path) -> None:
    def poison(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.name == "block1.bn1.weight")
        data = np.array(numpy_helper.to_array(tensor))
        data[3] = value
        tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))

    path = spoilt(tmp_path, poison)
    with untouched(tmp_path):
        prune(path, *HALF, "--score", score).refused(USAGE, "block1.bn1.weight", "NaN or infinity", "--exclude")
    with pytest.raises(UsageError, match="not finite"):
        graphprune.prune(path, keep=0.5, score=score)


# Requests.

REQUESTS: dict[str, tuple[int, str]] = {
    "": (USAGE, "give keep, or one or several of params, macs, bytes"),
    "--keep 0.5 --macs 0.5": (USAGE, "give keep, or one or several of params, macs, bytes"),
    "--keep nan": (USAGE, "a target of nan makes no sense"),
    "--keep inf": (USAGE, "a target of inf"),
    "--keep 0": (USAGE, "a target of 0.0"),
    "--keep -0.5": (USAGE, "a target of -0.5"),
    "--keep 1.01": (USAGE, "a target of 1.01"),
    "--params nan": (USAGE, "a target of nan"),
    "--params -5": (USAGE, "a target of -5.0"),
    "--macs 0": (USAGE, "a target of 0.0"),
    "--macs half": (USAGE, "'half' is no number"),
    "--bytes 100B --params 0.5 --macs 0.001": (BUDGET, "macs and bytes cannot be brought to"),
    "--macs 0.5 --allocator frob": (USAGE, "there is no allocator 'frob'"),
    "--keep 0.5 --allocator flap": (USAGE, "nothing for the allocator 'flap' to share out"),
    "--macs 0.5 --tries 0": (USAGE, "0 tries make no sense"),
    "--metric ls --drop -1": (USAGE, "a drop of -1.0 makes no sense"),
    "--metric ls --shrink size": (USAGE, "there is no cost 'size'"),
    "--keep half": (USAGE, "Invalid value for '--keep'"),
    "--macs 0.0001": (BUDGET, "the least reachable is 3.3% (42,512 of 1,282,960)"),
    "--params 10": (BUDGET, "the least reachable is 3.9% (1,517 of 39,250)"),
    "--params 0.5 --exclude *": (BUDGET, "the least reachable is 100.0% (39,250 of 39,250)"),
    "--params 0.3 --floor 0.9": (BUDGET, "the least reachable is "),
    "--keep 0.5 --multiple 0": (USAGE, "multiple >= 1"),
    "--keep 0.5 --multiple -8": (USAGE, "multiple >= 1"),
    "--keep 0.5 --multiple 1.5": (USAGE, "Invalid value for '--multiple'"),
    "--keep 0.5 --floor nan": (USAGE, "0 <= floor <= 1"),
    "--keep 0.5 --floor 2": (USAGE, "0 <= floor <= 1"),
    "--keep 0.5 --floor -1": (USAGE, "0 <= floor <= 1"),
    "--keep 0.5 --score frob": (USAGE, "there is no score 'frob'"),
    "--keep 0.5 --include none*": (USAGE, "the pattern 'none*' matches no dim, weight or node"),
    "--keep 0.5 --exclude none*": (USAGE, "the pattern 'none*' matches no dim, weight or node"),
    "--keep 0.5 --allow frob": (USAGE, "--allow frob is not known"),
    "--keep 0.5 --verify frob": (USAGE, "there is no verification 'frob'"),
    "--keep 0.5 --seed -1": (USAGE, "Invalid value for '--seed'"),
    "--keep 0.5 --frob": (USAGE, "No such option: --frob"),
    "--keep 0.5 surplus": (USAGE, "unexpected extra argument"),
    "--keep 0.5 --report report.pdf": (USAGE, "there is no report format '.pdf'"),
}


@pytest.mark.parametrize("options", REQUESTS)
def test_request(options: str, given: Path) -> None:
    code, words = REQUESTS[options]
    with untouched(given.parent):
        command("prune", given, "-o", given.with_name("out.onnx"), *options.split()).refused(code, words)


def test_request_in_python() -> None:
    wrong: list[tuple[dict[str, Any], type[graphprune.GraphpruneError]]] = [
        ({}, UsageError),
        ({"keep": 0.5, "params": 0.5}, UsageError),
        ({"keep": float("nan")}, UsageError),
        ({"keep": 0.5, "score": "frob"}, UsageError),
        ({"keep": 0.5, "include": ["none*"]}, UsageError),
        ({"keep": 0.5, "verify": "frob"}, UsageError),
        ({"macs": 1e-4}, BudgetError),
    ]
    for options, kind in wrong:
        with pytest.raises(kind):
            graphprune.prune(digits.PATH, **options)
    with pytest.raises(ReadError, match=r"cannot read a builtins\.int"):
        graphprune.load(5)


def test_commands_and_options_that_do_not_exist() -> None:
    command("frob").refused(USAGE, "No such command 'frob'")
    command("--frob").refused(USAGE, "No such option: --frob")
    command("prune").refused(USAGE, "Missing argument 'MODEL'")
    command("prune", digits.PATH, *HALF).refused(USAGE, "Missing option '--output'")
    command("inspect", digits.PATH, "--explain", "frob").refused(USAGE, "no dim or weight 'frob'", "lists all names")
    command("inspect", digits.PATH, "--explain", "CONV1").refused(USAGE, "did you mean block1.conv1, block2.conv1?")


# Inputs for proof, and calibration data.

CALIB: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "the inputs given are []"),
    "another name": ({"x": np.zeros((1, 1, 8, 8))}, "the model takes ['image']"),
    "one too many": ({"x": np.zeros(3), "image": np.zeros((1, 1, 8, 8))}, "the inputs given are ['image', 'x']"),
    "another size": ({"image": np.zeros((1, 1, 9, 8))}, "input 'image' has shape [1, 1, 9, 8]"),
    "another rank": ({"image": np.zeros((1, 8, 8))}, "the model takes ['batch', 1, 8, 8]"),
    "empty": ({"image": np.zeros((0, 1, 8, 8))}, "input 'image' is empty"),
    "text": ({"image": np.full((1, 1, 8, 8), "abc")}, "input 'image' holds <U3"),
    "complex": ({"image": np.zeros((1, 1, 8, 8), complex)}, "input 'image' holds complex128"),
    "nan": ({"image": np.full((1, 1, 8, 8), np.nan)}, "input 'image' holds NaN"),
}
DATA: dict[str, tuple[dict[str, Any], str]] = {
    **CALIB,
    "infinity": ({"image": np.full((1, 1, 8, 8), np.inf)}, "input 'image' holds infinity"),
    "too large": ({"image": np.full((1, 1, 8, 8), 1e300)}, "input 'image' holds infinity as float32"),
}


@pytest.mark.parametrize("kind", DATA)
def test_calibration_inputs(kind: str, given: Path) -> None:
    arrays, words = DATA[kind]
    calib = given.with_name("inputs.npz")
    np.savez(calib, **arrays)
    with untouched(given.parent):
        prune(given, *HALF, "--calib", calib).refused(USAGE, words, "What to do: ")
    with pytest.raises(UsageError):
        graphprune.prune(given, keep=0.5, calib=[arrays])
    if kind in CALIB:
        with pytest.raises(UsageError):
            graphprune.prune(given, keep=0.5, inputs=arrays)


def test_calibration_file(given: Path) -> None:
    calib = given.with_name("inputs.npz")
    prune(given, *HALF, "--calib", calib).refused(USAGE, "cannot read inputs", "No such file", "numpy.savez")
    prune(given, *HALF, "--calib", given.parent).refused(USAGE, "no arrays or images in the folder", ".npz")
    prune(given, *HALF, "--calib", given).refused(USAGE, "cannot read inputs")
    for content in (b"", b"text", zipped()[:40], b"PK\x03\x04"):
        calib.write_bytes(content)
        with untouched(given.parent):
            prune(given, *HALF, "--calib", calib).refused(USAGE, "cannot read inputs", "numpy.savez")
    np.savez(calib, image=np.full((1, 1, 8, 8), None))
    prune(given, *HALF, "--calib", calib).refused(USAGE, "Object arrays cannot be loaded")
    calib.with_suffix(".png").write_bytes(b"no image")
    prune(given, *HALF, "--calib", calib.with_suffix(".png")).refused(USAGE, "cannot identify image file", "PNG")
    calib.with_suffix(".txt").write_bytes(b"text")
    prune(given, *HALF, "--calib", calib.with_suffix(".txt")).refused(USAGE, "no input of the model picks rows")


OPTIONS = {
    "--samples 0": "samples 0 makes no sense",
    "--batch -1": "batch -1 makes no sense",
    "--length 1": "length 1 makes no sense",
    "--std 0": "a std of 0",
    "--mean a,b": "--mean a,b holds no numbers",
    "--compensate bais": "no compensation 'bais'",
    "--damping -1": "Invalid value for '--damping'",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_calibration_options(options: str, given: Path) -> None:
    with untouched(given.parent):
        prune(given, *HALF, "--calib", "noise", *options.split()).refused(USAGE, OPTIONS[options])


def speaker() -> tuple[onnx.ModelProto, str]:
    """A language model of 50 words, and the name of its input."""
    net = Net()
    ids = net.input("batch", "sequence", dtype=TensorProto.INT64)
    hidden = net.op("Relu", net.op("MatMul", net.op("Gather", net.weight(50, 8), ids), net.weight(8, 32)))
    net.output(net.op("MatMul", hidden, net.weight(32, 50)))
    return net.model(), ids


def test_tokens_that_are_not_there() -> None:
    proto, ids = speaker()
    wrong: dict[str, Any] = {
        "holds 50, and its table has rows 0 to 49": np.full((2, 4), 50),
        "holds -1, and its table has rows 0 to 49": np.full((2, 4), -1),
        "holds fractions": np.full((2, 4), 0.5),
        "has shape": np.zeros(4, np.int64),
    }
    for words, array in wrong.items():
        with pytest.raises(UsageError, match=words):
            graphprune.prune(proto, keep=0.5, calib=[{ids: array}])


def test_tokenizers_that_do_not_match(given: Path) -> None:
    """More words than rows is an error, fewer a remark; and what is no tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    proto, _ = speaker()
    onnx.save(proto, given)
    text, path = given.with_name("text.txt"), given.with_name("tokenizer.json")
    text.write_text("1 2 3 4 5 6 7 8 9 " * 9)
    line = ("--calib", text, "--tokenizer", path, "--length", "8")
    prune(given, *HALF, *line[:2]).refused(USAGE, "needs a tokenizer", "--tokenizer tokenizer.json")
    prune(given, *HALF, *line).refused(USAGE, "cannot read the tokenizer")
    path.write_text("{}")
    prune(given, *HALF, *line).refused(USAGE, "cannot read the tokenizer")
    for size, words in ((51, "knows 51 tokens, and the table"), (50, ""), (49, "is it its own?")):
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(size)}, unk_token="0"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(path))
        said = prune(given, *HALF, *line)
        if size > 50:
            said.refused(USAGE, words, "50 rows")
        else:
            assert ("is it its own?" in said.done().out) == bool(words)
    prune(given, *HALF, *line[:4], "--length", "99").refused(USAGE, "has 81 tokens, fewer than one window of 99")
    text.write_bytes(b"\xff\xfe\x00")
    prune(given, *HALF, *line).refused(USAGE, "cannot read inputs", "UTF-8")


def test_data_in_python_that_cannot_be() -> None:
    wrong: list[tuple[Any, str]] = [
        ([], "there is no calibration data"),
        (5, "calib is a int"),
        ([(np.zeros((1, 2)), np.zeros(3))], "batch number 0 of calib is a tuple"),
        ([{}], "the inputs given are"),
    ]
    for calib, words in wrong:
        with pytest.raises(UsageError, match=words):
            graphprune.prune(digits.PATH, keep=0.5, calib=calib)
    net = Net()
    net.output(net.op("Gemm", net.op("Relu", net.op("Add", net.input(1, 4), net.input(1, 4))), net.weight(4, 9)))
    with pytest.raises(UsageError, match=r"without a name, and the model has 2 inputs: input_1, input_2"):
        graphprune.prune(net.model(), keep=0.5, calib=[np.zeros((1, 4))])


def test_nan_on_noise() -> None:
    """The logarithm of a negative number: data would have to be positive."""
    net = Net()
    hidden = net.op("Relu", net.op("Gemm", net.op("Log", net.input("n", 4)), net.weight(4, 16)))
    net.output(net.op("Gemm", hidden, net.weight(16, 3)))
    with pytest.raises(UsageError, match=r"is NaN on noise\nWhat to do: give data"):
        graphprune.prune(net.model(), keep=0.5, calib="noise", verify="none")
    x = np.random.default_rng(0).uniform(1, 2, (50, 4))
    assert graphprune.prune(net.model(), keep=0.5, calib=[x]).report.verified


def half(scale: float) -> onnx.ModelProto:
    """A model in float16 whose activations are about ``scale``."""
    net = Net()
    x = net.op(
        "Relu", net.op("MatMul", net.input("n", 8, dtype=TensorProto.FLOAT16), net.const(np.eye(8) * scale, np.float16))
    )
    down = np.random.default_rng(0).uniform(0.5, 1, (8, 3)) / 8
    net.output(net.op("MatMul", x, net.const(down, np.float16)))
    return net.model()


def test_float16_overflow_in_moments() -> None:
    """Squares of activations are beyond float16: they are added up in more, and the weights are what they should be."""
    loaded = graphprune.load(half(500.0))
    x = np.abs(np.random.default_rng(1).standard_normal((400, 8))).astype(np.float16)
    (moments,) = (m for m in loaded.measure([{loaded.analysis.graph.inputs[0]: x}]).values() if m.second.max() > 1e5)
    wide = x.astype(np.float64) * 500
    np.testing.assert_allclose(moments.raw * moments.count, wide.T @ wide, rtol=1e-3)
    result = graphprune.prune(half(500.0), keep=0.5, multiple=1, score="obs", calib=[x])
    for weight in graphprune.load(result.model).analysis.graph.weights.values():
        assert np.isfinite(weight.load().astype(np.float64)).all()


def test_weights_that_are_not_finite_are_never_written(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compensation makes is looked at before it becomes a model."""
    spoil = Changed({"block1.conv2.weight": np.full((24, 32, 3, 3), np.nan, np.float32)}, {})
    monkeypatch.setattr("graphprune.loaded.compensate", lambda *args: [spoil])
    with untouched(given.parent):
        said = prune(given, *HALF, "--calib", "noise", "--samples", "8")
        said.refused(USAGE, "'block1.conv2.weight'", "does not fit into float32", "--no-compensate")


def test_singular_moments() -> None:
    """One sample, all the same, all zero: the weights stay finite and the proof holds."""
    for image in (np.zeros((1, 1, 8, 8)), np.ones((5, 1, 8, 8))):
        result = graphprune.prune(
            digits.PATH, keep=0.5, score="obs", calib=[image], inputs={"image": np.eye(8)[None, None]}
        )
        assert result.report.verified
        for weight in graphprune.load(result.model).analysis.graph.weights.values():
            assert np.isfinite(weight.load().astype(np.float64)).all()


# Plans.


def cut(**values: Any) -> Callable[[dict[str, Any]], object]:
    """An edit of a plan's first cut."""
    return lambda plan: plan["cuts"][0].update(values)


PLANS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another model": (
        lambda p: (p.update(model="0" * 16), [cut.pop("places") for cut in p["cuts"]]),
        "the plan is for another model",
    ),
    "model no text": (lambda p: p.update(model=5), "'model' is missing or of the wrong type"),
    "another version": (lambda p: p.update(graphprune_plan=99), "the plan has version 99"),
    "no version": (lambda p: p.pop("graphprune_plan"), "this is not a plan"),
    "no cuts": (lambda p: p.pop("cuts"), "'cuts' is missing"),
    "cuts no list": (lambda p: p.update(cuts={}), "'cuts' is missing or of the wrong type"),
    "cut no record": (lambda p: p.update(cuts=["conv"]), "cut number 0 needs index (int)"),
    "request no record": (lambda p: p.update(request=[]), "'request' is missing or of the wrong type"),
    "predicted no record": (lambda p: p.update(predicted={}), "'predicted' is missing or of the wrong type"),
    "predicted of one": (lambda p: p.update(predicted=[0.1]), "'predicted' is missing or of the wrong type"),
    "predicted no numbers": (lambda p: p.update(predicted=["1", 2.0]), "'predicted' is missing or of the wrong type"),
    "score no text": (lambda p: p.update(score=None), "'score' is missing or of the wrong type"),
    "field missing": (lambda p: p["cuts"][0].pop("kind"), "cut number 0 needs"),
    "field too many": (cut(extra=1), "cut number 0 needs"),
    "positions out of range": (cut(keep="0-24"), "out of order, or not below 24"),
    "positions unsorted": (cut(keep="5,3"), "'3' is out of order"),
    "positions twice": (cut(keep="3,3"), "'3' is out of order"),
    "ranges overlap": (cut(keep="0-5,5-9"), "'5-9' is out of order"),
    "range backwards": (cut(keep="5-3"), "'5-3' is out of order"),
    "range huge": (cut(keep="0-99999999999"), "'0-99999999999' is no position"),
    "range huge, size too": (cut(keep="0-999999999", size=10**9), "add up to more than 16,777,216"),
    "many huge ranges": (cut(keep=",".join(["0-999999999"] * 1000)), "out of order"),
    "sizes that cancel": (
        lambda p: p["cuts"].extend([{**p["cuts"][0], "size": 10**12}, {**p["cuts"][0], "size": -(10**12)}]),
        "add up to more than",
    ),
    "nothing kept": (cut(keep=""), "keeps 0 positions, fewer than the 1 that must stay"),
    "negative": (cut(keep="-3"), "'-3' is no position"),
    "words": (cut(keep="a-b"), "'a-b' is no position"),
    "fractions": (cut(keep="1.5"), "'1.5' is no position"),
    "list of positions": (cut(keep=[0, 1]), "keep (str)"),
    "null": (cut(keep=None), "keep (str)"),
    "index no number": (cut(index="0"), "index (int)"),
    "index a truth value": (cut(index=True), "index (int)"),
    "index a fraction": (cut(index=0.5), "index (int)"),
    "index too high": (cut(index=99), "there is no dim number 99"),
    "index negative": (cut(index=-1), "there is no dim number -1"),
    "frozen dim": (cut(index=4, size=10, keep="0-4"), "dim number 4 is frozen"),
    "another size": (cut(size=25), "has 24 positions, not 25"),
    "dim twice": (lambda p: p["cuts"].append(dict(p["cuts"][0])), "it is there twice"),
}


@pytest.mark.parametrize("kind", PLANS)
def test_edited_plan(kind: str, given: Path) -> None:
    edit, words = PLANS[kind]
    plan = json.loads(command("plan", given, *HALF).done().out)
    edit(plan)
    path = given.with_name("plan.json")
    path.write_text(json.dumps(plan))
    with untouched(given.parent):
        line = command("apply", given, path, "-o", given.with_name("out.onnx"))
        line.refused(PLAN, words, "What to do: ", "graphprune plan")
    with pytest.raises(PlanError):
        graphprune.load(given).apply(graphprune.Plan.load(path))


@pytest.mark.parametrize("text", ["", "hello", "[]", "null", "5", "{}", "[" * 100_000, '{"graphprune_plan": 1}'])
def test_no_plan(text: str, given: Path) -> None:
    path = given.with_name("plan.json")
    path.write_text(text)
    with untouched(given.parent):
        command("apply", given, path, "-o", given.with_name("out.onnx")).refused(PLAN, "this is not a plan: ")


def test_plan_file(given: Path) -> None:
    path, out = given.with_name("plan.json"), given.with_name("out.onnx")
    command("apply", given, path, "-o", out).refused(PLAN, f"cannot read the plan {path}: No such file")
    command("apply", given, given.parent, "-o", out).refused(PLAN, "Is a directory")
    command("apply", given, given, "-o", out).refused(PLAN, "it is not text")
    command("verify", given, given).refused(USAGE, "needs the plan it was cut by", "--plan plan.json")


def test_plan_of_another_model(given: Path) -> None:
    """Another structure is another export at best: names must lead to Dims of the same size, and the report says so."""
    loaded = graphprune.load(given)
    plan = loaded.plan(graphprune.Request(keep=0.5))
    nameless = replace(plan, cuts=tuple(replace(cut, places=()) for cut in plan.cuts))
    changes: list[Change] = [
        lambda m: m.graph.node[0].attribute[0].ints.__setitem__(0, 2),
        lambda m: m.graph.node[2].input.__setitem__(0, m.graph.node[0].output[0]),
    ]
    for change in changes:
        proto = model()
        change(proto)
        other = graphprune.load(proto)
        with pytest.raises(PlanError, match="for another model"):
            nameless.chosen(other.analysis)
        assert "another export" in str(other.apply(plan, verify="none").report.notes)
    with pytest.raises(PlanError, match=r"another model, or the exporter folded or renamed .* no 'conv'"):
        plan.chosen(graphprune.load(light("squeezenet")).analysis)
    wider = replace(plan.cuts[0], size=plan.cuts[0].size + 1)
    with pytest.raises(PlanError, match="has 24 positions, not 25"):
        replace(plan, cuts=(wider,), model="0" * 16).chosen(loaded.analysis)


# Outputs.


def test_output_equal_to_the_input(given: Path) -> None:
    folder = given.parent
    (folder / "link.onnx").symlink_to(given)
    (folder / "again.onnx").hardlink_to(given)
    (folder / "sub").mkdir()
    names = [given, folder / "link.onnx", folder / "again.onnx", folder / "sub" / ".." / given.name]
    plan = folder / "plan.json"
    plan.write_text(command("plan", given, *HALF).done().out)
    with untouched(folder):
        for source, target in itertools.product((given, folder / "link.onnx"), names):
            said = command("prune", source, "-o", target, *HALF)
            said.refused(USAGE, f"the output {target} is the input itself", "choose another name (--force")
        command("apply", given, plan, "-o", given).refused(USAGE, "is the input itself")


def test_output_relative_to_another_folder(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(given.parent)
    with untouched(given.parent):
        command("prune", given, "-o", given.name, *HALF).refused(USAGE, "is the input itself")
    command("prune", given.name, "-o", "out.onnx", *HALF).done()


def test_output_over_the_input_when_asked(given: Path) -> None:
    said = command("prune", given, "-o", given, *HALF, "--force").done()
    assert given.stat().st_size < 0.4 * len(DIGITS)
    assert f"{len(DIGITS):,}" in said.out, "the report still tells the size before"
    assert list(contents(given.parent)) == ["model.onnx"]


def test_no_output_may_replace_what_the_run_reads(given: Path) -> None:
    folder, out, calib = given.parent, given.with_name("out.onnx"), given.with_name("inputs.npz")
    np.savez(calib, image=np.ones((2, 1, 8, 8), np.float32))
    plan = folder / "plan.json"
    plan.write_text(command("plan", given, *HALF).done().out)
    lines: list[tuple[object, ...]] = [
        ("plan", given, *HALF, "-o", given),
        ("prune", given, "-o", out, *HALF, "--plan-out", given),
        ("prune", given, "-o", out, *HALF, "--plan-out", out),
        ("prune", given, "-o", out, *HALF, "--plan-out", folder / "r.json", "--report", folder / "r.json"),
        ("prune", given, "-o", calib, *HALF, "--calib", calib),
        ("apply", given, plan, "-o", plan),
        ("apply", given, plan, "-o", out, "--report", plan),
        ("inspect", given, "--graphml", given),
        ("inspect", given, "--dot", given),
        ("inspect", given, "--dot", folder / "g", "--graphml", folder / "g"),
    ]
    with untouched(folder):
        for line in lines:
            command(*line).refused(USAGE, "What to do: ")


def test_folders_that_are_not_there(given: Path) -> None:
    folder, missing = given.parent, given.parent / "missing"
    lines: list[tuple[object, ...]] = [
        ("prune", given, "-o", missing / "out.onnx", *HALF),
        ("prune", given, "-o", folder / "out.onnx", *HALF, "--report", missing / "report.json"),
        ("prune", given, "-o", folder / "out.onnx", *HALF, "--plan-out", missing / "plan.json"),
        ("plan", given, *HALF, "-o", missing / "plan.json"),
        ("inspect", given, "--dot", missing / "graph.dot"),
    ]
    with untouched(folder):
        for line in lines:
            command(*line).refused(WRITE, f"there is no folder {missing}", "make it first")
        command("prune", given, "-o", folder, *HALF).refused(WRITE, "is a folder")
        command("plan", given, "-o", folder, *HALF).refused(WRITE, "is a folder")
    with pytest.raises(WriteError, match="No such file"):
        graphprune.prune(given, keep=0.5, verify="none").save(missing / "out.onnx")
    with pytest.raises(WriteError, match="is not a file"):
        graphprune.prune(given, keep=0.5, verify="none").save(folder)


def test_devices_are_not_replaced(given: Path) -> None:
    """os.replace would put a file in a device's place. (The link keeps a broken graphprune from doing so here.)"""
    device = given.with_name("device")
    device.symlink_to("/dev/null")
    with pytest.raises(WriteError, match="device is not a file"):
        graphprune.prune(given, keep=0.5, verify="none").save(device)
    command("plan", given, *HALF, "-o", device).done()
    assert device.is_char_device()


@pytest.mark.skipif(sys.platform != "linux", reason="/sys takes no files even from root")
def test_folder_that_takes_no_files(given: Path) -> None:
    with untouched(given.parent):
        command("prune", given, "-o", "/sys/out.onnx", *HALF).refused(WRITE, "cannot write /sys/out.onnx")
        command("plan", given, "-o", "/sys/plan.json", *HALF).refused(WRITE, "cannot write /sys/plan.json")


def test_folder_without_permission(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before any work is done."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != given.parent or mode != os.W_OK)
    monkeypatch.setattr(graphprune.Loaded, "plan", lambda *args, **options: pytest.fail("it went to work"))
    with untouched(given.parent):
        prune(given).refused(WRITE, "permission denied", "choose another folder")


def test_name_that_is_too_long(given: Path) -> None:
    with untouched(given.parent):
        name = given.with_name("a" * 250 + ".onnx")
        command("prune", given, "-o", name, *HALF).refused(WRITE, "File name too long")


def fill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on ``folder`` takes a few bytes of a file and raises ENOSPC on the rest."""
    opened = Path.open

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(bytes(data[:100]))
            raise OSError(errno.ENOSPC, "No space left on device", str(self.name))

    def open_(path: Path, mode: str = "r", *how: Any, **named: Any) -> Any:
        if path.parent != folder or "w" not in mode:
            return opened(path, mode, *how, **named)
        stream = io.BufferedWriter(Full(path, "w"))
        return stream if "b" in mode else io.TextIOWrapper(stream)

    monkeypatch.setattr(Path, "open", open_)


def test_disk_full_in_the_middle_of_a_file(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = given.with_name("out.onnx")
    out.write_bytes(b"what was there before")
    loaded = graphprune.load(given)
    result = loaded.apply(loaded.plan(graphprune.Request(keep=0.5)), verify="none")
    with untouched(given.parent):
        fill(given.parent, monkeypatch)
        with pytest.raises(WriteError, match="No space left on device"):
            result.save(out)
        command("plan", given, *HALF, "-o", out).refused(WRITE, "No space left on device", "the free space")
    monkeypatch.undo()
    result.save(out)
    assert set(contents(given.parent)) == {"model.onnx", "out.onnx"}


def test_disk_full_for_real(tmp_path: Path) -> None:
    """The system itself stops the file from growing: the message says so, and no half file is left."""
    net = Net()
    net.output(net.op("MatMul", net.op("MatMul", net.input(1, 64), net.weight(64, 1024)), net.weight(1024, 64)))
    path = tmp_path / "model.onnx"
    onnx.save(net.model(), path)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    options = (*HALF, "--verify", "none")
    with untouched(tmp_path):
        ended = process("prune", path, "-o", tmp_path / "out.onnx", *options, preexec_fn=limit)
        ended.refused(WRITE, "cannot write", "out.onnx: File too large", "the free space")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_device(given: Path) -> None:
    device = given.with_name("device")
    device.symlink_to("/dev/full")
    with untouched(given.parent):
        command("plan", given, *HALF, "-o", device).refused(WRITE, "No space left on device")
        for line in (("inspect", given), ("plan", given, *HALF)):
            with Path("/dev/full").open("w") as full:
                said = subprocess.run(
                    [sys.executable, "-m", "graphprune", *map(str, line)],
                    stdout=full, stderr=subprocess.PIPE, text=True, check=False,
                )  # fmt: skip
            assert said.returncode == WRITE
            assert said.stderr.startswith("graphprune: reading or writing failed: No space left on device")
            assert len(said.stderr.splitlines()) == 2


def test_reader_that_stops_reading() -> None:
    """``graphprune inspect MODEL --json | head -1``, with more to print than a pipe holds: no message, no traceback."""
    line = [sys.executable, "-m", "graphprune", "inspect", str(light("shufflenet")), "--json"]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # without a buffer Python does not notice
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.read(1)
        started.stdout.close()
        said = started.stderr.read()
    assert (said, started.returncode) == (b"", 1)


# Ctrl-C.


@pytest.fixture(scope="module")
def middling() -> Path:
    """A model that takes seconds to prune."""
    return light("resnet50")


def ready(started: subprocess.Popen[str]) -> None:
    """Wait until the command has got as far as reading the model."""
    maps = Path(f"/proc/{started.pid}/maps")
    stop = time.monotonic() + 60
    while time.monotonic() < stop and started.poll() is None:
        if "onnx_cpp2py_export" in maps.read_text():
            return
        time.sleep(0.01)
    raise AssertionError("the command never began")


def touched_last(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced; reading it changes only the time of access."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _heard() -> None:
    """What a shell starts in the background inherits an ignored Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc to look at the process through")
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.4, 1.0, 1.7])
def test_ctrl_c(delay: float, middling: Path, tmp_path: Path) -> None:
    before = touched_last(middling)
    line = [sys.executable, "-m", "graphprune", "prune", middling, "-o", tmp_path / "out.onnx", *HALF]
    line += ["--plan-out", tmp_path / "plan.json", "--report", tmp_path / "report.html"]
    how: dict[str, Any] = {"stdout": -1, "stderr": -1, "text": True, "start_new_session": True, "preexec_fn": _heard}
    with subprocess.Popen([str(x) for x in line], **how) as started:
        ready(started)
        time.sleep(delay)
        assert started.poll() is None, "this machine is too fast for the test: it needs a larger model"
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (STOPPED, "")
    assert err == "graphprune: stopped; no partial file is left\n"
    assert contents(tmp_path) == {}
    assert touched_last(middling) == before


def test_ctrl_c_that_python_drops(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal raises in a callback of the interpreter's own is lost; nothing is written all the same."""
    apply = graphprune.Loaded.apply

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def interrupted(*args: Any, **options: Any) -> Any:
        Dropped()
        return apply(*args, **options)

    monkeypatch.setattr(graphprune.Loaded, "apply", interrupted)
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with untouched(given.parent):
            prune(given, *HALF).refused(STOPPED, "stopped; no partial file is left")
        monkeypatch.setattr(graphprune.Loaded, "apply", apply)
        prune(given, *HALF).done()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "step", ["graphprune.formats.onnx.write._check_target", "graphprune.formats.onnx.write._pieces", "os.replace"]
)
def test_ctrl_c_while_writing(step: str, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any step of writing, whatever was there stays."""
    out = given.with_name("out.onnx")
    out.write_bytes(b"what was there before")
    loaded = graphprune.load(given)
    result = loaded.apply(loaded.plan(graphprune.Request(keep=0.5)), verify="none")

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with untouched(given.parent), monkeypatch.context() as patched:
        patched.setattr(step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            result.save(out)


def test_out_of_memory(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(graphprune.Loaded, "plan", exhausted)
    with untouched(given.parent):
        prune(given).refused(1, "out of memory")


def test_nothing_is_written_when_verification_fails(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model, plan and report alike."""
    failed = Check("permutation", False, "made to fail", 1.0, 0.1)
    monkeypatch.setattr(Proof, "permutation", lambda proof: failed)
    options = ("--plan-out", given.with_name("plan.json"), "--report", given.with_name("report.md"))
    with untouched(given.parent):
        prune(given, *HALF, *options).refused(VERIFY, "FAILED permutation: made to fail", "nothing was written")
    with pytest.raises(VerifyError):
        graphprune.prune(given, keep=0.5)


def test_in_a_process_of_its_own(given: Path) -> None:
    """Exit codes and messages are those of the tests above, and Ctrl-C finds its handler back afterwards."""
    with untouched(given.parent):
        process("prune", given.with_name("no.onnx"), "-o", given.with_name("out.onnx"), *HALF).refused(READ)
        process("prune", given, "-o", given, *HALF).refused(USAGE)
        process("prune", given, "-o", given.with_name("out.onnx"), "--macs", "1e-9").refused(BUDGET)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
