"""Contractions: matmul, gemm, einsum."""

from __future__ import annotations

import re
from collections.abc import Mapping

from graphprune.dims import Dim
from graphprune.rules.registry import HEAD, HEAD_SIZE, MLP, Op, rule


@rule("matmul", "com.microsoft.fused_mat_mul", "com.microsoft.transpose_mat_mul")
def matmul(op: Op) -> None:
    """ "... m k, ... k n -> ... m n" (vectors lose m or n), axes in another order where a flag says so"""
    a, b = (len(op.ins[i] or ()) for i in (0, 1))
    left = "k" if a == 1 else _turned(op, "A", "m", "k")
    right = "k" if b == 1 else _turned(op, "B", "k", "n")
    out = ("" if a == 1 and b == 1 else "...") + (" m" if a > 1 else "") + (" n" if b > 1 else "")
    roles(op, op.axes(f"{left}, {right} -> {out}", macs="... m k n" if "..." in out else "m k n"))


def _turned(op: Op, side: str, row: str, column: str) -> str:
    """A matrix whose flags may swap its two axes, or put the first of them before the leading ones."""
    first, last = (column, row) if op.attr(f"trans{side}", 0) else (row, column)
    return f"{first} ... {last}" if op.attr(f"transBatch{side}", 0) else f"... {first} {last}"


def roles(op: Op, letters: Mapping[str, Dim], second: int = 1) -> None:
    """Two activations multiplied are attention: leading axes are heads, the rest the head size."""
    if not letters:
        return
    activations = [i for i in (0, second) if op.node.inputs[i] not in op.facts.constant]
    if len(activations) < 2:
        for letter in "mn":
            if letter in letters:
                op.role(letters[letter], MLP)
        return
    for dim in op.y[:-2]:
        op.role(dim, HEAD)
    for letter in "kn":
        if letter in letters:
            op.role(letters[letter], HEAD_SIZE)


@rule("gemm", "com.microsoft.fused_gemm")
def gemm(op: Op) -> None:
    """ "m k, k n, ... -> m n", each matrix transposed where its flag says so"""
    left = "k m" if op.attr("transA", 0) else "m k"
    right = "n k" if op.attr("transB", 0) else "k n"
    bias, op.ins = op.ins[2:], op.ins[:2]
    letters = op.axes(f"{left}, {right} -> m n", macs="m k n")
    for layout in bias:
        op.broadcast(layout or (), op.y)
    if letters:
        op.role(letters["n"], MLP)


@rule("com.microsoft.mo_e")
def mixture(op: Op) -> None:
    """ "b s i, (b s) e, e m i, e m, e i m, e i -> b s i", computed over the experts e, of which k are taken"""
    if op.attr("swiglu_fusion", 0) > 1:
        op.freeze_all("gate and value stand one after the other, which ONNX Runtime has no kernel for on the CPU")
        return
    up = "(m 2)" if op.attr("swiglu_fusion", 0) else "m"
    rows = "b s" if len(op.x) == 3 else "s"
    text = f"{rows} i, ({rows}) e, e {up} i, e {up}, e i m, e i -> {rows} i"
    taken, products = op.attr("k", 1), 2 if up == "m" else 3
    letters = op.axes(text, macs=f"{taken * products} {rows} i m", inexact="e", masked="no")
    if letters:
        op.mask(2, 2, against=(0, len(op.x) - 1))
        op.mask(4, 2)
        op.role(letters["m"], MLP)
        op.least(letters["e"], taken)


@rule("einsum")
def einsum(op: Op) -> None:
    """the equation itself; frozen where an operand repeats a letter (a diagonal)"""
    equation = re.sub(r"\s", "", op.attr("equation", ""))
    left, arrow, right = equation.partition("->")
    if not arrow:
        letters = sorted(set(re.sub(r"[.,]", "", left)))
        right = ("..." if "..." in left else "") + "".join(c for c in letters if left.count(c) == 1)
    operands = [re.findall(r"\.\.\.|\w", part) for part in [*left.split(","), right]]
    if any(len(set(part)) < len(part) for part in operands):
        op.freeze_all("the equation takes a diagonal")
        return
    text = ", ".join(" ".join(part) for part in operands[:-1]) + " -> " + " ".join(operands[-1])
    used = sorted({c for part in operands for c in part if c != "..."})
    if "..." in left and "..." not in right:
        op.freeze_all("the equation sums over its leading axes")
        return
    dims = op.axes(text, macs=" ".join(used + ["..."] * ("..." in right)))
    activations = [name for name in op.node.inputs if name not in op.facts.constant]
    shared = set(operands[0]).intersection(*operands[1:])
    for letter, dim in dims.items():
        if len(activations) < 2:
            op.role(dim, MLP)
        elif len(operands) == 3:
            op.role(dim, HEAD if letter in shared else HEAD_SIZE)
