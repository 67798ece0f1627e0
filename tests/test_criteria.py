"""Criteria of the literature: each formula once more in numpy, on a few weights, and what all have in common.

Two networks. `MLP` is x W1 + b1, ReLU, W2, with three inputs, a hidden layer of four and two outputs. `HEADS` is x W1,
tanh, W2, where the six columns between are three heads of two. Moments, gradients and signals are put into a `Task` by
hand, so that nothing but the score itself is tested.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import graphprune
from graphprune import Request
from graphprune.analysis import Analysis, analyse
from graphprune.budget import allocate
from graphprune.consumers import consumers, features
from graphprune.errors import UsageError
from graphprune.formats import onnx as format_
from graphprune.scores import SCORES, Task, score_atoms
from graphprune.stats import Moments
from models import digits
from tests.build import Net

Floats = npt.NDArray[np.float64]
RNG = np.random.default_rng(7)
W1, B1, W2 = (RNG.uniform(0.2, 1.5, shape) * RNG.choice([-1, 1], shape) for shape in ((3, 4), (4,), (4, 2)))
X = RNG.standard_normal((50, 3)) + 0.3
H = np.maximum(X @ W1 + B1, 0)
V1, V2 = RNG.standard_normal((3, 6)), RNG.standard_normal((6, 2))
T = np.tanh(X @ V1)
FOUR = range(4)


def mlp(w1: Floats = W1, b1: Floats = B1, w2: Floats = W2) -> Analysis:
    """The network with a hidden layer."""
    net = Net()
    hidden = net.op("Gemm", net.input("rows", len(w1)), *(net.const(value, np.float32) for value in (w1, b1)))
    net.output(net.op("MatMul", net.op("Relu", hidden), net.const(w2, np.float32)))
    return analyse(format_.read(net.model()).graph)


def gated(gate: Floats, up: Floats, down: Floats) -> Analysis:
    """sigmoid(x gate) (x up) down."""
    net = Net()
    x = net.input("rows", 3)
    first, second = (net.op("MatMul", x, net.const(weight, np.float32)) for weight in (gate, up))
    hidden = net.op("Mul", net.op("Sigmoid", first), second)
    net.output(net.op("MatMul", hidden, net.const(down, np.float32)))
    return analyse(format_.read(net.model()).graph)


def heads() -> Analysis:
    """The network with three heads of two."""
    net = Net()
    x = net.op("MatMul", net.input("rows", 3), net.const(V1, np.float32))
    x = net.op("Tanh", net.op("Reshape", x, net.const([-1, 3, 2])))
    net.output(net.op("MatMul", net.op("Reshape", x, net.const([-1, 6])), net.const(V2, np.float32)))
    return analyse(format_.read(net.model()).graph)


def scored(name: str, analysis: Analysis, size: int = 4, **given: Any) -> Floats:
    """The scores of the prunable atom of ``size`` positions."""
    (atom,) = [atom for atom in analysis.prunable if atom.size == size]
    return score_atoms(Task(analysis, [atom], **given), name)[atom.dim]


def moments(rows: Floats) -> dict[str, Any]:
    """Moments of ``rows`` at every site, as a Task takes them."""
    return {"moments": lambda sites: {site: Moments.of(rows) for site in sites}}


def even(values: Any) -> Floats:
    """Divided by their mean."""
    given = np.asarray(values, np.float64)
    return np.asarray(given / given.mean(), np.float64)


def close(found: Floats, expected: Any) -> None:
    """Equal, up to weights in float32."""
    np.testing.assert_allclose(found, np.asarray(expected), rtol=2e-5, atol=1e-7)


# Weights alone.


def test_lamp() -> None:
    """Squared weights of each unit, a weight tensor's mean at one, over the sum of all that are no smaller."""
    squares = even([sum(W1[:, j] ** 2) for j in FOUR]) + even(B1**2) + even([sum(W2[j] ** 2) for j in FOUR])
    expected = [squares[j] / sum(s for s in squares if s >= squares[j]) for j in FOUR]
    found = scored("lamp", mlp())
    close(found, expected)
    assert max(found) == 1


def test_fpgm() -> None:
    """Distances to all other units, of columns of W1 and of rows of W2; a vector has no say."""
    first, second = (even([sum(np.linalg.norm(rows[i] - rows[j]) for j in FOUR) for i in FOUR]) for rows in (W1.T, W2))
    close(scored("fpgm", mlp()), first + second)


def test_fpgm_prefers_what_others_are_like() -> None:
    """The unit in the middle of all others goes first, however large it is."""
    far = np.array([[9.0, 9.0, 9.0], [9.0, 9.0, 9.1], [9.1, 9.0, 9.0], [0.0, 0.1, 0.0]])
    assert np.argmax(scored("fpgm", mlp(w1=far.T, w2=np.ones((4, 2))))) == 3


def test_maw() -> None:
    """Largest plus size of the smallest of a column of W1; what reads the unit has no say."""
    close(scored("maw", mlp()), [max(W1[:, j]) + abs(min(W1[:, j])) for j in FOUR])


def test_maw_of_a_gated_layer() -> None:
    """Gate and up projection are added up."""
    gate, up, down = (RNG.standard_normal(shape) for shape in ((3, 4), (3, 4), (4, 2)))
    expected = sum(weight.max(0) + abs(weight.min(0)) for weight in (gate, up))
    close(scored("maw", gated(gate, up, down)), expected)


def test_path() -> None:
    """The largest weight of a column of W1 times that of a row of W2, squared."""
    close(scored("path", mlp()), np.square(np.abs(W1).max(0) * np.abs(W2).max(1)))


def test_path_of_a_gated_layer() -> None:
    """What makes a unit counts by geometric mean: gate and up projection weigh as much as the down projection."""
    gate, up, down = (RNG.standard_normal(shape) for shape in ((3, 4), (3, 4), (4, 2)))
    expected = np.abs(gate).max(0) * np.abs(up).max(0) * np.square(np.abs(down).max(1))
    close(scored("path", gated(gate, up, down)), expected)


def test_path_keeps_one_weight_that_norms_drown() -> None:
    """A unit of small norm goes last for a single large weight on each side."""
    w1, w2 = np.ones((40, 4)), np.ones((4, 40))
    w1[:, 2], w2[2] = 0.1, 0.1
    w1[7, 2], w2[2, 9] = 3.0, 3.0
    assert np.argmax(scored("path", mlp(w1=w1, w2=w2))) == 2 == np.argmin(scored("l2", mlp(w1=w1, w2=w2)))


def test_path_through_zeros() -> None:
    """A unit that nothing is made of, or that nothing reads, scores next to nothing, and no NaN."""
    w1, w2 = W1.copy(), W2.copy()
    w1[:, 1], w2[3] = 0.0, 0.0
    found = scored("path", mlp(w1=w1, w2=w2))
    assert found[1] < 1e-30 > found[3]
    assert min(found[0], found[2]) > 1e-3


def test_prunenet() -> None:
    """How fast the sum of the singular values falls as a row fades away, by differences."""

    def speed(rows: Floats, j: int) -> float:
        faded = rows.copy()
        faded[j] *= np.sqrt(1 - 1e-6)
        before, after = (np.linalg.svd(part, compute_uv=False).sum() for part in (rows, faded))
        return float(before - after) / 1e-6

    expected = sum(even([speed(rows, j) for j in FOUR]) for rows in (W1.T, W2))
    np.testing.assert_allclose(scored("prunenet", mlp()), expected, rtol=1e-4)


# Activations.


def test_wanda_sp() -> None:
    """Mean of |w| over outputs, times the root mean square of the input."""
    close(
        scored("wanda-sp", mlp(), **moments(H)),
        even([np.mean(abs(W2[j])) * np.sqrt(np.mean(H[:, j] ** 2)) for j in FOUR]),
    )
    columns = np.array([np.mean(abs(V2[j])) * np.sqrt(np.mean(T[:, j] ** 2)) for j in range(6)])
    close(
        scored("wanda-sp", heads(), 3, **moments(T)), even([columns[0:2].sum(), columns[2:4].sum(), columns[4:].sum()])
    )


def test_flap() -> None:
    """Variance times squared norm, standardised over the layer; a head has the mean of its columns' squares."""
    raw = np.array([np.var(H[:, j]) * sum(W2[j] ** 2) for j in FOUR])
    close(scored("flap", mlp(), **moments(H)), (raw - raw.mean()) / raw.std())
    raw = np.array([np.var(T[:, j]) * sum(V2[j] ** 2) for j in range(6)]) ** 2
    close(scored("flap", heads(), 3, **moments(T)), ((raw - raw.mean()) / raw.std()).reshape(3, 2).mean(1))


def test_cfsp() -> None:
    """Weights over the sum of their row (of an output), times the size of the input; they add up to the drift."""
    fine = np.array(
        [sum(abs(W2[j, o]) / sum(abs(W2[:, o])) for o in (0, 1)) * np.sqrt(np.mean(H[:, j] ** 2)) for j in FOUR]
    )
    close(scored("cfsp", mlp(), **moments(H)), fine / fine.sum())
    seen: list[Any] = []

    def drift(kept: Any) -> float:
        seen.append(kept)
        return 0.3

    close(scored("cfsp", mlp(), **moments(H), drift=drift), 0.3 * fine / fine.sum())
    ((kept,),) = (chosen.values() for chosen in seen)
    assert list(kept) == sorted(np.argsort(fine)[2:])


def test_amp() -> None:
    """What a head adds to each output: its root mean square over the data, summed over outputs."""
    expected = [
        sum(np.sqrt(np.mean((T[:, part] @ V2[part, o]) ** 2)) for o in (0, 1))
        for part in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    close(scored("amp", heads(), 3, **moments(T)), even(expected))


def test_minitron() -> None:
    """Norm of a head's activations over all data; and the mean of their sizes."""
    parts = [T[:, 2 * i : 2 * i + 2] for i in range(3)]
    close(scored("minitron", heads(), 3, **moments(T)), even([np.sqrt((part**2).sum()) for part in parts]))
    close(scored("minitron-mean", heads(), 3, **moments(T)), even([abs(part).sum() for part in parts]))
    close(scored("minitron-mean", mlp(), **moments(H)), even([abs(H[:, j]).mean() for j in FOUR]))


def test_comp() -> None:
    """The most that a change of a head's activations can do to the output, relative to the size of both."""
    expected = []
    for i in range(3):
        part = slice(2 * i, 2 * i + 2)
        gain = np.sqrt(np.linalg.eigvalsh(V2[part] @ V2[part].T).max())
        expected.append(gain * np.sqrt((T[:, part] ** 2).sum()) / np.sqrt(((T @ V2) ** 2).sum()))
    close(scored("comp", heads(), 3, **moments(T)), even(expected))


def test_beta_rank() -> None:
    """Sum of |weights| that make a unit times the deviation of its output, from 0 to 1; the bias has no say."""
    expected = np.array([sum(abs(W1[:, j])) * np.std(H[:, j]) for j in FOUR])
    close(scored("beta-rank", mlp(), **moments(H)), (expected - expected.min()) / (expected.max() - expected.min()))


# Gradients.

GRADIENTS = [tuple(RNG.standard_normal(weight.shape) for weight in (W1, B1, W2)) for _ in range(4)]
"""Four batches; what they are gradients of does not matter here."""


def gradients(analysis: Analysis, kinds: list[str] | None = None, batches: int = 4) -> dict[str, Any]:
    """The gradients above by weight name, as a Task takes them; ``kinds`` hears what was asked for."""

    def run(kind: str) -> Iterable[Any]:
        if kinds is not None:
            kinds.append(kind)
        names = [name for name in analysis.graph.weights if len(analysis.graph.weights[name].shape)]
        return iter([dict(zip(names, batch, strict=True)) for batch in GRADIENTS[:batches]])

    return {"gradients": run}


def units(parts: Iterable[Floats]) -> list[list[Floats]]:
    """Of three arrays like W1, B1 and W2 what belongs to each unit."""
    a, b, c = parts
    return [[a[:, j], b[j : j + 1], c[j]] for j in FOUR]


def total(parts: list[Floats]) -> float:
    """The sum of all elements."""
    return float(sum(part.sum() for part in parts))


def test_nirvana() -> None:
    """The gradients are averaged before they meet the weights."""
    analysis = mlp()
    mean = [np.mean(parts, axis=0) for parts in zip(*GRADIENTS, strict=True)]
    expected = [total(unit) for unit in units(abs(w * g) for w, g in zip((W1, B1, W2), mean, strict=True))]
    close(scored("nirvana", analysis, **gradients(analysis)), expected)


def test_disturbed_taylor() -> None:
    """|w g|, summed over batches, of the gradients of the distance to disturbed outputs."""
    analysis, kinds = mlp(), list[str]()
    found = scored("disturbed-taylor", analysis, **gradients(analysis, kinds))
    each = [
        [total(unit) for unit in units(abs(w * g) for w, g in zip((W1, B1, W2), b, strict=True))] for b in GRADIENTS
    ]
    close(found, np.sum(each, axis=0))
    assert kinds == ["disturbed"]


def test_gaprune() -> None:
    """The first and third batch are general, the second and fourth of the domain."""
    general, domain = GRADIENTS[0::2], GRADIENTS[1::2]
    weights = (W1, B1, W2)

    def need(batches: list[Any]) -> Floats:
        fisher = [np.mean([g**2 for g in parts], axis=0) for parts in zip(*batches, strict=True)]
        return even([total(unit) for unit in units(f * abs(w) for f, w in zip(fisher, weights, strict=True))])

    flat = [
        [np.concatenate(unit) for unit in units(np.mean(parts, axis=0) for parts in zip(*batches, strict=True))]
        for batches in (general, domain)
    ]
    cosine = np.array([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*flat, strict=True)])
    size = even([total(unit) for unit in units(np.sqrt(abs(w)) for w in weights)])
    expected = (need(domain) - need(general)) * (1 + 0.2 * cosine) + 0.5 * size
    analysis = mlp()
    close(scored("gaprune", analysis, **gradients(analysis)), expected - expected.min())


def test_gaprune_needs_two_batches() -> None:
    analysis = mlp()
    with pytest.raises(UsageError, match="fewer than 2 batches") as caught:
        scored("gaprune", analysis, **gradients(analysis, batches=1))
    assert "take turns" in caught.value.hint


def test_loraprune() -> None:
    """Gradients through random adapters of rank eight, norm one a weight, a moving average; vectors have no adapter."""
    draw = np.random.default_rng(3).standard_normal
    first, second = draw((8, 4)), draw((8, 2))
    expected = np.zeros(4)
    for g1, _, g2 in GRADIENTS:
        a = abs(W1 * (g1 @ first.T @ first)).sum(0)
        b = abs(W2 * (g2 @ second.T @ second)).sum(1)
        expected = 0.9 * expected + 0.1 * (a / np.sqrt((a**2).sum()) + b / np.sqrt((b**2).sum()))
    analysis = mlp()
    close(scored("loraprune", analysis, seed=3, **gradients(analysis)), expected)


def test_lrp() -> None:
    """|activation x gradient| of what is read, over all rows and batches; a head has all of its own."""
    batches = [(T[:20], RNG.standard_normal((20, 6))), (T[20:], RNG.standard_normal((30, 6)))]

    def signals(values: Iterable[str]) -> Iterable[Any]:
        names = list(values)
        for held, gradient in batches:
            yield {name: (held, gradient) if name.startswith("reshape") else (X, X) for name in names}

    found = scored("lrp", heads(), 3, gradients=lambda kind: [], signals=signals)
    relevance = sum(abs(held * gradient).sum(0) for held, gradient in batches)
    close(found, [relevance[2 * i] + relevance[2 * i + 1] for i in range(3)])


def test_lrp_counts_an_activation_once() -> None:
    """What two matrices read is one activation, with one gradient."""
    net = Net()
    hidden = net.op("Relu", net.op("MatMul", net.input("rows", 3), net.weight(3, 4)))
    net.output(net.op("Add", *(net.op("MatMul", hidden, net.weight(4, 2)) for _ in range(2))))
    analysis = analyse(format_.read(net.model()).graph)
    ones = np.ones((5, 4))
    found = scored(
        "lrp",
        analysis,
        gradients=lambda kind: [],
        signals=lambda names: [{n: (ones[:, : 3 if "input" in n else 4],) * 2 for n in names}],
    )
    close(found, [5, 5, 5, 5])


def test_lrp_needs_signals() -> None:
    with pytest.raises(UsageError, match="'lrp' needs batches to take gradients of activations on"):
        scored("lrp", mlp(), gradients=lambda kind: [])


# What all have in common.


def given(analysis: Analysis, seed: int = 0) -> dict[str, Any]:
    """Random moments, gradients and signals that fit ``analysis``, all that any score asks for."""
    rng, graph = np.random.default_rng(seed), analysis.graph
    sites = sorted({site for consumer in consumers(analysis) for site in consumer.sites}, key=str)
    found = {site: Moments.of(rng.standard_normal((60, features(graph, site)))) for site in sites}
    grads = [{name: rng.standard_normal(weight.shape) for name, weight in graph.weights.items()} for _ in range(2)]

    def pair(name: str) -> tuple[Floats, Floats]:
        shape = [graph.extent(size) for size in graph.shape(name) or ()]
        return rng.standard_normal(shape), rng.standard_normal(shape)

    return {
        "moments": lambda sites: found,
        "gradients": lambda kind: iter(grads),
        "signals": lambda values: iter([{name: pair(name) for name in values}]),
        "drift": lambda kept: 0.5,
    }


NAMES = sorted(SCORES)


@pytest.mark.parametrize("name", NAMES)
def test_every_score(name: str) -> None:
    """Finite numbers, one a position, not all alike, the same for the same seed: on a convolutional network."""
    analysis = graphprune.load(digits.PATH).analysis
    first, again = (score_atoms(Task(analysis, analysis.prunable, 5, **given(analysis)), name) for _ in range(2))
    assert set(first) == {atom.dim for atom in analysis.prunable}
    for atom in analysis.prunable:
        values = first[atom.dim]
        assert values.shape == (atom.size,)
        assert values.dtype == np.float64
        assert np.isfinite(values).all()
        assert np.ptp(values) > 0
        np.testing.assert_array_equal(values, again[atom.dim])


SIGNED = {"random", "fpgm", "grasp", "gaprune"}
"""Scores to which a zero is a number like any other: they are distances, or of both signs before they are shifted."""


@pytest.mark.parametrize("name", sorted(set(NAMES) - SIGNED))
def test_what_is_zero_goes_first(name: str) -> None:
    """A unit that is made of zeros, is zero on all data and is read by zeros ranks lowest."""
    dead = 2
    w1, b1, w2, h = W1.copy(), B1.copy(), W2.copy(), H.copy()
    w1[:, dead], b1[dead], w2[dead], h[:, dead] = 0, 0, 0, 0
    analysis = mlp(w1, b1, w2)
    names = list(analysis.graph.weights)
    mask = [np.ones_like(w1), np.ones_like(b1), np.ones_like(w2)]
    mask[0][:, dead], mask[1][dead], mask[2][dead] = 0, 0, 0
    batches = [dict(zip(names, (g * m for g, m in zip(b, mask, strict=True)), strict=True)) for b in GRADIENTS]
    found = scored(
        name,
        analysis,
        moments=lambda sites: {site: Moments.of(h) for site in sites},
        gradients=lambda kind: iter(batches),
        signals=lambda values: [{value: (X, X) if "input" in value else (h, h + 1.0) for value in values}],
    )
    assert np.argmin(found) == dead


# How Dims compare.


def branches() -> Analysis:
    """Two hidden layers of eight beside each other, the second with wider weights around it."""
    net = Net()
    for width in (4, 8):
        x = net.op("Relu", net.op("MatMul", net.input("rows", width), net.weight(width, 8)))
        net.output(net.op("MatMul", x, net.weight(8, width)))
    return analyse(format_.read(net.model()).graph)


def lost(across: Any, first: Floats, second: Floats) -> list[int]:
    """How many units of each branch go for a sixth of all parameters."""
    analysis = branches()
    one, other = analysis.prunable
    scores = {one.dim: first, other.dim: second}
    kept = allocate(analysis, [one, other], scores, Request(params=5 / 6, multiple=1, floor=0.0), across)
    return [8 - len(kept.get(atom.dim, range(8))) for atom in (one, other)]


def test_how_dims_compare() -> None:
    """Units of 8 and of 16 parameters, 192 in all: 32 are to go."""
    low, high = np.arange(1.0, 9.0), np.arange(101.0, 109.0)
    assert lost("same", low, high) == [4, 0]
    assert lost("same", high, low) == [0, 2]
    assert lost("same", low - 100, high - 100) == [4, 0]
    assert lost("mean", 100 * low, low) == lost("mean", low, low)
    assert lost("mean", low, low + 0.5) == [2, 1]
    assert lost("same", 2 * low, 3 * low) == [2, 1]
    assert lost("error", 2 * low, 3 * low) == [0, 2]


@pytest.mark.parametrize(
    ("across", "names"), [("same", {"lamp", "flap", "lrp"}), ("error", {"cfsp", "obs"})], ids=["same", "error"]
)
def test_what_scores_say_of_themselves(across: str, names: set[str]) -> None:
    assert names <= {name for name, score in SCORES.items() if score.across == across}


def test_flap_through_the_pipeline() -> None:
    """Standardised scores of both signs meet a budget, on data that really went through the network."""
    images = digits.split()[0][:200]
    result = graphprune.prune(
        digits.PATH, macs=0.5, multiple=1, score="flap", calib=[{"image": images}], timing=False, verify="structure"
    )
    report = result.report
    assert report.pruned.macs <= 0.5 * report.dense.macs
    assert len(result.plan.cuts) > 1


def test_moments_of_sizes() -> None:
    """The sum of absolute values, from ONNX Runtime, next to numpy's."""
    net = Net()
    hidden = net.op("Gemm", net.input("rows", 3), *(net.const(value, np.float32) for value in (W1, B1)))
    net.output(net.op("MatMul", net.op("Tanh", hidden), net.const(W2, np.float32)))
    loaded = graphprune.load(net.model())
    (name,) = loaded.analysis.graph.inputs
    found = loaded.measure([{name: X[:20].astype(np.float32)}, {name: X[20:].astype(np.float32)}])
    (hidden_moments,) = (part for part in found.values() if len(part.total) == 4)
    np.testing.assert_allclose(hidden_moments.absolute, np.abs(np.tanh(X @ W1 + B1)).sum(0), rtol=1e-5)
