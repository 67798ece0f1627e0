"""The loss that a model brings along: its own outputs are the labels, so that squared gradients are its Fisher matrix.

An output whose last axis are classes (it ends in a softmax, or in a linear layer with nothing behind) is sampled from
at a raised temperature, and the loss is the cross entropy. Where there is none, outputs are means of a normal
distribution whose deviation is their own size. Losses are sums over all positions: terms of different samples are
independent, and cancel on average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from graphprune.classes import classes
from graphprune.errors import UsageError
from graphprune.graph import Graph

_TINY = 1e-30
TEMPERATURE = 2.0
"""What logits are divided by: a model that is sure of itself has hardly a gradient, and loses much all the same."""
_ROWS = 64


def own_loss(graph: Graph, seed: int, *, labels: bool = True) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A loss of outputs by name; labels are drawn anew at each call. Without ``labels`` all outputs count as means."""
    found = {name: classes(graph, name) for name in graph.outputs if labels}
    picks = {name: how for name, how in found.items() if how is not None}
    generator = torch.Generator().manual_seed(seed)

    def loss(outputs: Mapping[str, Tensor]) -> Tensor:
        floats = {name: value for name, value in outputs.items() if value.is_floating_point()}
        if not floats:
            raise UsageError("no output holds floating-point numbers", hint="give loss=lambda module, batch: ...")
        picked = [_cross_entropy(value, picks[n], generator) for n, value in floats.items() if n in picks]
        return torch.stack(picked or [_normal(value, generator) for value in floats.values()]).sum()

    return loss


def class_loss(graph: Graph) -> Callable[[Sequence[Mapping[str, Tensor]], Sequence[Tensor]], Tensor]:
    """How unsure a model is of classes, over all runs: what is least for inputs that it knows. Zero without classes.

    Of an output that chooses one class a sample the mean cross entropy; labels in [0, 1) are shares of its classes. Of
    one that chooses at many places the entropy of a place, less that of all places together: each is to be sure, and
    not all of the same (Chen et al., "Data-Free Learning of Student Networks", arXiv 1904.01186).
    """
    found = {name: how for name in graph.outputs if (how := classes(graph, name)) is not None}
    once = {name: how for name, how in found.items() if len(graph.shape(name) or ()) == 2}
    often = {name: how for name, how in found.items() if len(graph.shape(name) or ()) > 2}

    def surprise(outputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        terms = [_surprise(outputs[n], how, (labels * outputs[n].shape[1]).long()) for n, how in once.items()]
        return torch.stack(terms).sum() / len(labels) if terms else torch.zeros(())

    def loss(runs: Sequence[Mapping[str, Tensor]], labels: Sequence[Tensor]) -> Tensor:
        chosen = torch.stack([surprise(run, x) for run, x in zip(runs, labels, strict=True)]).mean()
        placed = [_unsure(torch.cat([run[n].flatten(0, -2) for run in runs]), how) for n, how in often.items()]
        return torch.stack([chosen, *placed]).sum()

    return loss


def _unsure(rows: Tensor, how: str) -> Tensor:
    """Mean entropy of rows, less the entropy of their mean."""
    shares = (rows if how == "probabilities" else rows.softmax(1)).clamp(min=_TINY)
    mean = shares.mean(0)
    return (mean * mean.log()).sum() - (shares * shares.log()).sum(1).mean()


def _cross_entropy(value: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """-log p of a class drawn from p, summed over all positions; in blocks, as a vocabulary is large."""
    return torch.stack([_drawn(rows, how, generator) for rows in torch.split(value.flatten(0, -2), _ROWS)]).sum()


def _drawn(rows: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """A class is drawn for each row, at TEMPERATURE, by one number that falls into its part of the whole."""
    with torch.no_grad():
        running = _softened(rows, how).softmax(1).cumsum(1)
        points = torch.rand(len(rows), 1, generator=generator).to(running) * running[:, -1:]
        labels = torch.searchsorted(running, points, right=True).clamp(max=rows.shape[1] - 1)[:, 0]

    def lost(rows: Tensor) -> Tensor:
        return _surprise(_softened(rows, how), "logits", labels)

    # computed again on the way back: three numbers for each of a vocabulary at each position would be kept otherwise
    found: Tensor = checkpoint(lost, rows, use_reentrant=False, preserve_rng_state=False)
    return found


def _softened(rows: Tensor, how: str) -> Tensor:
    """Logits at TEMPERATURE."""
    return (rows.clamp(min=_TINY).log() if how == "probabilities" else rows) / TEMPERATURE


def _surprise(rows: Tensor, how: str, labels: Tensor) -> Tensor:
    """-log p of each row's label, summed."""
    if how == "probabilities":
        return -rows.gather(1, labels[:, None]).clamp(min=_TINY).log().sum()
    return torch.nn.functional.cross_entropy(rows, labels, reduction="sum")


def _normal(value: Tensor, generator: torch.Generator) -> Tensor:
    """Of a target drawn around the output: the gradient by the output is normal, in units of the output's size."""
    size = value.detach().square().mean().sqrt().clamp(min=_TINY)
    return (value * torch.randn(value.shape, generator=generator).to(value)).sum() / size
