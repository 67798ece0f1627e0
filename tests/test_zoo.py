"""Some of docs/zoo.md: graphs of each kind, proved; rules that are wrong; what keeps weights whole; the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphprune.analysis import analyse
from graphprune.formats import onnx as format_
from graphprune.rules import RULES, Op
from graphprune.rules.registry import Rule
from models import zoo
from models.operators import operators
from tests.build import Net
from tools.child import record
from tools.zoo import (
    FAILED,
    OPERATORS,
    PROVED,
    UNMADE,
    WRONG,
    Row,
    line,
    measure,
    names,
    page,
    prove,
    reasons,
    shares,
    together,
    totals,
)

QUICK = {
    "real/digits": (PROVED, 1.0),
    "bert/legacy-13": (PROVED, 1.0),
    "bert/fused": (PROVED, 1.0),
    "resnet/dynamo-20-float16": (PROVED, 1.0),
    "gpt2/dynamo-21-dynamic": (PROVED, 1.0),
}
"""With what becomes of them, and the share that is prunable."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", QUICK)
def test_graph(name: str) -> None:
    row = measure(name)
    assert not row.error
    assert (row.outcome, round(row.share, 2)) == QUICK[name]
    assert row.left < 0.3 * row.params
    assert max(row.permuted, row.zeroed) < 1e-4


def test_a_wrong_rule_shows() -> None:
    """A softmax that is told to be any function of elements is wrong, and so is the row that adds tests of ops up."""
    found = [made for made in operators("Softmax") if made[0] in ("softmax_axis_0", "softmax_axis_2")]
    row = together(iter(found))
    assert (row.outcome, row.graphs, row.error) == (PROVED, 2, "")

    def silent(op: Op) -> None:
        op.tie_same(op.x, op.y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, "softmax", Rule("softmax", "", silent))
        row = together(iter(found))
    assert row.outcome == WRONG
    assert row.error.startswith("softmax_axis_0: FAILED zero equals cut")


def test_shares() -> None:
    """A hidden layer may go, a layer from input to output not; each axis that stays stands for half of a matrix."""
    net = Net()
    x = net.input("rows", 2)
    hidden = net.op("Relu", net.op("MatMul", x, net.weight(2, 3)))
    net.output(net.op("Add", net.op("MatMul", hidden, net.weight(3, 5)), net.op("MatMul", x, net.weight(2, 5))))
    params, prunable, why = shares(analyse(format_.read(net.model()).graph))
    assert (params, prunable) == (6 + 15 + 10, 6 + 15)
    ends = {"it is the shape of an input of the model": 3 + 5, "it is the shape of an output of the model": 7.5 + 5}
    assert dict(why) == ends


def test_what_cannot_be_made_or_read() -> None:
    """Each is a row that says why; a graph that does not run has no proof."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.SHIPPED, "real/none", lambda: (_ for _ in ()).throw(RuntimeError("no such package")))
        row = measure("real/none")
    assert (row.outcome, row.error) == (UNMADE, "RuntimeError: no such package")
    assert prove("none", Path("none.onnx")).outcome == FAILED


def test_limits() -> None:
    """A process that may not have its memory, or takes too long, leaves a row with an error."""
    for row in (record("tools.zoo", "real/digits", 60, 1 << 20), record("tools.zoo", "real/digits", 0.01)):
        assert Row(**row).outcome == FAILED
        assert row["error"]


def test_page() -> None:
    """Graphs that went wrong and those that were not made are listed, each with its error, and counted."""
    half = Row("half", "", PROVED, opset=17, nodes=500, params=100, prunable=40, left=70, analysis=0.05)
    half.reasons = [("it is ordered (Slice)", 50.0), ("it is an input", 10.0)]
    rows = [
        Row("good", "", PROVED, nodes=500, params=100, prunable=100, left=25),
        half,
        Row("bad", "FAILED permutation", WRONG),
        Row("none", "the exporter fails", UNMADE),
        Row(OPERATORS, "", PROVED, graphs=7),
    ]
    text = list(page(rows))
    assert line(rows[0]) in text
    assert line(half).endswith("| 40.0% | 70.0% | 0e+00 | 0e+00 | it is ordered (Slice): 50%; it is an input: 10% |")
    assert "- bad, wrong: FAILED permutation" in text
    assert "- none: the exporter fails" in text
    assert reasons([half, half]) == [("it is ordered (Slice)", 1.0, 2), ("it is an input", 0.2, 2)]
    assert list(totals(rows)) == [
        "4 graphs, one of them for 7 tests of single ops",
        "3 proved, 0 frozen, 1 wrong, 0 invalid, 0 failed",
        "more than half of the parameters are prunable in 1 of 2; the others list why not",
        "50 ms of analysis for each thousand nodes, of 1,000",
    ]


def test_names() -> None:
    """Every graph has a name of its own, patterns pick some, and there are as many as the page promises."""
    assert len(set(names())) == len(names()) > 200
    assert names(["real/digits", "bert/fused"]) == ["real/digits", "bert/fused"]
