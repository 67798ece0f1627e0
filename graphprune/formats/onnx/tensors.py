"""Where the bytes of a tensor are: inside the file or beside it; read one at a time, never twice into memory."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from graphprune.errors import ReadError
from graphprune.graph import Array

_NARROW = {"int4": 4, "float4_": 4, "int2": 2, "float6_": 6}
"""Bits of element types that are packed; numpy holds one in a byte."""


_SHARED = 1 << 16
"""Bytes from which on a weight is kept as an array beside the protobuf."""


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
    """Bytes of the data, read off the sizes; ReadError for an element type that the installed onnx does not know."""
    name = dtype_name(tensor.data_type)
    if name == "undefined":
        raise ReadError(
            f"weight {tensor.name!r} has the element type {tensor.data_type}, which the installed onnx does not know",
            hint="upgrade the onnx package; if that does not help, the file is damaged: export it again",
        )
    bits = next((bits for stem, bits in _NARROW.items() if stem in name), 8 * np.dtype(name).itemsize)
    return int(math.prod(tensor.dims) * bits + 7) // 8


def shared(tensor: onnx.TensorProto) -> bool:
    """Whether ``tensor`` is large enough, and of a type of numpy's own, for its memory to be shared as an array."""
    return nbytes(tensor) >= _SHARED and np.dtype(dtype_name(tensor.data_type)).isbuiltin == 1


def elsewhere(tensor: onnx.TensorProto, location: str) -> onnx.TensorProto:
    """``tensor`` without its bytes, which are said to lie in the file ``location``."""
    bare = without_data(tensor)
    bare.data_location = onnx.TensorProto.EXTERNAL
    bare.external_data.add(key="location", value=location)
    return bare


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    """Where the data are said to lie; protobuf gives bytes where a text is none."""
    return {os.fsdecode(entry.key): os.fsdecode(entry.value) for entry in tensor.external_data}


def data_file(tensor: onnx.TensorProto, folder: Path | None) -> Path:
    """The file beside the model that holds ``tensor``; refuses anything outside the model's folder."""
    location = _entries(tensor).get("location", "")
    if folder is None:
        raise ReadError(
            f"weight {tensor.name!r} lies in the external file {location!r}, and the model was given without a path",
            hint="pass the path of the .onnx file instead of the loaded model",
        )
    path = folder / location
    try:
        inside = "\0" not in location and folder.resolve() in path.resolve().parents
        there = inside and path.is_file()
    except (OSError, RuntimeError):  # a name too long, a link to itself
        inside = False
    if not inside or Path(location).is_absolute():
        raise ReadError(
            f"weight {tensor.name!r} points outside the model's folder: {location!r}",
            hint="data files must lie in the model's own folder; where it is a link, copy both files (cp -L)",
        )
    if not there:
        raise ReadError(
            f"the external data file {location!r} of weight {tensor.name!r} is missing",
            hint=f"put {location!r} back beside the model, in {folder}",
        )
    return path


def check_external(tensor: onnx.TensorProto, folder: Path | None) -> None:
    """ReadError where the data of ``tensor`` are not all there."""
    path, wanted = data_file(tensor, folder), nbytes(tensor)
    entries = _entries(tensor)
    offset, length = (entries.get(key, default) for key, default in (("offset", "0"), ("length", str(wanted))))
    if not (offset.isdecimal() and length == str(wanted)):
        raise ReadError(
            f"weight {tensor.name!r} is {wanted} bytes by its sizes; the model says {length} from {offset} on",
            hint="the model file is damaged: copy or export it again",
        )
    size, end = path.stat().st_size, int(offset) + wanted
    if size < end:
        raise ReadError(
            f"the external data file {path.name!r} has {size} bytes; weight {tensor.name!r} ends at {end}",
            hint="the data file is truncated: copy or export it again",
        )


def to_array(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    """The values of ``tensor``, read now; larger ones in another file when they are looked at."""
    if is_external(tensor):
        check_external(tensor, folder)
        if shared(tensor) and (mapped := _mapped(tensor, folder)).flags.aligned:
            return mapped
        here = onnx.TensorProto()
        here.CopyFrom(tensor)  # onnx before 1.22 keeps the bytes it reads in the tensor it is given
        tensor = here
    try:
        return numpy_helper.to_array(tensor, str(folder or ""))
    except (ValueError, TypeError) as error:
        raise ReadError(
            f"weight {tensor.name!r} of sizes {list(tensor.dims)} cannot be read: {error}",
            hint="the file is damaged: copy or export it again",
        ) from error


def _mapped(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    offset = int(next((entry.value for entry in tensor.external_data if entry.key == "offset"), 0))
    dtype = np.dtype(dtype_name(tensor.data_type)).newbyteorder("<")
    return np.asarray(np.memmap(data_file(tensor, folder), dtype, "r", offset, tuple(tensor.dims)))


def from_array(array: Array, like: onnx.TensorProto, name: str = "") -> onnx.TensorProto:
    """``array`` as a tensor stored inside the file, with the type, doc string and metadata of ``like``."""
    made = onnx.TensorProto()
    made.CopyFrom(without_data(like))
    made.name = name or like.name
    del made.dims[:]
    made.dims.extend(array.shape)
    if array.dtype.isbuiltin == 1 and array.dtype.kind in "biuf":
        made.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return made
    fresh = numpy_helper.from_array(np.ascontiguousarray(array))
    if fresh.string_data:
        made.string_data.extend(fresh.string_data)
    else:
        made.raw_data = fresh.raw_data
    return made


def raw(tensor: onnx.TensorProto) -> bytes | None:
    """The bytes of a tensor that holds its data, as they would lie in a file; None for text, which has no such form."""
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    return None if tensor.string_data else numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


def without_data(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Name, type, sizes and documentation, but no bytes."""
    bare = onnx.TensorProto(dims=tensor.dims, metadata_props=tensor.metadata_props)
    for field in ("name", "data_type", "doc_string"):
        if tensor.HasField(field):
            setattr(bare, field, getattr(tensor, field))
    return bare
