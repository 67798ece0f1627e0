"""An activation that nobody computed: how its elements are distributed, and how they hang together with others.

A `State` holds variables, with means and a covariance matrix, and a layout that says which of them each element of the
activation is, so that ops that only move elements are numpy's own on the layout. Along axes of size 1 of the layout
(the batch, places) all elements are distributed alike.

Each state knows the one it was made from, and the slope of the best line from that to itself. Where two branches meet
(a residual, a gate) these lines lead to where they parted, and say how they are correlated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from math import factorial
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import hermite_e

from graphprune.graph import Array

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
PLACES = 0.7
"""Correlation of one variable at two neighbouring places; of places further apart a power of it."""
ATTENTION = 0.5
"""What is left of a variance, and of what a place has of itself, when attention averages over places."""
STREAM = 0.0
"""What is left of correlations where a vector is divided by its size."""
_POINTS, _WEIGHTS = hermite_e.hermegauss(64)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_ORDERS = 4
_TINY = 1e-12
_numbers = count()


@dataclass(frozen=True, eq=False)
class State:
    """Variables of mean ``mean`` [n] and covariance ``cov`` [n, n]; ``layout`` says which one is where.

    ``slope`` ([n, m], or [n] for a diagonal) is that of the best line from ``parent``. ``values`` [n, points] are those
    of a function of the variables of ``base`` at points of a normal distribution, where the state is one.
    ``averages`` says that it is made of weights of averages, and nothing else of it is known; ``guessed`` that it rests
    on an op that nothing is known of.
    """

    mean: Floats
    cov: Floats
    layout: Ints
    shape: tuple[int, ...]
    parent: State | None = None
    slope: Floats = field(default_factory=lambda: np.ones(1))
    base: State | None = None
    values: Floats | None = None
    averages: bool = False
    guessed: bool = False
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def deviation(self) -> Floats:
        """Standard deviations, [n]."""
        return np.sqrt(np.maximum(np.diag(self.cov), 0.0))

    @property
    def points(self) -> Floats:
        """Values of each variable at points of a normal distribution, [n, points]."""
        return self.values if self.values is not None else self.mean[:, None] + self.deviation[:, None] * _POINTS

    @property
    def absolute(self) -> Floats:
        """E|x|, [n]."""
        return np.asarray(np.abs(self.points) @ _WEIGHTS)

    @property
    def whole(self) -> Ints:
        """The layout along every axis."""
        return np.broadcast_to(self.layout, self.shape)


def normal(shape: tuple[int, ...], axis: int | None, *, averages: bool = False, guessed: bool = False) -> State:
    """Independent variables of mean 0 and variance 1 along ``axis``; one for all where there is none."""
    n = 1 if axis is None else shape[axis]
    sizes = [n if i == axis else 1 for i in range(len(shape))]
    return State(np.zeros(n), np.eye(n), np.arange(n).reshape(sizes), shape, averages=averages, guessed=guessed)


def moved(state: State, layout: Array) -> State:
    """The same variables, at other places; places that become elements of one axis are variables of their own."""
    shape = layout.shape
    for axis in range(layout.ndim):
        first = layout.take([0], axis)
        layout = first if (layout == first).all() else layout
    return replace(state, layout=layout.astype(np.int64), shape=shape)


def apart(state: State, axis: int) -> State:
    """Every element along ``axis`` a variable of its own, correlated by `PLACES` where they were the same."""
    row = state.layout.reshape(-1)
    if len(row) != state.layout.shape[axis] or len(np.unique(row)) == len(row):
        return state
    place = np.zeros(len(row), np.int64)
    for variable in np.unique(row):
        at = np.flatnonzero(row == variable)
        place[at] = np.arange(len(at))
    near = PLACES ** np.abs(place[:, None] - place)
    layout = np.arange(len(row)).reshape([-1 if i == axis else 1 for i in range(state.layout.ndim)])
    chosen = picked(state, row, layout)
    return replace(chosen, cov=chosen.cov * near, parent=None, values=None, base=None, number=next(_numbers))


def picked(state: State, index: Ints, layout: Ints) -> State:
    """The variables ``index``, each as often as it is named, in another layout."""
    if len(index) == len(state.mean) and (index == np.arange(len(index))).all():
        return replace(state, layout=layout)
    slope = state.slope[index] if state.slope.shape != (1,) else state.slope
    if state.parent is not None and slope.ndim == 1:  # a diagonal no longer
        full = np.zeros((len(index), len(state.parent.mean)))
        full[np.arange(len(index)), index] = slope
        slope = full
    values = None if state.values is None else state.values[index]
    return replace(
        state,
        mean=state.mean[index],
        cov=state.cov[np.ix_(index, index)],
        layout=layout,
        slope=slope,
        base=None,
        values=values,
        number=next(_numbers),
    )


def linear(state: State, matrix: Floats, layout: Ints, shape: tuple[int, ...], noise: Floats | None = None) -> State:
    """``matrix`` [m, n] times the variables; ``noise`` [m, m] is further covariance."""
    cov = matrix @ state.cov @ matrix.T
    made = cov if noise is None else cov + noise
    return State(matrix @ state.mean, made, layout, shape, state, matrix, guessed=state.guessed)


def scaled(state: State, factor: Floats, mean: Floats) -> State:
    """Variables times ``factor`` [n], then moved to ``mean``."""
    cov = state.cov * np.outer(factor, factor)
    return State(mean, cov, state.layout, state.shape, state, factor, guessed=state.guessed)


def normalised(state: State) -> State:
    """A vector divided by its size: what is left of correlations is `STREAM`, the rest is as if all were alike."""
    size = max(float(np.mean(np.diag(state.cov) + np.square(state.mean))), 1e-30) ** -0.5
    found = scaled(state, np.full(len(state.mean), STREAM * size), STREAM * size * state.mean)
    spread = np.eye(len(state.mean)) * (1 - STREAM)
    return replace(found, cov=STREAM * size**2 * state.cov + spread, guessed=False)


def pointwise(state: State, function: Callable[[Floats], Any]) -> State:
    """A function of each variable: mean and variance by quadrature, covariances by Mehler's series."""
    base = state.base or state
    with np.errstate(all="ignore"):
        values = np.asarray(function(state.points), np.float64)
        middle = np.asarray(function((state.points @ _WEIGHTS)[:, None]), np.float64)
    values = np.where(np.isfinite(values).all(1, keepdims=True), values, np.nan_to_num(middle, posinf=0, neginf=0))
    return _of(base, values, state)


def _of(base: State, values: Floats, like: State) -> State:
    """The state of functions of ``base`` that take ``values``, laid out as ``like``."""
    deviation = np.maximum(base.deviation, _TINY)
    alike = np.clip(base.cov / np.outer(deviation, deviation), -1.0, 1.0)
    mean, cov, power = values @ _WEIGHTS, np.zeros_like(base.cov), np.ones_like(base.cov)
    slope = np.zeros(len(mean))
    for k in range(1, _ORDERS + 1):
        wave = hermite_e.hermeval(_POINTS, [0.0] * k + [1.0]) / np.sqrt(factorial(k))
        part = values @ (_WEIGHTS * wave)
        power = power * alike
        cov += np.outer(part, part) * power
        slope = part / deviation if k == 1 else slope
    np.fill_diagonal(cov, np.maximum(np.square(values) @ _WEIGHTS - np.square(mean), 0.0))
    return State(mean, cov, like.layout, like.shape, base, slope, base, values, guessed=base.guessed)


def together(a: State, b: State, function: Callable[[Floats, Floats], Floats]) -> State | None:
    """A function of two functions of the same variables; None where they are not."""
    same = (a.base or a).number == (b.base or b).number and np.array_equal(a.layout, b.layout)
    if not same or len(a.mean) != len(b.mean):
        return None
    with np.errstate(all="ignore"):
        values = function(a.points, b.points)
    return _of(a.base or a, values, a) if np.isfinite(values).all() else None


def _compose(after: Floats, before: Floats) -> Floats:
    if after.ndim == 1:
        return after * before if before.ndim == 1 else after[:, None] * before
    return after * before if before.ndim == 1 else after @ before


def met(a: State, b: State) -> tuple[State, Floats, Floats] | None:
    """Where the ways to ``a`` and ``b`` parted, and the slopes from there; None where they never met."""
    slopes = [np.ones(len(a.mean)), np.ones(len(b.mean))]
    ends = [a, b]
    while ends[0].number != ends[1].number:
        late = 0 if ends[0].number > ends[1].number else 1
        parent = ends[late].parent
        if parent is None:
            return None
        slopes[late] = _compose(slopes[late], ends[late].slope)
        ends[late] = parent
    return ends[0], slopes[0], slopes[1]


def _pairs(a: State, b: State) -> tuple[State, State]:
    """Both with one variable for each pair of variables that meet at an element."""
    rank = max(a.layout.ndim, b.layout.ndim)
    one, other = (s.layout.reshape((1,) * (rank - s.layout.ndim) + s.layout.shape) for s in (a, b))
    shape = np.broadcast_shapes(a.shape, b.shape)
    keys, inverse = np.unique(one * len(b.mean) + other, return_inverse=True)
    layout = inverse.reshape(np.broadcast_shapes(one.shape, other.shape))
    first, second = np.divmod(keys, len(b.mean))
    return tuple(replace(_through(s, i, layout), shape=shape) for s, i in ((a, first), (b, second)))  # type: ignore[return-value]


def _through(state: State, index: Ints, layout: Ints) -> State:
    """`picked`, with the state itself as the parent."""
    if len(index) == len(state.mean) and (index == np.arange(len(index))).all():
        return replace(state, layout=layout)
    return linear(state, np.eye(len(state.mean))[index], layout, state.shape)


def _cross(source: State, left: Floats, right: Floats) -> Floats:
    """Covariances of what is made of ``source`` by two slopes."""
    half = _compose(left, source.cov)
    return half * right if right.ndim == 1 else half @ right.T


def _dense(slope: Floats) -> Floats:
    return np.diag(slope) if slope.ndim == 1 else slope


def added(a: State, b: State) -> State:
    """a + b: correlated where one is made of the other, or both of a third; else independent."""
    a, b = _pairs(a, b)
    where = met(a, b)
    mean, cov, flags = a.mean + b.mean, a.cov + b.cov, a.guessed or b.guessed
    if where is None:
        return State(mean, cov, a.layout, a.shape, a, np.ones(len(mean)), guessed=flags)
    source, left, right = where
    cross = _cross(source, left, right)
    slope = left + right if left.ndim == right.ndim else _dense(left) + _dense(right)
    return State(mean, cov + cross + cross.T, a.layout, a.shape, source, slope, guessed=flags)


def multiplied(a: State, b: State) -> State:
    """a · b, of normal variables that are correlated likewise."""
    a, b = _pairs(a, b)
    where = met(a, b)
    source, left, right = where or (a, np.ones(len(a.mean)), np.zeros(len(a.mean)))
    cross = _cross(source, left, right) if where else np.zeros_like(a.cov)
    mixed = np.outer(a.mean, b.mean) * cross.T
    cov = a.cov * b.cov + cross * cross.T + mixed + mixed.T
    cov += np.outer(a.mean, a.mean) * b.cov + np.outer(b.mean, b.mean) * a.cov
    left, right = _compose(b.mean, left), _compose(a.mean, right)
    slope = left + right if left.ndim == right.ndim else _dense(left) + _dense(right)
    mean = a.mean * b.mean + np.diag(cross)
    return State(mean, cov, a.layout, a.shape, source, slope, guessed=a.guessed or b.guessed)


def stacked(states: list[State], axis: int) -> State:
    """Concatenated along ``axis``: correlations between the parts as far as they are known."""
    starts = np.cumsum([0, *(len(s.mean) for s in states)])
    layouts = [s.whole + start for s, start in zip(states, starts, strict=False)]
    cov = np.zeros((starts[-1], starts[-1]))
    for i, a in enumerate(states):
        cov[starts[i] : starts[i + 1], starts[i] : starts[i + 1]] = a.cov
        for j, b in enumerate(states[:i]):
            if where := met(a, b):
                cross = _cross(*where)
                cov[starts[i] : starts[i + 1], starts[j] : starts[j + 1]] = cross
                cov[starts[j] : starts[j + 1], starts[i] : starts[i + 1]] = cross.T
    parent = met(states[0], states[-1])
    same = parent[0] if parent else None
    ways = [met(s, same) if same else None for s in states]
    slope = (
        np.concatenate([_dense(w[1]) for w in ways if w])
        if all(w and same and w[0].number == same.number for w in ways)
        else np.ones(1)
    )
    base = State(
        np.concatenate([s.mean for s in states]),
        cov,
        np.zeros(1, np.int64),
        (),
        same if slope.shape != (1,) else None,
        slope,
        guessed=any(s.guessed for s in states),
    )
    return moved(base, np.concatenate(layouts, axis))
