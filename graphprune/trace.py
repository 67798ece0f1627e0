"""How alike the gradients of a cut model are to those of the whole: a fitness that needs no training and no labels.

A model that lies where the whole one does in the landscape of the loss learns what it lost. So gradients of the weights
that stay are held against those of the same weights in the whole model (TraceNAS, arXiv 2602.02891): the correlation of
each weight's two gradients, weighted by how many numbers are left of it. The loss is the model's own (see
`graphprune.formats.torch.loss`): labels of both are drawn by the same random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from graphprune.analysis import Analysis
from graphprune.dims import Chosen, picks
from graphprune.formats import Format
from graphprune.graph import Array, pick

TRACE = "trace"
"""What this fitness is called."""


class Trace:
    """Called with a cut model, as ``format`` holds it, and what was kept: from -1 to 1, which is the whole model's."""

    def __init__(
        self, format: Format, model: Any, analysis: Analysis, batches: Sequence[Mapping[str, Array]], seed: int = 0
    ) -> None:
        self.format, self.model, self.analysis, self.batches, self.seed = format, model, analysis, batches, seed
        self.layouts = {name: layout for name, _, _, layout in analysis.uses}

    def __call__(self, pruned: Any, chosen: Chosen) -> float:
        found, numbers = 0.0, 0
        for name, own in self._gradients(pruned).items():
            if name not in self._whole:
                continue
            whole = pick(self._whole[name], picks(self.layouts.get(name, ()), chosen))
            if whole.shape == own.shape and own.size > 1:
                found, numbers = found + own.size * _correlation(own, whole), numbers + own.size
        return found / max(1, numbers)

    @cached_property
    def _whole(self) -> dict[str, Array]:
        return self._gradients(self.model)

    def _gradients(self, model: Any) -> dict[str, Array]:
        """Of each weight, added up over batches."""
        sums: dict[str, Array] = {}
        for batch in self.format.gradients(model, None, self.batches, self.seed)("gradient"):
            for name, gradient in batch.items():
                sums[name] = sums[name] + gradient if name in sums else gradient
        return sums


def _correlation(a: Array, b: Array) -> float:
    """Pearson's, of all numbers; 0 where one of them does not change."""
    x, y = (part.ravel() - part.mean() for part in (a, b))
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0 else 0.0
