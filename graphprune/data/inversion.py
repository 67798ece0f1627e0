"""Images brought to what every batch norm remembers, by gradients (DeepInversion; Yin et al., arXiv 1912.08795).

Drawn images are where it starts, and they give the range. Each group of images is to have the mean and variance of the
training data before every batch norm. Of a classifier each image is also to be of a class, all classes alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphprune.analysis import analyse
from graphprune.cost import CostModel
from graphprune.data.inputs import Feeds, Input
from graphprune.data.synthetic import norms
from graphprune.errors import UsageError
from graphprune.formats import Format
from graphprune.graph import Array, Graph

STEPS, FEWEST = 60, 20
"""Steps of Adam, and how many of them go before further images."""
RATE = 0.15
"""The length of the first step, in deviations of the drawn images."""
TOGETHER, LEAST, PIXELS = 64, 8, 1 << 19
"""Images whose statistics are taken together, and the least of them where they hold more pixels than that."""
EFFORT = 2e12
"""Multiply-accumulates of all forward runs, which bound images and steps."""
Runs = Callable[[Array], Sequence[Feeds]]


def inverted(
    format: Format, model: Any, one: Input, drawn: Array, runs: Runs, seed: int, progress: Callable[[float], None]
) -> Array:
    """As many of the ``drawn`` images as effort allows, moved towards the batch norms.

    ``runs`` makes of images what the model takes. UsageError where there are no gradients.
    """
    if one.dtype.kind != "f":
        raise UsageError(f"the input {one.name!r} holds whole numbers", hint="give --calib FILE")
    pull = format.pull(model, norms(model.graph))
    count, steps = _affordable(model.graph, one, drawn.shape)
    unit = one.shape[0] if isinstance(one.shape[0], int) else 1
    whole = drawn[: -(-count // unit) * unit].reshape(-1, unit, *drawn.shape[1:])
    together = max(LEAST, min(TOGETHER, PIXELS // math.prod(drawn.shape[2:])))
    parts = np.array_split(whole, math.ceil(len(whole) * unit / max(unit, together)))
    random = np.random.default_rng(seed)
    found = []
    for number, part in enumerate(parts):
        images = part.reshape(-1, *drawn.shape[1:])
        labels = (random.permutation(len(images)) + random.random()) / len(images)

        def slope(images: Array, labels: Array = labels) -> Array:
            taken = runs(images)
            ends = np.cumsum([len(run[one.name]) for run in taken])[:-1]
            *_, slopes = pull(taken, np.split(labels, ends))
            found = np.concatenate([each[one.name] for each in slopes])
            if not np.isfinite(found).all():
                raise UsageError("gradients by the images are not finite", hint="give --calib FILE")
            return found

        def watch(done: float, number: int = number) -> None:
            progress((number + done) / len(parts))

        rate, limits = RATE * float(drawn.std()), (drawn.min(), drawn.max())
        found.append(_descended(images, slope, steps, rate, limits, watch))
    return np.concatenate(found)


def _affordable(graph: Graph, one: Input, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many of the images of ``shape``, and how many steps."""
    macs = CostModel(analyse(graph)).macs({}) / math.prod(one.sized(graph.example)[:1])
    size = math.prod(shape[1:]) / math.prod(one.sized(graph.example)[1:])
    each = max(1.0, macs * size)
    count = min(shape[0], max(LEAST, int(EFFORT / each / FEWEST)))
    return count, max(1, min(STEPS, int(EFFORT / each / count)))


def _descended(
    images: Array,
    slope: Callable[[Array], Array],
    steps: int,
    rate: float,
    limits: tuple[float, float],
    progress: Callable[[float], None],
) -> Array:
    """``images`` after ``steps`` of Adam, ever shorter ones, kept inside ``limits``."""
    mean, square = np.zeros(images.shape), np.zeros(images.shape)
    for step in range(steps):
        found = slope(images)
        mean, square = 0.9 * mean + 0.1 * found, 0.99 * square + 0.01 * found**2
        ahead = mean / (1 - 0.9 ** (step + 1)) / (np.sqrt(square / (1 - 0.99 ** (step + 1))) + 1e-12)
        pace = rate * (1 + math.cos(math.pi * step / steps)) / 2
        images = np.clip(images - pace * ahead, *limits).astype(images.dtype)
        progress((step + 1) / steps)
    return images
