"""What layers with weights and normalisations do to a `State`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphprune.graph import Array
from graphprune.propagate.call import Call, does
from graphprune.propagate.pointwise import with_constant
from graphprune.propagate.state import ATTENTION, PLACES, Floats, State, apart, linear, normal, normalised, scaled


def rows(state: State, axis: int) -> tuple[Array, Array]:
    """Which variables are along ``axis``: each row that there is [r, k], and the row of each place."""
    size = state.shape[axis]
    last = np.moveaxis(state.layout, axis, -1)
    last = np.broadcast_to(last, (*last.shape[:-1], size))
    found, inverse = np.unique(last.reshape(-1, size), axis=0, return_inverse=True)
    return found, inverse.reshape(last.shape[:-1])


def contracted(state: State, axis: int, matrix: Floats, shape: tuple[int, ...]) -> State:
    """``matrix`` [n, k] times what is along ``axis``."""
    state = told_apart(state, axis)
    found, inverse = rows(state, axis)
    whole = np.zeros((len(found), len(matrix), len(state.mean)))
    for number, row in enumerate(found):
        np.add.at(whole[number].T, row, matrix.T)
    layout = np.moveaxis(inverse[..., None] * len(matrix) + np.arange(len(matrix)), -1, axis)
    return linear(state, whole.reshape(-1, len(state.mean)), layout, shape)


def told_apart(state: State, axis: int) -> State:
    """Where ``axis`` is one of places, a variable for each place; of several variables, of their mixture."""
    if state.layout.shape[axis] > 1 or state.shape[axis] == 1:
        return state
    wide = np.zeros([size if i == axis else 1 for i, size in enumerate(state.shape)], np.int64)
    mean, spread = state.mean.mean(keepdims=True), np.mean(np.diag(state.cov)) + np.var(state.mean)
    return apart(State(mean, np.full((1, 1), spread), wide, state.shape, guessed=state.guessed), axis)


def _biased(state: State, bias: Floats | None, axis: int) -> State:
    if bias is None:
        return state
    shaped = bias.reshape([-1 if i == axis % len(state.shape) else 1 for i in range(len(state.shape))])
    return with_constant("add", state, shaped if bias.size > 1 else bias.reshape(()), np.add)


@does("matmul")
def matmul(call: Call) -> State:
    """x W, W x for a constant, or an average of values by softmax."""
    a, b = call.ins[:2]
    if isinstance(a, State) and isinstance(b, State):
        if a.averages:
            return averaged(b, call.shape())
        raise ValueError("a product of two activations")
    left = isinstance(a, State)
    matrix = np.asarray(call.array(1) if left else call.array(0), np.float64)
    matrix = matrix.reshape(matrix.shape[-2:]) if matrix.ndim > 2 else matrix
    state = call.state(0 if left else 1)
    return contracted(state, len(state.shape) - (1 if left else 2), matrix.T if left else matrix, call.shape())


def averaged(values: State, shape: tuple[int, ...]) -> State:
    """Values averaged over the axis before the last: the mean as it is, less variance."""
    layout = values.layout
    if layout.shape[-2] > 1:
        raise ValueError("places are told apart")
    for axis, (own, size) in enumerate(zip(layout.shape[:-2], shape[:-2], strict=True)):
        layout = layout.repeat(size // own, axis) if 1 < own < size else layout
    own = np.full(len(values.mean), ATTENTION)
    return replace(scaled(values, own, values.mean), cov=ATTENTION * values.cov, layout=layout, shape=shape)


@does("sdpa attention")
def attention(call: Call) -> State:
    """The values, averaged."""
    return averaged(call.state(2), call.shape())


@does("softmax")
def softmax(call: Call) -> State:
    """Weights of an average."""
    return normal(call.shape(), None, averages=True)


@does("linear")
def dense(call: Call) -> State:
    """x Wᵀ + b"""
    state = call.state()
    return _biased(contracted(state, len(state.shape) - 1, _matrix(call, 1), call.shape()), call.array(2), -1)


def _matrix(call: Call, number: int) -> Floats:
    found = call.array(number)
    if found is None or found.ndim != 2:
        raise ValueError("no matrix")
    return found


@does("gemm")
def gemm(call: Call) -> State:
    """A B + C, each with its factor."""
    if call.attr("transA", 0):
        raise ValueError("it is transposed")
    matrix = _matrix(call, 1) * call.attr("alpha", 1)
    found = contracted(call.state(), 1, matrix if call.attr("transB", 0) else matrix.T, call.shape())
    bias = call.array(2)
    return _biased(found, None if bias is None else bias * call.attr("beta", 1), 1)


def near(kernel: tuple[int, ...]) -> Floats:
    """Correlations of one variable at the elements of a window, [elements, elements]."""
    found: Floats = np.ones((1, 1))
    for size in kernel:
        apart_by = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
        found = np.asarray(np.kron(found, PLACES**apart_by), np.float64)
    return found


@does("conv")
def conv(call: Call) -> State:
    """A sum over the window, whose elements are as correlated as neighbours are."""
    stored = call.array(1)
    assert stored is not None
    groups, (outputs, inner), kernel = call.attr("group", 1), stored.shape[:2], stored.shape[2:]
    taps = stored.reshape(groups, outputs // groups, inner, -1)
    whole = np.zeros((outputs, groups * inner, taps.shape[-1]))
    for g, part in enumerate(taps):
        n = outputs // groups
        whole[g * n : (g + 1) * n, g * inner : (g + 1) * inner] = part
    state = call.state()
    layout = state.layout.reshape(-1)
    if len(layout) != state.layout.shape[1] or len(np.unique(layout)) != groups * inner != len(state.mean):
        raise ValueError("its channels are not those of the convolution")
    whole = whole[:, layout.argsort()]
    values, vectors = np.linalg.eigh(near(kernel))
    middle = near(kernel)[taps.shape[-1] // 2]
    made = linear(state, whole @ middle, np.arange(outputs).reshape([1, -1, *[1] * len(kernel)]), call.shape())
    parts = (np.sqrt(max(0.0, value)) * whole @ vector for value, vector in zip(values, vectors.T, strict=True))
    cov = sum((part @ state.cov @ part.T for part in parts), np.zeros_like(made.cov))
    return _biased(replace(made, mean=whole.sum(2) @ state.mean, cov=cov), call.array(2), 1)


@does("reduce_mean reduce_sum")
def reduced(call: Call) -> State:
    """Over variables a linear map; over places what it is at one."""
    state, axes = call.state(), call.attr("axes")
    if axes is None and len(call.node.inputs) > 1 and call.node.inputs[1]:
        listed = call.known(call.node.inputs[1])
        axes = None if listed is None else [int(axis) for axis in listed.reshape(-1)]
    rank = len(state.shape)
    over = sorted(axis % rank for axis in axes) if axes else list(range(rank))
    shape = list(state.shape)
    for axis in over:
        size, shape[axis] = shape[axis], 1
        factor = 1 / size if call.node.op == "reduce_mean" else 1
        if state.layout.shape[axis] > 1:
            state = contracted(state, axis, np.full((1, size), factor), tuple(shape))
        else:
            every = np.full(len(state.mean), factor * size)
            state = replace(scaled(state, every, state.mean * every), shape=tuple(shape))
    layout = state.layout if call.attr("keepdims", 1) else state.layout.squeeze(tuple(over))
    return replace(state, layout=layout, shape=call.shape())


# Normalisations: what they remember or bring about counts, not what was propagated.


def _standard(state: State, axis: int, deviation: Floats, mean: Floats) -> State:
    """Of a given mean and deviation a channel; correlations stay."""
    row = state.layout.reshape(-1)
    if len(row) != state.layout.shape[axis]:
        raise ValueError("its variables are not the channels")
    if len(np.unique(row)) != len(row) or not np.array_equal(row, np.arange(len(state.mean))):
        raise ValueError("its variables are not the channels")
    had = state.deviation
    factor = np.where(had > 0, deviation / np.maximum(had, 1e-30), 0.0)
    found = scaled(state, factor, mean)
    missing = np.where(had > 0, 0.0, np.square(deviation))
    return replace(found, cov=found.cov + np.diag(missing), guessed=False)


@does("batch_norm")
def batch_norm(call: Call) -> State:
    """The mean is the bias, the variance what the statistics leave of the scale."""
    scale, bias, _, variance = (call.array(i) for i in range(1, 5))
    assert variance is not None
    ones = np.ones(len(variance))
    scale, bias = ones if scale is None else scale, 0 * ones if bias is None else bias
    epsilon = call.attr("epsilon", 1e-5)
    return _standard(call.state(), 1, np.abs(scale) * np.sqrt(variance / (variance + epsilon)) * np.sign(scale), bias)


@does("instance_norm group_norm native_group_norm torch_instance_norm")
def other_norm(call: Call) -> State:
    """As a batch norm whose input is standard normal."""
    n = call.shape()[1]
    scale, bias = call.array(1), call.array(2)
    scale, bias = np.ones(n) if scale is None else scale, np.zeros(n) if bias is None else bias
    return _standard(call.state(), 1, scale, bias)


@does("layer_norm rms_norm torch_norm")
def layer_norm(call: Call) -> State:
    """Less the mean over the last axis, divided by one number, times the scale, plus the bias."""
    state, n = call.state(), call.shape()[-1]
    if call.attr("axis", -1) not in (-1, len(state.shape) - 1):
        raise ValueError("it is computed over several axes")
    if "rms" not in call.node.op + call.node.kind:
        state = contracted(state, len(state.shape) - 1, np.eye(n) - 1 / n, state.shape)
    found = normalised(state)
    scale, bias = call.array(1), call.array(2)
    found = found if scale is None else with_constant("mul", found, scale, np.multiply)
    found = found if bias is None else with_constant("add", found, bias, np.add)
    return replace(found, guessed=False)
