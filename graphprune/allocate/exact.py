"""The counts that lose least by the curves of the Dims: solved exactly for costs that are sums over Dims.

Costs are sums of products of the sizes of several Dims. Around counts c they are taken as a sum, each Dim alone moved
from where it is: exact along every Dim, blind to two that move at once. So the sum is solved, what does not fit is cut
where it loses least for what it frees, what is left is filled, and the next sum is taken there. The best of all counts
on the way stays, and the first are those of "global".
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module

import numpy as np
import numpy.typing as npt

from graphprune.allocate.registry import Floats, Problem, allocator
from graphprune.allocate.threshold import filled, overall, threshold, worth
from graphprune.dims import Dim
from graphprune.errors import UsageError

ROUNDS = 12
OFFERS = 64
"""Counts of a Dim that are told apart; filling goes by single steps again."""
BINS = 4096
"""Parts of a budget that "dynamic" tells apart."""
SECONDS = 60.0
"""For one solution of "knapsack"; the best that was found by then is taken."""

Solver = Callable[[Sequence[Floats], Sequence[Sequence[Floats]], Sequence[float]], Sequence[int] | None]
"""From losses of each Dim's offers, extra costs of each by cost and Dim, and room, to an offer of each Dim."""


@allocator("knapsack", needs="scipy")
def knapsack(problem: Problem) -> dict[Dim, int]:
    """The least loss by the curves as an integer program, costs linearised again and again (HiGHS, scipy's milp)."""
    try:
        optimize, sparse = import_module("scipy.optimize"), import_module("scipy.sparse")
    except ModuleNotFoundError as error:
        raise UsageError(
            "the allocator 'knapsack' needs scipy", hint='pip install "graphprune[knapsack]", or choose dynamic'
        ) from error

    def solve(losses: Sequence[Floats], extra: Sequence[Sequence[Floats]], room: Sequence[float]) -> list[int] | None:
        sizes = [len(own) for own in losses]
        one_each = sparse.block_diag([np.ones((1, size)) for size in sizes])
        scales = [
            abs(free) + max(float(np.abs(own).max()) for own in each) for free, each in zip(room, extra, strict=True)
        ]
        costs = [np.concatenate(each) / scale for each, scale in zip(extra, scales, strict=True)]
        limits = optimize.LinearConstraint(np.stack(costs), ub=np.array(room) / scales)
        weight = np.concatenate(losses)
        with _to_stderr():  # HiGHS prints lines of its own when it is told not to
            found = optimize.milp(
                weight / (weight.max() or 1.0),
                constraints=[optimize.LinearConstraint(one_each, 1, 1), limits],
                integrality=np.ones(len(weight)),
                bounds=optimize.Bounds(0, 1),
                options={"time_limit": SECONDS, "mip_rel_gap": 1e-6},
            )
        return None if found.x is None else [int(np.argmax(own)) for own in np.split(found.x, np.cumsum(sizes)[:-1])]

    return _linearised(problem, solve)


@contextmanager
def _to_stderr() -> Iterator[None]:
    """What C libraries print goes to standard error, where the system lets it: standard output is for results alone."""
    try:
        flush, out = ctypes.CDLL(None).fflush, os.dup(1)
    except (AttributeError, OSError, TypeError):
        yield
        return
    flush(None)
    os.dup2(2, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(out, 1)
        os.close(out)


@allocator("dynamic")
def dynamic(problem: Problem) -> dict[Dim, int]:
    """The least loss by the curves, by dynamic programming (SPDY, arXiv 2201.13096; ZipLM, arXiv 2302.04089)."""
    found = [_linearised(problem, partial(_programme, at=at)) for at in range(len(problem.limits))]
    return min(found, key=problem.loss)


def _linearised(problem: Problem, solve: Solver) -> dict[Dim, int]:
    """What ``solve`` makes of costs linearised where it was last; the best that fits."""
    counts = best = overall(problem)
    seen = []
    for done in range(ROUNDS):
        offers = [_thinned(problem.counts[atom.dim], counts[atom.dim]) for atom in problem.atoms]
        losses = [problem.curves[a.dim][own] for a, own in zip(problem.atoms, offers, strict=True)]
        extra, room = _around(problem, counts, offers)
        picks = solve(losses, extra, room)
        if picks is None:
            break
        wish = {a.dim: int(own[pick]) for a, own, pick in zip(problem.atoms, offers, picks, strict=True)}
        if wish in seen:
            break
        seen.append(wish)
        counts = _repaired(problem, wish)
        best = min(best, counts, key=problem.loss)
        problem.progress((done + 1) / ROUNDS)
    return best


def _thinned(counts: npt.NDArray[np.int64], here: int) -> npt.NDArray[np.int64]:
    """At most OFFERS of ``counts``, evenly, and where one is."""
    at = np.linspace(0, len(counts) - 1, min(len(counts), OFFERS)).round().astype(int)
    return np.union1d(counts[at], here)


def _around(
    problem: Problem, counts: dict[Dim, int], offers: Sequence[npt.NDArray[np.int64]]
) -> tuple[list[list[Floats]], list[float]]:
    """By target: what each offer of each Dim costs more than ``counts``, and the room that those leave."""
    extra, room = [], []
    for name, limit in problem.limits.items():
        cost, here = problem.charge(name), problem.charge(name)(counts)
        pairs = zip(problem.atoms, offers, strict=True)
        extra.append([np.array([cost({**counts, a.dim: int(k)}) - here for k in own]) for a, own in pairs])
        room.append(limit - problem.costs[name](counts))
    return extra, room


def _repaired(problem: Problem, wish: dict[Dim, int]) -> dict[Dim, int]:
    """``wish``, with less where it does not fit and more where there is room."""
    values = worth(problem, wish, {name: 1 / problem.costs[name](wish) for name in problem.limits})
    if not problem.fits(wish):
        under = {dim: counts[counts <= wish[dim]] for dim, counts in problem.counts.items()}
        wish = threshold(replace(problem, counts=under), values)
    return filled(problem, wish, values)


def _programme(
    losses: Sequence[Floats], extra: Sequence[Sequence[Floats]], room: Sequence[float], *, at: int
) -> list[int] | None:
    """The least loss under the target number ``at`` alone, its costs rounded up to parts of the budget."""
    least = [float(own.min()) for own in extra[at]]
    whole = room[at] - sum(least)
    if whole < 0:
        return None
    weights = [np.ceil((own - low) / (whole or 1.0) * BINS - 1e-9) for own, low in zip(extra[at], least, strict=True)]
    table = np.zeros(BINS + 1)
    picked = []
    for lost, weight in zip(losses, weights, strict=True):
        rows = np.full((len(lost), BINS + 1), np.inf)
        for row, own, used in zip(rows, lost, weight, strict=True):
            if used <= BINS:
                row[int(used) :] = own + table[: BINS + 1 - int(used)]
        picked.append(rows.argmin(0))
        table = rows.min(0)
    left, picks = BINS, []
    for choice, weight in zip(picked[::-1], weights[::-1], strict=True):
        picks.append(int(choice[left]))
        left -= int(weight[picks[-1]])
    return picks[::-1]
