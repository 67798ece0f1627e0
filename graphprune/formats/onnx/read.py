"""Reading an ONNX file: what is not a sound model is refused here, with one clear message."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from graphprune.errors import ReadError
from graphprune.formats.onnx.check import check_data, check_structure
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.names import STANDARD

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
    return model


def _load(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ReadError(f"{path} is a folder", hint="name the .onnx file inside it")
    if not path.is_file():
        raise ReadError(f"there is no file {path}", hint="check the path")
    if path.stat().st_size == 0:
        raise ReadError(f"{path} is empty", hint="export or download it again")
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        kind = "" if path.suffix == ".onnx" else f" (its name ends in {path.suffix or 'nothing'}, not .onnx)"
        raise ReadError(
            f"{path} is not an ONNX file, or it is truncated{kind}",
            hint="export the model to ONNX, or download it again",
        ) from error
    if not proto.graph.node and not proto.graph.output:
        raise ReadError(f"{path} holds no graph", hint="is this an ONNX model? export it again")
    return proto


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
    check_data(model)
    try:
        check_structure(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise ReadError(
            f"the model is not valid ONNX: {lines[0] if lines else error}",
            hint="export it again; onnx.checker says the same",
        ) from error
