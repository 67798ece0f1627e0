"""A causal language model that goes on by a token: what attention reads of earlier tokens is kept from call to call.

A plain graph has no cache of keys and values, so that a token costs a run over all before it. Here the graph runs on
the new token alone. Products of two activations that know of tokens (attention) see the second one whole: what was
kept, and the new row behind it. What only knows how long the text is (masks, rotations) is computed beside it for the
whole text, and meets the new token by its last row. Nothing of this is proved: texts of 1, 2, 3, 4, 6, 9, 13, ...
tokens are run both ways, and where they differ the plain graph is run from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import helper

from graphprune.errors import VerifyError
from graphprune.formats import THREADS
from graphprune.formats.onnx.bodies import bodies
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.runtime import Feeds, Runner, run
from graphprune.graph import Array, Graph

_CLOSE = 1e-3
_TYPES = ("float16", "float32", "float64")
_SIZES = ("Shape", "Size")
_ELEMENTWISE = ("Add", "And", "Div", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Where", "Xor")
_PAST, _KEPT, _WHOLE, _END = "graphprune/past/", "graphprune/kept/", "graphprune/whole/", "graphprune/end/"


class _UnableError(Exception):
    """The graph is not what this can go on in."""


@dataclass(frozen=True)
class _Text:
    """Where text goes in, and what its sizes are called."""

    graph: Graph
    ids: str
    batch: str
    along: str

    @staticmethod
    def of(graph: Graph) -> _Text:
        """Integers [batch, tokens], both free, that pick from the largest table."""
        rows = {name: graph.picked(name) for name in graph.inputs if len(graph.shape(name) or ()) == 2}
        ids = max(rows, key=lambda name: rows[name], default="")
        batch, along = graph.shape(ids) or (0, 0)
        if isinstance(batch, int) or isinstance(along, int) or batch == along:
            raise _UnableError
        return _Text(graph, ids, batch, along)

    def row(self, value: str) -> int | None:
        """The axis of ``value`` along which tokens stand; of two the first."""
        shape = self.graph.shape(value) or ()
        return shape.index(self.along) if self.along in shape else None

    def cut(self, feeds: Feeds, start: int, end: int) -> dict[str, Array]:
        """Inputs for the tokens from ``start`` to ``end``; a mask may call its sizes otherwise."""
        whole = feeds[self.ids].shape
        along = {name: 1 if value.shape == whole else self.row(name) for name, value in feeds.items()}
        return {n: x if along[n] is None else x.take(range(start, end), along[n]) for n, x in feeds.items()}

    def none(self, value: str, count: int) -> Array:
        """What is kept of ``value`` before the first token of ``count`` texts."""
        shape, sizes = self.graph.shape(value) or (), {self.batch: count, self.along: 0}
        named = all(isinstance(size, int) or size in sizes for size in shape)
        if not named or self.graph.values[value].dtype not in _TYPES:
            raise _UnableError
        known = [size if isinstance(size, int) else sizes[size] for size in shape]
        return np.zeros(known, self.graph.values[value].dtype)


@dataclass
class _Ahead:
    """The changed graph, which takes the inputs ``takes``, and what is ``kept`` of each call."""

    text: _Text
    runner: Runner
    takes: set[str]
    kept: list[str]


class Onward:
    """Runs a graph for the last position of ``output``, [a, 1, c]: for a token, where it goes on from the call before.

    ``plain`` makes what runs the graph as it is, for its last position.
    """

    def __init__(self, model: OnnxModel, output: str, plain: Callable[[], Runner]) -> None:
        self._output, self._plain, self._due = output, cache(plain), 1
        self._ahead: _Ahead | None = None
        self._seen, self._held = dict[str, Array](), dict[str, Array]()
        with suppress(_UnableError, VerifyError):
            self._ahead = _ahead(model, output)

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        ahead = self._ahead
        if ahead is not None and feeds[ahead.text.ids].shape[1] < self._due:
            return self._further(ahead, feeds)
        right = self._plain()(feeds)
        if ahead is not None:
            self._due = max(self._due + 1, self._due * 3 // 2)
            self._ahead = ahead if self._agrees(ahead, feeds, right) else None
        return right

    def _agrees(self, ahead: _Ahead, feeds: Feeds, right: Mapping[str, Array]) -> bool:
        try:
            found, expected = (x[self._output].astype(np.float64) for x in (self._further(ahead, feeds), right))
        except VerifyError:
            return False
        same = found.shape == expected.shape
        return same and bool(np.abs(found - expected).max() <= _CLOSE * np.abs(expected).max())

    def _further(self, ahead: _Ahead, feeds: Feeds) -> dict[str, Array]:
        """From what was seen to the end of ``feeds``; from nothing where they begin otherwise."""
        text, length = ahead.text, self._length(ahead.text, feeds)
        if not length:
            self._held = {name: text.none(name, len(feeds[text.ids])) for name in ahead.kept}
        for end in range(length + 1, feeds[text.ids].shape[1] + 1):
            seen, self._seen = text.cut(feeds, 0, end), {}
            given = text.cut(feeds, end - 1, end) | {_WHOLE + name: value for name, value in seen.items()}
            given |= {_PAST + name: value for name, value in self._held.items()}
            found = ahead.runner({name: value for name, value in given.items() if name in ahead.takes})
            self._seen, self._held = seen, {name: found[_KEPT + name] for name in ahead.kept}
        return {self._output: found[self._output]}

    def _length(self, text: _Text, feeds: Feeds) -> int:
        """How many tokens of ``feeds`` are what was seen; 0 where anything differs, or nothing is new."""
        length = self._seen[text.ids].shape[1] if self._seen.keys() == feeds.keys() else 0
        if not 0 < length < feeds[text.ids].shape[1]:
            return 0
        before = text.cut(feeds, 0, length)
        return length if all(np.array_equal(before[name], value) for name, value in self._seen.items()) else 0


def _ahead(model: OnnxModel, output: str) -> _Ahead:
    text, made = _Text.of(model.graph), model.copy()
    proto = made.proto
    knows = _knowing(proto, text.ids)
    kept, wanted, nodes = list[str](), set[str](), list[onnx.NodeProto]()
    for node in proto.graph.node:
        if node.op_type not in _SIZES and not knows.isdisjoint(node.input):
            if bodies(node):
                raise _UnableError
            for i, name in enumerate(node.input):
                if name not in knows:
                    nodes += _beside(text, node, i, wanted)
                elif node.op_type == "MatMul" and i == 1:
                    nodes += _behind(text, node, kept)
        nodes.append(node)
    beside, graph = _copied(proto, wanted), proto.graph
    read = wanted.union(*({name.removeprefix(_WHOLE) for name in node.input} for node in beside))
    given = {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)}
    whole = {_WHOLE + name: given[name] for name in model.graph.inputs if name in read}
    grown = {name: helper.np_dtype_to_tensor_dtype(text.none(name, 1).dtype) for name in kept}
    ins = {**whole, **{_PAST + name: kind for name, kind in grown.items()}}
    outs = {output: given[output], **{_KEPT + name: kind for name, kind in grown.items()}}
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend([*beside, *nodes])
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), _END))
    graph.input.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in ins.items())
    graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in outs.items())
    made.written = None
    return _Ahead(text, run(made, threads=THREADS), {*model.graph.inputs, *ins}, kept)


def _knowing(proto: onnx.ModelProto, ids: str) -> set[str]:
    """What is computed from tokens, and not from how many there are alone."""
    found = {ids}
    for node in proto.graph.node:
        if node.op_type not in _SIZES and not found.isdisjoint(node.input):
            found.update(filter(None, node.output))
    return found


def _behind(text: _Text, node: onnx.NodeProto, kept: list[str]) -> list[onnx.NodeProto]:
    """Let a product see all rows of its second input; what puts them together, where nobody has."""
    first, name = node.input
    axis = text.row(name)
    if axis is None or text.row(first) != len(text.graph.shape(first) or ()) - 2:
        raise _UnableError
    node.input[1] = _KEPT + name
    if name in kept:
        return []
    kept.append(name)
    return [helper.make_node("Concat", [_PAST + name, name], [_KEPT + name], axis=axis)]


def _beside(text: _Text, node: onnx.NodeProto, i: int, wanted: set[str]) -> list[onnx.NodeProto]:
    """Let what is as long as the text, and knows no tokens, meet the new one: its last row, or whole along keys."""
    name, made = node.input[i], node.output[0]
    if text.row(name) is None:
        return []
    row, ranks = text.row(made), [len(text.graph.shape(value) or ()) for value in (made, name)]
    if node.op_type not in _ELEMENTWISE or row is None:
        raise _UnableError
    wanted.add(name)
    node.input[i] = _WHOLE + name
    if row - ranks[0] != (text.row(name) or 0) - ranks[1]:
        return []
    node.input[i] = f"{_END}{made}/{i}"
    return [helper.make_node("Gather", [_WHOLE + name, _END], [node.input[i]], axis=text.row(name))]


def _copied(proto: onnx.ModelProto, wanted: set[str]) -> list[onnx.NodeProto]:
    """What computes ``wanted`` once more, for the whole text; constants are shared."""
    needed, held = set(wanted), {tensor.name for tensor in proto.graph.initializer} | {""}
    for node in reversed(proto.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
    found = []
    for node in proto.graph.node:
        if needed.isdisjoint(node.output):
            continue
        if bodies(node):
            raise _UnableError
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = _WHOLE + node.name
        copy.input[:] = [name if name in held else _WHOLE + name for name in node.input]
        copy.output[:] = [_WHOLE + name if name else "" for name in node.output]
        found.append(copy)
    return found
