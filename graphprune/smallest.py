"""The smallest model whose metric holds: bisection over what a cost may come to.

Every candidate is planned, cut and handed to the metric; the next one is half way between the smallest that held and
the largest that did not. A metric that gets better in between is not found out: candidates are few, and each is a run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from graphprune.budget import TARGETS, Request, known_cost
from graphprune.errors import BudgetError, UsageError
from graphprune.memo import Memo
from graphprune.pictures import Dot, scatter
from graphprune.plan import Plan

Made = tuple[Any, Plan]
"""A model to be cut (a `pipeline.Loaded`), and how."""
PRECISION = 0.01
"""The share of the dense model's cost that the bisection ends at."""


@dataclass(frozen=True)
class Goal:
    """What the smallest model is to hold: ``metric`` at most ``drop`` worse, as a share of what the whole model gets.

    ``metric`` is a function of a model, or a command that is given the path of one, in place of {} or behind, and
    prints a number last. ``shrink`` is the cost that is brought down, ``suffix`` what files for a command end in.
    """

    metric: Callable[[Any], float] | str
    drop: float = 0.01
    shrink: str = "macs"
    lower_is_better: bool = False
    suffix: str = ".onnx"

    def __post_init__(self) -> None:
        if not 0 <= self.drop < math.inf:
            raise UsageError(f"a drop of {self.drop} makes no sense", hint="a share of the metric, such as 0.01")
        known_cost(self.shrink)

    def held(self, found: float, dense: float) -> bool:
        """Whether ``found`` is near enough to what the dense model has."""
        room = abs(dense) * self.drop + 1e-12
        return found <= dense + room if self.lower_is_better else found >= dense - room

    @property
    def name(self) -> str:
        """The metric, in a file of what was found."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__qualname__", "metric")

    def remembered(self, result: Any, memo: Memo) -> float:
        """The metric of a cut model, measured unless ``memo`` knows it."""
        digest = hashlib.blake2b(f"{self.name} {result.plan.cuts}".encode(), digest_size=12).hexdigest()
        return memo(f"metric {digest}", lambda: self.measured(result))

    def measured(self, result: Any) -> float:
        """The metric of a cut model; UsageError where it is no finite number."""
        found = (
            _printed(self.metric, result, self.suffix) if isinstance(self.metric, str) else self.metric(result.model)
        )
        try:
            value = float(found)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the metric is {str(found)[:40]!r}, which is no number", hint="let it be one") from error
        if not math.isfinite(value):
            raise UsageError(f"the metric is {value}", hint="it must be a finite number for every model")
        return value


@dataclass(frozen=True)
class Point:
    """A model on the way: costs (latency in seconds, as predicted), what the metric came to, and whether it held."""

    params: int
    macs: int
    bytes: int
    activations: int
    latency: float | None
    metric: float
    held: bool


@dataclass
class Curve:
    """All models on the way, the dense one first, and which cost was brought down."""

    shrink: str
    points: list[Point] = field(default_factory=list)

    def render(self, suffix: str) -> str:
        """A picture for ".svg", else CSV: the largest model first."""
        return self.to_svg() if suffix == ".svg" else self.to_csv()

    def to_csv(self) -> str:
        """One line a model."""
        text = io.StringIO()
        lines = csv.DictWriter(text, [f.name for f in fields(Point)], lineterminator="\n")
        lines.writeheader()
        lines.writerows(asdict(point) for point in self.sorted())
        return text.getvalue()

    def to_svg(self) -> str:
        """The metric against the cost that is left; models that held are filled."""
        points, dense = self.sorted(), getattr(self.points[0], self.shrink) or 1
        shares = [getattr(point, self.shrink) / dense for point in points]
        dots = [
            Dot(share, point.metric, 0, point.held, f"{share:.1%}: {point.metric:g}")
            for share, point in zip(shares, points, strict=True)
        ]
        return scatter(dots, dots, self.shrink)

    def sorted(self) -> list[Point]:
        """The largest model first."""
        return sorted(self.points, key=lambda point: -getattr(point, self.shrink))


def smallest(
    make: Callable[[Request], Made],
    request: Request,
    goal: Goal,
    *,
    memo: Memo | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Made, Curve]:
    """The smallest model that ``make`` makes and ``goal`` holds for, and all models on the way.

    Limits of ``request`` hold for every candidate; BudgetError where not even the largest that they allow is good
    enough.
    """
    search = _Search(make, request, goal, memo or Memo())
    whole = search.at(None)
    first = search.at(getattr(request, goal.shrink))
    if not first[1].held:
        raise BudgetError(
            f"within the limits the metric comes to {first[1].metric:g}, and the whole model has {whole[1].metric:g}",
            hint="raise the limits, or --drop, or give more calibration data",
        )
    best, low = first, 0.0
    high = start = search.share(first[1])
    while high - low > PRECISION:
        middle = (low + high) / 2
        try:
            found = search.at(middle)
        except BudgetError:
            low = middle
            continue
        if found[1].held:
            best, high = found, min(middle, search.share(found[1]))
        else:
            low = middle
        progress(min(1.0, math.log((high - low) / start) / math.log(PRECISION)))
    (loaded, plan), point = best
    count, way = len(search.curve.points), "lower" if goal.lower_is_better else "higher"
    words = (
        f"the metric ({way} is better) is {point.metric:g}, of the whole model {whole[1].metric:g}: {count} measured"
    )
    return (loaded, replace(plan, notes=(*plan.notes, words))), search.curve


class _Search:
    """Candidates of one bisection, each measured once."""

    def __init__(self, make: Callable[[Request], Made], request: Request, goal: Goal, memo: Memo) -> None:
        self.make, self.request, self.goal, self.memo = make, request, goal, memo
        self.curve = Curve(goal.shrink)

    def at(self, limit: float | str | None) -> tuple[Made, Point]:
        """The model whose cost is at most ``limit``; without one, the whole model."""
        none: Any = dict.fromkeys(TARGETS)
        limits = {self.goal.shrink: 1.0 if limit is None else limit}
        loaded, plan = made = self.make(replace(self.request, **({**none, **limits} if limit is None else limits)))
        result = loaded.apply(plan, verify="none", timing=False)
        metric = self.goal.remembered(result, self.memo)
        held = not self.curve.points or self.goal.held(metric, self.curve.points[0].metric)
        cost = result.report.pruned
        point = Point(**asdict(cost), latency=plan.predicted[1] if plan.predicted else None, metric=metric, held=held)
        if point not in self.curve.points:
            self.curve.points.append(point)
        return made, point

    def share(self, point: Point) -> float:
        """What is left of the cost that is brought down."""
        return float(getattr(point, self.goal.shrink) / (getattr(self.curve.points[0], self.goal.shrink) or 1))


def _printed(words: str, result: Any, suffix: str) -> str:
    """What the command prints last of a cut model."""
    with tempfile.TemporaryDirectory() as folder:
        command = _words(words, str(result.save(Path(folder) / f"candidate{suffix}")))
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise UsageError(
                f"the metric command {words!r} does not start: {error.strerror}", hint="check its first word"
            ) from error
    said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
    if done.returncode:
        raise UsageError(
            f"the metric command {words!r} ended with code {done.returncode}: {said[-1][:200]}",
            hint="run it by hand on the model: the path comes in place of {}, or behind",
        )
    return next(reversed(done.stdout.split()), "")


def _words(words: str, path: str) -> list[str]:
    try:
        found = shlex.split(words)
    except ValueError as error:
        raise UsageError(f"the metric command {words!r} cannot be read: {error}", hint="check its quotes") from error
    if not found:
        raise UsageError("the metric command is empty", hint='such as --metric "python evaluate.py"')
    return [word.replace("{}", path) for word in found] if any("{}" in word for word in found) else [*found, path]
