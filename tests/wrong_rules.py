"""Rules made wrong on purpose, each as somebody could have written it. The proofs must fail for every one of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphprune.dims import Dim, product, sum_
from graphprune.rules import Op


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


def gather_all(op: Op) -> None:
    """The index is cut like a weight and not counted anew."""
    indices = op.ins[1] or ()
    op.tie_same((op.x[0], *indices), op.y)
    op.tie(op.x[1], product(*indices))


def gather_nd(op: Op) -> None:
    """The position that is taken is not counted anew."""
    for dim, at in zip(op.x, np.asarray(op.known(1)).reshape(-1), strict=False):
        before = int(at) % (dim.size or 1)
        op.tie(dim, sum_(Dim(before), Dim(1), Dim((dim.size or 1) - before - 1)))
    op.tie_same(op.x[2:], op.y[1:])


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


def softmax(op: Op) -> None:
    """Taken for an op that treats every element alike."""
    op.axes("... -> ...")


def slice_(op: Op) -> None:
    """The taken positions are cut along with the first ones of the input."""
    for layout in op.ins[1:]:
        for dim in layout or ():
            op.freeze(dim, "it lists axes")
    op.speak_of(*op.x, *op.y)
    for dim, out in zip(op.x, op.y, strict=True):
        if dim.size == out.size:
            op.tie(dim, out)


def joint(op: Op) -> None:
    """Queries, keys and values inside each head."""
    op.axes("b _ i, i (h 3 d), (h 3 d) -> b _ (h d)", sizes={"h": "num_heads"})


def heads(op: Op) -> None:
    """Heads inside."""
    op.axes("b _ (d h), b _ (d h), b _ (d h) -> b _ (d h)", sizes={"h": "num_heads"})


_CACHES = "b k _ d, b k _ d, b, -> b _ {}, b k _ d, b k _ d"


def grouped(op: Op) -> None:
    """Queries of one key head far from each other."""
    text = "b _ (r k d), b _ (k d), b _ (k d), " + _CACHES.format("(r k d)")
    letters = op.axes(text, sizes={"k": "kv_num_heads", "r": 2})
    op.slot("num_heads", 0, product(letters["k"], letters["r"]))


def linear(op: Op) -> None:
    """The same, with the state of each key head."""
    text = "b _ (r k d), b _ (k d), b _ (k v), b k d v -> b _ (r k v), b k d v"
    letters = op.axes(text, sizes={"k": "kv_num_heads", "r": 2})
    op.slot("q_num_heads", 0, product(letters["k"], letters["r"]))


def stepless(op: Op) -> None:
    """Heads of any size."""
    text = "b _ ((k r d) + (k d) + (k d)), , , " + _CACHES.format("(k r d)")
    letters = op.axes(text, sizes={"k": "kv_num_heads", "r": 2, "d": (op.x[2].size or 0) // 8})
    op.slot("num_heads", 0, product(letters["k"], letters["r"]))
    op.pin("scale", (letters["d"].size or 1) ** -0.5, letters["d"])


def unscaled(op: Op) -> None:
    """Scales and zero points are left as they are."""
    op.tie_same(op.x, op.y)
    op.speak_of(*(dim for layout in op.ins for dim in layout or ()))


def unblocked(op: Op) -> None:
    """Positions inside a block are free."""
    op.tie_same(op.x, op.y)
    for layout in op.ins[1:]:
        for dim, scale in zip(op.x, layout or (), strict=True):
            op.tie(dim, product(scale, Dim((dim.size or 0) // (scale.size or 1))))
            op.speak_of(scale)


def q_linear_concat(op: Op) -> None:
    op.ins = op.ins[2::3]
    concat(op)


def n_bits(line: str) -> Callable[[Op], object]:
    """Weights in blocks, with the sizes that are attributes."""

    def apply(op: Op) -> None:
        op.axes(line, sizes={"n": "N"})
        op.slot("K", 0, op.x[-1])

    return apply


def q_mixture(op: Op) -> None:
    """Gate and value one after the other."""
    op.axes("b s i, (b s) e, e (2 m) i, e (2 m), e (2 m), e i m, e i, e i -> b s i")


def one_branch(op: Op) -> None:
    """The second branch is forgotten."""
    op.tie_same(op.ins[1] or (), op.y)
    op.speak_of(*(op.ins[2] or ()))


def no_carry(op: Op) -> None:
    """What an iteration leaves is not what the next one finds."""
    _, before, after, *steps = op.ins
    op.tie_same(after or (), op.y)
    op.speak_of(*(before or ()))
    for step, whole in zip(steps, op.outs[1:], strict=True):
        iterations, *rest = whole or ()
        op.freeze(iterations, "it is the order of iterations")
        op.tie_same(step or (), tuple(rest))
