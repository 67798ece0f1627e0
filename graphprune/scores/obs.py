"""Optimal Brain Surgeon for whole positions: what consumers lose when one goes and the others make up for it.

A consumer computes W x, H = E[x xᵀ]. Removing the positions g and solving for the rest by least squares costs

    s(g) = tr(W_g ((H⁻¹)_gg)⁻¹ W_gᵀ)

and leaves W - W_g ((H⁻¹)_gg)⁻¹ (H⁻¹)_g: and a smaller H⁻¹, on which the next removal is judged (Hassibi & Stork, 1992;
for structures "ZipLM", arXiv 2302.04089). The order of removal is the ranking, and what was lost by then the score, so
that a score is an error: of the outputs of all consumers, relative to the size of those outputs. Where inputs are at
hand to run the model on, it is brought to what the model's own outputs feel: by how much they move when the half of the
Dim that goes first is zeroed, for what that does to the consumers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Atom
from graphprune.consumers import Consumer, Site, by_atom, consumers
from graphprune.dims import Dim, numbers
from graphprune.scores.registry import Floats, Task, score
from graphprune.stats import Moments, merged

DAMPING = 1e-2
_STEPS = 128
"""Removals in which the positions of a Dim go; more at once are judged as if they did not know of each other."""


@score("obs", needs="data", errors=True)
def obs(task: Task) -> dict[Dim, Floats]:
    """Error of the outputs after least squares, removed one by one (ZipLM, arXiv 2302.04089; SPA, arXiv 2403.18955)."""
    assert task.moments is not None, "score_atoms has seen to it"
    of = by_atom(consumers(task.analysis))
    moments = task.moments(site for atom in task.atoms for consumer in of.get(atom.dim, ()) for site in consumer.sites)
    found: dict[Dim, Floats] = {}
    for done, atom in enumerate(task.atoms):
        sides = [_Side(task, consumer, atom, moments) for consumer in of.get(atom.dim, ())]
        whole = [(side.gram * side.second, side.columns) for side in sides]
        scores = _removed(atom, sides)
        found[atom.dim] = scores * _felt(task, atom, scores, whole)
        task.progress((done + 1) / len(task.atoms))
    return found


def _felt(task: Task, atom: Atom, scores: Floats, whole: list[tuple[Floats, list[npt.NDArray[np.int64]]]]) -> float:
    """How far the model's outputs move, squared, for each unit of error of the consumers; 1 where it cannot be run."""
    if task.drift is None or not whole:
        return 1.0
    order = np.argsort(scores, kind="stable")
    going, kept = order[: max(1, atom.size // 2)], order[max(1, atom.size // 2) :]
    if not len(kept):
        return 1.0
    error = 0.0
    for products, columns in whole:
        at = np.concatenate([columns[p] for p in going])
        error += float(products[np.ix_(at, at)].sum())
    moved = task.drift({atom.dim: np.sort(kept)}) ** 2
    return moved / error if error > 0 and moved > 0 else 1.0


class _Side:
    """One consumer of an atom, while positions are removed from it: WᵀW and H⁻¹ of those that are left."""

    def __init__(self, task: Task, consumer: Consumer, atom: Atom, moments: Mapping[Site, Moments]) -> None:
        second = merged([moments[site] for site in consumer.sites]).raw
        data = np.moveaxis(task.analysis.graph.weights[consumer.weight].load(), consumer.axis, -1)
        weight = data.astype(np.float64).reshape(-1, data.shape[-1])
        size = float(np.einsum("ij,ij->", weight @ second, weight))
        self.gram: Floats = weight.T @ weight / size if size > 0 else np.zeros_like(second)
        self.second: Floats = second
        ridge = DAMPING * float(np.trace(second)) / len(second) or 1.0
        self.inverse: Floats = np.asarray(np.linalg.inv(second + ridge * np.eye(len(second))), np.float64)
        labels = numbers(consumer.dim, atom.dim)
        self.columns = [np.flatnonzero(labels == position + 1) for position in range(atom.size)]
        self.left = np.arange(len(second))

    def _at(self, positions: list[int]) -> npt.NDArray[np.int64]:
        """Where the columns of ``positions`` are in the matrices now."""
        return np.searchsorted(self.left, np.concatenate([self.columns[p] for p in positions]))

    def losses(self, positions: list[int]) -> Floats:
        """What removing each of ``positions`` alone would cost now."""
        if all(len(self.columns[p]) == 1 for p in positions):
            at = self._at(positions)
            return np.asarray(self.gram[at, at] / self.inverse[at, at], np.float64)
        return np.array([self._loss(self._at([p])) for p in positions])

    def _loss(self, at: npt.NDArray[np.int64]) -> float:
        block = np.ix_(at, at)
        return float(np.trace(np.linalg.solve(self.inverse[block], self.gram[block])))

    def remove(self, positions: list[int]) -> None:
        """Take the positions away and let the others make up for them."""
        at = self._at(positions)
        rest = np.delete(np.arange(len(self.left)), at)
        inner, across, block = np.ix_(rest, rest), np.ix_(rest, at), np.ix_(at, at)
        spread = np.linalg.solve(self.inverse[block], self.inverse[across].T)
        moved = self.gram[across] @ spread
        self.gram = self.gram[inner] - moved - moved.T + spread.T @ (self.gram[block] @ spread)
        self.inverse = self.inverse[inner] - self.inverse[across] @ spread
        self.left = self.left[rest]


def _removed(atom: Atom, sides: list[_Side]) -> Floats:
    """For each position the loss by the time it goes, never less than before."""
    scores = np.zeros(atom.size)
    left, lost = list(range(atom.size)), 0.0
    step = max(1, atom.size // _STEPS)
    while len(left) > 1 and sides:
        losses = np.sum([side.losses(left) for side in sides], axis=0)
        going = np.argsort(losses, kind="stable")[: min(step, len(left) - 1)]
        for i in going:
            lost = max(lost, float(losses[i]))
            scores[left[i]] = lost
        for side in sides:
            side.remove([left[i] for i in going])
        left = [p for i, p in enumerate(left) if i not in set(going.tolist())]
    scores[left] = 2 * lost or 1.0
    return scores
