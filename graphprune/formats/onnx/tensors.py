"""Where the bytes of a tensor are: inside the file or beside it; read one at a time, never twice into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from graphprune.errors import ReadError
from graphprune.graph import Array


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the data lie in another file."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def dtype_name(elem_type: int) -> str:
    """The numpy name of an ONNX element type."""
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)))
    except (KeyError, TypeError):
        return "undefined"


def nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the data, read off the sizes."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    name = dtype_name(tensor.data_type)
    bits = (
        4
        if name in ("int4", "uint4", "float4_e2m1fn")
        else 8 * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    )
    return (count * bits + 7) // 8


def data_file(tensor: onnx.TensorProto, folder: Path | None) -> Path:
    """The file beside the model that holds ``tensor``; refuses anything outside the model's folder."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    if folder is None:
        raise ReadError(
            f"weight {tensor.name!r} lies in the external file {location!r}, and the model was given without a path",
            hint="pass the path of the .onnx file instead of the loaded model",
        )
    path = folder / location
    if not location or Path(location).is_absolute() or folder.resolve() not in path.resolve().parents:
        raise ReadError(
            f"weight {tensor.name!r} points outside the model's folder: {location!r}",
            hint="a model may only name data files in its own folder; this one is refused",
        )
    if not path.is_file():
        raise ReadError(
            f"the external data file {location!r} of weight {tensor.name!r} is missing",
            hint=f"put {location!r} back beside the model, in {folder}",
        )
    return path


def check_external(tensor: onnx.TensorProto, folder: Path | None) -> None:
    """ReadError where the data of ``tensor`` are not all there."""
    path = data_file(tensor, folder)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if path.stat().st_size < int(entries.get("offset", 0)) + nbytes(tensor):
        raise ReadError(
            f"the external data file {path.name!r} is too short for weight {tensor.name!r}",
            hint="the file is truncated: copy or export it again",
        )


def to_array(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    """The values of ``tensor``, read now."""
    if is_external(tensor):
        check_external(tensor, folder)
    return numpy_helper.to_array(tensor, str(folder or ""))


def from_array(array: Array, like: onnx.TensorProto, name: str = "") -> onnx.TensorProto:
    """``array`` as a tensor stored inside the file, with the type, doc string and metadata of ``like``."""
    made = onnx.TensorProto()
    made.CopyFrom(without_data(like))
    made.name = name or like.name
    fresh = numpy_helper.from_array(np.ascontiguousarray(array))
    del made.dims[:]
    made.dims.extend(array.shape)
    made.raw_data = fresh.raw_data
    return made


def without_data(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Name, type, sizes and documentation, but no bytes."""
    bare = onnx.TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, doc_string=tensor.doc_string
    )
    bare.metadata_props.extend(tensor.metadata_props)
    return bare
