"""The graphs of a file: the main one and the bodies of If, Loop and Scan, whose values are named apart.

A body may use names that another body uses too. Everything that looks into bodies walks them here, in one order, and
calls a value by its own name where that is the only one, else by a name that the file does not hold.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from graphprune.formats.onnx.names import STANDARD
from graphprune.graph import Body

_ENTERED = ("If", "Loop", "Scan")
_BATCHED_SCAN = 8
"""The one opset in which Scan has an axis of batches and lengths of sequences."""


@dataclass(frozen=True)
class Scope:
    """Graph ``number`` of the file; ``names`` are those of the values that it sees, by what the file calls them.

    ``inner`` are the bodies of its nodes, by where these stand, as far as they are entered.
    """

    number: int
    graph: onnx.GraphProto
    names: Mapping[str, str]
    inner: dict[int, tuple[Scope, ...]]

    def name(self, written: str) -> str:
        """What the value ``written`` in this graph is called by everything outside the file."""
        return self.names.get(written, written)


@dataclass(frozen=True)
class Place:
    """Where a node of the view stands: node ``at`` of ``scope``, inside the bodies ``body``.

    ``inner`` are its own bodies where they are entered; with ``enters`` it stands before them, else behind.
    """

    scope: Scope
    at: int
    body: Body = ()
    inner: tuple[Scope, ...] = ()
    enters: bool = False

    @property
    def node(self) -> onnx.NodeProto:
        """The node as the file has it."""
        found: onnx.NodeProto = self.scope.graph.node[self.at]
        return found


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside ``node``, in the order of its attributes; those of an If begin with what is done if so."""
    found = {a.name: [a.g] if a.type == onnx.AttributeProto.GRAPH else [*a.graphs] for a in node.attribute}
    if node.op_type == "If" and node.domain in STANDARD:
        found = {name: found.get(name, []) for name in ("then_branch", "else_branch")}
    return [body for graphs in found.values() for body in graphs]


def entered(node: onnx.NodeProto, opset: int) -> bool:
    """Whether the bodies of ``node`` are read as a part of the model: those that take and give what the node does."""
    known = node.op_type in _ENTERED and node.domain in STANDARD and bool(bodies(node))
    return known and (node.op_type, opset) != ("Scan", _BATCHED_SCAN) and all(_fits(node, b) for b in bodies(node))


def _fits(node: onnx.NodeProto, body: onnx.GraphProto) -> bool:
    """Whether ``body`` has as many ends as ``node`` needs; that of a Loop counts, and says whether to go on."""
    loop = node.op_type == "Loop"
    takes = node.op_type == "If" or len(body.input) == max(2 * loop, len(node.input))
    return takes and len(body.output) >= len(node.output) + loop


def opset(proto: onnx.ModelProto) -> int:
    """The version of the standard's ops that ``proto`` uses."""
    return max((entry.version for entry in proto.opset_import if entry.domain in STANDARD), default=1)


def scopes(proto: onnx.ModelProto) -> list[Scope]:
    """The main graph, and after each graph the bodies inside it."""
    found: list[Scope] = []
    _walk(proto.graph, {}, opset(proto), set(), found)
    return found


def _walk(
    graph: onnx.GraphProto, outside: Mapping[str, str], version: int, taken: set[str], found: list[Scope]
) -> Scope:
    own = [item.name for item in (*graph.input, *graph.initializer)]
    own += [name for node in graph.node for name in node.output if name]
    names = dict(outside)
    for name in dict.fromkeys(own):
        names[name] = _apart(name, taken)
        taken.add(names[name])
    found.append(Scope(len(found), graph, names, {}))
    scope = found[-1]
    for at, node in enumerate(graph.node):
        if entered(node, version):
            scope.inner[at] = tuple(_walk(body, names, version, taken, found) for body in bodies(node))
    return scope


def _apart(name: str, taken: set[str]) -> str:
    number, wish = 1, name
    while wish in taken:
        number += 1
        wish = f"{name}@{number}"
    return wish


def captured(node: onnx.NodeProto) -> list[str]:
    """Names that the bodies of ``node`` read from outside themselves."""
    return list(dict.fromkeys(name for body in bodies(node) for name in _captured(body)))


def _captured(body: onnx.GraphProto) -> list[str]:
    inside = {t.name for t in body.initializer} | {i.name for i in body.input}
    names = []
    for node in body.node:
        names += [name for name in (*node.input, *captured(node)) if name and name not in inside]
        inside |= set(node.output)
    return names + [o.name for o in body.output if o.name not in inside]


def places(proto: onnx.ModelProto, weights: Container[str]) -> list[Place]:
    """For each node of the view its place: in execution order, a node after its bodies, and without constants."""
    found: list[Place] = []
    _stand(scopes(proto)[0], (), weights, found)
    return found


def _stand(scope: Scope, body: Body, weights: Container[str], found: list[Place]) -> None:
    for at, node in enumerate(scope.graph.node):
        if node.op_type == "Constant" and scope.name(node.output[0]) in weights:
            continue
        inner, here = scope.inner.get(at, ()), len(found)
        if inner:
            found.append(Place(scope, at, body, inner, enters=True))
        for branch, one in enumerate(inner):
            _stand(one, (*body, (here, branch)), weights, found)
        found.append(Place(scope, at, body, inner))


FORCED = "graphprune/branch"


def force(proto: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], branch: int) -> None:
    """Let each of ``nodes``, If of ``proto`` in whatever body, take this branch."""
    for node in nodes:
        node.input[0] = FORCED
    value = onnx.numpy_helper.from_array(np.array(branch == 0))
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], [FORCED], value=value))
