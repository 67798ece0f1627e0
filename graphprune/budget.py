"""From scores, costs and a request to the positions that stay.

``keep`` cuts every Dim alike; other targets are limits of costs, and an allocator (`graphprune.allocate`) shares out
what they leave. Counts are rounded to a multiple, because kernels like 40 channels better than 37, and never fall below
a floor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graphprune.allocate import TRIES, Allocator, CostFunction, Counts, Problem, edges, known
from graphprune.analysis import CACHE, DEFAULT_KINDS, DEFAULTS, OPTIONAL_KINDS, Analysis, Atom
from graphprune.cost import CostModel
from graphprune.dims import Chosen, Dim, Positions
from graphprune.errors import BudgetError, UsageError
from graphprune.scores import Across, Scores

LARGE = 4
"""A Dim is rounded to the multiple where it has at least this many of them."""
ALLOCATOR, STEPPED = "global", "dynamic"
"""What shares a budget out unless said otherwise, and where its cost has steps."""
_AMOUNT = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?) *([a-zµ%]*?)b?", re.IGNORECASE)


class Unit(NamedTuple):
    """What a cost is counted in: ``factors`` by the letters behind a number, and how a count is written."""

    factors: Mapping[str, float]
    text: Callable[[float], str]


_THOUSANDS = {unit: 1000.0**i for i, unit in enumerate(("", *"kmgt"))}
_BINARY = {f"{unit}i": 1024.0**i for i, unit in enumerate("kmgt", 1)}
COUNTED = Unit({**_THOUSANDS, **_BINARY}, "{:,.0f}".format)
TIMED = Unit({"s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3}, lambda count: f"{count / 1e6:.4g} ms")
"""In nanoseconds: whatever is up to 1 is a share."""
COSTS = "params", "macs", "bytes", "activations"
"""Costs that follow from sizes alone."""
TARGETS = {**dict.fromkeys(COSTS, COUNTED), "latency": TIMED}
"""Costs that a request may limit, several at once."""


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Either ``keep``, a share of every Dim, or limits, which all hold: ``params``, ``macs``, ``bytes`` of weights, and
    bytes of ``activations`` at the most, each a share of the dense model's up to 1, above an absolute count, or as
    text, "60M" or "50MB"; and ``latency``, a share too, or a time, "5ms", for which planning takes measurements.
    ``multiple`` and ``floor`` bound each Dim's new size; ``include`` and ``exclude`` are shell patterns over dim,
    weight and node names; ``allow`` adds kinds that are left alone by default ("hidden", "head-size", both as "all",
    and "cache" and "defaults", which change the shapes of inputs). ``finer``: where a Dim lies under another, such as
    channels under a group, each position of that one keeps its own. ``allocator`` shares limits out between Dims
    ("global" unless said otherwise; "dynamic" for a latency, where scores are losses that add up); one that tries
    candidates tries ``tries`` of them.
    """

    keep: float | None = None
    params: float | str | None = None
    macs: float | str | None = None
    bytes: float | str | None = None
    activations: float | str | None = None
    latency: float | str | None = None
    multiple: int = 8
    floor: float = 0.1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    finer: bool = True
    allocator: str | None = None
    tries: int | None = None

    def __post_init__(self) -> None:
        targets = self.targets
        if not targets or (len(targets) > 1 and self.keep is not None):
            raise UsageError(
                f"give keep, or one or several of {', '.join(TARGETS)}", hint="for example --keep 0.5, or --macs 0.5"
            )
        for name, value in targets.items():
            if not 0 < value < math.inf or (name == "keep" and value > 1):
                raise UsageError(f"a target of {value} makes no sense", hint="a share between 0 and 1, such as 0.5")
        chosen = known(self.shared_out_by()).name
        if self.allocator is not None and self.keep is not None:
            raise UsageError(
                f"keep cuts every Dim alike, so there is nothing for the allocator {chosen!r} to share out",
                hint=f"give one or several of {', '.join(TARGETS)} in its place, such as --macs 0.5",
            )
        if self.tries is not None and self.tries < 1:
            raise UsageError(f"{self.tries} tries make no sense", hint=f"at least 1, such as {TRIES}")
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

    def shared_out_by(self, across: Across = "mean") -> str:
        """The name of the allocator for scores that compare as ``across`` says."""
        return self.allocator or (ALLOCATOR if self.latency is None or across != "error" else STEPPED)

    @property
    def targets(self) -> dict[str, float]:
        """Values of what is to be met, by name."""
        given = {name: getattr(self, name) for name in ("keep", *TARGETS)}
        return {name: amount(value, TARGETS.get(name, COUNTED)) for name, value in given.items() if value is not None}


def known_cost(name: str) -> str:
    """``name``; UsageError where no cost that may be limited is called so."""
    if name not in TARGETS:
        raise UsageError(f"there is no cost {name!r}", hint=f"choose one of {', '.join(TARGETS)}")
    return name


def amount(value: float | str, unit: Unit = COUNTED) -> float:
    """A number, or one in words: a share up to 1, above that a count.

    >>> amount("60M"), amount("50MB"), amount("1KiB"), amount("50%"), amount(0.5), amount("5ms", TIMED)
    (60000000.0, 50000000.0, 1024.0, 0.5, 0.5, 5000000.0)
    """
    found = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    try:
        number, letters = float(found[1] if found else value), found[2].lower() if found else ""
        return number * {**unit.factors, "%": 0.01}[letters] if letters or number > 1 else number
    except (KeyError, ValueError) as error:
        if unit is TIMED:
            raise UsageError(f"{value!r} is no share and no time", hint="such as 0.7, 70%, 5ms or 800us") from error
        raise UsageError(f"{value!r} is no number", hint="such as 0.5, 50%, 60M, 5G or 50MB") from error


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
    analysis: Analysis,
    wanted: list[Atom],
    scores: Scores,
    request: Request,
    across: Across = "mean",
    *,
    losses: Scores | None = None,
    costs: Mapping[str, CostFunction] | None = None,
    tried: Callable[[Chosen], float] | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[Dim, Positions]:
    """The kept positions of each atom in ``wanted`` that loses any, ascending; ``across``: how Dims compare.

    How many stay is seen from the scores of atoms, which of them under each position of another from those of pairs.
    ``losses`` of the positions of each, the dearest first, say how many stay in place of scores, where they were
    measured. ``costs`` are further ones than `COSTS`, measured: where they have steps, only sizes at the edge of one
    are taken. "latency" is one, in nanoseconds. ``tried`` is how far outputs move, for allocators that look.

    BudgetError with the least reachable share where a target cannot be met; UsageError where nothing says what one
    costs.
    """

    def choice(counts: Counts) -> dict[Dim, Positions]:
        return _chosen(wanted, scores, counts, pairs(analysis, wanted, request))

    if request.keep is not None:
        return choice({a.dim: count_for(a, request.keep * a.size, request, nearest=True) for a in wanted})
    costs = costs or {}
    model = CostModel(analysis, [atom.dim for atom in wanted])
    every = cost_functions(model, costs)
    require_costs(request, every)
    counts = {atom.dim: admissible(atom, request) for atom in wanted}
    for name in costs.keys() & request.targets.keys():
        counts = edges(counts, costs[name])
    least = {dim: int(own[0]) for dim, own in counts.items()}
    limits = _limits(request, every, least, {"activations": f", most at {model.fullest(least)}"})
    if not limits:
        return {}
    measured = None if tried is None else lambda counts: tried(choice(counts))
    tries = TRIES if request.tries is None else request.tries
    worth = scores if losses is None else losses
    charged = {"activations": model.charged}
    problem = Problem(wanted, worth, counts, every, limits, across, charged, measured, tries, seed, progress)
    return choice(_met(problem, known(request.shared_out_by(across))))


def require_costs(request: Request, known: Container[str]) -> None:
    """UsageError where ``request`` limits a cost that is not ``known``."""
    if any(name not in known for name in request.targets if name != "keep"):
        raise UsageError(
            "a latency is asked for, and there are no measurements that say how it follows from sizes",
            hint="make them with graphprune profile MODEL -o cost.json, and give --profile cost.json",
        )


def cost_functions(model: CostModel, more: Mapping[str, CostFunction]) -> dict[str, CostFunction]:
    """Every cost that may be limited, by name, as a function of sizes: those of ``model``, and ``more``."""
    return {**{name: getattr(model, name) for name in COSTS}, **more}


def _met(problem: Problem, allocator: Allocator) -> dict[Dim, int]:
    """The counts that an allocator finds; UsageError where they are none of those asked for."""
    counts = allocator.function(problem)
    if not problem.fits(counts) or any(count not in problem.counts[dim] for dim, count in counts.items()):
        raise UsageError(f"the allocator {allocator.name!r} does not keep to the request", hint="choose another")
    return counts


def _limits(
    request: Request, costs: Mapping[str, CostFunction], least: Counts, where: Mapping[str, str]
) -> dict[str, float]:
    """What costs may come to, of those that the dense model exceeds; BudgetError for what ``least`` exceeds."""
    dense = {name: costs[name]({}) for name in request.targets}
    asked = {name: value * dense[name] if value <= 1 else value for name, value in request.targets.items()}
    reached = {name: costs[name](least) for name in asked}
    wrong = [name for name, limit in asked.items() if reached[name] > limit]
    if wrong:
        wish = " and ".join(_share(name, asked[name], dense[name]) for name in wrong)
        can = " and ".join(_share(name, reached[name], dense[name]) + where.get(name, "") for name in wrong)
        raise BudgetError(
            f"{' and '.join(wrong)} cannot be brought to {wish}: the least reachable is {can}",
            hint="lower --floor, allow more with --allow all, or see graphprune inspect for what is frozen",
        )
    return {name: limit for name, limit in asked.items() if dense[name] > limit}


def _chosen(wanted: list[Atom], scores: Scores, counts: Counts, under: list[Atom]) -> dict[Dim, Positions]:
    """The best positions of each atom that loses any; of the pairs ``under`` those of each row."""
    less = [atom for atom in wanted if counts.get(atom.dim, atom.size) < atom.size]
    chosen = {atom.dim: top(scores[atom.dim], counts[atom.dim]) for atom in less}
    for pair in under:
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
    step = _step(atom, request)
    scaled = wish / step
    count = step * (math.floor(scaled + 0.5) if nearest else math.ceil(scaled - 1e-9))
    floor = least_count(atom, request)
    if count < floor:
        count = step * math.ceil(floor / step)
    return min(atom.size, count)


def admissible(atom: Atom, request: Request) -> npt.NDArray[np.int64]:
    """The counts that `count_for` gives, ascending."""
    step = _step(atom, request)
    return np.array([*range(count_for(atom, 0, request), atom.size, step), atom.size], np.int64)


def _step(atom: Atom, request: Request) -> int:
    return math.lcm(request.multiple if atom.size >= LARGE * request.multiple else 1, atom.multiple)


def _share(name: str, count: float, dense: float) -> str:
    text = TARGETS[name].text
    return f"{count / dense:.1%} ({text(count)} of {text(dense)})" if dense else text(count)
