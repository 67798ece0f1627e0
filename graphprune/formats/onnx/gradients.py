"""What of an ONNX file needs torch, such as gradients: the graph is lifted to torch when somebody first asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from graphprune.consumers import Site
from graphprune.errors import UsageError
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.unrounded import unrounded
from graphprune.graph import Array
from graphprune.memory import at_once


def gradients(
    model: OnnxModel, loss: Any, batches: Iterable[Any] | None, seed: int = 0
) -> Callable[[str], Iterator[dict[str, Array]]]:
    """As for a torch module; the ``module`` of a loss takes inputs by name, and returns outputs by name."""
    return lambda kind: _torch("by_weight")(_torch("lift")(model, trainable=True), kind, loss, batches, seed)


def signals(
    model: OnnxModel, loss: Any, batches: Iterable[Any] | None, seed: int = 0
) -> Callable[[Iterable[str]], Iterator[Mapping[str, tuple[Array, Array]]]]:
    """As for a torch module."""

    def found(values: Iterable[str]) -> Iterator[Mapping[str, tuple[Array, Array]]]:
        with at_once():
            smooth = unrounded(model) or model  # rounding has no slope
            yield from _torch("by_activation")(_torch("lift")(smooth), values, loss, batches, seed)

    return found


def pull(model: OnnxModel, wanted: Mapping[Site, tuple[Array, Array]]) -> Any:
    """As for a torch module."""
    return _torch("towards")(_torch("lift")(model), wanted)


def walk(model: OnnxModel, batches: Sequence[Mapping[str, Array]]) -> Any:
    """``batches`` before the first node of ``model``."""
    return _torch("Walk")(model, batches)


_PLACES = {
    "Walk": "graphprune.formats.onnx.walks",
    "lift": "graphprune.formats.onnx.lift",
    "towards": "graphprune.formats.torch.pull",
}


def _torch(name: str) -> Any:
    """A function from a module that needs torch."""
    try:
        return getattr(import_module(_PLACES.get(name, "graphprune.formats.torch.gradients")), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(
            "gradients of a file, and compensation in order, need torch", hint='pip install "graphprune[torch]"'
        ) from error
