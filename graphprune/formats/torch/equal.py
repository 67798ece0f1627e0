"""Whether a module computes what a traced module computes: on the example inputs, on others, and at other sizes.

Other inputs are the example inputs with all values shuffled (so that ids stay ids and masks stay masks), and the axes
that were exported as dynamic one longer. A trial counts where the module as it was given agrees with its own trace:
elsewhere the trace is not valid, or the code takes another branch. How far the two differ there is the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from graphprune.errors import VerifyError
from graphprune.formats.torch.model import TorchModel
from graphprune.formats.torch.train import evaluating

_ROUNDING = 16
"""Rounding errors, relative to the largest output, that count as equal."""
_NOISE = 10


class Trials:
    """Inputs on which ``model.source`` and its trace agree, to compare both after a cut.

    VerifyError where they do not agree on the example inputs.
    """

    def __init__(self, model: TorchModel) -> None:
        self.model = model
        self.inputs: list[list[Any]] = []
        self.limits: list[float] = []
        given = _pytree.tree_flatten(model.called)[0]
        for number, leaves in enumerate((given, *_others(model, given))):
            self.inputs.append(leaves)
            self.limits.append(_NOISE * _rounding(model.source))
            noise = self._error(number, model.source, model.traced)
            if not noise <= self.limits[-1] and number == 0:
                raise VerifyError(f"it no longer computes what was traced (error {noise:.1e})")
            if not noise <= self.limits[-1]:
                self.inputs.pop()
                self.limits.pop()
            else:
                self.limits[-1] = _NOISE * noise + _rounding(model.source)

    def run(self, module: nn.Module, number: int = 0) -> Any:
        """What ``module`` gives on the inputs ``number``, in evaluation mode."""
        args, kwargs = _pytree.tree_unflatten(self.inputs[number], _pytree.tree_flatten(self.model.called)[1])
        with torch.no_grad(), evaluating(module), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return module(*args, **kwargs)

    def require(self, module: nn.Module, traced: fx.GraphModule) -> None:
        """VerifyError where the two differ."""
        for number, limit in enumerate(self.limits):
            error = difference(self._traced(traced, number), self.run(module, number))
            if not error <= limit:
                where = " on other inputs than the example inputs" if number else ""
                raise VerifyError(
                    f"it computes something else{where} (error {error:.1e}): its code makes more than shapes of a size"
                )

    def _error(self, number: int, module: nn.Module, traced: fx.GraphModule) -> float:
        try:
            return difference(self._traced(traced, number), self.run(module, number))
        except Exception:  # the inputs do not suit the module
            if number == 0:
                raise
            return float("inf")

    def _traced(self, traced: fx.GraphModule, number: int) -> Any:
        places = [node for node in traced.graph.nodes if node.op == "placeholder"]
        with torch.no_grad(), evaluating(traced), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            values = self.inputs[number][: len(places)]
            return fx.Interpreter(traced).run(*values, enable_io_processing=False)


def difference(expected: Any, found: Any) -> float:
    """The largest difference of two nests of tensors, relative to the largest entry; infinite where shapes differ."""
    left, right = (_flat(value) for value in (expected, found))
    if len(left) != len(right) or any(a.shape != b.shape for a, b in zip(left, right, strict=True)):
        return float("inf")
    scale = max((float(a[a.isfinite()].abs().max()) for a in left if a.isfinite().any()), default=0.0)
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        apart = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0)
        worst = max(worst, float(apart.nan_to_num(nan=float("inf")).max()) if apart.numel() else 0.0)
    return worst / (scale or 1.0)


def _flat(value: Any) -> list[Tensor]:
    return [part.double() for part in _pytree.tree_flatten(value)[0] if isinstance(part, Tensor)]


def _rounding(module: nn.Module) -> float:
    """In float64 too that of float32: modules compute parts in float32 whatever the dtype of their weights."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()} | {torch.float32}
    return _ROUNDING * max(torch.finfo(dtype).eps for dtype in dtypes)


def _others(model: TorchModel, leaves: Sequence[Any]) -> Iterator[list[Any]]:
    generator = torch.Generator().manual_seed(0)
    shuffled = [_shuffled(leaf, generator) for leaf in leaves]
    yield shuffled
    shapes = [node.meta["val"] for node in model.traced.graph.nodes if node.op == "placeholder"]
    longer = [_longer(leaf, shape) for leaf, shape in zip(shuffled, shapes, strict=False)]
    if any(a is not b for a, b in zip(longer, shuffled, strict=False)):
        yield longer


def _shuffled(leaf: Any, generator: torch.Generator) -> Any:
    """All values elsewhere, floating ones twice as large."""
    if not isinstance(leaf, Tensor):
        return leaf
    order = torch.randperm(leaf.numel(), generator=generator).to(leaf.device)
    moved = leaf.detach().reshape(-1)[order].reshape(leaf.shape)
    return moved * 2 if leaf.is_floating_point() else moved


def _longer(leaf: Any, traced: Any) -> Any:
    """Every dynamic axis one longer, as if its symbol were; entries begin again where they end."""
    for axis, size in enumerate(traced.shape if isinstance(traced, Tensor) and isinstance(leaf, Tensor) else ()):
        if isinstance(size, torch.SymInt):
            expression = size.node.expr
            at = {symbol: int(size.node.shape_env.size_hint(symbol)) + 1 for symbol in expression.free_symbols}
            index = torch.arange(int(expression.subs(at)), device=leaf.device) % leaf.shape[axis]
            leaf = leaf.index_select(axis, index)
    return leaf
