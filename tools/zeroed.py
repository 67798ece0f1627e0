"""Is a smaller torch module a cut of a larger one? A check that asks no pruner.

The weights that are left are looked up by value in the dense module, all others are zeroed there, and both must compute
the same. Norms count their positions, so in the dense module they are made to count the kept ones only. Weights have to
differ from each other, as those of models/transformers_zoo.py in float64 do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from graphprune.graph import Array

if TYPE_CHECKING:
    from torch import Tensor, nn

Inputs = dict[str, Any]


def error(dense: nn.Module, small: nn.Module, inputs: Inputs) -> float:
    """The largest difference, relative to the largest output; ValueError where a weight is no slice of the old."""
    pairs = zip(outputs(zeroed(dense, small), inputs), outputs(small, inputs), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def outputs(module: nn.Module, inputs: Inputs) -> list[Array]:
    """The floating-point outputs as arrays."""
    import torch

    with torch.no_grad():
        leaves = torch.utils._pytree.tree_leaves(dict(made) if isinstance(made := module(**inputs), dict) else made)
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def zeroed(dense: nn.Module, small: nn.Module) -> nn.Module:
    """The dense module with zeros for every weight that is not in ``small``; norms count what ``small`` has only."""
    import torch
    from torch import nn

    twin, kept, left = untied(dense), {}, named(dense, small)
    for name, tensor in tensors(twin):
        if name not in left or (tensor.shape == left[name].shape and torch.equal(tensor, left[name])):
            continue
        kept[name] = positions(tensor.detach().numpy(), left[name].detach().numpy(), name)
        mask = torch.zeros_like(tensor)
        mask[np.ix_(*kept[name])] = 1
        tensor.detach().mul_(mask)
    others = (nn.modules.batchnorm._BatchNorm, nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
    for name, part in twin.named_modules():
        long = [index for index in kept.get(f"{name}.weight", []) if len(index) > 1]
        if len(long) == 1 and not isinstance(part, others):
            part.register_forward_hook(_over(long[0], part, {key: left[f"{name}.{key}"] for key in part._parameters}))
    return twin


def untied(module: nn.Module) -> nn.Module:
    """A copy in which no two modules share a parameter: what was one may have been cut in two ways."""
    from torch import nn

    twin = copy.deepcopy(module)
    for part in twin.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.detach().clone()))
    return twin


def named(dense: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``small`` under all names of the dense module: a traced one has a tied one under one name only."""
    found = dict(tensors(small))
    ties: dict[int, list[str]] = {}
    for name, tensor in tensors(dense):
        ties.setdefault(id(tensor), []).append(name)
    for together in ties.values():
        there = [found[name] for name in together if name in found]
        found |= {name: found.get(name, there[0]) for name in together if there}
    return found


def _over(kept: Array, part: Any, weights: dict[str, Tensor]) -> Callable[..., Tensor]:
    """A hook that makes a norm count the kept positions only: itself with ``weights`` on them, zeros elsewhere."""
    import torch

    small, index = copy.deepcopy(part), torch.from_numpy(kept)
    small._parameters.update(weights)
    small.normalized_shape, small.num_channels = (len(kept),), len(kept)

    def hook(_: Any, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        width = part.weight.numel()
        axis = 1 if isinstance(part, torch.nn.GroupNorm) or made.shape[-1] != width else made.dim() - 1
        return torch.zeros_like(made).index_copy(axis, index, small(given[0].index_select(axis, index)).to(made.dtype))

    return hook


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point parameters and buffers by name, tied ones under each."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from ((name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point())


def positions(dense: Array, small: Array, name: str = "") -> list[Array]:
    """For each axis the positions of ``dense`` that are left in ``small``; ValueError where it is no slice.

    >>> positions(np.arange(6.0).reshape(2, 3), np.array([[3.0, 5.0]]))
    [array([1]), array([0, 2])]
    """
    values, places, counts = np.unique(dense, return_index=True, return_counts=True)
    found = []
    for axis, size in enumerate(small.shape):
        rows = np.moveaxis(small, axis, 0).reshape(size, -1)
        lines = np.searchsorted(values, rows).clip(max=len(values) - 1)
        sure = np.flatnonzero((counts[lines] == 1).all(0))
        if len(sure):
            found.append(np.unravel_index(places[lines[:, sure[0]]], dense.shape)[axis])
        elif size == dense.shape[axis]:
            found.append(np.arange(size))
        else:  # values repeat: rows must match as a whole
            whole = np.moveaxis(dense, axis, 0).reshape(dense.shape[axis], -1)
            same = whole.shape[1:] == rows.shape[1:]
            found.append(np.array([np.argmax((whole == row).all(1)) if same else 0 for row in rows]))
    if dense.ndim != small.ndim or not np.array_equal(dense[np.ix_(*found)], small):
        raise ValueError(f"{name} {list(small.shape)} is no slice of the dense {list(dense.shape)}")
    return found
