"""What an allocator is: a named function from a Problem to how many positions of each atom stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Atom
from graphprune.dims import Dim
from graphprune.errors import UsageError
from graphprune.scores import Across, Scores

Floats = npt.NDArray[np.float64]
Counts = Mapping[Dim, int]
CostFunction = Callable[[Counts], float]
"""What a model costs at sizes of its atoms (those not named have all their positions)."""
TRIES = 80
_NOTHING = 1e-9
"""The share of a cost that is taken to be freed at the least."""


def _nobody(done: float) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Problem:
    """What is to be shared out.

    ``scores`` are of each position of ``atoms``, and compare as ``across`` says; of a Dim the best stay. ``counts`` are
    what each atom may keep, ascending. ``limits`` are what ``costs`` may come to, by name: at least one, none that all
    positions together would keep to, none that ``least`` would not. Where a cost is the largest of several sums, no Dim
    alone may bring it down; ``charged`` are functions near such costs, by name, made of all the sums: what positions
    free is seen from them. ``measured`` tells how far the model's outputs move at given counts, where there are data to
    see it on, ``tries`` how often it may be asked.
    """

    atoms: Sequence[Atom]
    scores: Scores
    counts: Mapping[Dim, npt.NDArray[np.int64]]
    costs: Mapping[str, CostFunction]
    limits: Mapping[str, float]
    across: Across = "mean"
    charged: Mapping[str, CostFunction] = field(default_factory=dict)
    measured: Callable[[Counts], float] | None = None
    tries: int = TRIES
    seed: int = 0
    progress: Callable[[float], None] = _nobody

    @property
    def least(self) -> dict[Dim, int]:
        """The fewest that each may keep."""
        return {atom.dim: int(self.counts[atom.dim][0]) for atom in self.atoms}

    def rounded(self, dim: Dim, wish: float) -> int:
        """The first count from ``wish`` on, or the last."""
        found = self.counts[dim]
        return int(found[min(len(found) - 1, int(np.searchsorted(found, wish - 1e-9)))])

    def fits(self, counts: Counts) -> bool:
        """Whether every limit holds."""
        return all(self.costs[name](counts) <= limit for name, limit in self.limits.items())

    def charge(self, name: str) -> CostFunction:
        """The cost ``name``, or what positions are charged by in its place."""
        return self.charged.get(name, self.costs[name])

    def freed(self, at: Counts, weights: Mapping[str, float]) -> dict[Dim, float]:
        """The share of what ``at`` costs, in ``weights`` of the costs, that one position of each Dim less frees."""
        here = {name: self.charge(name)(at) for name in weights}
        found = {}
        for atom in self.atoms:
            count, counts = at.get(atom.dim, atom.size), self.counts[atom.dim]
            below = int(counts[max(0, int(np.searchsorted(counts, count)) - 1)])
            fewer = {**at, atom.dim: below if below < count else count - 1}
            shares = {name: 1 - self.charge(name)(fewer) / cost for name, cost in here.items()}
            whole = sum(weights[name] * max(_NOTHING, share) for name, share in shares.items())
            found[atom.dim] = whole / (count - fewer[atom.dim])
        return found

    @cached_property
    def values(self) -> dict[Dim, Floats]:
        """Scores of each Dim, the dearest first, as they are or relative to their mean."""
        own = {a.dim: np.sort(self.scores[a.dim])[::-1] for a in self.atoms}
        return {dim: _to_mean(values) for dim, values in own.items()} if self.across == "mean" else own

    @cached_property
    def losses(self) -> dict[Dim, Floats]:
        """The same as losses that add up: where scores are none, a position is worth its score for what it frees."""
        if self.across == "error":
            return self.values
        freed = self.freed({}, dict.fromkeys(self.limits, 1.0))
        return {dim: values * freed[dim] for dim, values in self.values.items()}

    @cached_property
    def curves(self) -> dict[Dim, Floats]:
        """What is lost of each Dim when 0, 1, ... size of its positions stay."""
        return {dim: np.append(np.cumsum(values[::-1])[::-1], 0.0) for dim, values in self.losses.items()}

    def loss(self, counts: Counts) -> float:
        """What is lost of all Dims together."""
        return float(sum(self.curves[dim][count] for dim, count in counts.items()))


def _to_mean(values: Floats) -> Floats:
    mean = values.mean()
    return values / mean if mean > 0 else np.ones_like(values)


Function = Callable[[Problem], dict[Dim, int]]


@dataclass(frozen=True)
class Allocator:
    """A way to share a budget out; ``needs`` says what it takes beside scores and costs."""

    name: str
    needs: Literal["nothing", "data", "scipy"]
    doc: str
    function: Function


ALLOCATORS: dict[str, Allocator] = {}


def allocator(name: str, needs: Literal["nothing", "data", "scipy"] = "nothing") -> Callable[[Function], Function]:
    """Register an allocator under ``name``; its docstring is what users read."""

    def register(function: Function) -> Function:
        ALLOCATORS[name] = Allocator(name, needs, (function.__doc__ or "").strip(), function)
        return function

    return register


def known(name: str) -> Allocator:
    """The allocator ``name``; UsageError where there is none."""
    if name not in ALLOCATORS:
        raise UsageError(f"there is no allocator {name!r}", hint=f"choose one of {', '.join(sorted(ALLOCATORS))}")
    return ALLOCATORS[name]
