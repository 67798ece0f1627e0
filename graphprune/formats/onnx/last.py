"""A model that is asked for the end of an output only: the last matrix product need not run for all that stands before.

The cut is made as far up as positions stay apart from each other. Language models multiply each position with their
whole vocabulary last: for one that is asked for its next word, that is most of what leaves the session.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from graphprune.formats import THREADS
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.onward import Onward
from graphprune.formats.onnx.runtime import Runner, run
from graphprune.graph import Graph, Node

_ALONE = ("cast", "identity", "neg", "tanh")
_WITH_A_VECTOR = ("add", "div", "mul", "sub")


def last(model: OnnxModel, output: str) -> Onward:
    """Runs ``model`` for the last position along axis 1 of ``output`` [a, b, c]: the result is [a, 1, c]."""
    return Onward(model, output, lambda: _end(model, output))


def _end(model: OnnxModel, output: str) -> Runner:
    """The same by a run over all positions."""
    made = model.copy()
    proto = made.proto
    value, whole = _upstream(model.graph, output), "graphprune/whole"
    at = next(i for i, node in enumerate(proto.graph.node) if value in node.output)
    maker = proto.graph.node[at]
    maker.output[:] = [whole if name == value else name for name in maker.output]
    end = onnx.numpy_helper.from_array(np.array([-1], np.int64), "graphprune/end")
    proto.graph.initializer.append(end)
    proto.graph.node.insert(at + 1, helper.make_node("Gather", [whole, end.name], [value], axis=1))
    kind = next(info.type.tensor_type.elem_type for info in proto.graph.output if info.name == output)
    del proto.graph.output[:], proto.graph.value_info[:]
    proto.graph.output.append(helper.make_tensor_value_info(output, kind, None))
    return run(made, threads=THREADS)


def _upstream(graph: Graph, value: str) -> str:
    """The furthest value from which ``value`` is computed position by position."""
    while (node := graph.producers.get(value)) is not None:
        above = _source(graph, node)
        alone = len(graph.consumers.get(above, ())) == 1 and above not in graph.outputs and above in graph.producers
        if not alone or len(graph.shape(above) or ()) != 3:
            return value
        value = above
    return value


def _source(graph: Graph, node: Node) -> str:
    """What ``node`` computes each position from, alone; "" where it may look at others."""
    ranks = [len(graph.shape(name) or ()) for name in node.inputs]
    if node.op in _ALONE or (node.op == "matmul" and ranks[1] == 2):
        return node.inputs[0]
    if node.op in _WITH_A_VECTOR and min(ranks) < 2:
        return node.inputs[ranks.index(max(ranks))]
    return ""
