"""Scores that look at weights alone.

As in SPA (arXiv 2403.18955) the importance of a position is summed over all weights its Dim lives in, each weight
normalised to a mean of one first, so that a large tensor does not drown a small one. Weights are read one at a time.

A batch norm's running mean and variance are statistics, not weights, and its shift speaks against a channel as often as
for it (a large negative one turns it off): none of the three is scored. `python -m tools.bench_scores` shows what a
score keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import groupby

import numpy as np

from graphprune.dims import Dim, atoms, spread
from graphprune.graph import Array, Node
from graphprune.scores.registry import Floats, Task, score
from graphprune.signature import Layout

_BLOCK = 1 << 24
_FLOATS = ("float16", "bfloat16", "float32", "float64")


@score("l1")
def l1(task: Task) -> dict[Dim, Floats]:
    """Sum of absolute weights (Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710)."""
    return over_weights(task, np.abs, lambda total: total)


@score("l2")
def l2(task: Task) -> dict[Dim, Floats]:
    """Euclidean norm of the weights (He et al., "Soft Filter Pruning", arXiv 1808.06866)."""
    return over_weights(task, np.square, np.sqrt)


@score("random")
def random(task: Task) -> dict[Dim, Floats]:
    """Uniform random numbers: the baseline that every other score must beat."""
    generator = np.random.default_rng(task.seed)
    return {atom.dim: generator.random(atom.size) + 0.5 for atom in task.atoms}


@score("bn-scale")
def bn_scale(task: Task) -> dict[Dim, Floats]:
    """Absolute batch-norm scale (Liu et al., "Network Slimming", arXiv 1708.06519).

    Dims that pass through no batch norm (or whose batch norm the exporter folded away) are scored by l2.
    """
    scales = {node.inputs[1] for node in task.analysis.graph.nodes if node.op == "batch_norm"}
    found = over_weights(task, np.abs, lambda total: total, only=scales)
    missing = [atom for atom in task.atoms if not found[atom.dim].any()]
    return {**found, **l2(replace(task, atoms=missing))} if missing else found


def over_weights(
    task: Task,
    element: Callable[[Array], Array],
    finish: Callable[[Floats], Floats],
    only: set[str] | None = None,
    read: Callable[[str, Array], Array | None] | None = None,
    normalise: bool = True,
) -> dict[Dim, Floats]:
    """Sum ``element`` of each weight over all but an atom's positions, ``finish`` it, normalise it, add it up.

    ``read`` (weight name, weight) may put other numbers of its shape in the weight's place, or None to leave it out.
    """
    weights = task.analysis.graph.weights
    total = {atom.dim: np.zeros(atom.size) for atom in task.atoms}
    groups = [(name, list(uses)) for name, uses in groupby(task.analysis.uses, key=lambda use: use[0])]
    for done, (name, uses) in enumerate(groups):
        layouts = [
            layout
            for _, node, i, layout in uses
            if not _is_statistic(task, name, node, i) and any(a in total for dim in layout for a in atoms(dim))
        ]
        if layouts and weights[name].dtype in _FLOATS and (only is None or name in only):
            data = weights[name].load()
            numbers = data if read is None else read(name, data)
            for layout in layouts:
                if numbers is None:
                    break
                for dim, sums in _by_atom(numbers, layout, total, element).items():
                    values = finish(sums)
                    mean = values.mean() if normalise else 1.0
                    total[dim] += values / mean if mean > 0 else values
        task.progress((done + 1) / len(groups))
    return total


def _is_statistic(task: Task, name: str, node: Node | None, i: int) -> bool:
    """Whether a tensor is only the shift or the running statistics of batch norms."""
    readers = [(node, i)] if node is not None else task.analysis.graph.consumers.get(name, [])
    return all(reader.op == "batch_norm" and place >= 2 for reader, place in readers)


def _by_atom(
    data: Array, layout: Layout, wanted: Mapping[Dim, Floats], element: Callable[[Array], Array]
) -> dict[Dim, Floats]:
    axes = [axis for axis, dim in enumerate(layout) if any(a in wanted for a in atoms(dim))]
    found: dict[Dim, Floats] = {}
    for axis, sums in zip(axes, axis_sums(data, axes, element), strict=True):
        spread(layout[axis], sums, found)
    return {dim: sums for dim, sums in found.items() if dim in wanted}


def axis_sums(data: Array, axes: list[int], element: Callable[[Array], Array]) -> list[Floats]:
    """For each of ``axes`` the sum of ``element(data)`` over all other axes, a block of rows at a time."""
    sums = [np.zeros(data.shape[axis]) for axis in axes]
    if not data.size:
        return sums
    rows = max(1, _BLOCK // max(1, data[0].size if data.ndim else 1))
    for start in range(0, data.shape[0], rows):
        block = element(data[start : start + rows].astype(np.float32, copy=False))
        for found, axis in zip(sums, axes, strict=True):
            part = block.sum(axis=tuple(i for i in range(block.ndim) if i != axis), dtype=np.float64)
            target = found[start : start + rows] if axis == 0 else found
            target += part
    return sums
