"""Moments, consumers, least squares and the OBS score: formulas on tiny examples, properties on random ones."""

from __future__ import annotations

from importlib import import_module
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import graphprune
from graphprune import Request
from graphprune.compensate import (
    DAMPING,
    DAMPINGS,
    GUESSED,
    REMEMBERED,
    How,
    best_damping,
    bias_of,
    compensate,
    solve,
    together,
)
from graphprune.consumers import Consumer, consumers
from graphprune.errors import UsageError
from graphprune.formats.torch.loss import TEMPERATURE
from graphprune.loaded import Loaded
from graphprune.scores import Task, score_atoms
from graphprune.scores.obs import _metrics
from graphprune.stats import Moments, merged
from models import digits
from tests.build import Net

pytestmark = pytest.mark.filterwarnings("ignore")

Floats = npt.NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)


def mlp(hidden: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None, spelled: str = "Gemm") -> Net:
    """A linear layer with weights ``hidden`` [n, inputs], ReLU, and another one."""
    net, rng = Net(), np.random.default_rng(1)
    x = net.op("Relu", net.op("MatMul", net.input("batch", hidden.shape[1]), net.const(hidden.T, np.float32)))
    down = rng.standard_normal((len(hidden), 3)).astype(np.float32)
    if spelled == "Gemm":
        net.output(
            net.op("Gemm", x, net.const(down, np.float32), *([] if bias is None else [net.const(bias, np.float32)]))
        )
    else:
        y = net.op("MatMul", x, net.const(down, np.float32))
        net.output(y if bias is None else net.op("Add", y, net.const(bias, np.float32)))
    return net


def data(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outputs(loaded: Loaded, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What a model makes of its one input."""
    (name,) = loaded.analysis.graph.inputs
    (found,) = loaded.format.run(loaded.model)({name: x}).values()
    return found


def cut(loaded: Loaded, x: npt.NDArray[Any], keep: int, **how: Any) -> graphprune.Result:
    """Scored by OBS on ``x``, compensated, cut to ``keep`` positions, and proved."""
    (name,) = loaded.analysis.graph.inputs
    moments = loaded.measure([{name: x}])
    (atom,) = loaded.analysis.prunable
    plan = loaded.plan(Request(keep=keep / atom.size, multiple=1), "obs", moments=moments)
    return loaded.compensated(plan, moments, **how).apply(plan, timing=False)


@pytest.mark.parametrize("spelled", ["Gemm", "MatMul"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_positions_that_repeat_others_cost_nothing(spelled: str, with_bias: bool) -> None:
    """Two hidden units are copies of others, one is a multiple of one, one is always on: the function stays."""
    hidden = data(10, 6)
    hidden[4], hidden[7], hidden[2] = hidden[1], 3 * hidden[0], hidden[9]
    loaded = graphprune.load(mlp(hidden, data(3, seed=2) if with_bias else None, spelled).model())
    x = data(200, 6, seed=3)
    result = cut(loaded, x, 7, damping=0.0)
    (dim,) = result.plan.cuts
    assert {frozenset({1, 4}), frozenset({0, 7}), frozenset({2, 9})} == {
        frozenset(pair) for pair in ((1, 4), (0, 7), (2, 9)) if set(pair) - set(dim.keep)
    }
    assert result.report.verified
    fresh = data(50, 6, seed=4)
    pruned = Loaded(loaded.format, result.pruned, loaded.analysis)
    np.testing.assert_allclose(outputs(pruned, fresh), outputs(loaded, fresh), atol=2e-4)


def test_a_constant_position_goes_into_the_bias() -> None:
    """A unit that never changes is a bias to the layer behind it; where there is none, it has to stay."""
    hidden, x = data(6, 5), np.abs(data(300, 5, seed=3))
    x[:, 0] = 1
    hidden[3] = [2, 0, 0, 0, 0]
    for bias, at_most in ((data(3, seed=2), 1e-4), (None, np.inf)):
        loaded = graphprune.load(mlp(hidden, bias).model())
        moments = loaded.measure([{loaded.analysis.graph.inputs[0]: x}])
        (atom,) = loaded.analysis.prunable
        values, add = together(compensate(loaded.analysis, {atom.dim: np.array([0, 1, 2, 4, 5])}, moments, 0.0))
        model = loaded.format.replaced(loaded.model, values, add)
        pruned = loaded.format.apply(model, loaded.analysis, {atom.dim: np.array([0, 1, 2, 4, 5])})
        error = np.abs(outputs(Loaded(loaded.format, pruned, loaded.analysis), x) - outputs(loaded, x)).max()
        assert error <= at_most
        assert (len(values) == 2) == (bias is not None)


def layer_error(weight: Floats, new: Floats, kept: npt.NDArray[np.int64], second: Floats) -> float:
    """E‖W x - W' x_K‖²."""
    change = weight.copy()
    change[:, kept] -= new
    return float(np.einsum("ij,jk,ik->", change, second, change))


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, size=st.integers(2, 12), samples=st.integers(1, 30), damping=st.sampled_from([0.0, 1e-3, 0.1, 10.0]))
def test_never_worse_than_leaving_the_weights(seed: int, size: int, samples: int, damping: float) -> None:
    """On the statistics it was fitted to, whatever their rank; and with no damping nothing is better."""
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((samples, size)), rng.standard_normal((3, size))
    second = x.T @ x / samples
    kept = np.sort(rng.permutation(size)[: rng.integers(1, size)])
    new = solve(weight, second, kept, damping)
    assert np.isfinite(new).all()
    error = layer_error(weight, new, kept, second)
    assert error <= layer_error(weight, weight[:, kept], kept, second) * (1 + 1e-9) + 1e-9
    if damping == 0:
        other = new + 1e-2 * rng.standard_normal(new.shape)
        assert error <= layer_error(weight, other, kept, second) + 1e-9


def test_damping_pulls_to_the_old_weights() -> None:
    rng = np.random.default_rng(0)
    x, weight, kept = rng.standard_normal((50, 6)), rng.standard_normal((3, 6)), np.array([0, 2, 5])
    second = x.T @ x
    far = [np.abs(solve(weight, second, kept, damping) - weight[:, kept]).max() for damping in (0.0, 0.1, 10.0, 1e6)]
    assert far == sorted(far, reverse=True)
    assert far[-1] < 1e-4 < far[0]


# The score.


def least_error(loaded: Loaded, x: npt.NDArray[Any], kept: tuple[int, ...]) -> float:
    """The least relative error of the second layer on ``x`` when only the units ``kept`` stay."""
    graph = loaded.analysis.graph
    first, second = (weight.load().astype(np.float64) for weight in graph.weights.values())
    hidden = np.maximum(x.astype(np.float64) @ first, 0)
    whole = hidden @ second
    rest, *_ = np.linalg.lstsq(hidden[:, kept], whole, rcond=None)
    return float(np.square(whole - hidden[:, kept] @ rest).sum() / np.square(whole).sum())


def test_obs_is_the_error_of_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheapest single removal by brute force is the first by score, and its score is its error."""
    monkeypatch.setattr("graphprune.scores.obs.DAMPING", 1e-9)
    loaded = graphprune.load(mlp(data(7, 5)).model())
    x = data(400, 5, seed=5)
    moments = loaded.measure([{loaded.analysis.graph.inputs[0]: x}])
    (atom,) = loaded.analysis.prunable
    scores = score_atoms(Task(loaded.analysis, [atom], moments=lambda sites: moments), "obs")[atom.dim]
    left, lost, dearest = tuple(range(7)), 0.0, 0.0
    for position in np.argsort(scores, kind="stable")[:-1]:
        errors = {kept: least_error(loaded, x, kept) for kept in combinations(left, len(left) - 1)}
        cheapest = min(errors, key=lambda kept: errors[kept])
        assert set(left) - set(cheapest) == {position}
        dearest = max(dearest, errors[cheapest] - lost)
        assert scores[position] == pytest.approx(dearest, rel=1e-3)
        left, lost = cheapest, errors[cheapest]


def two_branches() -> tuple[Loaded, dict[str, npt.NDArray[np.float32]], Any]:
    """A model of two branches alike, the second of which hardly reaches the output; inputs, and moments on them."""
    net = Net()
    x = net.input("n", 5)
    y = [net.op("Gemm", net.op("Relu", net.op("MatMul", x, net.weight(5, 12))), net.weight(12, 6)) for _ in range(2)]
    net.output(net.op("Add", y[0], net.op("Mul", y[1], net.const(1e-3, np.float32))))
    loaded = graphprune.load(net.model())
    feeds = {loaded.analysis.graph.inputs[0]: data(300, 5)}
    moments = loaded.measure([feeds])
    return loaded, feeds, moments


def test_errors_count_for_what_the_outputs_feel() -> None:
    """Of two branches alike, one of which hardly reaches the output, that one goes first, with a sample only."""
    loaded, feeds, moments = two_branches()
    request = Request(params=0.6, multiple=1, floor=0.0)
    plans = [loaded.plan(request, "obs", moments=moments, sample=sample) for sample in (None, feeds)]
    lost = [{cut.index: cut.size - len(cut.keep) for cut in plan.cuts} for plan in plans]
    assert min(lost[0].values()) > 1
    assert len(lost[0]) == 2
    assert set(lost[1]) == {loaded.analysis.prunable[1].index}


def test_the_metric_is_the_fisher_of_the_model() -> None:
    """Of two branches alike, one of which hardly reaches the output, that one goes first: gradients tell."""
    loaded, feeds, moments = two_branches()
    plan = loaded.plan(Request(params=0.6, multiple=1, floor=0.0), "obs", moments=moments, batches=[feeds])
    assert {cut.index for cut in plan.cuts} == {loaded.analysis.prunable[1].index}
    assert loaded.notes == ()


def test_the_metric_is_half_the_fisher() -> None:
    """On a softmax over a linear layer it is diag(p) - p pᵀ over T², shrunk to its mean eigenvalue."""
    net = Net()
    net.output(net.op("Gemm", net.op("Relu", net.op("MatMul", net.input("n", 5), net.weight(5, 8))), net.weight(8, 3)))
    loaded = graphprune.load(net.model())
    x = data(4000, 5)
    logits = outputs(loaded, x).astype(np.float64) / TEMPERATURE
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    fisher = (np.diag(p.sum(0)) - p.T @ p) / TEMPERATURE**2
    batches = [{loaded.analysis.graph.inputs[0]: part} for part in np.split(x, 4)]
    task = Task(loaded.analysis, loaded.analysis.prunable, signals=loaded.format.signals(loaded.model, None, batches))
    last = consumers(loaded.analysis)[-1]
    shrunk = fisher / 2 + np.trace(fisher) / 3 * np.eye(3) / 2
    np.testing.assert_allclose(_metrics(task, [last])[last.weight], shrunk / 4 / 2, rtol=0.1, atol=2)


def test_pictures_of_one_colour_score_like_single_pixels() -> None:
    """What the loss is does not change where each pixel is there many times, and neither does what goes."""
    net = Net()
    x = net.op("Relu", net.op("Conv", net.input("n", 3, "h", "h"), net.weight(8, 3, 1, 1)))
    x = net.op("GlobalAveragePool", net.op("Relu", net.op("Conv", x, net.weight(6, 8, 1, 1))))
    net.output(net.op("Gemm", net.op("Flatten", x), net.weight(6, 4)))
    loaded = graphprune.load(net.model())
    colours = data(64, 3)[:, :, None, None]
    found = []
    for size in (1, 5):
        pictures = np.broadcast_to(colours, (64, 3, size, size)).copy()
        batches = [{loaded.analysis.graph.inputs[0]: part} for part in np.split(pictures, 4)]
        scores = loaded.scores(Request(keep=0.5), "obs", moments=loaded.measure(batches), batches=batches)
        found.append(np.concatenate(list(scores.values())))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


def test_columns_that_are_let_go_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of a convolution and single features, looked at where they stood and where they stand now."""
    loaded = graphprune.load(digits.PATH)
    images = digits.split()[0][:40]
    moments = loaded.measure([{"image": images[at : at + 10]} for at in range(0, 40, 10)])
    found = []
    for share in (0.0, 0.8, 1.1):
        monkeypatch.setattr("graphprune.scores.obs._CROWDED", share)
        found.append(loaded.scores(Request(keep=0.5), "obs", moments=moments))
    for scores in found[1:]:
        for dim, before in found[0].items():
            np.testing.assert_allclose(scores[dim], before, rtol=1e-6)


def test_what_goes_is_judged_on_data_that_were_not_fitted() -> None:
    """Units that know nothing of each other make up for none, however well they seem to on fewer rows than units."""
    rng = np.random.default_rng(0)
    loaded = graphprune.load(mlp(np.eye(64)).model())
    rows = [rng.standard_normal((n, 64)).astype(np.float32) for n in (20, 20, 5000)]
    batches = [{loaded.analysis.graph.inputs[0]: part} for part in rows]
    (atom,) = loaded.analysis.prunable
    few = loaded.scores(Request(keep=0.5), "obs", moments=loaded.measure(batches[:2]))[atom.dim]
    kept = np.sort(np.argsort(few)[32:])
    true = least_error(loaded, rows[2], tuple(kept.tolist()))
    assert 0.7 * true < np.sort(few)[:32].sum() < 3 * true


@pytest.mark.parametrize(("rows", "looked"), [(200, True), (300, False)])
def test_losses_on_enough_data_are_believed(rows: int, looked: bool) -> None:
    """Those of more than two samples for each input, in half of the data, are not scaled to the other half."""
    loaded = graphprune.load(mlp(np.eye(64)).model())
    given = data(rows, 64)
    halves = [[{loaded.analysis.graph.inputs[0]: part} for part in np.split(given, count)] for count in (1, 2)]
    one, two = (loaded.scores(Request(keep=0.5), "obs", moments=loaded.measure(batches)) for batches in halves)
    (dim,) = one
    assert np.allclose(one[dim], two[dim], rtol=1e-4) != looked


def test_halves_of_the_data() -> None:
    """Every other batch, and those between; none where there is one batch; those of a weight read twice are added."""
    loaded = graphprune.load(digits.PATH)
    images = digits.split()[0]
    batches = [{"image": images[at : at + 10]} for at in range(0, 50, 10)]
    parts = loaded.measure(batches[::2]), loaded.measure(batches[1::2])
    for site, moments in loaded.measure(batches).items():
        halves = moments.halves
        assert halves is not None
        for half, part in zip(halves, parts, strict=True):
            assert half.count == part[site].count
            np.testing.assert_allclose(half.second, part[site].second, rtol=1e-4, atol=1e-3)
        twice = merged([moments, moments])
        assert twice.half is not None
        assert twice.half.count == 2 * halves[0].count
    assert all(m.halves is None for m in loaded.measure(batches[:1]).values())


def test_without_gradients_outputs_decide_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise UsageError("no gradient is known of Mystery")

    import_module("graphprune.formats.onnx.walks")  # has it by name, and would keep what refuses
    monkeypatch.setattr("graphprune.formats.onnx.lift.lift", refuse)
    images = digits.split()[0][:200]
    result = graphprune.prune(digits.PATH, macs=0.5, score="obs", calib=[{"image": images}], timing=False)
    assert "not by gradients: no gradient is known of Mystery" in str(result.report.notes)


def test_obs_needs_data() -> None:
    with pytest.raises(UsageError, match="'obs' needs data"):
        graphprune.load(digits.PATH).plan(Request(keep=0.5), "obs")


def test_data_that_cannot_be() -> None:
    loaded = graphprune.load(digits.PATH)
    with pytest.raises(UsageError, match="no calibration data"):
        loaded.measure([])
    with pytest.raises(UsageError, match="not finite"):
        loaded.measure([{"image": np.full((2, 1, 8, 8), np.nan, np.float32)}])


def test_digits_half_the_macs() -> None:
    """On a trained network: least squares and OBS keep what magnitude loses, and the same seed gives the same bytes."""
    images = digits.split()[0]
    loaded = graphprune.load(digits.PATH)
    moments = loaded.measure([{"image": images[:700]}, {"image": images[700:]}])
    found = {}
    for score in ("l2", "obs"):
        plan = loaded.plan(Request(macs=0.5, multiple=1), score, moments=moments)
        result = loaded.compensated(plan, moments).apply(plan, timing=False)
        assert result.report.verified
        found[score] = digits.accuracy(result.model.SerializeToString())
    plain = graphprune.prune(digits.PATH, macs=0.5, multiple=1, verify="none").model.SerializeToString()
    assert found["obs"] >= 0.98
    assert found["l2"] >= 0.95
    assert digits.accuracy(plain) < 0.7
    again = loaded.compensated(plan, loaded.measure([{"image": images[:700]}, {"image": images[700:]}]))
    twin = again.apply(plan, timing=False)
    assert twin.model.SerializeToString() == result.model.SerializeToString()


def test_prune_with_data() -> None:
    """One call: scored, cut, made up for; the drift in the report is that from the model as it was read."""
    images = digits.split()[0][:400]
    how: dict[str, Any] = {"macs": 0.5, "score": "obs", "multiple": 1, "timing": False, "inputs": {"image": images}}
    found = {
        compensate: graphprune.prune(digits.PATH, calib=[{"image": images}], compensate=compensate, **how)
        for compensate in (True, False)
    }
    dense = outputs(graphprune.load(digits.PATH), images)
    for result in found.values():
        small = outputs(Loaded(result.loaded.format, result.pruned, result.loaded.analysis), images)
        drift = np.linalg.norm(small - dense) / np.linalg.norm(dense)
        assert result.report.drift == pytest.approx(drift, rel=1e-4)
    assert (found[True].report.drift or 1) < 0.6 * (found[False].report.drift or 0)
    assert "least squares" in str(found[True].report.notes)
    assert "least squares" not in str(found[False].report.notes)
    assert found[True].plan == found[False].plan


def test_a_module_made_up_for_is_cut_in_place() -> None:
    """The tensors of the module follow, those of an unchanged shape (biases) too."""
    torch.manual_seed(0)
    module, x = Small().eval(), torch.as_tensor(data(60, 2, 5, 5))
    with torch.no_grad():
        dense = module(x)
    how: dict[str, Any] = {"example_inputs": (x,), "keep": 0.5, "multiple": 1, "score": "obs", "timing": False}
    result = graphprune.prune(module, calib=[{"x": x.numpy()}], **how)
    assert result.in_place() is module
    with torch.no_grad():
        found = module(x)
        torch.testing.assert_close(found, result.model(x), rtol=1e-4, atol=1e-5)
    assert (found - dense).norm() < 0.5 * dense.norm()


# Moments, in both formats.


class Small(nn.Module):
    """A convolution, a residual, a flattened linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 1), nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Three numbers."""
        found: Tensor = self.c(self.b(self.a(x).relu()).flatten(1))
        return found


def test_moments_are_those_of_the_activations() -> None:
    """Of ONNX Runtime, of the torch interpreter, and of numpy; over batches as over all at once."""
    torch.manual_seed(0)
    module, x = Small().eval(), torch.as_tensor(data(6, 2, 5, 5))
    program: Any = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    file, traced = graphprune.load(program.model_proto), graphprune.load(module, example_inputs=(x,))
    with torch.no_grad():
        rows = module.a(x).relu().movedim(1, -1).reshape(-1, 6).numpy()
    expected = Moments.of(rows)
    for loaded in (file, traced):
        name = loaded.analysis.graph.inputs[0]
        found = next(m for m in loaded.measure([{name: x.numpy()}, {name: x.numpy()}]).values() if len(m.total) == 6)
        assert found.count == 2 * len(rows)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5)
        np.testing.assert_allclose(found.raw, expected.raw, rtol=1e-5)
        np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18])
def test_moments_at_every_opset(opset: int) -> None:
    """ReduceSum took its axes as an attribute before opset 13."""
    proto = mlp(data(4, 3)).model()
    del proto.opset_import[:]
    proto.opset_import.append(onnx.helper.make_opsetid("", opset))
    loaded = graphprune.load(proto)
    (moments,) = (
        m for m in loaded.measure([{loaded.analysis.graph.inputs[0]: data(9, 3)}]).values() if len(m.total) == 4
    )
    assert moments.count == 9


def test_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the moments of all sites do not fit, the data are gone through again: the same numbers."""
    loaded, feeds = graphprune.load(digits.PATH), [{"image": digits.split()[0][:50]}]
    whole = loaded.measure(feeds)
    passes: list[int] = []
    gather = loaded.format.moments

    def counted(model: Any, some: Any, batches: Any) -> Any:
        passes.append(len(some))
        return gather(model, some, batches)

    monkeypatch.setattr(loaded.format, "moments", counted)
    monkeypatch.setattr("graphprune.stats.BUDGET", 8 * 33**2)
    parts = loaded.measure(feeds)
    assert len(passes) > 2
    assert sum(passes) == len(whole)
    assert all(np.array_equal(parts[site].second, moments.second) for site, moments in whole.items())


@settings(max_examples=7, deadline=None, phases=[Phase.generate])
@given(
    seed=SEEDS,
    kernel=st.sampled_from([(1,), (3,), (2, 3), (3, 3)]),
    stride=st.integers(1, 2),
    pad=st.integers(0, 1),
    dilation=st.integers(1, 2),
)
def test_windows_of_convolutions(seed: int, kernel: tuple[int, ...], stride: int, pad: int, dilation: int) -> None:
    """A convolution is its weight times what its windows hold: so its outputs have the moments that follow from H."""
    torch.manual_seed(seed)
    kind: Any = (nn.Conv1d, nn.Conv2d)[len(kernel) - 1]
    module = nn.Sequential(kind(2, 5, 1), nn.ReLU(), kind(5, 3, kernel, stride, pad, dilation, bias=False)).eval()
    x = torch.as_tensor(data(2, 2, *[7] * len(kernel), seed=seed % 1000))
    program: Any = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    with torch.no_grad():
        rows = module(x).movedim(1, -1).reshape(-1, 3).double().numpy()
    for loaded in (graphprune.load(program.model_proto), graphprune.load(module, example_inputs=(x,))):
        graph = loaded.analysis.graph
        consumer = consumers(loaded.analysis)[-1]
        assert len(consumer.axes) == (1 if (kernel, stride, pad) == ((1,), 1, 0) else 1 + len(kernel))
        moments = loaded.measure([{graph.inputs[0]: x.numpy()}])[consumer.sites[0]]
        weight = consumer.matrix(graph.weights[consumer.weight].load())
        np.testing.assert_allclose(weight @ moments.raw @ weight.T, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(
            consumer.stored(weight, graph.weights[consumer.weight].load()), graph.weights[consumer.weight].load()
        )


def test_the_mean_of_a_batch_norm_is_a_bias() -> None:
    """A channel that never changes is made up for where no layer has a bias, but a batch norm follows."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(2, 6, 1), nn.BatchNorm2d(4)
    module = nn.Sequential(first, nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False), last).eval()
    with torch.no_grad():
        first.weight[3] = 0.0
        first.get_parameter("bias").copy_(torch.arange(6.0))
        last.get_buffer("running_mean").copy_(torch.arange(4.0))
    x = torch.as_tensor(data(20, 2, 4, 4))
    ways: tuple[How, ...] = ("bias", "least-squares")
    for how in ways:
        loaded = graphprune.load(module, example_inputs=(x,))
        consumer = consumers(loaded.analysis)[-1]
        found = bias_of(loaded.analysis, consumer)
        assert found is not None
        assert found.sign == -1
        moments = loaded.measure([{loaded.analysis.graph.inputs[0]: x.numpy()}])
        chosen = {consumer.channels: np.array([0, 1, 2, 4, 5])}
        changed = together(compensate(loaded.analysis, chosen, moments, 0.0, how))
        assert not changed.add
        model = loaded.format.replaced(loaded.model, *changed)
        pruned = Loaded(loaded.format, loaded.format.apply(model, loaded.analysis, chosen), loaded.analysis)
        np.testing.assert_allclose(outputs(pruned, x.numpy()), outputs(loaded, x.numpy()), atol=1e-4)


@pytest.mark.parametrize("spelled", ["MatMul", "Conv"])
def test_layers_without_a_bias_get_one(spelled: str) -> None:
    """Compensation by the bias alone: the mean of the outputs stays as it was; a traced module refuses."""
    net, rng = Net(), np.random.default_rng(0)
    if spelled == "MatMul":
        net, shape = mlp(data(6, 5)), [40, 5]
    else:
        shape = [4, 5, 3, 3]
        hidden = net.op("Relu", net.op("Conv", net.input("n", *shape[1:]), net.weight(6, 5, 1, 1)))
        net.output(net.op("Conv", hidden, net.weight(3, 6, 3, 3), pads=[1, 1, 1, 1]))
    loaded = graphprune.load(net.model())
    x = rng.standard_normal(shape).astype(np.float32)
    moments = loaded.measure([{loaded.analysis.graph.inputs[0]: x}])
    plan = loaded.plan(Request(keep=0.5, multiple=1))
    result = loaded.compensated(plan, moments, how="bias").apply(plan, timing=False)
    assert result.report.verified
    assert "another export" not in str(result.report.notes)
    found = outputs(Loaded(loaded.format, result.pruned, loaded.analysis), x)
    axes = (0, 2, 3) if spelled == "Conv" else (0,)
    np.testing.assert_allclose(found.mean(axes), outputs(loaded, x).mean(axes), atol=1e-4)


def test_damping_that_data_it_was_not_fitted_to_likes() -> None:
    """Much where there are few samples, little where there are many; the choice has the least error."""
    loaded = graphprune.load(mlp(data(40, 6)).model())
    (name,) = loaded.analysis.graph.inputs
    chosen = loaded.plan(Request(keep=0.5, multiple=1)).chosen(loaded.analysis)
    (consumer,) = (c for c in consumers(loaded.analysis) if c.channels in chosen)
    found = {}
    for samples in (4, 400):
        moments = loaded.measure([{name: data(samples, 6, seed=i)} for i in range(4)])
        found[samples] = best_damping(loaded.analysis, chosen, moments)
        halves = moments[consumer.sites[0]].halves
        assert halves is not None
        weight = consumer.matrix(loaded.analysis.graph.weights[consumer.weight].load())
        (kept,) = chosen.values()
        errors = {
            damping: layer_error(weight, solve(weight, halves[0].raw, kept, damping), kept, halves[1].raw)
            for damping in DAMPINGS
        }
        assert found[samples] == min(errors, key=lambda d: errors[d]) / 2
    assert found[400] < found[4]
    assert best_damping(loaded.analysis, chosen, loaded.measure([{name: data(9, 6)}])) == DAMPING
    assert best_damping(loaded.analysis, chosen, loaded.measure(None)) == GUESSED


def test_without_data_what_batch_norms_remember_is_trusted() -> None:
    loaded = graphprune.load(digits.PATH)
    chosen = loaded.plan(Request(keep=0.5)).chosen(loaded.analysis)
    assert best_damping(loaded.analysis, chosen, loaded.measure(None)) == REMEMBERED


def test_a_consumer_that_nothing_helps_does_not_choose_the_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight times the error of one consumer weighs more than a third of another's, however large that is."""
    net = Net()
    x = net.op("Relu", net.op("MatMul", net.input("n", 6), net.weight(6, 8)))
    net.output(net.op("MatMul", net.op("Relu", net.op("MatMul", x, net.weight(8, 8))), net.weight(8, 3)))
    loaded = graphprune.load(net.model())
    chosen = loaded.plan(Request(keep=0.5, multiple=1)).chosen(loaded.analysis)
    moments = loaded.measure([{loaded.analysis.graph.inputs[0]: data(9, 6, seed=i)} for i in range(2)])
    held_out = {3: [0.9, 0.8, 0.7, 0.6], 8: [0.01, 0.02, 0.04, 0.08]}

    def error(_: Any, consumer: Consumer, *__: Any) -> Any:
        return np.array(held_out[loaded.analysis.graph.weights[consumer.weight].shape[1]])

    monkeypatch.setattr("graphprune.compensate._held_out", error)
    assert best_damping(loaded.analysis, chosen, moments) == DAMPINGS[0] / 2
    held_out[8] = [0.0] * 4  # exact whatever the damping: no say, and no logarithm of nothing
    assert best_damping(loaded.analysis, chosen, moments) == DAMPINGS[-1] / 2


# Consumers.


def test_weights_that_are_read_in_another_way_are_no_consumers() -> None:
    """A table that is also the last matrix; a matrix that two nodes read along different axes."""
    net = Net()
    table = net.weight(11, 8)
    x = net.op("Gather", table, net.input("n", dtype=onnx.TensorProto.INT64))
    square = net.weight(8, 8)
    y = net.op("Gemm", net.op("Gemm", x, square), square, transB=1)
    net.output(net.op("Gemm", y, table, transB=1))
    assert consumers(graphprune.load(net.model()).analysis) == []


def test_a_weight_of_two_nodes_is_one_consumer() -> None:
    """Both activations are seen, and no bias, because it would have to be right for both."""
    net = Net()
    shared, first = net.weight(8, 8), net.op("Relu", net.op("MatMul", net.input("n", 4), net.weight(4, 8)))
    net.output(net.op("MatMul", net.op("Relu", net.op("MatMul", first, shared)), shared))
    analysis = graphprune.load(net.model()).analysis
    found = {len(consumer.sites): consumer for consumer in consumers(analysis)}
    assert set(found) == {1, 2}
    assert bias_of(analysis, found[2]) is None


def test_a_bias_of_two_layers_stays() -> None:
    net = Net()
    x = net.op("Relu", net.op("MatMul", net.input("n", 4), net.weight(4, 8)))
    bias = net.weight(3)
    for _ in range(2):
        net.output(net.op("Gemm", x, net.weight(8, 3), bias))
    analysis = graphprune.load(net.model()).analysis
    assert [bias_of(analysis, consumer) for consumer in consumers(analysis)[-2:]] == [None, None]


@pytest.mark.parametrize("scale", [{"alpha": 2.0}, {"beta": 0.5}])
def test_a_scaled_gemm_keeps_its_bias(scale: dict[str, Any]) -> None:
    net = Net()
    x = net.op("Relu", net.op("MatMul", net.input("n", 4), net.weight(4, 8)))
    net.output(net.op("Gemm", x, net.weight(8, 3), net.weight(3), **scale))
    analysis = graphprune.load(net.model()).analysis
    assert bias_of(analysis, consumers(analysis)[-1]) is None
