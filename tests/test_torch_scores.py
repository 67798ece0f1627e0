"""Gradient scores: every formula on a network small enough to differentiate by hand, and what is refused.

The network is ``y = w2 @ (w1 @ x + b1)`` with two inputs, a hidden layer of three and two outputs, the loss half the
squared error, averaged over nothing. With ``h = w1 @ x + b1`` and ``e = y - t`` its gradients are ``e hᵀ`` for w2,
``d xᵀ`` for w1 and ``d`` for b1, where ``d = w2ᵀ e``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.budget import Request, candidates
from graphprune.errors import UsageError
from graphprune.scores import Task, score_atoms
from models import digits

pytestmark = pytest.mark.filterwarnings("ignore")

Floats = npt.NDArray[np.float64]
Batch = tuple[Tensor, Tensor]
W1 = np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 3.0]])
B1 = np.array([0.5, -1.0, 2.0])
W2 = np.array([[1.0, 2.0, -1.0], [-0.5, 1.0, 1.5]])
SAMPLES = [(np.array([1.0, 2.0]), np.array([0.0, 1.0])), (np.array([-1.0, 0.5]), np.array([2.0, -1.0]))]
BATCHES = [(torch.tensor(x)[None], torch.tensor(t)[None]) for x, t in SAMPLES]
NAMES = ["taylor", "taylor-vector", "fisher", "snip", "grasp", "crop", "synflow"]
MORE = ["nirvana", "gaprune", "loraprune", "lrp"]
"""Their formulas are in test_criteria.py."""


def module() -> nn.Sequential:
    """The network, in float64."""
    made = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False)).double().eval()
    with torch.no_grad():
        for name, value in (("0.weight", W1), ("0.bias", B1), ("1.weight", W2)):
            made.get_parameter(name).copy_(torch.tensor(value))
    return made


def loss(model: Any, batch: Batch) -> Tensor:
    """Half the squared error."""
    found: Tensor = (model(batch[0]) - batch[1]).square().sum() / 2
    return found


def score(name: str, batches: Any = BATCHES, of: Any = loss, model: nn.Module | None = None) -> Floats:
    """The scores of the hidden layer."""
    loaded = graphprune.load(model or module(), example_inputs=(BATCHES[0][0],))
    wanted = candidates(loaded.analysis, Request(keep=0.5))
    assert [atom.size for atom in wanted] == [3]
    gradients, signals = (run(loaded.model, of, batches) for run in (loaded.format.gradients, loaded.format.signals))
    task = Task(loaded.analysis, wanted, gradients=gradients, signals=signals)
    return score_atoms(task, name)[wanted[0].dim]


def first(x: Floats, t: Floats, w1: Floats = W1, b1: Floats = B1, w2: Floats = W2) -> tuple[Floats, Floats, Floats]:
    """Gradients of w1, b1, w2, as in the module's docstring."""
    h = w1 @ x + b1
    e = w2 @ h - t
    d = w2.T @ e
    return np.outer(d, x), d, np.outer(e, h)


def second(x: Floats, t: Floats) -> tuple[Floats, Floats, Floats]:
    """Hessian times gradient: how the gradients change along themselves, by central differences."""
    step = 1e-5
    moves = [[w + s * g for w, g in zip((W1, B1, W2), first(x, t), strict=True)] for s in (step, -step)]
    ahead, behind = (first(x, t, *moved) for moved in moves)
    a, b, c = ((p - m) / (2 * step) for p, m in zip(ahead, behind, strict=True))
    return a, b, c


def products(gradients: tuple[Floats, Floats, Floats]) -> list[Floats]:
    """Weight times gradient, the hidden layer first, everything else flat: [3, 2], [3, 1], [3, 2]."""
    a, b, c = gradients
    return [W1 * a, (B1 * b)[:, None], (W2 * c).T]


def by_hand(name: str) -> Floats:
    """The formula ``name`` in numpy."""
    total = np.zeros(3)
    for x, t in SAMPLES:
        for part in products(second(x, t) if name in ("grasp", "crop") else first(x, t)):
            total += {
                "taylor": np.abs(part).sum(1),
                "taylor-vector": np.abs(part.sum(1)),
                "fisher": part.sum(1) ** 2,
                "snip": np.abs(part).sum(1),
                "grasp": part.sum(1),
                "crop": np.abs(part.sum(1)),
            }[name]
    if name == "snip":
        total /= total.sum()
    if name == "grasp":
        total -= total.min()
    return total


def test_gradients_by_hand() -> None:
    """The first sample in numbers: h is (-2.5, 1.5, 7), y (-6.5, 13.25) and e (-6.5, 12.25)."""
    a, b, c = first(*SAMPLES[0])
    np.testing.assert_allclose(b, [-12.625, -0.75, 24.875])
    np.testing.assert_allclose(a, [[-12.625, -25.25], [-0.75, -1.5], [24.875, 49.75]])
    np.testing.assert_allclose(c, [[16.25, -9.75, -45.5], [-30.625, 18.375, 85.75]])


def test_taylor_in_numbers() -> None:
    """|w g| of the first sample: rows of w1, of b1, columns of w2."""
    expected = [
        12.625 + 50.5 + 6.3125 + 16.25 + 15.3125,
        0.375 + 1.5 + 0.75 + 19.5 + 18.375,
        24.875 + 149.25 + 49.75 + 45.5 + 128.625,
    ]
    np.testing.assert_allclose(score("taylor", BATCHES[:1]), expected, rtol=1e-6)


def test_fisher_in_numbers() -> None:
    """Squared sums of w g of the first sample, a weight at a time."""
    expected = [
        (-12.625 + 50.5) ** 2 + 6.3125**2 + (16.25 + 15.3125) ** 2,
        (-0.375 - 1.5) ** 2 + 0.75**2 + (-19.5 + 18.375) ** 2,
        (-24.875 + 149.25) ** 2 + 49.75**2 + (45.5 + 128.625) ** 2,
    ]
    np.testing.assert_allclose(score("fisher", BATCHES[:1]), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_formula(name: str) -> None:
    """Two batches, summed."""
    np.testing.assert_allclose(score(name), by_hand(name), rtol=1e-5, atol=1e-6)


def test_synflow() -> None:
    """|W1|, |B1|, |W2| fed with ones: R is the sum of |w2| (|w1| 1 + |b1|), and needs no data."""
    hidden = np.abs(W1).sum(1) + np.abs(B1)
    back = np.abs(W2).sum(0)
    np.testing.assert_allclose(hidden, [3.5, 2.5, 6])
    np.testing.assert_allclose(back, [1.5, 3, 2.5])
    np.testing.assert_allclose(score("synflow", None, None), 2 * hidden * back, rtol=1e-6)


def test_nirvana() -> None:
    """The gradients of both samples are averaged before they meet the weights."""
    each = [first(x, t) for x, t in SAMPLES]
    a, b, c = (np.mean(parts, axis=0) for parts in zip(*each, strict=True))
    expected = sum(np.abs(part).sum(1) for part in products((a, b, c)))
    np.testing.assert_allclose(score("nirvana"), expected, rtol=1e-5)


def test_lrp() -> None:
    """|h d| of the hidden layer, over both samples."""
    expected = [np.abs((W1 @ x + B1) * (W2.T @ (W2 @ (W1 @ x + B1) - t))) for x, t in SAMPLES]
    np.testing.assert_allclose(score("lrp"), np.sum(expected, axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_scores_leave_the_module_alone(name: str) -> None:
    """Weights and gradients are as they were; the scores of a pruned module are those of the module that was given."""
    model = module().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = graphprune.prune(
        model, example_inputs=(BATCHES[0][0],), keep=0.67, multiple=1, score=name, loss=loss, batches=BATCHES
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    kept = np.sort(np.argsort(-score(name), kind="stable")[:2])
    assert list(result.plan.cuts[0].keep) == list(kept)


def test_scores_are_not_all_the_same() -> None:
    """The seven formulas differ here, snip from taylor by a factor alone."""
    found = {name: score(name) for name in NAMES}
    for i, one in enumerate(NAMES):
        for other in NAMES[i + 1 :]:
            assert not np.allclose(found[one], found[other]), (one, other)
    np.testing.assert_allclose(found["snip"] * found["taylor"].sum(), found["taylor"])


def test_batch_norm_statistics_are_not_moved() -> None:
    """Losses run in evaluation mode, whatever the mode of the module."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double().train()
    score("taylor", model=model)
    norm: Any = model[1]
    assert int(norm.num_batches_tracked) == 0
    np.testing.assert_array_equal(norm.running_mean, np.zeros(3))


def test_frozen_parameters_count_for_nothing() -> None:
    """Only what requires a gradient is scored."""
    model = module()
    model[0].requires_grad_(False)
    expected = sum(np.abs(products(first(x, t))[2]).sum(1) for x, t in SAMPLES)
    np.testing.assert_allclose(score("taylor", model=model), expected, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize(
    ("of", "batches", "words"),
    [
        (None, BATCHES, "there is no loss that knows what to do with it"),
        (loss, None, "needs batches to take gradients on"),
        (loss, [], "no batches"),
        (lambda model, batch: model(batch[0]), BATCHES, "not one number"),
        (lambda model, batch: 3.0, BATCHES, "not one number"),
        (lambda model, batch: loss(model, batch).detach(), BATCHES, "does not depend on the parameters"),
    ],
    ids=["no loss", "no batches", "empty", "not scalar", "a float", "detached"],
)
def test_refused(name: str, of: Any, batches: Any, words: str) -> None:
    """What cannot be differentiated is a UsageError."""
    with pytest.raises(UsageError, match=words):
        score(name, batches, of)


def test_used_up_batches() -> None:
    """An iterator has nothing left the second time."""
    batches = iter(BATCHES)
    score("taylor", batches)
    with pytest.raises(UsageError, match="no batches") as caught:
        score("taylor", batches)
    assert "used up" in caught.value.hint


@pytest.mark.parametrize("name", ["taylor", "crop", "synflow"])
def test_nothing_requires_a_gradient(name: str) -> None:
    """No parameter to differentiate by."""
    with pytest.raises(UsageError, match="no parameter requires a gradient"):
        score(name, model=module().requires_grad_(False))


@pytest.mark.parametrize("name", [*NAMES[:-1], *MORE, "disturbed-taylor"])
def test_files_need_batches_too(name: str) -> None:
    """An ONNX file has gradients, and what they are taken on is not made up."""
    with pytest.raises(UsageError, match="needs batches to take gradients"):
        graphprune.prune(digits.PATH, keep=0.5, score=name)


@pytest.mark.parametrize("name", [*NAMES, *MORE, "disturbed-taylor"])
def test_files_have_gradients(name: str) -> None:
    """Of the loss that a classifier brings along, on images without labels: the same twice."""
    images = digits.split()[0]
    batches = [{"image": images[:40]}, {"image": images[40:80]}]
    loaded = graphprune.load(digits.PATH)
    plans = [loaded.plan(Request(keep=0.5), name, batches=batches) for _ in range(2)]
    assert len(plans[0].cuts) == 4
    assert plans[0] == plans[1]
