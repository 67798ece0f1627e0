"""Moments of activations, added up inside ONNX Runtime: only sums leave the session, never the activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphprune.consumers import Site, features
from graphprune.formats import THREADS
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.runtime import run
from graphprune.graph import Array, Graph
from graphprune.stats import Batches, Moments

_FLOAT = onnx.TensorProto.FLOAT
_PARTS = {"count": onnx.TensorProto.INT64, "total": _FLOAT, "second": _FLOAT, "absolute": _FLOAT}
"""What is added up at a site, as `Moments.add` takes it, and the type that it leaves the session with."""
_AXES_ARE_AN_INPUT = 13
"""The opset since which ReduceSum takes its axes as an input."""


def moments(model: OnnxModel, sites: Sequence[Site], batches: Batches) -> dict[Site, Moments]:
    """`Moments` of the vectors along each site, over all ``batches``, in one pass."""
    runner = run(_watched(model, sites), threads=THREADS)
    found = {site: Moments.none(features(model.graph, site)) for site in sites}
    for feeds in batches:
        _add_up(runner(feeds), found)
    return found


def _add_up(sums: Mapping[str, Array], found: Mapping[Site, Moments]) -> None:
    for number, moments in enumerate(found.values()):
        count, *parts = (sums[f"{_name(number)}/{part}"] for part in _PARTS)
        moments.add(int(count[0]), *parts)


def _name(number: int) -> str:
    return f"graphprune/moments_{number}"


def _watched(model: OnnxModel, sites: Sequence[Site]) -> OnnxModel:
    """The model with the sums in the place of its outputs."""
    made = model.copy()
    proto = made.proto
    del proto.graph.output[:]
    for number, site in enumerate(sites):
        nodes, constants = _sums(model.graph, site, _name(number))
        proto.graph.node.extend(nodes)
        proto.graph.initializer.extend(constants)
        proto.graph.output.extend(
            helper.make_tensor_value_info(f"{_name(number)}/{part}", kind, None) for part, kind in _PARTS.items()
        )
    return made


def _sums(graph: Graph, site: Site, name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The vectors as rows of a matrix in float32; how many, their sum, their outer products, the sum of their sizes.

    The elements of a window are made channels by a convolution with unit kernels, those of one channel side by side.
    """
    rank = len(graph.shape(site.value) or ())
    order = [axis for axis in range(rank) if axis != site.axis] + [site.axis]
    width = features(graph, site)
    numbers: Mapping[str, Sequence[int]] = {"shape": [-1, width], "zero": [0], "first": [0], "end": [1]}
    constants = [onnx.numpy_helper.from_array(np.asarray(v, np.int64), f"{name}/{k}") for k, v in numbers.items()]

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, list(inputs), [f"{name}/{output}"], f"{name}/{output}", **attributes)

    seen, gather = f"{name}/float", []
    if site.window:
        elements = math.prod(site.window.kernel)
        units = np.eye(elements, dtype=np.float32).reshape(elements, 1, *site.window.kernel)
        every = np.tile(units, (width // elements, *[1] * (rank - 1)))
        constants.append(onnx.numpy_helper.from_array(every, f"{name}/units"))
        where = dict(site.window.attributes)
        gather = [node("Conv", [seen, f"{name}/units"], "windows", group=width // elements, **where)]
        seen = f"{name}/windows"
    along_rows: dict[str, Any] = {} if graph.opset >= _AXES_ARE_AN_INPUT else {"axes": [0]}
    zero = [f"{name}/zero"][len(along_rows) :]
    nodes = [
        node("Cast", [site.value], "float", to=_FLOAT),
        *gather,
        node("Transpose", [seen], "last", perm=order),
        node("Reshape", [f"{name}/last", f"{name}/shape"], "rows"),
        node("Shape", [f"{name}/rows"], "size"),
        node("Slice", [f"{name}/size", f"{name}/first", f"{name}/end"], "count"),
        node("ReduceSum", [f"{name}/rows", *zero], "total", keepdims=0, **along_rows),
        node("Gemm", [f"{name}/rows", f"{name}/rows"], "second", transA=1),
        node("Abs", [f"{name}/rows"], "sizes"),
        node("ReduceSum", [f"{name}/sizes", *zero], "absolute", keepdims=0, **along_rows),
    ]
    return nodes, constants


def replaced(model: OnnxModel, values: Mapping[str, Array], add: Mapping[str, Array]) -> OnnxModel:
    """The model with ``values`` in the place of the weights of those names, each of the same shape and type.

    ``add`` are new constants, each added to the activation of that name.
    """
    made = model.copy()
    made.put(values)
    if add:
        made.written = None
    else:
        made.like = model.graph
    for name, value in add.items():
        _insert(made.proto.graph, name, value)
    return made


def _insert(graph: onnx.GraphProto, name: str, value: Array) -> None:
    """Let a node behind the one that makes ``name`` add ``value`` to it; everybody else reads the sum."""
    at = next(i for i, node in enumerate(graph.node) if name in node.output)
    before, bias = f"{name}/unbiased", f"{name}/bias"
    outputs = graph.node[at].output
    outputs[list(outputs).index(name)] = before
    graph.node.insert(at + 1, helper.make_node("Add", [before, bias], [name], f"{name}/add"))
    graph.initializer.append(onnx.numpy_helper.from_array(value, bias))
