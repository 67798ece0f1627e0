"""What several budgets and allocators come to, beside each other: cost against what is lost, and which are worth it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from graphprune.budget import TARGETS
from graphprune.pictures import Dot, bars, fold, items, page, scatter, section, table

WHOLE = "whole model"


@dataclass(frozen=True)
class Candidate:
    """A model: how it was asked for, what its ``cost`` is and what it gets; ``best``: none other is better in both.

    ``dims`` are name, size before and after of each Dim that may be cut. ``predicted`` by a profile, and ``measured``
    beside the whole model, are shares of its latency.
    """

    allocator: str
    budget: float
    cost: float
    share: float
    value: float
    best: bool
    dims: tuple[tuple[str, int, int], ...]
    predicted: float | None = None
    measured: float | None = None

    @property
    def words(self) -> str:
        """Itself in one line."""
        return f"{self.asked}: {self.share:.1%}, {self.value:.4g}"

    @property
    def asked(self) -> str:
        """How it was asked for."""
        return self.allocator if self.allocator == WHOLE else f"{self.allocator} at {self.budget:.4g}"


@dataclass(frozen=True)
class Front:
    """All candidates, the whole model first; ``cost`` and ``unit`` name what is on the axes."""

    cost: str
    unit: str
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> list[Candidate]:
        """Those that no other is better than in both, the dearest first; of equals the first."""
        found = {(one.cost, one.value): one for one in reversed(self.candidates) if one.best}
        return sorted(found.values(), key=lambda one: -one.cost)

    @property
    def title(self) -> str:
        """What is seen."""
        return f"{self.unit} against {self.cost}"

    def render(self, suffix: str) -> str:
        """As a file name ending in ``suffix`` asks for: .json, .csv, .html or .svg."""
        made = {".json": self.to_json, ".csv": self.to_csv, ".html": self.to_html, ".svg": self.to_svg}
        return made[suffix]()

    def table(self) -> list[dict[str, Any]]:
        """A record a candidate, without its Dims."""
        return [
            {
                "allocator": one.allocator,
                "budget": f"{one.budget:.4g}",
                self.cost: TARGETS[self.cost].text(one.cost),
                "left": f"{one.share:.1%}",
                self.unit: f"{one.value:.4g}",
                **({name: _percent(share) for name, share in _latencies(one)} if self.timed else {}),
                "front": "yes" if one.best else "",
            }
            for one in self.candidates
        ]

    @property
    def timed(self) -> bool:
        """Whether latencies were predicted."""
        return any(one.predicted is not None for one in self.candidates)

    def to_json(self) -> str:
        """Everything."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def to_csv(self) -> str:
        """One line a candidate."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        names = [name for name, _ in _latencies(self.candidates[0])]
        lines.writerow(("allocator", "budget", self.cost, "share", self.unit, "front", *names))
        for one in self.candidates:
            shares = [share for _, share in _latencies(one)]
            lines.writerow((one.allocator, one.budget, one.cost, one.share, one.value, one.best, *shares))
        return text.getvalue()

    def to_svg(self) -> str:
        """Candidates in the colour of their allocator; filled and joined are those on the front."""
        names = list(dict.fromkeys(one.allocator for one in self.candidates))

        def dot(one: Candidate) -> Dot:
            return Dot(one.share, one.value, names.index(one.allocator), one.best, one.words)

        return scatter([*map(dot, self.candidates)], [*map(dot, self.best)], self.cost, self.unit, names)

    def to_html(self) -> str:
        """The picture, the table, and what was cut where of each candidate on the front."""
        rows = self.table()
        parts = [section(self.title, self.to_svg()), section("candidates", table(rows[0], [r.values() for r in rows]))]
        if self.timed:
            parts.append(section("latency of those on the front, as a share", bars(self._times())))
        parts.append(section("what was cut where, on the front", *self._details()))
        return page("graphprune pareto", *parts, section("notes", items(self.notes)))

    def _times(self) -> Iterator[tuple[str, float, str]]:
        for one in filter(lambda one: one.dims, self.best):
            for name, share in _latencies(one):
                if share is not None:
                    yield f"{one.asked}, {name.removeprefix('latency, ')}", min(1.0, share), _percent(share)

    def _details(self) -> Iterator[str]:
        for one in filter(lambda one: one.dims, self.best):
            shares = [(name, after / before, f"{after} of {before}") for name, before, after in one.dims]
            yield fold(one.words, bars(shares))


def _latencies(one: Candidate) -> tuple[tuple[str, float | None], ...]:
    return ("latency, predicted", one.predicted), ("latency, measured", one.measured)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of costs and losses, which no other is better than in one and not worse in the other."""
    return [
        not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
        for point in points
    ]


def marked(found: Sequence[Candidate], sign: int) -> tuple[Candidate, ...]:
    """``found``, the dearest first, each with whether it is on the front; losses grow with values, times ``sign``."""
    best = front([(one.cost, sign * one.value) for one in found])
    each = (replace(one, best=own) for one, own in zip(found, best, strict=True))
    return tuple(sorted(each, key=lambda one: -one.cost))
