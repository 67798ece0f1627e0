"""The axis text: an op written as one line of letters, and how letters become ties.

    conv   "b (g i) *x, (g o) i *k, (g o) -> b (g o) *y"

A letter names an axis; the same letter is the same Dim. ``(g i)`` is a product, ``(x + y)`` a sum, ``4`` a factor of
that size, ``*`` (or ``*name``) any number of axes that nobody may touch, ``_`` one such axis, ``...`` the leading axes,
aligned from the right with size-1 broadcasting. A letter only on the left is contracted. ``h'`` is ``h`` met a second
time as a contracted axis (recurrent state).

This module parses the text and binds it to operands; it decides nothing about any op.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from graphprune.dims import Dim, product, sum_

_TOKEN = re.compile(r"\.\.\.|\*\w*|[A-Za-z]'?|\d+|[()+_]")
Layout = tuple[Dim, ...]


@dataclass(frozen=True)
class Axis:
    """One element of an operand: ``kind`` is letter, size, product, sum, star (many), ellipsis (many) or hole."""

    kind: str
    name: str = ""
    parts: tuple[Axis, ...] = ()

    def letters(self) -> set[str]:
        """All letters in the element."""
        inner = {letter for part in self.parts for letter in part.letters()}
        return inner | ({self.name} if self.kind == "letter" else set())

    @property
    def base(self) -> str:
        """The letter without its prime: ``h'`` is the Dim of ``h``."""
        return self.name.rstrip("'")


@dataclass(frozen=True)
class Signature:
    """A parsed axis text."""

    text: str
    inputs: tuple[tuple[Axis, ...], ...]
    outputs: tuple[tuple[Axis, ...], ...]

    @property
    def contracted(self) -> frozenset[str]:
        """Letters that are on the left only."""
        left = {letter for operand in self.inputs for axis in operand for letter in axis.letters()}
        right = {letter for operand in self.outputs for axis in operand for letter in axis.letters()}
        return frozenset(left - right)


@cache
def parse(text: str) -> Signature:
    """The Signature of ``text``; ValueError where it is not one.

    >>> sorted(parse("... m k, ... k n -> ... m n").contracted)
    ['k']
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"no '->' in the axis text {text!r}")
    inputs, outputs = (tuple(_operand(part, text) for part in side.split(",")) for side in (left, right))
    return Signature(text, inputs, outputs)


def _operand(text: str, whole: str) -> tuple[Axis, ...]:
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != re.sub(r"\s", "", text):
        raise ValueError(f"cannot read {text.strip()!r} in the axis text {whole!r}")
    axes: list[Axis] = []
    while tokens:
        axes.append(_axis(tokens, whole))
    if sum(axis.kind in ("star", "ellipsis") for axis in axes) > 1:
        raise ValueError(f"one '*' or '...' an operand, in the axis text {whole!r}")
    return tuple(axes)


def _axis(tokens: list[str], whole: str) -> Axis:
    token = tokens.pop(0)
    if token == "...":
        return Axis("ellipsis")
    if token == "_":
        return Axis("hole")
    if token[0] == "*":
        return Axis("star", token[1:])
    if token.isdigit():
        return Axis("size", token)
    if token != "(":
        return Axis("letter", token)
    parts, kind = [], "product"
    while tokens and tokens[0] != ")":
        if tokens[0] == "+":
            kind = "sum"
            tokens.pop(0)
        parts.append(_axis(tokens, whole))
    if not tokens:
        raise ValueError(f"')' missing in the axis text {whole!r}")
    tokens.pop(0)
    return Axis(kind, parts=tuple(parts))


@dataclass
class Binding:
    """What a Signature says once operands are known: letters as Dims, ties to make, axes to freeze."""

    letters: dict[str, Dim]
    ties: list[tuple[Dim, Dim]]
    stars: dict[str, list[int]]
    frozen: list[Dim]
    leading: list[tuple[list[Dim], int]]
    where: dict[str, list[tuple[int, int]]]


def split_axes(operand: tuple[Axis, ...], rank: int) -> list[tuple[Axis, int, int]] | None:
    """Each element with the range of axes it covers; None where the rank does not fit."""
    many = [i for i, axis in enumerate(operand) if axis.kind in ("star", "ellipsis")]
    spare = rank - (len(operand) - len(many))
    if spare < 0 or (spare and not many):
        return None
    spans, at = [], 0
    for axis in operand:
        width = spare if axis.kind in ("star", "ellipsis") else 1
        spans.append((axis, at, at + width))
        at += width
    return spans


def bind(
    signature: Signature, ins: Sequence[Layout | None], outs: Sequence[Layout | None], sizes: Mapping[str, int]
) -> Binding | str:
    """Bind the letters of ``signature`` to the axes of the operands; a str says why that is not possible.

    ``sizes`` gives letters that no operand shows alone (``g``: the group count). Absent operands are None; an input of
    one element that is no more than a vector serves all positions, whatever letters it has.
    """
    bound = Binding({letter: Dim(size) for letter, size in sizes.items()}, [], {}, [], [], {})
    pending: list[tuple[Axis, Dim]] = []
    spare: list[tuple[Axis, Dim]] = []
    first_output = len(signature.inputs)
    operands = [
        *zip(range(first_output), signature.inputs, ins, strict=False),
        *zip(range(first_output, 99), signature.outputs, outs, strict=False),
    ]
    for side, given, spoken in (("inputs", ins, signature.inputs), ("outputs", outs, signature.outputs)):
        if any(layout is not None for layout in given[len(spoken) :]):
            return f"it has more {side} than its rule {signature.text!r}"
    for number, operand, layout in operands:
        spans = None if layout is None else split_axes(operand, len(layout))
        single = number < first_output and layout is not None and len(layout) < 2 and all(d.size == 1 for d in layout)
        if layout is None or (single and (spans is None or not layout)):
            continue
        if spans is None:
            return f"an operand of rank {len(layout)} does not fit its rule {signature.text!r}"
        for axis, start, stop in spans:
            dims = list(layout[start:stop])
            if axis.kind == "ellipsis":
                bound.leading.append((dims, number))
            elif axis.kind == "star":
                bound.frozen += dims
                bound.stars.setdefault(axis.name, [number, start, stop])
            elif axis.kind == "hole":
                bound.frozen += dims
            else:
                (spare if single else pending).append((axis, dims[0]))
                for letter in axis.letters():
                    bound.where.setdefault(letter, []).append((number, start))
    _solve(bound, pending, spare)
    return bound


def _solve(bound: Binding, pending: list[tuple[Axis, Dim]], spare: list[tuple[Axis, Dim]]) -> None:
    """Bind letters from the axes that leave at most one unknown; what stays open freezes.

    Axes of inputs with one element are only looked at for letters that no other axis tells.
    """
    while pending or spare:
        rest = [item for item in pending if not _bind_axis(bound, *item)]
        if len(rest) == len(pending) and spare:
            rest += [
                (axis, dim) for axis, dim in spare if any(n.rstrip("'") not in bound.letters for n in axis.letters())
            ]
            spare = []
        elif len(rest) == len(pending):
            for axis, dim in rest:
                bound.frozen.append(dim)
                bound.frozen += [bound.letters[n.rstrip("'")] for n in axis.letters() if n.rstrip("'") in bound.letters]
            return
        pending = rest


def _bind_axis(bound: Binding, axis: Axis, dim: Dim) -> bool:
    """Tie one axis to its element; False where two or more letters are still unknown."""
    if axis.kind == "letter":
        if axis.base in bound.letters:
            bound.ties.append((bound.letters[axis.base], dim))
        else:
            bound.letters[axis.base] = dim
        return True
    if axis.kind == "size":
        bound.frozen.append(dim)
        return True
    unknown = [part for part in axis.parts if any(n.rstrip("'") not in bound.letters for n in part.letters())]
    if len(unknown) > 1 or any(part.kind != "letter" or dim.size is None for part in unknown):
        return False
    known = [_known(bound, part).size for part in axis.parts if part not in unknown]
    if unknown:
        size = _remaining(axis.kind, dim.size or 0, known)
        if size is None:
            return False
        bound.letters[unknown[0].base] = Dim(size)
    if any(bound.letters[letter.rstrip("'")].size is None for letter in axis.letters()):
        return False
    bound.ties.append((_known(bound, axis), dim))
    return True


def _known(bound: Binding, part: Axis) -> Dim:
    if part.kind == "letter":
        return bound.letters[part.base]
    if part.kind != "size":
        return (product if part.kind == "product" else sum_)(*(_known(bound, inner) for inner in part.parts))
    fixed = Dim(int(part.name))
    bound.frozen.append(fixed)
    return fixed


def _remaining(kind: str, total: int, known: Sequence[int | None]) -> int | None:
    rest = total
    for size in known:
        if not size or (kind == "product" and rest % size):
            return None
        rest = rest // size if kind == "product" else rest - size
    return rest if rest > 0 else None
