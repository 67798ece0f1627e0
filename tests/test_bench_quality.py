"""The quality benchmark on digits: which rows there are, what a row says, what fails or dies, what the page shows."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from graphprune.scores import SCORES, Score, Task
from models import digits, tasks, text
from tools import bench_quality, child
from tools.quality_page import page, section
from tools.quality_rows import Found, Row, State, Wanted

GROUP = "digits/real/0"


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> State:
    return State(tmp_path / "deep" / "state.jsonl")


# Rows.


def test_rows_are_those_that_differ() -> None:
    rows = list(Wanted(("digits",), ("l1", "obs", "taylor"), ("none", "least-squares"), (), (), ("2x",)).rows())
    assert len(rows) == len(set(rows))
    assert rows[0] == Row("digits", "dense")
    assert Row("digits", "l1", "2x") in rows, "weights alone: no source"
    assert Row("digits", "l1", "2x", "none", "real") not in rows, "it would be the same again"
    assert Row("digits", "l1", "2x", "none", "real", "re-estimated") in rows
    assert Row("digits", "l1", "2x", "least-squares", "none") in rows
    without = [row for row in rows if row.source == "none"]
    assert without
    assert all(row.norms == "kept" and row.score != "taylor" for row in without), "no forward pass"
    assert {row.source for row in rows if row.score == "obs"} == {"real", "self", "noise", "none"}
    mixed = list(Wanted(("digits",), ("obs",), ("none",), ("real+self",), ("kept",), ("2x",)).rows())
    assert mixed[1:] == [Row("digits", "obs", "2x", "none", "real+self")]


def test_real_and_self_together() -> None:
    """As many of each as of the one alone."""
    subject = tasks.SUBJECTS["digits"]
    bench = bench_quality.Bench(subject, "real+self", 0)
    found = bench.data[0]
    real = np.concatenate([batch["image"] for batch in subject.calibration(0).batches])
    every = np.concatenate([batch["image"] for batch in found.batches])
    assert len(every) == 2 * len(real)
    assert {one.tobytes() for one in real} < {one.tobytes() for one in every}
    assert len(bench.moments_of([])["sample"]) == 2


def test_seeds_choose_the_data() -> None:
    """Another seed is another sample, and none of it is scored."""
    first, again, other = (tasks.SUBJECTS["digits"].calibration(seed) for seed in (0, 0, 1))
    one, two, three = (np.concatenate([batch["image"] for batch in found.batches]) for found in (first, again, other))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)
    assert first.labels is not None
    assert len(first.labels) == len(first.batches)
    scored = {image.tobytes() for image in digits.split()[2]}
    assert not {image.tobytes() for image in one} & scored


def test_budgets() -> None:
    subject = tasks.SUBJECTS["digits"]
    assert bench_quality.request(subject, "2x").targets == {"macs": 0.5}
    assert bench_quality.request(subject, "20%").targets == {"params": 0.8}, "it has no tables"


# Running.


def test_a_group_runs_once(state: State) -> None:
    """Good rows are good, what is shared counts in each, and nothing runs twice."""
    axes = Wanted(("digits",), ("l1", "obs", "taylor"), ("none", "least-squares"), ("real",), (), ("2x",))
    rows = [row for row in axes.rows() if row.group == GROUP]
    bench_quality.run_group(GROUP, rows, state)
    found = state.read()
    assert set(found) == set(rows)
    assert not [line["error"] for line in found.values() if "error" in line]
    best, bare, mended = (
        found[Row("digits", score, "2x", compensation, "real", norms)]
        for score, compensation, norms in (
            ("obs", "least-squares", "kept"), ("obs", "none", "kept"), ("l1", "none", "re-estimated")
        )
    )  # fmt: skip
    assert best["metrics"]["accuracy"] > 0.97 > 0.9 > bare["metrics"]["accuracy"]
    assert mended["metrics"]["accuracy"] > 0.8
    assert best["metrics"]["agreement"] > 0.97
    assert best["kept"] == bare["kept"] != mended["kept"]
    assert best["macs"] <= 0.5
    assert best["seconds"] > bare["seconds"] > 0
    assert best["peak"] > 1e7
    before = state.path.read_text()
    bench_quality.run_group(GROUP, rows, state)
    assert state.path.read_text() == before


def test_a_row_that_fails_is_kept(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: Task) -> dict[object, object]:
        raise ValueError("no such luck\nand more")

    monkeypatch.setitem(SCORES, "broken", Score("broken", "data", "", broken))  # type: ignore[arg-type]
    rows = [Row("digits", score, "2x", source="real") for score in ("broken", "obs")]
    bench_quality.run_group(GROUP, rows, state)
    found = state.read()
    assert found[rows[0]]["error"] == "ValueError: no such luck"
    assert "metrics" in found[rows[1]]


def test_a_process_that_dies_costs_one_row(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row kills; the process is started again, and makes the two others."""
    rows = [Row("digits", score, "2x", source="real") for score in ("a", "b", "c")]
    started = []

    def run(command: Sequence[str], limit: float) -> child.Outcome:
        started.append(command)
        if len(started) == 1:
            return child.Outcome("", "killed by SIGKILL", 1.0, 0)
        for row in rows[1:]:
            state.add(row, {"metrics": {}})
        return child.Outcome("", "", 1.0, 0)

    monkeypatch.setattr(child, "run", run)
    bench_quality.run(rows, state, ["--state", "x"], 60)
    assert [list(command[3:]) for command in started] == [["--state", "x", "--child", GROUP]] * 2
    assert state.read()[rows[0]]["error"] == "killed by SIGKILL"
    assert all("metrics" in state.read()[row] for row in rows[1:])


def test_the_same_positions_are_scored_once(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose model is one that is known takes over its figures; a row whose weights differ does not."""
    first, second, other = (
        Row("digits", "l1", "2x", seed=0), Row("digits", "l1", "2x", seed=1), Row("digits", "l2", "2x", seed=1)
    )  # fmt: skip
    bench_quality.run_group(first.group, [first], state)
    subject = tasks.SUBJECTS["digits"]
    measured: Found = {"accuracy": 0.25, "agreement": 0.25}
    changed = tasks.Subject(**{**subject.__dict__, "measure": lambda model: measured})
    monkeypatch.setitem(tasks.SUBJECTS, "digits", changed)
    bench_quality.run_group(second.group, [second, other], state)
    found = state.read()
    assert found[second]["metrics"] == found[first]["metrics"] != measured
    assert found[other]["metrics"] == measured


# The page.


def line(accuracy: float) -> Found:
    """A row that went well."""
    return {
        "metrics": {"accuracy": accuracy, "agreement": 1.0},
        "seconds": 1.0,
        "peak": 2e9,
        "versions": {"numpy": "2"},
    }


def test_page() -> None:
    """The best way comes first; cells are means with their range; failures are listed; the state comes back whole."""
    found: dict[Row, Found] = {Row("digits", "dense"): {"metrics": {"accuracy": 0.9, "agreement": 1.0}}}
    found |= {Row("digits", "l1", "2x", seed=seed): line(0.5 + seed / 10) for seed in (0, 1)}
    made = {"versions": {"numpy": "2", "revision": "abc1234"}}
    found |= {Row("digits", "obs", "2x", source="real"): line(0.7) | made}
    found |= {Row("digits", "fisher", "2x", source="real"): {"error": "UsageError: a | b"}}
    table = [text for text in section("digits", found).splitlines() if text.startswith("|")]
    assert len({row.count("|") for row in table}) == 1
    assert [row.split("|")[1].strip() for row in table[2:]] == ["`obs`", "`l1`"]
    assert "| 55.0% (50.0% to 60.0%) |" in table[3]
    text = page(found, "A note on the rows.")
    assert "- Failed, 1 rows of `fisher`: UsageError: a / b" in text
    assert "With numpy 2." in text
    assert [row.split("|")[-2].strip() for row in table[2:]] == ["abc1234", "older"]
    assert "A note on the rows." in text
    assert "Dense: accuracy 90.0%" in text


def test_the_page_is_of_its_rows() -> None:
    """Whatever else stands on the page in docs/, its tables are those of the rows beside it."""
    written = bench_quality.PAGE.with_suffix(".md").read_text()
    tables = [text for text in page(State(bench_quality.PAGE).read()).splitlines() if text.startswith(("|", "Dense"))]
    assert len(tables) > 50
    assert [text for text in written.splitlines() if text.startswith(("|", "Dense"))] == tables


def test_rows_know_their_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit, and whether code was changed since; nothing where there is no checkout."""
    for number, change in enumerate(["", "print()"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
        (folder / "a.py").write_text("pass\n")
        (folder / "page.md").write_text("x\n")
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
            subprocess.run([*git, *words], check=True)
        (folder / "page.md").write_text("y\n")
        (folder / "a.py").write_text(change or "pass\n")
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout[:7]
        monkeypatch.setattr(bench_quality, "ROOT", folder)
        bench_quality.revision.cache_clear()
        assert bench_quality.revision() == {"revision": head + ("+" if change else "")}
    monkeypatch.setattr(bench_quality, "ROOT", tmp_path)
    bench_quality.revision.cache_clear()
    assert bench_quality.revision() == {}
    bench_quality.revision.cache_clear()


def test_state_keeps_the_last_line(state: State) -> None:
    row = Row("digits", "l1", "2x")
    state.add(row, {"error": "x"})
    state.add(row, {"metrics": {}})
    assert state.read() == {row: {"row": json.loads(json.dumps(row.__dict__)), "metrics": {}}}


# Scores of models.


@pytest.mark.parametrize("seed", range(10))
def test_divergence_of_what_is_rounded(seed: int) -> None:
    """KL by hand; next to nothing, and never below 0, between a distribution and itself in half precision."""
    rng = np.random.default_rng(seed)
    p, q = (text._log_softmax(rng.standard_normal((3, 50)).astype(np.float32) * 3) for _ in range(2))
    by_hand = float((np.exp(p) * (p - q)).sum())
    assert text._divergence(p.copy(), q) == pytest.approx(by_hand, rel=1e-4)
    half = p.astype(np.float16).astype(np.float32)
    assert -1e-6 < text._divergence(half.copy(), p) < 1e-5
    assert text._divergence(half.copy(), q) == pytest.approx(by_hand, rel=1e-2)
