"""The onnx checker on a model of any size: it sees the structure and the small tensors, and copies no large one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx

from graphprune.errors import ReadError
from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.model import OnnxModel, copy_without_weights
from graphprune.formats.onnx.names import as_onnx

_SMALL = 1 << 16
_DATA = "weights.data"
_POSITIONS = 1 << 20
"""Along an axis of a tensor of no elements."""


def check_structure(model: OnnxModel) -> None:
    """onnx.checker.ValidationError (or ValueError) where the graph is not valid ONNX.

    Large tensors are shown to the checker as lying in an external file, which is all it wants to know of them.
    """
    proto = as_onnx(copy_without_weights(model.proto))
    for tensor in model.proto.graph.initializer:
        if tensors.nbytes(tensor) <= _SMALL:
            proto.graph.initializer.append(model.tensor(tensor))
        else:
            proto.graph.initializer.append(tensors.elsewhere(tensor, _DATA))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _DATA).touch()
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        onnx.checker.check_model(str(path))


def check_data(stored: Iterable[onnx.TensorProto], folder: Path | None) -> None:
    """ReadError where a tensor does not hold as many bytes as its sizes say, or says that it is nothing times a lot."""
    for tensor in stored:
        if tensors.is_external(tensor):
            tensors.check_external(tensor, folder)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != tensors.nbytes(tensor):
            raise ReadError(
                f"weight {tensor.name!r} holds {len(tensor.raw_data)} bytes, its sizes {list(tensor.dims)} ask for "
                f"{tensors.nbytes(tensor)}",
                hint="the file is damaged: copy or export it again",
            )
        elif not tensor.HasField("raw_data") and tensors.nbytes(tensor) > _SMALL:  # the checker is not shown it
            tensors.to_array(tensor, None)
        if 0 in tensor.dims and max(tensor.dims) > _POSITIONS:
            raise ReadError(
                f"weight {tensor.name!r} holds nothing, and its sizes are {list(tensor.dims)}",
                hint="the file is damaged: copy or export it again",
            )
