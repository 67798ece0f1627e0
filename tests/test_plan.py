"""Plans: text there and back, and which model a plan is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import graphprune
from graphprune.analysis import analyse
from graphprune.errors import PlanError
from graphprune.formats import onnx as format_
from graphprune.plan import MOST, Cut, Plan, fingerprint, from_ranges, make_plan, to_ranges
from models import digits, real
from tests.build import Net

PLAN = Plan(
    "0123456789abcdef",
    (Cut(0, 'layer "a"', "channel", 8, (0, 1, 2, 5, 7)), Cut(3, "ünï\\code", "head", 2, (1,))),
    "l2",
    {"keep": 0.5, "include": ["a*"]},
)
TEXT = r"""{
 "graphprune_plan": 1,
 "model": "0123456789abcdef",
 "score": "l2",
 "request": {"keep": 0.5, "include": ["a*"]},
 "cuts": [
  {"index": 0, "name": "layer \"a\"", "kind": "channel", "size": 8, "keep": "0-2,5,7"},
  {"index": 3, "name": "\u00fcn\u00ef\\code", "kind": "head", "size": 2, "keep": "1"}
 ]
}
"""


def test_text() -> None:
    """One cut a line, so that two plans can be compared with diff."""
    assert PLAN.to_json() == TEXT
    assert Plan.from_json(TEXT) == PLAN


def test_what_was_predicted_goes_along() -> None:
    plan = replace(PLAN, predicted=(0.004, 0.0012))
    assert Plan.from_json(plan.to_json()) == plan
    assert "predicted" not in PLAN.to_json()


def test_plan_without_cuts() -> None:
    plan = Plan("0" * 16, ())
    assert json.loads(plan.to_json())["cuts"] == []
    assert Plan.from_json(plan.to_json()) == plan


def test_what_other_tools_may_do_to_the_text() -> None:
    """Another layout, other keys at the top and no score are still a plan."""
    data = json.loads(TEXT)
    del data["score"], data["request"]
    read = Plan.from_json(json.dumps({**data, "comment": "made by hand"}, indent=4))
    assert read.cuts == PLAN.cuts
    assert (read.score, read.request) == ("", {})


@given(st.sets(st.integers(0, 300)))
def test_ranges(positions: set[int]) -> None:
    text = to_ranges(sorted(positions))
    assert from_ranges(text) == tuple(sorted(positions))
    assert from_ranges(text, 301) == tuple(sorted(positions))
    runs = [tuple(map(int, run.split("-"))) for run in text.split(",") if run]
    assert all(later[0] > earlier[-1] + 1 for earlier, later in pairwise(runs)), "no run could be longer"


@pytest.mark.parametrize(
    "text", ["3-1", "1,1", "2,1", "0-3,3", "-1", "1-", "a", "1.5", "0x1", "1_0", "٣", "1 -2", "0-99999999999"]
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ValueError, match=r"no position and no range|out of order"):
        from_ranges(text)


def test_ranges_end_below_the_size() -> None:
    assert from_ranges("0-3", 4) == (0, 1, 2, 3)
    for text, size in (("0-4", 4), ("4", 4), (f"{MOST}", MOST), ("0-16777216", MOST)):
        with pytest.raises(ValueError, match="not below"):
            from_ranges(text, size)


def test_saved_and_read(tmp_path: Path) -> None:
    loaded = graphprune.load(digits.PATH)
    plan = loaded.plan(graphprune.Request(macs=0.5), "l1", seed=3)
    (tmp_path / "plan.json").write_text(plan.to_json())
    read = Plan.load(tmp_path / "plan.json")
    assert read == plan
    assert (read.score, read.request["macs"], read.request["seed"]) == ("l1", 0.5, 3)
    chosen = read.chosen(loaded.analysis)
    assert make_plan(loaded.analysis, chosen, "l1", read.request) == plan
    assert all(np.array_equal(chosen[loaded.analysis.atoms[cut.index].dim], cut.keep) for cut in plan.cuts)


# Which model a plan is for.


def renamed(model: onnx.ModelProto, *, other_weights: bool = False) -> onnx.ModelProto:
    """The same model with every name of a value, weight, node and graph another, and maybe other weights."""
    made, rng = onnx.ModelProto(), np.random.default_rng(0)
    made.CopyFrom(model)
    names = {name for node in made.graph.node for name in (*node.input, *node.output) if name}
    other = {name: f"v{i}" for i, name in enumerate(sorted(names | {t.name for t in made.graph.initializer}))}
    for i, node in enumerate(made.graph.node):
        node.name, node.doc_string = f"n{i}", "other"
        node.input[:], node.output[:] = ([other.get(name, name) for name in part] for part in (node.input, node.output))
    for info in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        info.name = other.get(info.name, info.name)
    for tensor in made.graph.initializer:
        if other_weights and tensor.data_type == onnx.TensorProto.FLOAT:
            data = rng.permutation(numpy_helper.to_array(tensor).ravel()).reshape(tensor.dims)
            tensor.CopyFrom(numpy_helper.from_array(np.array(data), tensor.name))
        tensor.name = other[tensor.name]
    made.graph.name, made.producer_name = "other", "another exporter"
    return made


@pytest.mark.parametrize("load", [lambda: digits.PATH, real.llama_tiny, real.ocr_cls])
def test_a_re_export_under_other_names_is_the_same_model(load: Callable[[], Path]) -> None:
    dense = onnx.load(load())
    first, second = (graphprune.load(model) for model in (dense, renamed(dense, other_weights=True)))
    assert fingerprint(first.analysis.graph) == fingerprint(second.analysis.graph)
    plan = first.plan(graphprune.Request(keep=0.5))
    cut = [second.apply(plan, verify="structure"), first.apply(plan, verify="structure")]
    assert cut[0].report.pruned == cut[1].report.pruned
    assert [(c["kind"], c["before"], c["after"]) for c in cut[0].report.dims] == [
        (c["kind"], c["before"], c["after"]) for c in cut[1].report.dims
    ]


def base() -> Net:
    net = Net()
    x = net.op("Conv", net.input(1, 3, 8, 8), net.weight(16, 3, 3, 3), pads=[1, 1, 1, 1], name="conv")
    x = net.op("Reshape", net.op("Relu", x), net.const([1, 16, 64]))
    net.output(net.op("MatMul", x, net.weight(64, 5)))
    return net


def replaced(number: int, array: npt.NDArray[Any]) -> Callable[[Net], object]:
    """Another value for one of the weights of `base`."""
    return lambda net: net.weights[number].CopyFrom(numpy_helper.from_array(array, net.weights[number].name))


OTHERS: dict[str, Callable[[Net], object]] = {
    "an attribute": lambda net: net.nodes[0].attribute[0].ints.__setitem__(0, 2),
    "an attribute more": lambda net: net.nodes[0].attribute.append(helper.make_attribute("group", 1)),
    "an op": lambda net: setattr(net.nodes[1], "op_type", "Sigmoid"),
    "a wire": lambda net: net.nodes[2].input.__setitem__(0, net.nodes[0].output[0]),
    "a size": replaced(0, np.ones((16, 3, 1, 1), np.float32)),
    "an element type": replaced(2, np.ones((64, 5))),
    "a reshape's target": replaced(1, np.array([1, -1, 64])),
    "an output": lambda net: net.output(net.nodes[1].output[0]),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_structure_is_another_model(what: str) -> None:
    net, other = base(), base()
    OTHERS[what](other)
    first, second = (format_.OnnxModel(n.model()).graph for n in (net, other))
    assert fingerprint(first) == fingerprint(format_.OnnxModel(base().model()).graph)
    assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize("keep", [(), (1, 0), (0, 0), (-1, 2), (0, 8), (0, 99)])
def test_cuts_made_in_python_are_checked_too(keep: tuple[int, ...]) -> None:
    net = Net()
    net.output(net.op("MatMul", net.op("MatMul", net.input(1, 4), net.weight(4, 8)), net.weight(8, 5)))
    analysis = analyse(format_.read(net.model()).graph)
    (atom,) = analysis.prunable
    good = Plan(fingerprint(analysis.graph), (Cut(atom.index, "", "", 8, (0, 7)),))
    assert list(good.chosen(analysis)) == [atom.dim]
    bad = Plan(good.model, (Cut(atom.index, "up", "", 8, keep),))
    with pytest.raises(PlanError, match="the plan's cut of 'up' does not fit the model"):
        bad.chosen(analysis)


def test_a_dim_that_needs_more_positions_than_the_plan_leaves() -> None:
    """A squeeze that names no axes would drop a Dim of which one position is left."""
    net = Net()
    hidden = net.op("MatMul", net.input(2, 4), net.weight(4, 16))
    net.output(net.op("MatMul", net.op("Squeeze", net.op("Unsqueeze", hidden, net.const([0]))), net.weight(16, 5)))
    loaded = graphprune.load(net.model())
    (atom,) = loaded.analysis.prunable
    plan = Plan(fingerprint(loaded.analysis.graph), (Cut(atom.index, atom.name, "", 16, (3,)),))
    with pytest.raises(PlanError, match="keeps 1 positions, fewer than the 2 that must stay"):
        plan.chosen(loaded.analysis)
    least = loaded.plan(graphprune.Request(keep=0.01, floor=0, multiple=1))
    assert [len(cut.keep) for cut in least.cuts] == [2]
    assert loaded.apply(least).report.verified
