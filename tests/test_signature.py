"""The axis text: what it says, what it refuses, and what its letters are bound to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.dims import Dim, resolve, tie
from graphprune.rules import RULES
from graphprune.signature import Binding, Layout, bind, parse, split_axes


def layout(*sizes: int | None) -> Layout:
    """Fresh axes."""
    return tuple(Dim(size) for size in sizes)


def bound(text: str, ins: list[Layout | None], outs: list[Layout | None], **sizes: int) -> Binding:
    """The Binding, its ties made."""
    binding = bind(parse(text), ins, outs, sizes)
    assert isinstance(binding, Binding), binding
    for a, b in binding.ties:
        tie(a, b)
    return binding


# Reading.


@pytest.mark.parametrize(
    ("text", "contracted"),
    [
        ("... m k, ... k n -> ... m n", {"k"}),
        ("b (g i) *x, (g o) i *k, (g o) -> b (g o) *y", {"i"}),
        ("d (4 h) h' -> d h", {"h'"}),
        ("... -> ...", set()),
        ("i, -> ", {"i"}),
        ("x, y -> (x + y)", set()),
    ],
)
def test_letters_on_the_left_alone_are_contracted(text: str, contracted: set[str]) -> None:
    assert parse(text).contracted == contracted


def test_operands_are_read_in_order() -> None:
    signature = parse("b (2 d) _ *k, -> ... (x + y)")
    assert [[axis.kind for axis in operand] for operand in signature.inputs] == [
        ["letter", "product", "hole", "star"],
        [],
    ]
    assert [[axis.kind for axis in operand] for operand in signature.outputs] == [["ellipsis", "sum"]]
    assert [part.name for part in signature.inputs[0][1].parts] == ["2", "d"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a b", "no '->' in the axis text 'a b'"),
        ("a ? -> a", "cannot read 'a ?' in the axis text 'a ? -> a'"),
        ("(a b -> a", "')' missing in the axis text '(a b -> a'"),
        ("... * -> a", "one '*' or '...' an operand, in the axis text '... * -> a'"),
    ],
)
def test_what_is_no_axis_text_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="axis text") as caught:
        parse(text)
    assert str(caught.value) == why


@pytest.mark.parametrize("rank", range(6))
def test_many_axes_take_what_is_left(rank: int) -> None:
    spans = split_axes(parse("b c *x d -> b").inputs[0], rank)
    if rank < 3:
        assert spans is None
    else:
        assert spans is not None
        assert [(start, stop) for _, start, stop in spans] == [(0, 1), (1, 2), (2, rank - 1), (rank - 1, rank)]


def test_every_line_of_the_rules_that_is_an_axis_text_can_be_read() -> None:
    """Rules that are one line; the others say it in words."""
    lines = [rule.text for rule in RULES.values() if "->" in rule.text and not set(rule.text) & set('"`;')]
    assert len(lines) > 60
    for line in lines:
        assert parse(line).text == line


# Binding.


def test_one_letter_is_one_dim() -> None:
    a, b, out = layout(2, 3), layout(3, 4), layout(2, 4)
    binding = bound("m k, k n -> m n", [a, b], [out])
    assert resolve(a[0]) is resolve(out[0])
    assert resolve(a[1]) is resolve(b[0])
    assert resolve(b[1]) is resolve(out[1])
    assert {letter: dim.size for letter, dim in binding.letters.items()} == {"m": 2, "k": 3, "n": 4}
    assert binding.where == {"m": [(0, 0), (2, 0)], "k": [(0, 1), (1, 0)], "n": [(1, 1), (2, 1)]}


def test_a_factor_follows_from_the_size_of_the_product() -> None:
    x, w, y = layout(2, 12, 5), layout(8, 3, 1), layout(2, 8, 5)
    binding = bound("b (g i) *x, (g o) i *k -> b (g o) *y", [x, w], [y], g=4)
    assert {letter: dim.size for letter, dim in binding.letters.items()} == {"b": 2, "g": 4, "i": 3, "o": 2}
    assert f"{x[1]} {w[0]} {y[1]}" == "(4·3) (4·2) (4·2)"
    assert binding.frozen == [x[2], w[2], y[2]]
    assert binding.stars == {"x": [0, 2, 3], "k": [1, 2, 3], "y": [2, 2, 3]}


def test_a_term_follows_from_the_size_of_the_sum() -> None:
    x, y, out = layout(3), layout(4), layout(7)
    bound("x, y -> (x + y)", [x, y], [out])
    assert str(out[0]) == "(3+4)"


def test_a_number_is_a_factor_that_stays() -> None:
    w = layout(12, 5)
    binding = bound("(4 h) i -> (4 h)", [w], [layout(12)])
    assert [dim.size for dim in binding.frozen] == [4, 4, 4, 4][: len(binding.frozen)]
    assert binding.letters["h"].size == 3


def test_a_prime_is_the_same_dim() -> None:
    w, out = layout(1, 6, 6), layout(1, 6)
    binding = bound("d h h' -> d h", [w], [out])
    assert resolve(w[1]) is resolve(w[2]) is resolve(out[1])
    assert binding.where["h'"] == [(0, 2)]


def test_absent_operands_are_passed_over() -> None:
    x, out = layout(2, 3), layout(2, 3)
    bound("b c, c, c -> b c", [x, None], [out])
    assert resolve(x[1]) is resolve(out[1])


def test_leading_axes_are_told_by_operand() -> None:
    a, b, out = layout(2, 3, 4), layout(3, 4, 5), layout(2, 3, 5)
    binding = bound("... k, ... k n -> ... n", [a, b], [out])
    assert [(len(dims), number) for dims, number in binding.leading] == [(2, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("text", "ins", "outs", "why"),
    [
        ("a b -> a", [(2,)], [(2,)], "an operand of rank 1 does not fit its rule 'a b -> a'"),
        ("a -> a", [(2, 3)], [(2,)], "an operand of rank 2 does not fit its rule 'a -> a'"),
        ("a -> a", [(2,), (3,)], [(2,)], "it has more inputs than its rule 'a -> a'"),
        ("a -> a", [(2,)], [(2,), (3,)], "it has more outputs than its rule 'a -> a'"),
    ],
)
def test_operands_that_do_not_fit_say_why(
    text: str, ins: list[tuple[int, ...]], outs: list[tuple[int, ...]], why: str
) -> None:
    assert bind(parse(text), [layout(*s) for s in ins], [layout(*s) for s in outs], {}) == why


@pytest.mark.parametrize("size", [None, 12])
def test_what_cannot_be_solved_freezes(size: int | None) -> None:
    """Two unknown factors, or an unknown size: the axis stays, and so does what is known of it."""
    x = layout(size)
    letters = "(g i)" if size is None else "(u i)"
    binding = bound(f"{letters} -> ", [x], [()], g=4)
    assert x[0] in binding.frozen
    assert size is not None or binding.letters["g"] in binding.frozen


def test_a_size_that_does_not_divide_freezes() -> None:
    x = layout(10)
    binding = bound("(g i) -> ", [x], [()], g=4)
    assert x[0] in binding.frozen


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_any_chain_of_products_is_solved(data: st.DataObject) -> None:
    """Each operand brings one letter that is new: all follow, in whatever order the operands stand."""
    draw: Callable[..., Any] = data.draw
    names = "abcdef"[: draw(st.integers(2, 6))]
    sizes = {name: draw(st.integers(1, 4)) for name in names}
    groups = ["a", *(f"({names[i]} {names[i + 1]})" for i in range(len(names) - 1))]
    order = draw(st.permutations(groups))
    axes = [layout(math.prod(sizes[name] for name in group if name.isalpha())) for group in order]
    binding = bound(", ".join(order) + " -> ", list(axes), [()])
    assert binding.frozen == []
    assert {letter: dim.size for letter, dim in binding.letters.items()} == sizes
