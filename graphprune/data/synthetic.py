"""Inputs made without data: noise, and noise that suits what the batch norms of a model remember of their training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.consumers import Site
from graphprune.data.inputs import Feeds, Input
from graphprune.formats import Format
from graphprune.graph import Array, Graph, Node

Floats = npt.NDArray[np.float64]
LAYERS = 4
"""Batch norms that drawn images are matched to, the first in the graph."""
_ROUNDS = 12
_TRIED = 32
"""Images that are looked at while trying."""


def noise(one: Input, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Random rows of the table, ones for a mask, smooth noise for an image, normal numbers otherwise."""
    if one.rows:
        return random.integers(0, one.rows, shape).astype(one.dtype)
    if one.mask:
        return np.ones(shape, one.dtype)
    if one.pixels is None:
        return random.standard_normal(shape).astype(one.dtype)
    made = image(one, shape, random)
    return np.asarray(made if one.dtype.kind == "f" else np.clip(128 + 64 * made, 0, 255), one.dtype)


def image(one: Input, shape: tuple[int, ...], random: np.random.Generator, slope: float = 1.0) -> Floats:
    """Images whose spectrum falls with frequency as in photographs, of many contrasts and brightnesses."""
    assert one.pixels is not None
    channels, space = one.pixels
    own, shared = (_smooth(size, space, random, slope) for size in (shape, _single(shape, channels)))
    few = _single(shape, channels, *space)
    contrast, light = np.exp(0.5 * random.standard_normal(few)), 0.5 * random.standard_normal(few)
    return np.asarray(contrast * (0.6 * own + 0.8 * shared) + light, np.float64)


def _single(shape: tuple[int, ...], *axes: int) -> tuple[int, ...]:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _smooth(shape: tuple[int, ...], space: tuple[int, int], random: np.random.Generator, slope: float) -> Floats:
    """Normal noise of zero mean and unit size whose amplitude falls as frequency to the power of -slope."""
    across = [np.fft.fftfreq(shape[axis]) * shape[axis] for axis in space]
    frequency = np.maximum(1.0, np.hypot(*np.meshgrid(*across, indexing="ij")))
    spectrum = np.fft.fft2(random.standard_normal(shape), axes=space)
    sized = [size if axis in space else 1 for axis, size in enumerate(shape)]
    made = np.fft.ifft2(spectrum * (frequency**-slope).reshape(sized), axes=space).real
    made -= made.mean(space, keepdims=True)
    return np.asarray(made / np.maximum(made.std(space, keepdims=True), 1e-6), np.float64)


def norms(graph: Graph) -> dict[Site, tuple[Floats, Floats]]:
    """Mean and variance of each channel of what batch norms read, where they have statistics of their own."""
    found = (node for node in graph.nodes if node.op == "batch_norm" and len(node.inputs) > 4 and not node.body)
    own = [node for node in found if all(name in graph.weights for name in node.inputs[3:5])]
    return {Site(node.inputs[0], 1): _remembered(graph, node) for node in own}


def matched(
    format: Format,
    model: Any,
    one: Input,
    shape: tuple[int, ...],
    batches: Callable[[Array], Sequence[Feeds]],
    seed: int,
    progress: Callable[[float], None],
) -> Array:
    """Smooth noise whose slope, size and mean of each channel are those that the first batch norms know best.

    Found by trying: a step up and down in each number in turn, smaller ones when none helps.
    """
    assert one.pixels is not None
    few = (min(shape[0], _TRIED), *shape[1:])
    at = dict(islice(norms(model.graph).items(), LAYERS))
    wide = [size if axis == one.pixels[0] else 1 for axis, size in enumerate(shape)]

    def made(numbers: Floats, shape: tuple[int, ...]) -> Array:
        drawn = image(one, shape, np.random.default_rng(seed), slope=float(numbers[1]))
        return np.asarray(np.exp2(numbers[0]) * (drawn + numbers[2:].reshape(wide)), one.dtype)

    def distance(numbers: Floats) -> float:
        found = format.moments(model, list(at), batches(made(numbers, few)))
        return sum(_apart(m.mean, np.diag(m.covariance), *at[site]) for site, m in found.items())

    best = np.array([0.0, 1.0, *[0.0] * shape[one.pixels[0]]])
    least, step = distance(best), 1.0
    for turn in range(_ROUNDS):
        before = least
        for place in range(len(best)):
            for way in (-1, 1):
                tried = best.copy()
                tried[place] += way * step * (0.5 if place == 1 else 1.0)
                if (found := distance(tried)) < least:
                    best, least = tried, found
                    break
        step = step if least < before else step / 2
        progress((turn + 1) / _ROUNDS)
    return made(best, shape)


def _remembered(graph: Graph, node: Node) -> tuple[Floats, Floats]:
    mean, variance = (graph.weights[name].load().astype(np.float64) for name in node.inputs[3:5])
    return mean, variance


def _apart(mean: Floats, variance: Floats, wanted: Floats, spread: Floats) -> float:
    """Mean over channels of how far one normal distribution is from another (Kullback-Leibler)."""
    ratio = np.maximum(variance, 1e-6 * spread + 1e-12) / np.maximum(spread, 1e-12)
    off = np.square(mean - wanted) / np.maximum(spread, 1e-12)
    return float(np.mean(ratio + off - 1 - np.log(ratio)) / 2)
