"""The Dim algebra under random programs of ties, splits and freezes.

What must hold whatever is done: two Dims that were tied keep the same positions for any choice on what is not frozen, a
choice of an order gives an order, sizes agree with positions, what is frozen stays frozen, and nothing ever raises.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from graphprune import dims
from graphprune.dims import (
    Dim,
    Positions,
    Reason,
    atoms,
    freeze,
    is_frozen,
    product,
    resolve,
    size_after,
    spread,
    sum_,
    take,
    tie,
    touched,
)

SIZES = (1, 2, 2, 3, 4, 4, 6, 8, 12)
LARGEST = 240
PROGRAMS = settings(max_examples=300, deadline=None, derandomize=True)


class Program:
    """A pool of Dims, and what was said of them."""

    def __init__(self, draw: Callable[..., int], dynamic: bool) -> None:
        self.draw = draw
        self.dynamic = dynamic
        self.pool: list[Dim] = []
        self.ties: list[tuple[Dim, Dim]] = []
        self.made: list[tuple[bool, Dim, list[Dim]]] = []
        self.frozen: list[Dim] = []

    def number(self, high: int) -> int:
        """A random number below ``high``."""
        return self.draw(st.integers(0, high - 1))

    def any(self) -> Dim:
        """A Dim of the pool."""
        return self.pool[self.number(len(self.pool))]

    def fresh(self) -> None:
        """An atom."""
        if self.dynamic and not self.number(4):
            self.pool.append(Dim(None, extent=7))
        else:
            self.pool.append(Dim(SIZES[self.number(len(SIZES))]))

    def join(self) -> None:
        """A product or a sum of what is there."""
        parts = [self.any() for _ in range(2 + self.number(2))]
        make, combine = (product, math.prod) if self.number(2) else (sum_, sum)
        if combine(part.extent for part in parts) <= LARGEST:
            self.make(make, parts)

    def make(self, make: Callable[..., Dim], parts: list[Dim]) -> Dim:
        """An expression; that it is made of these parts is a fact that must stay true."""
        self.pool.append(make(*parts))
        self.made.append((make is product, self.pool[-1], parts))
        return self.pool[-1]

    def view(self) -> None:
        """A new expression of the size of an old one, tied to it: what reshape, concat and split do."""
        old = self.any()
        if old.size is not None:
            sizes = self._factors(old.size) if self.number(2) else self._terms(old.size)
            new = [Dim(size) for size in sizes]
            self.pool += new
            self.say(old, self.make(product if math.prod(sizes) == old.size else sum_, new))

    def _factors(self, size: int) -> list[int]:
        found = []
        for _ in range(2):
            options = [d for d in range(1, size + 1) if size % d == 0]
            found.append(options[self.number(len(options))])
            size //= found[-1]
        return [*found, size]

    def _terms(self, size: int) -> list[int]:
        breaks = sorted({0, size, *(self.number(size) for _ in range(2))})
        return [b - a for a, b in zip(breaks, breaks[1:], strict=False)]

    def tie_like(self) -> None:
        """Two Dims of the pool that have one size."""
        one = self.any()
        same = [other for other in self.pool if other.size == one.size]
        self.say(one, same[self.number(len(same))])

    def tie_any(self) -> None:
        """Two Dims of the pool, most likely of different sizes."""
        self.say(self.any(), self.any())

    def freeze(self) -> None:
        """One Dim stays whole."""
        dim = self.any()
        freeze(dim, Reason("asked for", "a node"))
        self.frozen.append(dim)

    def say(self, a: Dim, b: Dim) -> None:
        """Tie, and remember it."""
        tie(a, b, "a node")
        self.ties.append((a, b))

    def run(self, steps: int) -> None:
        """Random steps."""
        self.fresh()
        actions = [self.fresh, self.join, self.view, self.view, self.tie_like, self.tie_like, self.tie_any, self.freeze]
        for _ in range(steps):
            actions[self.number(len(actions) if not self.number(3) else 6)]()

    def free(self) -> list[Dim]:
        """Atoms of which positions may go."""
        found = {atom for dim in self.pool for atom in atoms(dim)}
        return sorted((a for a in found if a.reason is None and a.size is not None), key=lambda a: (a.extent, id(a)))


@st.composite
def programs(draw: Callable[..., int], dynamic: bool = False) -> Program:
    """A Program that has run."""
    program = Program(draw, dynamic)
    program.run(draw(st.integers(3, 25)))
    return program


def choose(program: Program, seed: int, reorder: bool) -> dict[Dim, Positions]:
    """Positions of each free atom: an order of all, or some of them."""
    random = np.random.default_rng(seed)
    chosen = {}
    for atom in program.free():
        order = random.permutation(atom.extent)
        chosen[atom] = order if reorder else np.sort(order[: random.integers(1, atom.extent + 1)])
    return chosen


SEEDS = st.integers(0, 2**16)


@PROGRAMS
@given(programs(), SEEDS, st.booleans())
def test_what_is_tied_keeps_the_same_positions(program: Program, seed: int, reorder: bool) -> None:
    chosen = choose(program, seed, reorder)
    event("something is free" if chosen else "all is frozen")
    for a, b in program.ties:
        if a.size == b.size:
            assert take(a, chosen).tolist() == take(b, chosen).tolist()
        else:
            assert is_frozen(a)
            assert is_frozen(b)


def from_parts(is_product: bool, parts: list[Dim], chosen: dict[Dim, Positions]) -> list[int]:
    """Positions of a product or a sum, spelled out from those of its parts."""
    kept = [take(part, chosen).tolist() for part in parts]
    if not is_product:
        starts = np.cumsum([0, *(part.extent for part in parts)])
        return [int(start) + p for start, positions in zip(starts, kept, strict=False) for p in positions]
    shape = tuple(part.extent for part in parts)
    return [int(np.ravel_multi_index(index, shape)) for index in itertools.product(*kept)]


@PROGRAMS
@given(programs(), SEEDS, st.booleans())
def test_what_is_made_of_parts_stays_made_of_them(program: Program, seed: int, reorder: bool) -> None:
    chosen = choose(program, seed, reorder)
    for is_product, whole, parts in program.made:
        assert take(whole, chosen).tolist() == from_parts(is_product, parts, chosen)


@PROGRAMS
@given(programs(), SEEDS)
def test_sizes_agree_with_positions(program: Program, seed: int) -> None:
    chosen = choose(program, seed, reorder=False)
    sizes = {dim: len(index) for dim, index in chosen.items()}
    for dim in program.pool:
        kept = take(dim, chosen)
        assert len(kept) == size_after(dim, sizes)
        assert len(set(kept.tolist())) == len(kept)
        assert set(kept.tolist()) <= set(range(dim.extent))
        assert resolve(dim).size == dim.size
        assert sorted(kept.tolist()) == kept.tolist(), "positions keep their order"
        if not touched(dim, chosen):
            assert kept.tolist() == list(range(dim.extent))


@PROGRAMS
@given(programs(), SEEDS)
def test_an_order_stays_an_order(program: Program, seed: int) -> None:
    chosen = choose(program, seed, reorder=True)
    for dim in program.pool:
        assert sorted(take(dim, chosen).tolist()) == list(range(dim.extent))


@PROGRAMS
@given(programs(dynamic=True), SEEDS)
def test_what_is_frozen_stays_frozen_and_says_why(program: Program, seed: int) -> None:
    for dim in program.frozen:
        assert is_frozen(dim)
        assert all(atom.reason for atom in atoms(dim))
    for dim in program.pool:
        assert all(atom.reason is None or str(atom.reason) for atom in atoms(dim))
        assert repr(dim)


@PROGRAMS
@given(programs(dynamic=True), SEEDS)
def test_unknown_sizes_are_never_cut(program: Program, seed: int) -> None:
    chosen = choose(program, seed, reorder=False)
    assert all(dim.size is not None for dim in chosen)
    for a, b in program.ties:
        known = a.size is not None and b.size is not None
        if known and a.size == b.size:
            assert take(a, chosen).tolist() == take(b, chosen).tolist()
        elif a.size != b.size:
            assert is_frozen(a)
            assert is_frozen(b)


@PROGRAMS
@given(programs(), SEEDS)
def test_spread_is_what_each_position_is_worth(program: Program, seed: int) -> None:
    """An atom's position is worth what goes when it goes, where the atom occurs once."""
    random = np.random.default_rng(seed)
    for dim in program.pool[-4:]:
        values = random.standard_normal(dim.extent)
        worth: dict[Dim, np.ndarray] = {}  # type: ignore[type-arg]
        spread(dim, values, worth)
        layout = list(atoms(dim))
        assert set(worth) == set(layout)
        for atom in layout:
            if layout.count(atom) == 1 and atom.extent > 1:
                rest = [np.delete(np.arange(atom.extent), p) for p in range(atom.extent)]
                lost = [values.sum() - values[take(dim, {atom: kept})].sum() for kept in rest]
                np.testing.assert_allclose(worth[atom], lost, atol=1e-9)


# The properties can fail.


def outermost_first(a: Dim, b: Dim, node: str) -> None:
    """Wrong: radices matched from the outermost in, whatever is inside."""
    for left, right in zip(a.parts, b.parts, strict=False):
        if left.size == right.size:
            tie(left, right, node)


def from_the_back(a: Dim, b: Dim, node: str) -> None:
    """Wrong: terms of equal size are paired, wherever they stand."""
    rest = list(b.parts)
    for term in a.parts:
        other = next((part for part in reversed(rest) if part.size == term.size), None)
        if other is not None:
            rest.remove(other)
            tie(term, other, node)


def forgetful(atom: Dim, other: Dim) -> None:
    """Wrong: what was frozen comes loose when it becomes something else."""
    atom.link = other


@pytest.mark.parametrize(
    ("name", "wrong"), [("_align_products", outermost_first), ("_align_sums", from_the_back), ("_become", forgetful)]
)
def test_a_wrong_algebra_is_caught(name: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(program: Program, seed: int) -> None:
        assert all(is_frozen(dim) for dim in program.frozen)
        chosen = choose(program, seed, reorder=True)
        for a, b in program.ties:
            assert a.size != b.size or take(a, chosen).tolist() == take(b, chosen).tolist()
        for is_product, whole, parts in program.made:
            assert take(whole, chosen).tolist() == from_parts(is_product, parts, chosen)

    search = settings(PROGRAMS, report_multiple_bugs=False, phases=[Phase.generate], database=None)
    search(given(programs(), SEEDS)(both))()
    monkeypatch.setattr(dims, name, wrong)
    with pytest.raises(AssertionError):
        search(given(programs(), SEEDS)(both))()


# Layouts that do reconcile are reconciled, in whatever order they are met.


@st.composite
def groupings(draw: Callable[..., list[int]]) -> list[list[list[int]]]:
    """Some ways to group neighbours in one row of sizes."""
    row = draw(st.lists(st.sampled_from([2, 3, 4, 5]), min_size=2, max_size=5))
    found = []
    for _ in range(draw(st.integers(2, 4))):
        breaks = [0, *sorted(draw(st.sets(st.integers(1, len(row) - 1)))), len(row)]
        found.append([row[a:b] for a, b in zip(breaks, breaks[1:], strict=False)])
    return found


def _finest(views: list[list[list[int]]]) -> list[list[int]]:
    """Neighbours that some view tells apart, apart."""
    row = [size for group in views[0] for size in group]
    breaks = {0, len(row)}
    for view in views:
        breaks |= {sum(map(len, view[:i])) for i in range(len(view))}
    ordered = sorted(breaks)
    return [row[a:b] for a, b in zip(ordered, ordered[1:], strict=False)]


@settings(PROGRAMS, max_examples=150)
@given(groupings(), st.randoms(use_true_random=False), st.booleans())
def test_views_of_one_axis_come_down_to_the_finest(views: list[list[list[int]]], random: object, sums: bool) -> None:
    combine, make = (sum, sum_) if sums else (math.prod, product)
    dims_ = [make(*(Dim(combine(group)) for group in view)) for view in views]
    pairs = list(zip(dims_, dims_[1:], strict=False))
    random.shuffle(pairs)  # type: ignore[attr-defined]
    for a, b in pairs:
        tie(a, b)
    wanted = [combine(group) for group in _finest(views)]
    for dim in dims_:
        assert [atom.size for atom in atoms(dim)] == wanted
        assert not any(atom.reason for atom in atoms(dim))
        assert list(atoms(dim)) == list(atoms(dims_[0]))


# Known answers.


def test_grouped_queries() -> None:
    """9 query heads of 64 on 3 key heads: a group of queries goes with its key head."""
    query, key, value = Dim(576), Dim(192), Dim(192)
    heads, kv, repeat, width = Dim(9), Dim(3), Dim(3), Dim(64)
    tie(query, product(heads, width))
    tie(key, product(kv, width))
    tie(value, product(kv, Dim(64)))
    tie(heads, product(kv, repeat))
    assert f"{query} {key} {value}" == "(3·3·64) (3·64) (3·64)"
    chosen = {kv: np.array([0, 2])}
    assert take(key, chosen).tolist() == [*range(64), *range(128, 192)]
    assert take(query, chosen).tolist() == [*range(192), *range(384, 576)]
    queries = {repeat: np.array([1])}
    assert take(query, queries).tolist() == [*range(64, 128), *range(256, 320), *range(448, 512)]
    assert take(key, queries).tolist() == list(range(192))


def test_fused_query_key_and_value() -> None:
    """(3·H·D) tied to Q + K + V: three segments of the same H·D."""
    fused, heads, width = Dim(36), Dim(3), Dim(4)
    query, key, value = Dim(12), Dim(12), Dim(12)
    tie(fused, product(Dim(3), heads, width))
    tie(fused, sum_(query, key, value))
    assert f"{fused} {query}" == "((1+1+1)·3·4) (3·4)"
    assert list(atoms(query)) == list(atoms(key)) == list(atoms(value)) == [heads, width]
    assert take(fused, {heads: np.array([1])}).tolist() == [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31]


def test_fused_and_split_first() -> None:
    """Split before the heads are told apart: each of the three has heads of its own until they meet."""
    fused, (query, key) = Dim(24), (Dim(12), Dim(12))
    tie(fused, sum_(query, key))
    tie(query, product(Dim(3), Dim(4)))
    assert str(fused) == "((3·4)+12)"
    tie(query, key)
    assert str(fused) == "((3·4)+(3·4))"
    assert list(atoms(query)) == list(atoms(key))


def test_an_input_met_twice_is_one_dim() -> None:
    half, whole = Dim(5), Dim(10)
    tie(whole, sum_(half, half))
    assert take(whole, {half: np.array([0, 3])}).tolist() == [0, 3, 5, 8]


def test_a_break_inside_a_term_splits_it_everywhere() -> None:
    term, left, right = Dim(6), Dim(4), Dim(5)
    whole = sum_(term, Dim(3))
    tie(whole, sum_(left, right))
    assert str(whole) == "(4+2+3)"
    assert str(term) == "(4+2)"
    assert resolve(left) is list(atoms(term))[0]


def test_what_does_not_reconcile_stays_whole_and_the_rest_does_not() -> None:
    """(4·6·5) as (6·4·5): the fives are one Dim, the rest has no common factors."""
    a, b = product(Dim(4), Dim(6), Dim(5)), product(Dim(6), Dim(4), Dim(5))
    tie(a, b, "reshape_1")
    assert [str(atom.reason) for atom in atoms(a)][:2] == ["the layouts (4·6) and (6·4) do not reconcile (node reshape_1)"] * 2
    assert [atom.reason is None for atom in atoms(b)] == [False, False, True]
    five = list(atoms(a))[2]
    assert five is list(atoms(b))[2]
    assert take(a, {five: np.array([0, 4])}).tolist() == take(b, {five: np.array([0, 4])}).tolist()


def test_a_break_inside_a_head_stays_whole() -> None:
    a, b = product(Dim(3), Dim(4)), sum_(Dim(6), Dim(6))
    tie(a, b)
    assert is_frozen(a)
    assert is_frozen(b)


def test_different_sizes_freeze_both() -> None:
    a, b = Dim(4), Dim(5)
    tie(a, b, "add_1")
    assert str(a.reason) == str(b.reason) == "4 and 5 positions meet on one axis (node add_1)"


@pytest.mark.parametrize("first", ["freeze", "tie"])
def test_freezing_comes_before_or_after_a_split_alike(first: str) -> None:
    whole, parts = Dim(12), (Dim(3), Dim(4))
    if first == "freeze":
        freeze(whole, Reason("asked for"))
        tie(whole, product(*parts))
    else:
        tie(whole, product(*parts))
        freeze(whole, Reason("asked for"))
    later = Dim(4)
    tie(later, parts[1])
    tie(sum_(Dim(1), Dim(3)), later)
    assert [str(atom.reason) for atom in (parts[0], *atoms(later))] == ["asked for"] * 3


def test_an_empty_axis_is_whole() -> None:
    assert is_frozen(Dim(0))
    assert is_frozen(product(Dim(0), Dim(4)))
    assert take(Dim(0), {}).tolist() == []


def test_the_batch_may_be_a_factor() -> None:
    """Batch times heads, as in (N·heads, width): the heads stay free, and the product is written as it was."""
    batch, heads, width = Dim(None, extent=2), Dim(3), Dim(4)
    joined = product(batch, heads)
    tie(joined, Dim(None, extent=6))
    tie(product(joined, width), product(Dim(None, extent=2), Dim(12)))
    assert heads.reason is None
    assert size_after(joined, {resolve(heads): 2}) == 4


def test_an_unknown_size_may_not_be_a_term() -> None:
    known, unknown = Dim(4), Dim(None, extent=5)
    whole = sum_(unknown, known)
    assert is_frozen(whole)
    assert "only known when the model runs" in str(known.reason)


def test_an_unknown_size_is_no_multiple_of_itself() -> None:
    """A graph may say so; the walk must end all the same."""
    size, four = Dim(None), Dim(4)
    tie(size, product(size, four))
    tie(product(four, size), size)
    assert str(four.reason) == "its size would be a multiple of itself"
    assert resolve(size) is size


# Near-linear, counted in steps.


def chain(count: int) -> Iterator[tuple[Dim, Dim]]:
    """A residual stream: each tied to the one before."""
    row = [Dim(8) for _ in range(count)]
    return zip(row, row[1:], strict=False)


def backwards(count: int) -> Iterator[tuple[Dim, Dim]]:
    """The same, from the end."""
    return iter([(b, a) for a, b in chain(count)][::-1])


def star(count: int) -> Iterator[tuple[Dim, Dim]]:
    """All tied to one."""
    hub = Dim(8)
    return ((Dim(8), hub) for _ in range(count))


def pairs(count: int) -> Iterator[tuple[Dim, Dim]]:
    """Pairs, then pairs of pairs: the deepest forest that ties can make."""
    row = [Dim(8) for _ in range(count)]
    while len(row) > 1:
        halves = list(zip(row[::2], row[1::2], strict=False))
        yield from halves
        row = [b for _, b in halves]


def shuffled(count: int) -> Iterator[tuple[Dim, Dim]]:
    """A chain whose links come in any order."""
    links = list(chain(count))
    np.random.default_rng(0).shuffle(links)  # type: ignore[arg-type]
    return iter(links)


def layers(count: int) -> Iterator[tuple[Dim, Dim]]:
    """Attention layers on one stream, each with heads of its own: products throughout."""
    stream = Dim(32)
    for _ in range(count // 4):
        inside, heads, width = Dim(32), Dim(4), Dim(8)
        yield inside, product(heads, width)
        yield Dim(32), inside
        yield product(heads, width), Dim(32)
        yield Dim(32), stream


@pytest.mark.parametrize("links", [chain, backwards, star, pairs, shuffled, layers])
def test_steps_grow_with_the_number_of_ties(
    links: Callable[[int], Iterator[tuple[Dim, Dim]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times the ties take at most eight times the steps, and three tenths of that more."""
    steps = 0
    slot = dims.Dim.link

    def read(self: Dim) -> Dim | None:
        nonlocal steps
        steps += 1
        return slot.__get__(self)  # type: ignore[union-attr]

    monkeypatch.setattr(Dim, "link", property(read, lambda self, value: slot.__set__(self, value)))  # type: ignore[union-attr]
    counts = []
    for count in (1_000, 8_000):
        steps = 0
        met = []
        for a, b in links(count):
            tie(a, b)
            met.append(a)
        assert all(resolve(dim).size in (8, 32) for dim in met)
        counts.append(steps)
    assert counts[1] <= 8 * 1.3 * counts[0], counts
