"""What stored integers stand for: (q - zero) · scale, with one scale, one along an axis, or one a block of positions.

Integers of less than eight bits may lie several in a byte, the first in the lowest bits.
"""

from __future__ import annotations

import numpy as np

from graphprune.graph import Array


def unpack(stored: Array, bits: int) -> Array:
    """The integers of ``bits`` bits each in the bytes of the last axis.

    >>> unpack(np.array([0x21, 0x43], np.uint8), 4).tolist()
    [1, 2, 3, 4]
    """
    apart = stored.view(np.uint8)[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(apart & (2**bits - 1)).reshape(*stored.shape[:-1], -1)


def dequantise(stored: Array, scales: list[Array], zero: Array | None = None, axis: int = 0) -> Array:
    """The numbers that ``stored`` stands for; the scales are multiplied.

    A vector lies along ``axis``; what has as many axes as ``stored`` is repeated until it is as long (blocks).

    >>> dequantise(np.array([[3, 4], [5, 6]], np.int8), [np.array([0.5, 2.0])], np.int8(3), axis=1).tolist()
    [[0.0, 2.0], [1.0, 6.0]]
    """
    values = stored.astype(np.float32)
    if zero is not None:
        values = values - _spread(zero, values.shape, axis)
    for scale in scales:
        values = values * _spread(scale, values.shape, axis)
    return values


def quantise(values: Array, scales: list[Array], zero: Array | None, axis: int, like: Array) -> Array:
    """The integers of the type of ``like`` that come closest to ``values``, on the grid that they are on already.

    >>> quantise(np.array([0.7, 99.0]), [np.array(0.5)], None, 0, np.int8([0])).tolist()
    [1, 127]
    """
    scale = dequantise(np.ones(values.shape), scales, None, axis)
    shift = 0 if zero is None else _spread(zero, values.shape, axis)
    limits = np.iinfo(like.dtype)
    return np.clip(np.rint(values / scale + shift), limits.min, limits.max).astype(like.dtype)


def _spread(factor: Array, shape: tuple[int, ...], axis: int) -> Array:
    factor = np.asarray(factor).astype(np.float32)
    if factor.size == 1:
        return factor.reshape(())
    if factor.ndim != len(shape):
        return factor.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    for i, size in enumerate(shape):
        if factor.shape[i] not in (1, size):
            factor = factor.repeat(-(-size // factor.shape[i]), i).take(range(size), i)
    return factor
