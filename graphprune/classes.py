"""Whether an output chooses between classes: it ends in a softmax, or in a linear layer with nothing behind."""

from __future__ import annotations

from graphprune.graph import Graph, Node

_PASS = ("identity", "cast", "reshape", "flatten", "squeeze", "unsqueeze", "slice", "dropout")
_POOL = ("global_average_pool", "reduce_mean", "image")
_SCALE = ("add", "sub", "mul", "div", "to", "_to_copy")
_LINEAR = {"matmul": -1, "gemm": -1, "linear": -1, "conv": 1}
"""The axis that the outputs of a layer are on."""


def classes(graph: Graph, name: str) -> str | None:
    """Whether the last axis of an output is a choice: "probabilities", "logits", or None."""
    shape, pooled = graph.shape(name), False
    width = shape[-1] if shape else None
    node = graph.producers.get(name)
    while node is not None and shape is not None:
        found = graph.shape(node.outputs[0])
        if node.op in _LINEAR and len(node.inputs) > 1 and _constant(graph, node.inputs[1]):
            own = found[_LINEAR[node.op]] if found else None
            return "logits" if isinstance(width, int) and own == width > 1 else None
        if "softmax" in node.op and not pooled:
            rank, axis = len(found or ()), node.attrs.get("axis", -1 if graph.opset >= 13 else 1)
            last = rank > 0 and axis % rank == rank - 1 and found is not None and found[-1] == width
            return ("logits" if "log" in node.kind.lower() else "probabilities") if last else None
        pooled = pooled or node.op in _POOL
        node = _before(graph, node)
    return None


def _before(graph: Graph, node: Node) -> Node | None:
    """The node whose positions this one hands on: shapes, pools, what is scaled or shifted by a constant."""
    moving = [name for name in node.inputs if name and not _constant(graph, name)]
    if node.op in (*_PASS, *_POOL):
        return graph.producers.get(node.inputs[0])
    scaled = node.op in _SCALE or (node.op == "pointwise" and node.kind in _SCALE)
    return graph.producers.get(moving[0]) if scaled and len(moving) == 1 else None


def _constant(graph: Graph, name: str, depth: int = 8) -> bool:
    """Whether a value is a weight, or made of weights alone."""
    node = graph.producers.get(name)
    if name in graph.weights or name in graph.known or not name:
        return True
    return (
        depth > 0
        and node is not None
        and bool(node.inputs)
        and all(_constant(graph, i, depth - 1) for i in node.inputs)
    )
