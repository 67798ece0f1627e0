"""Gradients of a loss by weight name: first order, Hessian times gradient, and SynFlow's without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from graphprune.errors import UsageError
from graphprune.formats.torch.model import TorchModel, clone, stored
from graphprune.graph import Array

Loss = Callable[[Any, Any], Tensor]
Found = Sequence[Tensor | None]


def gradients(
    model: TorchModel, loss: Loss | None, batches: Iterable[Any] | None
) -> Callable[[str], Iterator[dict[str, Array]]]:
    """A function from the kind asked for ("gradient", "hessian", "synflow") to gradients by weight name, a batch each.

    ``loss(module, batch)`` returns a scalar; ``batches`` is iterated once a call, so give a list or a loader.
    """

    def run(kind: str) -> Iterator[dict[str, Array]]:
        if kind == "synflow":
            yield _synflow(model)
            return
        if loss is None or batches is None:
            raise UsageError(
                "this score needs a loss and batches",
                hint="give loss=lambda module, batch: ... and batches=[...]",
            )
        seen = False
        for batch in batches:
            seen = True
            yield _named(model, _backward(model, loss, batch, kind == "hessian"))
        if not seen:
            raise UsageError("there are no batches to take gradients on", hint="batches=... was empty or used up")

    return run


def _tensors(model: TorchModel) -> dict[str, Tensor]:
    held = {name: t for name, t in stored(model.traced).items() if t.is_floating_point() and t.requires_grad}
    if not held:
        raise UsageError("no parameter requires a gradient", hint="module.requires_grad_(True)")
    return held


def _backward(model: TorchModel, loss: Loss, batch: Any, second: bool) -> dict[str, Tensor | None]:
    tensors = _tensors(model)
    with torch.enable_grad():
        value = loss(model.traced, batch)
        if getattr(value, "numel", lambda: 0)() != 1:
            raise UsageError("the loss is not one number", hint="return a scalar tensor, such as a mean")
        if not value.requires_grad:
            raise UsageError("the loss does not depend on the parameters", hint="compute it without detach or no_grad")
        held = list(tensors.values())
        first: Found = torch.autograd.grad(value, held, create_graph=second, allow_unused=True)
        found = first
        if second:
            norm = torch.stack([(g * g).sum() for g in first if g is not None]).sum() / 2
            found = torch.autograd.grad(norm, held, allow_unused=True)
    return dict(zip(tensors, found, strict=True))


def _named(model: TorchModel, found: dict[str, Tensor | None]) -> dict[str, Array]:
    return {name: g.detach().double().cpu().numpy() for name, g in found.items() if g is not None}


def _synflow(model: TorchModel) -> dict[str, Array]:
    """The network with absolute weights in double precision, fed with ones."""
    made = clone(model)
    made.traced.double()
    with torch.no_grad():
        for tensor in stored(made.traced).values():
            if tensor.is_floating_point():
                tensor.abs_()
    ones = [
        torch.ones_like(value).double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in made.inputs.values()
    ]
    tensors = _tensors(made)
    with torch.enable_grad():
        outputs = torch.fx.Interpreter(made.traced).run(*ones, enable_io_processing=False)
        flat, _ = torch.utils._pytree.tree_flatten(outputs)
        whole = torch.stack(
            [part.sum() for part in flat if isinstance(part, Tensor) and part.is_floating_point()]
        ).sum()
        found = torch.autograd.grad(whole, list(tensors.values()), allow_unused=True)
    return _named(made, dict(zip(tensors, found, strict=True)))
