"""Moments of activations of a traced module, added up while its nodes run one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graphprune.consumers import Site, Window
from graphprune.errors import UsageError
from graphprune.formats.torch.model import TorchModel, clone, set_tensor, stored
from graphprune.formats.torch.proof import run_with
from graphprune.graph import Array
from graphprune.stats import Batches, Moments


def moments(model: TorchModel, sites: Sequence[Site], batches: Batches) -> dict[Site, Moments]:
    """`Moments` of the vectors along each site, over all ``batches``, in one pass."""
    found: dict[Site, Moments] = {}
    at: dict[str, list[Site]] = {}
    for site in sites:
        at.setdefault(site.value, []).append(site)

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            for site in at.get(_name(n), ()):
                _add(found, site, value)
            return value

    for feeds in batches:
        run_with(Watch(model.traced), model, feeds)
    return {site: found[site] for site in sites}


def _name(node: fx.Node) -> str:
    if getattr(node.target, "__name__", "") == "getitem" and isinstance(node.args[0], fx.Node):
        return f"{node.args[0].name}.{node.args[1]}"
    return node.name


def _add(found: dict[Site, Moments], site: Site, value: Tensor) -> None:
    rows = rows_at(value, site)
    sums = (part.double().cpu().numpy() for part in (rows.sum(0), rows.T @ rows, rows.abs().sum(0)))
    found.setdefault(site, Moments.none(rows.shape[1])).add(len(rows), *sums)


def rows_at(value: Tensor, site: Site) -> Tensor:
    """What is summed over at ``site``, for every place: [rows, features], float32."""
    seen = value.detach().float()
    return (seen if site.window is None else _windows(seen, site.window)).movedim(site.axis, -1).flatten(0, -2)


def _windows(value: Tensor, window: Window) -> Tensor:
    """The elements of each window as channels, those of one channel side by side: a convolution with unit kernels."""
    size, where = math.prod(window.kernel), dict(window.attributes)
    rank, pads = len(window.kernel), where.get("pads")
    units = torch.eye(size).reshape(size, 1, *window.kernel).repeat(value.shape[1], *[1] * (rank + 1))
    if pads is not None:
        pairs = [(pads[i], pads[i + rank]) for i in reversed(range(rank))]
        value = torch.nn.functional.pad(value, [n for pair in pairs for n in pair])
    padding = where.get("auto_pad", 0)
    convolve = getattr(torch.nn.functional, f"conv{rank}d")
    found: Tensor = convolve(value, units, None, where["strides"], padding, where["dilations"], value.shape[1])
    return found


def replaced(model: TorchModel, values: Mapping[str, Array], add: Mapping[str, Array]) -> TorchModel:
    """The model with ``values`` in the place of the weights of those names, each of the same shape and type.

    UsageError where a bias would have to be added.
    """
    if add:
        raise UsageError(
            f"{len(add)} layers of the module have no bias that could make up for the cut",
            hint="compensate by least squares, or give them one: torch.nn.Linear(..., bias=True), filled with zeros",
        )
    made = clone(model)
    tensors = stored(made.traced)
    for name, value in values.items():
        set_tensor(made.traced, name, torch.as_tensor(value).to(tensors[name]))
    return made
