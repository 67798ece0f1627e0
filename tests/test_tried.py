"""What candidates are judged by: the same as when a model is planned, made up for, cut and run; and search with it."""

from __future__ import annotations

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
from graphprune.tried import distance
from models import digits

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
