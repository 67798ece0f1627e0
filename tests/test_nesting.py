"""Nesting: what lies under what, positions that differ from one outer position to the next, and their proofs.

A condition left out of `graphprune.nesting` must make a proof fail, on a model that is there for it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphprune
from graphprune import nesting
from graphprune.analysis import Analysis
from graphprune.dims import Dim, Positions, numbers, ones, picks, product, sum_, take, tally
from graphprune.errors import PlanError
from graphprune.graph import pick
from graphprune.plan import Cut, Plan, make_plan
from graphprune.scores import SCORES
from tests.build import Net
from tests.prove import Subject

PROPERTIES = settings(max_examples=100, deadline=None, derandomize=True)


# Positions.


@st.composite
def nested(draw: Callable[[Any], int]) -> tuple[dict[str, Dim], dict[Dim, Positions]]:
    """An atom a, b under it, c under b, and another d, each with some of its positions (b and c by rows), or all."""
    sizes = {name: draw(st.integers(2, 4)) for name in "abcd"}
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    dims = {name: Dim(size) for name, size in sizes.items()}
    chosen = {}
    for name, outer in (("a", None), ("b", "a"), ("c", "b"), ("d", None)):
        if draw(st.booleans()):
            dims[name].under = dims[outer] if outer else None
            count = int(random.integers(1, sizes[name] + 1))
            rows = [random.permutation(sizes[name])[:count] for _ in range(sizes[outer] if outer else 1)]
            chosen[dims[name]] = np.array(rows if outer else rows[0])
    return dims, chosen


def spelled_out(dims: dict[str, Dim], chosen: dict[Dim, Positions], order: str) -> list[tuple[int, ...]]:
    """The positions that stay of the product of the dims of ``order``, one atom after the other."""
    outer = {"b": "a", "c": "b"}

    def kept(name: str, row: dict[str, int]) -> list[int]:
        index = chosen.get(dims[name], np.arange(dims[name].extent))
        return list((index if index.ndim == 1 else index[row[outer[name]]]).tolist())

    found = []
    counts = [range(len(kept(name, dict.fromkeys("abcd", 0)))) for name in order]
    for place in itertools.product(*counts):
        at, row = dict(zip(order, place, strict=True)), dict[str, int]()
        for name in "abcd":
            if name in order:
                row[name] = kept(name, row)[at[name]]
        found.append(tuple(row[name] for name in order))
    return found


@PROPERTIES
@given(nested(), st.permutations("abcd"))
def test_rows_of_a_product_spelled_out(made: tuple[dict[str, Dim], dict[Dim, Positions]], order: list[str]) -> None:
    """Whatever the order of the factors: each row is found by the position of the outer atom before the cut."""
    dims, chosen = made
    whole = product(*(dims[name] for name in order))
    shape = [dims[name].extent for name in order]
    expected = [int(np.ravel_multi_index(row, shape)) for row in spelled_out(dims, chosen, "".join(order))]
    assert take(whole, chosen).tolist() == expected


@PROPERTIES
@given(nested(), st.booleans())
def test_rows_on_two_axes_spelled_out(made: tuple[dict[str, Dim], dict[Dim, Positions]], turned: bool) -> None:
    """A weight [(d a), (b c)], or turned: what is taken of it, and where zeros are put instead."""
    dims, chosen = made
    layout = [product(dims["d"], dims["a"]), product(dims["b"], dims["c"])]
    shape = [dims[name].extent for name in "dabc"]
    data = np.arange(np.prod(shape)).reshape(layout[0].extent, layout[1].extent)
    expected = [int(np.ravel_multi_index(row, shape)) for row in spelled_out(dims, chosen, "dabc")]
    if turned:
        layout, data = layout[::-1], data.T
    found = pick(data, picks(layout, chosen))
    assert (found.T if turned else found).ravel().tolist() == expected
    stays = (ones(layout, 0, chosen) * ones(layout, 1, chosen)).astype(bool)
    assert sorted(data[np.broadcast_to(stays, data.shape)].tolist()) == sorted(expected)


def test_rows_through_a_sum() -> None:
    """(a (b + c)): each summand is taken by its own rows."""
    a, b, c = Dim(2), Dim(3), Dim(2)
    b.under = c.under = a
    chosen = {b: np.array([[0, 2], [0, 1]]), c: np.array([[1], [0]])}
    assert take(product(a, sum_(b, c)), chosen).tolist() == [0, 2, 4, 5, 6, 8]
    both = sum_(product(a, b), product(a, c))
    assert take(both, chosen).tolist() == [0, 2, 3, 4, 6 + 1, 6 + 2]


@PROPERTIES
@given(nested(), st.permutations("abd"))
def test_pairs_are_counted(made: tuple[dict[str, Dim], dict[Dim, Positions]], order: list[str]) -> None:
    """Each position of the pair has all the numbers that lie at it."""
    dims, _ = made
    shape = [dims[name].extent for name in order]
    values = np.random.default_rng(0).random(shape)
    pair, whole = product(dims["a"], dims["b"]), product(*(dims[name] for name in order))
    expected = np.moveaxis(values, [order.index("a"), order.index("b")], [0, 1]).sum(2).ravel()
    np.testing.assert_allclose(tally(whole, values.ravel(), [pair])[pair], expected)
    assert np.bincount(numbers(whole, pair)).tolist() == [0, *[dims["d"].extent] * expected.size]


# Models.


def grouped(seed: int = 0) -> Net:
    """Convolutions in 3 groups of 4 channels, to 3 groups of 5, and what sums over them."""
    net = Net(seed)
    x = net.op("Relu", net.op("Conv", net.input(2, 3, 5, 5), net.weight(12, 3, 3, 3, fan=27), net.weight(12)))
    x = net.op("Elu", net.op("Conv", x, net.weight(15, 4, 3, 3, fan=36), net.weight(15), group=3))
    net.sink(net.op("Conv", x, net.weight(6, 15, 1, 1, fan=15)))
    return net


def shuffled() -> Net:
    """The groups of a grouped convolution change places with their channels, as in ShuffleNet."""
    net = Net()
    x = net.op("Relu", net.op("Conv", net.input(1, 3, 4, 4), net.weight(12, 3, 1, 1, fan=3)))
    x = net.op("Conv", x, net.weight(21, 4, 1, 1, fan=4), group=3)
    x = net.op("Transpose", net.op("Reshape", x, net.const([1, 3, 7, 4, 4])), perm=[0, 2, 1, 3, 4])
    net.sink(net.op("Conv", net.op("Reshape", x, net.const([1, 21, 4, 4])), net.weight(5, 21, 1, 1, fan=21)))
    return net


def transposed() -> Net:
    """A transposed convolution in groups: the channels that come out lie on its weight's other axis."""
    net = Net()
    x = net.op("Relu", net.op("Conv", net.input(1, 3, 4, 4), net.weight(12, 3, 1, 1, fan=3)))
    x = net.op("Elu", net.op("ConvTranspose", x, net.weight(12, 5, 2, 2, fan=16), group=3))
    net.sink(x, hidden=7)
    return net


def queries(shared_scale: bool = False) -> Net:
    """Attention of 2 key heads with 3 query heads each; ``shared_scale``: one scale of positions for all heads."""
    net = Net()
    x, s, k, r, d = net.input(1, 6, 8), 6, 2, 3, 4

    def part(heads: int, shape: list[int], perm: list[int]) -> str:
        made = net.op("MatMul", x, net.weight(8, heads * d, fan=8))
        return net.op("Transpose", net.op("Reshape", made, net.const(shape)), perm=perm)

    query = part(k * r, [1, s, k, r, d], [0, 2, 3, 1, 4])
    key = part(k, [1, s, k, 1, d], [0, 2, 3, 4, 1])
    value = part(k, [1, s, k, 1, d], [0, 2, 3, 1, 4])
    if shared_scale:
        value = net.op("Mul", value, net.weight(d))
    weights = net.op("Softmax", net.op("MatMul", query, key), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", weights, value), perm=[0, 3, 1, 2, 4])
    net.sink(net.op("Reshape", mixed, net.const([1, s, k * r * d])))
    return net


def gram() -> Net:
    """x xᵀ: positions of b meet at two positions of a."""
    net = Net()
    x = net.free(3, 4)
    net.sink(net.op("MatMul", x, net.op("Transpose", x, perm=[1, 0])), hidden=5)
    net.sink(x)
    return net


def mixing() -> Net:
    """x + A x: positions of a are mixed while b stays."""
    net = Net()
    x = net.free(3, 4)
    net.sink(net.op("Add", x, net.op("Tanh", net.op("MatMul", net.weight(3, 3, fan=3), x))))
    return net


def softmax() -> Net:
    """A softmax over a, of which every position of b has its own."""
    net = Net()
    net.sink(net.op("Softmax", net.free(3, 4), axis=0), hidden=5)
    return net


def under(analysis: Analysis) -> dict[int, int]:
    """Sizes of the atoms that lie under another, and of that one."""
    return {atom.size: atom.dim.under.extent for atom in analysis.prunable if atom.dim.under}


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (grouped, {4: 3, 5: 3}),
        (shuffled, {4: 3, 7: 3}),
        (transposed, {4: 3, 5: 3}),
        (queries, {3: 2, 4: 2}),
        (lambda: queries(shared_scale=True), {3: 2, 4: 2}),
        (gram, {}),
        (mixing, {}),
        (softmax, {3: 4}),
    ],
)
def test_what_lies_under_what(net: Callable[[], Net], expected: dict[int, int]) -> None:
    """And all proofs hold, with other positions under each outer one."""
    subject = Subject(net().model())
    assert under(subject.analysis) == expected
    for _ in range(3):
        assert subject.failures() == []


def test_one_that_is_alone_somewhere() -> None:
    """Keys and queries lie under their head; values have one scale for all heads, so that theirs lie under none."""
    analysis = Subject(queries(shared_scale=True).model()).analysis
    fours = [atom for atom in analysis.prunable if atom.size == 4]
    assert sorted(atom.dim.under is None for atom in fours) == [False, True]


def anything(besides: Any) -> Any:
    """Wrong: what an atom has beside it anywhere will do."""
    found: dict[Dim, Any] = {}
    for beside in besides:
        for atom, others in beside.items():
            found[atom] = found.get(atom, frozenset()) | others
    return found


WRONG: dict[str, Any] = {
    "_everywhere": anything,
    "_twice": lambda seen: frozenset(),
    "_mixed": lambda facts: defaultdict(list),
}


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (lambda: queries(shared_scale=True), ["_everywhere"]),
        (gram, ["_twice"]),
        (mixing, ["_twice", "_mixed"]),
        (softmax, ["_mixed"]),
    ],
)
def test_a_condition_left_out_is_caught(
    net: Callable[[], Net], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them each see that a is mixed by a matrix."""
    assert Subject(net().model()).proof.permutation().passed
    for name in names:
        assert _proved(net())
        monkeypatch.setattr(nesting, name, WRONG[name])
    assert not _proved(net())


def _proved(net: Net) -> bool:
    try:
        return Subject(net.model()).proof.permutation().passed
    except (KeyError, RuntimeError, StopIteration):  # it has no row to take: as good as a failed proof
        return False


def test_zeros_at_other_places_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero equals cut fails where the rows of the mask are not those of the cut."""
    subject = Subject(grouped().model())
    chosen = {d: rows if rows.ndim == 1 else np.array([[0, 1], [1, 2], [0, 3]]) for d, rows in subject.cut().items()}
    assert subject.proof.zero_equals_cut(chosen).passed
    real = subject.format.mask
    turned = {dim: rows if rows.ndim == 1 else rows[::-1] for dim, rows in chosen.items()}
    monkeypatch.setattr(subject.format, "mask", lambda model, analysis, _: real(model, analysis, turned))
    assert not subject.proof.zero_equals_cut(chosen).passed


# Choice.


def test_heads_on_one_axis_with_a_batch_of_unknown_size() -> None:
    """Where zeros would have to differ from head to head nobody knows how often: those Dims are not in that proof."""
    net = Net()
    x = net.input("n", 8)
    q, k = (net.op("MatMul", x, net.weight(8, 12)) for _ in range(2))
    q, k = net.op("Reshape", q, net.const([-1, 1, 3])), net.op("Reshape", k, net.const([-1, 3, 1]))
    y = net.op("Reshape", net.op("MatMul", q, k), net.const([-1, 4]))
    net.output(net.op("MatMul", y, net.weight(4, 5)))
    subject = Subject(net.model())
    width = subject.atom(3).dim
    assert width.under is subject.atom(4).dim
    assert width not in subject.format.maskable(subject.analysis)
    assert subject.failures({width: np.array([[0, 1], [0, 2], [1, 2], [0, 1]])}) == []


def kept(result: graphprune.Result) -> dict[int, Cut]:
    """Cuts by size."""
    return {cut.size: cut for cut in result.plan.cuts}


def test_each_group_keeps_its_largest() -> None:
    """By l1, the best of each row; with finer=False the same in all."""
    net = grouped()
    one, own = (graphprune.prune(net.model(), keep=0.5, multiple=1, score="l1", finer=finer) for finer in (False, True))
    assert one.report.verified
    assert own.report.verified
    assert one.report.pruned == own.report.pruned
    assert [cut.rows for cut in one.plan.cuts] == [1] * len(one.plan.cuts)
    assert {size: cut.rows for size, cut in kept(own).items() if size in (4, 5)} == {4: 3, 5: 3}
    made, bias, read = (one.loaded.analysis.graph.weights[name].load() for name in net_weights(net.model()))
    rows = [part / part.mean() for part in (np.abs(made).sum((1, 2, 3)), np.abs(bias))]
    rows.append(np.abs(read).reshape(3, 5, 4, 9).sum((1, 3)).ravel())
    worth = sum(part / part.mean() for part in rows).reshape(3, 4)
    assert kept(own)[4].positions.tolist() == np.sort(np.argsort(-worth, axis=1)[:, :2]).tolist()


def net_weights(model: onnx.ModelProto) -> list[str]:
    """The first convolution's weight and bias, and the weight that reads its channels."""
    first, second = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    return [first.input[1], first.input[2], second.input[1]]


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_chooses_rows(name: str) -> None:
    """Each position of a pair has its score, and the pruned model is proved."""
    loaded = graphprune.load(queries().model())
    rng = np.random.default_rng(0)
    feeds = [{name: rng.standard_normal((1, 6, 8)).astype(np.float32) for name in loaded.analysis.graph.inputs}]
    request = graphprune.Request(keep=0.67, multiple=1, allow=("all",))
    data: dict[str, Any] = {"moments": loaded.measure(feeds), "sample": feeds[0], "batches": feeds * 2}
    found = loaded.scores(request, name, **data)
    for dim, pair in loaded.analysis.pairs.items():
        assert found[pair].shape == (pair.extent,)
        assert found[dim].shape == (dim.extent,)
        assert np.ptp(found[pair]) > 0 or np.ptp(found[dim]) == 0, "no weight reads it"
    assert any(np.ptp(found[pair]) > 0 for pair in loaded.analysis.pairs.values())
    plan = loaded.plan(request, name, scores=found)
    assert Plan.from_json(plan.to_json()) == plan
    assert loaded.apply(plan, timing=False).report.verified


@pytest.mark.parametrize("how", ["least-squares", "sequential"])
def test_compensation_makes_up_for_rows(how: str) -> None:
    """What reads the query heads is fitted to the heads that stay in each group."""
    model, rng = queries().model(), np.random.default_rng(0)
    feeds = [{model.graph.input[0].name: rng.standard_normal((1, 6, 8)).astype(np.float32)} for _ in range(400)]
    heads = [atom.name for atom in graphprune.load(model).analysis.prunable if atom.kind == "head"]
    moved = []
    for compensate in (False, how):
        result = graphprune.prune(
            model, keep=0.34, multiple=1, score="flap", include=heads, calib=feeds, compensate=compensate
        )
        assert result.report.verified
        assert any(cut.rows > 1 for cut in result.plan.cuts)
        moved.append(result.report.drift or 0.0)
    assert moved[1] < moved[0]


# Plans.


def test_rows_in_a_plan() -> None:
    """Rows count through; another export finds them by places of both Dims; plans of old load as they are."""
    loaded = graphprune.load(grouped().model())
    analysis = loaded.analysis
    (dim,) = (atom.dim for atom in analysis.prunable if atom.size == 4)
    plan = make_plan(analysis, {dim: np.array([[0, 1], [2, 3], [0, 3]])}, "l1", {})
    (cut,) = plan.cuts
    assert (cut.keep, cut.rows) == ((0, 1, 6, 7, 8, 11), 3)
    assert '"keep": "0-1,6-8,11"' in plan.to_json()
    for there in (plan, Plan.from_json(plan.to_json()), Plan("0" * 16, plan.cuts)):
        assert there.chosen(analysis)[dim].tolist() == [[0, 1], [2, 3], [0, 3]]
    assert '"rows"' not in loaded.plan(graphprune.Request(keep=0.5, multiple=1, finer=False)).to_json()


@pytest.mark.parametrize(
    ("keep", "rows", "why"),
    [
        ((0, 1, 6, 7), 2, "2 rows of positions, and dim number 1 takes 3"),
        ((0, 1, 2, 6, 7, 8), 3, "as many positions in each of 3 rows of 4"),
        ((0, 1, 6, 7, 8, 12), 3, "do not ascend from 0 to 11"),
        ((), 3, "fewer than the 1"),
        ((0, 1), 0, "0 rows of positions"),
    ],
)
def test_rows_that_do_not_fit(keep: tuple[int, ...], rows: int, why: str) -> None:
    loaded = graphprune.load(grouped().model())
    plan = loaded.plan(graphprune.Request(keep=0.5))
    bad = Plan(plan.model, (Cut(1, "conv", "channel", 4, keep, (), rows),))
    with pytest.raises(PlanError, match=why):
        bad.chosen(loaded.analysis)
