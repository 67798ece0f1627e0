"""Compensation: the weights that stay make up for the positions that go.

A consumer computes W x. When only the positions K of x stay, the W_K' that comes closest over the calibration data is a
least-squares solution, and second moments of x are all that it takes (Optimal Brain Surgeon, Hassibi & Stork 1992; its
structured form in ZipLM, arXiv 2302.04089, and OSSCAR, arXiv 2403.12983):

    W_K' = (W H[:, K] + δ W_K) (H[K, K] + δ I)⁻¹        H = E[x xᵀ], δ = damping times the mean of diag H[K, K]

The second δ pulls towards the weights as they were, so that directions the data never show stay as they are. Where the
consumer has a bias, H is the covariance, and the bias takes up the change of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis
from graphprune.consumers import Consumer, Site, consumers
from graphprune.dims import Chosen, take, touched
from graphprune.graph import Array, Graph, Node
from graphprune.stats import Moments, merged

Floats = npt.NDArray[np.float64]
DAMPING = 0.1


def compensate(
    analysis: Analysis, chosen: Chosen, moments: Mapping[Site, Moments], damping: float = DAMPING
) -> dict[str, Array]:
    """New values of the weights and biases of consumers that lose positions, by name, at full size."""
    values: dict[str, Array] = {}
    for consumer in consumers(analysis):
        if touched(consumer.dim, chosen) and all(site in moments for site in consumer.sites):
            values |= _solved(analysis, consumer, take(consumer.dim, chosen), moments, damping)
    return values


def solve(weight: Floats, second: Floats, kept: npt.NDArray[np.int64], damping: float) -> Floats:
    """W_K' [m, k] for W [m, n] and H [n, n] when the positions ``kept`` stay.

    >>> twice = np.array([[1.0, 2.0], [2.0, 4.0]])  # the second position is always twice the first
    >>> solve(np.array([[1.0, 1.0]]), twice, np.array([0]), 0.0).tolist()
    [[3.0]]
    """
    inner = second[np.ix_(kept, kept)]
    ridge = damping * float(np.trace(inner)) / len(kept)
    target = weight @ second[:, kept] + ridge * weight[:, kept]
    return _divide(target, inner + ridge * np.eye(len(kept)))


def _divide(target: Floats, inner: Floats) -> Floats:
    """target · inner⁻¹ for a symmetric matrix that may be singular."""
    try:
        found = np.asarray(np.linalg.solve(inner, target.T).T, np.float64)
        if np.isfinite(found).all() and np.abs(found @ inner - target).max() <= 1e-6 * (np.abs(target).max() or 1.0):
            return found
    except np.linalg.LinAlgError:
        pass
    return np.asarray(target @ np.linalg.pinv(inner, hermitian=True), np.float64)


def _solved(
    analysis: Analysis, consumer: Consumer, kept: npt.NDArray[np.int64], moments: Mapping[Site, Moments], damping: float
) -> dict[str, Array]:
    graph = analysis.graph
    whole = merged([moments[site] for site in consumer.sites])
    if not whole.count:
        return {}
    bias = bias_of(analysis, consumer)
    stored = graph.weights[consumer.weight].load()
    last = np.moveaxis(stored, consumer.axis, -1)
    weight = last.astype(np.float64).reshape(-1, last.shape[-1])
    new = weight.copy()
    new[:, kept] = solve(weight, whole.covariance if bias else whole.raw, kept, damping)
    values = {consumer.weight: np.moveaxis(new.reshape(last.shape), -1, consumer.axis).astype(stored.dtype)}
    if bias:
        lost = (weight @ whole.mean - new[:, kept] @ whole.mean[kept]).reshape(last.shape[:-1])
        old = graph.weights[bias].load()
        values[bias] = (old + lost.reshape(len(lost), -1).sum(1).reshape(old.shape)).astype(old.dtype)
    return values


def bias_of(analysis: Analysis, consumer: Consumer) -> str:
    """The vector that is added to what the consumer computes, and to nothing else; "" where there is none."""
    graph = analysis.graph
    if len(consumer.nodes) > 1:
        return ""
    node = consumer.nodes[0]
    if len(node.inputs) > 2:
        scaled = node.attrs.get("alpha", 1) != 1 or node.attrs.get("beta", 1) != 1
        found = "" if scaled else node.inputs[2]
    else:
        found = _added(graph, node)
    stored, shape = graph.weights.get(found), graph.weights[consumer.weight].shape
    alone = len(graph.consumers.get(found, ())) == 1 and found not in graph.outputs
    width = next((size for axis, size in enumerate(shape) if axis != consumer.axis), 0)
    return found if stored is not None and alone and stored.size == width == max(stored.shape, default=0) else ""


def _added(graph: Graph, node: Node) -> str:
    """The constant in an addition that is the only reader of what ``node`` computes."""
    readers = graph.consumers.get(node.outputs[0], ())
    if len(readers) != 1 or readers[0][0].op != "add" or node.outputs[0] in graph.outputs:
        return ""
    return readers[0][0].inputs[1 - readers[0][1]]
