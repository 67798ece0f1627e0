"""What functions of elements do to a `State`: one line an op, for the names that both formats share.

    op("relu", lambda x: np.maximum(x, 0))

Arguments beside x are attributes of that name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from graphprune.graph import Array, Node
from graphprune.propagate.call import OPS, Call, does
from graphprune.propagate.state import Floats, State, added, met, multiplied, normalised, pointwise, scaled, together

_erf = np.vectorize(math.erf, otypes=[float])


def op(names: str, function: Callable[..., Any]) -> None:
    """Register a function of values, with the attributes (or the numbers among the arguments) that it names."""
    named = function.__code__.co_varnames[1 : function.__code__.co_argcount] if hasattr(function, "__code__") else ()

    def apply(call: Call) -> State:
        given = {name: call.attr(name) for name in named if call.attr(name) is not None}
        return pointwise(call.state(), partial(function, **given))

    does(names)(apply)


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _gelu(x: Any, approximate: Any = "none") -> Any:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _elu(x: Any, alpha: float = 1.0) -> Any:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _leaky(x: Any, alpha: float | None = None, negative_slope: float = 0.01) -> Any:
    return np.where(x > 0, x, (negative_slope if alpha is None else alpha) * x)


op("relu", lambda x: np.maximum(x, 0))
op("relu6", lambda x: np.clip(x, 0, 6))
op("hardtanh", lambda x, min_val=-1.0, max_val=1.0: np.clip(x, min_val, max_val))
op("leaky_relu", _leaky)
op("elu celu", _elu)
op("selu", lambda x: 1.05070098 * _elu(x, 1.67326324))
op("sigmoid", _sigmoid)
op("silu swish", lambda x: x * _sigmoid(x))
op("hard_sigmoid", lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1))
op("hardsigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1))
op("hard_swish hardswish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1))
op("gelu", _gelu)
op("com.microsoft.quick_gelu", lambda x, alpha=1.702: x * _sigmoid(alpha * x))
op("softplus", lambda x: np.logaddexp(x, 0))
op("mish", lambda x: x * np.tanh(np.logaddexp(x, 0)))
op("softsign", lambda x: x / (1 + np.abs(x)))
op("erf", _erf)
op("rsqrt", lambda x: 1 / np.sqrt(x))
op("reciprocal", lambda x: 1 / x)
op("neg", lambda x: -x)
for _word in "abs exp log sqrt square floor ceil round sign sin cos tan sinh cosh tanh".split():
    op(_word, getattr(np, _word))


# Two inputs, one of which may be a constant.


BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "rsub": lambda a, b: b - a,
    "mul": np.multiply,
    "div": np.divide,
    "true_divide": np.divide,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "prelu": lambda x, slope: np.where(x > 0, x, slope * x),
}


@does("add sub rsub mul div true_divide pow max min maximum minimum prelu sum")
def binary(call: Call) -> State:
    """Values of the same variables one by one; sums and products of others."""
    name = "add" if call.node.op == "sum" else name_of(call.node)
    operands = [x for x in call.ins if x is not None]
    operands += [np.asarray(call.attr(word)) for word in ("other", "exponent") if call.attr(word) is not None]
    first, *others = operands
    for other in others:
        first = _two(name, first, other)
    assert isinstance(first, State)
    return first


def name_of(node: Node) -> str:
    return node.kind.rstrip("_") if node.op == "pointwise" else node.op


def _two(name: str, a: Any, b: Any) -> State:
    function = BINARY[name]
    if not isinstance(a, State):
        return with_constant(name, b, a, lambda x, c: function(c, x))
    if not isinstance(b, State):
        return with_constant(name, a, b, function)
    if a.averages or b.averages:
        return a if a.averages else b
    return together(a, b, function) or different(name, a, b)


def different(name: str, a: State, b: State) -> State:
    """Of different variables."""
    if name in ("add", "sub", "rsub"):
        a = pointwise(a, np.negative) if name == "rsub" else a
        return added(a, pointwise(b, np.negative) if name == "sub" else b)
    if name in ("mul", "div", "true_divide") and b.layout.size == 1 and met(a, b):
        return normalised(a)
    if name == "mul" and a.layout.size == 1 and met(a, b):
        return normalised(b)
    if name in ("mul", "div", "true_divide"):
        return multiplied(a, pointwise(b, np.reciprocal) if name != "mul" else b)
    raise ValueError(f"{name} of two activations")


def with_constant(name: str, state: State, array: Array, function: Callable[[Any, Any], Any]) -> State:
    """With a number for each variable; a table with a row a place becomes an activation of its own."""
    if state.averages:
        return state
    other = table(np.asarray(array, np.float64), state)
    if not other.cov.any() and other.layout.size == 1:
        return pointwise(state, lambda x: function(x, other.mean[0]))
    if not other.cov.any() and np.array_equal(other.layout, state.layout):
        return _affine(name, state, other.mean) or pointwise(state, lambda x: function(x, other.mean[:, None]))
    return different(name, state, other)


def _affine(name: str, state: State, numbers: Floats) -> State | None:
    if name == "mul" and state.base is None:
        return scaled(state, numbers, state.mean * numbers)
    if name == "add" and state.base is None:
        return scaled(state, np.ones(len(numbers)), state.mean + numbers)
    return None


def table(array: Floats, like: State) -> State:
    """A constant as a state: its rows are samples wherever ``like`` has places, its elements variables elsewhere."""
    rank = max(array.ndim, like.layout.ndim)
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    layout, shape = ((1,) * (rank - like.layout.ndim) + s for s in (like.layout.shape, like.shape))
    features = [i for i in range(rank) if full.shape[i] > 1 and (layout[i] > 1 or shape[i] == 1)]
    own = [full.shape[i] if i in features else 1 for i in range(rank)]
    rows = np.moveaxis(full, features, range(-len(features), 0)).reshape(-1, math.prod(own))
    mean = rows.mean(0)
    cov = rows.T @ rows / len(rows) - np.outer(mean, mean) if len(rows) > 1 else np.zeros((len(mean),) * 2)
    numbers = np.arange(len(mean)).reshape(own)
    if features and array.ndim and np.array_equal(own, like.layout.shape) and like.layout.size == len(mean):
        return State(mean[like.layout.reshape(-1).argsort()], cov, like.layout, like.shape)
    return State(mean, cov, numbers, full.shape)


@does("clip clamp clamp_min clamp_max")
def clip(call: Call) -> State:
    """Between two numbers."""
    names = ("min", "max")
    ends = [call.attr(name) if call.attr(name) is not None else call.array(1 + i) for i, name in enumerate(names)]
    least, most = (end if end is None else float(np.asarray(end).reshape(-1)[0]) for end in ends)
    return pointwise(call.state(), lambda x: np.clip(x, least, most))


@does("where")
def where(call: Call) -> State:
    """Whichever is an activation; of two, as if one were always taken: a mask."""
    return next(x for x in (call.ins[1], call.ins[2]) if isinstance(x, State))


@does("pointwise")
def torch_pointwise(call: Call) -> State | list[State] | None:
    """The ATen function of that name."""
    name = name_of(call.node)
    return OPS[name](call) if name in OPS else None


@does("swiglu")
def swiglu(call: Call) -> State:
    """x sigmoid(x) y"""
    return different("mul", pointwise(call.state(), lambda x: x * _sigmoid(x)), call.state(1))
