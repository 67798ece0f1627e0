"""A traced module that trains: torch.export writes evaluation mode into the calls, `train` and `eval` change it there.

The argument ``training`` (of batch norm) or ``train`` (of dropout) of every call that has one follows the mode, as it
does in the module that was traced. Calls that had it fixed to training when they were traced in evaluation mode
(functional dropout that is always on) keep it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

_ARGUMENTS = ("training", "train")


class TracedModule(fx.GraphModule):
    """A graph module whose batch norms and dropouts follow ``train()`` and ``eval()``."""

    def train(self, mode: bool = True) -> TracedModule:
        """Set the mode of all parts and of all calls that have one."""
        super().train(mode)
        self.calls_follow(mode)
        return self

    def calls_follow(self, mode: bool) -> None:
        """Set the mode of all calls that have one."""
        changed = False
        for node in self.graph.nodes:
            position = _mode_argument(node)
            if position is not None and not node.meta.get("always_training") and _value(node, position) is not mode:
                _set(node, position, mode)
                changed = True
        if changed:
            self.recompile()


def trainable(traced: fx.GraphModule) -> TracedModule:
    """``traced``, which was traced in evaluation mode, as a module that trains."""
    for node in traced.graph.nodes:
        position = _mode_argument(node)
        if position is not None and _value(node, position) is True:
            node.meta["always_training"] = True
    made = TracedModule(traced, traced.graph)
    made.training = False
    for part in made.modules():
        part.training = False
    return made


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile, also for modules that torch.export made, which refuse ``eval()``; then as before."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        _set_mode(part, False)
    try:
        yield
    finally:
        for part in training:
            _set_mode(part, True)


def _set_mode(part: nn.Module, mode: bool) -> None:
    """The mode of one part: its flag, and its calls where they carry the mode."""
    if isinstance(part, TracedModule):
        part.calls_follow(mode)
    part.training = mode


def _mode_argument(node: fx.Node) -> tuple[int, str] | None:
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    for i, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name in _ARGUMENTS:
            return i, argument.name
    return None


def _value(node: fx.Node, place: tuple[int, str]) -> Any:
    position, name = place
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def _set(node: fx.Node, place: tuple[int, str], mode: bool) -> None:
    position, name = place
    if position < len(node.args):
        node.args = (*node.args[:position], mode, *node.args[position + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: mode}
