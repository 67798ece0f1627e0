"""Predicted against measured latency of pruned models that were never timed before; plans side by side at the same.

    python -m tools.bench_latency state/
    python -m tools.bench_latency state/ --same 0.7 0.5 --models digits resnet20 mobilenet ocr minilm smollm2

Each model is profiled once (`graphprune profile`), then cut to budgets, and what the profile predicts is held against a
measurement: dense and pruned by turns, one thread, as a share of the dense time. What was measured is kept in the
folder given, so that a run that was stopped goes on; predictions are made anew. The table is printed in the end.

With ``--same``, models that have a task are cut to these shares of their time, as measured: by plans that know latency
("dynamic", and "global"), by one that knows MACs ("dynamic"), and uniformly. Scores are those of `obs` with real data,
the weights that stay make up by least squares, and sizes are multiples of 8 for all, so that plans differ in how they
share the time out and in nothing else. Each is aimed at the share by prediction, measured, and aimed again until it is
there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import graphprune
from graphprune.budget import Request
from graphprune.cost import CostModel
from graphprune.dims import Chosen, counts
from graphprune.errors import BudgetError
from graphprune.latency import LatencyModel, Profile
from graphprune.loaded import Loaded
from graphprune.plan import Plan
from graphprune.profile import at_sizes, take_profile
from models import digits, fashion, real, zoo
from models.tasks import SUBJECTS
from tools.bench_quality import Bench

SECONDS = 4.0
MODELS: dict[str, tuple[str, Callable[[], Path], dict[str, int]]] = {
    "digits": ("residual CNN on 8 x 8 digits, 39 K", lambda: digits.PATH, {}),
    "resnet20": ("ResNet-20, 28 x 28, 272 K", fashion.resnet20, {}),
    "mobilenet": ("small MobileNetV2, 28 x 28, 97 K", fashion.mobilenet, {}),
    "vit": ("small ViT", lambda: zoo.graph("vit/dynamo-20"), {}),
    "mobilenet_v2": ("MobileNetV2, 224 x 224, 3.5 M", real.mobilenet_v2, {}),
    "minilm": ("MiniLM, 128 tokens, 22.6 M", real.minilm, {"batch": 1, "sequence": 128}),
    "ocr": ("PP-OCRv4 recogniser, 320 wide, 2.7 M", real.ocr_rec, {"?": 48, "p2o.DynamicDimension.1": 320}),
    "squeezenet": ("SqueezeNet, 224 x 224, 1.2 M", lambda: zoo.graph("light/squeezenet"), {}),
    "resnet50": ("ResNet-50, 224 x 224, 25.6 M", lambda: zoo.graph("light/resnet50"), {}),
    "vgg19": ("VGG-19, 224 x 224, 144 M", lambda: zoo.graph("light/vgg19"), {}),
    "smollm2": ("SmolLM2, 128 tokens, 135 M", real.smollm2, {"batch": 1, "sequence": 128}),
    "decode": (
        "SmolLM2 with a cache of 127, the next token",
        real.smollm2_cached,
        {"batch": 1, "new": 1, "past": 127, "all": 128},
    ),
    "detector": (
        "PP-OCRv4 detector, 320 x 320, 1.2 M",
        real.ocr_det,
        {"p2o.DynamicDimension.0": 1, "p2o.DynamicDimension.1": 320, "p2o.DynamicDimension.2": 320},
    ),
}
REQUESTS = {
    "75 % of MACs": Request(macs=0.75),
    "50 % of MACs": Request(macs=0.5),
    "35 % of MACs": Request(macs=0.35),
    "60 % of each Dim": Request(keep=0.6),
    "50 % of MACs, any sizes": Request(macs=0.5, multiple=1),
}


WAYS: dict[str, Callable[[float], dict[str, Any]]] = {
    "latency": lambda share: {"latency": share},
    "latency, global": lambda share: {"latency": share, "allocator": "global"},
    "MACs": lambda share: {"macs": share, "allocator": "dynamic"},
    "uniform": lambda share: {"macs": share, "allocator": "uniform"},
}
"""What plans at the same latency go by."""
SAME = (
    "| model | time left | plan by | measured | predicted | MACs left | moved | score |",
    "|---|---|---|---|---|---|---|---|",
)
NEAR, TURNS = 0.02, 4
"""How far a measurement may be from the share that was aimed at, and how often it is aimed."""


@dataclass(frozen=True)
class Row:
    """One model at one budget: shares of the dense model's time and MACs."""

    model: str
    budget: str
    predicted: float
    measured: float
    macs: float

    @property
    def error(self) -> float:
        """How far the prediction is off, relative to the measurement."""
        return self.predicted / self.measured - 1


def measured_profile(loaded: Loaded, path: Path) -> Profile:
    """The model's profile, gone on with where a run was stopped."""
    known = Profile.load(path) if path.exists() else None
    return take_profile(loaded, known=known, keep=lambda made: _write(path, made.to_json()))


def _write(path: Path, text: str) -> None:
    half = path.with_suffix(".partial")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def rows(name: str, state: Path, budgets: Sequence[str], known: dict[str, float]) -> Iterator[Row]:
    """The rows of one model, of budgets that can be met; what ``known`` has of measurements is not measured again."""
    _, path, sizes = MODELS[name]
    loaded = at_sizes(graphprune.load(path()), sizes)
    made = measured_profile(loaded, state / f"{name}.json")
    latency, cost = LatencyModel(loaded.analysis, made), CostModel(loaded.analysis)
    for budget in budgets:
        try:
            chosen = loaded.plan(REQUESTS[budget]).chosen(loaded.analysis)
        except BudgetError as error:
            print(name, budget, error.what, flush=True)
            continue
        if budget not in known:
            known[budget] = ratio(loaded, chosen, made.dense.whole)
            _write(state / f"{name}.measured", json.dumps(known))
        left = counts(chosen)
        row = Row(name, budget, latency(left) / made.dense.whole, known[budget], cost.macs(left) / cost.macs({}))
        print(name, budget, f"{row.predicted:.3f} {row.measured:.3f} {row.error:+.1%}", flush=True)
        yield row


def ratio(loaded: Loaded, chosen: Chosen, seconds: float) -> float:
    """The time of the cut model as a share of that of the dense one, which takes ``seconds``."""
    feeds = loaded.format.trials(loaded.model, loaded.format.run(loaded.model))[0][1]
    cut = loaded.format.apply(loaded.model, loaded.analysis, chosen)
    rounds = int(np.clip(SECONDS / 12 / seconds, 5, 200))
    models = [(loaded.model, feeds), (cut, loaded.analysis.fit(feeds, chosen))]
    dense, pruned = loaded.format.timings(models, rounds=rounds)
    return pruned.whole / dense.whole


class Aimed:
    """Plans of one model that are aimed at a share of its time."""

    def __init__(self, name: str, state: Path) -> None:
        _, path, sizes = MODELS[name]
        self.loaded = at_sizes(graphprune.load(path()), sizes)
        self.made = measured_profile(self.loaded, state / f"{name}.json")
        self.bench = Bench(SUBJECTS[name], "real", 0)
        self.latency = LatencyModel(self.bench.loaded.analysis, self.made)
        self.options = {**self.bench.subject.options, "multiple": 8}
        widest = Request(keep=0.5, **self.options)
        self.scores = self.bench.loaded.scores(widest, "obs", **self.bench.moments_of([]))

    @cache  # noqa: B019  one object a model
    def plan(self, way: str, share: float) -> Plan | None:
        """What a way makes of a share of what it goes by; None where that cannot be."""
        request = Request(**WAYS[way](share), **self.options)
        try:
            return self.bench.loaded.plan(request, "obs", scores=self.scores, latency=self.latency)
        except BudgetError:
            return None

    def nearest(self, way: str, share: float) -> Plan | None:
        """The one that is predicted to take a time nearest to ``share``."""
        time = share * self.made.dense.whole
        plans = (self.plan(way, round(left, 3)) for left in (share, *np.arange(0.98, 0.03, -0.02)))
        return min(filter(None, plans), key=lambda plan: abs(plan.predicted[1] - time), default=None)

    def found(self, way: str, share: float) -> dict[str, Any]:
        """The plan that is nearest to ``share`` by measurement: times, MACs, how far outputs move, metrics."""
        aim, tried = share, list[tuple[float, Plan]]()
        for _ in range(TURNS):
            plan = self.nearest(way, aim)
            if plan is None or any(plan == other for _, other in tried):
                break
            tried.append((ratio(self.loaded, plan.chosen(self.loaded.analysis), self.made.dense.whole), plan))
            if abs(tried[-1][0] / share - 1) < NEAR:
                break
            aim *= share / tried[-1][0]
        if not tried:
            return {}
        measured, plan = min(tried, key=lambda one: abs(one[0] / share - 1))
        moments, moved = self.bench.moments[0], self.bench.loaded.tried(self.bench.moments_of([]))
        result = self.bench.loaded.compensated(plan, moments).apply(plan, verify="none", timing=False)
        report = result.report
        return {
            "measured": measured,
            "predicted": plan.predicted[1] / plan.predicted[0],
            "macs": report.pruned.macs / report.dense.macs,
            "moved": moved(plan.chosen(self.bench.loaded.analysis)) if moved else None,
            **self.bench.subject.measure(result.model.SerializeToString()),
        }


def side_by_side(name: str, state: Path, shares: Sequence[float]) -> Iterator[str]:
    """Lines of the table of one model; what is in the folder is not measured again."""
    held = state / f"{name}.same"
    known: dict[str, dict[str, Any]] = json.loads(held.read_text(encoding="utf-8")) if held.exists() else {}
    missing = [(way, share) for share in shares for way in WAYS if f"{way} {share}" not in known]
    aimed = Aimed(name, state) if missing else None
    for way, share in missing:
        assert aimed is not None
        known[f"{way} {share}"] = found = aimed.found(way, share)
        print(name, way, share, found, flush=True)
        _write(held, json.dumps(known))
    metric = SUBJECTS[name].metrics[0]
    forms = {"measured": ".1%", "predicted": ".1%", "macs": ".1%", "moved": ".3f", metric.name: metric.form}
    for share in shares:
        for way in WAYS:
            found = known[f"{way} {share}"]
            cells = [f"{found[key]:{form}}" if found.get(key) is not None else "" for key, form in forms.items()]
            yield f"| {MODELS[name][0]} | {share:.0%} | {way} | {' | '.join(cells)} |"


def table(found: Sequence[Row]) -> str:
    """All rows as markdown, and how many predictions are within a tenth."""
    lines = ["| model | cut to | MACs left | time left, predicted | measured | error |", "|---|---|---|---|---|---|"]
    for row in found:
        shares = " | ".join(f"{share:.1%}" for share in (row.macs, row.predicted, row.measured))
        lines.append(f"| {MODELS[row.model][0]} | {row.budget} | {shares} | {row.error:+.1%} |")
    good = sum(abs(row.error) < 0.1 for row in found)
    by_macs = sum(abs(row.macs / row.measured - 1) < 0.1 for row in found)
    words = f"{good} of {len(found)} predictions are off by less than 10 %; MACs would be in {by_macs}."
    return "\n".join([*lines, "", words])


def main() -> None:
    """Measure what is not measured yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--budgets", nargs="+", choices=REQUESTS, default=list(REQUESTS))
    parser.add_argument("--same", nargs="+", type=float, help="shares of the time to hold plans side by side at")
    args = parser.parse_args()
    args.state.mkdir(exist_ok=True)
    if args.same:
        lines = [line for name in args.models if name in SUBJECTS for line in side_by_side(name, args.state, args.same)]
        print(*SAME, *lines, sep="\n")
        return
    found: list[Row] = []
    for name in args.models:
        held = args.state / f"{name}.measured"
        known = json.loads(held.read_text(encoding="utf-8")) if held.exists() else {}
        found += rows(name, args.state, args.budgets, known)
    print(table(found))


if __name__ == "__main__":
    main()
