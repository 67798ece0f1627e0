"""ONNX op types under the names that rules use."""

from __future__ import annotations

import re

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
    "SwiGLU": "swiglu",
}
STANDARD = ("", "ai.onnx")


def rule_name(op_type: str, domain: str = "") -> str:
    """The normalised name of an op: snake case, other domains in front.

    >>> rule_name("ConvTranspose"), rule_name("MatMul"), rule_name("BiasGelu", "com.microsoft")
    ('conv_transpose', 'matmul', 'com.microsoft.bias_gelu')
    """
    name = _SPECIAL.get(op_type) or _BOUNDARY.sub("_", op_type).lower()
    return name if domain in STANDARD else f"{domain}.{name}"
