"""How far a model's outputs move when it is cut, or what a fitness says: what allocators that try candidates go by.

The weights that stay make up for what goes, by least squares. What is solved for a consumer is kept for the next
candidate that keeps the same of its positions, so that a candidate costs a cut and a few forward passes. Where there
are several batches, weights are fitted on every other one, and outputs looked at on those between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from graphprune.analysis import Analysis
from graphprune.classes import classes
from graphprune.compensate import DAMPING, Changed, loses, refit
from graphprune.consumers import Consumer, Site, consumers
from graphprune.dims import Chosen, Dim, Positions, take
from graphprune.formats import THREADS, Format, Runner
from graphprune.graph import Array, Graph
from graphprune.memo import Memo
from graphprune.stats import Moments
from graphprune.verify import moved

LOOKS = 4
"""Batches that outputs are looked at on."""
HELD = 1 << 29
"""Bytes of solutions that are kept."""
_ROWS = 32
_TINY = 1e-30

Outputs = dict[str, Array]


class Tried:
    """Called with positions to keep: how far outputs move then.

    That is the divergence of what is chosen from, in nats, where outputs choose between classes; else the norm of the
    change relative to the outputs. With a ``fitness`` (its name, and a function of a cut model and of what was kept) it
    is what that is, negated.
    """

    def __init__(
        self,
        format: Format,
        model: Any,
        analysis: Analysis,
        batches: Sequence[Mapping[str, Array]],
        moments: Mapping[Site, Moments] | None = None,
        damping: float | None = None,
        memo: Memo | None = None,
        fitness: tuple[str, Callable[[Any, Chosen], float]] | None = None,
    ) -> None:
        self.format, self.model, self.analysis = format, model, analysis
        self.moments, self.damping = moments or {}, DAMPING if damping is None else damping
        fitted = [m for m in self.moments.values() if m.count]
        self.fitness = fitness
        self.apart = fitness is None and len(batches) > 1 and all(m.half is not None for m in fitted)
        held_out = batches[1::2] if self.apart else batches
        self.batches = held_out[:: max(1, -(-len(held_out) // LOOKS))]
        self.memo = memo or Memo()
        self._solved: dict[tuple[int, bytes], Changed] = {}

    def __call__(self, chosen: Chosen) -> float:
        digest = hashlib.blake2b(digest_size=12)
        for atom in self.analysis.atoms:
            if atom.dim in chosen:
                digest.update(f"{atom.index}:".encode() + chosen[atom.dim].astype(np.int64).tobytes())
        asked = f"fitness {self.fitness[0]}" if self.fitness else "moved"
        return self.memo(f"{asked} {digest.hexdigest()}", lambda: self._find(chosen))

    def _find(self, chosen: Chosen) -> float:
        values: dict[str, Array] = {}
        for number, consumer in enumerate(self._consumers):
            if loses(consumer, chosen):
                values |= self._refit(number, take(consumer.dim, chosen)).values
        if self.fitness:
            return -self.fitness[1](self._cut(chosen, values), chosen)
        if len(chosen) == 1 and not values and chosen.keys() <= self._able:  # as large as the whole: zeros will do
            run = self._zeroed(chosen)
        else:
            run = self.format.run(self._cut(chosen, values), threads=THREADS)
        found = distance(self.analysis.graph, self._dense, [run(batch) for batch in self.batches])
        return found if np.isfinite(found) else float("inf")

    def _cut(self, chosen: Chosen, values: Mapping[str, Array]) -> Any:
        model = self.format.replaced(self.model, values, {}) if values else self.model
        return self.format.apply(model, self.analysis, chosen)

    @cached_property
    def _dense(self) -> list[Outputs]:
        run = self.format.run(self.model, threads=THREADS)
        return [run(batch) for batch in self.batches]

    @cached_property
    def _able(self) -> set[Dim]:
        return self.format.maskable(self.analysis)

    @cached_property
    def _zeroed(self) -> Callable[[Chosen], Runner]:
        return self.format.masked(self.model, self.analysis, self._able)

    @cached_property
    def _consumers(self) -> list[Consumer]:
        return [c for c in consumers(self.analysis) if all(site in self.moments for site in c.sites)]

    def _refit(self, number: int, kept: Positions) -> Changed:
        """The consumer of that number fitted anew for the positions that it keeps, or as it was found before."""
        consumer, key = self._consumers[number], (number, kept.tobytes())
        found = self._solved.pop(key, None)
        if found is None:
            seen = {site: _fitted(self.moments[site]) if self.apart else self.moments[site] for site in consumer.sites}
            found = refit(self.analysis, consumer, kept, seen, self.damping)
        self._solved[key] = found  # the last to be let go
        while len(self._solved) > 1 and sum(map(_bytes, self._solved.values())) > HELD:
            del self._solved[next(iter(self._solved))]
        return found


def unit(graph: Graph) -> str:
    """What a `distance` of outputs is in."""
    choose = any(classes(graph, name) for name in graph.outputs)
    return "drift (nats)" if choose else "drift (relative)"


def _fitted(moments: Moments) -> Moments:
    """Those of the half of the data that is fitted."""
    return moments.halves[0] if moments.halves else moments


def _bytes(changed: Changed) -> int:
    return sum(value.nbytes for value in changed.values.values())


def distance(graph: Graph, before: Sequence[Outputs], after: Sequence[Outputs]) -> float:
    """How far outputs moved: of those that choose between classes the mean divergence, else as `verify.moved` says."""
    same = [name for name in before[0] if before[0][name].shape == after[0][name].shape]
    found = {name: how for name in same if (how := classes(graph, name)) is not None}
    if not found:
        return moved([{name: old[name] for name in same} for old in before], after)
    return sum(
        float(np.mean(np.concatenate([*_divergences(how, (old[n] for old in before), (new[n] for new in after))])))
        for n, how in found.items()
    )


def _divergences(how: str, before: Iterable[Array], after: Iterable[Array]) -> Iterator[Array]:
    """Of rows, in nats, a block at a time: a vocabulary is large."""
    for old, new in zip(before, after, strict=True):
        rows = old.reshape(-1, old.shape[-1]), new.reshape(-1, new.shape[-1])
        for at in range(0, len(rows[0]), _ROWS):
            p, q = (_logs(part[at : at + _ROWS], how) for part in rows)
            yield (np.exp(p) * (p - q)).sum(1)


def _logs(rows: Array, how: str) -> Array:
    """Logarithms of probabilities."""
    values = rows.astype(np.float32)
    if how == "probabilities":
        return np.log(np.maximum(values, _TINY))
    values = values - values.max(1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(1, keepdims=True)))
