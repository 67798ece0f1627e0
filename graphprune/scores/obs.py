"""Optimal Brain Surgeon for whole positions: what consumers lose when one goes and the others make up for it.

A consumer computes W x, H = E[x xᵀ]. Removing the positions g and solving for the rest by least squares costs

    s(g) = tr(W_gᵀ G W_g (H⁻¹)_gg⁻¹)

and leaves W - W_g ((H⁻¹)_gg)⁻¹ (H⁻¹)_g: and a smaller H⁻¹, on which the next removal is judged (Hassibi & Stork, 1992;
for structures "ZipLM", arXiv 2302.04089). The order of removal is the ranking, and what was lost by then the score.
Where data are few, the others seem to make up for anything: the score is scaled to what is lost, some way into the
removal, on the half of the data that is not fitted.

G says what an error of the output costs: the second moment of the gradient of the loss there, half of it as it is and
half of it brought to its mean eigenvalue (few gradients were seen in some directions). With labels drawn from the model
itself this is its Fisher information, and a score is the expected rise of the loss, the same everywhere. An error that
is the same all over a picture meets the sum of the gradients there, not each of them alone: as far as outputs of a
convolution are alike inside of pictures, G is the second moment of that sum. Without gradients G is what makes the
output of a consumer count as one, and errors of different Dims are compared by how far the model's own outputs move
when the half of a Dim that goes first is zeroed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Atom
from graphprune.compensate import unseen
from graphprune.consumers import Consumer, Site, by_atom, consumers
from graphprune.dims import Dim, numbers, take
from graphprune.errors import UsageError
from graphprune.graph import Array, Node
from graphprune.memory import give_back
from graphprune.scores.registry import Floats, Task, score, upper
from graphprune.stats import Moments, merged

DAMPING = 1e-2
_STEPS = 96
"""Removals in which the positions of a Dim go; more at once are judged as if they did not know of each other."""
_CROWDED = 0.8
"""The share of columns that are left at which those that are not are let go."""
_ROWS = 8192
"""Gradients at the output of a consumer after which its metric is known well enough."""
_WIDEST = 2048
"""Outputs up to which the metric is a matrix; of more, its mean eigenvalue."""
_SHRINK = 0.5
_LOOKS = (1 / 8, 3 / 8, 3 / 4)
"""Shares of a Dim that are gone where losses are looked at on other data."""
_DAMPINGS = (1e-2, 1e-1)
"""What is tried there; the better one counts."""
_ENOUGH = 2
"""Samples for each input, of half of the data, with which losses on the data that are fitted are believed."""
Metrics = Mapping[str, Floats]
"""By weight: the metric of the outputs that it makes, [m, m], or one number where that is all that is known."""


@score("obs", needs="data", across="error")
def obs(task: Task) -> dict[Dim, Floats]:
    """Loss after least squares, removed one by one (ZipLM, arXiv 2302.04089), by Fisher where gradients can be had."""
    return _over_atoms(task, _removed)


@score("obspa", needs="data")
def obspa(task: Task) -> dict[Dim, Floats]:
    """Error of each position alone after least squares, a layer's mean one (OBSPA, arXiv 2403.18955).

    In SPA's words OBSPA: with real data ID, with other data OOD, with noise data-free. Its update of the weights that
    stay is graphprune's compensation.
    """
    return _over_atoms(task, lambda atom, sides: np.sum([_mean_one(side.alone()) for side in sides], axis=0))


def _mean_one(values: Floats) -> Floats:
    return values / (values.mean() or 1.0)


def _over_atoms(task: Task, judge: Callable[[Atom, list[_Side]], Floats]) -> dict[Dim, Floats]:
    assert task.moments is not None, "score_atoms has seen to it"
    of = by_atom(consumers(task.analysis), task.atoms)
    moments = task.moments(site for atom in task.atoms for consumer in of.get(atom.dim, ()) for site in consumer.sites)
    metrics = _metrics(task, (consumer for atom in task.atoms for consumer in of.get(atom.dim, ())))
    found: dict[Dim, Floats] = {}
    for done, atom in enumerate(task.atoms):
        sides = [_Side(task, consumer, atom, moments, metrics) for consumer in of.get(atom.dim, ())]
        scores = judge(atom, sides) if sides else np.ones(atom.size)
        found[atom.dim] = scores if metrics else scores * _felt(task, atom, scores, of.get(atom.dim, []), moments)
        task.progress((done + 1) / len(task.atoms))
    return found


def _metrics(task: Task, found: Iterable[Consumer]) -> Metrics:
    """What errors at the outputs of consumers cost; nothing where there are no gradients."""
    if task.signals is None:
        return {}
    wanted = {consumer.weight: consumer for consumer in found}
    names = dict.fromkeys(node.outputs[0] for consumer in wanted.values() for node in consumer.nodes)
    sums = {name: np.zeros(()) for name in wanted}
    seen = batches = 0
    try:
        for signals in task.signals(names) if names else ():
            for name, consumer in wanted.items():
                width = _width(task, consumer)
                sums[name] = sums[name] + sum(_metric(*signals[n.outputs[0]], n, width) for n in consumer.nodes)
            batches += 1
            seen += min(gradient.size // gradient.shape[-1] for _, gradient in signals.values())
            task.progress(min(1.0, seen / _ROWS) / 2)
            if seen >= _ROWS:
                break
    except UsageError as error:
        task.notes.append(f"errors are weighted by how far the outputs move, not by gradients: {error.what}")
        return {}
    give_back()
    return {name: _shrunk(whole / (2 * batches)) for name, whole in sums.items()} if batches else {}


def _width(task: Task, consumer: Consumer) -> int:
    """Outputs of a consumer."""
    shape = task.analysis.graph.weights[consumer.weight].shape
    return next((size for axis, size in enumerate(shape) if axis not in consumer.axes), 1)


def _metric(value: Array, gradient: Array, node: Node, width: int) -> Floats:
    """Sum over a batch of what errors of ``value`` cost, [width, width]; of unknown layout, [1, 1]."""
    axis = 1 if node.convolves else gradient.ndim - 1
    if not gradient.shape[axis] == width <= _WIDEST:
        return _second(gradient.reshape(-1, 1) / np.sqrt(width))
    apart = _second(np.moveaxis(gradient, axis, -1).reshape(-1, width))
    if not node.convolves:
        return apart
    share, places = _alike(value), tuple(range(2, gradient.ndim))
    return (1 - share) * apart + share * _second(gradient.sum(places))


def _alike(value: Array) -> float:
    """The share of the variance of channels [n, channels, ...] that is between pictures, not inside of them."""
    flat = value.reshape(*value.shape[:2], -1).astype(np.float64)
    flat = flat - flat.mean((0, 2), keepdims=True)
    whole = float(np.square(flat).mean(2).sum())
    return float(np.square(flat.mean(2)).sum()) / whole if whole > 0 else 1.0


def _second(rows: Array) -> Floats:
    return np.asarray(rows.T @ rows, np.float64)


def _shrunk(metric: Floats) -> Floats:
    mean = float(np.trace(metric)) / len(metric)
    return np.asarray((1 - _SHRINK) * metric + _SHRINK * mean * np.eye(len(metric)), np.float64)


def _felt(task: Task, atom: Atom, scores: Floats, found: list[Consumer], moments: Mapping[Site, Moments]) -> float:
    """How far the model's outputs move, squared, for each unit of error of the consumers; 1 where it cannot be run."""
    kept = upper(atom.dim, scores)
    if task.drift is None or not found:
        return 1.0
    error = 0.0
    for consumer in found:
        side = _Side(task, consumer, atom, moments, {})
        at = np.setdiff1d(np.arange(side.root.shape[1]), take(consumer.dim, kept))
        second = merged([moments[site] for site in consumer.sites]).raw[np.ix_(at, at)]
        error += float(np.einsum("ij,jk,ik->", side.root[:, at], second, side.root[:, at], optimize=True))
    moved = task.drift(kept) ** 2
    return moved / error if error > 0 and moved > 0 else 1.0


class _Side:
    """One consumer of an atom, while positions are removed from it.

    ``root`` [r, n] times its transpose from the left is WᵀGW, ``inverse`` [n, n] is H⁻¹; what was removed is zero in
    both, not ``live``, and let go now and then; it stays in ``whole``. ``columns`` are those of each position there,
    ``place`` says where they are now.
    """

    def __init__(
        self, task: Task, consumer: Consumer, atom: Atom, moments: Mapping[Site, Moments], metrics: Metrics
    ) -> None:
        seen = merged([moments[site] for site in consumer.sites])
        second = seen.raw
        weight = consumer.matrix(task.analysis.read(consumer.weight))
        size = float(np.einsum("ij,ij->", weight @ second, weight))
        metric = metrics.get(consumer.weight, np.eye(1) / size if size > 0 else np.zeros((1, 1)))
        taps = len(weight) // len(metric) if len(metric) > 1 else 1
        self.root = _root(weight, np.asarray(np.kron(metric, np.eye(taps)), np.float64))
        self.whole, self.seen = self.root.copy(), seen
        ridge = DAMPING * float(np.trace(second)) / len(second) or 1.0
        self.inverse: Floats = np.asarray(np.linalg.inv(second + ridge * np.eye(len(second))), np.float64)
        self.convolved = any(node.convolves for node in consumer.nodes)
        labels = numbers(consumer.dim, atom.dim)
        self.columns = [np.flatnonzero(labels == position + 1) for position in range(atom.size)]
        self.place, self.live = np.arange(len(labels)), np.ones(len(labels), bool)

    def alone(self) -> Floats:
        """What removing each position alone would cost."""
        return self.losses(list(range(len(self.columns))))

    def losses(self, positions: list[int]) -> Floats:
        """What removing each of ``positions`` would cost now."""
        widths = {len(self.columns[p]) for p in positions}
        if widths == {1}:
            at = self._at(positions)
            return np.asarray(np.square(self.root).sum(0)[at] / self.inverse[at, at], np.float64)
        if len(widths) > 1:
            return np.array([self.losses([p])[0] for p in positions])
        at = self._at(positions).reshape(len(positions), -1)
        roots = self.root[:, at].transpose(1, 2, 0)
        blocks = self.inverse[at[:, :, None], at[:, None, :]]
        return np.asarray(np.trace(np.linalg.solve(blocks, roots @ roots.swapaxes(1, 2)), axis1=1, axis2=2), np.float64)

    @property
    def few(self) -> bool:
        """Whether what is fitted may be fitted too well: inputs are many for the data, or places of few pictures."""
        return self.convolved or self.seen.count < 2 * _ENOUGH * self.whole.shape[1]

    def unseen(self, going: Sequence[int]) -> float:
        """What is lost on the half of the data that is not fitted without the positions ``going``."""
        halves = self.seen.halves
        assert halves is not None, "_missed has seen to it"
        fitted, other = (half.raw for half in halves)
        gone = np.concatenate([self.columns[position] for position in going])
        kept = np.setdiff1d(np.arange(len(fitted)), gone)
        return float(unseen(self.whole, fitted, other, kept, _DAMPINGS).min())

    def remove(self, positions: list[int]) -> None:
        """Take the positions away and let the others make up for them."""
        at = self._at(positions)
        spread = np.linalg.solve(self.inverse[np.ix_(at, at)], self.inverse[at])
        self.root -= self.root[:, at] @ spread
        self.inverse -= self.inverse[:, at] @ spread
        self.inverse[at], self.inverse[:, at], self.root[:, at] = 0.0, 0.0, 0.0
        self.live[at] = False
        if self.live.mean() < _CROWDED:
            self.root, self.inverse = self.root[:, self.live], self.inverse[np.ix_(self.live, self.live)]
            self.place, self.live = (np.cumsum(self.live) - 1)[self.place], np.ones(len(self.inverse), bool)

    def _at(self, positions: Sequence[int]) -> npt.NDArray[np.int64]:
        """Where the columns of ``positions`` are now."""
        return np.asarray(self.place[np.concatenate([self.columns[position] for position in positions])])


def _root(weight: Floats, metric: Floats) -> Floats:
    """A matrix of at most n rows whose transpose times itself is WᵀGW."""
    if len(metric) == 1 and len(weight) <= weight.shape[1]:
        return np.asarray(np.sqrt(metric[0, 0]) * weight, np.float64)
    if len(weight) <= weight.shape[1]:
        values, vectors = np.linalg.eigh(metric)
        return np.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * (vectors.T @ weight), np.float64)
    gram = weight.T @ (metric[0, 0] * weight if len(metric) == 1 else metric @ weight)
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T, np.float64)


def _removed(atom: Atom, sides: list[_Side]) -> Floats:
    """For each position the loss by the time it goes, never less than before; twice the most for the one that stays."""
    left = list(range(atom.size))
    order: list[int] = []
    lost: list[float] = []
    step = max(1, atom.size // _STEPS)
    while len(left) > 1:
        losses = np.sum([side.losses(left) for side in sides], axis=0)
        going = np.argsort(losses, kind="stable")[: min(step, len(left) - 1)]
        lost += losses[going].tolist()
        order += [left[i] for i in going]
        for side in sides:
            side.remove([left[i] for i in going])
        gone = set(going.tolist())
        left = [p for i, p in enumerate(left) if i not in gone]
    losses = np.maximum.accumulate(lost)
    scores = np.empty(atom.size)
    scores[order] = np.maximum.accumulate(losses * _missed(sides, order, losses))
    scores[left] = 2 * max(scores[order], default=0.0) or 1.0
    return scores


def _missed(sides: Sequence[_Side], order: Sequence[int], losses: Floats) -> Floats:
    """By how much to scale ``losses``, one for each of ``order``, to have those on data that were not fitted."""
    counts = sorted({round(share * len(order)) for share in _LOOKS} - {0})
    if not counts or not any(side.few for side in sides) or any(side.seen.half is None for side in sides):
        return np.ones(len(order))
    sums = np.cumsum(losses)[np.array(counts) - 1]
    held = np.array([sum(side.unseen(order[:count]) for side in sides) for count in counts])
    ratios = np.divide(held, sums, out=np.ones(len(counts)), where=sums > 0)
    return np.asarray(np.interp(np.arange(1, len(order) + 1), counts, ratios), np.float64)
