"""Scores: the formulas on numbers small enough to work out by hand, and what every score must have."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import graphprune
from graphprune.analysis import Analysis, analyse
from graphprune.errors import UsageError
from graphprune.formats import onnx as format_
from graphprune.scores import SCORES, Task, score_atoms
from graphprune.scores import weight as weight_scores
from models import digits
from tests.build import Net

Floats = npt.NDArray[np.float64]
FREE = sorted(name for name, score in SCORES.items() if score.needs == "nothing")
"""Scores that look at the model alone."""


def analysed(net: Net) -> Analysis:
    """The analysis of what ``net`` built."""
    return analyse(format_.read(net.model()).graph)


def scores(analysis: Analysis, name: str, seed: int = 0) -> dict[int, Floats]:
    """The scores of each prunable Dim, by its size."""
    found = score_atoms(Task(analysis, analysis.prunable, seed), name)
    assert {atom.dim for atom in analysis.prunable} == set(found)
    return {atom.size: found[atom.dim] for atom in analysis.prunable}


W1 = [[1.0, 2.0, 3.0], [1.0, 0.0, -3.0]]
B1 = [1.0, -1.0, 4.0]
W2 = [[1.0, 1.0], [2.0, 0.0], [0.0, -2.0]]


def layer(scale: float = 1.0, dtype: npt.DTypeLike = np.float32, w1: npt.ArrayLike = W1) -> Analysis:
    """Two inputs to a hidden layer of three to two outputs, with the weights above (the first ones scaled)."""
    net = Net()
    w1, b1, w2 = (net.const(np.array(w) * s, dtype) for w, s in ((w1, scale), (B1, 1), (W2, 1)))
    if dtype != np.float32:
        w1, b1, w2 = (net.op("Cast", name, to=onnx.TensorProto.FLOAT) for name in (w1, b1, w2))
    net.output(net.op("MatMul", net.op("Relu", net.op("Gemm", net.input("rows", 2), w1, b1)), w2))
    return analysed(net)


def test_l1() -> None:
    """Absolute sums over columns of w1 (2, 2, 6), b1 (1, 1, 4) and rows of w2 (2, 2, 2), each over its mean."""
    expected = np.array([2, 2, 6]) / (10 / 3) + np.array([1, 1, 4]) / 2 + np.array([2, 2, 2]) / 2
    np.testing.assert_allclose(scores(layer(), "l1")[3], expected)
    np.testing.assert_allclose(expected, [2.1, 2.1, 4.8])


def test_l2() -> None:
    """Norms of the columns of w1 (√2, 2, √18), of b1 (1, 1, 4) and the rows of w2 (√2, 2, 2), each over its mean."""
    norms = [np.sqrt([2, 4, 18]), np.array([1.0, 1.0, 4.0]), np.sqrt([2, 4, 4])]
    np.testing.assert_allclose(scores(layer(), "l2")[3], sum(norm / norm.mean() for norm in norms))


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_a_large_weight_does_not_drown_a_small_one(name: str) -> None:
    np.testing.assert_allclose(scores(layer(1000), name)[3], scores(layer(), name)[3], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_widths_of_floats(dtype: npt.DTypeLike) -> None:
    np.testing.assert_allclose(scores(layer(dtype=dtype), "l2")[3], scores(layer(), "l2")[3], rtol=1e-6)


def test_a_dim_in_two_axes_of_one_weight_counts_the_weight_once() -> None:
    """h + tanh(h) W: rows and columns of W are one Dim; its l2 is one norm of row and column together."""
    rng = np.random.default_rng(0)
    w1, w, w2 = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5), (5, 5), (5, 2)))
    net = Net()
    hidden = net.op("MatMul", net.input("rows", 2), net.const(w1, np.float32))
    hidden = net.op("Add", hidden, net.op("MatMul", net.op("Tanh", hidden), net.const(w, np.float32)))
    net.output(net.op("MatMul", hidden, net.const(w2, np.float32)))
    norms = [np.sqrt(s) for s in ((w1**2).sum(0), (w**2).sum(1) + (w**2).sum(0), (w2**2).sum(1))]
    expected = sum(norm / norm.mean() for norm in norms)
    np.testing.assert_allclose(scores(analysed(net), "l2")[5], expected, rtol=1e-6)


def test_a_weight_read_by_two_nodes_counts_once() -> None:
    """One matrix applied to two inputs is one weight, not two."""
    net = Net()
    w1, w2 = net.const(np.array(W1), np.float32), net.const(np.array(W2), np.float32)
    hidden = [net.op("MatMul", net.input("rows", 2), w1) for _ in range(2)]
    net.output(net.op("MatMul", net.op("Relu", net.op("Add", *hidden)), w2))
    expected = np.array([2, 2, 6]) / (10 / 3) + 1
    np.testing.assert_allclose(scores(analysed(net), "l1")[3], expected)


def test_factors_of_a_product() -> None:
    """Columns that are heads times width: a head is worth its block, a width what it has in all heads."""
    w = np.arange(1.0, 9.0).reshape(1, 8)
    net = Net()
    split = net.op("Reshape", net.op("MatMul", net.input(1, 1), net.const(w, np.float32)), net.const([2, 4]))
    heads = net.op("Tanh", net.op("MatMul", split, net.const(np.ones((4, 3)), np.float32)))
    net.output(net.op("MatMul", net.const(np.ones((1, 2)), np.float32), heads))
    found = scores(analysed(net), "l1")
    np.testing.assert_allclose(found[2], np.array([10, 26]) / 18 + 1)
    np.testing.assert_allclose(found[4], np.array([6, 8, 10, 12]) / 9 + 1)


def test_terms_of_a_sum() -> None:
    """Rows that two concatenated layers share: each takes the rows that are its own."""
    net = Net()
    x = net.input("rows", 1)
    parts = [net.op("MatMul", x, net.const(np.ones((1, n)), np.float32)) for n in (2, 3)]
    w = np.array([[1.0], [3.0], [1.0], [2.0], [6.0]])
    net.output(net.op("MatMul", net.op("Concat", *parts, axis=1), net.const(w, np.float32)))
    found = scores(analysed(net), "l1")
    np.testing.assert_allclose(found[2], 1 + np.array([1, 3]) / 2)
    np.testing.assert_allclose(found[3], 1 + np.array([1, 2, 6]) / 3)


def normalised(gamma: list[float]) -> Analysis:
    """Convolution, batch norm of scale ``gamma``, convolution of 4 channels without one, convolution."""
    net = Net()
    x, size = net.input(1, 2, 5, 5), len(gamma)
    x = net.op("Conv", x, net.weight(size, 2, 1, 1))
    mean, variance = net.weight(size), net.weight(size, positive=True)
    x = net.op("BatchNormalization", x, net.const(gamma, np.float32), net.weight(size), mean, variance)
    x = net.op("Conv", net.op("Relu", x), net.weight(4, size, 1, 1))
    net.output(net.op("Conv", net.op("Relu", x), net.weight(2, 4, 1, 1)))
    return analysed(net)


def test_batch_norm_scale() -> None:
    """|gamma| over its mean where there is one; l2 where there is none."""
    analysis = normalised([1.0, -3.0, 2.0])
    found = scores(analysis, "bn-scale")
    np.testing.assert_allclose(found[3], np.array([1, 3, 2]) / 2)
    np.testing.assert_array_equal(found[4], scores(analysis, "l2")[4])


def test_batch_norm_scale_of_nothing_but_zeros_falls_back() -> None:
    analysis = normalised([0.0, 0.0, 0.0])
    np.testing.assert_array_equal(scores(analysis, "bn-scale")[3], scores(analysis, "l2")[3])


def test_random_numbers_are_those_of_the_seed() -> None:
    analysis = graphprune.load(digits.PATH).analysis
    first, again, other = (scores(analysis, "random", seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[size], again[size]) for size in first)
    assert not any(np.array_equal(first[size], other[size]) for size in first)
    assert all(0.5 <= values.min() < values.max() < 1.5 for values in first.values())


@pytest.mark.parametrize("name", FREE)
def test_every_score(name: str) -> None:
    """One finite number of at least zero a position, the same each time, and progress that ends at one."""
    analysis, done = graphprune.load(digits.PATH).analysis, list[float]()
    found = score_atoms(Task(analysis, analysis.prunable, 0, done.append), name)
    again = score_atoms(Task(analysis, analysis.prunable), name)
    for atom in analysis.prunable:
        assert found[atom.dim].shape == (atom.size,)
        assert found[atom.dim].dtype == np.float64
        assert (found[atom.dim] >= 0).all()
        assert np.ptp(found[atom.dim]) > 0
        np.testing.assert_array_equal(found[atom.dim], again[atom.dim])
    assert done == sorted(done)
    assert name == "random" or done[-1] == 1


@pytest.mark.parametrize("name", sorted(set(FREE) - {"random"}))
def test_scores_move_with_the_positions(name: str) -> None:
    """Permuting the positions of a Dim in every weight permutes its scores and no others: order means nothing."""
    loaded = graphprune.load(digits.PATH)
    dense = {atom.name: values for atom, values in by_atom(loaded.analysis, name)}
    atom = loaded.analysis.prunable[1]
    order = np.random.default_rng(0).permutation(atom.size)
    permuted = format_.apply(loaded.model, loaded.analysis, {atom.dim: order})
    for other, values in by_atom(analyse(permuted.graph), name):
        expected = dense[other.name][order] if other.name == atom.name else dense[other.name]
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def by_atom(analysis: Analysis, name: str) -> list[tuple[graphprune.Atom, Floats]]:
    found = score_atoms(Task(analysis, analysis.prunable), name)
    return [(atom, found[atom.dim]) for atom in analysis.prunable]


def test_a_score_of_some_dims_leaves_the_others_out() -> None:
    analysis = graphprune.load(digits.PATH).analysis
    some = analysis.prunable[1:3]
    every, found = (score_atoms(Task(analysis, atoms), "l2") for atoms in (analysis.prunable, some))
    assert set(found) == {atom.dim for atom in some}
    assert all(np.array_equal(found[dim], every[dim]) for dim in found)


@settings(deadline=None, max_examples=30)
@given(
    data=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=7), elements=st.floats(-8, 8, width=32)
    ),
    block=st.integers(1, 50),
)
def test_sums_in_blocks_are_the_sums(data: npt.NDArray[np.float32], block: int) -> None:
    axes = list(range(data.ndim))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(weight_scores, "_BLOCK", block)
        groups = [*combinations(axes, 1), *combinations(axes, 2)]
        found = weight_scores.axis_sums(data, groups, np.abs)
    for group, sums in zip(groups, found, strict=True):
        others = tuple(i for i in axes if i not in group)
        np.testing.assert_allclose(sums, np.abs(data.astype(np.float64)).sum(axis=others), rtol=1e-12)


def test_sums_of_nothing() -> None:
    rows, columns = weight_scores.axis_sums(np.zeros((0, 3), np.float32), [(0,), (1,)], np.abs)
    assert (rows.shape, columns.tolist()) == ((0,), [0, 0, 0])


def test_a_score_that_does_not_exist() -> None:
    analysis = layer()
    with pytest.raises(UsageError, match=r"there is no score 'frob'\nWhat to do: choose one of amp, beta-rank, "):
        score_atoms(Task(analysis, analysis.prunable), "frob")


def test_scores_that_need_what_a_file_does_not_have() -> None:
    analysis = layer()
    needy = [name for name, score in SCORES.items() if score.needs.startswith("gradients")]
    assert needy
    for name in needy:
        with pytest.raises(UsageError, match=f"the score '{name}' needs gradients"):
            score_atoms(Task(analysis, analysis.prunable), name)


def test_a_weight_too_large_to_be_squared() -> None:
    """Finite, but its square is not: said without a warning on the way."""
    with pytest.raises(UsageError, match="squares overflowed"):
        scores(layer(1e30), "l2")
    assert np.isfinite(scores(layer(1e30), "l1")[3]).all()


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_mask_that_was_folded_into_a_weight(name: str, dtype: npt.DTypeLike) -> None:
    """The lowest number of a type, which nobody trains, counts as the zero that is in its place in W1."""
    w1 = np.array(W1, dtype)
    assert w1[1, 1] == 0
    w1[1, 1] = np.finfo(w1.dtype).min
    np.testing.assert_allclose(scores(layer(1, dtype, w1), name)[3], scores(layer(1, dtype), name)[3], rtol=1e-5)


def test_every_score_says_where_it_comes_from() -> None:
    for score in SCORES.values():
        first = score.doc.splitlines()[0]
        assert "arXiv" in first or score.name == "random"
        assert first.endswith(".")
