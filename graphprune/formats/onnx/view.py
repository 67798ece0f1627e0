"""The format-free Graph of an ONNX model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.bodies import Place, captured, opset, places, scopes
from graphprune.formats.onnx.model import Edit, OnnxModel, constant_tensor
from graphprune.formats.onnx.names import STANDARD, rule_name
from graphprune.formats.onnx.probe import probe
from graphprune.formats.onnx.shapes import skeleton, static_shapes
from graphprune.graph import Array, Graph, Node, Shape, Value, Weight

_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_DEFAULTS = 4
"""The version of the format since which a weight that is listed as an input is only its default; before, all were."""
_INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 9, 12, 13))


def view(model: OnnxModel) -> Graph:
    """Nodes, values and weights of the model, bodies included; shapes by inference, then by probing."""
    proto, weights = model.proto, _weights(model)
    if model.like is not None:
        found = model.like.values.values()
        shapes = {value.name: value.shape for value in found if value.shape is not None}
        return _graph(proto, weights, shapes, {value.name: value.dtype for value in found}, dict(model.like.example))
    known, dtypes = static_shapes(skeleton(model))
    for name, weight in weights.items():
        known[name], dtypes[name] = weight.shape, weight.dtype
    example = probe(model, _graph(proto, weights, known, dtypes, {}), known, dtypes)
    return _graph(proto, weights, known, dtypes, example)


def _graph(
    proto: onnx.ModelProto,
    weights: dict[str, Weight],
    known: dict[str, Shape],
    dtypes: dict[str, str],
    example: dict[str, int],
) -> Graph:
    functions = {(f.domain, f.name) for f in proto.functions}
    made = [_node(i, place, functions) for i, place in enumerate(places(proto, weights))]
    values = {name: Value(name, known.get(name), dtypes.get(name, "undefined")) for name in {*known, *dtypes}}
    outside = [info.name for info in proto.graph.input if info.name not in weights]
    outside += [sparse.values.name for sparse in proto.graph.sparse_initializer]
    ends = tuple(o.name for o in proto.graph.output)
    listed = {info.name for info in proto.graph.input if proto.ir_version >= _DEFAULTS}
    defaults = frozenset(listed & weights.keys())
    return Graph(
        tuple(made), values, weights, tuple(outside), ends, example, opset(proto), resizable=True, defaults=defaults
    )


def _node(index: int, place: Place, functions: set[tuple[str, str]]) -> Node:
    node = place.node
    op = rule_name(node.op_type, node.domain)
    if (node.domain, node.op_type) in functions:
        op = f"function {op}"
    attrs = {a.name: _attribute(a) for a in node.attribute}
    if op == "cast":
        attrs["integer"] = attrs.get("to") in _INTEGERS
    outer: tuple[str, ...] = ()
    ends = tuple(map(place.scope.name, node.input)), tuple(map(place.scope.name, node.output))
    if place.inner:
        op, *ends = _gate(op, place, attrs)  # type: ignore[assignment]
    else:
        outer = tuple(map(place.scope.name, captured(node)))
    return Node(index, op, node.name, *ends, attrs, node.op_type, outer, _scope(node), place.body)


def _gate(op: str, place: Place, attrs: dict[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Where values go into a body, or come out of one: what a node with bodies is between the nodes inside them."""
    node, scope, inner = place.node, place.scope, place.inner
    inputs, outputs = ([scope.name(name) for name in names] for names in (node.input, node.output))
    starts = [inner[0].name(info.name) for info in inner[0].graph.input]
    ends = [[body.name(info.name) for info in body.graph.output] for body in inner]
    if op == "if":
        return ("if_enter", tuple(inputs), ()) if place.enters else (op, (*inputs, *ends[0], *ends[1]), tuple(outputs))
    scanned = attrs.get("num_scan_inputs", 0)
    ahead = 2 if op == "loop" else 0
    attrs["states"] = states = len(starts) - ahead - scanned
    if place.enters:
        return f"{op}_enter", tuple(inputs), tuple(starts)
    ends[0] = ends[0] if op == "loop" else ["", *ends[0]]
    return op, (ends[0][0], *starts[ahead : ahead + states], *ends[0][1:]), tuple(outputs)


def _scope(node: onnx.NodeProto) -> str:
    """The module path that torch's exporters write: the newer one as metadata, the older one as the node's name."""
    written = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    scopes = ["".join(quoted) for quoted in _QUOTED.findall(str(written))]  # bytes where it is no text
    if len(scopes) > 1:
        return scopes[-2]
    path: list[str] = []
    for part in str(node.name).split("/")[1:-1]:  # bytes where a damaged file holds no text
        if path and part.startswith(f"{path[-1]}."):  # the entries of a list carry its name again
            path.pop()
        path.append(part)
    return ".".join(path)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value) if value.data_location != onnx.TensorProto.EXTERNAL else None
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _weights(model: OnnxModel) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    for scope in scopes(model.proto):
        body = scope.number > 0
        given = {info.name for info in scope.graph.input if body}
        for tensor in scope.graph.initializer:
            if tensor.name in given:  # by the node that the body is in
                continue
            if not body and tensors.is_external(tensor) and tensor.name not in model.edits:
                tensors.check_external(tensor, model.folder)
            name, edits = scope.name(tensor.name), {} if body else model.edits
            load = partial(_load, edits, tensor, model.folder)
            found[name] = Weight(name, tuple(tensor.dims), tensors.dtype_name(tensor.data_type), load)
        for node in scope.graph.node:
            if node.op_type == "Constant" and node.domain in STANDARD and node.output:
                value = _constant(node, scope.name(node.output[0]))
                if value is not None:
                    found[value.name] = value
    return found


def _load(edits: Mapping[str, Edit], tensor: onnx.TensorProto, folder: Path | None) -> Array:
    edit = edits.get(tensor.name)
    return edit.array() if edit is not None else tensors.to_array(tensor, folder)


def _constant(node: onnx.NodeProto, name: str) -> Weight | None:
    tensor = constant_tensor(node)
    if tensor is not None:
        dtype = tensors.dtype_name(tensor.data_type)
        return Weight(name, tuple(tensor.dims), dtype, partial(tensors.to_array, tensor, None))
    for attribute in node.attribute:
        if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
            kind = np.float32 if "float" in attribute.name else np.int64
            array = np.asarray(onnx.helper.get_attribute_value(attribute), kind)
            return Weight(name, array.shape, str(array.dtype), partial(np.asarray, array))
    return None
