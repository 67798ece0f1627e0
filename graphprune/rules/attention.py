"""Attention written as one op, and rotary position embedding."""

from __future__ import annotations

import math

from graphprune.dims import Dim, product
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
    op.inexact(letters["t"], "softmax is computed over it")
    if "scale" not in op.node.attrs:
        op.pin("scale", 1 / math.sqrt(letters["d"].size or 1), letters["d"])


def _rest(op: Op, letters: object) -> None:
    """Mask, past and present keys and values, and the attention matrix."""
    assert isinstance(letters, dict)
    k, r, s, t, d, v, b = (letters[c] for c in "krstdvb")
    past = [layout for layout in op.ins[4:6] if layout]
    if past or len(op.ins) > 6:
        for layout in op.ins[3:]:
            for dim in layout or ():
                op.freeze(dim, "a mask or cache of growing length")
    elif len(op.ins) > 3 and op.ins[3] is not None:
        op.broadcast(op.ins[3], (b, product(k, r), s, t))
    for layout, width in zip(op.outs[1:3], (d, v), strict=False):
        if layout is not None:
            op.tie(layout[1], k)
            op.tie(layout[3], width)
    if len(op.outs) > 3 and op.outs[3] is not None:
        op.tie(op.outs[3][1], product(k, r))
    for layout, width in zip(op.ins[4:6], (d, v), strict=False):
        if layout is not None:
            op.tie(layout[1], k)
            op.tie(layout[3], width)


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
    half = Dim(size // 2)
    pair = product(Dim(2), half) if not op.attr("interleaved", 0) else product(half, Dim(2))
    op.tie_same(op.x, op.y)
    head = Dim(heads) if flat else op.x[1]
    op.tie(op.x[-1], product(head, pair) if flat else pair)
    if flat:
        op.slot("num_heads", 0, head)
    op.role(head, HEAD)
    op.role(half, HEAD_SIZE)
    for layout in op.ins[1:3]:
        _cache(op, layout or (), half)


def _cache(op: Op, layout: Layout, half: Dim) -> None:
    op.tie(layout[-1], half)
    for dim in layout[:-1]:
        op.freeze(dim, "its positions are places in the sequence")
