"""The Graph: a thin, format-free, read-only view of a model, made by a format and read by everything after it.

Nodes carry normalised op names (``conv``, ``matmul``), so that a rule written once serves every format. Weights are
loaded one at a time, when asked for. Nothing here knows onnx or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Picks = tuple[tuple[int, npt.NDArray[np.int64]], ...]
"""Axes of a tensor and the positions to take of them, in this order: [k], or of the tensor's rank where they differ
from one position of another axis to the next."""
Shape = tuple[int | str, ...]
"""Sizes of a value's axes; a str names a size that is only known when the model runs (equal names, equal sizes)."""

Body = tuple[tuple[int, int], ...]
"""The bodies that a node is in, outermost first: the node that stands where each begins, and which of several it is."""


@dataclass(frozen=True)
class Value:
    """A tensor in the model: activation, input or weight. ``shape`` is None where not even the rank is known."""

    name: str
    shape: Shape | None
    dtype: str = "float32"


@dataclass(frozen=True)
class Weight:
    """A constant of the model; ``load()`` reads it (and nothing keeps it)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array] = field(repr=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. ``inputs`` holds "" where an optional input is absent.

    ``scope`` is the path of the module that it was traced in, where the exporter kept it. ``outer`` names what the
    bodies of the node capture, where these are not read as further nodes; where they are, those say their ``body``.
    """

    index: int
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(repr=False)
    kind: str = ""
    outer: tuple[str, ...] = ()
    scope: str = ""
    body: Body = ()

    @property
    def label(self) -> str:
        """How messages name the node."""
        return self.name or (self.outputs[0] if self.outputs else self.kind)

    @property
    def convolves(self) -> bool:
        """Whether windows of weights slide over places, so that channels are the axis 1 of what the node makes."""
        return self.op.startswith("conv")


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order, values and weights by name, and the names of inputs and outputs.

    ``example`` gives a concrete size for each symbol, used to count MACs of axes that stay dynamic. ``known`` holds
    numbers that a format gives as inputs though they are arguments (nan where unknown). ``merged`` says that whoever
    wrote the model may have made one of several equal constants, so that sharing a vector couples nothing: a cut may
    give each reader one of its own. ``resizable`` says that the format can write inputs and outputs of other sizes.
    ``defaults`` are weights that whoever runs the model may give others for.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    weights: Mapping[str, Weight]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: Mapping[str, int] = field(default_factory=dict)
    opset: int = 0
    known: Mapping[str, Array] = field(default_factory=dict)
    merged: bool = True
    resizable: bool = False
    defaults: frozenset[str] = frozenset()

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def consumers(self) -> dict[str, list[tuple[Node, int]]]:
        """For each value, the nodes that read it and at which input."""
        found: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for i, name in enumerate(node.inputs):
                found.setdefault(name, []).append((node, i))
        return found

    @cached_property
    def read(self) -> set[str]:
        """Every value that somebody reads: a node, a body inside one, or the user."""
        return {*self.consumers, *self.outputs, *(name for node in self.nodes for name in node.outer)} - {""}

    @cached_property
    def remembers(self) -> bool:
        """Whether there are batch norms, which remember what activations were in training."""
        return any(node.op == "batch_norm" for node in self.nodes)

    def shape(self, name: str) -> Shape | None:
        """The shape of the value ``name``, None where unknown."""
        value = self.values.get(name)
        return value.shape if value else None

    def picked(self, name: str) -> int:
        """Rows of the smallest table that the integers ``name`` pick from, directly or through shape ops; else 0."""
        rows, todo, seen = 0, [name], set()
        while todo:
            value = todo.pop()
            if value in seen:
                continue
            seen.add(value)
            for node, i in self.consumers.get(value, ()):
                if node.op == "gather" and i == 1:
                    shape, axis = self.shape(node.inputs[0]) or (), node.attrs.get("axis", 0)
                    size = shape[axis] if -len(shape) <= axis < len(shape) else 0
                    if isinstance(size, int) and size:
                        rows = min(rows, size) if rows else size
                elif node.op in ("cast", "identity", "reshape", "unsqueeze", "squeeze", "slice") and i == 0:
                    todo += node.outputs
        return rows

    def extent(self, size: int | str) -> int:
        """A concrete size: the size itself, or the example size of a symbol."""
        return size if isinstance(size, int) else self.example.get(size, 1)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"inputs {', '.join(self.inputs)}"
        for node in self.nodes:
            yield f"{', '.join(filter(None, node.outputs))} = {node.op}({', '.join(node.inputs)})"
        yield f"outputs {', '.join(self.outputs)}"


def pick(data: Array, wanted: Picks) -> Array:
    """The positions ``wanted`` of a tensor."""
    for axis, index in wanted:
        data = data.take(index, axis) if index.ndim == 1 else np.take_along_axis(data, index, axis)
    return data
