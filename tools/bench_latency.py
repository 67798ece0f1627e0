"""Predicted against measured latency of pruned models that were never timed before.

    python -m tools.bench_latency state/

Each model is profiled once (`graphprune profile`), then cut to budgets, and what the profile predicts is held against a
measurement: dense and pruned by turns, one thread, as a share of the dense time. What was measured is kept in the
folder given, so that a run that was stopped goes on; predictions are made anew. The table is printed in the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import graphprune
from graphprune.budget import Request
from graphprune.cost import CostModel
from graphprune.dims import Chosen, counts
from graphprune.latency import LatencyModel, Profile
from graphprune.pipeline import Loaded
from graphprune.profile import at_sizes, take_profile
from models import digits, fashion, real, zoo

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
    "smollm2": ("SmolLM2, 64 tokens, 135 M", real.smollm2, {}),
}
REQUESTS = {
    "75 % of MACs": Request(macs=0.75),
    "50 % of MACs": Request(macs=0.5),
    "60 % of each Dim": Request(keep=0.6),
    "50 % of MACs, any sizes": Request(macs=0.5, multiple=1),
}


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
    """The rows of one model; what ``known`` has of measurements by budget is not measured again."""
    _, path, sizes = MODELS[name]
    loaded = at_sizes(graphprune.load(path()), sizes)
    made = measured_profile(loaded, state / f"{name}.json")
    latency, cost = LatencyModel(loaded.analysis, made), CostModel(loaded.analysis)
    for budget in budgets:
        chosen = loaded.plan(REQUESTS[budget]).chosen(loaded.analysis)
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
    dense, pruned = loaded.format.timings([(loaded.model, feeds), (cut, feeds)], rounds=rounds)
    return pruned.whole / dense.whole


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
    args = parser.parse_args()
    args.state.mkdir(exist_ok=True)
    found: list[Row] = []
    for name in args.models:
        held = args.state / f"{name}.measured"
        known = json.loads(held.read_text(encoding="utf-8")) if held.exists() else {}
        found += rows(name, args.state, args.budgets, known)
    print(table(found))


if __name__ == "__main__":
    main()
