"""An ONNX model in hand: the protobuf, the folder its external data lie in, and weights that a cut will make.

The larger weights are not in the protobuf, which is copied for every session, but beside it, as arrays whose memory
all sessions and torch share. A cut weight of a file with external data is a recipe (`Edit`) until it is written or run,
so that memory follows the largest tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.bodies import scopes
from graphprune.graph import Array, Graph, Picks, pick
from graphprune.memory import give_back

Trial = tuple[dict[str, int], dict[str, Array]]
"""Sizes by symbol, and inputs of those sizes by name."""
INLINE_LIMIT = 1_800_000_000
"""Bytes of weights above which a model is written with external data (a protobuf file ends at 2 GiB)."""


@dataclass(frozen=True)
class Edit:
    """A weight to be made from ``source``, or from ``values`` in its place: the positions ``picks`` of its axes."""

    source: onnx.TensorProto
    folder: Path | None
    picks: Picks = ()
    values: Array | None = None

    def array(self) -> Array:
        """The new values."""
        return pick(tensors.to_array(self.source, self.folder) if self.values is None else self.values, self.picks)


@dataclass
class OnnxModel:
    """``proto`` (weights in other files are not loaded), ``folder``, ``edits`` of initialisers, ``given`` inputs.

    ``written`` is the model with its calls of local functions, where ``proto`` has the nodes that they stand for; its
    initialisers are those of ``proto``. ``like`` is the graph of a model that differs in values of weights alone, if
    one is known: it tells all shapes.
    """

    proto: onnx.ModelProto
    folder: Path | None = None
    path: Path | None = None
    edits: dict[str, Edit] = field(default_factory=dict)
    given: Trial | None = None
    written: onnx.ModelProto | None = None
    like: Graph | None = None

    @cached_property
    def graph(self) -> Graph:
        """The format-free view that analysis works on."""
        from graphprune.formats.onnx.view import view

        found = view(self)
        give_back(self.bytes)
        return found

    @property
    def bytes(self) -> int:
        """Bytes of all initialisers and constants."""
        return sum(tensors.nbytes(t) for scope in scopes(self.proto) for _, t in held_tensors(scope.graph))

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

    def array(self, tensor: onnx.TensorProto) -> Array:
        """The values of ``tensor``, edited or read as need be."""
        edit = self.edits.get(tensor.name)
        return tensors.to_array(tensor, self.folder) if edit is None else edit.array()

    def tensor(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """``tensor`` with its bytes, edited or read as need be."""
        outside = tensor.name in self.edits or tensors.is_external(tensor)
        return tensors.from_array(self.array(tensor), tensor) if outside else tensor

    def copy(self) -> OnnxModel:
        """The same model, whose protobuf and edits can be changed; larger weights are shared."""
        proto, written = onnx.ModelProto(), onnx.ModelProto()
        proto.CopyFrom(self.proto)
        written.CopyFrom(self.written or written)
        made = replace(self, proto=proto, path=None, edits=dict(self.edits), written=self.written and written)
        made.like = None
        return made

    def put(self, values: Mapping[str, Array]) -> None:
        """Let ``values`` take the place of the weights of those names, each of the same shape and type."""
        for tensor in self.proto.graph.initializer:
            if tensor.name in values:
                self._hold(tensor, values[tensor.name])
        inside = [scope for proto in (self.proto, self.written) if proto is not None for scope in scopes(proto)]
        for scope in inside:
            for own, stored in held_tensors(scope.graph, initialisers=scope.number > 0):
                name = scope.name(own)
                if name in values:
                    stored.CopyFrom(tensors.from_array(values[name], stored))

    def _hold(self, tensor: onnx.TensorProto, values: Array) -> None:
        """Put ``values`` into ``tensor``, an initialiser, or beside the protobuf."""
        if tensors.shared(tensor):
            tensor.CopyFrom(tensors.without_data(tensor))
            self.edits[tensor.name] = Edit(tensor, None, (), np.ascontiguousarray(values))
        else:
            tensor.CopyFrom(tensors.from_array(values, tensor))
            self.edits.pop(tensor.name, None)

    def settled(self) -> OnnxModel:
        """The same model with its edits carried out: larger weights beside the protobuf, all others in it."""
        made = replace(self, proto=copy_without_weights(self.proto), edits={})
        for tensor in self.proto.graph.initializer:
            if tensor.name in self.edits or (tensors.shared(tensor) and _plain(tensor)):
                made.proto.graph.initializer.append(tensors.without_data(tensor))
                made._hold(made.proto.graph.initializer[-1], self.array(tensor))
            else:
                made.proto.graph.initializer.append(tensor)
        return made

    def inline(self) -> onnx.ModelProto:
        """The whole model in one protobuf (the same object where nothing is pending)."""
        if not self.edits and not self.external:
            return self.proto
        proto = copy_without_weights(self.proto)
        for tensor in self.proto.graph.initializer:
            proto.graph.initializer.append(self.tensor(tensor))
        return proto


def copy_without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Everything but the graph's initialisers, fields that the installed onnx does not know included."""
    copy = onnx.ModelProto()
    for source, target, leave in ((proto, copy, "graph"), (proto.graph, copy.graph, "initializer")):
        _copy_fields(source, target, {field_.name for field_, _ in source.ListFields()} - {leave})
        _copy_unknown(source, target)
    return copy


def around(message: Message, name: str) -> tuple[bytes, bytes]:
    """``message`` as in a file, but for the field ``name``: what comes before it and what comes after."""
    at, fields = message.DESCRIPTOR.fields_by_name[name].number, message.ListFields()
    before, after = type(message)(), type(message)()
    _copy_fields(message, before, {field_.name for field_, _ in fields if field_.number < at})
    _copy_fields(message, after, {field_.name for field_, _ in fields if field_.number > at})
    _copy_unknown(message, after)
    return before.SerializeToString(), after.SerializeToString()


def opening(message: Message, name: str, size: int) -> bytes:
    """What comes in a file before ``size`` bytes of the field ``name`` of ``message``."""
    return _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | 2) + _varint(size)


def _copy_fields(source: Message, target: Message, names: set[str]) -> None:
    for field_, value in source.ListFields():
        if field_.name in names:
            _copy_field(target, field_, value)


def _copy_unknown(source: Message, target: Message) -> None:
    unknown = _unknown_fields(source)
    if unknown:
        target.MergeFromString(unknown)


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


_PLAIN = {"name", "data_type", "dims", "doc_string", "metadata_props", "raw_data"}


def _plain(tensor: onnx.TensorProto) -> bool:
    """Whether ``tensor`` holds raw data, and beside them nothing that would be lost without them."""
    plain = {descriptor.name for descriptor, _ in tensor.ListFields()} <= _PLAIN and not _unknown_fields(tensor)
    return plain and tensor.HasField("raw_data")


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node, None for other nodes and for spelled-out, sparse or string values."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def held_tensors(graph: onnx.GraphProto, *, initialisers: bool = True) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initialisers and the tensors of Constant nodes of one graph, each under the name that the graph gives it."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer if initialisers)
    for node in graph.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            yield node.output[0], tensor


def native(model: OnnxModel) -> onnx.ModelProto:
    """The protobuf, weights included; where they lie in it, what is done to it is done to the model."""
    if model.external:
        return model.inline()
    model.proto, model.edits = model.inline(), {}
    model.__dict__.pop("graph", None)  # it loads the weights that were
    return model.proto
