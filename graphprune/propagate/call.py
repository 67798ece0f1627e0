"""One node and what is known of its inputs; the table of what ops do, and how a line gets into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphprune.graph import Array, Graph, Node
from graphprune.propagate.state import Floats, State
from graphprune.values import Values

Given = State | Array | None


@dataclass(frozen=True)
class Call:
    """One node, and what is known of its inputs."""

    graph: Graph
    node: Node
    ins: list[Given]
    known: Values

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.node.attrs.get(name, default)

    def shape(self, number: int = 0) -> tuple[int, ...]:
        """The concrete shape of an output."""
        return sizes(self.graph, self.node.outputs[number])

    def state(self, number: int = 0) -> State:
        """An input that is an activation."""
        found = self.ins[number]
        if not isinstance(found, State):
            raise TypeError(f"input {number} is no activation")
        return found

    def array(self, number: int) -> Floats | None:
        """An input that is a constant, None where it is absent."""
        found = self.ins[number] if number < len(self.ins) else None
        if isinstance(found, State):
            raise TypeError(f"input {number} is no constant")
        return None if found is None else np.asarray(found, np.float64)


def sizes(graph: Graph, name: str) -> tuple[int, ...]:
    """A shape with the example sizes of what is dynamic."""
    shape = graph.shape(name)
    if shape is None:
        raise ValueError(f"the shape of {name} is not known")
    return tuple(map(graph.extent, shape))


Apply = Callable[[Call], State | list[State] | None]
OPS: dict[str, Apply] = {}
NEEDED: dict[str, tuple[int, ...]] = {"softmax": (), "shape": (), "sdpa": (2,), "attention": (2,), "where": (1, 2)}
NEEDED |= dict.fromkeys(
    "reshape flatten unflatten squeeze unsqueeze expand expand_as reshape_as slice gather".split(), (0,)
)
NEEDED |= dict.fromkeys("split reduce_mean reduce_sum dropout cast_like pad".split(), (0,))
"""Inputs that an op's line looks at, where these are not all."""


def does(names: str) -> Callable[[Apply], Apply]:
    """Register a function of a `Call`."""

    def register(function: Apply) -> Apply:
        for name in names.split():
            OPS[name] = function
        return function

    return register
