"""Sensitivities: masks that equal cuts, curves through what was measured, allocators that go by them, files."""

from __future__ import annotations

import csv
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphprune
from graphprune.allocate import ALLOCATORS
from graphprune.budget import candidates, top
from graphprune.dims import Chosen
from graphprune.errors import ReadError, UsageError
from graphprune.formats import onnx as format_
from graphprune.loaded import Loaded
from graphprune.pictures import bars, heat_map
from graphprune.sensitivity import FORMATS, Row, Sensitivity
from graphprune.survey import ALONE
from graphprune.tried import distance
from graphprune.verify import difference
from models import digits
from tests.build import Net
from tests.command import command
from tests.prove import Subject
from tests.test_cli import DIGITS
from tests.test_nesting import grouped
from tests.test_quantised import prepared
from tests.test_report import Page

MULTIPLE: dict[str, Any] = {"multiple": 1, "verify": "none", "timing": False}


def normed() -> Net:
    """A hidden axis that a layer norm is taken over: zeros there are something else than a cut."""
    net = Net()
    x = net.op("MatMul", net.input(3, 6), net.weight(6, 8, fan=6))
    x = net.op("LayerNormalization", net.op("Tanh", x), net.weight(8), net.weight(8))
    net.output(net.op("MatMul", x, net.weight(8, 4, fan=8)))
    return net


@cache
def seen() -> tuple[Loaded, graphprune.Calibration]:
    images = digits.split()[0][:128]
    batches = [{"image": part} for part in np.split(images, 4)]
    return graphprune.load(digits.PATH), graphprune.Calibration(batches, cache=False)


def made(*losses: tuple[float, ...], ratios: tuple[float, ...] = (0.75, 0.5, 0.25)) -> Sensitivity:
    """Of the digits network, with these numbers in place of what was measured."""
    loaded, _ = seen()
    atoms = candidates(loaded.analysis, ALONE)
    kept = [tuple(int(ratio * atom.size) for ratio in ratios) for atom in atoms]
    rows = [Row(a.index, a.name, a.kind, a.size, k, lost) for a, k, lost in zip(atoms, kept, losses, strict=True)]
    model = graphprune.sensitivity(loaded, ratios=(0.5,), metric=lambda model: 0.0).model
    return Sensitivity(model, "l2", "drift (nats)", ratios, tuple(rows))


# Masks.


@pytest.mark.parametrize("model", [digits.PATH, prepared, lambda: grouped().model(), lambda: normed().model()])
def test_one_session_masks_as_a_model_made_for_each_choice_does(model: Any) -> None:
    proto = onnx.load(model) if isinstance(model, Path) else model()
    subject = Subject(proto)
    able = subject.format.maskable(subject.analysis)
    at, (_, feeds), moved = format_.masked(subject.model, subject.analysis, able), subject.proof.trials[0], 0
    assert difference(subject.proof.dense[0], at({})(feeds)) < 1e-5
    choices: list[Chosen] = [{dim: kept for dim, kept in subject.cut().items() if dim in able} for _ in range(2)]
    choices += [{dim: kept} for dim, kept in choices[0].items()]
    for chosen in choices:
        expected = format_.run(format_.mask(subject.model, subject.analysis, chosen))(feeds)
        assert difference(expected, at(chosen)(feeds)) < 1e-5
        moved += difference(subject.proof.dense[0], expected) > 1e-3
    assert moved or not able, "the choices are no mere permutations"


@pytest.mark.filterwarnings("ignore")
def test_masks_of_a_module() -> None:
    """One module for all; an earlier runner is not changed by a later one."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).eval()
    loaded = graphprune.load(module, example_inputs=(torch.randn(2, 4),))
    (atom,) = loaded.analysis.prunable
    at = loaded.format.masked(loaded.model, loaded.analysis, [atom.dim])
    ((_, feeds),) = loaded.format.trials(loaded.model, loaded.format.run(loaded.model))
    dense, first, second = (at({atom.dim: np.array(kept)} if kept else {}) for kept in ([], [0, 2], [1]))
    masked = [loaded.format.mask(loaded.model, loaded.analysis, {atom.dim: np.array(k)}) for k in ([0, 2], [1])]
    for runner, expected in zip((dense, first, second, first), (loaded.model, *masked, masked[0]), strict=True):
        assert difference(loaded.format.run(expected)(feeds), runner(feeds)) < 1e-6
    assert difference(dense(feeds), first(feeds)) > 1e-3


@pytest.mark.parametrize("model", [digits.PATH, lambda: grouped().model(), lambda: normed().model()])
def test_what_is_measured_is_what_a_cut_does(model: Any) -> None:
    loaded = graphprune.load(model() if callable(model) else model)
    (_, feeds), *_ = loaded.format.trials(loaded.model, loaded.format.run(loaded.model))
    request = replace(ALONE, allow=("all",))
    calib = graphprune.Calibration([dict(feeds)], cache=False)
    found = graphprune.sensitivity(loaded, request, ratios=(0.7, 0.4), calib=calib)
    assert len(found.rows) == len(candidates(loaded.analysis, request)) > 0
    for row in found.rows:
        for ratio, kept, lost in zip(found.ratios, row.kept, row.lost, strict=True):
            plan = loaded.plan(replace(request, keep=ratio))
            (cut,) = (cut for cut in plan.cuts if cut.index == row.index)
            plan = replace(plan, cuts=(cut,))
            assert len(cut.keep) == kept * cut.rows
            runs = (loaded.format.run(m) for m in (loaded.model, loaded.apply(plan, verify="none").pruned))
            before, after = ([run(feeds)] for run in runs)
            assert lost == pytest.approx(distance(loaded.analysis.graph, before, after), rel=1e-3, abs=1e-6)
            assert lost > 0


def test_without_data_on_what_stands_in() -> None:
    plain = graphprune.sensitivity(digits.PATH, ratios=(0.5,))
    assert "images made to suit the model's batch norms" in plain.notes[-1]
    assert graphprune.sensitivity(digits.PATH, ratios=(0.5,)) == plain
    with pytest.raises(UsageError, match="no data to run the model on"):
        graphprune.sensitivity(digits.PATH, calib="none")


def test_compensation_leaves_less() -> None:
    loaded, calib = seen()
    plain, mended = (graphprune.sensitivity(loaded, calib=calib, compensate=by, ratios=(0.5,)) for by in (False, True))
    assert all(0 < b.lost[0] < 0.5 * a.lost[0] for a, b in zip(plain.rows, mended.rows, strict=True))


@pytest.mark.parametrize("lower", [False, True])
def test_a_metric(lower: bool) -> None:
    """How much worse it gets, whichever way that is."""
    asked = []

    def size(model: Any) -> float:
        asked.append(model)
        return (-1 if lower else 1) * len(model.SerializeToString())

    found = graphprune.sensitivity(digits.PATH, metric=size, lower_is_better=lower, ratios=(0.75, 0.5))
    assert len(asked) == 1 + 2 * len(found.rows)
    assert all(0 < row.lost[0] < row.lost[1] for row in found.rows)
    assert found.unit.endswith("size")


@pytest.mark.parametrize("ratios", [(), (0.5, 1.0), (0.0,), (-1.0,)])
def test_ratios_that_make_no_sense(ratios: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="make no sense"):
        graphprune.sensitivity(digits.PATH, ratios=ratios)


# Curves.


def curve(size: int, kept: tuple[int, ...], lost: tuple[float, ...]) -> Any:
    return Row(0, "", "", size, kept, lost).curve()


def test_a_curve_goes_through_what_was_measured() -> None:
    found = curve(8, (6, 4, 2), (0.1, 0.4, 1.5))
    assert found[[8, 6, 4, 2]] == pytest.approx([0, 0.1, 0.4, 1.5])
    assert found[7] == pytest.approx(0.025), "the square root is straight"
    assert found[0] > found[1] > 1.5, "and goes on as it went last"


@pytest.mark.parametrize("lost", [(0.3, 0.4, 0.41), (0.2, 0.1, 0.9), (-0.1, 0.0, 0.2), (0.0, 0.0, 0.0), (5.0, 1e6, 0)])
def test_a_curve_falls_and_is_convex(lost: tuple[float, ...]) -> None:
    found = curve(20, (15, 10, 5), lost)
    steps = -np.diff(found)
    assert found.shape == (21,)
    assert found[20] == 0
    assert (steps >= 0).all()
    assert (np.diff(steps) <= 1e-9 * (1 + found[0])).all(), "the cheapest go first"
    running = np.maximum.accumulate(np.maximum(lost, 0))
    assert (found[[15, 10, 5]] <= running + 1e-9).all()


def test_shares_that_leave_the_same_count_once() -> None:
    assert curve(3, (2, 2, 1), (0.1, 0.1, 0.4)) == pytest.approx(curve(3, (2, 1), (0.1, 0.4)))
    assert curve(2, (2, 1), (0.0, 0.4))[1] == pytest.approx(0.4)
    assert (curve(3, (3,), (0.0,)) == 0).all()


# Allocation.


@pytest.mark.parametrize("name", sorted(set(ALLOCATORS) - {"uniform", "search", "flap"}))
def test_allocators_cut_where_it_was_measured_to_hurt_least(name: str) -> None:
    """Two Dims dear and two cheap, and the other way round; positions are still those of the score.

    "uniform" knows no curves, "flap" how they bend and not how high they are.
    """
    loaded, _ = seen()
    dear, cheap = (4.0, 16.0, 36.0), (0.01, 0.04, 0.09)
    scores = loaded.scores(graphprune.Request(macs=0.7, multiple=1))
    left = []
    for losses in ((dear, dear, cheap, cheap), (cheap, cheap, dear, dear)):
        request = graphprune.Request(params=0.7, multiple=1, allocator=name)
        plan = loaded.using(made(*losses)).plan(request, scores=scores)
        atoms = [loaded.analysis.atoms[cut.index] for cut in plan.cuts]
        assert all(
            cut.keep == tuple(top(scores[a.dim], len(cut.keep))) for a, cut in zip(atoms, plan.cuts, strict=True)
        )
        kept = {cut.name: len(cut.keep) / cut.size for cut in plan.cuts}
        left.append([kept.get(row.name, 1.0) for row in made(*losses).rows])
    assert np.mean(left[0][:2]) > np.mean(left[0][2:])
    assert np.mean(left[1][:2]) < np.mean(left[1][2:])


def test_a_pruned_model_says_what_it_went_by(tmp_path: Path) -> None:
    found = made(*[(0.1, 0.4, 0.9)] * 4)
    path = tmp_path / "s.json"
    path.write_text(found.to_json())
    result = graphprune.prune(digits.PATH, macs=0.6, sensitivity=path, **MULTIPLE)
    assert result.plan.cuts == graphprune.prune(digits.PATH, macs=0.6, sensitivity=found, **MULTIPLE).plan.cuts
    assert result.plan.cuts != graphprune.prune(digits.PATH, macs=0.6, **MULTIPLE).plan.cuts
    assert any("dims compare by what was measured" in note for note in result.report.notes)
    assert found.to_svg() in result.report.to_html()
    assert json.loads(result.report.to_json())["sensitivity"]["unit"] == "drift (nats)"


def test_sensitivities_that_do_not_fit() -> None:
    loaded, _ = seen()
    found, request = made(*[(0.1, 0.4, 0.9)] * 4), graphprune.Request(macs=0.5)
    with pytest.raises(UsageError, match="of another model"):
        graphprune.load(grouped().model()).using(found)
    with pytest.raises(UsageError, match="of another model"):
        loaded.using(replace(found, rows=(replace(found.rows[0], size=5),)))
    with pytest.raises(UsageError, match=r"'block2\.conv2' may be cut"):
        loaded.using(replace(found, rows=found.rows[:3])).plan(request)
    loaded.using(replace(found, rows=found.rows[:3])).plan(replace(request, exclude=("block2.conv2",)))
    with pytest.raises(UsageError, match="keep cuts every Dim alike"):
        graphprune.prune(digits.PATH, keep=0.5, sensitivity=found)


# Files.


def test_a_file_and_back(tmp_path: Path) -> None:
    loaded, calib = seen()
    found = graphprune.sensitivity(loaded, calib=calib)
    path = tmp_path / "s.json"
    path.write_text(found.render(".json"))
    assert Sensitivity.load(path) == found
    assert len(path.read_text().splitlines()) == len(found.rows) + 10, "a line a Dim"
    rows = [*csv.DictReader(found.render(".csv").splitlines())]
    assert [float(row["lost"]) for row in rows] == [lost for row in found.rows for lost in row.lost]
    cells = ET.fromstring(found.render(".svg")).findall(".//{*}rect")
    assert len(cells) == 1 + len(found.rows) * len(found.ratios)
    page = Page()
    page.feed(found.render(".html"))
    assert page.fetches == []
    assert all(row.name in page.text for row in found.rows)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda data: data.update(graphprune_sensitivity=2), "another version"),
        (lambda data: data.pop("graphprune_sensitivity"), "holds no sensitivities"),
        (lambda data: data.pop("rows"), "holds no sensitivities"),
        (lambda data: data["rows"][0].pop("kept"), "holds no sensitivities"),
        (lambda data: data.update(rows=[1]), "holds no sensitivities"),
        (lambda data: data.update(more=1), "holds no sensitivities"),
    ],
)
def test_files_that_hold_something_else(edit: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    data = json.loads(made(*[(0.1, 0.4, 0.9)] * 4).to_json())
    edit(data)
    path = tmp_path / "s.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ReadError, match=words):
        Sensitivity.load(path)
    for text in ("[1]", "{", "", "null"):
        path.write_text(text)
        command("prune", DIGITS, "-o", tmp_path / "o.onnx", "--macs", 0.5, "--sensitivity", path).refused(3, "holds no")
    command("plan", DIGITS, "--macs", 0.5, "--sensitivity", tmp_path).refused(3, "cannot read")


def test_the_command_line(tmp_path: Path) -> None:
    """All files at once; a run that was killed goes on."""
    files, state = [tmp_path / f"s{suffix}" for suffix in FORMATS], tmp_path / "state.json"
    outputs = [word for file in files for word in ("-o", file)]
    said = command("sensitivity", DIGITS, "--ratios", "0.5,0.3", *outputs, "--state", state).done().out
    assert "positions by l2" in said
    assert "drift is that on 4 batches of 256 images" in said
    found = Sensitivity.load(files[0])
    assert [file.read_text() for file in files] == [found.render(suffix) for suffix in FORMATS]
    assert found.ratios == (0.5, 0.3)
    lines = state.read_text().split("\n\n")
    assert len(lines) == 1 + 2 * len(found.rows)
    state.write_text("\n\n".join(lines[:4]) + "\n")
    assert command("sensitivity", DIGITS, "--ratios", "0.5,0.3", "--json", "--state", state).done().json["rows"]
    assert state.read_text().split() == "\n".join(lines).split(), "the first three were not asked for again"

    out = tmp_path / "o.onnx"
    command("prune", DIGITS, "-o", out, "--macs", 0.5, "--sensitivity", files[0], "--verify", "none").done()
    assert out.is_file()
    command("sensitivity", DIGITS, "-o", tmp_path / "s.txt").refused(2, "no output format '.txt'")
    command("plan", DIGITS, "--macs", 0.5, "--sensitivity", files[0], "-o", files[0]).refused(2, "this run reads")


def test_a_metric_command() -> None:
    metric = f'{sys.executable} -c "import os, sys; print(os.path.getsize(sys.argv[1]))"'
    found = command("sensitivity", DIGITS, "--metric", metric, "--ratios", "0.5", "--json").done().json
    assert found["unit"] == "metric"
    assert all(row["lost"][0] > 1000 for row in found["rows"])
    failing = f"{sys.executable} -c 'raise SystemExit(3)'"
    command("sensitivity", DIGITS, "--metric", failing).refused(2, "ended with code 3")


# Pictures.


def test_the_more_is_lost_the_deeper() -> None:
    cells = ET.fromstring(heat_map({"a": [0.0, 1e-3, 1.0], "b<c": [None, 0.5, 2.0]}, ["x", "y", "z"]))
    shades = [rect.get("fill") for rect in cells.findall(".//{*}rect")][1:]
    assert [shades[0], shades[3], shades[5]] == ["#ffffff", "#ffffff", "#b00020"]
    depths = [int(str(shade)[3:5], 16) for shade in (shades[1], shades[4], shades[2], shades[5])]
    assert depths == sorted(depths, reverse=True)
    assert [title.text for title in cells.findall(".//{*}title")] == ["a", "b<c"]


def test_bars_are_as_long_as_shares() -> None:
    rects = ET.fromstring(bars([("a", 0.25, "1 of 4"), ("b" * 60, 1.0, "")])).findall(".//{*}rect")[1:]
    widths = [float(str(rect.get("width"))) for rect in rects]
    assert widths == [260, 65, 260, 260]
