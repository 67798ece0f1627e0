"""Moments of activations, added up inside ONNX Runtime: only sums leave the session, never the activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphprune.consumers import Site
from graphprune.formats.onnx.model import OnnxModel, constant_tensor
from graphprune.formats.onnx.runtime import Runner, session
from graphprune.formats.onnx.tensors import from_array
from graphprune.graph import Array, Graph
from graphprune.stats import Batches, Moments

_FLOAT = onnx.TensorProto.FLOAT
_AXES_ARE_AN_INPUT = 13
"""The opset since which ReduceSum takes its axes as an input."""


def moments(model: OnnxModel, sites: Sequence[Site], batches: Batches, *, threads: int = 1) -> dict[Site, Moments]:
    """Count, sum and sum of outer products of the vectors along each site, over all ``batches``, in one pass."""
    runner = Runner(session(OnnxModel(_watched(model, sites), model.folder), threads=threads))
    graph = model.graph
    widths = [graph.extent((graph.shape(site.value) or ())[site.axis]) for site in sites]
    found = {site: Moments(0, np.zeros(n), np.zeros((n, n))) for site, n in zip(sites, widths, strict=True)}
    for feeds in batches:
        sums = runner(feeds)
        for number, moments in enumerate(found.values()):
            count, total, second = (sums[f"{_name(number)}/{part}"] for part in ("count", "total", "second"))
            moments.add(int(count[0]), total, second)
    return found


def _name(number: int) -> str:
    return f"graphprune/moments_{number}"


def _watched(model: OnnxModel, sites: Sequence[Site]) -> onnx.ModelProto:
    """The model with the sums in the place of its outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.inline())
    del proto.graph.output[:]
    for number, site in enumerate(sites):
        nodes, constants = _sums(model.graph, site, _name(number))
        proto.graph.node.extend(nodes)
        proto.graph.initializer.extend(constants)
        proto.graph.output.extend(
            helper.make_tensor_value_info(f"{_name(number)}/{part}", kind, None)
            for part, kind in (("count", onnx.TensorProto.INT64), ("total", _FLOAT), ("second", _FLOAT))
        )
    return proto


def _sums(graph: Graph, site: Site, name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The vectors as rows of a matrix in float32; how many, their sum, their outer products."""
    rank = len(graph.shape(site.value) or ())
    order = [axis for axis in range(rank) if axis != site.axis] + [site.axis]
    width = graph.extent((graph.shape(site.value) or ())[site.axis])
    numbers: Mapping[str, Sequence[int]] = {"shape": [-1, width], "zero": [0], "first": [0], "end": [1]}
    constants = [onnx.numpy_helper.from_array(np.asarray(v, np.int64), f"{name}/{k}") for k, v in numbers.items()]

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, list(inputs), [f"{name}/{output}"], f"{name}/{output}", **attributes)

    along_rows: dict[str, Any] = {} if graph.opset >= _AXES_ARE_AN_INPUT else {"axes": [0]}
    given = [f"{name}/rows", f"{name}/zero"][: 2 - len(along_rows)]
    nodes = [
        node("Cast", [site.value], "float", to=_FLOAT),
        node("Transpose", [f"{name}/float"], "last", perm=order),
        node("Reshape", [f"{name}/last", f"{name}/shape"], "rows"),
        node("Shape", [f"{name}/rows"], "size"),
        node("Slice", [f"{name}/size", f"{name}/first", f"{name}/end"], "count"),
        node("ReduceSum", given, "total", keepdims=0, **along_rows),
        node("Gemm", [f"{name}/rows", f"{name}/rows"], "second", transA=1),
    ]
    return nodes, constants


def replaced(model: OnnxModel, values: Mapping[str, Array]) -> OnnxModel:
    """The model with ``values`` in the place of the weights of those names, each of the same shape and type."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    held |= {node.output[0]: tensor for node in proto.graph.node if (tensor := constant_tensor(node)) is not None}
    for name, value in values.items():
        held[name].CopyFrom(from_array(value, held[name]))
    return OnnxModel(proto, model.folder, given=model.given)
