"""Known answers of the Dim algebra, and the number of steps it takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from graphprune.dims import Dim, Reason, atoms, freeze, is_frozen, product, resolve, size_after, sum_, take, tie


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
    assert resolve(left) is next(iter(atoms(term)))


def test_what_does_not_reconcile_stays_whole_and_the_rest_does_not() -> None:
    """(4·6·5) as (6·4·5): the fives are one Dim, the rest has no common factors."""
    a, b = product(Dim(4), Dim(6), Dim(5)), product(Dim(6), Dim(4), Dim(5))
    tie(a, b, "reshape_1")
    assert [str(atom.reason) for atom in atoms(a)][:2] == [
        "the layouts (4·6) and (6·4) do not reconcile (node reshape_1)"
    ] * 2
    assert [atom.reason is None for atom in atoms(b)] == [False, False, True]
    five = list(atoms(a))[2]
    assert five is list(atoms(b))[2]
    assert take(a, {five: np.array([0, 4])}).tolist() == take(b, {five: np.array([0, 4])}).tolist()


def test_a_break_inside_a_head_is_one_inside_all_of_them() -> None:
    """Five heads of 4 are 10 and 10 positions: the middle one belongs to both, so each has two halves."""
    heads, width, left, right = Dim(5), Dim(4), Dim(10), Dim(10)
    tie(product(heads, width), sum_(left, right))
    assert str(heads) == "(2+1+2)"
    assert str(width) == "(2+2)"
    assert str(left) == "((2·(2+2))+2)"
    assert str(right) == "(2+(2·(2+2)))"
    first, _, last = atoms(heads)
    lower, upper = atoms(width)
    chosen = {first: np.array([1]), last: np.array([0]), lower: np.array([0]), upper: np.array([0, 1])}
    assert take(product(heads, width), chosen).tolist() == [4, 6, 7, 8, 10, 11, 12, 14, 15]
    assert take(left, chosen).tolist() == [4, 6, 7, 8]
    assert (take(right, chosen) + 10).tolist() == [10, 11, 12, 14, 15]


def test_a_break_inside_a_head_of_two_factors_stays_whole() -> None:
    """The halves of (2·3) are no factors of it."""
    a, b = product(Dim(3), product(Dim(2), Dim(3))), sum_(Dim(8), Dim(10))
    tie(a, b)
    assert is_frozen(list(atoms(a))[-1])
    assert take(a, {}).tolist() == take(b, {}).tolist()


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
    return itertools.pairwise(row)


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
    return (links[i] for i in np.random.default_rng(0).permutation(len(links)))


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
    slot: Any = vars(Dim)["link"]

    def read(dim: Dim) -> Any:
        nonlocal steps
        steps += 1
        return slot.__get__(dim)

    monkeypatch.setattr(Dim, "link", property(read, slot.__set__))
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
