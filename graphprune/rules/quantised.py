"""Quantised values: a scale and a zero point for all, or weights on the same Dim as what they scale; blocks stay whole.

``means`` says what the integers of an operand stand for: scores look at that, and a position that is zeroed for a proof
becomes the zero point. A removed position is one that holds zeros, also where a scale is taken over all positions when
the model runs: zero is always in the range that is looked at.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from graphprune.dims import Dim, product
from graphprune.graph import Array
from graphprune.integers import dequantise, unpack
from graphprune.rules.linear import roles
from graphprune.rules.norm import softmax
from graphprune.rules.registry import CHANNEL, HIDDEN, MLP, STATE, Op, rule
from graphprune.rules.shape import concat
from graphprune.signature import Layout

IN_BLOCKS = "its positions are quantised in blocks"


@rule("quantize_linear", "dequantize_linear", "com.microsoft.quantize_linear", "com.microsoft.dequantize_linear")
def quantize(op: Op) -> None:
    """ "... -> ...", scale and zero point along `axis`; blocks stay whole"""
    op.tie_same(op.x, op.y)
    axis = op.attr("axis", 1)
    for layout in op.ins[1:]:
        if layout and len(layout) == len(op.x) > 1:
            for dim, scale in zip(op.x, layout, strict=True):
                _block(op, dim, scale)
        elif layout and layout[0].size != 1:
            op.tie(layout[0], op.x[axis])
    if op.node.op.endswith("dequantize_linear"):
        op.means(0, [1], 2, axis)
        op.facts.decoded[op.node.outputs[0]] = op.node.inputs[0]


def _block(op: Op, dim: Dim, scale: Dim) -> None:
    """One axis: as many scales as positions, or one for every few."""
    size = op.attr("block_size", 0)
    if dim.size == scale.size:
        op.tie(dim, scale)
    elif size and dim.size == size * (scale.size or 0):
        inside = Dim(size)
        op.freeze(inside, IN_BLOCKS)
        op.tie(dim, product(scale, inside))
        op.speak_of(scale)
    else:
        op.freeze(dim, IN_BLOCKS)
        op.freeze(scale, IN_BLOCKS)


@rule("dynamic_quantize_linear")
def dynamic_quantize_linear(op: Op) -> None:
    """ "... -> ..., , ": one scale for all, taken over all"""
    op.tie_same(op.x, op.y)
    _taken_over(op, len(op.x))


def _taken_over(op: Op, axes: int) -> None:
    for axis in range(axes):
        op.mask(0, axis)


def _scaled_behind(op: Op, axis: int) -> None:
    """The weights have the scale that the result is multiplied with, where it is cast: alone, or times another."""
    graph, value = op.facts.graph, op.node.outputs[0]
    for wanted in ("cast", "mul"):
        readers = graph.consumers.get(value, ())
        node = readers[0][0] if len(readers) == 1 and readers[0][0].op == wanted else None
        if node is None:
            return
        others, value = {*node.inputs} - {value}, node.outputs[0]
    made = [node.inputs for node in graph.nodes if node.op == "mul" and others & {*node.outputs}]
    known = [name for names in (*made, others) for name in names if name in graph.weights]
    if len(known) == 1:

        def read(stored: Array, scale: Array, zero: Array | None = None) -> Array:
            return dequantise(stored, [scale], zero, axis)

        op.stands_for(1, [known[0], 3], op.ins[1] or (), read)


# Images.


def _image(name: str, text: str, means: str, macs: str = "", *, scaled_behind: bool = False) -> None:
    """An op on images, the channels last where an attribute says so."""

    def apply(op: Op) -> None:
        if scaled_behind:
            _scaled_behind(op, 0)
        turned = re.sub(r"b (\(.*?\)|c) (\*\w*)", r"b \2 \1", text) if op.attr("channels_last", 0) else text
        letters = op.axes(turned, sizes={"g": "group"} if "g" in text else {}, means=means, macs=macs)
        for letter in set("go") & set(letters):
            op.role(letters[letter], CHANNEL)

    apply.__doc__ = text
    rule(name)(apply)


for _name in ("q_linear_conv", "com.microsoft.q_linear_conv"):
    _image(
        _name,
        "b (g i) *x, , , (g o) i *k, (g o), (g o), , , (g o) -> b (g o) *y",
        means="(0-2)*1 (3-5)*4 8*1*4",
        macs="b g o i k y",
    )
_image(
    "conv_integer",
    "b (g i) *x, (g o) i *k, , (g o) -> b (g o) *y",
    means="(0-2) (1-3)",
    macs="b g o i k y",
    scaled_behind=True,
)
_image("com.microsoft.q_linear_average_pool", "b c *, , , , -> b c *", means="(0-2)*1")
_image("com.microsoft.q_linear_global_average_pool", "b c *, , , , -> b c *", means="(0-2)*1")


# Products.


def _product(name: str, text: str, means: str, second: int = 1, *, scaled_behind: bool = False) -> None:
    """A product of matrices, those of input ``second`` being the weights if there are any."""

    def apply(op: Op) -> None:
        if scaled_behind:
            _scaled_behind(op, -1)
        roles(op, op.axes(text, means=means, macs="... m k n"), second)

    apply.__doc__ = text
    rule(name)(apply)


_product("q_linear_mat_mul", "... m k, , , ... k n, n, n, , -> ... m n", "(0-2)*1 (3-5)*4", 3)
_product("mat_mul_integer", "... m k, ... k n, , n -> ... m n", "(0-2) (1-3)", scaled_behind=True)
_product("com.microsoft.mat_mul_integer_to_float", "... m k, ... k n, , n, , n, n -> ... m n", "(0-4)*2 (1-5)*3")


@rule("com.microsoft.dynamic_quantize_mat_mul")
def dynamic_quantize_mat_mul(op: Op) -> None:
    """ "... m k, ... k n, n, n, n -> ... m n", the scale of the first taken over all of it"""
    roles(op, op.axes("... m k, ... k n, n, n, n -> ... m n", means="(1-3)*2", macs="... m k n"))
    _taken_over(op, len(op.x) - 1)


@rule("com.microsoft.q_gemm")
def q_gemm(op: Op) -> None:
    """ "m k, , , k n, n, n, n, , -> m n", each matrix transposed where its flag says so"""
    left, right = ("k m" if op.attr("transA", 0) else "m k"), ("n k" if op.attr("transB", 0) else "k n")
    text = f"{left}, , , {right}, n, n, ... n, , -> m n"
    roles(op, op.axes(text, means="(0-2)*1 (3-5)*4 6*1*4", macs="m k n"), 3)


# Elements.

rule(
    "com.microsoft.q_linear_add",
    "com.microsoft.q_linear_mul",
    text="..., , , ..., , , , -> ...",
    means="(0-2)*1 (3-5)*4",
)
rule("com.microsoft.q_linear_sigmoid", "com.microsoft.q_linear_leaky_relu", text="..., , , , -> ...", means="(0-2)*1")
rule("com.microsoft.q_linear_where", text="..., ..., , , ..., , , , -> ...", means="(1-3)*2 (4-6)*5")


@rule("com.microsoft.q_linear_softmax")
def q_linear_softmax(op: Op) -> None:
    """ "... c -> ... c", inexact over c (of opsets below 13: over all axes from `axis` on)"""
    op.means(0, [1], 2)
    softmax(op)


@rule("com.microsoft.q_linear_concat")
def q_linear_concat(op: Op) -> None:
    """the sum of the inputs along `axis`; all other axes are the same"""
    for i in range(2, len(op.ins), 3):
        op.means(i, [i + 1], i + 2)
    op.ins = op.ins[2::3]
    concat(op)


rule(
    "com.microsoft.q_embed_layer_normalization",
    text="*, *, _ c, _ c, _ c, c, c, *, , , , , , , , , , -> * c, *",
    means="(2-13)*8 (3-14)*9 (4-15)*10 (5-16)*11 (6-17)*12",
    inexact="c",
    c=HIDDEN,
)


@rule("com.microsoft.dynamic_quantize_lstm")
def dynamic_quantize_lstm(op: Op) -> None:
    """ "t b i, d i (4 h), d h' (4 h), d (8 h), b, d b h, d b h, d (3 h), d (4 h), ... -> t d b h, d b h, d b h" """
    scales = ", ".join("d" if len(layout or ()) == 1 else "d (4 h)" for layout in op.ins[8:])
    text = f"t b i, d i (4 h), d h' (4 h), d (8 h), b, d b h, d b h, d (3 h), {scales} -> t d b h, d b h, d b h"
    letters = op.axes(text, sizes={"h": "hidden_size"}, macs="t b d 4 h i, t b d 4 h h", masked="no")
    if letters:
        op.mask(0, 2)
        op.role(letters["h"], STATE)
        op.inexact(letters["h"], "the scale of the states is taken over it")
        op.inexact(letters["b"], "one scale is taken over it")
        op.freeze(letters["d"], "it is the direction of the sequence")
        op.freeze(letters["t"], "it is the order of the sequence")
        for i in (1, 2):
            op.stands_for(i, [7 + 2 * i], op.ins[i] or (), _a_row)


def _a_row(stored: Array, scale: Array) -> Array:
    return dequantise(stored, [scale.reshape(len(stored), 1, -1)])


# Weights in blocks, several values in a byte.


class Row(NamedTuple):
    """The axis that blocks lie along as texts: its ``values``, its ``elements``, its ``scales``, its zero ``points``.

    A position of the letter is ``each`` values.
    """

    values: str
    elements: str
    scales: str
    points: str
    each: int


def _row(op: Op, letter: str, bits: int, size: int, points: int, packed: bool = True) -> Row:
    """Blocks of ``size`` values (0: a row is one); where zero points share a byte, so many blocks go at once."""
    each = 8 // bits if packed else 1
    if not size:
        return Row(f"({letter} {each})", letter, "", "", each)
    dtype = op.facts.graph.values[op.node.inputs[points]].dtype if op.given("", points) else ""
    shared = 8 // bits if dtype == "uint8" else 1
    blocks = f"{letter} {shared}"
    return Row(f"({blocks} {size})", f"({blocks} {size // each})", f"({blocks})", letter, shared * size)


def _blocks(op: Op, i: int, scale: int, points: int, layout: Layout, bits: int, size: int, packed: bool = True) -> None:
    """Input ``i`` holds rows of blocks; without zero points the middle of what a byte holds stands for zero."""
    shape = [dim.extent for dim in layout]
    middle = np.full(1, 2 ** (bits - 1) * packed)

    def read(stored: Array, scales: Array, zeros: Array | None = None) -> Array:
        rows = (unpack(stored, bits) if packed else stored).reshape(math.prod(shape[:-1]), -1)
        scales = scales.reshape(len(rows), -1)
        if zeros is not None and zeros.dtype == np.uint8:
            zeros = unpack(zeros.reshape(len(rows), -1), bits)[:, : scales.shape[1]]
        zeros = middle if zeros is None else zeros.reshape(len(rows), -1).repeat(size or 1, 1)[:, : rows.shape[1]]
        scales = scales.repeat(size or 1, 1)[:, : rows.shape[1]]
        return dequantise(rows, [scales], zeros)[:, : shape[-1]].reshape(shape)

    op.stands_for(i, [scale, points], layout, read)


@rule("com.microsoft.mat_mul_n_bits")
def mat_mul_n_bits(op: Op) -> None:
    """ "... (c v), n c u, n c, n c, , n -> ... n": c blocks of v values, in u bytes"""
    bits, size = op.attr("bits", 4), op.attr("block_size", 32)
    row = _row(op, "c", bits, size, 3)
    scales, points = (
        f"n {text}" if len(layout or ()) == 2 else f"(n {text.strip('()')})"
        for text, layout in zip((row.scales, row.points), (*op.ins, None, None)[2:4], strict=True)
    )
    text = f"... {row.values}, n {row.scales} _, {scales}, {points}, , n -> ... n"
    letters = op.axes(text, sizes={"n": "N"}, macs=f"... n c {row.each}", why=IN_BLOCKS)
    if letters:
        op.role(letters["n"], MLP)
        op.slot("K", 0, op.x[-1])
        _blocks(op, 1, 2, 3, (letters["n"], op.x[-1]), bits, size)


@rule("com.microsoft.gather_block_quantized")
def gather_block_quantized(op: Op) -> None:
    """ "r (c u), *, r c, r c -> * (c v)": rows are indexed; c blocks of v values, in u elements"""
    packed = op.facts.graph.values[op.node.inputs[0]].dtype == "uint8"
    bits, size = op.attr("bits", 4), op.attr("block_size", 128)
    if len(op.x) != 2 or op.attr("gather_axis", 0) or op.attr("quantize_axis", 1) % 2 == 0:
        op.freeze_all("only rows of a matrix with blocks along its columns are followed")
        return
    row = _row(op, "c", bits, size, 3, packed)
    if op.axes(f"_ {row.elements}, *, _ {row.scales}, _ {row.points} -> * {row.values}", why=IN_BLOCKS):
        _blocks(op, 0, 2, 3, (op.x[0], op.y[-1]), bits, size, packed)


@rule("com.microsoft.q_mo_e")
def q_mixture(op: Op) -> None:
    """as MoE, each row of weights in one block or several, several values in a byte"""
    bits, size, fused = op.attr("expert_weight_bits", 4), op.attr("block_size", 0), op.attr("swiglu_fusion", 0)
    if op.attr("quant_type", "int") != "int" or op.attr("weights_prepacked", 0) > 0 or fused > 1:
        op.freeze_all("ONNX Runtime has no kernel for its layout on the CPU")
        return
    i, m = _row(op, "i", bits, size, 11), _row(op, "m", bits, size, 12)
    up = f"({m.values.strip('()')} 2)" if fused else m.values
    rows = "b s" if len(op.x) == 3 else "s"
    first = f"e {up} {i.elements}, e {up} {i.scales}, e {up}"
    second = f"e {i.values} {m.elements}, e {i.values} {m.scales}, e {i.values}"
    zeros = f"e {up} {i.points}, e {i.values} {m.points}"
    text = f"{rows} {i.values}, ({rows}) e, {first}, {second}, , , , {zeros}, , ({rows}) e -> {rows} {i.values}"
    taken = op.attr("k", 1)
    products = f"{taken * (3 if fused else 2) * i.each * m.each} {rows} i m"
    letters = op.axes(text, macs=products, inexact="e", masked="no", why=IN_BLOCKS)
    if letters:
        op.role(letters["m"], MLP)
        op.least(letters["e"], taken)
        for at, axis in ((0, len(op.x) - 1), (3, 1), (4, 1)):
            op.mask(at, axis)
        experts, wide = (op.ins[3] or ())[:2]
        _blocks(op, 2, 3, 11, (experts, wide, op.x[-1]), bits, size)
        _blocks(op, 5, 6, 12, (experts, op.x[-1], product(letters["m"], Dim(m.each))), bits, size)
