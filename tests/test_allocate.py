"""Allocators on problems small enough to know the answer: the formula of each, and what all of them promise."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphprune.allocate import ALLOCATORS, CostFunction, Counts, Problem
from graphprune.allocate.exact import BINS, _linearised
from graphprune.allocate.threshold import AMPLITUDE, GUARD, ranked, threshold
from graphprune.analysis import Atom
from graphprune.dims import Dim
from graphprune.errors import UsageError

NAMES = sorted(ALLOCATORS)


def polynomial(dims: list[Dim], each: list[float], both: list[float]) -> CostFunction:
    """A sum over Dims of ``each`` times its size, and over neighbours of ``both`` times the product of their sizes."""

    def cost(counts: Counts) -> float:
        sizes = [counts.get(dim, dim.extent) for dim in dims]
        pairs = zip(both, itertools.pairwise(sizes), strict=True)
        return sum(a * k for a, k in zip(each, sizes, strict=True)) + sum(b * k * j for b, (k, j) in pairs)

    return cost


def made(
    seed: int, sizes: tuple[int, ...], share: float = 0.6, *, products: bool = False, step: int = 1, **more: Any
) -> Problem:
    """Random losses that grow at random rates, and random costs."""
    random = np.random.default_rng(seed)
    dims = [Dim(size) for size in sizes]
    scores = {dim: random.exponential(size=dim.extent) * random.exponential() for dim in dims}
    each = random.integers(1, 9, len(dims)).astype(float).tolist()
    both = (random.integers(1, 4, len(dims) - 1) * float(products)).tolist()
    costs = {"macs": polynomial(dims, each, both)}
    counts = {dim: np.array([*range(step, dim.extent, step), dim.extent]) for dim in dims}
    more = {"across": "error", **more}
    limits = more.pop("limits", {"macs": share * costs["macs"]({})})
    atoms = [Atom(dim, f"d{i}", "channel", [], None) for i, dim in enumerate(dims)]
    return Problem(atoms, scores, counts, {**costs, **more.pop("costs", {})}, limits, **more)


def every(problem: Problem) -> Iterator[dict[Dim, int]]:
    """All counts that meet the targets."""
    dims = list(problem.counts)
    for counts in itertools.product(*(problem.counts[dim].tolist() for dim in dims)):
        if problem.fits(found := dict(zip(dims, counts, strict=True))):
            yield found


def distance(problem: Problem, weights: list[float]) -> Any:
    """Outputs that really move by the curves times ``weights``: what the curves themselves do not know."""
    told = dict(zip(problem.counts, weights, strict=True))
    return lambda counts: float(sum(told[dim] * problem.curves[dim][count] for dim, count in counts.items()))


def solved(name: str, problem: Problem) -> dict[Dim, int]:
    return ALLOCATORS[name].function(problem)


# What all of them promise.


@pytest.mark.parametrize("across", ["error", "mean", "same"])
@pytest.mark.parametrize("name", NAMES)
def test_targets_are_met_with_counts_that_may_be(name: str, across: str) -> None:
    for seed, share, step in itertools.product(range(4), (0.3, 0.6, 0.95), (1, 3)):
        problem = made(seed, (12, 7, 9), share, products=True, step=step, across=across)
        measured = distance(problem, [1.0, 1.0, 1.0])
        counts = solved(name, replace(problem, measured=measured, tries=12))
        assert problem.fits(counts)
        assert all(count in problem.counts[dim] for dim, count in counts.items())
        assert set(counts) == set(problem.counts)


@pytest.mark.parametrize("name", NAMES)
def test_several_targets_all_hold(name: str) -> None:
    for seed in range(6):
        problem = made(seed, (12, 7, 9), products=True)
        dims = [*problem.counts]
        second = polynomial(dims, [1.0, 5.0, 2.0], [0.0, 0.0])
        limits = {"macs": 0.6 * problem.costs["macs"]({}), "params": 0.7 * second({})}
        both = replace(problem, costs={**problem.costs, "params": second}, limits=limits)
        both = replace(both, measured=distance(both, [1.0] * 3), tries=8)
        counts = solved(name, both)
        assert problem.costs["macs"](counts) <= limits["macs"]
        assert second(counts) <= limits["params"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_again(name: str) -> None:
    problem = made(3, (12, 7, 9), products=True)
    problem = replace(problem, measured=distance(problem, [3.0, 0.1, 1.0]), tries=30)
    assert solved(name, problem) == solved(name, problem)


def test_scores_of_nothing_but_zeros() -> None:
    for name in NAMES:
        problem = made(0, (6, 8))
        problem = replace(problem, scores={dim: np.zeros(dim.extent) for dim in problem.counts})
        assert problem.fits(solved(name, replace(problem, measured=lambda counts: 0.0, tries=8)))


def test_a_cost_that_one_dim_alone_does_not_bring_down() -> None:
    """The larger of two sums of two Dims, which are as large: of either sum the Dim goes that frees more for a loss."""
    dims = [Dim(20) for _ in range(4)]
    first, second = polynomial(dims[:2], [9.0, 1.0], [0.0]), polynomial(dims[2:], [1.0, 9.0], [0.0])
    both = (lambda counts: max(first(counts), second(counts))), (lambda counts: first(counts) + second(counts))
    scores = {dim: np.linspace(1, 2, 20) for dim in dims}
    atoms = [Atom(dim, f"d{i}", "channel", [], None) for i, dim in enumerate(dims)]
    counts = {dim: np.arange(1, 21) for dim in dims}
    problem = Problem(atoms, scores, counts, {"activations": both[0]}, {"activations": 0.6 * both[0]({})}, "error")
    best = min(map(problem.loss, every(replace(problem, counts={dim: own[::2] for dim, own in counts.items()}))))
    for name in ("global", "dynamic", "knapsack"):
        assert problem.loss(solved(name, problem)) > 1.2 * best
        assert problem.loss(solved(name, replace(problem, charged={"activations": both[1]}))) <= best


# Each by itself.


def test_uniform_is_the_largest_share_that_fits() -> None:
    problem = made(0, (10, 20, 40), 0.5)
    counts = [*solved("uniform", problem).values()]
    shares = sorted({k / size for size in (10, 20, 40) for k in range(1, size + 1)})
    known = [[max(1, math.floor(s * size + 1e-9)) for size in (10, 20, 40)] for s in shares]
    fitting = [own for own in known if problem.fits(dict(zip(problem.counts, own, strict=True)))]
    assert counts == fitting[-1]


def test_flap_standardises_each_dim() -> None:
    """The same scores in units a thousand times as large, and further up, are cut alike."""
    dims = [Dim(10), Dim(10)]
    own = np.random.default_rng(0).exponential(size=10)
    cost = polynomial(dims, [1.0, 1.0], [0.0])
    counts = {dim: np.arange(1, 11) for dim in dims}
    atoms = [Atom(dim, "", "channel", [], None) for dim in dims]
    problem = Problem(atoms, {dims[0]: own, dims[1]: 1000 * own + 7}, counts, {"macs": cost}, {"macs": 10.0}, "error")
    assert [*solved("flap", problem).values()] == [5, 5]
    assert [*solved("global", problem).values()] != [5, 5]


def test_layer_adaptive_spreads_shares_by_importance() -> None:
    dims = [Dim(100) for _ in range(3)]
    scores = {dim: np.full(100, worth) for dim, worth in zip(dims, (1.0, 10.0, 100.0), strict=True)}
    cost = polynomial(dims, [1.0] * 3, [0.0] * 2)
    atoms = [Atom(dim, "", "channel", [], None) for dim in dims]
    counts = {dim: np.arange(1, 101) for dim in dims}
    problem = Problem(atoms, scores, counts, {"macs": cost}, {"macs": 150.0}, "error")
    found = [*solved("layer-adaptive", problem).values()]
    assert found == [round(100 * (0.5 - AMPLITUDE)), 50, round(100 * (0.5 + AMPLITUDE))]
    alike = replace(problem, scores={dim: np.ones(100) for dim in dims})
    assert solved("layer-adaptive", alike) == solved("uniform", alike)


def test_guarded_lets_no_dim_collapse() -> None:
    problem = made(0, (20, 20), 0.5)
    weak, strong = problem.counts
    scores = {weak: problem.scores[weak] * 1e-6, strong: problem.scores[strong]}
    problem = replace(problem, scores=scores)
    even = solved("uniform", problem)
    least = math.ceil(GUARD * even[weak])
    assert solved("global", problem)[weak] < least
    assert solved("guarded", problem)[weak] == least


def test_global_takes_the_price_that_loses_least() -> None:
    """Where two targets bind, ranking by either alone, and by both, are all tried."""
    lost = []
    for seed in range(20):
        problem = made(seed, (12, 7, 9))
        second = polynomial([*problem.counts], [1.0, 5.0, 2.0], [0.0, 0.0])
        limits = {**problem.limits, "params": 0.5 * second({})}
        problem = replace(problem, costs={**problem.costs, "params": second}, limits=limits)
        counts = solved("global", problem)
        assert counts == threshold(problem, ranked(problem))
        alone = [threshold(problem, own) for own in by_one(problem)]
        assert problem.loss(counts) <= min(map(problem.loss, alone)) + 1e-12
        lost.append([problem.loss(own) - problem.loss(counts) for own in alone])
    assert (np.max(lost, axis=0) > 0).all(), "neither alone is always best"


def by_one(problem: Problem) -> Iterator[Any]:
    """Losses for what is freed of one cost alone."""
    for name in problem.limits:
        freed = problem.freed({}, {name: 1.0})
        yield {dim: losses / freed[dim] for dim, losses in problem.losses.items()}


def test_knapsack_is_exact_where_costs_are_sums() -> None:
    pytest.importorskip("scipy")
    for seed, share, step in itertools.product(range(8), (0.4, 0.7), (1, 2)):
        problem = made(seed, (8, 6, 7, 5), share, step=step)
        least = min(map(problem.loss, every(problem)))
        assert problem.loss(solved("knapsack", problem)) == pytest.approx(least, rel=1e-5, abs=1e-9)


def test_dynamic_is_exact_up_to_its_parts() -> None:
    """No worse than the best under a budget that is one part a Dim smaller."""
    better = 0
    for seed, share in itertools.product(range(8), (0.4, 0.7)):
        problem = made(seed, (8, 6, 7, 5), share)
        spent = problem.limits["macs"] - problem.costs["macs"](problem.least)
        less = {"macs": problem.limits["macs"] - len(problem.atoms) * spent / BINS}
        tighter = replace(problem, limits=less)
        found = problem.loss(solved("dynamic", problem))
        assert found <= min(map(tighter.loss, every(tighter))) + 1e-9
        better += found < problem.loss(solved("global", problem)) - 1e-9
    assert better, "one threshold is not always best"


@pytest.mark.parametrize("name", ["knapsack", "dynamic"])
def test_products_in_costs(name: str) -> None:
    """Never worse than global, and hardly worse than the best of all."""
    pytest.importorskip("scipy")
    ratios = []
    for seed in range(12):
        problem = made(seed, (9, 8, 7), 0.5, products=True)
        found, best = problem.loss(solved(name, problem)), min(map(problem.loss, every(problem)))
        assert best - 1e-9 <= found <= problem.loss(solved("global", problem)) + 1e-9
        ratios.append(found / best)
    assert np.median(ratios) < 1.02


def test_a_solution_that_loses_more_than_global_is_not_taken() -> None:
    """A solver that leaves as little as may be of some Dims, and all of the others."""
    for seed in range(8):
        problem = made(seed, (9, 8, 7), 0.5, products=True)
        found = _linearised(problem, lambda losses, extra, room: [0, len(losses[1]) - 1, 0])
        assert problem.loss(found) <= problem.loss(solved("global", problem))


def test_knapsack_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(UsageError, match="needs scipy"):
        solved("knapsack", made(0, (4, 4)))


# Search.


def test_search_finds_what_curves_do_not_know() -> None:
    problem = made(1, (20, 20, 20, 20), 0.5, products=True)
    weights = [20.0, 0.05, 1.0, 0.05]
    measured = distance(problem, weights)
    told = replace(problem, measured=measured, tries=120)
    first, found = measured(solved("global", problem)), measured(solved("search", told))
    scores = {dim: own * w for (dim, own), w in zip(problem.scores.items(), weights, strict=True)}
    known = measured(solved("global", replace(problem, scores=scores)))
    assert found < 0.5 * first, f"{found} after {first}"
    assert found < 1.2 * known, "hardly worse than what is found by who knows the weights"


@pytest.mark.parametrize("tries", [1, 2, 6, 20])
def test_search_is_never_worse_than_global_and_asks_no_more_than_it_may(tries: int) -> None:
    for seed in range(5):
        problem = made(seed, (12, 9, 14), 0.5, products=True, tries=tries)
        asked: list[Counts] = []

        def measured(counts: Counts, asked: list[Counts] = asked) -> float:
            asked.append(counts)
            return float(np.random.default_rng([*counts.values()]).random())  # noise: nothing to learn

        counts = solved("search", replace(problem, measured=measured))
        assert len(asked) == tries
        assert asked[0] == solved("global", problem)
        assert measured(counts) == min([measured(other) for other in asked[:tries]])


def test_seeds_of_a_search() -> None:
    problem = made(2, (30, 30, 30), 0.5, products=True)
    told = distance(problem, [5.0, 0.2, 1.0])

    def asked(seed: int) -> list[Counts]:
        found: list[Counts] = []

        def measured(counts: Counts) -> float:
            found.append(counts)
            return float(told(counts))

        solved("search", replace(problem, seed=seed, tries=12, measured=measured))
        return found

    first = asked(1)
    assert first == asked(1)
    assert first[:6] == asked(2)[:6], "levels of the curves come first"
    assert first != asked(2)


def test_search_needs_data() -> None:
    with pytest.raises(UsageError, match="tries candidates on data, and there are none"):
        solved("search", made(0, (4, 4)))


def test_a_candidate_that_cannot_be_measured_is_not_taken() -> None:
    problem = made(0, (20, 20), 0.5)
    start = solved("global", problem)
    told = replace(problem, measured=lambda counts: 1.0 if counts == start else math.nan, tries=20)
    assert solved("search", told) == start


def test_what_the_solver_prints_is_no_result(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """HiGHS writes past Python, to where a plan may be going."""
    optimize = pytest.importorskip("scipy.optimize")
    solve = optimize.milp

    def loud(*given: Any, **options: Any) -> Any:
        os.write(1, b"from the solver\n")
        return solve(*given, **options)

    monkeypatch.setattr(optimize, "milp", loud)
    solved("knapsack", made(0, (12, 7, 9)))
    os.write(1, b"the plan\n")
    out, err = capfd.readouterr()
    assert (out, "from the solver\n" in err) == ("the plan\n", True)
