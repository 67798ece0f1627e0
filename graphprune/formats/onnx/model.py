"""An ONNX model in hand: the protobuf, the folder its external data lie in, and weights that a cut will make.

A cut weight is a recipe (`Edit`) until it is written or run, so that memory follows the largest tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx

from graphprune.formats.onnx import tensors
from graphprune.graph import Array, Graph

Trial = tuple[dict[str, int], dict[str, Array]]
"""Sizes by symbol, and inputs of those sizes by name."""
INLINE_LIMIT = 1_800_000_000
"""Bytes of weights above which a model is written with external data (a protobuf file ends at 2 GiB)."""


@dataclass(frozen=True)
class Edit:
    """A weight to be made from ``source``: positions along each axis (None: all), or a scale, or whole new values."""

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
        """Whether any weight lies beside the file."""
        return any(tensors.is_external(t) for t in self.proto.graph.initializer)

    @property
    def large(self) -> bool:
        """Whether the model cannot be one protobuf."""
        return self.bytes > INLINE_LIMIT

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
    """Everything but the graph's initialisers, fields of newer formats included."""
    weights = list(proto.graph.initializer)
    copy = onnx.ModelProto()
    for field_, value in proto.ListFields():
        if field_.name != "graph":
            _copy_field(copy, field_, value)
    for field_, value in proto.graph.ListFields():
        if field_.name != "initializer":
            _copy_field(copy.graph, field_, value)
    assert len(weights) == len(proto.graph.initializer)
    return copy


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
