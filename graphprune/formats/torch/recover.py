"""What a cut moved and no training is needed to mend: the running statistics of batch norms.

A batch norm is recognised by what the dispatcher is asked to compute, so that layers and traced calls are the same. The
model stays in evaluation mode (no dropout, nothing updated by momentum); only, each batch norm is given the statistics
of the batch in place of its running ones. The statistics of all batches are written at the end, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.errors import UsageError
from graphprune.formats.torch.train import evaluating


def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[Any, Any], Any] | None = None
) -> int:
    """Set the running mean and variance of every batch norm to those of all ``batches``; how many were set.

    See `graphprune.reestimate_batch_norm`.
    """
    names = {id(buffer): name for name, buffer in model.named_buffers()}
    watch = _Watch(names)
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            with watch:
                (loss or _call)(model, batch)
            watch.batches += 1
    if not watch.batches:
        raise UsageError("there are no batches to take statistics on", hint="batches=... was empty or used up")
    if not watch.seen:
        raise UsageError(
            "no batch norm with running statistics ran, so there is nothing to re-estimate",
            hint="a model without batch norm needs no re-estimation; see that the loss runs the model",
        )
    with torch.no_grad():
        for statistics in watch.seen.values():
            statistics.write()
    return len(watch.seen)


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


@dataclass
class _Statistics:
    """Mean and sum of squared distances from it, in float64, of all values so far; and the buffers they are for."""

    running_mean: Tensor
    running_var: Tensor
    count: int
    mean: Tensor
    squares: Tensor

    def add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Take in a batch (Chan et al., "Updating formulae and a pairwise algorithm for computing variances")."""
        apart, whole = mean - self.mean, self.count + count
        self.mean = self.mean + apart * (count / whole)
        self.squares = self.squares + squares + apart.square() * (self.count * count / whole)
        self.count = whole

    def write(self) -> None:
        """Into the buffers; the variance without bias, as torch keeps it."""
        self.running_mean.copy_(self.mean)
        self.running_var.copy_(self.squares / max(self.count - 1, 1))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives each batch norm the statistics of its batch, and adds them up by running mean."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names
        self.seen: dict[int, _Statistics] = {}
        self.batches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """``func`` with the batch's own statistics where it is a batch norm in evaluation mode."""
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False), **(kwargs or {}))
        if id(given.get("running_mean")) not in self.names or given.get("training"):
            return func(*args, **(kwargs or {}))
        mean, variance = self._take(given["input"], given["running_mean"], given["running_var"])
        return func(**{**given, "running_mean": mean, "running_var": variance})

    def _take(self, values: Tensor, running_mean: Tensor, running_var: Tensor) -> tuple[Tensor, Tensor]:
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, [i for i in range(values.ndim) if i != 1], correction=0)
        name = self.names[id(running_mean)]
        if not (mean.isfinite().all() and variance.isfinite().all()):
            raise UsageError(
                f"the statistics for {name!r} are not finite in batch {self.batches}; nothing was changed",
                hint="look for NaN, infinity or an empty batch in the inputs, and for weights that are not finite",
            )
        count = values.numel() // values.shape[1]
        found = count, mean.double(), variance.double() * count
        if id(running_mean) in self.seen:
            self.seen[id(running_mean)].add(*found)
        else:
            self.seen[id(running_mean)] = _Statistics(running_mean, running_var, *found)
        return mean.to(running_mean.dtype), variance.to(running_var.dtype)
