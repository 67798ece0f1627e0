"""Model-local functions: each call is read as the nodes that it stands for, so that these are ops like any others.

Who only changes nodes outside of functions goes on with the model as it was written, calls and all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import inliner

from graphprune.errors import ReadError
from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.bodies import bodies
from graphprune.formats.onnx.model import OnnxModel, copy_without_weights

MOST = 50_000
"""Nodes that calls may stand for: functions that call functions can be worth more than memory holds."""

Key = tuple[str, str, str]


def spelled_out(model: OnnxModel) -> OnnxModel:
    """``model`` with the nodes that calls stand for in their place; the model as written goes along as ``written``.

    Functions of another opset stay calls, of an op without a rule. ReadError where functions call themselves, or calls
    stand for too much: onnx and ONNX Runtime would go through all of it.
    """
    if not model.proto.functions:
        return model
    if _worth(model.proto) > MOST:
        raise ReadError(
            f"the calls of local functions stand for more than {MOST:,} nodes",
            hint="export the model again, without functions that call others over and over",
        )
    written = copy_without_weights(model.proto)
    bare = copy_without_weights(model.proto)
    bare.graph.initializer.extend(tensors.without_data(tensor) for tensor in model.proto.graph.initializer)
    _write_defaults(bare)
    try:
        bare = inliner.inline_local_functions(bare)
    except (RuntimeError, ValueError):
        return model
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(model.proto.graph.initializer)
    return replace(model, proto=bare, written=written)


def _write_defaults(proto: onnx.ModelProto) -> None:
    """Give every call the attributes that it leaves to their defaults, which the inliner (1.23) would forget."""
    functions = {_key(function.domain, function.name, function): function for function in proto.functions}
    for node in _nodes([*proto.graph.node, *(node for function in proto.functions for node in function.node)]):
        function = functions.get(_key(node.domain, node.op_type, node))
        given = {attribute.name for attribute in node.attribute}
        node.attribute.extend(a for a in (function.attribute_proto if function else ()) if a.name not in given)


def _key(domain: str, name: str, item: onnx.NodeProto | onnx.FunctionProto) -> Key:
    return "" if domain == "ai.onnx" else domain, name, item.overload


def _worth(proto: onnx.ModelProto) -> int:
    """Nodes of all calls in the main graph, spelled out; ReadError where a function calls itself."""
    calls = {_key(f.domain, f.name, f): Counter(_kinds(f.node)) for f in proto.functions}
    order = TopologicalSorter({key: inner.keys() & calls.keys() for key, inner in calls.items()})
    worth: dict[Key, int] = {}
    try:
        for key in order.static_order():
            worth[key] = sum(count * worth.get(kind, 1) for kind, count in calls[key].items())
    except CycleError as error:
        ring = " > ".join(name for _, name, _ in error.args[1])
        raise ReadError(f"local functions call themselves: {ring}", hint="export the model again") from error
    return sum(worth.get(kind, 1) for kind in _kinds(proto.graph.node))


def _kinds(nodes: Iterable[onnx.NodeProto]) -> Iterator[Key]:
    return (_key(node.domain, node.op_type, node) for node in _nodes(nodes))


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """``nodes`` and those in their bodies."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        yield node
        todo += [one for body in bodies(node) for one in body.node]


def remarks(model: OnnxModel, made: OnnxModel) -> list[str]:
    """What a report has to say of ``made``, a cut of ``model``: that calls are gone."""
    if model.written is None or made.proto.functions:
        return []
    names = ", ".join(function.name for function in model.written.functions)
    return [f"calls of model-local functions were replaced by the nodes they stand for, as some were cut: {names}"]
