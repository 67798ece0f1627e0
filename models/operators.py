"""onnx's own tests of single ops as models to cut: each op between products with random weights along every axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_LETTERS = "abcdef"
_LOUD = 3
"""The standard deviation of what an op is given: past the knees of activations."""
_OLDEST = 12
"""The opset of Einsum."""
_FORMAT = 10
"""An IR version that ONNX Runtime reads."""
_SMALL, _LARGE = 3, 4096
"""Numbers that tests take and give."""
_ZOO = "zoo/"
_BENDS = {(False, False): "Identity", (True, False): "Abs", (False, True): "Tanh", (True, True): "Sigmoid"}
"""What keeps numbers positive, and between -1 and 1, where the test has such ones."""


def operators(kind: str | None = None) -> Iterator[tuple[str, onnx.ModelProto]]:
    """onnx's tests of single ops that take and give float32, as far as ONNX Runtime runs them, each between layers.

    All inputs but the first are weights. What the first one is multiplied with, and the output, axis by axis, are
    weights too: so every Dim of the op may be cut if its rule lets it. ``kind`` is an op type, if not all are wanted.
    """
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(kind):
        if case.model is None or case.data_sets is None or "_expanded" in case.name:
            continue
        inputs, outputs = case.data_sets[0]
        if _fits(inputs, outputs[0]):
            made = _between(case.model, inputs, outputs[0])
            if _alive(made):
                yield case.name.removeprefix("test_"), made


def _fits(inputs: Any, output: Any) -> bool:
    """Whether a test takes arrays without infinities, and its first ones in and out have axes to mix."""
    if not inputs or not all(isinstance(value, np.ndarray) for value in (*inputs, output)):
        return False
    ends = all(
        v.dtype == np.float32 and v.ndim in range(1, 6) and _SMALL <= v.size <= _LARGE for v in (inputs[0], output)
    )
    return ends and all(v.dtype.kind != "f" or np.isfinite(v).all() for v in inputs)


def _between(model: onnx.ModelProto, inputs: Any, output: Any) -> onnx.ModelProto:
    """The op with a product along each axis before its first input and behind its first output."""
    random = np.random.default_rng(0)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ir_version = _FORMAT
    if "" not in {opset.domain for opset in made.opset_import}:
        made.opset_import.append(helper.make_opsetid("", _OLDEST))
    for opset in made.opset_import:
        opset.version = max(opset.version, 1 if opset.domain else _OLDEST)
    body, first, last = made.graph, made.graph.input[0].name, made.graph.output[0].name
    weights = dict(zip([info.name for info in body.input[1:]], inputs[1:], strict=True))
    bend = _BENDS[bool((inputs[0] >= 0).all()), bool((np.abs(inputs[0]) <= 1).all())]
    mixed = f"{_ZOO}mixed"
    nodes = [_mixed(f"{_ZOO}given", mixed, inputs[0].shape, inputs[0].shape, random, weights)]
    nodes += [helper.make_node(bend, [mixed], [first])]
    nodes += [*body.node, _mixed(last, f"{_ZOO}made", output.shape, [3] * output.ndim, random, weights)]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    ends = [(f"{_ZOO}given", inputs[0].shape), (f"{_ZOO}made", [3] * output.ndim)]
    infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in ends]
    graph = helper.make_graph(nodes, body.name, infos[:1], infos[1:], [*body.initializer, *tensors])
    body.CopyFrom(graph)
    return made


def _mixed(
    source: str, target: str, before: Any, after: Any, random: np.random.Generator, weights: dict[str, Any]
) -> onnx.NodeProto:
    """A node that multiplies ``source`` with a matrix along each axis; the matrices join the ``weights``."""
    letters = _LETTERS[: len(before)]
    for letter, *shape in zip(letters, before, after, strict=True):
        scale = _LOUD ** (1 / len(before)) / np.sqrt(shape[0])
        weights[f"{target}/{letter}"] = (scale * random.standard_normal(shape)).astype(np.float32)
    pairs = ",".join(f"{letter}{letter.upper()}" for letter in letters)
    names = [f"{target}/{letter}" for letter in letters]
    equation = f"{letters},{pairs}->{letters.upper()}"
    return helper.make_node("Einsum", [source, *names], [target], equation=equation)


def _alive(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime runs a model, and something comes of it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    given = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    try:
        loaded = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (found,) = loaded.run(None, {model.graph.input[0].name: given})
    except Exception:  # ONNX Runtime raises classes of its own, none of them public
        return False
    return bool(np.isfinite(found).all() and np.ptp(found) > 0)
