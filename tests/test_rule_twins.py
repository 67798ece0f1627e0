"""Twins of the rules table: for rules made wrong on purpose, the proof must fail.

Each wrong rule is one that somebody could have written: an axis order forgotten, terms swapped, a mean taken for a sum.
The entry of the table passes with the right rule (tests/test_rules.py) and fails here, by the check that is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from graphprune.dims import Dim, product, sum_
from graphprune.rules import RULES, Op, Rule
from tests.cases import CASES
from tests.prove import Subject

PERMUTATION, ZERO, RUNS = "permutation", "zero equals cut", "loads and runs"


class Twin(NamedTuple):
    """``case`` of the table, the wrong rule for its op, and the check that must say so."""

    case: str
    wrong: Callable[[Op], object]
    check: str
    why: str


def text(line: str, **sizes: int | str) -> Callable[[Op], object]:
    """A rule that is this axis text."""
    return lambda op: op.axes(line, sizes=sizes)


def transpose(op: Op) -> None:
    op.tie_same(op.x, op.y)


def concat(op: Op) -> None:
    axis = op.attr("axis", 1) % len(op.y)
    for layout in op.ins:
        op.tie_same(layout or (), op.y, leave=[axis])
    parts = [layout[axis] for layout in op.ins if layout]
    op.tie(sum_(*reversed(parts)), op.y[axis])
    op.speak_of(*parts)


def split(op: Op) -> None:
    axis = op.attr("axis", 0) % len(op.x)
    for layout in op.outs:
        op.tie_same(op.x, layout or (), leave=[axis])
    parts = [(layout or ())[axis] for layout in op.outs]
    op.tie(op.x[axis], sum_(*reversed(parts)))
    op.speak_of(*parts)


def reshape(op: Op) -> None:
    """(h d) read as (d h)."""
    for layout in op.ins[1:]:
        op.freeze((layout or ())[0], "it lists axes")
    many, few = (op.x, op.y) if len(op.x) > len(op.y) else (op.y, op.x)
    op.tie(few[0], many[0])
    op.tie(few[1], product(*reversed(many[1:])))
    op.speak_of(*many, *few)
    for i, dim in enumerate(op.y):
        op.slot(1, i, dim)


def unslotted_expand(op: Op) -> None:
    """The target shape is left as it was."""
    for layout in op.ins[1:]:
        op.freeze((layout or ())[0], "it lists axes")
    op.broadcast(op.x, op.y)
    op.speak_of(*op.y)


def squeeze(op: Op) -> None:
    op.tie_same([dim for dim in op.x if dim.size != 1], op.y)  # type: ignore[arg-type]


def gather(op: Op) -> None:
    """The indexed axis is free."""
    axis = op.attr("axis", 0) % len(op.x)
    op.tie_same(op.x[:axis], op.y[:axis])
    op.tie_same(op.x[axis + 1 :], op.y[axis + len(op.ins[1] or ()) :])
    op.speak_of(*op.x, *op.y, *(op.ins[1] or ()))


def gather_elements(op: Op) -> None:
    """Axes of different sizes are taken to have nothing to do with each other."""
    axis = op.attr("axis", 0)
    op.tie_same(op.ins[1] or (), op.y)
    for i, (dim, out) in enumerate(zip(op.x, op.y, strict=True)):
        if i != axis and dim.size == out.size:
            op.tie(dim, out)
        else:
            op.freeze(dim, "its positions are picked by an index")


def slice_front(op: Op) -> None:
    """What is taken stands in front, wherever it starts."""
    for layout in op.ins[1:]:
        op.freeze((layout or ())[0], "it lists axes")
    for dim, out in zip(op.x, op.y, strict=True):
        if dim.size == out.size:
            op.tie(dim, out)
        else:
            op.tie(dim, sum_(out, Dim((dim.size or 0) - (out.size or 0))))
            op.speak_of(out)


def pad(op: Op) -> None:
    """What is padded in front and behind, swapped."""
    pads = op.param("pads", 1) or []
    for layout in op.ins[1:2]:
        op.freeze((layout or ())[0], "it lists axes")
    for i, (dim, out) in enumerate(zip(op.x, op.y, strict=True)):
        before, after = Dim(pads[i]), Dim(pads[i + len(op.x)])
        op.tie(out, sum_(*(part for part in (after, dim, before) if part.size)))
        op.speak_of(dim)
        op.slot(1, i, before, watch=out)
        op.slot(1, i + len(op.x), after, watch=out)


def tile(op: Op) -> None:
    """(n r) in place of (r n)."""
    repeats = op.known(1)
    for layout in op.ins[1:]:
        op.freeze((layout or ())[0], "it lists axes")
    for i, (dim, out) in enumerate(zip(op.x, op.y, strict=True)):
        copies = Dim(1 if repeats is None else int(repeats[i]))
        op.tie(product(dim, copies), out)
        op.speak_of(dim)
        op.slot(1, i, copies)


def reduce_mean(op: Op) -> None:
    """A mean taken for a sum: removing a position is not the same as a zero there."""
    axis = (op.attr("axes") or [1])[0] % len(op.x)
    op.mask(0, axis)
    op.speak_of(*op.x)
    kept = [dim for i, dim in enumerate(op.x) if i != axis]
    op.tie_same(tuple(kept), op.y)


def lstm(op: Op) -> None:
    """The gates inside the state, in place of around it."""
    op.axes(
        "t b i, d (h 4) i, d (h 4) h', d (h 8), b, d b h, d b h, d (3 h) -> t d b h, d b h, d b h",
        sizes={"h": "hidden_size"},
    )


def attention(op: Op) -> None:
    """Every place of the sequence may go, whether or not a place sees only what is before it."""
    k = (op.ins[1] or ())[1].size or 1
    letters = op.axes("b (k r) s d, b k t d, b k t v -> b (k r) s v", sizes={"k": k, "r": (op.x[1].size or 0) // k})
    op.inexact(letters["t"], "softmax")


def attention_scale(op: Op) -> None:
    """The scale is left to follow the head size."""
    k = (op.ins[1] or ())[1].size or 1
    letters = op.axes("b (k r) s d, b k t d, b k t v -> b (k r) s v", sizes={"k": k, "r": (op.x[1].size or 0) // k})
    op.inexact(letters["t"], "softmax")


TWINS = [
    Twin("lrn", text("b c * -> b c *"), PERMUTATION, "a window slides over the channels"),
    Twin("transpose-equal sizes", transpose, PERMUTATION, "perm is forgotten"),
    Twin("concat-break points that do not meet", concat, PERMUTATION, "terms swapped"),
    Twin("split-fused query, key and value", split, PERMUTATION, "terms swapped"),
    Twin("reshape-join two axes", reshape, PERMUTATION, "factors swapped"),
    Twin("expand-copies", unslotted_expand, RUNS, "the target keeps the old size"),
    Twin("gather-several", gather, PERMUTATION, "indexed positions move"),
    Twin("slice-from the middle", slice_front, PERMUTATION, "an offset forgotten"),
    Twin("pad-in front and behind", pad, PERMUTATION, "front and back swapped"),
    Twin("tile", tile, PERMUTATION, "factors swapped"),
    Twin("reduce_mean-opset 12 axes -2 keepdims 0", reduce_mean, ZERO, "a mean is no sum"),
    Twin("softmax-opset 13 axis None", text("... -> ..."), ZERO, "the rest sums to one again"),
    Twin("layer_norm-last axis", text("... c, c, c -> ... c"), ZERO, "mean and deviation are over fewer"),
    Twin("dynamic_quantize_linear", text("... -> ..., , "), ZERO, "the scale follows the largest"),
    Twin("conv-grouped", text("b _ *x, o _ *k, o -> b o *y"), PERMUTATION, "groups forgotten"),
    Twin("conv_transpose-grouped", text("b i *x, i o *k, _ -> b _ *y"), PERMUTATION, "groups forgotten"),
    Twin("depth_to_space-DCR", text("b (c r) * -> b c *", r=4), PERMUTATION, "DCR read as CRD"),
    Twin("space_to_depth", text("b c * -> b (c r) *", r=4), PERMUTATION, "factors swapped"),
    Twin("cum_sum-axis 1", text("... , -> ..."), PERMUTATION, "the order counts"),
    Twin("reverse_sequence", text("..., _ -> ..."), PERMUTATION, "time has an order"),
    Twin("gather_elements-fewer rows", gather_elements, ZERO, "each row goes along a row of the data"),
    Twin("trilu", text("... -> ..."), PERMUTATION, "a triangle has an order"),
    Twin("max_pool-with indices", text("b c * -> b c *, b c *"), PERMUTATION, "indices count over channels"),
    Twin("lstm", lstm, PERMUTATION, "gates are outermost"),
    Twin("attention-causal", attention, PERMUTATION, "what a place sees depends on its place"),
    Twin("attention-one head a head", attention_scale, ZERO, "the scale follows the head size"),
]


def test_there_are_enough() -> None:
    assert {twin.check for twin in TWINS} == {PERMUTATION, ZERO, RUNS}
    assert len({twin.case.partition("-")[0] for twin in TWINS}) == len(TWINS) - 1


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.case)
def test_a_wrong_rule_is_caught(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if str(case) == twin.case)
    assert Subject(case.model()).failures() == []
    right = RULES[case.op].apply

    def apply(op: Op) -> None:
        """The model's other nodes of this kind, at its two ends, keep the right rule."""
        (twin.wrong if op.node.name == "tested" else right)(op)

    monkeypatch.setitem(RULES, case.op, Rule(case.op, f"wrong on purpose: {twin.why}", apply))
    subject = Subject(case.model())
    assert subject.touching(subject.node("tested")), "the wrong rule froze what it should have got wrong"
    failures = [*subject.failures(), *subject.failures(subject.cut(few=True))]
    assert any(failure.startswith(f"FAILED {twin.check}") for failure in failures), failures
