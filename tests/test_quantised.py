"""Real files in integers: cut as the float model is, in the same kernels, and proved to be."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

import graphprune
from graphprune.analysis import Analysis, analyse
from graphprune.cost import CostModel
from graphprune.dims import Dim, Positions, counts
from graphprune.errors import UsageError
from graphprune.formats import onnx as format_
from graphprune.formats.onnx import OnnxModel
from graphprune.formats.onnx.runtime import make_feeds
from graphprune.formats.onnx.unrounded import unrounded
from graphprune.rules import RULES, Rule
from graphprune.scores.registry import Task
from graphprune.scores.weight import l2
from graphprune.verify import TOLERANCE, Proof, difference
from models import digits, quantised
from models.transformers_zoo import build
from tests.build import Net
from tools.bench_quantised import both_orders, unlike
from tools.onnx_zoo import Row, export

pytestmark = pytest.mark.filterwarnings("ignore")

FORMAT: Any = format_
MAKE: dict[str, Any] = {
    "pairs": lambda model: quantised.static(model, batches()),
    "pairs, a scale a channel": lambda model: quantised.static(model, batches(), per_channel=True),
    "integer ops": lambda model: quantised.static(model, batches(), in_ops=True),
    "integer ops, a scale a channel": lambda model: quantised.static(model, batches(), in_ops=True, per_channel=True),
    "dynamic": quantised.dynamic,
    "dynamic, a scale a channel": lambda model: quantised.dynamic(model, per_channel=True),
}
"""The ways to quantise the digits CNN."""


def batches() -> list[dict[str, Any]]:
    """Images to take scales from."""
    return [{"image": digits.split()[0][:64]}]


@cache
def prepared() -> onnx.ModelProto:
    """The trained CNN in floats, its batch norms folded."""
    return quantised.prepared(digits.PATH)


@cache
def made(name: str) -> onnx.ModelProto:
    """The CNN quantised."""
    proto: onnx.ModelProto = MAKE[name](prepared())
    return proto


def loaded(proto: onnx.ModelProto) -> tuple[OnnxModel, Analysis]:
    """A model and its Dims."""
    model = format_.read(proto)
    return model, analyse(model.graph)


def named(analysis: Analysis) -> dict[frozenset[str], Dim]:
    """Dims by the matrices they live in, under the names that the float model has for these."""
    weights = analysis.graph.weights
    return {
        frozenset(name.removesuffix("_quantized") for name in atom.weights if len(weights[name].shape) > 1): atom.dim
        for atom in analysis.prunable
    }


def half(analysis: Analysis, seed: int = 0) -> dict[Dim, Positions]:
    """Half of each Dim, drawn by number: the same positions in files with the same Dims."""
    random, dims = np.random.default_rng(seed), named(analysis)
    order = sorted(dims, key=sorted)
    sizes = [dims[key].extent for key in order]
    return {dims[key]: np.sort(random.permutation(n)[: n // 2]) for key, n in zip(order, sizes, strict=True)}


@pytest.mark.parametrize("name", MAKE)
def test_integers_are_cut_as_floats_are(name: str) -> None:
    """The same Dims, kernels and counts; the proofs hold to the last bit."""
    before, (model, analysis) = loaded(prepared())[1], loaded(made(name))
    assert {key: dim.size for key, dim in named(analysis).items()} == {k: d.size for k, d in named(before).items()}
    proof, chosen = Proof(FORMAT, model, analysis), half(analysis)
    cut = format_.apply(model, analysis, chosen)
    checks = [proof.permutation(), proof.zero_equals_cut(chosen), proof.runs(cut, chosen)]
    assert [str(check) for check in checks if not check.passed] == []
    assert checks[1].detail.startswith("4 of 4 cut dims are exact")
    assert max(check.error or 0 for check in checks) < 1e-6
    kernels = quantised.kernels(model.inline())
    assert quantised.kernels(cut.inline()) == kernels
    assert sum(kernels.values()) > 7
    cost, full = CostModel(analysis)({}), CostModel(before)({})
    assert cost.macs == full.macs
    assert abs(cost.params / full.params - 1) < 0.001
    assert 0.25 < cost.bytes / full.bytes < 0.28
    again = CostModel(analyse(cut.graph))({})
    assert again == CostModel(analysis)(counts(chosen))


@pytest.mark.parametrize("name", MAKE)
def test_scores_are_those_of_the_floats(name: str) -> None:
    """Scores look at what the integers stand for: they rank positions as the float model's scores do."""
    found = []
    for proto in (prepared(), made(name)):
        analysis = loaded(proto)[1]
        scores = l2(Task(analysis, analysis.prunable))
        found.append({key: scores[dim] for key, dim in named(analysis).items()})
    for key, expected in found[0].items():
        np.testing.assert_allclose(found[1][key], expected, rtol=0.02)


@pytest.mark.parametrize("per_channel", [False, True])
def test_least_squares_on_integers(per_channel: bool) -> None:
    """What stays makes up for what goes, on the grid that the scales span; statistics and gradients rank."""
    name = "pairs, a scale a channel" if per_channel else "pairs"
    images = [{"image": digits.split()[0][:256]}]
    result, plain = (
        graphprune.prune(made(name), macs=0.5, multiple=1, score="obs", calib=images, compensate=compensate)
        for compensate in (True, False)
    )
    reached = [digits.accuracy(found.model.SerializeToString()) for found in (result, plain)]
    assert reached[0] > 0.98
    assert reached[1] < 0.9
    assert not any("gradients" in note for note in result.report.notes)
    assert quantised.kernels(result.model) == quantised.kernels(made(name))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    assert all(v.dtype == np.int8 for n, v in stored.items() if n.endswith("weight_quantized"))


def test_statistics_need_floats() -> None:
    with pytest.raises(UsageError, match="the layers of this file multiply integers"):
        graphprune.prune(made("integer ops"), macs=0.5, score="obs", calib=batches())


# Transformers.


@cache
def encoder() -> onnx.ModelProto:
    """A BERT of two layers, in floats."""
    module, inputs = build("bert")
    return quantised.prepared(export(Row("bert"), module.float(), inputs))


def words() -> list[dict[str, Any]]:
    """Inputs of the encoder."""
    return noise(encoder())


def noise(proto: onnx.ModelProto) -> list[dict[str, Any]]:
    """Random inputs of a model."""
    model = format_.read(proto)
    return [make_feeds(model.graph, model.proto, model.graph.example, seed) for seed in range(4)]


ENCODERS: dict[str, Any] = {
    "pairs": lambda model: quantised.static(model, words(), per_channel=True),
    "dynamic": lambda model: quantised.dynamic(model, per_channel=True),
    "4 bits": lambda model: quantised.in_blocks(model, 4, symmetric=False, block=16),
    "8 bits": lambda model: quantised.in_blocks(model, 8, block=16),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder(name: str) -> None:
    """All is cut, the residual stream and the size of heads too."""
    model, analysis = loaded(ENCODERS[name](encoder()))
    proof, chosen = Proof(FORMAT, model, analysis), half(analysis)
    cut = format_.apply(model, analysis, chosen)
    checks = [proof.permutation(), proof.zero_equals_cut(chosen), proof.runs(cut, chosen)]
    assert [str(check) for check in checks if not check.passed] == []
    assert quantised.kernels(cut.inline()) == quantised.kernels(model.inline())
    kinds = {atom.kind for atom in analysis.prunable}
    assert kinds >= {"mlp", "hidden"}
    assert kinds & {"head", "kv-group"}
    cost, whole = CostModel(analysis)({}), CostModel(loaded(encoder())[1])({})
    assert (cost.macs, abs(cost.params / whole.params - 1) < 0.01) == (whole.macs, True)


@cache
def resnet() -> onnx.ModelProto:
    """The blocks that ResNet-50 has, in floats."""
    module, inputs = build("resnet")
    images = {name: value.float() for name, value in inputs.items()}
    return quantised.prepared(export(Row("resnet"), module.float(), images))


FLOATS: dict[str, Any] = {"digits": (prepared, batches), "bert": (encoder, words), "resnet": (resnet, None)}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", FLOATS)
def test_cutting_first_is_the_same(name: str, per_channel: bool) -> None:
    """A plan for the quantised file fits the float model, which holds the same when quantised with the same scales."""
    make, inputs = FLOATS[name]
    floats, data = make(), inputs() if inputs else noise(make())
    whole = quantised.static(floats, data, per_channel=per_channel)
    after, first, cuts = both_orders(floats, whole, data, per_channel=per_channel)
    assert cuts == len(loaded(floats)[1].prunable)
    assert unlike(after, first) == []
    assert quantised.kernels(after) == quantised.kernels(first) == quantised.kernels(whole)
    outputs = [format_.run(format_.read(proto))(data[0]) for proto in (after, first)]
    assert difference(*outputs) == 0
    model, analysis = loaded(whole)
    other = format_.apply(model, analysis, half(analysis, seed=1))
    assert difference(outputs[0], format_.run(other)(data[0])) > 0.01, "any cut would have done"


def jumps() -> onnx.ModelProto:
    """Many sums of floats that are rounded: in another order some of them land on the next integer."""
    net = Net()
    hidden = net.op("Tanh", net.op("MatMul", net.input(8192, 6), net.weight(6, 256, fan=6)))
    ends = net.const(0.01, np.float32), net.const(100, np.uint8)
    rounded = net.op("QuantizeLinear", net.op("MatMul", hidden, net.weight(256, 32, fan=256)), *ends)
    net.output(net.op("MatMul", net.op("DequantizeLinear", rounded, *ends), net.weight(32, 4, fan=32)))
    return net.model()


def test_rounding_does_not_drown_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in another order land on the next integer, which moves much; without the rounding nothing moves."""
    model, analysis = loaded(jumps())
    proof = Proof(FORMAT, model, analysis)
    turned = {a.dim: np.random.default_rng(0).permutation(a.size) for a in analysis.prunable}
    permuted = format_.apply(model, analysis, turned)
    assert proof._against(format_.run(permuted)) > TOLERANCE
    check = proof.permutation()
    assert check.passed
    assert "without the rounding of quantised activations" in check.detail
    assert check.error is not None
    assert check.error < 1e-6
    monkeypatch.delattr(format_, "unrounded")
    assert proof.runs(permuted).passed, "the cut file itself is run as it is"


def test_a_wrong_rule_shows_without_rounding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "tanh", Rule("tanh", "", lambda op: op.speak_of(*op.x, *op.y)))
    model, analysis = loaded(jumps())
    check = Proof(FORMAT, model, analysis).permutation()
    assert not check.passed
    assert "without the rounding of quantised activations" in check.detail


@pytest.mark.parametrize("name", [*MAKE, "encoder"])
def test_the_twin_is_the_same_model(name: str) -> None:
    """Without rounding a quantised model is close to the float model it was made of."""
    floats, proto = (encoder(), ENCODERS["pairs"](encoder())) if name == "encoder" else (prepared(), made(name))
    model = format_.read(proto)
    twin = unrounded(model)
    assert twin is not None
    feeds = words()[0] if name == "encoder" else {"image": digits.split()[0][:64]}
    expected, found = (format_.run(m, optimise=False)(feeds) for m in (format_.read(floats), twin))
    assert {n.op_type for n in twin.proto.graph.node}.isdisjoint({"QuantizeLinear", "QLinearConv", "MatMulInteger"})
    assert difference(expected, found) < 0.05


def test_what_is_not_rounded_has_no_twin() -> None:
    assert unrounded(format_.read(prepared())) is None
