"""Compensation in order: targets that take in the residual, the walk, and both formats."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.errors import UsageError
from graphprune.loaded import Loaded
from graphprune.plan import Plan, make_plan
from graphprune.sequential import LOOKED_AT, Sums, _alike, zeroed
from models import digits
from tests.build import Net

pytestmark = pytest.mark.filterwarnings("ignore")


class Branches(nn.Module):
    """Two branches that are added up. The second knows what the first does, and four positions that nobody wants.

    One position of the first is always on.
    """

    def __init__(self, norm: bool, bias: bool, outputs: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, outputs, 1, bias=bias)
        self.c, self.d = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, outputs, 1, bias=bias)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        with torch.no_grad():
            self.a.weight[7], self.a.bias[7] = 0.0, 1.0  # type: ignore[index]
            self.c.weight[:8] = 0
            self.c.weight[:8, :, 1, 1] = self.a.weight[:, :, 0, 0]
            self.c.bias[:8] = self.a.bias  # type: ignore[index, assignment]
            self.d.weight[:, 8:] = 0
            if norm:
                made: Any = self.norm
                made.running_mean.normal_()
                made.running_var.uniform_(0.2, 5)
                made.weight.normal_()

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.b(self.a(x).relu()) + self.norm(self.d(self.c(x).relu()))
        return added


def batches(name: str, count: int = 4) -> list[dict[str, npt.NDArray[np.float32]]]:
    """Images of noise."""
    rng = np.random.default_rng(0)
    return [{name: rng.standard_normal((8, 3, 5, 5)).astype(np.float32)} for _ in range(count)]


def loaded_as(kind: str, module: nn.Module) -> Loaded:
    """A module, or the file that it is exported to, with a batch size that is free."""
    example = (torch.zeros(8, 3, 5, 5),)
    if kind == "torch":
        return graphprune.load(module.eval(), example_inputs=example)
    stream: Any = io.BytesIO()
    torch.onnx.export(module.eval(), example, stream, dynamo=False, input_names=["x"], do_constant_folding=False,
                      training=torch.onnx.TrainingMode.PRESERVE)  # fmt: skip
    return graphprune.load(onnx.load_from_string(stream.getvalue()))


def half_of_the_first(loaded: Loaded) -> Plan:
    """Half of the first branch goes, and of the second what has no weight."""
    eight, twelve = (next(a for a in loaded.analysis.prunable if a.size == size) for size in (8, 12))
    return make_plan(loaded.analysis, {eight.dim: np.arange(4), twelve.dim: np.arange(8)}, "", {})


def error(loaded: Loaded, plan: Plan, how: Any, held: list[dict[str, Any]]) -> float:
    """Of the cut model's outputs, next to the dense model's."""
    small = loaded.compensated(plan, loaded.measure(held), 1e-3, how, held).apply(plan, timing=False)
    runs = [loaded.format.run(model) for model in (loaded.model, small.pruned)]
    dense, found = (np.concatenate([next(iter(run(batch).values())) for batch in held]) for run in runs)
    return float(np.square(dense - found).sum() / np.square(dense).sum())


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize(("norm", "bias"), [(False, False), (False, True), (True, False), (True, True)])
def test_what_went_wrong_before_is_made_good(kind: str, norm: bool, bias: bool) -> None:
    """The second branch holds all that the first lost: one-shot compensation cannot know, this can."""
    loaded = loaded_as(kind, Branches(norm, bias))
    held = batches(loaded.analysis.graph.inputs[0])
    plan = half_of_the_first(loaded)
    before, after = (error(loaded, plan, how, held) for how in ("least-squares", "sequential"))
    assert before > 1e-3
    assert after < 1e-2 * before


def test_all_of_many_outputs_are_fitted() -> None:
    """The choice of a damping looks at some of them alone."""
    loaded = loaded_as("torch", Branches(norm=False, bias=True, outputs=3 * LOOKED_AT))
    held = batches(loaded.analysis.graph.inputs[0])
    plan = half_of_the_first(loaded)
    before, after = (error(loaded, plan, how, held) for how in ("least-squares", "sequential"))
    assert after < 1e-2 * before


def test_formats_agree() -> None:
    """The same weights from a module and from its file; what is always on is only told from the mean by rounding."""
    found = []
    for kind in ("torch", "onnx"):
        loaded = loaded_as(kind, Branches(norm=True, bias=False))
        held, plan = batches(loaded.analysis.graph.inputs[0]), half_of_the_first(loaded)
        made = loaded.compensated(plan, loaded.measure(held), None, "sequential", held)
        found.append({name: w.load() for name, w in made.analysis.graph.weights.items() if name.endswith("weight")})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=3e-3, atol=1e-5)


class Behind(nn.Module):
    """Five layers one behind another, and one beside them; the second and the fourth are told what is left of `a`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 32), nn.Linear(32, 20), nn.Linear(20, 12)
        self.d, self.beside = nn.Linear(12, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c(self.b(self.a(x).relu()).relu()).relu()
        made: Tensor = self.d(hidden) * self.beside(x).relu()
        return made


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_what_reads_other_activations_is_fitted_too(kind: str) -> None:
    """Layers behind the one that loses positions know what they read now; none that reads what it did is touched."""
    module, example = Behind().eval(), (torch.zeros(8, 6),)
    if kind == "torch":
        loaded = graphprune.load(module, example_inputs=example)
    else:
        stream: Any = io.BytesIO()
        torch.onnx.export(module, example, stream, dynamo=False, input_names=["x"])
        loaded = graphprune.load(onnx.load_from_string(stream.getvalue()))
    rng, name = np.random.default_rng(0), loaded.analysis.graph.inputs[0]
    held = [{name: rng.standard_normal((8, 6)).astype(np.float32)} for _ in range(64)]
    wide, narrow = (next(a for a in loaded.analysis.prunable if a.size == size) for size in (32, 12))
    plan = make_plan(loaded.analysis, {wide.dim: np.arange(16), narrow.dim: np.arange(10)}, "", {})
    made = loaded.compensated(plan, loaded.measure(held), None, "sequential", held)
    weights = {name: weight.load() for name, weight in made.analysis.graph.weights.items() if len(weight.shape) == 2}
    before = {name: weight.load() for name, weight in loaded.analysis.graph.weights.items()}
    changed = {before[name].size for name, value in weights.items() if not np.array_equal(value, before[name])}
    assert changed == {32 * 20, 20 * 12, 12 * 3}, "neither the first layer nor the one beside"
    (middle,) = (name for name in weights if before[name].size == 20 * 12)
    rows = weights[middle] if weights[middle].shape == (12, 20) else weights[middle].T
    assert not rows[10:].any(), "what goes is zero in what others see"


def test_zeros_are_a_cut() -> None:
    """What walks on behind the cut sees what the smaller model sees."""
    loaded = graphprune.load(digits.PATH)
    held = [{"image": digits.split()[0][:32]}]
    plan = loaded.plan(graphprune.Request(macs=0.5), "l2")
    walk = loaded.format.walk(loaded.model, held)
    for name, values in zeroed(loaded.analysis, plan.chosen(loaded.analysis), {}).items():
        walk.put(name, values)
    output = loaded.analysis.graph.outputs[0]
    walk.to(len(loaded.analysis.graph.nodes))
    small = loaded.apply(plan, timing=False)
    expected = loaded.format.run(small.pruned)(held[0])[output]
    rows = walk.rows(0, graphprune.consumers.Site(output, 1))
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-3)


def test_one_batch_is_not_fitted_twice() -> None:
    """Nothing says whether a fit is any good on other data: what one-shot compensation made stays."""
    loaded = loaded_as("onnx", Branches(norm=False, bias=False))
    held, plan = batches(loaded.analysis.graph.inputs[0], 1), half_of_the_first(loaded)
    assert error(loaded, plan, "sequential", held) == error(loaded, plan, "least-squares", held)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_what_does_not_fit_is_left_behind(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are dropped until the rest fits; two stay, or nothing could be held out."""
    loaded = loaded_as(kind, Branches(norm=False, bias=False))
    held, plan = batches(loaded.analysis.graph.inputs[0], 6), half_of_the_first(loaded)
    whole = error(loaded, plan, "sequential", held)
    monkeypatch.setattr("graphprune.sequential.ROOM", 0)
    walk = loaded.format.walk(loaded.model, held)
    before = walk.bytes
    walk.drop(4)
    assert (walk.batches, walk.bytes) == (2, before // 3)
    assert error(loaded, plan, "sequential", held) != whole


def test_no_data_no_order() -> None:
    """Without a forward pass there is nothing to fit to."""
    with pytest.raises(UsageError, match="no data to run it on"):
        graphprune.prune(digits.PATH, macs=0.5, calib="none", compensate="sequential")


def test_same_seed_same_model() -> None:
    """Twice the same."""
    held = [{"image": part} for part in np.split(digits.split()[0][:128], 4)]
    made = [graphprune.prune(digits.PATH, macs=0.4, calib=held, compensate="sequential", timing=False) for _ in "ab"]
    assert made[0].model.SerializeToString() == made[1].model.SerializeToString()
    assert any("layer after layer" in note for note in made[0].report.notes)


def test_rows_weigh_the_same() -> None:
    """Sums of rows that count are those of rows that are there so often; counts go with one over the squared size."""
    rng = np.random.default_rng(0)
    x, t, times = rng.standard_normal((6, 3)), rng.standard_normal((6, 2)), np.array([1, 2, 0, 3, 1, 1])
    found, expected = (
        Sums.of(x, t, times[:, None].astype(float)), Sums.of(x.repeat(times, 0), t.repeat(times, 0), np.ones((8, 1)))
    )  # fmt: skip
    for one, other in zip(found.__dict__.values(), expected.__dict__.values(), strict=True):
        np.testing.assert_allclose(one, other)
    rows = rng.standard_normal((5, 4)) * [[1], [10], [1000], [1], [0]]
    counts = _alike(rows)[:, 0]
    assert counts.mean() == pytest.approx(1)
    assert counts[0] / counts[1] == pytest.approx(np.square(rows[1]).sum() / np.square(rows[0]).sum(), rel=1e-3)
    assert counts[4] == counts.max()
    assert np.isfinite(_alike(np.zeros((2, 3)))).all()


def test_a_few_massive_rows_do_not_decide() -> None:
    """norm(x + W2 relu(W1 x + b)), one row in 32 a thousand times as large: all others come nearer for it."""
    rng = np.random.default_rng(1)
    net = Net()
    x = net.input("rows", 8)
    made = net.op("Gemm", x, *(net.const(rng.standard_normal(s), np.float32) for s in ((8, 24), (24,))))
    weights = (net.const(rng.standard_normal(s), np.float32) for s in ((24, 8), (8,)))
    added = net.op("Add", x, net.op("Gemm", net.op("Relu", made), *weights))
    ones, zeros = net.const(np.ones(8), np.float32), net.const(np.zeros(8), np.float32)
    net.output(net.op("LayerNormalization", added, ones, zeros))
    loaded = graphprune.load(net.model())
    (name,) = loaded.analysis.graph.inputs
    held = [{name: (rng.standard_normal((64, 8)) * np.where(np.arange(64) % 32, 1, 1000)[:, None]).astype(np.float32)}
            for _ in range(6)]  # fmt: skip
    (atom,) = [atom for atom in loaded.analysis.prunable if atom.size == 24]
    plan = make_plan(loaded.analysis, {atom.dim: np.arange(16)}, "", {})

    def error(how: Any) -> float:
        """On the rows of usual size."""
        made = loaded.compensated(plan, loaded.measure(held), 1e-3, how, held)
        small = made.apply(plan, verify="none", timing=False)
        runs = loaded.format.run(loaded.model), small.loaded.format.run(small.pruned)
        before, after = (next(iter(run(held[0]).values())) for run in runs)
        return float(np.square(before - after)[np.arange(64) % 32 > 0].mean())

    assert error("sequential") < 0.7 * error("least-squares")


def test_sums_of_some_outputs() -> None:
    """Sums of every third target are the sums of a layer that has only those."""
    random = np.random.default_rng(0)
    x, t = random.standard_normal((40, 5)), random.standard_normal((40, 8))
    counts = random.uniform(0.5, 2, (40, 1))
    for centred in (False, True):
        few, alone = Sums.of(x, t, counts).every(3).seconds(centred), Sums.of(x, t[:, ::3], counts).seconds(centred)
        for found, right in zip(few, alone, strict=True):
            np.testing.assert_allclose(np.asarray(found), np.asarray(right))
