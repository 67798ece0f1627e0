"""Where the time goes in a traced module: each of its calls, timed as it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.formats.torch.model import TorchModel
from graphprune.formats.torch.proof import run_with
from graphprune.graph import Array
from graphprune.latency import Kernel, Shapes, Timing, clock, in_a_row, low


def version() -> str:
    """What runs models, with its version."""
    return f"torch {torch.__version__}"


def timings(
    models: Sequence[tuple[TorchModel, Mapping[str, Array]]], *, threads: int = 1, rounds: int = 10
) -> list[Timing]:
    """What each model takes on its inputs, measured by turns so that noise hits all alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plain = [partial(run_with, fx.Interpreter(model.traced), model, feeds) for model, feeds in models]
        watchers = [_Watcher(model.traced, clock(threads)) for model, _ in models]
        watched = [partial(run_with, w, *model) for w, model in zip(watchers, models, strict=True)]
        spent: list[list[float]] = [[] for _ in models]
        for _ in range(rounds):
            for times, quick, slow in zip(spent, plain, watched, strict=True):
                times.extend(in_a_row(quick, threads))
                in_a_row(slow, threads)
    finally:
        torch.set_num_threads(before)
    return [Timing(low(times), watcher.kernels()) for times, watcher in zip(spent, watchers, strict=True)]


class _Watcher(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, now: Callable[[], float]) -> None:
        super().__init__(module)
        self._now = now
        self._found: dict[str, tuple[str, Shapes, list[float]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """As the interpreter does, looking at the clock before and after."""
        if n.op != "call_function":
            return super().run_node(n)
        inputs = tuple(_shapes([self.env[source] for source in n.all_input_nodes]))
        start = self._now()
        result = super().run_node(n)
        seconds = self._now() - start
        self._found.setdefault(n.name, (str(n.target), inputs + tuple(_shapes(result)), []))[2].append(seconds)
        return result

    def kernels(self) -> dict[str, Kernel]:
        """What was seen of each call."""
        return {name: Kernel(op, shapes, low(times)) for name, (op, shapes, times) in self._found.items()}


def _shapes(values: Any) -> Iterator[tuple[int, ...]]:
    flat, _ = torch.utils._pytree.tree_flatten(values)
    return (tuple(value.shape) for value in flat if isinstance(value, Tensor))
