"""ONNX op types under the names that rules use."""

from __future__ import annotations

import re

import onnx

_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SPECIAL = {
    "BatchNormalization": "batch_norm",
    "Col2Im": "col2im",
    "GroupNormalization": "group_norm",
    "InstanceNormalization": "instance_norm",
    "IsNaN": "is_nan",
    "LayerNormalization": "layer_norm",
    "MatMul": "matmul",
    "PRelu": "prelu",
    "RMSNormalization": "rms_norm",
    "SimplifiedLayerNormalization": "rms_norm",
    "SwiGLU": "swiglu",
}
STANDARD = ("", "ai.onnx")
RUNTIME = "com.microsoft"
_EXTENSIONS = ("LayerNormalization", "SimplifiedLayerNormalization")
"""Ops that ONNX Runtime has in the domain of the standard at every opset, in the files that it optimises."""


def rule_name(op_type: str, domain: str = "") -> str:
    """The normalised name of an op: snake case, other domains in front.

    >>> rule_name("ConvTranspose"), rule_name("MatMul"), rule_name("BiasGelu", "com.microsoft")
    ('conv_transpose', 'matmul', 'com.microsoft.bias_gelu')
    """
    name = _SPECIAL.get(op_type) or _BOUNDARY.sub("_", op_type).lower()
    return name if domain in STANDARD else f"{domain}.{name}"


def as_onnx(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto``, in which ops that onnx does not know have a domain that it does not look into."""
    opset = max((o.version for o in proto.opset_import if o.domain in STANDARD), default=1)
    added = [op for op in _EXTENSIONS if not onnx.defs.has(op, max_inclusive_version=opset, domain="")]
    moved = [node for node in proto.graph.node if node.op_type in added and node.domain in STANDARD]
    for node in moved:
        node.domain = RUNTIME
    if moved and RUNTIME not in {opset.domain for opset in proto.opset_import}:
        proto.opset_import.append(onnx.helper.make_opsetid(RUNTIME, 1))
    return proto


def vocabulary() -> list[tuple[str, str, str]]:
    """Domain, name and rule name of every op that the installed onnx defines."""
    keys = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    return [(domain or "ai.onnx", op, rule_name(op, domain)) for domain, op in sorted(keys)]
