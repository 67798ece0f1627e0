"""An ONNX file, lifted to torch, that many batches walk through side by side, a stretch of nodes at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from graphprune.consumers import Site
from graphprune.formats.onnx.lift import lift
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.torch.moments import rows_at
from graphprune.graph import Array


class Walk:
    """As `graphprune.sequential.Walk` says."""

    def __init__(self, model: OnnxModel, batches: Sequence[Mapping[str, Array]]) -> None:
        self._lifted = lift(model)
        self._held = [self._lifted.inputs(feeds) for feeds in batches]
        self._at = 0

    @property
    def batches(self) -> int:
        """As the protocol says."""
        return len(self._held)

    @property
    def bytes(self) -> int:
        """As the protocol says."""
        return sum(value.nbytes for held in self._held for value in held.values())

    def drop(self, count: int) -> None:
        """As the protocol says."""
        del self._held[-count:]

    def to(self, node: int) -> None:
        """As the protocol says."""
        constants = self._lifted.constants
        steps = [step for step in self._lifted.steps if self._at <= step[0].index < node]
        with torch.no_grad():
            for batch, held in enumerate(self._held):
                found = self._lifted.through(steps, constants | held)
                self._held[batch] = {name: value for name, value in found.items() if name not in constants}
        self._at = max(self._at, node)

    def rows(self, batch: int, site: Site) -> Array:
        """As the protocol says."""
        return np.asarray(rows_at(self._held[batch][site.value], site).numpy())

    def holds(self, value: str) -> bool:
        """As the protocol says."""
        return all(value in held for held in self._held)

    def put(self, weight: str, values: Array) -> None:
        """As the protocol says."""
        old: Tensor = self._lifted.constants[weight]
        self._lifted.constants[weight] = torch.as_tensor(values).to(old.dtype)
