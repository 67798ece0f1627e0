"""What of a compensation is kept: that which brings outputs nearer, on a network where the rest does harm."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

import graphprune
from graphprune.compensate import Changed, How
from graphprune.dims import Chosen
from graphprune.graph import Array
from graphprune.helpful import helpful
from graphprune.loaded import Loaded
from graphprune.plan import Plan, make_plan
from graphprune.verify import moved
from tests.build import Net

X = np.random.default_rng(2).standard_normal((4, 64, 6)).astype(np.float32)
WIDTH, HIDDEN = 6, 10


def parts(names: str) -> list[Changed]:
    return [Changed({name: np.zeros(1)}, {}) for name in names]


def harm(names: str, found: Changed, good: float = 1.0) -> float:
    """What is lost by ``found``: each of ``names`` does harm, each other some good."""
    return 100 - good * len(found.values) + 1000 * len(set(found.values) & set(names))


@pytest.mark.parametrize("bad", ["", "a", "d", "bc", "aceg", "abcdefg"])
def test_what_does_harm_is_found(bad: str) -> None:
    found, left_out = helpful(parts("abcdefg"), lambda changed: harm(bad, changed))
    assert set(found.values) == set("abcdefg") - set(bad)
    assert left_out == len(bad)


def test_it_is_cheap_where_all_is_well() -> None:
    """Two looks: with all of it, and with none."""
    seen: list[float] = []

    def lost(changed: Changed) -> float:
        seen.append(harm("", changed))
        return seen[-1]

    helpful(parts("abcdefgh"), lost)
    assert len(seen) == 2


def test_numbers_that_are_none_are_harm() -> None:
    assert helpful(parts("ab"), lambda changed: float("nan") if "b" in changed.values else 1.0)[1] == 1


def test_what_helps_alone_may_harm_together() -> None:
    """Halves that are good by themselves and bad with each other: nothing is kept."""
    cost = {0: 1.0, 1: 0.5, 2: 0.5, 3: 2.0, 4: 2.0}
    found, left_out = helpful(parts("abcd"), lambda changed: cost[len(changed.values)])
    assert (len(found.values), left_out) == (0, 4)


def network() -> Loaded:
    """Two blocks behind each other, x + W2 relu(W1 x), then layer norms.

    Unit 0 of the first is off but for one row in a hundred, and massive there; that of the second is all but constant.
    """
    net, random = Net(), np.random.default_rng(3)
    x = net.input("rows", WIDTH)
    for block in range(2):
        w1, b1 = random.standard_normal((WIDTH, HIDDEN)), random.standard_normal(HIDDEN)
        w2, b2 = random.standard_normal((HIDDEN, WIDTH)) * 0.3, np.zeros(WIDTH)
        w1[:, 0], b1[0] = (3000.0, -7000.0) if block == 0 else (0.01, 4.0)
        w1[1:, 0] = 0.0
        w2[0] = random.standard_normal(WIDTH) * (3 if block == 0 else 0.5)
        hidden = net.op("Relu", net.op("Gemm", x, net.const(w1, np.float32), net.const(b1, np.float32)))
        made = net.op("Gemm", hidden, net.const(w2, np.float32), net.const(b2, np.float32))
        x = net.op("Add", x, made)
        ones, zeros = net.const(np.ones(WIDTH), np.float32), net.const(np.zeros(WIDTH), np.float32)
        x = net.op("LayerNormalization", x, ones, zeros)
    net.output(x)
    return graphprune.load(net.model())


def batches(loaded: Loaded) -> list[dict[str, np.ndarray]]:
    """Normal rows; 2.4 is passed by one in a hundred."""
    return [{loaded.analysis.graph.inputs[0]: rows} for rows in X]


def without_the_first(loaded: Loaded) -> Plan:
    """Unit 0 of both blocks goes."""
    hidden = [atom for atom in loaded.analysis.prunable if atom.size == HIDDEN]
    assert len(hidden) == 2
    return make_plan(loaded.analysis, {atom.dim: np.arange(1, HIDDEN) for atom in hidden}, "", {})


def drift(loaded: Loaded, made: Loaded, plan: Plan) -> float:
    """How far outputs are from those of the whole model."""
    cut = made.apply(plan, verify="none", timing=False)
    before, after = (
        [model.format.run(one)(batch) for batch in batches(loaded)]
        for model, one in ((loaded, loaded.model), (made, cut.pruned))
    )
    return moved(before, after)


@pytest.mark.parametrize("how", ["bias", "least-squares", "sequential"])
def test_a_massive_unit_is_not_spread_over_all_rows(how: How) -> None:
    """The bias of the first block would take up the mean of what a few rows have; that of the second is right to."""
    loaded = network()
    plan, seen = without_the_first(loaded), batches(loaded)
    moments = loaded.measure(seen)
    bare = drift(loaded, loaded, plan)
    made = loaded.compensated(plan, moments, 0.01, how, seen)
    assert drift(loaded, made, plan) < 0.8 * bare
    assert "1 of 2 layers were not made up for at once: outputs moved more" in made.notes
    if how != "sequential":  # which is nothing without data to look at
        assert drift(loaded, loaded.compensated(plan, moments, 0.01, how), plan) > bare


def test_what_is_left_out_is_as_it_was() -> None:
    """Weight and bias of the first block are those of the file; those of the second are not."""
    loaded = network()
    plan, seen = without_the_first(loaded), batches(loaded)
    made = loaded.compensated(plan, loaded.measure(seen), 0.01, "least-squares", seen)
    weights = loaded.analysis.graph.weights

    def same(names: Iterable[str]) -> list[bool]:
        return [np.array_equal(weights[n].load(), made.analysis.graph.weights[n].load()) for n in names]

    second = [list(node.inputs[1:]) for node in loaded.analysis.graph.nodes if node.op == "gemm"][1::2]
    assert same(second[0]) == [True, True]
    assert same(second[1]) == [False, False]


def test_fits_in_order_that_do_harm_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found layer after layer is taken only where outputs come nearer than all at once."""
    loaded = network()
    plan, seen = without_the_first(loaded), batches(loaded)

    def nonsense(self: Loaded, chosen: Chosen, changed: Changed, *_: object) -> dict[str, Array]:
        return {name: value * 3 for name, value in changed.values.items()}

    moments = loaded.measure(seen)
    expected = loaded.compensated(plan, moments, 0.01, "least-squares", seen)
    monkeypatch.setattr(Loaded, "_in_order", nonsense)
    made = loaded.compensated(plan, moments, 0.01, "best", seen)
    assert "weights were not fitted layer after layer: outputs moved more" in made.notes
    assert "the weights that stay make up for what went, by least squares" in made.notes
    assert drift(loaded, made, plan) == drift(loaded, expected, plan)
