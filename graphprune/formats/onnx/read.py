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
from graphprune.formats.onnx.check import check_data, check_structure
from graphprune.formats.onnx.functions import spelled_out
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.names import STANDARD

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
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
    for tensor in _inner_tensors(model.proto):
        if tensors.is_external(tensor):
            tensor.CopyFrom(tensors.from_array(tensors.to_array(tensor, model.folder), tensor))
    check_data(model)
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


def _inner_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Tensors that are no initialisers of the main graph: few and small, so that they are held in memory."""
    bodies: list[Any] = [proto.graph, *proto.functions]
    while bodies:
        body = bodies.pop()
        if body is not proto.graph and isinstance(body, onnx.GraphProto):
            yield from body.initializer
        if isinstance(body, onnx.GraphProto):
            yield from (part for sparse in body.sparse_initializer for part in (sparse.values, sparse.indices))
        for attribute in (attribute for node in body.node for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            bodies += [attribute.g, *attribute.graphs] if attribute.type in _GRAPHS else []
