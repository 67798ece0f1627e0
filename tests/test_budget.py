"""Budgets and costs: what is promised of every request, and counts that agree with the file and with a pencil."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import graphprune
from graphprune.allocate import ALLOCATORS, Allocator, Problem
from graphprune.analysis import Analysis, Atom, analyse
from graphprune.budget import LARGE, Request, allocate, amount, candidates, count_for, least_count, top
from graphprune.cost import CostModel
from graphprune.dims import Dim, Positions
from graphprune.errors import BudgetError, UsageError
from graphprune.formats import onnx as format_
from graphprune.loaded import Loaded
from graphprune.scores import Scores
from models import digits, real
from models.light import light
from tests.build import Net

MODELS: dict[str, Callable[[], Path]] = {"digits": lambda: digits.PATH, "llama_tiny": real.llama_tiny}
often = settings(deadline=None, max_examples=60)


@cache
def loaded(name: str) -> Loaded:
    """A model that hypothesis asks for many times."""
    return graphprune.load(MODELS[name]())


def ask(what: str, value: float, **limits: Any) -> Request:
    """A request whose target has the name ``what``."""
    options: dict[str, Any] = {what: value, **limits}
    return Request(**options)


def random_scores(atoms: list[Atom], seed: int, ties: bool) -> Scores:
    """Positive numbers, or small integers that often draw."""
    rng = np.random.default_rng(seed)
    return {a.dim: rng.integers(0, 3, a.size).astype(float) if ties else rng.exponential(size=a.size) for a in atoms}


models = st.sampled_from(sorted(MODELS))
limits = st.fixed_dictionaries(
    {
        "multiple": st.integers(1, 12),
        "floor": st.floats(0, 1),
        "allow": st.sampled_from([(), ("hidden",), ("head-size",), ("all",)]),
    }
)
shares = st.floats(0.01, 1)


def chosen(name: str, request: Request, seed: int, ties: bool) -> tuple[dict[Dim, Positions], Scores, list[Atom]]:
    analysis = loaded(name).analysis
    wanted = candidates(analysis, request)
    scores = random_scores(wanted, seed, ties)
    return allocate(analysis, wanted, scores, request), scores, wanted


def cost(name: str, kept: dict[Dim, Positions], what: str) -> int:
    model = CostModel(loaded(name).analysis)
    return int(getattr(model, what)({dim: len(positions) for dim, positions in kept.items()}))


# What every request is promised.


@often
@given(
    name=models,
    target=shares,
    what=st.sampled_from(["params", "macs", "activations"]),
    limit=limits,
    seed=st.integers(0, 99),
    ties=st.booleans(),
)
def test_a_budget_is_met_or_refused(
    name: str, target: float, what: str, limit: dict[str, Any], seed: int, ties: bool
) -> None:
    """Never above the target; where it is refused, the least that the message names can be had and not a unit less."""
    request = ask(what, target, **limit)
    dense = cost(name, {}, what)
    try:
        kept, _, wanted = chosen(name, request, seed, ties)
    except BudgetError as error:
        least = int(error.what.split("the least reachable is ")[1].split("(")[1].split(" of ")[0].replace(",", ""))
        assert target * dense < least
        reached, _, _ = chosen(name, ask(what, float(least), **limit), seed, ties)
        assert cost(name, reached, what) == least
        with pytest.raises(BudgetError):
            chosen(name, ask(what, float(least - 1), **limit), seed, ties)
        return
    assert cost(name, kept, what) <= target * dense
    assert set(kept) <= {atom.dim for atom in wanted}


@often
@given(
    name=models,
    target=shares,
    what=st.sampled_from(["keep", "params", "macs", "activations"]),
    limit=limits,
    seed=st.integers(0, 99),
)
def test_floors_multiples_and_order(name: str, target: float, what: str, limit: dict[str, Any], seed: int) -> None:
    request = ask(what, target, **limit)
    try:
        kept, scores, wanted = chosen(name, request, seed, ties=False)
    except BudgetError:
        assume(False)
    by_dim = {atom.dim: atom for atom in wanted}
    for dim, positions in kept.items():
        atom = by_dim[dim]
        assert max(1, atom.least, request.floor * atom.size - 1e-6) <= len(positions) < atom.size
        assert atom.size < LARGE * request.multiple or len(positions) % request.multiple == 0
        assert (np.diff(positions) > 0).all()
        gone = np.setdiff1d(np.arange(atom.size), positions)
        assert scores[dim][positions].min() >= scores[dim][gone].max(), "the dearest stay"
        assert atom.kind not in ("hidden", "head-size") or {atom.kind, "all"} & set(request.allow)


@often
@given(
    name=models,
    what=st.sampled_from(["keep", "params", "macs", "activations"]),
    limit=limits,
    seed=st.integers(0, 99),
    ties=st.booleans(),
)
def test_all_of_it_stays_at_one(name: str, what: str, limit: dict[str, Any], seed: int, ties: bool) -> None:
    assert chosen(name, ask(what, 1.0, **limit), seed, ties)[0] == {}
    dense = 0.0 if what == "keep" else float(cost(name, {}, what))
    if what != "keep":
        assert chosen(name, ask(what, dense, **limit), seed, ties)[0] == {}


@often
@given(
    name=models,
    pair=st.tuples(shares, shares),
    what=st.sampled_from(["params", "macs", "activations"]),
    limit=limits,
    seed=st.integers(0, 99),
)
def test_more_budget_is_never_less_model(
    name: str, pair: tuple[float, float], what: str, limit: dict[str, Any], seed: int
) -> None:
    try:
        small, large = (cost(name, chosen(name, ask(what, t, **limit), seed, False)[0], what) for t in sorted(pair))
    except BudgetError:
        assume(False)
    assert small <= large


@often
@given(pair=st.tuples(shares, shares), size=st.integers(2, 300), multiple=st.integers(1, 16), floor=st.floats(0, 1))
def test_a_larger_share_keeps_no_fewer(pair: tuple[float, float], size: int, multiple: int, floor: float) -> None:
    atom = Atom(Dim(size), "", "mlp", [], None)
    small, large = (
        count_for(atom, share * size, Request(keep=share, multiple=multiple, floor=floor), nearest=True)
        for share in sorted(pair)
    )
    assert 1 <= small <= large <= size


@often
@given(share=shares, size=st.integers(1, 300))
def test_multiple_one_and_floor_zero_give_the_exact_share(share: float, size: int) -> None:
    atom = Atom(Dim(size), "", "mlp", [], None)
    request = Request(keep=share, multiple=1, floor=0)
    count = count_for(atom, share * size, request, nearest=True)
    assert count == max(1, math.floor(share * size + 0.5))


@pytest.mark.parametrize("what", ["params", "macs"])
def test_little_is_wasted(what: str) -> None:
    """With single positions to give back, the target is missed by less than the dearest position is worth."""
    worth = max(dim[f"{what}_per_position"] for dim in loaded("digits").dims())
    for target in (0.3, 0.5, 0.8):
        kept, _, _ = chosen("digits", ask(what, target, multiple=1, floor=0), 0, ties=False)
        dense = cost("digits", {}, what)
        assert 0 <= target * dense - cost("digits", kept, what) < worth


def test_counts_are_absolute_above_one() -> None:
    share, _, _ = chosen("digits", Request(params=0.5), 0, ties=False)
    count, _, _ = chosen("digits", Request(params=0.5 * cost("digits", {}, "params")), 0, ties=False)
    assert {dim: kept.tolist() for dim, kept in share.items()} == {dim: kept.tolist() for dim, kept in count.items()}


# Small things, on numbers.


@pytest.mark.parametrize(
    ("size", "wish", "multiple", "floor", "nearest", "up"),
    [
        (64, 32.0, 8, 0.1, 32, 32),
        (64, 33.0, 8, 0.1, 32, 40),
        (64, 36.0, 8, 0.1, 40, 40),
        (64, 1.0, 8, 0.1, 8, 8),  # 6.4 is the floor: the first multiple above it
        (64, 1.0, 8, 0.2, 16, 16),
        (31, 15.5, 8, 0.1, 16, 16),  # fewer than four multiples: exact
        (31, 15.2, 8, 0.1, 15, 16),
        (10, 0.0, 1, 0.0, 1, 1),  # never none
        (10, 9.9, 4, 0.1, 10, 10),
        (70, 69.0, 8, 0.0, 70, 70),  # 72 would be more than there are
        (70, 70.0, 8, 0.0, 70, 70),
        (100, 50.0, 1, 1.0, 100, 100),
    ],
)  # fmt: skip
def test_rounding(size: int, wish: float, multiple: int, floor: float, nearest: int, up: int) -> None:
    atom, request = Atom(Dim(size), "", "mlp", [], None), Request(keep=0.5, multiple=multiple, floor=floor)
    assert count_for(atom, wish, request, nearest=True) == nearest
    assert count_for(atom, wish, request) == up


def test_a_dim_may_need_some_of_its_positions() -> None:
    atom = Atom(Dim(10), "", "mlp", [], None, least=4)
    assert least_count(atom, Request(keep=0.1, floor=0)) == 4
    assert count_for(atom, 1, Request(keep=0.1, floor=0, multiple=1)) == 4
    assert least_count(Atom(Dim(3), "", "mlp", [], None, least=4), Request(keep=0.1)) == 3


def test_draws_go_to_the_earlier_position() -> None:
    assert top(np.array([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]
    assert top(np.array([1.0, 1.0]), 2).tolist() == [0, 1]


def test_scores_of_nothing_but_zeros() -> None:
    analysis = loaded("digits").analysis
    wanted = candidates(analysis, Request(params=0.5))
    scores = {atom.dim: np.zeros(atom.size) for atom in wanted}
    kept = allocate(analysis, wanted, scores, Request(params=0.5))
    assert cost("digits", kept, "params") <= 0.5 * cost("digits", {}, "params")


def test_what_a_request_says() -> None:
    assert Request(keep=0.5).targets == {"keep": 0.5}
    assert Request(macs=3).targets == {"macs": 3}
    assert Request(macs="5G", params="60M", bytes="1.5MiB").targets == {
        "params": 6e7,
        "macs": 5e9,
        "bytes": 1.5 * 1024**2,
    }
    refused: list[dict[str, Any]] = [{}, {"keep": 0.5, "macs": 0.5}]
    for options in refused:
        with pytest.raises(UsageError, match="give keep, or one or several of params, macs, bytes"):
            Request(**options)
    with pytest.raises(UsageError, match="nothing for the allocator 'flap' to share out"):
        Request(keep=0.5, allocator="flap")
    with pytest.raises(UsageError, match="there is no allocator 'best'"):
        Request(macs=0.5, allocator="best")
    with pytest.raises(UsageError, match="0 tries"):
        Request(macs=0.5, tries=0)


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("0.5", 0.5),
        ("50%", 0.5),
        ("1e6", 1e6),
        ("60M", 6e7),
        ("60m", 6e7),
        ("5G", 5e9),
        ("3k", 3e3),
        ("2T", 2e12),
        ("50MB", 5e7),
        ("1KiB", 1024),
        ("12B", 12),
    ],
)  # fmt: skip
def test_amounts_in_words(words: str, number: float) -> None:
    assert amount(words) == number
    assert amount(number) == number


@pytest.mark.parametrize("words", ["", "half", "M", "5 apples", "1.2.3", "i", "5i", "60Q", "nan%"])
def test_words_that_are_no_amount(words: str) -> None:
    with pytest.raises(UsageError, match="is no number"):
        amount(words)


# Patterns.


def names(request: Request) -> list[str]:
    return [atom.name for atom in candidates(loaded("digits").analysis, request)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["conv", "block1.conv1", "block2.conv1", "block2.conv2"]),
        ({"include": ("conv",)}, ["conv"]),
        ({"include": ("block1.*",)}, ["conv", "block1.conv1"]),  # weights of block1 carry the stem's Dim too
        ({"include": ("block?.conv1",)}, ["block1.conv1", "block2.conv1"]),
        ({"include": ("block1.bn1.weight",)}, ["block1.conv1"]),
        ({"include": ("/block1/conv2/Conv",)}, ["conv", "block1.conv1"]),
        ({"exclude": ("block1.*",)}, ["block2.conv1", "block2.conv2"]),
        ({"exclude": ("*",)}, []),
        ({"include": ("block*",), "exclude": ("conv", "block2.conv2")}, ["block1.conv1", "block2.conv1"]),
        ({"include": ("fc",)}, []),  # frozen: the pattern is good, there is nothing to cut
    ],
)
def test_patterns(options: dict[str, Any], expected: list[str]) -> None:
    assert names(Request(keep=0.5, **options)) == expected


def test_patterns_that_match_nothing() -> None:
    """A node that reads no weight is none of the names either."""
    for pattern in ("none*", "/block2/relu/Relu", "CONV", ""):
        for options in ({"include": (pattern,)}, {"exclude": ("conv", pattern)}):
            with pytest.raises(UsageError, match="matches no dim, weight or node"):
                names(ask("keep", 0.5, **options))


def test_a_name_in_full_matches_itself() -> None:
    """Whatever characters it is made of: a shell would take [0] for a set of one."""
    net = Net()
    net.output(
        net.op("MatMul", net.op("MatMul", net.input(1, 4), net.weight(4, 16), name="layers[0]/up"), net.weight(16, 4))
    )
    analysis = analyse(format_.read(net.model()).graph)
    (atom,) = candidates(analysis, Request(keep=0.5, include=("layers[0]/up",)))
    assert atom.size == 16
    assert candidates(analysis, Request(keep=0.5, exclude=("layers[0]/up",))) == []


def test_kinds_that_are_left_alone_by_default() -> None:
    analysis = loaded("llama_tiny").analysis
    kinds = {
        allow: {atom.kind for atom in candidates(analysis, Request(keep=0.5, allow=allow))}
        for allow in ((), ("hidden",), ("head-size",), ("hidden", "head-size"), ("all",))
    }
    assert {"hidden", "head-size"} <= kinds["all",]
    assert kinds[()] == kinds["all",] - {"hidden", "head-size"}
    assert kinds["hidden",] == kinds["all",] - {"head-size"}
    assert kinds["head-size",] == kinds["all",] - {"hidden"}
    assert kinds["hidden", "head-size"] == kinds["all",]


# Costs.


def weights(model: onnx.ModelProto) -> dict[str, int]:
    """Elements of every floating-point constant that a node reads."""
    read = {name for node in model.graph.node for name in node.input}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    found = {t.name: t for t in model.graph.initializer}
    found |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    return {name: math.prod(t.dims) for name, t in found.items() if name in read and t.data_type in floats}


def shared() -> onnx.ModelProto:
    """Two layers with one bias, as exporters merge them."""
    net = Net()
    x, bias = net.input("rows", 8), net.weight(64)
    first = net.op("Relu", net.op("Gemm", x, net.weight(8, 64), bias))
    second = net.op("Relu", net.op("Gemm", net.op("MatMul", first, net.weight(64, 8)), net.weight(8, 64), bias))
    net.output(net.op("Add", net.op("MatMul", second, net.weight(64, 3)), net.op("MatMul", first, net.weight(64, 3))))
    return net.model()


COUNTED: dict[str, Callable[[], Any]] = {
    **MODELS,
    "shared": shared,
    "silero_vad": real.silero_vad,
    "ocr_cls": real.ocr_cls,
    "shufflenet": lambda: light("shufflenet", weights_as_inputs=True),
}


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_are_those_of_the_written_file(name: str) -> None:
    """The polynomial against counting, for random cuts of random Dims; and the bytes too."""
    given = graphprune.load(COUNTED[name]())
    rng = np.random.default_rng(0)
    assert CostModel(given.analysis).params({}) == sum(weights(given.model.proto).values())
    for round_ in range(4):
        atoms = [atom for atom in given.analysis.prunable if round_ == 0 or rng.random() < 0.5]
        kept = {
            a.dim: np.sort(rng.permutation(a.size)[: rng.integers(a.least, a.size)]) for a in atoms if a.size > a.least
        }
        sizes = {dim: len(positions) for dim, positions in kept.items()}
        made = format_.apply(given.model, given.analysis, kept)
        after = CostModel(given.analysis, list(kept))(sizes)
        assert after.params == sum(weights(made.inline()).values())
        assert after.params == CostModel(given.analysis).params(sizes)
        assert after.bytes == 4 * after.params
        again = CostModel(analyse(made.graph))({})
        assert (again.params, again.macs) == (after.params, after.macs)


def test_what_takes_the_most_is_named_where_it_cannot_be_brought_down() -> None:
    net = Net()
    x = net.op("MatMul", net.input(9, 100), net.weight(100, 20))
    net.output(net.op("MatMul", x, net.weight(20, 800), name="wide"))
    analysis = analyse(format_.read(net.model()).graph)
    scores = random_scores(analysis.prunable, 0, False)
    with pytest.raises(BudgetError, match=r"activations cannot be brought to 50\.0% .* most at wide"):
        allocate(analysis, analysis.prunable, scores, ask("activations", 0.5))


def test_allocators_are_told_of_every_node_that_activations_are_many_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Dim alone brings six alike down, and each brings down what it is charged by."""
    net = Net()
    x = net.input(5, 4)
    for _ in range(6):
        x = net.op("Relu", net.op("MatMul", x, net.weight(4 if len(net.nodes) == 0 else 40, 40)))
    net.output(net.op("MatMul", x, net.weight(40, 2)))
    seen = []

    def least(problem: Problem) -> dict[Dim, int]:
        seen.append(problem)
        return problem.least

    monkeypatch.setitem(ALLOCATORS, "seen", Allocator("seen", "nothing", "", least))
    analysis = analyse(format_.read(net.model()).graph)
    wanted = analysis.prunable
    request = replace(ask("activations", 0.5), allocator="seen")
    allocate(analysis, wanted, random_scores(wanted, 0, False), request)
    (problem,) = seen
    freed = problem.freed({}, {"activations": 1.0})
    assert len(freed) == 6
    assert min(freed.values()) > 1e-4
    assert all(problem.costs["activations"]({dim: 8}) == problem.costs["activations"]({}) for dim in freed)


def macs(build: Callable[[Net], str], cut: dict[int, int] | None = None) -> int:
    """MACs of what ``build`` makes in a `Net`, with the Dims of the given sizes cut to others."""
    net = Net()
    net.output(build(net))
    analysis: Analysis = analyse(format_.read(net.model()).graph)
    sizes = {atom.dim: (cut or {})[atom.size] for atom in analysis.prunable if atom.size in (cut or {})}
    assert len(sizes) == len(cut or {}), "each size names one Dim"
    return CostModel(analysis).macs(sizes)


def conv(net: Net) -> str:
    x = net.op("Conv", net.input(2, 3, 9, 8), net.weight(16, 3, 3, 5), pads=[1, 2, 1, 2], strides=[2, 1])
    return net.op("Conv", x, net.weight(7, 16, 1, 1))


def grouped(net: Net) -> str:
    x = net.op("Conv", net.input(1, 4, 6, 6), net.weight(24, 4, 1, 1))
    x = net.op("Conv", x, net.weight(24, 1, 3, 3), group=24, pads=[1, 1, 1, 1])
    x = net.op("Conv", x, net.weight(12, 8, 1, 1), group=3)
    return net.op("Conv", x, net.weight(5, 12, 1, 1))


def transposed(net: Net) -> str:
    x = net.op("Conv", net.input(1, 2, 4, 4), net.weight(10, 2, 1, 1))
    return net.op("ConvTranspose", x, net.weight(10, 3, 2, 2), strides=[2, 2])


def matmul(net: Net) -> str:
    x = net.op("MatMul", net.input(2, 5, 8), net.weight(8, 20))
    return net.op("Gemm", net.op("Reshape", x, net.const([10, 20])), net.weight(6, 20), net.weight(6), transB=1)


def batched(net: Net) -> str:
    """Scores and values of an attention: [2, 5, 8] by [2, 8, 7] by [2, 7, 9]."""
    scores = net.op("MatMul", net.input(2, 5, 8), net.input(2, 8, 7))
    return net.op("MatMul", net.op("Softmax", scores), net.input(2, 7, 9))


def lstm(net: Net) -> str:
    """5 steps of batch 3, 6 inputs, a state of 16 in two directions."""
    inputs = (net.input(5, 3, 6), net.weight(2, 64, 6), net.weight(2, 64, 16), net.weight(2, 128))
    return net.ops("LSTM", *inputs, outs=1, hidden_size=16, direction="bidirectional")[0]


def gru(net: Net) -> str:
    inputs = (net.input(5, 3, 6), net.weight(1, 48, 6), net.weight(1, 48, 16), net.weight(1, 96))
    return net.ops("GRU", *inputs, outs=1, hidden_size=16)[0]


@pytest.mark.parametrize(
    ("build", "cut", "expected"),
    [
        (conv, None, 2 * 5 * 8 * (16 * 3 * 3 * 5 + 7 * 16)),
        (conv, {16: 10}, 2 * 5 * 8 * (10 * 3 * 3 * 5 + 7 * 10)),
        (grouped, None, 6 * 6 * (24 * 4 + 24 * 1 * 9 + 12 * 8 + 5 * 12)),
        (grouped, {8: 3}, 6 * 6 * (9 * 4 + 9 * 1 * 9 + 12 * 3 + 5 * 12)),
        (transposed, None, 4 * 4 * (10 * 2 + 10 * 3 * 2 * 2)),
        (transposed, {10: 4}, 4 * 4 * (4 * 2 + 4 * 3 * 2 * 2)),
        (matmul, None, 2 * 5 * (8 * 20 + 20 * 6)),
        (matmul, {20: 3}, 2 * 5 * (8 * 3 + 3 * 6)),
        (batched, None, 2 * 5 * 7 * (8 + 9)),
        (lstm, None, 5 * 3 * 2 * 4 * 16 * (6 + 16)),
        (gru, None, 5 * 3 * 3 * 16 * (6 + 16)),
    ],
)
def test_multiply_accumulates(build: Callable[[Net], str], cut: dict[int, int] | None, expected: int) -> None:
    assert macs(build, cut) == expected


def test_multiply_accumulates_of_a_state() -> None:
    """An LSTM's state cut from 16 to 10, in both of its matrices."""

    def build(net: Net) -> str:
        inputs = (net.input(5, 3, 6), net.weight(1, 64, 6), net.weight(1, 64, 16), net.weight(1, 128))
        states = net.ops("LSTM", *inputs, outs=1, hidden_size=16)[0]
        return net.op("MatMul", states, net.weight(16, 7))

    assert macs(build) == 5 * 3 * (4 * 16 * (6 + 16) + 16 * 7)
    assert macs(build, {16: 10}) == 5 * 3 * (4 * 10 * (6 + 10) + 10 * 7)


def test_bytes_follow_the_element_type() -> None:
    net = Net()
    half = net.const(np.ones((8, 64)), np.float16)
    hidden = net.op("MatMul", net.input(1, 8), net.op("Cast", half, to=onnx.TensorProto.FLOAT))
    net.output(net.op("MatMul", net.op("Relu", hidden), net.weight(64, 3)))
    analysis = analyse(format_.read(net.model()).graph)
    (atom,) = analysis.prunable
    model = CostModel(analysis)
    assert model({}).bytes == 8 * 64 * 2 + 64 * 3 * 4
    assert model({atom.dim: 10}).bytes == 8 * 10 * 2 + 10 * 3 * 4
    assert model({atom.dim: 10}).params == 8 * 10 + 10 * 3


@pytest.mark.parametrize("path", [digits.PATH, real.llama_tiny], ids=["digits", "llama"])
def test_costs_hang_on_sizes_and_not_on_what_was_asked_before(path: Any) -> None:
    """Only what changed is computed anew: all of it, in any order of calls."""
    analysis = graphprune.load(path if isinstance(path, Path) else path()).analysis
    kept, random = CostModel(analysis), np.random.default_rng(0)
    sizes: dict[Any, int] = {}
    for _ in range(60):
        atom = analysis.prunable[random.integers(len(analysis.prunable))]
        if random.random() < 0.2:
            sizes = {}
        elif random.random() < 0.2:
            sizes.pop(atom.dim, None)
        else:
            sizes[atom.dim] = int(random.integers(1, atom.size + 1))
        assert kept(sizes) == CostModel(analysis)(dict(sizes))
