"""Reading an ONNX file: what is not a sound model is refused here, with one clear message."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from graphprune.errors import ReadError
from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.bodies import bodies
from graphprune.formats.onnx.check import check_data, check_structure
from graphprune.formats.onnx.functions import spelled_out
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.names import RUNTIME, STANDARD

_FIRST_FIELD = b"\x08"
"""The tag of ir_version, with which every writer begins an ONNX file."""
_OTHERS = (
    ("a zip archive (PyTorch saves .pt files so)", 0, b"PK\x03\x04"),
    ("a pickle (PyTorch used to save .pt files so)", 0, b"\x80"),
    ("an HDF5 file (Keras saves models so)", 0, b"\x89HDF"),
    ("a TensorFlow Lite model", 4, b"TFL3"),
    ("a GGUF file", 0, b"GGUF"),
    ("a safetensors file, which holds weights and no graph", 8, b"{"),
    ("a pointer that Git LFS left in its place", 0, b"version https://git-lfs"),
    ("a web page", 0, b"<"),
    ("an image", 0, b"\x89PNG"),
    ("an image", 0, b"\xff\xd8\xff"),
    ("a gzip archive", 0, b"\x1f\x8b"),
)
OLDEST_OPSET = 7
"""ONNX Runtime's own limit too."""
DEEPEST = 24
"""Bodies in bodies: what onnx adds to the innermost one, too, has to fit into the 100 levels that protobuf reads."""


def read(source: str | Path | onnx.ModelProto) -> OnnxModel:
    """The model in the file ``source`` (or an already loaded protobuf), checked; external weights stay on disk.

    Raises ReadError where the file is missing, empty, no ONNX protobuf, cyclic or otherwise invalid, of an opset newer
    than the installed onnx knows, or names data files that are missing or lie outside its folder.
    """
    if isinstance(source, onnx.ModelProto):
        model = OnnxModel(source)
    else:
        path = Path(source)
        model = OnnxModel(_load(path), path.parent, path)
    _check(model)
    return spelled_out(model.settled())


def _load(path: Path) -> onnx.ModelProto:
    try:
        if path.is_dir():
            raise ReadError(f"{path} is a folder", hint="name the .onnx file inside it")
        if not path.is_file():
            raise ReadError(f"there is no file {path}", hint="check the path")
        content = path.read_bytes()
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error
    if not content:
        raise ReadError(f"{path} is empty", hint="export or download it again")
    try:
        proto = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise _not_onnx(path, content) from error
    if not proto.graph.node and not proto.graph.output:
        raise _not_onnx(path, content)
    if not proto.graph.output:
        raise ReadError(f"the model in {path} has no output", hint="export it again, with the outputs you need")
    return proto


def _not_onnx(path: Path, content: bytes) -> ReadError:
    """What ``path`` seems to be instead."""
    if content.startswith(_FIRST_FIELD):
        return ReadError(
            f"{path} starts as an ONNX file but is truncated or damaged", hint="export or download it again"
        )
    found = next((what for what, at, magic in _OTHERS if content[at:].startswith(magic)), "")
    return ReadError(
        f"{path} is not an ONNX file{found and f' but {found}'}",
        hint="fetch the file itself" if "pointer" in found else "export the model to ONNX first",
    )


def _check(model: OnnxModel) -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in model.proto.opset_import:
        if opset.domain in STANDARD and opset.version > newest:
            raise ReadError(
                f"the model uses opset {opset.version}; the installed onnx knows opsets up to {newest}",
                hint="upgrade the onnx package, or export with an older opset",
            )
        if opset.domain in STANDARD and opset.version < OLDEST_OPSET:
            raise ReadError(
                f"the model uses opset {opset.version}; ops broadcast by other rules before opset {OLDEST_OPSET}",
                hint=f"export it again, or convert it: onnx.version_converter.convert_version(model, {OLDEST_OPSET})",
            )
    if not any(opset.domain in STANDARD for opset in model.proto.opset_import):
        raise ReadError("the model does not say which opset it uses", hint="export it again: opset_import is required")
    if (depth := _depth(model.proto)) > DEEPEST:
        raise ReadError(
            f"the bodies of its nodes lie {depth} deep in each other; {DEEPEST} are read at most",
            hint="export it again: protobuf itself ends at about 30",
        )
    _check_nodes(model.proto)
    inner = list(_inner_tensors(model.proto))
    for tensor in inner:
        if tensors.is_external(tensor):
            tensor.CopyFrom(tensors.from_array(tensors.to_array(tensor, model.folder), tensor))
    check_data([*model.proto.graph.initializer, *inner], model.folder)
    try:
        check_structure(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).partition("==>")[0].split())
        words = _cycle(model.proto.graph) or words if "topologically sorted" in words else words
        raise ReadError(
            f"the model is not valid ONNX: {words[:400]}", hint="export it again; onnx.checker says the same"
        ) from error


def _cycle(graph: onnx.GraphProto) -> str:
    """The nodes that wait for each other, in words; "" where there are none."""
    makers = {name: node for node in graph.node for name in node.output}
    label = {id(node): f"{node.op_type} {node.name or ', '.join(node.output)}" for node in makers.values()}
    reads = {id(node): {id(makers[name]) for name in node.input if name in makers} for node in makers.values()}
    try:
        TopologicalSorter(reads).prepare()
    except CycleError as error:
        return f"it has a cycle: {' > '.join(label[node] for node in error.args[1])}"
    return ""


def _depth(proto: onnx.ModelProto) -> int:
    """How deep bodies lie inside bodies."""
    level: list[Any] = [proto.graph, *proto.functions]
    depth = 0
    while level := [inner for body in level for node in body.node for inner in bodies(node)]:
        depth += 1
    return depth


def _graphs(proto: onnx.ModelProto) -> Iterator[Any]:
    """The main graph, functions, and all bodies inside them."""
    todo: list[Any] = [proto.graph, *proto.functions]
    while todo:
        body = todo.pop()
        yield body
        todo += [inner for node in body.node for inner in bodies(node)]


def _check_nodes(proto: onnx.ModelProto) -> None:
    """Words of nodes are text, and integers are no larger than ops read them."""
    for body in _graphs(proto):
        for node in body.node:
            texts = [node.op_type, node.domain, node.name, *node.input, *node.output]
            if garbled := next((text for text in texts if not isinstance(text, str)), None):
                raise ReadError(f"a node holds {garbled!r} for text", hint="the file is damaged: export it again")
    for node, attribute in _attributes(proto):
        known = node.domain in (*STANDARD, RUNTIME) and node.op_type != "Constant"
        if known and attribute.type == onnx.AttributeProto.INT and abs(attribute.i) >> 31:
            raise ReadError(
                f"{attribute.name!r} of {node.op_type} {node.name!r} is {attribute.i}, which ops read as 32 bits",
                hint="the file is damaged: export it again",
            )


def _attributes(proto: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.AttributeProto]]:
    """Every attribute, with its node."""
    return ((node, attribute) for body in _graphs(proto) for node in body.node for attribute in node.attribute)


def _inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Tensors that are no initialisers of the main graph: few and small, so that they are held in memory."""
    holders = [attribute for _, attribute in _attributes(proto)]
    holders += [attribute for function in proto.functions for attribute in function.attribute_proto]
    graphs = [body for body in _graphs(proto) if isinstance(body, onnx.GraphProto)]
    yield from (tensor for body in graphs if body is not proto.graph for tensor in body.initializer)
    yield from (one for a in holders for one in (*([a.t] if a.HasField("t") else ()), *a.tensors))
    sparse = [one for body in graphs for one in body.sparse_initializer]
    sparse += [one for a in holders for one in a.sparse_tensors]
    sparse += [a.sparse_tensor for a in holders if a.HasField("sparse_tensor")]
    yield from (part for one in sparse for part in (one.values, one.indices))
