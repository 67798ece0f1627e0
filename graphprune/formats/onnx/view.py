"""The format-free Graph of an ONNX model."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.model import Edit, OnnxModel, constant_tensor
from graphprune.formats.onnx.names import STANDARD, rule_name
from graphprune.formats.onnx.probe import probe
from graphprune.formats.onnx.shapes import skeleton, static_shapes
from graphprune.graph import Array, Graph, Node, Shape, Value, Weight

_INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 9, 12, 13))


def view(model: OnnxModel) -> Graph:
    """Nodes, values and weights of the main graph; shapes by inference, then by probing."""
    proto = model.proto
    known, dtypes = static_shapes(skeleton(model))
    weights = _weights(model)
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
    nodes = [n for n in proto.graph.node if not (n.op_type == "Constant" and n.output[0] in weights)]
    made = tuple(_node(i, node, functions) for i, node in enumerate(nodes))
    values = {name: Value(name, known.get(name), dtypes.get(name, "undefined")) for name in {*known, *dtypes}}
    opset = max((o.version for o in proto.opset_import if o.domain in STANDARD), default=1)
    outside = [info.name for info in proto.graph.input if info.name not in weights]
    outside += [sparse.values.name for sparse in proto.graph.sparse_initializer]
    return Graph(
        made, values, weights, tuple(outside), tuple(o.name for o in proto.graph.output), example, opset, resizable=True
    )


def _node(index: int, node: onnx.NodeProto, functions: set[tuple[str, str]]) -> Node:
    op = rule_name(node.op_type, node.domain)
    if (node.domain, node.op_type) in functions:
        op = f"function {op}"
    outer: list[str] = []
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            outer += _captured(body)
    attrs = {a.name: _attribute(a) for a in node.attribute}
    if op == "cast":
        attrs["integer"] = attrs.get("to") in _INTEGERS
    captured = tuple(dict.fromkeys(outer))
    ends = tuple(node.input), tuple(node.output)
    return Node(index, op, node.name, *ends, attrs, node.op_type, captured, _scope(node))


def _scope(node: onnx.NodeProto) -> str:
    """The module path that torch's exporters write: the newer one as metadata, the older one as the node's name."""
    written = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    try:
        scopes = literal_eval(written) if written else []
    except (ValueError, SyntaxError):
        return ""
    if isinstance(scopes, list) and len(scopes) > 1:
        return str(scopes[-2])
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


def _captured(body: onnx.GraphProto) -> list[str]:
    """Names that a body reads from outside itself."""
    inside = {t.name for t in body.initializer} | {i.name for i in body.input}
    names = []
    for node in body.node:
        names += [name for name in node.input if name and name not in inside]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names += [name for name in _captured(inner) if name not in inside]
        inside |= set(node.output)
    return names + [o.name for o in body.output if o.name not in inside]


def _weights(model: OnnxModel) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    for tensor in model.proto.graph.initializer:
        if tensors.is_external(tensor) and tensor.name not in model.edits:
            tensors.check_external(tensor, model.folder)
        found[tensor.name] = Weight(
            tensor.name,
            tuple(tensor.dims),
            tensors.dtype_name(tensor.data_type),
            partial(_load, model.edits, tensor, model.folder),
        )
    for node in model.proto.graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD and node.output:
            value = _constant(node)
            if value is not None:
                found[node.output[0]] = value
    return found


def _load(edits: Mapping[str, Edit], tensor: onnx.TensorProto, folder: Path | None) -> Array:
    edit = edits.get(tensor.name)
    return edit.array() if edit is not None else tensors.to_array(tensor, folder)


def _constant(node: onnx.NodeProto) -> Weight | None:
    tensor = constant_tensor(node)
    name = node.output[0]
    if tensor is not None:
        dtype = tensors.dtype_name(tensor.data_type)
        return Weight(name, tuple(tensor.dims), dtype, partial(tensors.to_array, tensor, None))
    for attribute in node.attribute:
        if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
            kind = np.float32 if "float" in attribute.name else np.int64
            array = np.asarray(onnx.helper.get_attribute_value(attribute), kind)
            return Weight(name, array.shape, str(array.dtype), partial(np.asarray, array))
    return None
