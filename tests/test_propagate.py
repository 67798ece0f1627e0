"""Moments without a forward pass: against sampled data where they are exact, and what they are good for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import graphprune
from graphprune.consumers import Site, Window
from graphprune.data.moments import FAR_OFF
from graphprune.propagate import propagate
from graphprune.propagate.state import State, pointwise
from graphprune.stats import Moments
from models import digits
from tests.build import Net

pytestmark = pytest.mark.filterwarnings("ignore")

Floats = npt.NDArray[np.float64]
MANY = 100_000


def both(net: Net, value: str, shape: tuple[int, ...], axis: int = 1) -> tuple[Moments, Moments]:
    """Moments along an axis of ``value``, propagated, and of what the model makes of standard normal inputs."""
    net.output(value)
    loaded = graphprune.load(net.model())
    site = Site(value, axis)
    found, notes = propagate(loaded.analysis.graph, [site])
    assert not notes
    (name,) = loaded.analysis.graph.inputs
    x = np.random.default_rng(0).standard_normal((MANY, *shape)).astype(np.float32)
    return found[site], loaded.format.moments(loaded.model, [site], [{name: x}])[site]


def close(found: Moments, sampled: Moments, within: float) -> None:
    """Means and covariances are alike, up to ``within`` of the largest variance."""
    size = np.diag(sampled.covariance).max()
    assert np.abs(found.mean - sampled.mean).max() <= within * np.sqrt(size)
    assert np.abs(found.covariance - sampled.covariance).max() <= within * size


def test_linear_maps_are_exact() -> None:
    """Layer after layer, through shapes, a slice, a concatenation, and a branch that meets what it came from."""
    net = Net()
    x = net.op("Gemm", net.input("batch", 6), net.weight(6, 6), net.weight(6), transB=1)
    y = net.op("Add", x, net.op("MatMul", x, net.weight(6, 6)))
    y = net.op("Transpose", net.op("Reshape", y, net.const([-1, 2, 3])), perm=[0, 2, 1])
    y = net.op("Reshape", y, net.const([-1, 6]))
    left = net.op("Slice", y, net.const([0]), net.const([4]), net.const([1]))
    y = net.op("MatMul", net.op("Concat", left, x, axis=1), net.weight(10, 5))
    close(*both(net, y, (6,)), within=0.02)


def test_correlations_are_there() -> None:
    """The twin of the test above: without them it fails."""
    net = Net()
    x = net.op("Gemm", net.input("batch", 6), net.weight(6, 6), net.weight(6))
    found, sampled = both(net, net.op("Sub", x, net.op("MatMul", x, net.weight(6, 6))), (6,))
    close(found, sampled, within=0.02)
    alone = Moments(
        1, found.mean, np.diag(np.diag(found.covariance)) + np.outer(found.mean, found.mean), found.absolute
    )
    with pytest.raises(AssertionError):
        close(alone, sampled, within=0.02)


@pytest.mark.parametrize("kind", ["Relu", "Gelu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Exp", "Abs"])
def test_quadrature(kind: str) -> None:
    net = Net()
    x = net.op("Gemm", net.input("batch", 6), net.weight(6, 6, fan=24), net.weight(6, fan=2))
    found, sampled = both(net, net.op(kind, x), (6,))
    close(found, sampled, within=0.03)
    assert found.absolute == pytest.approx(sampled.absolute / sampled.count, rel=0.02)


def test_a_function_that_is_spelled_out_and_its_gate() -> None:
    """x sigmoid(x) is one function of x; times y, of what x is made of too."""
    net = Net()
    source = net.op("Gemm", net.input("batch", 6), net.weight(6, 6, fan=6), net.weight(6))
    x, y = (net.op("MatMul", source, net.weight(6, 6, fan=12)) for _ in range(2))
    found, sampled = both(net, net.op("Mul", x, net.op("Sigmoid", x)), (6,))
    close(found, sampled, within=0.03)
    found, sampled = both(net, net.op("Mul", x, y), (6,))
    close(found, sampled, within=0.03)


def test_convolutions_assume_that_neighbours_are_alike() -> None:
    """One place alone is exact; a window has its channels outermost."""
    net = Net()
    close(
        *both(net, net.op("Conv", net.input("batch", 3, 1, 1), net.weight(5, 3, 1, 1), net.weight(5)), (3, 1, 1)), 0.02
    )
    net = Net()
    x = net.input("batch", 3, 4, 4)
    value = net.op("Conv", x, net.weight(5, 3, 1, 1), net.weight(5))
    net.output(net.op("Conv", value, net.weight(2, 5, 3, 3)))
    graph = graphprune.load(net.model()).analysis.graph
    plain, wide = Site(value, 1), Site(value, 1, Window((3, 3), ()))
    found, _ = propagate(graph, [plain, wide])
    inside = found[wide].covariance.reshape(5, 9, 5, 9)
    for place in range(9):
        assert inside[:, place, :, place] == pytest.approx(found[plain].covariance)
    assert (np.abs(inside[:, 0, :, 8]) < np.abs(inside[:, 0, :, 1])).all()
    assert found[wide].mean.reshape(5, 9) == pytest.approx(np.tile(found[plain].mean[:, None], 9))


def test_a_batch_norm_resets() -> None:
    """What comes out has the mean of the bias and the deviation of the scale, whatever came in."""
    net = Net()
    x = net.op("Conv", net.input("batch", 3, 4, 4), net.weight(5, 3, 3, 3))
    scale, bias = net.weight(5), net.weight(5)
    y = net.op("BatchNormalization", x, scale, bias, net.weight(5), net.weight(5, positive=True), epsilon=0.0)
    net.output(y)
    graph = graphprune.load(net.model()).analysis.graph
    found = propagate(graph, [Site(y, 1)])[0][Site(y, 1)]
    assert found.mean == pytest.approx(graph.weights[bias].load(), rel=1e-5)
    assert np.diag(found.covariance) == pytest.approx(np.square(graph.weights[scale].load()), rel=1e-5)
    assert np.abs(np.corrcoef(found.covariance)).min() > 0, "correlations are those of the weights"


def test_rows_of_a_table() -> None:
    net = Net()
    table = net.weight(40, 6)
    y = net.op("Gather", table, net.input("batch", "sequence", dtype=7))
    net.output(net.op("MatMul", y, net.weight(6, 3)))
    graph = graphprune.load(net.model()).analysis.graph
    found = propagate(graph, [Site(y, 2)])[0][Site(y, 2)]
    rows = Moments.of(graph.weights[table].load())
    assert found.mean == pytest.approx(rows.mean)
    assert found.covariance == pytest.approx(rows.covariance)


def test_what_is_not_known_is_guessed_and_said() -> None:
    """An op without a line is no error: independent, of unit size, and remarked upon."""
    net = Net()
    y = net.op("TopK", net.input("batch", 6), net.const([4]))
    net.nodes[-1].output.append(net.name("indices"))
    net.output(net.op("MatMul", y, net.weight(4, 3)))
    graph = graphprune.load(net.model()).analysis.graph
    found, notes = propagate(graph, [Site(y, 1)])
    assert found[Site(y, 1)].covariance == pytest.approx(np.eye(4))
    assert notes[0].startswith("1 of 1 activations")


def test_a_model_that_remembers_nothing_says_so() -> None:
    """In a model without batch norms moments are no basis for a choice; with them they are."""
    net = Net()
    y = net.op("Relu", net.op("MatMul", net.input("batch", 6), net.weight(6, 8)))
    net.output(net.op("MatMul", y, net.weight(8, 3)))
    how: dict[str, Any] = {"keep": 0.5, "multiple": 1, "score": "obs", "calib": "none", "timing": False}
    notes = [graphprune.prune(model, **how).report.notes for model in (net.model(), digits.PATH)]
    assert [FAR_OFF in found for found in notes] == [True, False]


def test_moments_are_those_of_a_distribution() -> None:
    """No direction has a negative variance, in any of the layers of a real network."""
    loaded = graphprune.load(digits.PATH)
    for site, moments in loaded.measure(None).items():
        assert np.linalg.eigvalsh(moments.covariance).min() > -1e-9, site


def test_digits_without_data() -> None:
    """At half the MACs more than twice of what l2 leaves, and 97 % of what there was: measured .99 and .55."""
    how: dict[str, Any] = {"macs": 0.5, "multiple": 1, "verify": "none", "timing": False}
    plain = graphprune.prune(digits.PATH, score="l2", **how)
    found = graphprune.prune(digits.PATH, score="obs", calib="none", **how)
    accuracy = digits.accuracy(found.model.SerializeToString())
    assert accuracy > 0.95
    assert accuracy > digits.accuracy(plain.model.SerializeToString()) + 0.35
    assert any("weights and normalisations alone" in note for note in found.report.notes)


class Small(nn.Module):
    """A gate, a residual and a layer norm, with numbers among the operands."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.down = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.silu(self.one(x) * 2 + 1) * self.two(x)
        found: torch.Tensor = self.head(self.norm(x + self.down(y)))
        return found


def test_both_formats_say_the_same(tmp_path: Any) -> None:
    torch.manual_seed(0)
    module, x = Small().eval(), torch.randn(4, 8)
    torch.onnx.export(module, (x,), tmp_path / "small.onnx", dynamo=True)
    held = graphprune.load(module, example_inputs=(x,)).measure(None)
    file = graphprune.load(tmp_path / "small.onnx").measure(None)
    for one, other in zip(held.values(), file.values(), strict=True):
        assert one.mean == pytest.approx(other.mean, abs=1e-4)
        assert one.covariance == pytest.approx(other.covariance, abs=1e-4)


def test_covariances_stay_positive() -> None:
    """The series is cut off, and still that of some distribution."""
    root = np.random.default_rng(0).standard_normal((8, 3))
    state = State(np.linspace(-2, 2, 8), root @ root.T, np.arange(8)[None], (1, 8))
    made = pointwise(state, lambda x: np.maximum(x, 0))
    assert np.linalg.eigvalsh(made.cov).min() > -1e-9
