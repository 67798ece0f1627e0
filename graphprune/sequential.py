"""Compensation in order: each consumer is fitted to what reaches it once everything before it was cut.

One-shot compensation fits W' x to W x on the activations x of the dense model. In the cut model other activations x'
arrive, and errors add up. Here two models are walked through side by side, the dense one and the one that was cut and
compensated up to where the walk stands. Each consumer that loses positions, or reads what such a one changed, is fitted
to

    W' = (E[t x'ᵀ] + δ W₀)(E[x' x'ᵀ] + δ I)⁻¹        t = y + r - r'

W₀ are the weights of one-shot compensation, or the model's own where that changed none, δ is as there, y is what the
dense model computes, and r what both models add to it (a residual): what went wrong in r' before is made good as far as
x' can tell. For each consumer the damping is the one with the least error on the half of the data that was not fitted,
looked at on some of its outputs; where W₀ itself does better, it stays. Rows of a residual stream, but for
convolutions, count for one over their squared size: what reads the stream divides by it, and a few massive rows (arXiv
2402.17762) would decide for all others. Layer after layer is the order of SparseGPT (arXiv 2301.00774), the dense
model's outputs as targets are the asymmetric calibration of GPTAQ (arXiv 2504.02692).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis
from graphprune.compensate import DAMPINGS, Bias, adds, bias_of, loses, ridged
from graphprune.consumers import Consumer, Site, consumers
from graphprune.dims import Chosen, Positions, ones, take, touched
from graphprune.graph import Array, Graph, Node
from graphprune.signature import Layout

Floats = npt.NDArray[np.float64]
ROOM = 1 << 31
"""Bytes of activations that may be held; batches that do not fit are left behind."""
LOOKED_AT = 128
"""Outputs of a consumer that the choice of its damping is made on, at least, where it has more."""
_LEAST = 1e-6
"""Sizes of rows count as at least this, next to their mean."""
_FLAT = 1e-3
"""A batch norm scales by at least this, next to its other channels, where residuals are looked at through it."""


class Walk(Protocol):
    """Batches on their way through a model, all before the same node."""

    @property
    def batches(self) -> int:
        """How many there are."""

    @property
    def bytes(self) -> int:
        """What they take up where they are."""

    def drop(self, count: int) -> None:
        """Leave the last ``count`` behind."""

    def to(self, node: int) -> None:
        """Run every batch up to, and without, the node of that number."""

    def rows(self, batch: int, site: Site) -> Array:
        """What a consumer sums over at ``site``: [rows, features]."""

    def holds(self, value: str) -> bool:
        """Whether ``value`` is computed by now, and still to be read."""

    def put(self, weight: str, values: Array) -> None:
        """Let ``values`` take the place of a weight."""


class Seconds(NamedTuple):
    """E[x xᵀ], E[t xᵀ] and E[tᵀ t]."""

    inner: Floats
    cross: Floats
    size: float


@dataclass(frozen=True)
class Sums:
    """Over ``count`` rows of features x [k] and targets t [m]: x, t, x xᵀ, t xᵀ and t² added up.

    Rows may count more or less than one.
    """

    count: float
    x: Floats
    t: Floats
    xx: Floats
    tx: Floats
    tt: Floats

    @staticmethod
    def of(x: Array, t: Array, counts: Array) -> Sums:
        """Of the rows of two matrices, each counted as often as ``counts`` [rows, 1] says."""
        root = np.sqrt(counts)
        x, t = root * x, root * t
        parts = ((root * x).sum(0), (root * t).sum(0), x.T @ x, t.T @ x, np.square(t).sum(0))
        return Sums(float(counts.sum(dtype=np.float64)), *(part.astype(np.float64) for part in parts))

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count,
            self.x + other.x,
            self.t + other.t,
            self.xx + other.xx,
            self.tx + other.tx,
            self.tt + other.tt,
        )

    def every(self, step: int) -> Sums:
        """Of every ``step``-th target alone."""
        return replace(self, t=self.t[::step], tx=self.tx[::step], tt=self.tt[::step])

    def seconds(self, centred: bool) -> Seconds:
        """Means of products, of what differs from the mean where ``centred``."""
        xx, tx, tt = self.xx / self.count, self.tx / self.count, float(self.tt.sum()) / self.count
        if not centred:
            return Seconds(xx, tx, tt)
        x, t = self.x / self.count, self.t / self.count
        return Seconds(xx - np.outer(x, x), tx - np.outer(t, x), tt - float(t @ t))


class _Fit(NamedTuple):
    """A consumer, where its outputs are, what stays of both, its bias, and what is added behind it."""

    consumer: Consumer
    node: Node
    made: Site
    kept: Positions
    live: Positions
    bias: Bias | None
    residual: str
    scale: Floats | None


def in_order(
    analysis: Analysis,
    chosen: Chosen,
    start: Mapping[str, Array],
    dense: Walk,
    cut: Walk,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Array]:
    """New values of weights and biases, at full size, for a cut at ``chosen``.

    ``start`` are those of one-shot compensation, which the model of ``cut`` has; both walks are at the first node.
    """
    found = dict(start)
    for name, without in zeroed(analysis, chosen, start).items():
        cut.put(name, without)
    fits = sorted(_fits(analysis, chosen), key=lambda fit: fit.node.index)
    for done, fit in enumerate(fits):
        cut.to(fit.node.index)
        dense.to(fit.node.index + 1)
        while dense.bytes + cut.bytes > ROOM and cut.batches > 2:
            for walk in (dense, cut):
                walk.drop(1)
        halves = _halves(fit, dense, cut)
        for name, values in _fitted(analysis, fit, halves, found).items():
            found[name] = values
            cut.put(name, values)
        progress((done + 1) / len(fits))
    return found


def zeroed(analysis: Analysis, chosen: Chosen, values: Mapping[str, Array]) -> dict[str, Array]:
    """Every weight that a cut touches, with zeros in place of what goes."""
    made = {}
    for name, node, _, layout in analysis.uses:
        if node is None and any(touched(dim, chosen) for dim in layout):
            stored = values.get(name)
            made[name] = _without(analysis.graph.weights[name].load() if stored is None else stored, layout, chosen)
    return made


def _without(values: Array, layout: Layout, chosen: Chosen) -> Array:
    """A weight with zeros in place of what goes."""
    for axis, dim in enumerate(layout):
        if touched(dim, chosen):
            gone = ones(layout, axis, chosen) == 0
            if np.any(values, where=gone):  # what was solved for is zero there, and not copied
                values = np.where(gone, np.zeros((), values.dtype), values)
    return values


def _reached(analysis: Analysis, chosen: Chosen) -> set[str]:
    """Activations that a cut at ``chosen`` changes: what is computed over positions that go, and all behind it."""
    over = {node.index for node, dim in analysis.facts.mixed if touched(dim, chosen)}
    found: set[str] = set()
    for node in analysis.graph.nodes:
        if node.index in over or not found.isdisjoint((*node.inputs, *node.outer)):
            found.update(node.outputs)
    return found


def _fits(analysis: Analysis, chosen: Chosen) -> list[_Fit]:
    """Consumers that see other activations, whose outputs can be told apart, and lie as their inputs do."""
    found, reached = [], _reached(analysis, chosen)
    for consumer in consumers(analysis):
        if not (loses(consumer, chosen) or (consumer.sites[0].value in reached and not touched(consumer.dim, chosen))):
            continue
        graph, node, site = analysis.graph, consumer.nodes[0], consumer.sites[0]
        if consumer.weight in analysis.facts.meanings:  # integers stay as the first fit made them
            continue
        if len(consumer.nodes) > 1 or node.attrs.get("alpha", 1) != 1:
            continue
        bias = bias_of(analysis, consumer)
        into, out = graph.shape(site.value) or (), graph.shape(node.outputs[0]) or ()
        convolution = node.convolves
        last = site.axis == len(into) - 1 and into[:-1] == out[:-1]
        inner = len(node.inputs) > 2 and node.inputs[2]
        if not (convolution or last) or (inner and (bias is None or bias.name != inner)):
            continue
        made = Site(node.outputs[0], 1 if convolution else len(out) - 1)
        shape = graph.weights[consumer.weight].shape
        if math.prod(size for axis, size in enumerate(shape) if axis not in consumer.axes) != out[made.axis]:
            continue
        residual, scale = _behind(graph, node, bias)
        stays = _without(np.ones(shape, np.float32), analysis.facts.layouts[consumer.weight], chosen)
        live = np.flatnonzero(consumer.matrix(stays).any(1))
        found.append(_Fit(consumer, node, made, take(consumer.dim, chosen), live, bias, residual, scale))
    return found


def _behind(graph: Graph, node: Node, bias: Bias | None) -> tuple[str, Floats | None]:
    """The activation that is added to what ``node`` makes, "" for none; and by what a batch norm between scales."""
    scale, value = None, node.outputs[0]
    reader = _reader(graph, value)
    if reader is not None and reader.op == "batch_norm" and value == reader.inputs[0]:
        gain, variance = (graph.weights.get(reader.inputs[i]) for i in (1, 4))
        if gain is None or variance is None:
            return "", None
        spread = np.sqrt(variance.load().astype(np.float64) + reader.attrs.get("epsilon", 1e-5))
        scale, value = gain.load() / spread, reader.outputs[0]
    elif reader is not None and bias is not None and bias.name in reader.inputs:
        value = reader.outputs[0]
    reader = _reader(graph, value)
    if reader is None or not adds(reader):
        return "", None
    other = reader.inputs[1 - reader.inputs.index(value)]
    same = other != value and other not in graph.weights and graph.shape(other) == graph.shape(value)
    return (other, scale) if same else ("", None)


def _reader(graph: Graph, value: str) -> Node | None:
    """The one node that reads ``value``."""
    readers = graph.consumers.get(value, ())
    return readers[0][0] if len(readers) == 1 and value not in graph.outputs else None


def _halves(fit: _Fit, dense: Walk, cut: Walk) -> list[Sums]:
    """Sums over every other batch, and over those between."""
    site, sums = fit.consumer.sites[0], dict[int, Sums]()
    along = Site(fit.residual, fit.made.axis) if fit.residual and cut.holds(fit.residual) else None
    for batch in range(cut.batches):
        target = dense.rows(batch, fit.made)
        counts = np.ones((len(target), 1), target.dtype)
        if along is not None and not fit.node.convolves:
            counts = _alike(target + dense.rows(batch, along))
        if along is not None:
            apart = dense.rows(batch, along) - cut.rows(batch, along)
            target = target + (apart if fit.scale is None else apart * _inverse(fit.scale).astype(apart.dtype))
        more = Sums.of(cut.rows(batch, site)[:, fit.kept], target[:, fit.live], counts)
        sums[batch % 2] = sums[batch % 2] + more if batch % 2 in sums else more
    return [sums[half] for half in sorted(sums)]


def _alike(rows: Array) -> Array:
    """How much each row counts [rows, 1], so that all weigh the same; 1 in the mean."""
    sizes = np.square(rows).sum(1, keepdims=True)
    counts = 1 / np.maximum(sizes, _LEAST * max(float(sizes.mean()), _LEAST))
    return np.asarray(counts / counts.mean(), rows.dtype)


def _inverse(scale: Floats) -> Floats:
    """One over ``scale``; 0 where a batch norm all but turns a channel off."""
    live = np.abs(scale) > _FLAT * np.abs(scale).max()
    return np.where(live, 1 / np.where(live, scale, 1), 0.0)


def _fitted(analysis: Analysis, fit: _Fit, halves: list[Sums], before: Mapping[str, Array]) -> dict[str, Array]:
    """The weight, and the bias, that come closest to the targets; nothing where those ``before`` do as well."""
    if len(halves) < 2:
        return {}
    stored = before.get(fit.consumer.weight)
    if stored is None:
        stored = analysis.graph.weights[fit.consumer.weight].load()
    first = fit.consumer.matrix(stored)[np.ix_(fit.live, fit.kept)]
    centred, step = fit.bias is not None, max(1, len(first) // LOOKED_AT)
    some, errors = [half.every(step).seconds(centred) for half in halves], np.zeros(len(DAMPINGS) + 1)
    for fitted, other in (some, some[::-1]):
        for i, damping in enumerate(DAMPINGS):
            errors[i] += _error(ridged(first[::step], fitted.cross, fitted.inner, damping), other)
        errors[-1] += _error(first[::step], other)
    best, whole = int(np.argmin(errors)), halves[0] + halves[1]
    weight = first
    if best < len(DAMPINGS):
        seconds = whole.seconds(centred)
        weight = ridged(first, seconds.cross, seconds.inner, DAMPINGS[best] / 2)  # of twice the data
    changed = np.zeros_like(fit.consumer.matrix(stored))
    changed[np.ix_(fit.live, fit.kept)] = weight
    made = {fit.consumer.weight: fit.consumer.stored(changed, stored)}
    if fit.bias is not None:
        dense = analysis.graph.weights[fit.bias.name].load()
        inner = len(fit.node.inputs) > 2 and fit.node.inputs[2] == fit.bias.name  # it is in the targets already
        shift = (whole.t - weight @ whole.x) / whole.count
        new = np.zeros(dense.size)
        new[fit.live] = shift if inner else dense.reshape(-1)[fit.live] + fit.bias.sign * shift
        made[fit.bias.name] = new.astype(dense.dtype).reshape(dense.shape)
    return made


def _error(weight: Floats, seconds: Seconds) -> float:
    """E|t - W' x|², relative to E|t|²."""
    inner, cross, size = seconds
    error = size - 2 * float(np.einsum("ij,ij->", weight, cross)) + float(np.einsum("ij,ij->", weight @ inner, weight))
    return error / size if size > 0 else 0.0
