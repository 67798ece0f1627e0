"""Moments of activations of a traced module, added up while its nodes run one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.consumers import Site
from graphprune.formats.torch.model import TorchModel, clone, set_tensor, stored
from graphprune.formats.torch.proof import run_with
from graphprune.graph import Array
from graphprune.stats import Batches, Moments


def moments(model: TorchModel, sites: Sequence[Site], batches: Batches, *, threads: int = 1) -> dict[Site, Moments]:
    """Count, sum and sum of outer products of the vectors along each site, over all ``batches``, in one pass."""
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
    rows = value.detach().movedim(site.axis, -1).flatten(0, -2).float()
    total, second = (part.double().cpu().numpy() for part in (rows.sum(0), rows.T @ rows))
    if site not in found:
        found[site] = Moments(0, np.zeros_like(total), np.zeros_like(second))
    found[site].add(len(rows), total, second)


def replaced(model: TorchModel, values: Mapping[str, Array]) -> TorchModel:
    """The model with ``values`` in the place of the weights of those names, each of the same shape and type."""
    made = clone(model)
    tensors = stored(made.traced)
    for name, value in values.items():
        set_tensor(made.traced, name, torch.as_tensor(value).to(tensors[name]))
    return made
