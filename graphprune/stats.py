"""Statistics of activations: how many vectors were seen along an axis, their sum, that of their outer products, and
that of their absolute values.

A format runs the model and adds them up inside the runtime, a batch at a time (``format.moments``); sums over batches
are kept in float64 here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from graphprune.consumers import Site
from graphprune.errors import UsageError
from graphprune.graph import Array
from graphprune.memory import give_back

Floats = npt.NDArray[np.float64]
Batches = Iterable[Mapping[str, Array]]
BUDGET = 1 << 30
"""Bytes of moments that are held in one pass; where all sites take more, the data are gone through again."""


@dataclass
class Moments:
    """Of vectors x of n features: ``count`` seen, ``total`` [n] their sum, ``second`` that of x xᵀ, ``absolute`` [n]
    that of |x|. Of x xᵀ, which is symmetric, the lower triangle is kept, row after row; [n, n] is taken as well.
    ``half`` are those of every other batch, where there were several: what was seen on one half of the data can be
    tried on the other.

    >>> moments = Moments.of(np.array([[1.0, 0.0], [3.0, 2.0]]))
    >>> moments.mean.tolist(), moments.covariance.tolist()
    ([2.0, 1.0], [[1.0, 1.0], [1.0, 1.0]])
    """

    count: int
    total: Floats
    second: Floats
    absolute: Floats
    half: Moments | None = None

    def __post_init__(self) -> None:
        self.second = _lower(self.second)

    @staticmethod
    def none(size: int) -> Moments:
        """Moments before any vector of ``size`` features was seen."""
        return Moments(0, np.zeros(size), np.zeros(_triangle(size)), np.zeros(size))

    @staticmethod
    def of(rows: Array) -> Moments:
        """Moments of the rows of a matrix."""
        x = np.asarray(rows, np.float64)
        return Moments(len(x), x.sum(0), x.T @ x, np.abs(x).sum(0))

    def add(self, count: int, total: Array, second: Array, absolute: Array) -> None:
        """Count more vectors in."""
        self.count += count
        self.total = self.total + total
        self.second += _lower(second)
        self.absolute = self.absolute + absolute

    @property
    def mean(self) -> Floats:
        """E[x], [n]."""
        return self.total / max(1, self.count)

    @property
    def raw(self) -> Floats:
        """E[x xᵀ], [n, n]."""
        return _whole(self.second, len(self.total)) / max(1, self.count)

    @property
    def covariance(self) -> Floats:
        """E[x xᵀ] - E[x] E[x]ᵀ, [n, n]."""
        return self.raw - np.outer(self.mean, self.mean)

    @property
    def halves(self) -> tuple[Moments, Moments] | None:
        """Of every other batch, and of those between, where there were several."""
        if self.half is None:
            return None
        count, total, second, absolute = self.half.count, self.half.total, self.half.second, self.half.absolute
        rest = self.count - count, self.total - total, self.second - second, self.absolute - absolute
        return Moments(count, total, second, absolute), Moments(*rest)


def _triangle(size: int) -> int:
    return size * (size + 1) // 2


@lru_cache(maxsize=8)
def _at(size: int) -> npt.NDArray[np.bool_]:
    """Where the lower triangle is of a matrix [size, size]."""
    return np.tri(size, dtype=bool)


def _lower(matrix: Array) -> Array:
    """The lower triangle of a symmetric matrix, row after row; one that is so already stays."""
    return matrix if matrix.ndim == 1 else matrix[_at(len(matrix))]


def _whole(lower: Array, size: int) -> Floats:
    """The symmetric matrix [size, size] of a lower triangle."""
    made = np.empty((size, size))
    made[_at(size)] = lower
    made.T[_at(size)] = lower
    return made


def merged(parts: Sequence[Moments]) -> Moments:
    """Moments of all vectors of ``parts`` together."""
    if len(parts) == 1:
        return parts[0]
    whole = Moments.none(len(parts[0].total))
    for part in parts:
        whole.add(part.count, part.total, part.second, part.absolute)
    halves = [part.half for part in parts if part.half is not None]
    whole.half = merged(halves) if len(halves) == len(parts) else None
    return whole


Gather = Callable[[Sequence[Site], Batches], dict[Site, Moments]]
"""How a format adds up moments over batches in one pass."""


def collect(sites: Iterable[Site], sizes: Mapping[Site, int], batches: Batches, gather: Gather) -> dict[Site, Moments]:
    """Moments at all ``sites``, in as few passes over ``batches`` as fit into memory.

    Raises UsageError where there is no batch, or where an activation is not finite.
    """
    held = batches if isinstance(batches, Sequence) else list(batches)
    if not held:
        raise UsageError("there is no calibration data", hint="give at least one batch of inputs")
    found: dict[Site, Moments] = {}
    for group in _groups(dict.fromkeys(sites), sizes):
        found |= _together(*(gather(group, part) for part in _halves(held)))
        give_back()
    for site, moments in found.items():
        if not np.isfinite(moments.second).all():
            raise UsageError(
                f"the activation {site.value!r} is not finite on the calibration data",
                hint="check the inputs for NaN and infinity, and for a range that the model was not made for",
            )
    return found


def _together(found: dict[Site, Moments], *others: dict[Site, Moments]) -> dict[Site, Moments]:
    """Moments of two halves, those of the first kept with them; those of the other are let go on the way."""
    for rest in others:
        for site, half in found.items():
            found[site] = merged([half, rest.pop(site)])
            half.second = half.second.astype(np.float32)
            found[site].half = half
    return found


def _halves(batches: Sequence[Mapping[str, Array]]) -> Iterator[Batches]:
    """Every other batch, and those between if there are any."""
    for start in range(min(2, len(batches))):
        yield (batches[at] for at in range(start, len(batches), 2))


def _groups(sites: Iterable[Site], sizes: Mapping[Site, int]) -> Iterator[list[Site]]:
    group: list[Site] = []
    held = 0
    for site in sites:
        size = 8 * _triangle(sizes[site])
        if group and held + size > BUDGET:
            yield group
            group, held = [], 0
        group.append(site)
        held += size
    if group:
        yield group
