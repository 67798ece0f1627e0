"""Fronts: candidates are the models that prune would make, and which are on the front is known by looking at all."""

from __future__ import annotations

import csv
import json
import sys
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphprune
from graphprune.errors import BudgetError, UsageError
from graphprune.latency import LatencyModel
from graphprune.pareto import WHOLE, Front, front
from graphprune.tried import distance
from models import digits
from tests.command import command
from tests.test_cli import DIGITS
from tests.test_latency import of_digits
from tests.test_report import Page

EXACT = graphprune.Request(macs=1.0, multiple=1)
ALLOCATORS = ("global", "uniform")


@cache
def batches() -> list[dict[str, Any]]:
    return [{"image": part} for part in np.split(digits.split()[0][:128], 4)]


@cache
def found() -> Front:
    calib = graphprune.Calibration(batches(), cache=False)
    how: dict[str, Any] = {"calib": calib, "compensate": False, "allocators": ALLOCATORS}
    return graphprune.pareto(digits.PATH, EXACT, budgets=(0.7, 0.4), **how)


def test_candidates_are_what_prune_makes() -> None:
    loaded = graphprune.load(digits.PATH)
    whole, *others = found().candidates
    assert (whole.allocator, whole.share, whole.value, whole.dims) == (WHOLE, 1.0, 0.0, ())
    assert {(one.allocator, one.budget) for one in others} == {(a, b) for a in ALLOCATORS for b in (0.7, 0.4)}
    for one in others:
        how: dict[str, Any] = {"multiple": 1, "timing": False, "verify": "none", "calib": batches()}
        result = graphprune.prune(digits.PATH, macs=one.budget, allocator=one.allocator, compensate=False, **how)
        assert (one.cost, whole.cost) == (result.report.pruned.macs, result.report.dense.macs)
        assert one.share == one.cost / whole.cost <= one.budget
        cut = {d["name"]: (d["before"], d["after"]) for d in result.report.dims}
        assert {name: (before, after) for name, before, after in one.dims if before != after} == cut
        runs = (loaded.format.run(model) for model in (loaded.model, result.pruned))
        before, after = ([run(batch) for batch in batches()[1::2]] for run in runs)
        assert one.value == pytest.approx(distance(loaded.analysis.graph, before, after), rel=1e-4)


@pytest.mark.parametrize(("score", "allocator"), [("l2", "global"), ("obs", "dynamic")])
def test_a_front_of_latencies(score: str, allocator: str) -> None:
    """By the allocator that `prune` takes for it, and to the model that it makes."""
    how: dict[str, Any] = {"profile": of_digits(), "calib": batches(), "compensate": False, "score": score}
    whole, one = graphprune.pareto(digits.PATH, EXACT, budgets=(0.7,), cost="latency", **how).candidates
    result = graphprune.prune(digits.PATH, latency=0.7, multiple=1, timing=False, verify="none", **how)
    assert (whole.allocator, one.allocator) == (WHOLE, allocator)
    named = graphprune.pareto(digits.PATH, EXACT, budgets=(0.7,), cost="latency", allocators=(allocator,), **how)
    assert named.candidates[1].dims == one.dims
    assert (whole.cost, one.cost) == pytest.approx(tuple(1e9 * seconds for seconds in result.report.predicted))
    assert one.share <= 0.7


def test_predicted_against_measured() -> None:
    """By a profile of all, beside the whole model of those on the front; without one, or untimed, of none."""
    how: dict[str, Any] = {"profile": of_digits(), "allocators": ALLOCATORS}
    how |= {"metric": lambda model: float(len(model.SerializeToString())), "lower_is_better": True}
    made = graphprune.pareto(digits.PATH, EXACT, budgets=(0.7, 0.4), **how)
    analysis = graphprune.load(digits.PATH).analysis
    latency = LatencyModel(analysis, of_digits())
    whole, *others = made.candidates
    assert (whole.predicted, whole.measured) == (1.0, 1.0)
    assert [one.measured is not None for one in others] == [one.best for one in others]
    assert not all(one.best for one in others), "so that there is one that is not measured"
    for one in others:
        sizes = {atom.dim: after for atom, (_, _, after) in zip(analysis.prunable, one.dims, strict=True)}
        assert one.predicted == pytest.approx(latency(sizes) / latency({}))
        assert one.measured is None or one.measured > 0
    assert [row["latency, measured"] != "" for row in made.table()[1:]] == [one.best for one in others]
    rows = [*csv.DictReader(made.to_csv().splitlines())]
    assert [float(row["latency, predicted"]) for row in rows] == [one.predicted for one in made.candidates]
    shown = made.to_html()
    bars = [shown.count(f", {what}</title>") for what in ("predicted", "measured")]
    assert bars == [sum(one.best for one in others)] * 2 != [0, 0]
    untimed = graphprune.pareto(digits.PATH, EXACT, budgets=(0.7,), timing=False, **how).candidates[1:]
    assert [(one.predicted is None, one.measured) for one in untimed] == [(False, None)] * 2
    assert {(one.predicted, one.measured) for one in found().candidates} == {(None, None)}
    assert "latency" not in found().to_html()


def test_compensation_and_a_metric() -> None:
    """With data weights make up, as in prune; a metric is what it is, and the more the better unless said otherwise."""
    plain = {(one.allocator, one.budget): one.value for one in found().candidates}
    calib = graphprune.Calibration(batches(), cache=False)
    mended = graphprune.pareto(digits.PATH, EXACT, budgets=(0.7,), calib=calib)
    assert mended.candidates[1].value < 0.5 * plain["global", 0.7]

    def size(model: Any) -> float:
        return float(len(model.SerializeToString()))

    for lower, best in ((True, [False, False, True]), (False, [True, False, False])):
        metric: dict[str, Any] = {"metric": size, "lower_is_better": lower, "cost": "bytes", "budgets": (0.8, 0.5)}
        sizes = graphprune.pareto(digits.PATH, **metric)
        assert [one.value for one in sizes.candidates] == sorted((one.value for one in sizes.candidates), reverse=True)
        assert [one.best for one in sizes.candidates] == (best if lower else [True, True, True])
        assert sizes.unit.endswith("size")


def test_a_front_is_what_nothing_else_beats() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        points = [(float(x), float(y)) for x, y in random.integers(0, 5, (8, 2))]
        beaten = [any(x <= a and y <= b and (x < a or y < b) for x, y in points) for a, b in points]
        assert front(points) == [not is_beaten for is_beaten in beaten]
    kept = [one for one in found().candidates if one.best]
    assert found().best == kept, "the dearest first"
    assert [one.value for one in kept] == sorted(one.value for one in kept)


def test_files() -> None:
    data = json.loads(found().render(".json"))
    assert (data["cost"], data["unit"], len(data["candidates"])) == ("macs", "drift (nats)", 5)
    rows = [*csv.DictReader(found().render(".csv").splitlines())]
    assert [float(row["macs"]) for row in rows] == [one.cost for one in found().candidates]
    assert [row["front"] == "True" for row in rows] == [one.best for one in found().candidates]
    dots = ET.fromstring(found().render(".svg")).findall(".//{*}circle")
    assert len(dots) == len(rows)
    assert [dot.get("fill") != "#fff" for dot in dots] == [one.best for one in found().candidates]
    page = Page()
    page.feed(found().render(".html"))
    assert page.fetches == []
    assert page.text.count("of 24") == len(found().best) - 1, "bars of each on the front, but of the whole"


def test_the_command_line(tmp_path: Path) -> None:
    files = [tmp_path / f"f{suffix}" for suffix in (".json", ".csv", ".html", ".svg")]
    outputs = [word for file in files for word in ("-o", file)]
    options = ("--allocator", "global,uniform", "--budgets", "0.7,0.4", "--multiple", 1, "--params", 0.9)
    said = command("pareto", DIGITS, *options, *outputs, "--state", tmp_path / "state.json").done().out
    assert "drift is that on 4 batches of 256 images" in said
    data = json.loads(files[0].read_text())
    assert data == command("pareto", DIGITS, *options, "--json", "--state", tmp_path / "state.json").done().json
    assert {one["allocator"] for one in data["candidates"]} == {WHOLE, *ALLOCATORS}
    assert len(ET.parse(files[3]).findall(".//{*}circle")) == 5


def test_what_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"cannot be brought to 0\.1%"):
        graphprune.pareto(digits.PATH, budgets=(0.9, 0.001), metric=lambda model: pytest.fail("found out too late"))
    state = tmp_path / "state.json"
    with pytest.raises(BudgetError):
        graphprune.pareto(digits.PATH, budgets=(0.9, 0.001), allocators=("search",), state=state)
    assert len(state.read_text().splitlines()) == 1, "nothing was tried"
    with pytest.raises(UsageError, match="no budget, or no allocator"):
        graphprune.pareto(digits.PATH, budgets=())
    with pytest.raises(UsageError, match="there is no cost 'size'"):
        graphprune.pareto(digits.PATH, cost="size")
    with pytest.raises(UsageError, match="there is no allocator 'nobody'"):
        graphprune.pareto(digits.PATH, allocators=("global", "nobody"))
    command("pareto", DIGITS, "--cost", "size").refused(2, "there is no cost 'size'")
    command("pareto", DIGITS, "--budgets", "a").refused(2, "holds no numbers")
    command("pareto", DIGITS, "--keep", 0.5).refused(2, "give keep, or one or several of")
    command("pareto", DIGITS, "-o", tmp_path / "f.md").refused(2, "no output format '.md'")
    command("pareto", DIGITS, "--metric", f"{sys.executable} -c pass").refused(2, "which is no number")
