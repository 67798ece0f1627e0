"""The smallest model whose metric holds: bisection, commands that fail, curves, and runs that were killed."""

from __future__ import annotations

import csv
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import graphprune
from graphprune.cost import CostModel
from graphprune.errors import BudgetError, UsageError
from graphprune.memo import Memo
from graphprune.smallest import PRECISION
from models import digits
from tests.command import command

QUICK: dict[str, Any] = {"verify": "none", "timing": False, "multiple": 1}


def left(model: Any) -> float:
    """A metric that knows all: the share of the weights that is left."""
    return CostModel(graphprune.load(model).analysis).params({}) / 39_250


def counted(asked: list[float]) -> Any:
    def metric(model: Any) -> float:
        asked.append(left(model))
        return asked[-1]

    return metric


def test_the_smallest_that_holds() -> None:
    asked: list[float] = []
    result = graphprune.prune(digits.PATH, metric=counted(asked), drop=0.4, shrink="params", **QUICK)
    share = result.report.pruned.params / result.report.dense.params
    assert 0.6 <= share <= 0.6 + 2 * PRECISION
    assert len(asked) <= 9, "a bisection, not a sweep"
    assert result.curve is not None
    assert [point.held for point in result.curve.points] == [value >= 0.6 - 1e-9 for value in asked]
    assert f"of the whole model 1: {len(asked)} measured" in result.report.notes[-1]


def test_an_error_that_may_grow() -> None:
    error: dict[str, Any] = {"lower_is_better": True, "drop": 0.5, "shrink": "params"}
    result = graphprune.prune(digits.PATH, metric=lambda model: 2 - left(model), **error, **QUICK)
    share = result.report.pruned.params / result.report.dense.params
    assert 0.5 <= share <= 0.5 + 2 * PRECISION


def test_limits_hold_beside_a_metric() -> None:
    result = graphprune.prune(digits.PATH, metric=left, drop=0.3, shrink="params", macs=0.9, **QUICK)
    assert result.report.pruned.macs <= 0.9 * result.report.dense.macs
    assert 0.7 <= result.report.pruned.params / result.report.dense.params <= 0.72
    with pytest.raises(BudgetError, match="within the limits the metric comes to"):
        graphprune.prune(digits.PATH, metric=left, drop=0.3, shrink="params", macs=0.3, **QUICK)


def test_nothing_may_be_lost() -> None:
    result = graphprune.prune(digits.PATH, metric=left, drop=0.0, **QUICK)
    assert result.plan.cuts == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": lambda model: None}, "'None', which is no number"),
        ({"metric": lambda model: float("nan")}, "the metric is nan"),
        ({"metric": left, "drop": -1}, "a drop of -1"),
        ({"metric": left, "shrink": "size"}, "there is no cost 'size'"),
        ({"metric": left, "keep": 0.5}, "give keep, or one or several of"),
        ({"metric": "' "}, "cannot be read"),
        ({"metric": " "}, "is empty"),
        ({"metric": "no-such-command-anywhere"}, "does not start"),
        ({"metric": f"{sys.executable} -c 'raise SystemExit(3)'"}, "ended with code 3: it said nothing"),
        ({"metric": f"{sys.executable} -c 'import nowhere'"}, "No module named 'nowhere'"),
        ({"metric": f"{sys.executable} -c 'print(12, 34, chr(97))'"}, "the metric is 'a', which is no number"),
        ({"metric": f"{sys.executable} -c pass"}, "the metric is '', which is no number"),
    ],
)
def test_metrics_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        graphprune.prune(digits.PATH, **options, **QUICK)


SIZE = "import os, sys; print('bytes', os.path.getsize(sys.argv[1]))"


def test_the_command_line(tmp_path: Path) -> None:
    out, curve, state = tmp_path / "o.onnx", tmp_path / "c.csv", tmp_path / "s.json"
    metric = f'{sys.executable} -c "{SIZE}"'
    options = ("--metric", metric, "--drop", 0.3, "--verify", "none", "--multiple", 1)
    command("prune", digits.PATH, "-o", out, *options, "--curve", curve, "--state", state).done()
    whole = digits.PATH.stat().st_size
    assert 0.7 * whole <= out.stat().st_size <= 0.75 * whole
    rows = [*csv.DictReader(curve.read_text().splitlines())]
    assert set(rows[0]) == {"params", "macs", "bytes", "activations", "latency", "metric", "held"}
    assert [row["held"] for row in rows] == [str(float(row["metric"]) >= 0.7 * whole) for row in rows]
    assert sorted((int(row["macs"]) for row in rows), reverse=True) == [int(row["macs"]) for row in rows]

    broken = state.read_text()[:-9]  # killed while it wrote
    state.write_text(broken)
    found = len([line for line in broken.splitlines() if line.startswith('["metric')])
    fails = metric.replace("print", "1 / 0; print")
    command("prune", digits.PATH, "-o", out, *options[2:], "--metric", fails, "--state", state).refused(2, "ended with")
    picture = tmp_path / "c.svg"
    command("prune", digits.PATH, "-o", out, *options, "--curve", picture, "--state", state).done()
    assert len(ET.parse(picture).findall(".//{*}circle")) == len(rows)
    again = [line for line in state.read_text().splitlines() if line.startswith('["metric')]
    assert len(again) == found + 1, "only the last was asked for again"


# What a killed run had found.


def test_a_memo(tmp_path: Path) -> None:
    path, asked = tmp_path / "m.json", []

    def find() -> float:
        asked.append(1)
        return 0.25

    first = Memo(path, "a")
    assert [first("x", find), first("x", find), first("y", find)] == [0.25] * 3
    assert len(asked) == 2
    path.write_text(path.read_text()[:-4])
    second = Memo(path, "a")
    assert second.known == {"x": 0.25}
    assert second("y", find) == Memo(path, "a")("y", find) == 0.25
    assert len(asked) == 3
    with pytest.raises(UsageError, match="another model, other data or another request"):
        Memo(path, "b")
    path.write_text(json.dumps({"graphprune_plan": 1}))
    with pytest.raises(UsageError, match="holds something else"):
        Memo(path, "a")
