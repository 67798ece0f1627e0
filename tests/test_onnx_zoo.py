"""Four of the architectures of docs/zoo-onnx.md: both formats find the same Dims, and a Dim that is lost shows."""

from __future__ import annotations

import pytest

from graphprune.analysis import Analysis, analyse
from graphprune.formats import of
from graphprune.rules import RULES, Op
from graphprune.rules.registry import Rule
from models.transformers_zoo import build
from tools.onnx_zoo import Row, differences, exported, line, measure, page, total
from tools.same_dims import compare, shared, weights

QUICK = {"gpt2": "float64", "bert": "float32", "resnet": "float32"}
"""With the precision that ONNX Runtime has kernels for."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", QUICK)
def test_architecture(name: str) -> None:
    """Proved, and no Dim is in one format only; a coupling broken on purpose shows."""
    row = measure(name)
    assert not row.error
    assert not list(differences(row))
    assert row.both == row.onnx == row.torch > 5
    assert row.precision == QUICK[name]
    assert row.broken > 1e-3
    assert row.kept < 0.3


def test_a_lost_dim_shows() -> None:
    """The heads of falcon hang on one rule for ONNX: with it the Dims are the same, without it they are missed."""
    module, inputs = build("falcon")
    proto, inputs = exported(Row("falcon"), module, inputs)
    format = of(proto)
    graph = format.read(proto).graph
    traced = analyse(of(module).read(module, example_inputs=inputs).graph)
    assert compare(analyse(graph), traced).both == len(traced.prunable) > 5

    def silent(op: Op) -> None:
        op.freeze_all("its rule was taken away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, "gather_nd", Rule("gather_nd", "", silent))
        found = compare(analyse(graph), traced)
    assert found.both == len(traced.prunable) - len(found.second)
    assert not found.first
    heads = [text for text in found.second if text.startswith("4 of") and "(head" in text]
    assert len(heads) == 2
    assert all("frozen there: its rule was taken away" in text for text in heads)
    assert not unknown(analyse(graph), traced)


def unknown(first: Analysis, second: Analysis) -> list[str]:
    """Dims that the comparison can tell by their size alone."""
    names = shared(first.graph, second.graph)
    sides = zip((first, second), names, strict=True)
    return [atom.name for side, known in sides for atom in side.prunable if not weights(atom, known)]


def test_page() -> None:
    """What is not proved is listed with its error, what differs with its reason; both count in the last line."""
    rows = [
        Row("good", onnx=3, torch=3, both=3),
        Row("other", plain=True, onnx=2, torch=3, both=2, only_torch=["4 of x; frozen there: it is ordered"]),
        Row("bad", error="the exporter cannot export it"),
    ]
    text = list(page(rows))
    assert line(rows[0]) in text
    assert "- bad: the exporter cannot export it" in text
    assert "- other, in torch only: 4 of x; frozen there: it is ordered" in text
    assert text[-1] == total(rows)
    assert text[-1].startswith("2 of 3 architectures proved, 1 of them with the same Dims in both formats: 5 in ONNX")
