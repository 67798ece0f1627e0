"""Dims: which axes of a model are one and the same dimension, and what a cut leaves of each.

A `Dim` is one dimension of the *model*, wherever it shows up: an atom of n positions, a product of Dims (outermost
first: reshape, heads, groups) or a sum of Dims (concat, split, slice). `tie` says that two are the same; `freeze` that
nothing may be removed. From the final expression of an axis one function, `take`, gives the positions that stay.

Layouts that do not reconcile freeze on both sides: a Dim that is whole is always right. A size of None is one that is
only known when the model runs: such an atom is never cut, but a product may hold one (batch times heads), so that the
other factors stay free. ``extent`` is the size, or an example of it where it is None.

The forest is a union-find: an atom that was tied to something *links* to it; paths are compressed as they are walked,
so that the work stays near-linear in the number of ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from graphprune.graph import Picks

Kind = Literal["atom", "product", "sum"]
Positions = npt.NDArray[np.int64]
Chosen = Mapping["Dim", Positions]
"""Positions of atoms: [k], or [n, k] where each of the n positions of the atom that it lies under has k of its own."""


class Reason(NamedTuple):
    """Why a Dim is whole, and at which node that was found."""

    why: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.why} (node {self.node})" if self.node else self.why


class Dim:
    """An atom, a product or a sum. Compare with ``resolve(a) is resolve(b)``.

    ``under`` is the atom that an atom lies under wherever it is (see `graphprune.nesting`), if there is one.

    >>> heads, width = Dim(9), Dim(64)
    >>> print(product(heads, width))
    (9·64)
    """

    __slots__ = ("extent", "kind", "link", "parts", "reason", "size", "under")

    def __init__(
        self, size: int | None, kind: Kind = "atom", parts: tuple[Dim, ...] = (), *, extent: int | None = None
    ) -> None:
        self.size = size
        self.extent = extent if extent is not None else (1 if size is None else size)
        self.kind: Kind = kind
        self.parts = parts
        self.link: Dim | None = None
        self.under: Dim | None = None
        self.reason: Reason | None = Reason("it is empty") if size == 0 else None

    def __repr__(self) -> str:
        dim = resolve(self)
        if dim.kind == "atom":
            return f"{'?' if dim.size is None else dim.size}{'!' if dim.reason else ''}"
        return "(" + ("·" if dim.kind == "product" else "+").join(map(repr, dim.parts)) + ")"


def resolve(dim: Dim) -> Dim:
    """The representative of ``dim``: an unlinked atom, or an expression whose parts are resolved and flat."""
    if dim.link is None and dim.kind == "atom":
        return dim
    root = dim
    while root.link is not None:
        root = root.link
    while dim.link is not None:
        dim.link, dim = root, dim.link
    if root.kind == "atom":
        return root
    flat: list[Dim] = []
    unit = 1 if root.kind == "product" else 0
    for part in map(resolve, root.parts):
        if part.kind == root.kind:
            flat += part.parts
        elif part.size != unit:
            flat.append(part)
    if len(flat) == 1:
        root.link = flat[0]
        return flat[0]
    root.parts = tuple(flat)
    return root


def product(*parts: Dim) -> Dim:
    """The Dim whose positions are all combinations of ``parts``, outermost first (row-major)."""
    return _expression("product", parts)


def sum_(*parts: Dim) -> Dim:
    """The Dim whose positions are those of ``parts``, one after the other."""
    return _expression("sum", parts)


def _expression(kind: Kind, parts: tuple[Dim, ...]) -> Dim:
    if len(parts) == 1:
        return parts[0]
    sizes = [part.size for part in parts]
    combine = math.prod if kind == "product" else sum
    extent = combine(part.extent for part in parts)
    if None not in sizes:
        size = combine(size or 0 for size in sizes)
        if size > 1:
            return Dim(size, kind, parts)
        return _opaque(Dim(size), parts, "it has no position to spare")
    if kind == "product" and 0 not in sizes:
        return Dim(None, kind, parts, extent=extent)
    return _opaque(
        Dim(None, extent=extent), parts, "it is joined to an axis whose size is only known when the model runs"
    )


def _opaque(whole: Dim, parts: Iterable[Dim], why: str) -> Dim:
    """A frozen atom in place of an expression that cannot be followed; the parts freeze with it."""
    for dim in (whole, *parts):
        freeze(dim, Reason(why))
    return whole


def atoms(dim: Dim) -> Iterator[Dim]:
    """Every atom of the expression, outermost first, repeated as often as it occurs."""
    dim = resolve(dim)
    if dim.kind == "atom":
        yield dim
    else:
        for part in dim.parts:
            yield from atoms(part)


def freeze(dim: Dim, reason: Reason) -> None:
    """Nothing is removed from ``dim`` any more; the first reason of each atom is kept for the user."""
    for atom in atoms(dim):
        atom.reason = atom.reason or reason


def is_frozen(dim: Dim) -> bool:
    """Whether no atom of ``dim`` can be cut."""
    return all(atom.reason is not None or atom.size is None for atom in atoms(dim))


def tie(a: Dim, b: Dim, node: str = "") -> None:
    """``a`` and ``b`` are the same dimension. Irreconcilable layouts freeze both, with ``node`` in the reason.

    >>> hidden, heads, width = Dim(576), Dim(9), Dim(64)
    >>> tie(hidden, product(heads, width))
    >>> print(hidden)
    (9·64)
    """
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if a.size != b.size:
        why = f"{a} and {b} positions meet on one axis"
        if a.size is None or b.size is None:
            why = "it meets an axis whose size is only known when the model runs"
        freeze(a, Reason(why, node))
        freeze(b, Reason(why, node))
    elif a.kind == "atom":
        _become(a, b)
    elif b.kind == "atom":
        _become(b, a)
    elif not _settle(a, b):
        _align(a, b, node)
        if a.extent == b.extent:
            b.link = a


def _become(atom: Dim, other: Dim) -> None:
    if atom.size is None and any(part is atom for part in atoms(other)):
        freeze(other, Reason("its size would be a multiple of itself"))
        return
    if atom.reason:
        freeze(other, atom.reason)
    atom.link = other


def _settle(a: Dim, b: Dim) -> bool:
    """Where one side is whole already, so is the other: there is nothing to align."""
    for whole, other in ((a, b), (b, a)):
        if is_frozen(whole):
            reasons = [atom.reason for atom in atoms(whole) if atom.reason]
            freeze(other, reasons[0] if reasons else Reason("its size is only known when the model runs"))
            return True
    return False


def _align(a: Dim, b: Dim, node: str) -> None:
    if a.kind != b.kind:
        _align_mixed(*((a, b) if a.kind == "product" else (b, a)), node)
    elif a.kind == "product":
        _align_products(a, b, node)
    else:
        _align_sums(a, b, node)


def _align_products(a: Dim, b: Dim, node: str) -> None:
    """Match radices from the innermost out, splitting a factor n into (n/m · m) where the other side has m."""
    left, right = list(a.parts), list(b.parts)
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size is None or y.size is None:
            _align_unknown([*left, x], [*right, y], node)
            return
        if x.size < y.size:
            x, y, left, right = y, x, right, left
        outer, rest = divmod(_size(x), _size(y))
        if rest:
            _give_up(product(*left, x), product(*right, y), node)
            return
        if outer == 1:
            tie(x, y, node)
        else:
            left.append(Dim(outer))
            tie(x, product(left[-1], y), node)


def _give_up(a: Dim, b: Dim, node: str) -> None:
    """What is left of two layouts does not reconcile: it stays whole, and what was matched before stands."""
    reason = Reason(f"the layouts {a} and {b} do not reconcile", node)
    freeze(a, reason)
    freeze(b, reason)


def _align_unknown(left: list[Dim], right: list[Dim], node: str) -> None:
    """What is left around an unknown size can only be told apart where one side is a single factor."""
    if len(left) > 1 and len(right) > 1:
        _give_up(product(*left), product(*right), node)
    else:
        tie(product(*left), product(*right), node)


def _align_sums(a: Dim, b: Dim, node: str) -> None:
    """Match break points from the front, splitting a term where the other side has a break inside it."""
    left, right = list(a.parts), list(b.parts)
    while left and right:
        if _size(left[0]) < _size(right[0]):
            left, right = right, left
        if _size(left[0]) > _size(right[0]):
            pieces = _split(left[0], _size(right[0]))
            if pieces is None:
                _give_up(sum_(*left), sum_(*right), node)
                return
            left[:1] = pieces
        tie(left.pop(0), right.pop(0), node)


def _align_mixed(prod: Dim, total: Dim, node: str) -> None:
    """A product tied to a sum: the outer factor becomes a sum, and each term a product over the same inner factors.

    A break inside one position of the outer factor is a break inside the inner factors, and so at every position.
    """
    outer, *inner = prod.parts
    stride = math.prod(map(_size, inner))
    ends = list(accumulate(map(_size, total.parts)))
    marks = sorted({0, *(end // stride for end in ends), *(-(-end // stride) for end in ends)})
    runs = [Dim(after - before) for before, after in pairwise(marks)]
    tie(outer, sum_(*runs), node)
    tie(total, sum_(*(product(run, *inner) for run in runs)), node)


def _split(dim: Dim, at: int) -> tuple[Dim, Dim] | None:
    """``dim`` as two Dims, the first of ``at`` positions; None where the cut falls inside a product's inner factor."""
    dim = resolve(dim)
    if dim.kind == "atom":
        pieces = Dim(at), Dim(_size(dim) - at)
        for piece in pieces:
            piece.reason = piece.reason or dim.reason
        dim.link = sum_(*pieces)
        return pieces
    if dim.kind == "product":
        outer, *inner = dim.parts
        count, rest = divmod(at, math.prod(map(_size, inner)))
        halves = None if rest else _split(outer, count)
        return halves and (product(halves[0], *inner), product(halves[1], *inner))
    done = 0
    for i, part in enumerate(dim.parts):
        if done == at:
            return sum_(*dim.parts[:i]), sum_(*dim.parts[i:])
        if done + _size(part) > at:
            halves = _split(part, at - done)
            return halves and (sum_(*dim.parts[:i], halves[0]), sum_(halves[1], *dim.parts[i + 1 :]))
        done += _size(part)
    return None


def _size(dim: Dim) -> int:
    assert dim.size is not None, "expressions are never built over unknown sizes"
    return dim.size


def size_after(dim: Dim, sizes: Mapping[Dim, int]) -> int:
    """How many positions ``dim`` has once each atom has ``sizes[atom]`` (its own extent where not named)."""
    dim = resolve(dim)
    if dim.kind == "atom":
        return sizes.get(dim, dim.extent)
    after = (size_after(part, sizes) for part in dim.parts)
    return math.prod(after) if dim.kind == "product" else sum(after)


def touched(dim: Dim, chosen: Mapping[Dim, object]) -> bool:
    """Whether any atom of ``dim`` is in ``chosen``."""
    return any(atom in chosen for atom in atoms(dim))


def counts(chosen: Chosen) -> dict[Dim, int]:
    """How many positions of each atom stay (under each position of another, where each has its own)."""
    return {dim: index.shape[-1] for dim, index in chosen.items()}


def take(dim: Dim, chosen: Chosen) -> Positions:
    """The positions of ``dim`` that the positions ``chosen`` of its atoms leave, in the order chosen.

    Kept positions give a cut, permuted positions a permutation: whatever writes weights is made of this.

    >>> heads, width = Dim(2), Dim(3)
    >>> take(product(heads, width), {heads: np.array([1])}).tolist()
    [3, 4, 5]
    >>> width.under = heads
    >>> take(product(heads, width), {width: np.array([[0], [2]])}).tolist()
    [0, 5]
    """
    return _along(resolve(dim), chosen, {})


def followed(dim: Dim, chosen: Chosen) -> set[Dim]:
    """The atoms on other axes that the positions of ``dim`` depend on; `take` knows them all where there is none."""
    held = set(atoms(dim))
    outer = {a.under for a in held if a.under is not None and a in chosen and chosen[a].ndim > 1}
    return outer - held


def picks(layout: Sequence[Dim], chosen: Chosen) -> Picks:
    """What to take (`graphprune.graph.pick`) of a tensor whose axes are ``layout``, but for axes that stay whole."""
    grid = _grid(layout, chosen, {})
    plain = [axis for axis, dim in enumerate(layout) if touched(dim, chosen) and not followed(dim, chosen)]
    first = [(axis, grid(axis).reshape(-1)) for axis in plain]
    return *first, *((axis, grid(axis)) for axis, dim in enumerate(layout) if followed(dim, chosen))


def ones(layout: Sequence[Dim], axis: int, chosen: Chosen) -> npt.NDArray[np.float64]:
    """Of the rank of ``layout``: one at the positions of ``axis`` that stay, zero at those that go."""
    index = _grid(layout, {atom: chosen[atom] for atom in atoms(layout[axis]) if atom in chosen}, {})(axis)
    shape = list(index.shape)
    shape[axis] = _size(layout[axis])
    found = np.zeros(shape)
    np.put_along_axis(found, index, 1.0, axis)
    return found


def _along(dim: Dim, chosen: Chosen, rows: Mapping[Dim, Positions]) -> Positions:
    """Positions of ``dim`` along the last axis; those before are of ``rows``: positions of atoms that it follows."""
    if not touched(dim, chosen):
        return np.arange(dim.size or 0)
    if dim.kind == "atom":
        index = chosen[dim]
        return index[rows[dim.under]] if index.ndim > 1 and dim.under else index
    if dim.kind == "product":
        grid, whole = _grid(dim.parts, chosen, rows), np.zeros((), np.int64)
        stride = _size(dim)
        for axis, part in enumerate(dim.parts):
            stride //= _size(part)
            whole = whole + grid(axis) * stride
        return whole.reshape(*whole.shape[: whole.ndim - len(dim.parts)], -1)
    starts = np.cumsum([0, *map(_size, dim.parts)])
    pieces = [_along(part, chosen, rows) + start for part, start in zip(dim.parts, starts, strict=False)]
    outer = np.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
    return np.concatenate([np.broadcast_to(piece, (*outer, piece.shape[-1])) for piece in pieces], -1)


def _grid(parts: Sequence[Dim], chosen: Chosen, rows: Mapping[Dim, Positions]) -> Callable[[int], Positions]:
    """Positions of each part, along an axis of its own behind those of ``rows``: arrays that broadcast."""
    before = max((index.ndim for index in rows.values()), default=0)
    rank = before + len(parts)

    @cache
    def along(i: int) -> Positions:
        outer = {atom: place(atom).squeeze(before + i) for atom in followed(parts[i], chosen)}
        own = _along(resolve(parts[i]), chosen, outer)
        return np.moveaxis(own.reshape((1,) * (rank - own.ndim) + own.shape), -1, before + i)

    def place(atom: Dim) -> Positions:
        if atom in rows:
            return rows[atom].reshape(rows[atom].shape + (1,) * len(parts))
        i = next(i for i, part in enumerate(parts) if atom in atoms(part))
        return numbers(parts[i], atom)[along(i)] - 1

    return along


def spread(dim: Dim, values: npt.NDArray[np.float64], into: dict[Dim, npt.NDArray[np.float64]]) -> None:
    """Add ``values`` (one a position of ``dim``) up over the positions of each atom, into ``into``."""
    dim = resolve(dim)
    if dim.kind == "atom":
        into[dim] = into[dim] + values if dim in into else values
    elif dim.kind == "product":
        grid = values.reshape([_size(part) for part in dim.parts])
        for axis, part in enumerate(dim.parts):
            spread(part, grid.sum(axis=tuple(i for i in range(grid.ndim) if i != axis)), into)
    else:
        breaks = np.cumsum([_size(part) for part in dim.parts])[:-1]
        for part, piece in zip(dim.parts, np.split(values, breaks), strict=True):
            spread(part, piece, into)


def tally(dim: Dim, values: npt.NDArray[np.float64], wanted: Iterable[Dim]) -> dict[Dim, npt.NDArray[np.float64]]:
    """``values`` (one a position of ``dim``) added up for each of ``wanted`` on it: atoms, and products of them."""
    found: dict[Dim, npt.NDArray[np.float64]] = {}
    spread(dim, values, found)
    for target in wanted:
        if target.kind == "product" and holds(dim, target):
            found[target] = np.bincount(numbers(dim, target), values, target.extent + 1)[1:].astype(np.float64)
    return {target: found[target] for target in wanted if target in found}


def numbers(dim: Dim, target: Dim) -> Positions:
    """For each position of ``dim`` the position of ``target`` that it belongs to, counted from 1; 0 for none.

    ``target`` is an atom, or a product of atoms: one after the other on ``dim``, or apart.

    >>> heads, width = Dim(2), Dim(3)
    >>> numbers(product(heads, width), width).tolist()
    [1, 2, 3, 1, 2, 3]
    """
    dim, target = resolve(dim), resolve(target)
    if target.kind == "product":
        each = [numbers(dim, part) for part in target.parts]
        joint = np.zeros(dim.extent, np.int64)
        for position, part in zip(each, target.parts, strict=True):
            joint = joint * part.extent + position - 1
        return np.where(np.all(each, axis=0), joint + 1, 0)
    if dim.kind == "atom":
        return np.arange(1, dim.extent + 1) if dim is target else np.zeros(dim.extent, np.int64)
    parts = [numbers(part, target) for part in dim.parts]
    if dim.kind == "sum":
        return np.concatenate(parts)
    total = np.zeros(1, np.int64)
    for found in parts:
        total = np.add.outer(total, found).ravel()
    return total


def holds(dim: Dim, target: Dim) -> bool:
    """Whether all atoms of ``target`` are on ``dim``."""
    return set(atoms(target)) <= set(atoms(dim))
