"""Attention written as one op, and rotary position embedding: an op is one line that names its operands, in order.

`AXES` says which axes an operand of that name and rank has: k groups of r heads, of d positions in queries and keys and
of v in values; s queries, t keys, p keys of the past and n in all. A new op is a line; a new kind of operand another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from graphprune.dims import Dim, product, sum_
from graphprune.rules.registry import HEAD, HEAD_SIZE, Op, rule
from graphprune.signature import Layout

_JOINT = "((k r d) + (k d) + (k v))"
AXES: dict[str, dict[int, str]] = {
    "query": {3: "b s (k r d)", 4: "b (k r) s d"},
    "key": {3: "b t (k d)", 4: "b k t d"},
    "value": {3: "b t (k v)", 4: "b k t v"},
    "joint": {3: f"b s {_JOINT}"},
    "input": {3: "b s i"},
    "weights": {2: f"i {_JOINT}"},
    "bias": {1: _JOINT},
    "columns": {0: "", 1: _JOINT},
    "past_key": {4: "b k p d"},
    "past_value": {4: "b k p v"},
    "past": {5: "2 b k p d"},
    "present_key": {4: "b k n d"},
    "present_value": {4: "b k n v"},
    "present": {5: "2 b k n d"},
    "matrix": {4: "b (k r) s n"},
    "state": {4: "b k d v"},
    "decay": {3: "b t (k d)"},
    "gate": {3: "b t k"},
    "output": {3: "b s (k r v)", 4: "b (k r) s v"},
    "lengths": {1: "b", 2: "b _"},
    "sink": {1: "(k r)"},
    "rotated": {3: "b s (k d)", 4: "b k s d"},
    "angles": {2: "_ f", 3: "b s f"},
    "ids": {1: "_", 2: "b s"},
    "places": dict.fromkeys(range(6), "*"),
}
"""Other names: "scores" are added to those of all heads, with broadcasting; with an operand "other" the op freezes."""
_SUMMED = ("query", "key", "joint", "weights", "bias")
"""What queries and keys are sums of: where all of them are zero, so are their products."""


class Operands:
    """The operands of a node by the names that the line of its op gives them."""

    def __init__(self, op: Op, line: str) -> None:
        self.op = op
        self.ins, self.outs = (side.split() for side in line.split("->"))
        if "key" in self.ins and not self["key"]:
            self.ins[0] = "joint"
        self.ins = [self._other(name, self[name]) for name in self.ins]

    def _other(self, name: str, layout: Layout) -> str:
        """What an operand is instead that has one number a head, or one for all heads."""
        if name not in ("decay", "gate") or not layout:
            return name
        return "places" if layout[-1].size == 1 else "gate" if layout[-1].size == self.op.attr("kv_num_heads") else name

    def __iter__(self) -> Iterator[tuple[str, Layout]]:
        for names, layouts in ((self.ins, self.op.ins), (self.outs, self.op.outs)):
            yield from ((name, layout) for name, layout in zip(names, layouts, strict=False) if layout is not None)

    def __getitem__(self, name: str) -> Layout:
        """The first operand of this name; () where there is none."""
        return next((layout for found, layout in self if found == name), ())

    def state(self, sizes: Mapping[str, int], macs: str = "", means: str = "") -> dict[str, Dim]:
        """State the axes of all operands; the Dim of each letter. A head that is rotated is made of two halves."""
        op, every, rotated = self.op, self.op.ins, self["angles"]
        whole = bool(rotated) and rotated[-1].size == sizes["d"] / 2
        pairs = "f w" if op.attr("interleaved", op.attr("rotary_interleaved", 0)) else "w f"
        head, angle = (f"({pairs})", "f") if whole else ("d", "_")
        apart = [i for i, name in enumerate(self.ins) if name == "scores"]
        op.ins = [None if i in apart else layout for i, layout in enumerate(every)]
        sides = zip((self.ins, self.outs), (op.ins, op.outs), strict=True)
        text = " -> ".join(", ".join(map(_axes, names, layouts)) for names, layouts in sides)
        text = re.sub(r"\bd\b", head, re.sub(r"\bf\b", angle, text))
        given = {**sizes, "w": 2, "f": sizes["d"] // 2}
        numbers = {letter: size for letter, size in given.items() if re.search(rf"\b{letter}\b", text)}
        macs = re.sub(r"\bd\b", head.strip("()"), macs)
        letters = dict(op.axes(text, sizes=numbers, macs=macs, means=means, masked="no"))
        op.ins = every
        if letters and whole:
            op.freeze(letters["w"], "its two positions are rotated into each other")
            letters["d"] = product(*(letters[c] for c in pairs.split()))
        elif letters and (rotated or op.attr("do_rotary", 0)):
            op.freeze(letters["d"], "only a part of it is rotated")
        for dim in (letters[letter] for letter in ("f" if whole else "d", "v") if letter in letters):
            op.role(dim, HEAD_SIZE)
        return letters


def _axes(name: str, layout: Layout | None) -> str:
    return "" if layout is None else AXES[name][len(layout)]


def _each(dim: Dim, count: int) -> int:
    """How many positions of ``dim`` each of ``count`` heads has."""
    size, rest = divmod(dim.size or 0, count or 1)
    if not count or not size or rest:
        raise ValueError(f"{count} heads share {dim.size} positions")
    return size


def attention(
    name: str, line: str, *, step: int = 1, one_size: bool = False, ordered: bool = False, means: str = ""
) -> None:
    """Register an op that is attention, with head sizes that are a multiple of ``step``.

    ``one_size``: it may ask values to have the size of keys. ``ordered``: a query sees what is before it, in any case.
    ``means``: what integers stand for, as in an axis text.
    """

    def apply(op: Op) -> None:
        operands = Operands(op, line)
        if operands["other"]:
            op.freeze_all("its keys are quantised or normalised inside it")
            return
        sizes = _sizes(operands)
        keys = "t" if operands["key"] else "s"
        macs = f"b k r s {keys} d, b k r s {keys} v"
        macs += ", b k r s p d, b k r s p v" if operands["past"] or operands["past_key"] else ""
        macs += ", b s i k r d, b s i k d, b s i k v" if operands["weights"] else ""
        letters = operands.state(sizes, macs, means)
        if letters:
            op.mixes(letters["d"])
            _heads(operands, letters, one_size)
            _places(operands, letters, letters[keys], ordered)
            if step > 1:
                op.multiple(letters.get("f", letters["d"]), step)

    apply.__doc__ = line
    rule(name)(apply)


def _sizes(operands: Operands) -> dict[str, int]:
    """Key heads, query heads a key head, and head sizes where no operand shows them alone."""
    op, key = operands.op, operands["key"]
    heads = op.attr("num_heads", op.attr("q_num_heads", 0)) or op.x[1].size or 0
    groups = op.attr("kv_num_heads", 0) or (key[1].size or 0 if len(key) == 4 else heads)
    if not groups or heads % groups:
        raise ValueError(f"{heads} query heads, {groups} key heads")
    sizes = {"k": groups, "r": heads // groups}
    if operands["weights"]:
        wide, _, values = op.attr("qkv_hidden_sizes") or [_each(operands["weights"][1], 3)] * 3
        return {**sizes, "d": _each(Dim(wide), heads), "v": _each(Dim(values), heads)}
    if operands["joint"]:
        size = _each(op.x[2], heads + 2 * groups)
        return {**sizes, "d": size, "v": size}
    return {**sizes, "d": _each(op.x[-1], heads if len(op.x) == 3 else 1)}


def _heads(operands: Operands, letters: Mapping[str, Dim], one_size: bool) -> None:
    """Numbers of heads and their sizes as attributes; where zeros can be put."""
    op, heads = operands.op, product(letters["k"], letters["r"])
    if one_size and letters["d"].size == letters["v"].size:
        op.tie(letters["d"], letters["v"])
    for name, dim in (("num_heads", heads), ("q_num_heads", heads), ("kv_num_heads", letters["k"])):
        if op.attr(name, 0):
            op.slot(name, 0, dim)
    op.role(heads, HEAD)
    if "scale" not in op.node.attrs or (op.attr("scale") == 0 and op.node.op != "attention"):
        op.pin("scale", 1 / math.sqrt(letters["d"].size or 1), letters["d"])
    for i, (name, layout) in enumerate(zip(operands.ins, op.ins, strict=False)):
        if name in _SUMMED and layout:
            op.mask(i, len(layout) - 1, part=letters["d"])
    if operands["weights"]:
        op.mask(0, 2, against=(1, 0))
        for i, letter in enumerate("ddv"):
            if op.attr("qkv_hidden_sizes"):
                op.slot("qkv_hidden_sizes", i, product(heads, letters[letter]))


def _places(operands: Operands, letters: Mapping[str, Dim], new: Dim, ordered: bool) -> None:
    """The sequence: softmax runs over all keys, and where what a query sees depends on its place, it is ordered."""
    op, s = operands.op, letters["s"]
    total = sum_(letters["p"], new) if "p" in letters else new
    scores, every = operands["scores"], letters.get("n", total)
    if scores:
        op.broadcast(scores, (letters["b"], product(letters["k"], letters["r"]), s, every))
    windows = [op.attr(f"{side}_window_size", -1) for side in ("left", "right")]
    placed = any(name == "places" for name, _ in operands)
    ordered = ordered or placed or bool(operands["lengths"]) or max(windows) >= 0
    if ordered or op.attr("is_causal", 0) or op.attr("unidirectional", 0):
        for dim in (s, total, every, *([letters["b"]] if placed else ())):
            op.freeze(dim, "what a query sees depends on its place in the sequence")
    else:
        op.tie(every, total)
        op.inexact(total, "softmax is computed over it")


attention("attention", "query key value scores past_key past_value lengths -> output present_key present_value matrix")
attention("com.microsoft.attention", "input weights bias places past scores places -> output present", one_size=True)
attention(
    "com.microsoft.q_attention",
    "input weights bias columns columns places columns columns past -> output present",
    one_size=True,
    means="(0-6)*3 (1-7)*4",
)
attention(
    "com.microsoft.multi_head_attention",
    "query key value bias places scores past_key past_value places places -> output present_key present_value matrix",
    one_size=True,
)
attention(
    "com.microsoft.decoder_masked_multi_head_attention",
    "query key value places scores past_key past_value places places places bias"
    " -> output present_key present_value matrix",
    one_size=True,
)
attention(
    "com.microsoft.group_query_attention",
    "query key value past_key past_value lengths places angles angles ids scores sink other other other other"
    " -> output present_key present_value matrix",
    step=8,
    one_size=True,
)
for _op in ("linear_attention", "com.microsoft.linear_attention"):
    attention(_op, "query key value state decay gate -> output state", ordered=True)


def rotary(name: str, line: str) -> None:
    """Register an op that rotates the halves of each head into each other, by angles that depend on the place."""

    def apply(op: Op) -> None:
        operands, flat = Operands(op, line), len(op.x) == 3
        angles = operands["angles"][-1].size or 0
        heads = (op.attr("num_heads", 0) or _each(op.x[2], 2 * angles)) if flat else op.x[1].size or 0
        letters = operands.state({"k": heads, "d": _each(op.x[-1], heads if flat else 1)})
        if letters:
            op.role(letters["k"], HEAD)
            if len(operands["ids"]) == 1:
                op.freeze(letters["s"], "its positions are places in the sequence")
            if op.attr("num_heads", 0):
                op.slot("num_heads", 0, letters["k"])

    apply.__doc__ = line
    rule(name)(apply)


rotary("rotary_embedding", "rotated angles angles ids -> rotated")
rotary("com.microsoft.rotary_embedding", "rotated ids angles angles -> rotated")
