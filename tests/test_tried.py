"""What candidates are judged by: the same as when a model is planned, made up for, cut and run; and search with it."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphprune
import graphprune.tried
from graphprune.compensate import refit
from graphprune.errors import UsageError
from graphprune.formats import onnx as format_
from graphprune.loaded import Loaded
from graphprune.trace import Trace
from graphprune.tried import distance
from models import digits, real
from tests.command import command

REQUEST = graphprune.Request(macs=0.5, multiple=1)


@cache
def seen() -> tuple[Loaded, dict[str, Any]]:
    images = digits.split()[0][:128]
    batches = [{"image": part} for part in np.split(images, 4)]
    return graphprune.load(digits.PATH).learned(graphprune.Calibration(batches, cache=False), REQUEST)


def test_a_candidate_is_what_would_be_cut() -> None:
    """Fitted on every other batch, looked at on those between."""
    loaded, found = seen()
    tried = loaded.tried(found, damping=0.2)
    assert tried is not None
    moments = {site: whole.halves[0] for site, whole in found["moments"].items()}
    held_out = found["batches"][1::2]
    for share in (0.7, 0.4):
        plan = loaded.plan(graphprune.Request(macs=share, multiple=1))
        result = loaded.compensated(plan, moments, 0.2).apply(plan, verify="none", timing=False)
        runs = (format_.run(loaded.model), format_.run(format_.read(result.model)))
        before, after = ([run(batch) for batch in held_out] for run in runs)
        moved = tried(plan.chosen(loaded.analysis))
        assert moved == pytest.approx(distance(loaded.analysis.graph, before, after), rel=1e-4)
        assert moved > 0
    plain = loaded.tried({**found, "moments": None})
    assert plain is not None
    assert plain(plan.chosen(loaded.analysis)) > 2 * moved, "nothing was made up for"


def test_what_was_solved_is_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, found = seen()
    tried = loaded.tried(found)
    assert tried is not None
    calls: list[str] = []

    def counted(analysis: Any, consumer: Any, *rest: Any) -> Any:
        calls.append(consumer.weight)
        return refit(analysis, consumer, *rest)

    monkeypatch.setattr(graphprune.tried, "refit", counted)
    chosen = loaded.plan(REQUEST).chosen(loaded.analysis)
    tried(chosen)
    first = len(calls)
    tried(chosen)
    dim, kept = next(iter(chosen.items()))
    tried({**chosen, dim: kept[1:]})
    assert first < len(calls) < 2 * first, "only consumers of the Dim that changed"


def test_divergence_of_classes() -> None:
    """In nats, whatever is added to all logits of a row."""
    graph = graphprune.load(digits.PATH).analysis.graph
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], np.float32))
    expected = (0.5 * np.log(2) - 0.25 * np.log(2)) / 2
    assert distance(graph, [{"logits": logits}], [{"logits": other + 7}]) == pytest.approx(expected, rel=1e-4)
    assert distance(graph, [{"logits": logits}], [{"logits": logits - 3}]) == pytest.approx(0, abs=1e-6)


def test_search_moves_outputs_less_and_goes_on_where_it_was(tmp_path: Path) -> None:
    loaded, found = seen()
    how: dict[str, Any] = {"macs": 0.4, "multiple": 1, "timing": False, "verify": "none", "compensate": True}
    how |= {"calib": graphprune.Calibration(found["batches"], cache=False)}
    state = tmp_path / "s.json"
    plain = graphprune.prune(digits.PATH, **how).plan
    whole = graphprune.prune(digits.PATH, **how, allocator="search", tries=30, state=state).plan
    tried = loaded.tried(found)
    assert tried is not None
    assert tried(whole.chosen(loaded.analysis)) < tried(plain.chosen(loaded.analysis))
    lines = state.read_text().splitlines()
    state.write_text("\n".join(lines[: len(lines) // 2]))
    asked = len(state.read_text().splitlines())
    again = graphprune.prune(digits.PATH, **how, allocator="search", tries=30, state=state).plan
    assert again == whole
    assert len(state.read_text().split()) == len("\n".join(lines).split()), "the first half was found again"
    assert asked < len(lines)
    with pytest.raises(UsageError, match="another model, other data or another request"):
        graphprune.prune(digits.PATH, **{**how, "damping": 0.3}, allocator="search", tries=30, state=state)


def test_search_without_data() -> None:
    loaded = graphprune.load(digits.PATH)
    with pytest.raises(UsageError, match="there are none"):
        loaded.plan(graphprune.Request(macs=0.5, allocator="search"))
    result = graphprune.prune(digits.PATH, macs=0.5, allocator="search", tries=3, verify="none", timing=False)
    assert any("statistics from" in note for note in result.report.notes), "the best source that needs none"
    assert isinstance(result.model, onnx.ModelProto)


def first(model: Any) -> float:
    """A fitness that can be seen through: how many channels the first convolution keeps."""
    return float(model.graph.initializer[0].dims[0])


def test_search_by_a_fitness_of_ones_own(tmp_path: Path) -> None:
    """Any function of a cut model, and no data; what was found is known when the same is asked for again."""
    asked: list[float] = []

    def fitness(model: Any) -> float:
        asked.append(first(model))
        return asked[-1]

    how: dict[str, Any] = {"macs": 0.5, "multiple": 1, "timing": False, "verify": "none"}
    search: dict[str, Any] = {**how, "allocator": "search", "fitness": fitness, "tries": 15}
    plain = graphprune.prune(digits.PATH, **how)
    result = graphprune.prune(digits.PATH, state=tmp_path / "state", **search)
    assert first(result.model) == max(asked) > first(plain.model)
    assert 5 < len(asked) <= 15
    assert not any("data" in note or "drift" in note for note in result.report.notes)
    done = len(asked)
    again = graphprune.prune(digits.PATH, state=tmp_path / "state", **search)
    assert (again.plan.cuts, len(asked)) == (result.plan.cuts, done)


def test_a_fitness_is_of_what_was_made_up_for() -> None:
    """The weights that stay make up, on all data: nobody looks at outputs."""
    images, labels = digits.split()[:2]
    batches = [{"image": part} for part in np.split(images[:128], 4)]
    right: list[float] = []

    def accuracy(model: Any) -> float:
        run = format_.run(format_.read(model))
        right.append(float((run({"image": images[:500]})["logits"].argmax(1) == labels[:500]).mean()))
        return right[-1]

    how: dict[str, Any] = {"allocator": "search", "fitness": accuracy, "tries": 4, "multiple": 1, "macs": 0.4}
    calib = graphprune.Calibration(batches, cache=False)
    graphprune.prune(digits.PATH, calib=calib, compensate="least-squares", timing=False, **how)
    mended = right[:]
    right.clear()
    graphprune.prune(digits.PATH, calib=calib, compensate=False, timing=False, **how)
    assert min(mended) > max(right)


@pytest.mark.parametrize("path", [digits.PATH, real.llama_tiny], ids=["digits", "llama"])
def test_gradients_of_the_whole_model_are_like_themselves(path: Any) -> None:
    """In any order of positions; and the less so the more is cut."""
    loaded = graphprune.load(path if isinstance(path, Path) else path())
    feeds = loaded.format.trials(loaded.model, loaded.format.run(loaded.model))[0][1]
    trace, random = Trace(loaded.format, loaded.model, loaded.analysis, [feeds]), np.random.default_rng(0)

    def at(chosen: Any) -> float:
        return trace(loaded.format.apply(loaded.model, loaded.analysis, chosen), chosen)

    channels = [atom for atom in loaded.analysis.prunable if atom.kind in ("channel", "mlp", "hidden")]
    order = {atom.dim: random.permutation(atom.size) for atom in channels}
    assert at({}) == pytest.approx(1.0)
    assert at(order) == pytest.approx(1.0, abs=1e-3)
    some, few = ({dim: np.sort(own[: round(share * len(own))]) for dim, own in order.items()} for share in (0.9, 0.3))
    assert 0.999 > at(some) > at(few)


def test_gradients_are_held_against_their_own_places() -> None:
    """By the formula: Pearson's of each weight's numbers that stay, weighted by how many they are."""
    loaded = graphprune.load(digits.PATH)
    feeds = {"image": digits.split()[0][:16]}
    atom = loaded.analysis.prunable[1]
    chosen = {atom.dim: np.arange(0, atom.size, 2)}
    cut = loaded.format.apply(loaded.model, loaded.analysis, chosen)
    whole, own = (next(loaded.format.gradients(m, None, [feeds], 0)("gradient")) for m in (loaded.model, cut))
    axes = {(use.weight, use.axis) for use in atom.uses}
    parts = []
    for name, values in own.items():
        kept = whole[name]
        for axis in (axis for weight, axis in axes if weight == name):
            kept = kept.take(chosen[atom.dim], axis)
        parts.append((values.size, np.corrcoef(values.ravel(), kept.ravel())[0, 1]))
    expected = sum(n * r for n, r in parts) / sum(n for n, _ in parts)
    found = Trace(loaded.format, loaded.model, loaded.analysis, [feeds])(cut, chosen)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.1 < found < 0.999


def test_search_by_gradients() -> None:
    """On data; the result is at least as alike as the first candidate, which is that of "global"."""
    loaded, found = seen()
    calib = graphprune.Calibration(found["batches"], cache=False)
    how: dict[str, Any] = {"macs": 0.4, "multiple": 1, "timing": False, "verify": "none", "calib": calib}
    how |= {"compensate": False}
    trace = Trace(loaded.format, loaded.model, loaded.analysis, found["batches"])

    def at(result: Any) -> float:
        return trace(result.pruned, result.plan.chosen(loaded.analysis))

    plain = graphprune.prune(digits.PATH, **how)
    assert at(graphprune.prune(digits.PATH, allocator="search", fitness="trace", tries=10, **how)) > at(plain)


def test_a_fitness_needs_an_allocator_that_tries() -> None:
    with pytest.raises(UsageError, match="tries no candidates") as raised:
        graphprune.prune(digits.PATH, macs=0.5, fitness=first)
    assert "search" in (raised.value.hint or "")
    with pytest.raises(UsageError, match="tries no candidates"):
        graphprune.pareto(digits.PATH, fitness=first, metric=first)


def test_a_fitness_on_the_command_line(tmp_path: Path) -> None:
    script = tmp_path / "fitness.py"
    script.write_text(
        "import sys, onnx\nprint('channels', onnx.load(sys.argv[1]).graph.initializer[0].dims[0])\n", encoding="utf-8"
    )
    fitness = f"{sys.executable} {script}"
    search = ("--macs", 0.5, "--multiple", 1, "--allocator", "search", "--tries", 6, "--fitness", fitness)
    small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    command("prune", digits.PATH, "-o", small, *search).done()
    command("prune", digits.PATH, "-o", tmp_path / "plain.onnx", "--macs", 0.5, "--multiple", 1).done()
    assert first(onnx.load(small)) > first(onnx.load(tmp_path / "plain.onnx"))
    command("plan", digits.PATH, "-o", plan, *search).done()
    assert json.loads(plan.read_text())["cuts"]
    front = command("pareto", digits.PATH, *search[2:], "--budgets", "0.5", "--json").done().json
    (found,) = (one for one in front["candidates"] if one["allocator"] == "search")
    assert {name: after for name, _, after in found["dims"]}["conv"] == first(onnx.load(small))
    command("plan", digits.PATH, "-o", plan, *search[:-3], 2, "--fitness", "trace").done()
    command("prune", digits.PATH, "-o", small, "--macs", 0.5, "--fitness", "true").refused(2, "tries no candidates")
