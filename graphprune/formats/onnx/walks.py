"""An ONNX file, lifted to torch, that many batches walk through side by side, a stretch of nodes at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from graphprune.formats.onnx.lift import lift
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.torch.walks import Held
from graphprune.graph import Array


class Walk(Held):
    """As `graphprune.sequential.Walk` says."""

    def __init__(self, model: OnnxModel, batches: Sequence[Mapping[str, Array]]) -> None:
        self._lifted = lift(model)
        self._held = [self._lifted.inputs(feeds) for feeds in batches]
        self._at = 0

    def to(self, node: int) -> None:
        """As the protocol says."""
        constants = self._lifted.constants
        steps = [step for step in self._lifted.steps if self._at <= step[0].index < node]
        with torch.no_grad():
            for batch, held in enumerate(self._held):
                found = self._lifted.through(steps, constants | held)
                self._held[batch] = {name: value for name, value in found.items() if name not in constants}
        self._at = max(self._at, node)

    def put(self, weight: str, values: Array) -> None:
        """As the protocol says."""
        old: Tensor = self._lifted.constants[weight]
        self._lifted.constants[weight] = torch.as_tensor(values).to(old.dtype)
