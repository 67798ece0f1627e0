"""Integers that a graph computes about itself: sizes, offsets, axes. Unknown entries are nan, and nan spreads.

Exporters spell one slice bound as a chain of Shape, Gather, Mul and Concat. Evaluating such chains in float64, with nan
for every size that is only known when the model runs, tells which entries are constant without running anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.graph import Graph, Node

Floats = npt.NDArray[np.float64]
_LIMIT = 4096


def _whole(values: Floats) -> list[int]:
    if np.isnan(values).any():
        raise ValueError("unknown")
    return [int(v) for v in values.reshape(-1)]


def _few(count: int) -> None:
    """ValueError where there are more values than anybody looks at, whatever the file says of their shape."""
    if count > _LIMIT**2:
        raise ValueError("too many")


def _axes(node: Node, args: list[Floats | None]) -> list[int]:
    axes = node.attrs.get("axes")
    if axes is None and len(args) > 1 and args[1] is not None:
        axes = _whole(args[1])
    return list(axes or [])


def _slice(node: Node, args: list[Floats | None]) -> Floats:
    data = _first(args)
    if len(args) > 1:
        starts, ends = (_whole(v) for v in args[1:3] if v is not None)
        steps = _whole(args[4]) if len(args) > 4 and args[4] is not None else [1] * len(starts)
    else:
        starts, ends = node.attrs["starts"], node.attrs["ends"]
        steps = [1] * len(starts)
    axes = _whole(args[3]) if len(args) > 3 and args[3] is not None else node.attrs.get("axes", range(len(starts)))
    index: list[Any] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return np.asarray(data[tuple(index)], np.float64)


def _first(args: list[Floats | None]) -> Floats:
    if not args or args[0] is None:
        raise ValueError("unknown")
    return args[0]


def _where(node: Node, args: list[Floats | None]) -> Floats:
    condition, a, b = (np.asarray(v, np.float64) for v in args)
    picked = np.where(condition == 1, a, b)
    return np.where(np.isnan(condition) & (np.broadcast_to(a, picked.shape) != b), np.nan, picked)


def _gather(node: Node, args: list[Floats | None]) -> Floats:
    indices = np.asarray(args[1])
    if np.isnan(indices).any():
        raise ValueError("unknown")
    return np.take(_first(args), indices.astype(np.int64), axis=node.attrs.get("axis", 0))


def _unsqueeze(node: Node, args: list[Floats | None]) -> Floats:
    return np.expand_dims(_first(args), tuple(_axes(node, args)))


def _squeeze(node: Node, args: list[Floats | None]) -> Floats:
    return np.squeeze(_first(args), tuple(_axes(node, args)) or None)


def _cast(node: Node, args: list[Floats | None]) -> Floats:
    return np.trunc(_first(args)) if node.attrs.get("integer", True) else _first(args)


def _concat(node: Node, args: list[Floats | None]) -> Floats:
    return np.concatenate([np.asarray(v, np.float64) for v in args], axis=node.attrs.get("axis", 0))


def _reshape(node: Node, args: list[Floats | None]) -> Floats:
    return np.reshape(_first(args), _whole(np.asarray(args[1])))


def _one_hot(node: Node, args: list[Floats | None]) -> Floats:
    if node.attrs.get("axis", -1) != -1:
        raise ValueError("unknown")
    places, depth, (off, on) = np.asarray(args[0]), _whole(np.asarray(args[1]))[0], np.asarray(args[2])
    _few(places.size * depth)
    rows = np.arange(depth) == np.reshape(_whole(places), (*places.shape, 1)) % depth
    return np.asarray(np.where(rows, on, off), np.float64)


def _fill(node: Node, args: list[Floats | None]) -> Floats:
    value = np.reshape(np.asarray(node.attrs.get("value", 0), np.float64), -1)[0]
    sizes = _whole(_first(args))
    _few(math.prod(sizes))
    return np.full(sizes, value)


def _range(node: Node, args: list[Floats | None]) -> Floats:
    start, stop, step = (_whole(np.asarray(v))[0] for v in args)
    _few((stop - start) // step)
    return np.arange(start, stop, step, dtype=np.float64)


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Floats]:
    def run(node: Node, args: list[Floats | None]) -> Floats:
        a, b = (np.asarray(v, np.float64) for v in args)
        with np.errstate(all="ignore"):
            result = np.asarray(function(a, b), np.float64)
        return np.where(np.isnan(a + b), np.nan, result)

    return run


EVALUATE: dict[str, Callable[[Node, list[Floats | None]], Floats]] = {
    "identity": lambda node, args: _first(args),
    "cast": _cast,
    "not": lambda node, args: np.where(np.isnan(_first(args)), np.nan, _first(args) == 0),
    "neg": lambda node, args: -_first(args),
    "floor": lambda node, args: np.floor(_first(args)),
    "ceil": lambda node, args: np.ceil(_first(args)),
    "add": _binary(np.add),
    "sub": _binary(np.subtract),
    "mul": _binary(np.multiply),
    "div": _binary(np.divide),
    "mod": _binary(np.mod),
    "min": _binary(np.minimum),
    "max": _binary(np.maximum),
    "equal": _binary(np.equal),
    "less": _binary(np.less),
    "greater": _binary(np.greater),
    "where": _where,
    "gather": _gather,
    "slice": _slice,
    "concat": _concat,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "transpose": lambda node, args: np.transpose(_first(args), node.attrs.get("perm")),
    "one_hot": _one_hot,
    "constant_of_shape": _fill,
    "range": _range,
}


class Values:
    """Evaluates small constants of one graph on demand, each once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._done: dict[str, Floats | None] = {"": None, **graph.known}

    def __call__(self, name: str) -> Floats | None:
        """The values of ``name`` with nan where unknown; None where nothing is known."""
        todo = [name]
        while todo:
            top = todo[-1]
            if top in self._done:
                todo.pop()
                continue
            node = self._graph.producers.get(top)
            evaluable = node is not None and node.op in EVALUATE and self._small(top)
            missing = [i for i in node.inputs if i not in self._done] if evaluable and node else []
            if missing and len(todo) < _LIMIT:
                todo += missing
                continue
            self._done[top] = self._evaluate(top, node if evaluable else None)
            todo.pop()
        return self._done[name]

    def _small(self, name: str) -> bool:
        shape = self._graph.shape(name)
        return shape is not None and len(shape) <= 2 and all(isinstance(s, int) and s <= _LIMIT for s in shape)

    def _evaluate(self, name: str, node: Node | None) -> Floats | None:
        weight = self._graph.weights.get(name)
        if weight is not None:
            small = weight.size <= _LIMIT and weight.dtype in ("int64", "int32", "float32", "float64", "bool")
            return np.asarray(weight.load(), np.float64) if small else None
        producer = self._graph.producers.get(name)
        if producer is not None and producer.op in ("shape", "size"):
            shape = self._graph.shape(producer.inputs[0])
            if shape is None:
                return None
            listed = [float(s) if isinstance(s, int) else np.nan for s in shape]
            if producer.op == "size":
                return np.asarray(np.prod(listed), np.float64)
            return np.asarray(listed[slice(producer.attrs.get("start", 0), producer.attrs.get("end"))], np.float64)
        if node is None:
            return None
        try:
            result = np.asarray(EVALUATE[node.op](node, [self._done[i] for i in node.inputs]), np.float64)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return None
        return self._as_stored(name, result)

    def _as_stored(self, name: str, result: Floats) -> Floats | None:
        """Rounded as the runtime rounds it: integers towards zero, floats to their own width."""
        dtype = self._graph.values[name].dtype
        if dtype == "bool":
            return np.where(np.isnan(result), np.nan, result != 0)
        if dtype.startswith(("int", "uint")):
            return np.trunc(result)
        return result.astype(dtype).astype(np.float64) if dtype.startswith("float") else None


__all__ = ["Values"]
