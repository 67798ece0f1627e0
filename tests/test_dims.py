"""The Dim algebra under random programs of ties, splits and freezes.

What must hold whatever is done: two Dims that were tied keep the same positions for any choice on what is not frozen, a
choice of an order gives an order, sizes agree with positions, what is frozen stays frozen, and nothing ever raises.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

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
from graphprune.graph import Array

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
        return [b - a for a, b in itertools.pairwise(breaks)]

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
    generator = np.random.default_rng(seed)
    chosen = {}
    for atom in program.free():
        order = generator.permutation(atom.extent)
        chosen[atom] = order if reorder else np.sort(order[: generator.integers(1, atom.extent + 1)])
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
    generator = np.random.default_rng(seed)
    for dim in program.pool[-4:]:
        values = generator.standard_normal(dim.extent)
        worth: dict[Dim, Array] = {}
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
def groupings(draw: Callable[..., Any]) -> list[list[list[int]]]:
    """Some ways to group neighbours in one row of sizes."""
    row: list[int] = draw(st.lists(st.sampled_from([2, 3, 4, 5]), min_size=2, max_size=5))
    found = []
    for _ in range(draw(st.integers(2, 4))):
        inside: set[int] = draw(st.sets(st.integers(1, len(row) - 1)))
        breaks = [0, *sorted(inside), len(row)]
        found.append([row[a:b] for a, b in itertools.pairwise(breaks)])
    return found


def _finest(views: list[list[list[int]]]) -> list[list[int]]:
    """Neighbours that some view tells apart, apart."""
    row = [size for group in views[0] for size in group]
    breaks = {0, len(row)}
    for view in views:
        breaks |= {sum(map(len, view[:i])) for i in range(len(view))}
    ordered = sorted(breaks)
    return [row[a:b] for a, b in itertools.pairwise(ordered)]


@settings(PROGRAMS, max_examples=150)
@given(groupings(), st.randoms(use_true_random=False), st.booleans())
def test_views_of_one_axis_come_down_to_the_finest(
    views: list[list[list[int]]], order: random.Random, sums: bool
) -> None:
    combine, make = (sum, sum_) if sums else (math.prod, product)
    dims_ = [make(*(Dim(combine(group)) for group in view)) for view in views]
    pairs = list(itertools.pairwise(dims_))
    order.shuffle(pairs)
    for a, b in pairs:
        tie(a, b)
    wanted = [combine(group) for group in _finest(views)]
    for dim in dims_:
        assert [atom.size for atom in atoms(dim)] == wanted
        assert not any(atom.reason for atom in atoms(dim))
        assert list(atoms(dim)) == list(atoms(dims_[0]))
