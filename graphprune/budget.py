"""From scores, costs and a request to the positions that stay.

``keep`` cuts every Dim alike; ``params`` and ``macs`` rank all positions of all Dims together and cut from the bottom
until the exact cost is met: as they are, for what they free, or relative to the mean of their Dim, as the score says.
Counts are rounded to a multiple, because kernels like 40 channels better than 37, and never fall below a floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from heapq import heapify, heappop, heappush

import numpy as np

from graphprune.analysis import CACHE, DEFAULT_KINDS, DEFAULTS, OPTIONAL_KINDS, Analysis, Atom
from graphprune.cost import CostModel
from graphprune.dims import Dim, Positions
from graphprune.errors import BudgetError, UsageError
from graphprune.scores import Across, Scores

LARGE = 4
"""A Dim is rounded to the multiple where it has at least this many of them."""


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Exactly one target: ``keep`` (share of every Dim), ``params`` or ``macs`` (share of the dense count; above 1 an
    absolute count). ``multiple`` and ``floor`` bound each Dim's new size; ``include`` and ``exclude`` are shell
    patterns over dim, weight and node names; ``allow`` adds kinds that are left alone by default ("hidden",
    "head-size", both as "all", and "cache" and "defaults", which change the shapes of inputs). ``finer``: where a Dim
    lies under another, such as channels under a group, each position of that one keeps its own.
    """

    keep: float | None = None
    params: float | None = None
    macs: float | None = None
    multiple: int = 8
    floor: float = 0.1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    finer: bool = True

    def __post_init__(self) -> None:
        targets = [t for t in (self.keep, self.params, self.macs) if t is not None]
        if len(targets) != 1:
            raise UsageError("give exactly one of keep, params and macs", hint="for example --keep 0.5")
        if targets[0] <= 0 or not math.isfinite(targets[0]) or (self.keep is not None and self.keep > 1):
            raise UsageError(f"a target of {targets[0]} makes no sense", hint="a share between 0 and 1, such as 0.5")
        if self.multiple < 1 or not 0 <= self.floor <= 1:
            raise UsageError(
                f"multiple {self.multiple} or floor {self.floor} is out of range", hint="multiple >= 1, 0 <= floor <= 1"
            )
        unknown = set(self.allow) - {*OPTIONAL_KINDS, CACHE, DEFAULTS, "all"}
        if unknown:
            raise UsageError(
                f"--allow {', '.join(sorted(unknown))} is not known",
                hint=f"choose from {', '.join((*OPTIONAL_KINDS, CACHE, DEFAULTS))}, all",
            )

    @property
    def target(self) -> tuple[str, float]:
        """Name and value of the target."""
        return next((n, v) for n in ("keep", "params", "macs") if (v := getattr(self, n)) is not None)


def candidates(analysis: Analysis, request: Request) -> list[Atom]:
    """Prunable atoms that the request lets be cut; UsageError where a pattern matches nothing."""
    kinds = {*DEFAULT_KINDS, *request.allow, *(OPTIONAL_KINDS if "all" in request.allow else ())}
    names = {atom: _names(atom) for atom in analysis.prunable}
    every = {name for found in names.values() for name in found} | {n for a in analysis.frozen for n in _names(a)}
    for pattern in (*request.include, *request.exclude):
        if not any(_matches(name, pattern) for name in every):
            raise UsageError(
                f"the pattern {pattern!r} matches no dim, weight or node", hint="see graphprune inspect for names"
            )

    def matches(atom: Atom, patterns: Iterable[str]) -> bool:
        return any(_matches(name, pattern) for pattern in patterns for name in names[atom])

    return [
        atom
        for atom in analysis.prunable
        if atom.kind in kinds
        and (DEFAULTS in request.allow or analysis.graph.defaults.isdisjoint(atom.weights))
        and atom.size > atom.least
        and (not request.include or matches(atom, request.include))
        and not matches(atom, request.exclude)
    ]


def _matches(name: str, pattern: str) -> bool:
    """As in a shell; a name in full matches itself, whatever characters it is made of."""
    return name == pattern or fnmatchcase(name, pattern)


def _names(atom: Atom) -> set[str]:
    return {atom.name, *atom.weights, *(use.node.name for use in atom.uses if use.node.name)}


def pairs(analysis: Analysis, wanted: list[Atom], request: Request) -> list[Atom]:
    """Those of ``wanted`` that lie under another, each as the pairs of a position of that one and one of its own."""
    own = [atom for atom in wanted if atom.dim in analysis.pairs] if request.finer else []
    return [replace(atom, dim=analysis.pairs[atom.dim]) for atom in own]


def allocate(
    analysis: Analysis, wanted: list[Atom], scores: Scores, request: Request, across: Across = "mean"
) -> dict[Dim, Positions]:
    """The kept positions of each atom in ``wanted`` that loses any, ascending; ``across``: how Dims compare.

    How many stay is seen from the scores of atoms, which of them under each position of another from those of pairs.
    Raises BudgetError with the least reachable share where the target cannot be met.
    """
    name, value = request.target
    if name == "keep":
        counts = {atom.dim: count_for(atom, value * atom.size, request, nearest=True) for atom in wanted}
    else:
        counts = _global(analysis, wanted, scores, request, across)
    chosen = {atom.dim: top(scores[atom.dim], counts[atom.dim]) for atom in wanted if counts[atom.dim] < atom.size}
    for pair in pairs(analysis, wanted, request):
        outer, dim = pair.dim.parts
        if dim in chosen and pair.dim in scores:
            rows = top(scores[pair.dim].reshape(outer.extent, dim.extent), counts[dim])
            chosen[dim] = rows if (rows != rows[0]).any() else rows[0]
    return chosen


def top(values: np.typing.NDArray[np.float64], count: int) -> Positions:
    """The positions of the ``count`` largest values (of each row), ascending; the earlier position wins a draw."""
    return np.sort(np.argsort(-values, kind="stable")[..., :count]).astype(np.int64)


def least_count(atom: Atom, request: Request) -> int:
    """The fewest positions that the request lets ``atom`` keep."""
    return min(atom.size, max(1, atom.least, math.ceil(request.floor * atom.size - 1e-9)))


def count_for(atom: Atom, wish: float, request: Request, *, nearest: bool = False) -> int:
    """``wish`` rounded to the multiple (up, or to the nearest), within floor and size; all of it stays all of it."""
    if wish >= atom.size:
        return atom.size
    step = math.lcm(request.multiple if atom.size >= LARGE * request.multiple else 1, atom.multiple)
    scaled = wish / step
    count = step * (math.floor(scaled + 0.5) if nearest else math.ceil(scaled - 1e-9))
    floor = least_count(atom, request)
    if count < floor:
        count = step * math.ceil(floor / step)
    return min(atom.size, count)


def _global(analysis: Analysis, wanted: list[Atom], scores: Scores, request: Request, across: Across) -> dict[Dim, int]:
    """One threshold over all positions: the lowest that meets the target; then what still fits is put back."""
    name, value = request.target
    model = CostModel(analysis, [atom.dim for atom in wanted])
    cost: Callable[[dict[Dim, int]], int] = model.params if name == "params" else model.macs
    dense = cost({})
    target = value * dense if value <= 1 else value
    relative = {atom.dim: scores[atom.dim] for atom in wanted}
    if across == "error":
        relative = {a.dim: relative[a.dim] / max(1, dense - cost({a.dim: a.size - 1})) for a in wanted}
    elif across == "mean":
        relative = {dim: _relative(values) for dim, values in relative.items()}

    def counts(threshold: float) -> dict[Dim, int]:
        return {a.dim: count_for(a, float(np.sum(relative[a.dim] >= threshold)), request) for a in wanted}

    least = {atom.dim: count_for(atom, 0, request) for atom in wanted}
    if cost(least) > target:
        raise BudgetError(
            f"{name} cannot be brought to {_share(target, dense)}: the least reachable is {_share(cost(least), dense)}",
            hint="lower --floor, allow more with --allow all, or see graphprune inspect for what is frozen",
        )
    levels = np.unique(np.concatenate([*relative.values(), [np.inf]]))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if cost(counts(levels[middle])) <= target:
            high = middle
        else:
            low = middle + 1
    return _fill(wanted, counts(levels[low]), relative, request, lambda sizes: cost(sizes) <= target)


def _relative(values: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
    mean = values.mean()
    return values / mean if mean > 0 else np.ones_like(values)


def _fill(
    wanted: list[Atom],
    counts: dict[Dim, int],
    relative: Scores,
    request: Request,
    fits: Callable[[dict[Dim, int]], bool],
) -> dict[Dim, int]:
    """Put the dearest removed positions back, a multiple at a time, for as long as the target still holds."""
    ranked = {atom.dim: np.sort(relative[atom.dim])[::-1] for atom in wanted}
    waiting = [(-float(ranked[a.dim][counts[a.dim]]), i) for i, a in enumerate(wanted) if counts[a.dim] < a.size]
    heapify(waiting)
    while waiting:
        _, i = heappop(waiting)
        dim = wanted[i].dim
        more = {**counts, dim: count_for(wanted[i], counts[dim] + 1, request)}
        if fits(more):
            counts = more
            if counts[dim] < wanted[i].size:
                heappush(waiting, (-float(ranked[dim][counts[dim]]), i))
    return counts


def _share(count: float, dense: float) -> str:
    return f"{count / dense:.1%} ({count:,.0f} of {dense:,.0f})" if dense else f"{count:,.0f}"
