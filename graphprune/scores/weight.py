"""Scores that look at weights alone.

As in SPA (arXiv 2403.18955) the importance of a position is summed over all weights its Dim lives in, each weight
normalised to a mean of one first, so that a large tensor does not drown a small one. Weights are read one at a time.

A batch norm's running mean and variance are statistics, not weights, and its shift speaks against a channel as often as
for it (a large negative one turns it off): none of the three is scored. `python -m tools.bench_scores` shows what a
score keeps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, permutations

import numpy as np

from graphprune.analysis import Atom
from graphprune.consumers import consumers
from graphprune.dims import Dim, atoms, numbers, resolve, tally
from graphprune.graph import Array, Node
from graphprune.scores.registry import Floats, Task, score
from graphprune.signature import Layout

_BLOCK = 1 << 24
_TINY = 1e-30


@score("l1")
def l1(task: Task) -> dict[Dim, Floats]:
    """Sum of absolute weights (Li et al., "Pruning Filters for Efficient ConvNets", arXiv 1608.08710)."""
    return over_weights(task, np.abs, lambda total: total)


@score("l2")
def l2(task: Task) -> dict[Dim, Floats]:
    """Euclidean norm of the weights (He et al., "Soft Filter Pruning", arXiv 1808.06866)."""
    return over_weights(task, np.square, np.sqrt)


@score("lamp", across="same")
def lamp(task: Task) -> dict[Dim, Floats]:
    """Squared weights over those of all positions that are no smaller (LAMP, Lee et al., arXiv 2010.07611).

    Of whole positions, over all weights of a Dim, where the paper has single weights of a layer.
    """
    found = over_weights(task, np.square, lambda total: total)
    return {dim: _over_larger(squares) for dim, squares in found.items()}


def _over_larger(squares: Floats) -> Floats:
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]
    shares = np.zeros_like(squares)
    np.divide(squares[order], left, out=shares, where=left > 0)
    return shares[np.argsort(order)]


@score("fpgm")
def fpgm(task: Task) -> dict[Dim, Floats]:
    """Distance to all other positions: far from the geometric median (FPGM, He et al., arXiv 1811.00250)."""
    return over_blocks(task, lambda blocks: _distances(blocks.reshape(len(blocks), -1)))


def _distances(rows: Floats) -> Floats:
    products = rows @ rows.T
    squares = np.diag(products)
    apart = squares[:, None] + squares - 2 * products
    np.fill_diagonal(apart, 0.0)
    return np.asarray(np.sqrt(np.maximum(apart, 0.0)).sum(1), np.float64)


@score("maw")
def maw(task: Task) -> dict[Dim, Floats]:
    """Largest weight plus size of the smallest, of the rows that make a position (MAW, Martra, arXiv 2512.22671).

    The paper has the gate and up projections of gated layers: here, all weights that do not sum over the Dim.
    """
    return over_blocks(
        task, lambda blocks: blocks.max((1, 2)) + np.abs(blocks.min((1, 2))), makers=True, normalise=False
    )


@score("path")
def path(task: Task) -> dict[Dim, Floats]:
    """Energy of the largest path of weights through a position (after "The Super Weight", Yu et al., arXiv 2411.07191).

    The largest weight that makes it times the largest that reads it, squared; of several weights that make it (gate and
    up projections), or that read it, the geometric mean. The paper finds that single weights carry activations which
    the rest of a language model stands on: norms drown them, and inputs that are all alike never show them.
    """
    sides: dict[tuple[Dim, bool], list[Floats]] = defaultdict(list)
    for dim, read, logs in _judged(task, lambda blocks: np.log(np.abs(blocks).max((1, 2)) + _TINY)):
        sides[dim, read].append(logs)
    found = {atom.dim: np.zeros(atom.size) for atom in task.atoms}
    for (dim, _), logs_of in sides.items():
        found[dim] += 2 * np.mean(logs_of, axis=0)
    return _or_l2(task, {dim: np.exp(logs) if logs.any() else logs for dim, logs in found.items()})


@score("prunenet")
def prunenet(task: Task) -> dict[Dim, Floats]:
    """How far the singular values move without a position, to first order (after PruneNet, arXiv 2501.15296).

    The paper learns a policy that keeps the spectrum of a weight. What it is rewarded for is scored here directly: with
    W = U S Vᵀ, removing row i shrinks singular value k by about U_ik² S_k / 2, and the score is the sum over k.
    """
    return over_blocks(task, _spectral_shift)


def _spectral_shift(blocks: Floats) -> Floats:
    left, values, _ = np.linalg.svd(blocks.reshape(-1, blocks.shape[-1]), full_matrices=False)
    shifts = np.square(left) @ values / 2
    return np.asarray(shifts.reshape(len(blocks), -1).sum(1), np.float64)


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
    return _or_l2(task, found)


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
    total = {atom.dim: np.zeros(atom.size) for atom in task.atoms}
    parts = {part for dim in total for part in atoms(dim)}
    groups = [(name, list(uses)) for name, uses in groupby(task.analysis.uses, key=lambda use: use[0])]
    for done, (name, uses) in enumerate(groups):
        weight, own = task.analysis.meant(name)
        layouts = [
            layout if own is None or node is not None else own
            for _, node, i, layout in uses
            if not _is_statistic(task, name, node, i) and any(a in parts for dim in layout for a in atoms(dim))
        ]
        if layouts and weight is not None and (only is None or name in only):
            data = trained(weight.load())
            seen = data if read is None else read(name, data)
            for layout in layouts:
                if seen is None:
                    break
                for dim, sums in _by_atom(seen, layout, total, element).items():
                    values = finish(sums)
                    total[dim] += relative(values) if normalise else values
        task.progress((done + 1) / len(groups))
    return total


def over_blocks(
    task: Task, judge: Callable[[Floats], Floats], *, makers: bool = False, normalise: bool = True
) -> dict[Dim, Floats]:
    """Add up what ``judge`` makes of each weight along each axis of an atom: [size, rows, rest] to [size].

    A position has several rows where the axis is a product (a head) or holds the atom more than once. Vectors have no
    rows to compare and are left out; with ``makers`` so are axes that are summed over. l2 stands in where none is left.
    """
    total = {atom.dim: np.zeros(atom.size) for atom in task.atoms}
    for dim, read, values in _judged(task, judge):
        if not (makers and read):
            total[dim] += relative(values) if normalise else values
    return _or_l2(task, total)


def _judged(task: Task, judge: Callable[[Floats], Floats]) -> Iterator[tuple[Dim, bool, Floats]]:
    """An atom, whether a weight sums over it (reads it) or makes it, and what ``judge`` says of that weight, [size]."""
    wanted = {atom.dim: atom for atom in task.atoms}
    summed = {(consumer.weight, consumer.axes[0]) for consumer in consumers(task.analysis)}
    for done, (name, _, _, stored) in enumerate(task.analysis.uses):
        weight, own = task.analysis.meant(name)
        layout = own or stored
        held = {axis: set(atoms(layout[axis])) for axis in range(len(layout)) if len(layout) > 1}
        places = [(axis, dim) for axis in held for dim in wanted if held[axis].issuperset(atoms(dim))]
        if places and weight is not None:
            data = trained(weight.load())
            for axis, dim in places:
                yield dim, (name, axis) in summed, judge(_blocks(data, axis, layout[axis], wanted[dim]))
        task.progress((done + 1) / len(task.analysis.uses))


def _or_l2(task: Task, found: dict[Dim, Floats]) -> dict[Dim, Floats]:
    """``found``, by l2 where nothing was."""
    missing = [atom for atom in task.atoms if not found[atom.dim].any()]
    return {**found, **l2(replace(task, atoms=missing))} if missing else found


def _blocks(data: Array, axis: int, dim: Dim, atom: Atom) -> Floats:
    """The rows of a weight along ``axis``, those of each position of ``atom`` together: [size, rows, rest]."""
    labels = numbers(resolve(dim), atom.dim)
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels == 0) :]
    rows = np.moveaxis(data, axis, 0).astype(np.float64)[order]
    return rows.reshape(atom.size, len(order) // atom.size, -1)


def trained(data: Array) -> Array:
    """``data`` with zeros in place of the lowest number of its type: an exporter folded a mask into it."""
    masked = data == np.finfo(data.dtype).min if data.dtype.kind == "f" else np.zeros((), bool)
    return np.where(masked, data.dtype.type(0), data) if masked.any() else data


def relative(values: Floats) -> Floats:
    """``values`` brought to a mean of one, unless they are all zero."""
    mean = values.mean()
    return values / mean if mean > 0 else values


def _is_statistic(task: Task, name: str, node: Node | None, i: int) -> bool:
    """Whether a tensor is only the shift or the running statistics of batch norms."""
    readers = [(node, i)] if node is not None else task.analysis.graph.consumers.get(name, [])
    return all(reader.op == "batch_norm" and place >= 2 for reader, place in readers)


def _by_atom(
    data: Array, layout: Layout, wanted: Mapping[Dim, Floats], element: Callable[[Array], Array]
) -> dict[Dim, Floats]:
    held, parts = [set(atoms(dim)) for dim in layout], {part for dim in wanted for part in atoms(dim)}
    alone = [(axis,) for axis, dims in enumerate(held) if dims & parts]
    apart = [
        (pair, i, j)
        for pair in wanted
        if pair.kind == "product"
        for i, j in permutations(range(len(layout)), 2)
        if pair.parts[0] in held[i] - held[j] and pair.parts[1] in held[j]
    ]
    sums = axis_sums(data, [*alone, *((min(i, j), max(i, j)) for _, i, j in apart)], element)
    found: dict[Dim, Floats] = defaultdict(lambda: np.zeros(()))
    for (axis,), values in zip(alone, sums, strict=False):
        for dim, part in tally(layout[axis], values, wanted).items():
            found[dim] = found[dim] + part
    for (pair, i, j), values in zip(apart, sums[len(alone) :], strict=True):
        outer, inner = (numbers(layout[axis], part) for axis, part in zip((i, j), pair.parts, strict=True))
        grid = np.zeros([part.extent + 1 for part in pair.parts])
        np.add.at(grid, np.ix_(outer, inner), values if i < j else values.T)
        found[pair] = found[pair] + grid[1:, 1:].ravel()
    return found


def axis_sums(data: Array, axes: Sequence[tuple[int, ...]], element: Callable[[Array], Array]) -> list[Floats]:
    """For each of ``axes`` (ascending) the sum of ``element(data)`` over all others, a block of rows at a time."""
    sums = [np.zeros([data.shape[axis] for axis in group]) for group in axes]
    if not data.size:
        return sums
    rows = max(1, _BLOCK // max(1, data[0].size if data.ndim else 1))
    for start in range(0, data.shape[0], rows):
        block = element(data[start : start + rows].astype(np.float32, copy=False))
        for found, group in zip(sums, axes, strict=True):
            part = block.sum(axis=tuple(i for i in range(block.ndim) if i not in group), dtype=np.float64)
            target = found[start : start + rows] if 0 in group else found
            target += part
    return sums
