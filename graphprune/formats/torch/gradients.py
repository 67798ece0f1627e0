"""Gradients of a loss: by weight (first order, Hessian times gradient, SynFlow's without data), and by activation.

What is differentiated is a `Subject`: a traced module, or an ONNX file lifted to torch. The loss is the user's, or else
the model's own (`formats/torch/loss.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.errors import UsageError
from graphprune.formats.torch.loss import own_loss
from graphprune.formats.torch.model import TorchModel, attribute, clone, stored
from graphprune.graph import Array, Graph
from graphprune.memory import give_back

Loss = Callable[[Any, Any], Tensor]
Found = Sequence[Tensor | None]
Watch = Callable[[str, Tensor], Tensor]
Signals = Mapping[str, tuple[Array, Array]]


class Subject(Protocol):
    """A model that can be differentiated. ``module`` is what a loss is called with."""

    @property
    def graph(self) -> Graph: ...
    @property
    def module(self) -> Any: ...
    @property
    def weights(self) -> Mapping[str, Tensor]:
        """By name, those that a gradient is wanted of."""

    def watched(self, watch: Watch) -> Any:
        """``module`` without gradients of weights, whose values go through ``watch`` (name, value)."""

    def outputs(self, module: Any, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """What ``module`` makes of inputs by name."""

    def positive(self) -> tuple[Subject, Mapping[str, Any]]:
        """A copy with absolute weights in double precision, and inputs of ones."""


def gradients(
    model: TorchModel, loss: Loss | None, batches: Iterable[Any] | None, seed: int = 0
) -> Callable[[str], Iterator[dict[str, Array]]]:
    """A function from the kind asked for ("gradient", "hessian", "disturbed", "synflow") to
    gradients by weight name, a batch each.

    ``loss(module, batch)`` returns a scalar; ``batches`` is iterated once a call, so give a list or a loader. Without a
    loss it is the model's own, and a batch holds arrays by input name.
    """
    return lambda kind: by_weight(Traced(model), kind, loss, batches, seed)


def signals(
    model: TorchModel, loss: Loss | None, batches: Iterable[Any] | None, seed: int = 0
) -> Callable[[Iterable[str]], Iterator[Signals]]:
    """A function from names of values to (value, gradient of the loss by it) by name, a batch each."""
    return lambda values: by_activation(Traced(model), values, loss, batches, seed)


def by_weight(
    subject: Subject, kind: str, loss: Loss | None, batches: Iterable[Any] | None, seed: int
) -> Iterator[dict[str, Array]]:
    """Gradients by weight name, a batch each."""
    if kind == "synflow":
        yield _synflow(subject)
        return
    lost = _loss(subject, None if kind == "disturbed" else loss, seed, labels=kind != "disturbed")
    for batch in _each(batches):
        yield _named(_backward(subject, lambda batch=batch: lost(subject.module, batch), kind == "hessian"))  # type: ignore[misc]


def by_activation(
    subject: Subject, values: Iterable[str], loss: Loss | None, batches: Iterable[Any] | None, seed: int
) -> Iterator[Signals]:
    """(Value, gradient of the loss by it), float32, by name, a batch each; what comes before them has no gradient."""
    values = list(values)
    unknown = set(values) - {*subject.graph.producers, *subject.graph.inputs}
    if unknown:
        raise UsageError(f"there is no activation {min(unknown)!r}", hint="take names from graph.values")
    wanted, seen = set(values), dict[str, Tensor]()

    def watch(name: str, value: Tensor) -> Tensor:
        if name not in wanted:
            return value
        if not value.is_floating_point():
            raise UsageError(f"the activation {name!r} holds no floating-point numbers", hint="watch others")
        if name not in seen:  # a subject may compute a value again on the way back
            seen[name] = value if value.requires_grad else value.detach().requires_grad_()
        return seen[name]

    lost, module = _loss(subject, loss, seed), subject.watched(watch)
    for batch in _each(batches):
        with torch.enable_grad():
            value = _scalar(lost(module, batch))
            found = torch.autograd.grad(value, [seen[name] for name in values], allow_unused=True)
        pairs = {name: _pair(seen.pop(name), gradient) for name, gradient in zip(values, found, strict=True)}
        del value, found
        yield pairs
        held = sum(value.nbytes for pair in pairs.values() for value in pair)
        del pairs
        give_back(held)


def _pair(value: Tensor, gradient: Tensor | None) -> tuple[Array, Array]:
    value, gradient = value.detach(), torch.zeros_like(value) if gradient is None else gradient
    return np.asarray(value.float().cpu().numpy()), np.asarray(gradient.float().cpu().numpy())


def _each(batches: Iterable[Any] | None) -> Iterator[Any]:
    """The batches; UsageError where there are none."""
    if batches is None:
        raise UsageError(
            "this score needs batches to take gradients on",
            hint="give calib=[...], inputs by name, or loss=lambda module, batch: ... and batches=[...]",
        )
    seen = False
    for batch in batches:
        seen = True
        yield batch
    if not seen:
        raise UsageError("there are no batches to take gradients on", hint="batches=... was empty or used up")


def _loss(subject: Subject, loss: Loss | None, seed: int, *, labels: bool = True) -> Loss:
    """The user's loss, or the model's own."""
    if loss is not None:
        return loss
    own = own_loss(subject.graph, seed, labels=labels)

    def run(module: Any, batch: Any) -> Tensor:
        if not isinstance(batch, Mapping):
            raise UsageError(
                f"a batch is a {type(batch).__name__}, and there is no loss that knows what to do with it",
                hint="give batches that hold arrays by input name, or loss=lambda module, batch: ...",
            )
        return own(subject.outputs(module, batch))

    return run


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UsageError("the loss is not one number", hint="return a scalar tensor, such as a mean")
    if not value.requires_grad:
        raise UsageError("the loss does not depend on the parameters", hint="compute it without detach or no_grad")
    return value


def _backward(subject: Subject, loss: Callable[[], Any], second: bool) -> dict[str, Tensor | None]:
    weights = subject.weights
    if not weights:
        raise UsageError("no parameter requires a gradient", hint="module.requires_grad_(True)")
    with torch.enable_grad():
        value, held = _scalar(loss()), list(weights.values())
        first: Found = torch.autograd.grad(value, held, create_graph=second, allow_unused=True)
        found = first
        if second:
            norm = torch.stack([(g * g).sum() for g in first if g is not None]).sum() / 2
            found = torch.autograd.grad(norm, held, allow_unused=True)
    return dict(zip(weights, found, strict=True))


def _named(found: dict[str, Tensor | None]) -> dict[str, Array]:
    return {name: g.detach().double().cpu().numpy() for name, g in found.items() if g is not None}


def _synflow(subject: Subject) -> dict[str, Array]:
    """The network with absolute weights in double precision, fed with ones."""
    made, ones = subject.positive()

    def whole() -> Tensor:
        outputs = made.outputs(made.module, ones).values()
        return torch.stack([part.sum() for part in outputs if part.is_floating_point()]).sum()

    return _named(_backward(made, whole, second=False))


@dataclass(frozen=True)
class Traced:
    """A traced module as a Subject."""

    model: TorchModel

    @property
    def graph(self) -> Graph:
        """The format-free view."""
        return self.model.graph

    @property
    def module(self) -> fx.GraphModule:
        """The traced module itself."""
        return self.model.traced

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors that require a gradient."""
        held = stored(self.model.traced)
        return {name: t for name, t in held.items() if t.is_floating_point() and t.requires_grad}

    def watched(self, watch: Watch) -> fx.GraphModule:
        """A module on the same tensors that calls ``watch`` after each node."""
        graph = copy.deepcopy(self.model.traced.graph)
        for node in list(graph.nodes):
            look = _look(self.model.traced, node, watch)
            if look is not None:
                with graph.inserting_after(node):
                    seen = graph.call_function(look, (node,))
                node.replace_all_uses_with(seen, delete_user_cb=lambda user, seen=seen: user is not seen)
        return fx.GraphModule(self.model.traced, graph)

    def outputs(self, module: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Outputs by name."""
        values = [_input(batch, name, example) for name, example in self.model.inputs.items()]
        found = fx.Interpreter(module).run(*values, enable_io_processing=False)
        flat, _ = torch.utils._pytree.tree_flatten(found)
        last = next(node for node in reversed(self.model.traced.graph.nodes) if node.op == "output")
        names, _ = torch.utils._pytree.tree_flatten(last.args[0])
        pairs = zip(names, flat, strict=True)
        return {value_name(n): v for n, v in pairs if isinstance(n, fx.Node) and isinstance(v, Tensor)}

    def positive(self) -> tuple[Traced, dict[str, Any]]:
        """As `Subject` says."""
        made = clone(self.model)
        made.traced.double()
        with torch.no_grad():
            for tensor in stored(made.traced).values():
                if tensor.is_floating_point():
                    tensor.abs_()
        made.inputs = {
            name: torch.ones_like(value).double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in made.inputs.items()
        }
        return Traced(made), made.inputs


def value_name(node: fx.Node) -> str:
    """The name of a traced node's value in the Graph."""
    if getattr(node.target, "__name__", "") == "getitem" and isinstance(node.args[0], fx.Node):
        return f"{node.args[0].name}.{node.args[1]}"
    return node.name


def _look(module: fx.GraphModule, node: fx.Node, watch: Watch) -> Callable[[Any], Any] | None:
    """What to do with the value of a node: detach weights, show other tensors (what is changed in place, by a copy)."""
    if node.op == "get_attr":
        return torch.detach if isinstance(attribute(module, str(node.target)), Tensor) else None
    if node.op == "output" or not isinstance(node.meta.get("val"), Tensor):
        return None
    name = value_name(node)
    changed = any(str(user.target).partition(".")[2].split(".")[0].endswith("_") for user in node.users)
    return lambda value: watch(name, value).clone() if changed else watch(name, value)


def _input(batch: Mapping[str, Any], name: str, example: Any) -> Any:
    if not isinstance(example, Tensor):
        return example
    if name not in batch:
        raise UsageError(f"the batch has no input {name!r}", hint="give arrays by the names of the model's inputs")
    value = batch[name]
    given = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    return given.to(example.device, example.dtype)
