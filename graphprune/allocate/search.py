"""Evolution over how much each Dim counts, judged by how far the outputs move.

Curves of Dims are guesses, and errors of different Dims do not add up. So the curve of each is multiplied by a number,
the threshold of "global" turns the numbers into counts that meet the targets, and the model that results is tried on
data. Numbers that moved the outputs least are changed at random, in steps that grow where that helps and shrink where
it does not, like a (1+1) evolution strategy: candidates are tried one after another, and each gains from the last.
The first candidates level the curves: divided by their greatest loss to the power of 0 (that is "global"), .15, ...
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from graphprune.allocate.registry import Floats, Problem, allocator
from graphprune.allocate.threshold import overall, ranked, threshold
from graphprune.dims import Dim
from graphprune.errors import UsageError

LEVELS = (0.0, 0.15, 0.3, 0.45, 0.6)
GRID = 32
"""Counts of a Dim that are told apart, so that what was solved for one candidate serves the next."""
_STEP, _WIDEST, _NARROWEST = 0.7, 1.5, 0.2
_SHARE = 0.15
_FEWEST = 3
"""Of the Dims, and how many at the least, that change at once."""
_TINY = 1e-30


@allocator("search", needs="data")
def search(problem: Problem) -> dict[Dim, int]:
    """Evolution of what Dims count for, tried on data (as DarwinLM, arXiv 2502.07780; Týr-the-Pruner, 2503.09657)."""
    if problem.measured is None:
        raise UsageError(
            "the allocator 'search' tries candidates on data, and there are none",
            hint="give data (--calib FILE, or self), or choose another; see graphprune allocators",
        )
    values, random = ranked(problem), np.random.default_rng(problem.seed)
    coarse = replace(problem, counts={dim: _coarse(counts) for dim, counts in problem.counts.items()})
    most = np.log([max(float(problem.values[dim][0]), _TINY) for dim in values])
    counts, at, step = overall(problem), np.zeros(len(most)), _STEP
    least = problem.measured(counts)
    for done in range(problem.tries - 1):
        start = done < len(LEVELS)
        new = -LEVELS[done] * most if start else at + _change(random, len(most), step)
        candidate = threshold(coarse, {dim: own * np.exp(z) for (dim, own), z in zip(values.items(), new, strict=True)})
        error = problem.measured(candidate)
        if not start:
            step = min(_WIDEST, step * 1.3) if error < least else max(_NARROWEST, step * 0.97)
        if error < least:
            least, at, counts = error, new, candidate
        problem.progress((done + 2) / problem.tries)
    return counts


def _change(random: np.random.Generator, size: int, step: float) -> Floats:
    """Normal numbers for some of the Dims, zeros for the others."""
    return random.normal(size=size) * step * (random.random(size) < max(_SHARE, _FEWEST / size))


def _coarse(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """At most GRID of ``counts``, evenly."""
    at = np.linspace(0, len(counts) - 1, min(len(counts), GRID)).round().astype(int)
    return np.asarray(counts[at], np.int64)
