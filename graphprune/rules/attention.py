"""Attention written as one op, and rotary position embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping

from graphprune.dims import Dim, product, sum_
from graphprune.rules.registry import HEAD, HEAD_SIZE, Op, rule
from graphprune.signature import Layout


@rule("attention")
def attention(op: Op) -> None:
    """ "b (k r) s d, b k t d, b k t v, ... -> b (k r) s v" (or heads folded into the last axis), softmax over t"""
    flat = len(op.x) == 3
    q_heads, kv_heads = (
        (op.attr("q_num_heads", 0), op.attr("kv_num_heads", 0))
        if flat
        else (op.x[1].size or 0, (op.ins[1] or ())[1].size or 0)
    )
    if not kv_heads or q_heads % kv_heads:
        op.freeze_all("its query heads are not a multiple of its key heads")
        return
    rest, op.ins = op.ins, op.ins[:3]
    others, op.outs = op.outs, op.outs[:1]
    sizes = {"k": kv_heads, "r": q_heads // kv_heads}
    text = (
        "b s (k r d), b t (k d), b t (k v) -> b s (k r v)" if flat else "b (k r) s d, b k t d, b k t v -> b (k r) s v"
    )
    letters = op.axes(text, sizes=sizes, macs="b k r s t d, b k r s t v")
    op.ins, op.outs = rest, others
    if not letters:
        return
    _rest(op, letters)
    heads = product(letters["k"], letters["r"])
    if flat:
        op.slot("q_num_heads", 0, heads)
        op.slot("kv_num_heads", 0, letters["k"])
    op.role(heads, HEAD)
    for letter in "dv":
        op.role(letters[letter], HEAD_SIZE)
    if "scale" not in op.node.attrs:
        op.pin("scale", 1 / math.sqrt(letters["d"].size or 1), letters["d"])


def _rest(op: Op, letters: Mapping[str, Dim]) -> None:
    """Mask, lengths, past and present keys and values, and the attention matrix."""
    b, k, r, s, t, d, v = (letters[c] for c in "bkrstdv")
    mask, *past, lengths = (*op.ins[3:7], *[None] * 4)[:4]
    total = t
    if past[0] is not None:
        total = sum_(past[0][2], t)
    for layout, width in zip(past, (d, v), strict=True):
        op.tie_same(layout or (), (b, k, past[0][2], width) if layout and past[0] else ())
    op.inexact(total, "softmax is computed over it")
    if mask is not None:
        op.broadcast(mask, (b, product(k, r), s, total))
    for layout, width in zip(op.outs[1:3], (d, v), strict=False):
        op.tie_same(layout or (), (b, k, total, width) if layout else ())
    for layout in op.outs[3:4]:
        op.tie_same(layout or (), (b, product(k, r), s, total) if layout else ())
    if lengths is not None:
        op.tie(lengths[0], b)
    windows = [op.attr(f"{side}_window_size", -1) for side in ("left", "right")]
    if op.attr("is_causal", 0) or lengths is not None or max(windows) >= 0:
        for dim in (s, total):
            op.freeze(dim, "what a query sees depends on its place in the sequence")


@rule("rotary_embedding")
def rotary_embedding(op: Op) -> None:
    """ "b h s (2 d), ... d, ... d -> b h s (2 d)" (or heads folded into the last axis); (d 2) where interleaved"""
    heads, size = op.attr("num_heads", 0), None
    flat = len(op.x) == 3
    total = op.x[-1].size
    if flat and heads and total and total % heads == 0:
        size = total // heads
    elif not flat:
        size = total
    if not size or size % 2 or op.attr("rotary_embedding_dim", 0):
        op.freeze_all("only part of the head is rotated, or its heads are not known")
        return
    two, half = Dim(2), Dim(size // 2)
    op.freeze(two, "its two positions are rotated into each other")
    pair = product(two, half) if not op.attr("interleaved", 0) else product(half, two)
    op.tie_same(op.x, op.y)
    head = Dim(heads) if flat else op.x[1]
    op.tie(op.x[-1], product(head, pair) if flat else pair)
    if flat:
        op.slot("num_heads", 0, head)
    op.role(head, HEAD)
    op.role(half, HEAD_SIZE)
    _angles(op, (op.x[0], op.x[1] if flat else op.x[2]), half)


def _angles(op: Op, places: Layout, half: Dim) -> None:
    """Angles a place (b, s, d), or a table of them (_, d) and which row is whose (b, s)."""
    for layout in op.ins[1:3]:
        *rows, angle = layout or ()
        op.tie(angle, half)
        if len(rows) == 2:
            op.tie_same(tuple(rows), places)
        for dim in rows if len(rows) == 1 else ():
            op.freeze(dim, "its positions are places in the sequence")
    if len(op.ins) > 3 and op.ins[3] is not None:
        op.tie_same(op.ins[3], places)
