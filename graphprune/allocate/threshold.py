"""One threshold over the positions of all Dims together: what lies under it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush

import numpy as np

from graphprune.allocate.registry import Counts, Floats, Problem, allocator
from graphprune.dims import Dim

GUARD = 0.5
"""What "guarded" leaves of each Dim at the least, as a share of what "uniform" would."""
AMPLITUDE = 0.2
"""By how much shares differ at the most from the one in the middle, in "layer-adaptive"."""


@allocator("global")
def overall(problem: Problem) -> dict[Dim, int]:
    """All positions ranked together, as the score says: as they are, by what they free, or relative to their Dim."""
    return threshold(problem, ranked(problem))


@allocator("guarded")
def guarded(problem: Problem) -> dict[Dim, int]:
    """Global, but no Dim falls under half its uniform share (minimum threshold of Global MP, arXiv 2209.14624)."""
    even = uniform(problem)
    held = {dim: counts[counts >= min(GUARD * even[dim], counts[-1])] for dim, counts in problem.counts.items()}
    return overall(replace(problem, counts=held))


@allocator("flap")
def flap(problem: Problem) -> dict[Dim, int]:
    """Scores of each Dim brought to mean 0 and deviation 1, then one threshold (FLAP, arXiv 2312.11983)."""
    return threshold(problem, {dim: _standard(values) for dim, values in problem.values.items()})


@allocator("uniform")
def uniform(problem: Problem) -> dict[Dim, int]:
    """The same share of every Dim: the largest that meets the targets."""
    return _shares(problem, {atom.dim: 0.0 for atom in problem.atoms})


@allocator("layer-adaptive")
def layer_adaptive(problem: Problem) -> dict[Dim, int]:
    """Shares around a middle, more where half of a Dim is a greater loss (Adapt-Pruner, arXiv 2502.03460)."""
    half = {a.dim: problem.curves[a.dim][a.size // 2] for a in problem.atoms}
    if problem.across == "mean":
        half = {dim: lost / problem.curves[dim][0] for dim, lost in half.items()}
    logs = np.log(np.maximum([*half.values()], 1e-30))
    around = logs - logs.mean()
    return _shares(problem, dict(zip(half, AMPLITUDE * around / (np.abs(around).max() or 1.0), strict=True)))


def ranked(problem: Problem) -> dict[Dim, Floats]:
    """Values of the positions of each Dim, the dearest first, under which one threshold loses least.

    Losses count for what is freed: of the target's cost, or where several may bind, of one or of all.
    """
    if problem.across != "error":
        return problem.values
    found = [worth(problem, {}, weights) for weights in _weights(problem)]
    return found[0] if len(found) == 1 else min(found, key=lambda values: problem.loss(threshold(problem, values)))


def worth(problem: Problem, at: Counts, weights: Mapping[str, float]) -> dict[Dim, Floats]:
    """What positions are a loss of, for what they free at the counts ``at``, in ``weights`` of the costs."""
    freed = problem.freed(at, weights)
    return {dim: losses / freed[dim] for dim, losses in problem.losses.items()}


def _weights(problem: Problem) -> Iterator[dict[str, float]]:
    """Each target alone, and all together by how far there is to go."""
    far = {name: 1 - limit / problem.costs[name]({}) for name, limit in problem.limits.items()}
    yield from ({name: 1.0} for name in far)
    if len(far) > 1:
        yield {name: 1 / share for name, share in far.items()}


def threshold(problem: Problem, values: Mapping[Dim, Floats]) -> dict[Dim, int]:
    """The lowest threshold over ``values`` that meets the targets; then what still fits is put back."""

    def counts(level: float) -> dict[Dim, int]:
        return {dim: problem.rounded(dim, float(np.sum(own >= level))) for dim, own in values.items()}

    levels = np.unique(np.concatenate([*values.values(), [np.inf]]))
    return filled(problem, first(levels, counts, problem.fits), values)


def first(
    levels: Sequence[float] | Floats, counts: Callable[[float], dict[Dim, int]], fits: Callable[[Counts], bool]
) -> dict[Dim, int]:
    """Counts at the first of ``levels`` where they fit; the last is taken to."""
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(counts(levels[middle])) else (middle + 1, high)
    return counts(levels[high])


def filled(problem: Problem, counts: dict[Dim, int], values: Mapping[Dim, Floats]) -> dict[Dim, int]:
    """Put the dearest removed positions back, a step at a time, for as long as the targets still hold."""
    dims = [atom.dim for atom in problem.atoms]
    last = {dim: int(problem.counts[dim][-1]) for dim in dims}
    waiting = [(-float(values[dim][counts[dim]]), i) for i, dim in enumerate(dims) if counts[dim] < last[dim]]
    heapify(waiting)
    while waiting:
        _, i = heappop(waiting)
        dim = dims[i]
        more = {**counts, dim: problem.rounded(dim, counts[dim] + 1)}
        if problem.fits(more):
            counts = more
            if counts[dim] < last[dim]:
                heappush(waiting, (-float(values[dim][counts[dim]]), i))
    return counts


def _shares(problem: Problem, offsets: Mapping[Dim, float]) -> dict[Dim, int]:
    """The same share and an offset of each Dim: the largest share that meets the targets."""

    def counts(less: float) -> dict[Dim, int]:
        return {a.dim: _under(problem.counts[a.dim], (1 - less + offsets[a.dim]) * a.size) for a in problem.atoms}

    every = np.concatenate([1 + offsets[a.dim] - problem.counts[a.dim] / a.size for a in problem.atoms])
    return first(np.unique(every), counts, problem.fits)


def _under(counts: np.typing.NDArray[np.int64], wish: float) -> int:
    """The last of ``counts`` up to ``wish``, or the first."""
    return int(counts[max(0, int(np.searchsorted(counts, wish + 1e-9, side="right")) - 1)])


def _standard(values: Floats) -> Floats:
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)
