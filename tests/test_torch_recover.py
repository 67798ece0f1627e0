"""Batch-norm re-estimation: the statistics by hand, what they are good for, what is left alone, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import graphprune
from graphprune.errors import UsageError
from models import digits

pytestmark = pytest.mark.filterwarnings("ignore")

# Batches of different sizes: an average over batches that forgets how large they are is wrong.
BATCHES = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * n + n for n in (2, 5, 9)]
Maker = Callable[[nn.Module], nn.Module]


def net() -> nn.Sequential:
    """Two batch norms with a dropout between them, statistics off their defaults."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)
    )
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return made.eval()


def traced(module: nn.Module) -> nn.Module:
    """What a pruning run hands back, with nothing cut."""
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    model: nn.Module = graphprune.prune(
        module, example_inputs=(BATCHES[0],), dynamic_shapes=shapes, keep=1.0, timing=False
    ).model
    return model


def state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The names of what is not bit for bit what it was."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


STATISTICS = {f"{norm}.running_{what}" for norm in (0, 3) for what in ("mean", "var")}
both = pytest.mark.parametrize("made", [lambda module: module, traced], ids=["module", "traced"])


# What it computes.


@both
def test_statistics_are_those_of_all_values(made: Maker) -> None:
    """The first batch norm sees the inputs; the second what the first makes of each batch by its own statistics."""
    model = made(net())
    assert graphprune.reestimate_batch_norm(model, BATCHES) == 2
    found = model.state_dict()
    every = torch.cat(BATCHES).double()
    torch.testing.assert_close(found["0.running_mean"].double(), every.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["0.running_var"].double(), every.var(0), rtol=1e-6, atol=1e-6)
    first = net()[:2].train()
    inner = torch.cat([first(batch) for batch in BATCHES]).detach().double()
    torch.testing.assert_close(found["3.running_mean"].double(), inner.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["3.running_var"].double(), inner.var(0), rtol=1e-5, atol=1e-5)


def test_one_batch_is_what_torch_keeps() -> None:
    """With one batch, momentum 1 and no dropout torch's own training mode stores the same."""
    model, other = net(), net()
    other[2] = nn.Identity()
    for part in other:
        setattr(part, "momentum", 1.0)  # noqa: B010
    other.train()(BATCHES[2])
    graphprune.reestimate_batch_norm(model, BATCHES[2:])
    for name in STATISTICS:
        torch.testing.assert_close(model.state_dict()[name], other.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_values_far_from_zero() -> None:
    """A difference of mean squares would lose the variance here."""
    batches = [1e4 + 1e-2 * batch.double() for batch in BATCHES]
    model = nn.BatchNorm1d(3).double()
    graphprune.reestimate_batch_norm(model, batches)
    assert model.running_var is not None
    torch.testing.assert_close(model.running_var, torch.cat(batches).var(0), rtol=1e-6, atol=0)


def test_a_batch_norm_that_runs_twice_sees_both() -> None:
    """Statistics belong to the buffers, not to the call."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(x) + self.norm(x + 10)
            return out

    model = Twice().eval()
    assert graphprune.reestimate_batch_norm(model, BATCHES) == 1
    every = torch.cat([part for batch in BATCHES for part in (batch, batch + 10)])
    assert model.norm.running_mean is not None
    torch.testing.assert_close(model.norm.running_mean, every.mean(0))


def test_images_in_half_precision() -> None:
    """All axes but the channels are averaged over, and not in the precision of the images."""
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16() + 8
    model = nn.BatchNorm2d(3)
    graphprune.reestimate_batch_norm(model, torch.split(images, 1))
    assert model.running_mean is not None
    torch.testing.assert_close(model.running_mean, images.double().mean((0, 2, 3)).float(), rtol=1e-6, atol=0)


# What it is given.


@pytest.mark.parametrize(
    "batches",
    [
        [(batch, None) for batch in BATCHES],
        [[batch] for batch in BATCHES],
        [{"input": batch} for batch in BATCHES],
        iter(BATCHES),
    ],
    ids=["tuples", "lists", "mappings", "an iterator"],
)
def test_forms_of_a_batch(batches: Any) -> None:
    model, expected = net(), net()
    graphprune.reestimate_batch_norm(expected, BATCHES)
    graphprune.reestimate_batch_norm(model, batches)
    assert not changed(model, state(expected))


def test_the_loss_of_scores_serves() -> None:
    """The batch is whatever the loss takes it for; what the loss returns is of no interest."""
    model, expected = net(), net()
    graphprune.reestimate_batch_norm(expected, BATCHES)
    batches = [("text", batch) for batch in BATCHES]
    graphprune.reestimate_batch_norm(model, batches, lambda module, batch: module(batch[1]).sum())
    assert not changed(model, state(expected))


# What it leaves alone.


@both
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_only_statistics_change(made: Maker, mode: bool) -> None:
    """Parameters, gradients, modes and counts stay."""
    model = made(net()).train(mode)
    if made is not traced:
        next(iter(model.children())).eval()
    before, modes = state(model), [part.training for part in model.modules()]
    graphprune.reestimate_batch_norm(model, BATCHES)
    assert changed(model, before) == STATISTICS
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@both
def test_dropout_is_off(made: Maker) -> None:
    """Twice the same, in training mode too."""
    models = [made(net()).train() for _ in range(2)]
    for model in models:
        graphprune.reestimate_batch_norm(model, BATCHES)
    assert not changed(models[0], state(models[1]))


def test_norms_without_running_statistics() -> None:
    """They use those of the batch anyway; a batch norm that did not run keeps what it has."""
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    model.unused = nn.BatchNorm1d(3)
    before = state(model)
    run: Any = lambda module, batch: module[1](module[0](batch))  # noqa: E731
    assert graphprune.reestimate_batch_norm(model, BATCHES, run) == 1
    assert changed(model, before) == {"1.running_mean", "1.running_var"}


# What it is good for.


@cache
def trained() -> nn.Module:
    """The digits network, trained."""
    return digits.train()


@pytest.mark.parametrize("in_place", [False, True], ids=["traced", "in place"])
def test_accuracy_of_a_cut_network(in_place: bool) -> None:
    """Half of the MACs and no training: measured .513 before and .898 after."""
    images, labels, test, named = (torch.from_numpy(part) for part in digits.split())
    model: Any = copy.deepcopy(trained())
    shapes = ({0: torch.export.Dim("batch", min=1, max=2048)},)
    result = graphprune.prune(model, example_inputs=(images[:2],), dynamic_shapes=shapes, macs=0.5, timing=False)
    small = result.in_place() if in_place else result.model

    def accuracy() -> float:
        with torch.no_grad():
            return float((small(test).argmax(1) == named).double().mean())

    cut = accuracy()
    batches = list(zip(torch.split(images, 64), torch.split(labels, 64), strict=True))
    assert graphprune.reestimate_batch_norm(small, batches, lambda m, b: functional.cross_entropy(m(b[0]), b[1])) == 6
    assert accuracy() > cut + 0.2


# What is refused.


@both
@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "no batches"),
        (iter([]), "no batches"),
        ([*BATCHES, torch.full((2, 3), torch.nan)], r"'0.running_mean' are not finite in batch 3; nothing was changed"),
        ([*BATCHES, torch.full((2, 3), torch.inf)], r"not finite in batch 3"),
    ],
    ids=["empty", "used up", "nan", "infinite"],
)
def test_refused(made: Maker, batches: Any, words: str) -> None:
    """A UsageError, and nothing is changed."""
    model = made(net()).train()
    before = state(model)
    with pytest.raises(UsageError, match=words):
        graphprune.reestimate_batch_norm(model, batches)
    assert not changed(model, before)
    assert model.training


def test_a_batch_of_nothing_counts_for_nothing() -> None:
    model, expected = net(), net()
    graphprune.reestimate_batch_norm(expected, BATCHES)
    graphprune.reestimate_batch_norm(model, [BATCHES[0][:0], *BATCHES])
    assert not changed(model, state(expected))


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (nn.Linear(3, 2), None),
        (nn.BatchNorm1d(3, track_running_stats=False), None),
        (nn.BatchNorm1d(3), lambda module, batch: batch.sum()),
    ],
    ids=["none", "no running statistics", "not run"],
)
def test_no_batch_norm(model: nn.Module, loss: Any) -> None:
    with pytest.raises(UsageError, match="no batch norm with running statistics ran"):
        graphprune.reestimate_batch_norm(model, BATCHES, loss)


def test_an_error_of_the_loss_changes_nothing() -> None:
    """It passes through."""
    model = net().train()
    before = state(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        graphprune.reestimate_batch_norm(model, BATCHES, lambda module, batch: module(batch) @ torch.zeros(3, 1))
    assert not changed(model, before)
    assert model.training
