"""Twins of the rules table: for rules made wrong on purpose, the proof must fail.

Each wrong rule is one that somebody could have written: an axis order forgotten, terms swapped, a mean taken for a sum.
The entry of the table passes with the right rule (tests/test_rules.py) and fails here, by the check that is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from graphprune.rules import RULES, Op, Rule
from tests import wrong_rules as wrong
from tests.cases import CASES
from tests.prove import Subject

PERMUTATION, ZERO, RUNS = "permutation", "zero equals cut", "loads and runs"


class Twin(NamedTuple):
    """``case`` of the table, the wrong rule for its op, and the check that must say so."""

    case: str
    wrong: Callable[[Op], object]
    check: str
    why: str


CONV = "b (g i) *x, , , (g o) i *k, {}, , , (g o) -> b (g o) *y"
UNGROUPED = "b _ *x, , , o _ *k, o, o, , , o -> b o *y"
MATMUL = "... m k, , , ... k n, n, n, , -> ... m n"

TWINS = [
    Twin("lrn", wrong.text("b c * -> b c *"), PERMUTATION, "a window slides over the channels"),
    Twin("transpose-equal sizes", wrong.transpose, PERMUTATION, "perm is forgotten"),
    Twin("concat-break points that do not meet", wrong.concat, PERMUTATION, "terms swapped"),
    Twin("split-fused query, key and value", wrong.split, PERMUTATION, "terms swapped"),
    Twin("reshape-join two axes", wrong.reshape, PERMUTATION, "factors swapped"),
    Twin("expand-copies", wrong.unslotted_expand, RUNS, "the target keeps the old size"),
    Twin("gather-several", wrong.gather, PERMUTATION, "indexed positions move"),
    Twin("gather-all in order", wrong.gather_all, RUNS, "the index keeps its old numbers"),
    Twin("gather_nd-one position of two axes", wrong.gather_nd, ZERO, "the position keeps its old number"),
    Twin("slice-from the middle", wrong.slice_front, PERMUTATION, "an offset forgotten"),
    Twin("pad-in front and behind", wrong.pad, PERMUTATION, "front and back swapped"),
    Twin("tile", wrong.tile, PERMUTATION, "factors swapped"),
    Twin("reduce_mean-opset 12 axes -2 keepdims 0", wrong.reduce_mean, ZERO, "a mean is no sum"),
    Twin("softmax-opset 13 axis None", wrong.text("... -> ..."), ZERO, "the rest sums to one again"),
    Twin("layer_norm-last axis", wrong.text("... c, c, c -> ... c"), ZERO, "mean and deviation are over fewer"),
    Twin("dequantize_linear-a scale a column", wrong.unscaled, PERMUTATION, "scales stay where they were"),
    Twin("dequantize_linear-blocks", wrong.unblocked, ZERO, "blocks are torn apart"),
    Twin("quantize_linear-a scale a channel", wrong.unscaled, PERMUTATION, "scales stay where they were"),
    Twin("q_linear_conv-a scale a channel", wrong.text(CONV.format("_, _"), g="group"), PERMUTATION, "scales stay"),
    Twin("q_linear_conv-grouped, a scale a channel", wrong.text(UNGROUPED), PERMUTATION, "groups forgotten"),
    Twin("q_linear_mat_mul-a scale a column", wrong.text(MATMUL), ZERO, "the zero point stands for zero"),
    Twin(
        "mat_mul_integer-a zero point a column",
        wrong.text("... m k, ... k n, , _ -> ... m n"),
        PERMUTATION,
        "zero points stay where they were",
    ),
    Twin(
        "com.microsoft.mat_mul_integer_to_float-a scale a column",
        wrong.text("... m k, ... k n, , _, , _, _ -> ... m n"),
        PERMUTATION,
        "scales stay where they were",
    ),
    Twin(
        "com.microsoft.q_gemm-transB, a scale a column",
        wrong.text("m k, , , n k, _, _, _, , -> m n"),
        PERMUTATION,
        "scales stay where they were",
    ),
    Twin("com.microsoft.q_linear_softmax", wrong.text("..., , , , -> ..."), ZERO, "the rest sums to one again"),
    Twin("com.microsoft.q_linear_concat", wrong.q_linear_concat, PERMUTATION, "terms swapped"),
    Twin(
        "com.microsoft.q_attention-a scale a column",
        wrong.text("b s i, i (h d 3), (h d 3), , (h d 3), , , (h d 3) -> b s (h d)", h="num_heads", d=6),
        PERMUTATION,
        "queries, keys and values are outermost",
    ),
    Twin(
        "com.microsoft.mat_mul_n_bits-4 bits",
        wrong.n_bits("... (16 c), n c _, n c, , , n -> ... n"),
        PERMUTATION,
        "blocks are outermost",
    ),
    Twin(
        "com.microsoft.mat_mul_n_bits-4 bits, zero points two a byte",
        wrong.n_bits("... (c 2 16), n (c 2) _, n (c 2), n _, , n -> ... n"),
        ZERO,
        "zero points stay where they were",
    ),
    Twin(
        "com.microsoft.mat_mul_n_bits-8 bits",
        wrong.text("... (c 16), n c _, n c, , , n -> ... n"),
        RUNS,
        "N and K keep the old sizes",
    ),
    Twin(
        "com.microsoft.gather_block_quantized-bytes, zero points two a byte",
        wrong.text("_ (8 c 2), *, _ (c 2), _ c -> * (c 2 16)"),
        ZERO,
        "blocks are outermost",
    ),
    Twin(
        "com.microsoft.q_mo_e-8 bits, gate and value interleaved", wrong.q_mixture, PERMUTATION, "gates are innermost"
    ),
    Twin("conv-grouped", wrong.text("b _ *x, o _ *k, o -> b o *y"), PERMUTATION, "groups forgotten"),
    Twin("conv_transpose-grouped", wrong.text("b i *x, i o *k, _ -> b _ *y"), PERMUTATION, "groups forgotten"),
    Twin("depth_to_space-DCR", wrong.text("b (c r) * -> b c *", r=4), PERMUTATION, "DCR read as CRD"),
    Twin("space_to_depth", wrong.text("b c * -> b (c r) *", r=4), PERMUTATION, "factors swapped"),
    Twin("cum_sum-axis 1", wrong.text("... , -> ..."), PERMUTATION, "the order counts"),
    Twin("reverse_sequence", wrong.text("..., _ -> ..."), PERMUTATION, "time has an order"),
    Twin("gather_elements-fewer rows", wrong.gather_elements, ZERO, "each row goes along a row of the data"),
    Twin("trilu", wrong.text("... -> ..."), PERMUTATION, "a triangle has an order"),
    Twin("max_pool-with indices", wrong.text("b c * -> b c *, b c *"), PERMUTATION, "indices count over channels"),
    Twin("lstm", wrong.lstm, PERMUTATION, "gates are outermost"),
    Twin("attention-causal", wrong.attention, PERMUTATION, "what a place sees depends on its place"),
    Twin("attention-one head a head", wrong.attention_scale, ZERO, "the scale follows the head size"),
    Twin("if-layers in both branches", wrong.one_branch, PERMUTATION, "it is the same whichever is taken"),
    Twin("loop-a recurrent layer from a constant", wrong.no_carry, PERMUTATION, "a state goes around"),
    Twin("scan-a recurrent layer", wrong.no_carry, PERMUTATION, "a state goes around"),
    Twin("com.microsoft.attention", wrong.joint, PERMUTATION, "queries, keys and values are outermost"),
    Twin("com.microsoft.multi_head_attention", wrong.heads, PERMUTATION, "heads are outermost"),
    Twin("com.microsoft.group_query_attention", wrong.grouped, ZERO, "key heads are outermost"),
    Twin("com.microsoft.group_query_attention-packed", wrong.stepless, RUNS, "head sizes are multiples of 8"),
    Twin(
        "com.microsoft.decoder_masked_multi_head_attention-keys of an encoder",
        wrong.text("b _ (d h), b h _ d, b h _ d -> b _ (d h)", h="num_heads"),
        PERMUTATION,
        "heads are outermost",
    ),
    Twin("com.microsoft.linear_attention-linear, 2", wrong.linear, ZERO, "key heads are outermost"),
    Twin(
        "com.microsoft.rotary_embedding",
        wrong.text("b h s d, b s, _ *, _ * -> b h s d"),
        PERMUTATION,
        "halves are rotated into each other",
    ),
    Twin(
        "com.microsoft.skip_layer_normalization",
        wrong.text("... c, ... c, c, c, c -> ... c"),
        ZERO,
        "mean and deviation are over fewer",
    ),
    Twin(
        "com.microsoft.embed_layer_normalization",
        wrong.text("b s, b s, _ c, _ c, _ c, c, c -> b s c, , b s c"),
        PERMUTATION,
        "each place has a row of its own",
    ),
    Twin("com.microsoft.fast_gelu-bias", wrong.text("... c, _ -> ... c"), PERMUTATION, "the bias stays"),
    Twin(
        "com.microsoft.fused_conv-grouped, with a sum",
        wrong.text("b _ *x, o _ *k, o, b o * -> b o *y"),
        PERMUTATION,
        "groups forgotten",
    ),
    Twin(
        "com.microsoft.mo_e-gate and value interleaved",
        wrong.text("b s i, (b s) e, e (2 m) i, e (2 m), e i m, e i -> b s i"),
        PERMUTATION,
        "gate and value are innermost",
    ),
]


def test_there_are_enough() -> None:
    assert {twin.check for twin in TWINS} == {PERMUTATION, ZERO, RUNS}
    assert len({twin.case.partition("-")[0] for twin in TWINS}) == len(TWINS) - 7


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.case)
def test_a_wrong_rule_is_caught(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in CASES if str(case) == twin.case)
    assert Subject(case.model()).failures() == []
    right = RULES[case.op].apply

    def apply(op: Op) -> None:
        """The model's other nodes of this kind, at its two ends, keep the right rule."""
        (twin.wrong if op.node.name == "tested" else right)(op)

    monkeypatch.setitem(RULES, case.op, Rule(case.op, f"wrong on purpose: {twin.why}", apply, RULES[case.op].gate))
    subject = Subject(case.model())
    assert subject.touching(subject.node("tested")), "the wrong rule froze what it should have got wrong"
    failures = [*subject.failures(), *subject.failures(subject.cut(few=True))]
    assert any(failure.startswith(f"FAILED {twin.check}") for failure in failures), failures
