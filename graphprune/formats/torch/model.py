"""A torch model in hand: the traced graph module, what it was traced from, and the inputs it was traced with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.graph import Array, Graph

Trial = tuple[dict[str, int], dict[str, Array]]


@dataclass
class TorchModel:
    """``traced`` keeps the parameter names of ``source``; ``inputs`` are the example tensors by placeholder name.

    ``called`` are the arguments that ``source`` itself takes, ``dynamic`` their dynamic shapes.
    """

    traced: fx.GraphModule
    inputs: dict[str, Any]
    source: Any = None
    called: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    dynamic: Any = None
    given: Trial | None = field(default=None)

    @cached_property
    def graph(self) -> Graph:
        """The format-free view that analysis works on."""
        from graphprune.formats.torch.view import view

        return view(self)

    @cached_property
    def calls(self) -> Mapping[int, Any]:
        """The traced node behind each node of the view, by index."""
        from graphprune.formats.torch.view import calls

        return calls(self)

    @property
    def bytes(self) -> int:
        """Bytes of all parameters and buffers, tied ones once."""
        return sum(t.numel() * t.element_size() for t in stored(self.traced).values())

    def data_files(self) -> set[Path]:
        """None: all tensors are in memory."""
        return set()

    @property
    def large(self) -> bool:
        """Never: a module that is in memory can be copied."""
        return False


def stored(module: fx.GraphModule) -> dict[str, Tensor]:
    """Every tensor that the graph reads as an attribute, by its canonical name: tied tensors have one."""
    names: dict[int, str] = {}
    found: dict[str, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = attribute(module, str(node.target))
            if isinstance(value, Tensor) and names.setdefault(id(value), str(node.target)) == str(node.target):
                found[str(node.target)] = value
    return found


def attribute(module: Any, path: str) -> Any:
    """The attribute at a dotted path."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def set_tensor(module: Any, path: str, value: Tensor) -> None:
    """Replace the tensor at a dotted path, as a parameter or a buffer as it was; a Parameter is registered as it is."""
    *parents, name = path.split(".")
    for parent in parents:
        module = getattr(module, parent)
    old = getattr(module, name)
    if isinstance(old, torch.nn.Parameter):
        if not isinstance(value, torch.nn.Parameter):
            value = torch.nn.Parameter(value, requires_grad=old.requires_grad)
        module.register_parameter(name, value)
    elif name in module._buffers:
        module._buffers[name] = value
    else:
        setattr(module, name, value)


def clone(model: TorchModel) -> TorchModel:
    """A copy whose tensors and nodes may be changed."""
    return TorchModel(copy.deepcopy(model.traced), model.inputs, model.source, model.called, model.dynamic, model.given)


def native(model: TorchModel) -> fx.GraphModule:
    """The graph module: trains, moves device, saves its state, exports again."""
    return model.traced
