"""Writing a model: beside the target and renamed, weights one at a time where they lie in a file of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError

from graphprune.errors import UsageError, WriteError
from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.model import OnnxModel, around, copy_without_weights, opening

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
        _check_target(model, path, data if external else None)
        with half.open("wb") as file:
            if external:
                file.write(_stream(model, half_data, data.name, progress).SerializeToString())
            else:
                file.writelines(_pieces(model))
        if external:
            os.replace(half_data, data)
        os.replace(half, path)
    except (OSError, ValueError, EncodeError) as error:
        raise WriteError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}",
            hint="check the folder, its permissions and the free space",
        ) from error
    finally:
        for left in (half, half_data):
            with suppress(OSError):
                left.unlink()
    return path


def _check_target(model: OnnxModel, path: Path, data: Path | None) -> None:
    """WriteError where a file to be written cannot be replaced, or is one that the model still reads weights from."""
    for target in filter(None, (path, data)):
        if target.exists() and not target.is_file():
            raise WriteError(f"{target} is not a file", hint="name the file to write")
        if target.exists() and any(target.samefile(source) for source in model.data_files()):
            raise WriteError(
                f"writing {path} would overwrite {target}, which the model reads its weights from",
                hint="choose another name or folder for the output",
            )


def _pieces(model: OnnxModel) -> list[bytes]:
    """The file of the whole model, in pieces: each weight is made by itself, and there is no protobuf of them all."""
    proto = model.proto
    (start, end), (before, after) = around(proto, "graph"), around(proto.graph, "initializer")
    inside = [before]
    for tensor in proto.graph.initializer:
        whole = model.tensor(tensor).SerializeToString()
        inside += opening(proto.graph, "initializer", len(whole)), whole
    inside.append(after)
    return [start, opening(proto, "graph", sum(map(len, inside))), *inside, end]


def _stream(model: OnnxModel, target: Path, name: str, progress: Callable[[float], None] | None) -> onnx.ModelProto:
    proto = copy_without_weights(model.proto)
    total, done = max(1, model.bytes), 0
    with target.open("wb") as file:
        for tensor in model.proto.graph.initializer:
            size = tensors.nbytes(tensor)
            if size < _KEEP_INLINE:
                proto.graph.initializer.append(model.tensor(tensor))
                continue
            whole = model.tensor(tensor)
            raw = tensors.raw(whole)
            if raw is None:
                proto.graph.initializer.append(whole)
                continue
            file.seek(-file.tell() % _ALIGN, os.SEEK_CUR)
            entry = tensors.without_data(tensor)
            _point(entry, name, file.tell(), len(raw))
            file.write(raw)
            proto.graph.initializer.append(entry)
            done += size
            if progress is not None:
                progress(done / total)
    return proto


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
    return left.keys() == right.keys() and all(_alike(a.tensor(left[n]), b.tensor(right[n])) for n in left)


def _alike(a: onnx.TensorProto, b: onnx.TensorProto) -> bool:
    """The same values, type, sizes and documentation, wherever the data lie."""
    plain = tensors.without_data(a) == tensors.without_data(b)
    return plain and tensors.raw(a) == tensors.raw(b) and a.string_data == b.string_data


def exported(model: OnnxModel) -> None:
    """UsageError: there is nothing to export."""
    raise UsageError("an ONNX model is exported already", hint="use result.model, or result.save(path)")


def cut_in_place(model: OnnxModel, pruned: OnnxModel, analysis: object, chosen: object) -> None:
    """UsageError: a file is written anew."""
    raise UsageError("an ONNX model is not cut in place", hint="use result.model, or result.save(path)")
