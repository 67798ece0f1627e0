"""A traced module that many batches walk through side by side, a stretch of nodes at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from graphprune.consumers import Site
from graphprune.formats.torch.gradients import value_name
from graphprune.formats.torch.model import TorchModel, clone, set_tensor, stored
from graphprune.formats.torch.moments import rows_at
from graphprune.formats.torch.proof import tensor
from graphprune.graph import Array


class Held:
    """Batches that stand before a node: for each the values that are still to be read, by what names them."""

    _held: list[dict[Any, Any]]

    @property
    def batches(self) -> int:
        """How many there are."""
        return len(self._held)

    @property
    def bytes(self) -> int:
        """What they take up where they are."""
        return sum(v.nbytes for held in self._held for v in held.values() if isinstance(v, torch.Tensor))

    def drop(self, count: int) -> None:
        """Leave the last ``count`` behind."""
        del self._held[-count:]

    def named(self, value: str) -> Any:
        """What names ``value`` in a batch."""
        return value

    def rows(self, batch: int, site: Site) -> Array:
        """What a consumer sums over at ``site``: [rows, features]."""
        return np.asarray(rows_at(self._held[batch][self.named(site.value)], site).numpy())

    def holds(self, value: str) -> bool:
        """Whether ``value`` is computed by now, and still to be read."""
        return all(self.named(value) in held for held in self._held)


class Walk(Held):
    """As `graphprune.sequential.Walk` says."""

    def __init__(self, model: TorchModel, batches: Sequence[Mapping[str, Array]]) -> None:
        self.model = clone(model)
        self._run = fx.Interpreter(self.model.traced, garbage_collect_values=False)
        nodes = list(self.model.traced.graph.nodes)
        self._nodes = [node for node in nodes if node.op == "call_function"]
        self._attributes = [node for node in nodes if node.op == "get_attr"]
        self._names = {value_name(node): node for node in nodes}
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._ends = self._last_reads()
        inputs = [node for node in nodes if node.op == "placeholder"]
        given = self.model.inputs
        self._held = [{n: tensor(feeds.get(n.name), given.get(n.name)) for n in inputs} for feeds in batches]
        self._at = 0

    def _last_reads(self) -> list[list[fx.Node]]:
        """After each node the values that nobody reads any more."""
        ends: list[list[fx.Node]] = [[] for _ in self._nodes]
        for node in self.model.traced.graph.nodes:
            if node.op != "get_attr" and node.users and all(user in self._place for user in node.users):
                ends[max(self._place[user] for user in node.users)].append(node)
        return ends

    def to(self, node: int) -> None:
        """As the protocol says."""
        calls = self.model.calls
        stop = self._place[calls[node].node] if node in calls else len(self._nodes)
        with torch.no_grad():
            weights = {one: self._run.run_node(one) for one in self._attributes}
            for held in self._held:
                self._run.env = held | weights
                for place in range(self._at, stop):
                    self._run.env[self._nodes[place]] = self._run.run_node(self._nodes[place])
                    for over in self._ends[place]:
                        self._run.env.pop(over, None)
                held.clear()
                held.update({one: value for one, value in self._run.env.items() if one not in weights})
        self._at = max(self._at, stop)

    def named(self, value: str) -> fx.Node | None:
        """As `Held` says."""
        return self._names.get(value)

    def put(self, weight: str, values: Array) -> None:
        """As the protocol says."""
        set_tensor(self.model.traced, weight, torch.as_tensor(values).to(stored(self.model.traced)[weight]))


def walk(model: TorchModel, batches: Sequence[Mapping[str, Any]]) -> Walk:
    """``batches`` before the first node of ``model``."""
    return Walk(model, batches)
