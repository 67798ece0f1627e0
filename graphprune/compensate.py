"""Compensation: the weights that stay make up for the positions that go.

A consumer computes W x. When only the positions K of x stay, the W_K' that comes closest over the calibration data is a
least-squares solution, and second moments of x are all that it takes (Optimal Brain Surgeon, Hassibi & Stork 1992; its
structured form in ZipLM, arXiv 2302.04089, and OSSCAR, arXiv 2403.12983):

    W_K' = (W H[:, K] + δ W_K) (H[K, K] + δ I)⁻¹        H = E[x xᵀ], δ = damping times the mean of diag H[K, K]

The second δ pulls towards the weights as they were, so that directions the data never show stay as they are. Where the
consumer has a bias, H is the covariance, and the bias takes up the change of the mean (a batch norm that follows has
one: its running mean). The bias alone is FLAP's compensation (arXiv 2312.11983): W_K stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis
from graphprune.consumers import Consumer, Site, consumers
from graphprune.dims import Chosen, followed, take, touched
from graphprune.graph import Array, Graph, Node
from graphprune.stats import Moments, merged

Floats = npt.NDArray[np.float64]
How = Literal["least-squares", "sequential", "bias"]
DAMPING = 0.1
REMEMBERED, GUESSED = 1e-2, 1.0
"""Without data: of a model that has batch norms, and of others."""
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
LOOKED_AT = 8
"""Consumers that the choice of the damping is made on."""
_NONE = 1e-9
"""Relative errors up to which there is nothing left to lose."""


class Bias(NamedTuple):
    """The vector ``name`` that is added to what a consumer computes, or with ``sign`` -1 taken from it."""

    name: str
    sign: int = 1


class Changed(NamedTuple):
    """New ``values`` of weights and biases by name, and new biases to ``add`` to activations, by theirs."""

    values: dict[str, Array]
    add: dict[str, Array]


def compensate(
    analysis: Analysis,
    chosen: Chosen,
    moments: Mapping[Site, Moments],
    damping: float = DAMPING,
    how: How = "least-squares",
) -> list[Changed]:
    """What becomes of the weights and biases of consumers that lose positions, at full size; a part for each."""
    parts = (refit(analysis, c, take(c.dim, chosen), moments, damping, how) for c in losing(analysis, chosen))
    return [part for part in parts if part.values or part.add]


def together(parts: Sequence[Changed]) -> Changed:
    """All of ``parts`` as one."""
    values, add = ({name: value for part in parts for name, value in part[i].items()} for i in range(2))
    return Changed(values, add)


def losing(analysis: Analysis, chosen: Chosen) -> list[Consumer]:
    """The consumers that lose positions, the same ones for all of their outputs."""
    return [consumer for consumer in consumers(analysis) if loses(consumer, chosen)]


def loses(consumer: Consumer, chosen: Chosen) -> bool:
    """Whether ``consumer`` loses positions, the same ones for all of its outputs."""
    return touched(consumer.dim, chosen) and not followed(consumer.dim, chosen)


def best_damping(analysis: Analysis, chosen: Chosen, moments: Mapping[Site, Moments]) -> float:
    """The damping that does best on the half of the data that was not fitted, at some of the consumers.

    It has the least product of errors: what a damping does to each consumer counts as a share of the consumer's own
    error, or a few that nothing helps would decide for all. Half of that is right for twice the data. Where there are
    no halves: DAMPING for one batch; without data little if batch norms remember some, else much.
    """
    found = [c for c in losing(analysis, chosen) if all(site in moments for site in c.sites)]
    some = found[:: -(-len(found) // LOOKED_AT)] if found else []
    errors = [_held_out(analysis, consumer, take(consumer.dim, chosen), moments) for consumer in some]
    known = [np.log(np.maximum(error, _NONE)) for error in errors if error is not None]
    if known:
        return float(DAMPINGS[int(np.argmin(np.sum(known, axis=0)))]) / 2
    if any(merged([moments[site] for site in consumer.sites]).count > 1 for consumer in some):
        return DAMPING
    return REMEMBERED if analysis.graph.remembers else GUESSED


def _held_out(
    analysis: Analysis, consumer: Consumer, kept: npt.NDArray[np.int64], moments: Mapping[Site, Moments]
) -> Floats | None:
    """The relative error on the half of the data that was not fitted, for each of DAMPINGS."""
    halves = merged([moments[site] for site in consumer.sites]).halves
    if halves is None:
        return None
    biased = bias_of(analysis, consumer) is not None
    fitted, other = (half.covariance if biased else half.raw for half in halves)
    weight = consumer.matrix(analysis.read(consumer.weight))
    whole = _size(weight, other) or 1.0
    return unseen(weight, fitted, other, kept, DAMPINGS) / whole


def unseen(
    weight: Floats, fitted: Floats, other: Floats, kept: npt.NDArray[np.int64], dampings: Sequence[float]
) -> Floats:
    """What W [m, n] loses on data of the second moment ``other`` when ``kept`` stay, solved for those of ``fitted``.

    One number for each of ``dampings``.
    """
    inner, cross, losses = fitted[np.ix_(kept, kept)], weight @ fitted[:, kept], []
    for damping in dampings:
        lost = weight.copy()
        lost[:, kept] -= ridged(weight[:, kept], cross, inner, damping)
        losses.append(_size(lost, other))
    return np.array(losses)


def _size(weight: Floats, second: Floats) -> float:
    return float(np.einsum("ij,ij->", weight @ second, weight))


def solve(weight: Floats, second: Floats, kept: npt.NDArray[np.int64], damping: float) -> Floats:
    """W_K' [m, k] for W [m, n] and H [n, n] when the positions ``kept`` stay.

    >>> twice = np.array([[1.0, 2.0], [2.0, 4.0]])  # the second position is always twice the first
    >>> solve(np.array([[1.0, 1.0]]), twice, np.array([0]), 0.0).tolist()
    [[3.0]]
    """
    return ridged(weight[:, kept], weight @ second[:, kept], second[np.ix_(kept, kept)], damping)


def ridged(first: Floats, cross: Floats, inner: Floats, damping: float) -> Floats:
    """(cross + δ first)(inner + δ I)⁻¹ [m, k]: least squares that is pulled towards ``first``.

    δ is ``damping`` times the mean of inner's diagonal.
    """
    ridge = damping * float(np.trace(inner)) / len(inner)
    return divide(cross + ridge * first, inner + ridge * np.eye(len(inner)))


def divide(target: Floats, inner: Floats) -> Floats:
    """target · inner⁻¹ for a symmetric matrix that may be singular."""
    try:
        found = np.asarray(np.linalg.solve(inner, target.T).T, np.float64)
        if np.isfinite(found).all() and np.abs(found @ inner - target).max() <= 1e-6 * (np.abs(target).max() or 1.0):
            return found
    except np.linalg.LinAlgError:
        pass
    return np.asarray(target @ np.linalg.pinv(inner, hermitian=True), np.float64)


def refit(
    analysis: Analysis,
    consumer: Consumer,
    kept: npt.NDArray[np.int64],
    moments: Mapping[Site, Moments],
    damping: float = DAMPING,
    how: How = "least-squares",
) -> Changed:
    """What becomes of the weight and bias of one consumer that keeps the positions ``kept``, at full size.

    Weights of positions that go are zero.
    """
    changed = Changed({}, {})
    if any(site not in moments for site in consumer.sites):
        return changed
    whole = merged([moments[site] for site in consumer.sites])
    if not whole.count:
        return changed
    graph = analysis.graph
    bias = bias_of(analysis, consumer)
    stored = analysis.read(consumer.weight)
    weight = consumer.matrix(stored)
    new = np.zeros_like(weight)
    new[:, kept] = weight[:, kept]
    if how != "bias":
        new[:, kept] = solve(weight, whole.covariance if bias else whole.raw, kept, damping)
        changed.values[consumer.weight] = analysis.stored(consumer.weight, consumer.stored(new, stored))
    lost = ((weight - new) @ whole.mean).reshape(_outputs(consumer, stored), -1).sum(1)
    if bias:
        old = analysis.read(bias.name)
        new = (old + bias.sign * lost.reshape(old.shape)).astype(old.dtype)
        changed.values[bias.name] = analysis.stored(bias.name, new)
    elif how == "bias" and len(consumer.nodes) == 1:
        node = consumer.nodes[0]
        behind = len(graph.shape(node.outputs[0]) or ()) - 2 if node.convolves else 0
        changed.add[node.outputs[0]] = lost.astype(stored.dtype).reshape(-1, *[1] * behind)
    return changed


def _outputs(consumer: Consumer, stored: Array) -> int:
    """How many outputs a consumer has: the first axis that is not summed over."""
    return int(next(size for axis, size in enumerate(stored.shape) if axis not in consumer.axes))


def bias_of(analysis: Analysis, consumer: Consumer) -> Bias | None:
    """The vector that is added to what the consumer computes, and to nothing else."""
    graph = analysis.graph
    if len(consumer.nodes) > 1:
        return None
    node = consumer.nodes[0]
    if len(node.inputs) > 2 and node.inputs[2]:
        scaled = node.attrs.get("alpha", 1) != 1 or node.attrs.get("beta", 1) != 1
        found = None if scaled else Bias(analysis.facts.decoded.get(node.inputs[2], node.inputs[2]))
    else:
        found = _behind(graph, node)
    stored = graph.weights.get(found.name) if found else None
    if found is None or stored is None or found.name in graph.outputs or len(graph.consumers[found.name]) > 1:
        return None
    shape = graph.weights[consumer.weight].shape
    width = next((size for axis, size in enumerate(shape) if axis not in consumer.axes), 0)
    return found if stored.size == width == max(stored.shape, default=0) else None


def _behind(graph: Graph, node: Node) -> Bias | None:
    """What is added along the channels, or the mean of a batch norm, where that alone reads what ``node`` computes."""
    made = node.outputs[0]
    readers, rank = graph.consumers.get(made, ()), len(graph.shape(made) or ())
    if len(readers) != 1 or made in graph.outputs:
        return None
    reader, place = readers[0]
    if reader.op == "batch_norm" and place == 0 and len(reader.inputs) > 3:
        return Bias(reader.inputs[3], -1)
    added = graph.weights.get(reader.inputs[1 - place]) if adds(reader) else None
    behind = rank - 2 if node.convolves else 0
    along = added is not None and (1,) * rank + added.shape
    return Bias(reader.inputs[1 - place]) if along and added and along[-1 - behind] == added.size else None


def adds(node: Node) -> bool:
    """Whether ``node`` is the sum of its two inputs."""
    return node.kind.lower() == "add" and len(node.inputs) == 2 and node.attrs.get("alpha", 1) == 1
