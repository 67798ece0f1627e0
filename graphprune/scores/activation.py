"""Scores from activations: what the weights that read a Dim are given, by its moments.

A consumer multiplies an activation x with a weight W [m, n]. Each score makes one number a position of W and of
E[x xᵀ], E[x] and E[|x|]. A position has several columns where the axis is a product (a head has all of its own), and
where a convolution reads a window. Each consumer is brought to a mean of one, so that a large one does not drown a
small one, and they are added up. A Dim that no weight reads alone is scored by l2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from graphprune.analysis import Atom
from graphprune.consumers import Consumer, Site, by_atom, consumers
from graphprune.dims import Dim, Positions, numbers
from graphprune.scores.registry import Floats, Task, score, upper
from graphprune.scores.weight import l2, over_blocks, relative
from graphprune.stats import Moments, merged


@score("wanda-sp", needs="data")
def wanda_sp(task: Task) -> dict[Dim, Floats]:
    """Mean |weight| x norm of the input, summed a position (Wanda, arXiv 2306.11695; as in FLAP, arXiv 2312.11983)."""
    return over_consumers(task, lambda side: side.sums(np.abs(side.weight).mean(0) * side.size))


@score("flap", needs="data", across="same")
def flap(task: Task) -> dict[Dim, Floats]:
    """Variance of the input x squared norm of its column, standardised a layer (FLAP, arXiv 2312.11983).

    Heads and neurons are ranked together, as in the paper, and what each frees is counted by the budget. A head has the
    mean of its columns, which are squared before, as in the authors' code. Several consumers of a Dim are averaged.
    """

    def fluctuation(side: Side) -> Floats:
        raw = np.diag(side.moments.covariance) * np.square(side.weight).sum(0)
        columns = _standard(np.square(raw) if side.channels > 1 else raw)
        return side.sums(columns) / side.sums(np.ones_like(columns))

    found = {dim: np.mean([fluctuation(side) for side in sides], axis=0) for dim, sides in _read(task)}
    return {**found, **{dim: _standard(values) for dim, values in _unread(task, found).items()}}


def _standard(values: Floats) -> Floats:
    deviation = values.std()
    return np.asarray((values - values.mean()) / (deviation if deviation > 0 else 1.0), np.float64)


@score("cfsp", needs="data", across="error")
def cfsp(task: Task) -> dict[Dim, Floats]:
    """Relative weight x norm of the input, times how much its block matters (CFSP, arXiv 2409.13199).

    Fine: each weight over the sum of its row. Coarse: a Dim's scores add up to how far the outputs move when the lower
    half of it is zeroed, where there are inputs to see that on. The paper has the angle between what goes into a block
    and what comes out; graphprune knows no blocks.
    """

    def fine(side: Side) -> Floats:
        rows = np.abs(side.weight).sum(1, keepdims=True)
        return side.sums((np.abs(side.weight) / np.where(rows > 0, rows, 1.0)).sum(0) * side.size)

    found = over_consumers(task, fine)
    return {dim: values / (values.sum() or 1.0) * _coarse(task, dim, values) for dim, values in found.items()}


def _coarse(task: Task, dim: Dim, values: Floats) -> float:
    if task.drift is None:
        return 1.0
    return task.drift(upper(dim, values))


@score("amp", needs="data")
def amp(task: Task) -> dict[Dim, Floats]:
    """Size of what a position adds to each output, summed over outputs (AMP, arXiv 2504.21174).

    Root mean square over inputs, which moments give, for the paper's mean of absolute values.
    """
    return over_consumers(task, _added)


def _added(side: Side) -> Floats:
    at = np.stack(side.columns)
    weight, second = side.weight[:, at], side.moments.raw[at[:, :, None], at[:, None, :]]
    squares = np.einsum("opi,pij,opj->po", weight, second, weight, optimize=True)
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)).sum(1), np.float64)


@score("minitron", needs="data")
def minitron(task: Task) -> dict[Dim, Floats]:
    """Norm of the activations of a head, neuron or embedding channel (Minitron, arXiv 2407.14679: l2)."""
    return over_consumers(task, lambda side: np.sqrt(side.sums(np.square(side.size))))


@score("minitron-mean", needs="data")
def minitron_mean(task: Task) -> dict[Dim, Floats]:
    """Mean size of the activations of a head, neuron or embedding channel (Minitron, arXiv 2407.14679: mean)."""
    return over_consumers(task, lambda side: side.sums(side.moments.absolute / max(1, side.moments.count)))


@score("comp", needs="data")
def comp(task: Task) -> dict[Dim, Floats]:
    """Condition number of a layer's output with respect to a position (after COMP, arXiv 2501.15255).

    The paper scores neurons by a matrix condition, which is not followed term by term. Here it is what a relative
    change of the activations x of a position can do to the output W x: the spectral norm of its columns of W times the
    norm of x. The norm of the output, by which both are divided, is the same for all positions and drops out.
    """

    def condition(side: Side) -> Floats:
        gains = np.array([float(np.linalg.norm(side.weight[:, at], 2)) for at in side.columns])
        return gains * np.sqrt(side.sums(np.square(side.size)))

    return over_consumers(task, condition)


@score("beta-rank", needs="data")
def beta_rank(task: Task) -> dict[Dim, Floats]:
    """Sum of |weights| of a filter x deviation of its output over that of its input (Beta-Rank, arXiv 2304.07461).

    From 0 to 1 in each Dim, as in the paper: so the deviation of the input, which all filters of a layer share, is left
    out. The output is what the next layer reads.
    """
    weights = over_blocks(task, lambda blocks: np.abs(blocks).sum((1, 2)), makers=True)
    outputs = over_consumers(task, lambda side: np.sqrt(side.sums(np.maximum(np.diag(side.moments.covariance), 0.0))))
    found = {dim: weights[dim] * outputs[dim] for dim in weights}
    return {dim: (values - values.min()) / (np.ptp(values) or 1.0) for dim, values in found.items()}


@dataclass(frozen=True)
class Side:
    """One consumer of an atom: its weight [m, n], moments of what it reads, and the columns of each position.

    ``channels`` of them are a position's, at each element of a window: one, or all that a head has.
    """

    weight: Floats
    moments: Moments
    columns: list[Positions]
    channels: int

    @property
    def size(self) -> Floats:
        """√E[x²], [n]."""
        return np.asarray(np.sqrt(np.maximum(np.diag(self.moments.raw), 0.0)), np.float64)

    def sums(self, values: Floats) -> Floats:
        """``values``, one a column, added up over the columns of each position."""
        return np.array([values[at].sum() for at in self.columns])


def _side(task: Task, consumer: Consumer, atom: Atom, moments: Mapping[Site, Moments]) -> Side:
    weight = consumer.matrix(task.analysis.read(consumer.weight))
    labels = numbers(consumer.dim, atom.dim)
    columns = [np.flatnonzero(labels == position + 1) for position in range(atom.size)]
    channels = int(np.count_nonzero(numbers(consumer.channels, atom.dim) == 1))
    return Side(weight, merged([moments[site] for site in consumer.sites]), columns, channels)


def over_consumers(task: Task, judge: Callable[[Side], Floats]) -> dict[Dim, Floats]:
    """Add up what ``judge`` makes of each consumer of an atom, [size], brought to a mean of one."""
    found = {dim: np.sum([relative(judge(side)) for side in sides], axis=0) for dim, sides in _read(task)}
    return {**found, **_unread(task, found)}


def _read(task: Task) -> Iterator[tuple[Dim, list[Side]]]:
    """Each atom that weights read, and its sides, one atom at a time."""
    assert task.moments is not None, "score_atoms has seen to it"
    of = by_atom(consumers(task.analysis), task.atoms)
    moments = task.moments(site for atom in task.atoms for consumer in of.get(atom.dim, ()) for site in consumer.sites)
    for done, atom in enumerate(task.atoms):
        if atom.dim in of:
            yield atom.dim, [_side(task, consumer, atom, moments) for consumer in of[atom.dim]]
        task.progress((done + 1) / len(task.atoms))


def _unread(task: Task, found: Mapping[Dim, Floats]) -> dict[Dim, Floats]:
    """l2 of the atoms that are not in ``found``."""
    missing = [atom for atom in task.atoms if atom.dim not in found]
    return l2(Task(task.analysis, missing)) if missing else {}
