"""An ONNX model in hand: the protobuf, the folder its external data lie in, and weights that a cut will make.

A cut weight is a recipe (`Edit`) until it is written or run, so that memory follows the largest tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from graphprune.formats.onnx import tensors
from graphprune.graph import Array, Graph

Trial = tuple[dict[str, int], dict[str, Array]]
"""Sizes by symbol, and inputs of those sizes by name."""
INLINE_LIMIT = 1_800_000_000
"""Bytes of weights above which a model is written with external data (a protobuf file ends at 2 GiB)."""


@dataclass(frozen=True)
class Edit:
    """A weight to be made from ``source``: positions along each axis (None: all), or whole new values."""

    source: onnx.TensorProto
    folder: Path | None
    positions: tuple[Array | None, ...]
    values: Array | None = None

    def array(self) -> Array:
        """The new values."""
        data = tensors.to_array(self.source, self.folder) if self.values is None else self.values
        for axis, index in enumerate(self.positions):
            if index is not None:
                data = data.take(index, axis)
        return data


@dataclass
class OnnxModel:
    """``proto`` (weights in other files are not loaded), ``folder``, ``edits`` of initialisers, ``given`` inputs."""

    proto: onnx.ModelProto
    folder: Path | None = None
    path: Path | None = None
    edits: dict[str, Edit] = field(default_factory=dict)
    given: Trial | None = None

    @cached_property
    def graph(self) -> Graph:
        """The format-free view that analysis works on."""
        from graphprune.formats.onnx.view import view

        return view(self)

    @property
    def bytes(self) -> int:
        """Bytes of all initialisers and constants."""
        return sum(tensors.nbytes(t) for t in stored_tensors(self.proto))

    @property
    def external(self) -> bool:
        """Whether any weight lies beside the file, or did before it was cut."""
        return any(tensors.is_external(t) for t in self._sources())

    @property
    def large(self) -> bool:
        """Whether the model cannot be one protobuf."""
        return self.bytes > INLINE_LIMIT

    def data_files(self) -> set[Path]:
        """The files that weights, or what they are cut from, still have to be read from."""
        return {tensors.data_file(t, self.folder) for t in self._sources() if tensors.is_external(t)}

    def _sources(self) -> Iterator[onnx.TensorProto]:
        yield from self.proto.graph.initializer
        yield from (edit.source for edit in self.edits.values())

    def tensor(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """``tensor`` with its bytes, edited or read as need be."""
        edit = self.edits.get(tensor.name)
        if edit is not None:
            return tensors.from_array(edit.array(), tensor)
        if tensors.is_external(tensor):
            return tensors.from_array(tensors.to_array(tensor, self.folder), tensor)
        return tensor

    def inline(self) -> onnx.ModelProto:
        """The whole model in one protobuf (the same object where nothing is pending)."""
        if not self.edits and not self.external:
            return self.proto
        proto = copy_without_weights(self.proto)
        proto.graph.initializer.extend(self.tensor(t) for t in self.proto.graph.initializer)
        return proto


def copy_without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Everything but the graph's initialisers, fields that the installed onnx does not know included."""
    copy = onnx.ModelProto()
    for source, target, leave in ((proto, copy, "graph"), (proto.graph, copy.graph, "initializer")):
        for field_, value in source.ListFields():
            if field_.name != leave:
                _copy_field(target, field_, value)
        unknown = _unknown_fields(source)
        if unknown:
            target.MergeFromString(unknown)
    return copy


def _unknown_fields(message: Message) -> bytes:
    """Fields that the installed onnx has no name for, as in a file (but for groups, which nothing writes)."""
    found = bytearray()
    for item in UnknownFieldSet(message):
        number, kind, data = item.field_number, item.wire_type, item.data
        if kind == 3:
            continue
        found += _varint(number << 3 | kind)
        if kind == 0:
            found += _varint(data)
        elif kind == 2:
            found += _varint(len(data)) + data
        else:
            found += data.to_bytes(8 if kind == 1 else 4, "little")
    return bytes(found)


def _varint(number: int) -> bytes:
    septets = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([septet | 0x80 for septet in septets[:-1]] + septets[-1:])


def _copy_field(target: object, descriptor: object, value: object) -> None:
    name = descriptor.name  # type: ignore[attr-defined]
    if descriptor.is_repeated:  # type: ignore[attr-defined]
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node, None for other nodes and for spelled-out, sparse or string values."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def stored_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initialisers and the tensors of Constant nodes, of the main graph."""
    yield from proto.graph.initializer
    for node in proto.graph.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            yield tensor


def native(model: OnnxModel) -> onnx.ModelProto:
    """The protobuf, weights included."""
    return model.inline()
