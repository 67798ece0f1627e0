"""Writing a model: beside the target and renamed, weights one at a time where they lie in a file of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx

from graphprune.errors import WriteError
from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.model import OnnxModel, copy_without_weights

_ALIGN = 4096
_KEEP_INLINE = 1024


def save(model: OnnxModel, path: str | Path, progress: Callable[[float], None] | None = None) -> Path:
    """Write ``model`` to ``path``, weights to ``path + ".data"`` where they lay outside before or are too large.

    Nothing appears under its final name before all bytes are on disk; on any error the partial files are removed.
    """
    path = Path(path)
    data = path.with_name(path.name + ".data")
    token = f".{os.getpid()}.partial"
    half, half_data = path.with_name(path.name + token), data.with_name(data.name + token)
    external = model.large or model.external
    try:
        proto = _stream(model, half_data, data.name, progress) if external else model.inline()
        half.write_bytes(proto.SerializeToString())
        if external:
            os.replace(half_data, data)
        os.replace(half, path)
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}",
            hint="check the folder, its permissions and the free space",
        ) from error
    finally:
        for left in (half, half_data):
            left.unlink(missing_ok=True)
    return path


def _stream(model: OnnxModel, target: Path, name: str, progress: Callable[[float], None] | None) -> onnx.ModelProto:
    proto = copy_without_weights(model.proto)
    total, done = max(1, model.bytes), 0
    with target.open("wb") as file:
        for tensor in model.proto.graph.initializer:
            size = tensors.nbytes(tensor)
            if size < _KEEP_INLINE:
                proto.graph.initializer.append(model.tensor(tensor))
                continue
            raw = _raw(model.tensor(tensor))
            file.seek(-file.tell() % _ALIGN, os.SEEK_CUR)
            entry = tensors.without_data(tensor)
            _point(entry, name, file.tell(), len(raw))
            file.write(raw)
            proto.graph.initializer.append(entry)
            done += size
            if progress is not None:
                progress(done / total)
    return proto


def _raw(tensor: onnx.TensorProto) -> bytes:
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data


def _point(tensor: onnx.TensorProto, name: str, offset: int, length: int) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def disk_bytes(path: Path) -> int:
    """Bytes of the file and of the data files beside it that it names."""
    proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    files = {path} | {
        path.parent / entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sum(file.stat().st_size for file in files)


def same(a: OnnxModel, b: OnnxModel) -> bool:
    """Whether two models have the same nodes and the same weights, read one at a time."""
    if copy_without_weights(a.proto) != copy_without_weights(b.proto):
        return False
    left, right = ({t.name: t for t in m.proto.graph.initializer} for m in (a, b))
    return left.keys() == right.keys() and all(_raw(a.tensor(left[n])) == _raw(b.tensor(right[n])) for n in left)
