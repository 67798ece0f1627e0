"""What a model takes, by structure alone: which input picks rows of a table, which is a mask, which an image.

Arrays that are to be fed are checked here, once for every source they may come from, and cut into batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphprune.errors import UsageError
from graphprune.graph import Array, Graph, Shape

Feeds = dict[str, Array]
BATCH = 8
"""Samples in a batch, where the outputs of so many hold no more than OUTPUTS numbers."""
OUTPUTS = 1 << 25


@dataclass(frozen=True)
class Input:
    """One input: ``rows`` is the size of the table that its numbers pick from, 0 where they pick from none."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    rows: int = 0

    @property
    def mask(self) -> bool:
        """Whether it says what counts: numbers without fractions that pick from no table."""
        return self.dtype.kind in "biu" and not self.rows and self.pixels is None

    @property
    def pixels(self) -> tuple[int, tuple[int, int]] | None:
        """The axis of channels and those of space, where it is an image: four axes, channels first or last."""
        if len(self.shape) != 4 or (self.dtype.kind != "f" and self.dtype != np.uint8):
            return None
        few = [isinstance(self.shape[axis], int) and self.shape[axis] in (1, 3, 4) for axis in (1, 3)]
        return (3, (1, 2)) if few == [False, True] else (1, (2, 3))

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with a number for every symbol."""
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.shape)


def inputs(graph: Graph) -> dict[str, Input]:
    """The inputs of a model that take tensors, by name."""
    found = {}
    for name in graph.inputs:
        shape, dtype = graph.shape(name), graph.values[name].dtype
        if shape is not None and name not in graph.known:
            kind = np.dtype("float32" if dtype == "bfloat16" else dtype)
            found[name] = Input(name, shape, kind, graph.picked(name) if kind.kind in "iu" else 0)
    return found


def ids(takes: Mapping[str, Input]) -> Input | None:
    """The input that text goes into: [batch, sequence] integers that pick from a table, the largest."""
    able = [one for one in takes.values() if one.rows and len(one.shape) == 2]
    return max(able, key=lambda one: one.rows, default=None)


def companion(one: Input, shape: tuple[int, ...]) -> Array:
    """What goes beside ids: ones for masks, counting up for positions, zeros for tables too small to be positions."""
    if one.mask:
        return np.ones(shape, one.dtype)
    counted = np.arange(shape[-1]) if one.rows >= shape[-1] else np.zeros(shape[-1])
    return np.broadcast_to(counted, shape).astype(one.dtype)


def checked(takes: Mapping[str, Input], arrays: Mapping[str, Any]) -> Feeds:
    """``arrays`` as the model takes them; first axes may hold more samples than one run does.

    UsageError where one is missing, unknown, empty, of another shape or kind, not finite, or picks no row of its table.
    """
    if set(arrays) != set(takes):
        raise UsageError(f"the inputs given are {sorted(arrays)}", hint=f"the model takes {sorted(takes)}")
    found: Feeds = {}
    sizes: dict[str, int] = {}
    for name, one in takes.items():
        array = np.asarray(arrays[name])
        _check_shape(one, array, sizes)
        found[name] = _converted(one, array)
    return found


def _check_shape(one: Input, array: Array, sizes: dict[str, int]) -> None:
    fits = len(array.shape) == len(one.shape)
    for axis, (want, size) in enumerate(zip(one.shape, array.shape, strict=False)):
        if isinstance(want, str):
            fits &= sizes.setdefault(want, size) == size
        elif axis == 0:
            fits &= size % want == 0 if size and want else True
        else:
            fits &= want == size
    if not fits:
        raise UsageError(f"input {one.name!r} has shape {list(array.shape)}", hint=f"the model takes {list(one.shape)}")


def _converted(one: Input, array: Array) -> Array:
    if array.dtype != one.dtype and (array.dtype.kind not in "biuf" or one.dtype.kind == "O"):
        raise UsageError(f"input {one.name!r} holds {array.dtype}", hint=f"the model takes {one.dtype}")
    if array.size == 0:
        raise UsageError(f"input {one.name!r} is empty, which proves nothing", hint="give real inputs")
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype(one.dtype)
    for held, what in ((array, ""), (found, f" as {one.dtype}")):
        if held.dtype.kind == "f" and not np.isfinite(held).all():
            why = "NaN" if np.isnan(held).any() else "infinity"
            raise UsageError(f"input {one.name!r} holds {why}{what}", hint="look for what made it, and leave it out")
    if array.dtype.kind == "f" and one.dtype.kind != "f" and (found != array).any():
        raise UsageError(f"input {one.name!r} holds fractions", hint=f"the model takes {one.dtype}")
    if one.rows and (found.min() < 0 or found.max() >= one.rows):
        worst = found.min() if found.min() < 0 else found.max()
        raise UsageError(
            f"input {one.name!r} holds {worst}, and its table has rows 0 to {one.rows - 1}",
            hint="encode the text with the tokenizer that the model was made with",
        )
    return found


def cut(takes: Mapping[str, Input], arrays: Feeds, batch: int, samples: int | None, seed: int) -> list[Feeds]:
    """Batches of ``batch`` samples (-1: all in one), or of as many as the model takes; ``seed`` picks ``samples``.

    An input that is given for one run only, where others are given for more, is the same in every batch.
    """
    firsts = {name: one.shape[0] for name, one in takes.items() if one.shape}
    open_ = [name for name, first in firsts.items() if isinstance(first, str)]
    unit = {name: first if isinstance(first, int) else 1 for name, first in firsts.items()}
    count = max((len(arrays[name]) // unit[name] for name in open_ or firsts), default=1)
    moving = open_ or [name for name in firsts if len(arrays[name]) == count * unit[name]]
    for name in firsts:
        if len(arrays[name]) != unit[name] * (count if name in moving else 1):
            raise UsageError(
                f"input {name!r} has {len(arrays[name])} samples, and {moving[0]!r} has {len(arrays[moving[0]])}",
                hint="give as many of each, or of an input that is always the same as many as the model takes at once",
            )
    least = max((unit[name] for name in moving), default=1)
    order = np.arange(count)
    if samples is not None and samples // least < count:
        order = np.sort(np.random.default_rng(seed).permutation(count)[: samples // least])
    if not len(order):
        raise UsageError(
            f"{samples} samples are fewer than the {least} that the model takes at once", hint="give more --samples"
        )
    size = 1 if not open_ else len(order) if batch < 0 else batch
    parts = [order[at : at + size] for at in range(0, len(order), size)]
    return [{name: _rows(x, part, unit[name]) if name in moving else x for name, x in arrays.items()} for part in parts]


def _rows(array: Array, places: Array, unit: int) -> Array:
    """The rows of ``array`` at ``places``, each of which is ``unit`` of them."""
    return array[(places[:, None] * unit + np.arange(unit)).ravel()]


def fitting(graph: Graph, takes: Mapping[str, Input], arrays: Mapping[str, Array]) -> int:
    """Samples to a batch, so that outputs for inputs of the sizes of ``arrays`` do not fill the memory."""
    sizes = dict(graph.example)
    for name, one in takes.items():
        sizes |= {want: size for want, size in zip(one.shape, arrays[name].shape, strict=True) if isinstance(want, str)}
    shapes = [graph.shape(name) or () for name in graph.outputs]
    each = [np.prod([s if isinstance(s, int) else sizes.get(s, 1) for s in shape[1:]], dtype=float) for shape in shapes]
    return int(max(1, min(BATCH, OUTPUTS // max(1.0, *each))))
