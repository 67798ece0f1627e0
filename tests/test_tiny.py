"""The tour: how graphprune is used, on the small trained model that comes with the repository. Read it top to bottom.

models/digits.onnx names handwritten digits, rightly in 449 of 450 cases: a stem, two residual blocks, a linear layer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphprune
from graphprune import Loaded, Plan, Request
from models import digits


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """Reading a model analyses it: which axes of which weights are the same Dim, and which Dims may be cut."""
    return graphprune.load(digits.PATH)


def test_three_lines(tmp_path: Path) -> None:
    result = graphprune.prune(digits.PATH, macs=0.9, score="bn-scale", multiple=4)
    assert result.report.verified
    result.save(tmp_path / "small.onnx")
    assert digits.accuracy(digits.PATH) > 0.99
    assert digits.accuracy(tmp_path / "small.onnx") > 0.95  # 0.993 was measured; nothing was trained again


def test_dims(loaded: Loaded) -> None:
    """A Dim is one dimension of the model, wherever it shows up: here the channels of the residual stream."""
    stem, *_ = dims = loaded.dims()
    assert [(dim["name"], dim["size"], dim["prunable"]) for dim in dims] == [
        ("conv", 24, True),
        ("block1.conv1", 32, True),
        ("block2.conv1", 40, True),
        ("block2.conv2", 40, True),
        ("fc", 10, False),
    ]
    assert stem["exact"]  # removing a channel is the same as setting it to zero
    places = {(use["weight"], use["axis"]) for use in stem["weights"]}
    assert {("conv.weight", 0), ("block1.conv1.weight", 1), ("block1.conv2.weight", 0)} <= places
    assert dims[-1]["reason"] == "it is the shape of an output of the model, 'logits'"


def test_explain(loaded: Loaded) -> None:
    """Why two weights share a Dim: the chain of nodes between them. Why a Dim stays whole: what froze it."""
    told = loaded.explain("conv")
    assert "prunable, exact" in told
    assert "'block1.conv2.weight' axis 0 through" in told
    assert "frozen: it is the shape of an output" in loaded.explain("fc")


def test_plan(loaded: Loaded) -> None:
    """A plan says which positions stay. It is data, JSON there and back, that knows its model by structure or names."""
    plan = loaded.plan(Request(keep=0.5, exclude=("conv",)))
    assert {cut.name: len(cut.keep) for cut in plan.cuts} == {
        "block1.conv1": 16,
        "block2.conv1": 24,
        "block2.conv2": 24,
    }
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan("0000", plan.cuts).chosen(loaded.analysis).keys() == plan.chosen(loaded.analysis).keys()
    nameless = tuple(replace(cut, places=()) for cut in plan.cuts)
    with pytest.raises(graphprune.GraphpruneError, match="for another model"):
        Plan("0000", nameless).chosen(loaded.analysis)


def test_apply_proves_what_it_did(loaded: Loaded) -> None:
    result = loaded.apply(loaded.plan(Request(macs=0.5)))
    assert [check.name for check in result.report.checks] == ["permutation", "zero equals cut", "loads and runs"]
    for check in result.report.checks:
        assert check.passed
        assert check.error is None or check.error < 1e-5


def test_report(loaded: Loaded) -> None:
    """What it cost before and after, and what it could not cut and why; as text, JSON, Markdown or HTML."""
    report = loaded.apply(loaded.plan(Request(macs=0.5, multiple=1, floor=0))).report
    assert report.dense.params == 39_250
    assert 0.45 < report.pruned.macs / report.dense.macs <= 0.5
    assert report.latency is not None
    assert report.latency[0] > 0
    assert "left whole" in str(report)
    assert "| MACs |" in report.render(".md")


def test_save(loaded: Loaded, tmp_path: Path) -> None:
    """What is saved is an ordinary ONNX file: the same nodes, inputs and outputs, and smaller weights."""
    path = loaded.apply(loaded.plan(Request(params=0.5))).save(tmp_path / "half.onnx")
    before, after = onnx.load(digits.PATH), onnx.load(path)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]
    assert after.graph.input == before.graph.input
    assert path.stat().st_size < 0.55 * digits.PATH.stat().st_size
    sizes = {tensor.name: list(tensor.dims) for tensor in after.graph.initializer}
    assert sizes["conv.weight"][0] == sizes["block1.conv1.weight"][1] == sizes["bn.weight"][0] < 24


def test_verify() -> None:
    """The permutation proof needs no cut: shuffle every Dim in all its weights at once, and the outputs must stay."""
    permutation, runs = graphprune.verify(digits.PATH)
    assert permutation.passed
    assert runs.passed


def test_scores_beat_chance(loaded: Loaded) -> None:
    """At the same 60 % of the MACs, channels chosen by a score leave a better model than channels drawn at random."""

    def accuracy(score: str, seed: int = 0) -> float:
        plan = loaded.plan(Request(macs=0.6, multiple=1), score, seed=seed)
        return digits.accuracy(loaded.apply(plan, verify="none").model.SerializeToString())

    chance = float(np.mean([accuracy("random", seed) for seed in range(10)]))
    assert chance < 0.45  # 0.33 was measured, for l2 0.53 and for batch-norm scales 0.78
    assert accuracy("l2") > chance + 0.1
    assert accuracy("bn-scale") > chance + 0.3
