"""Small ONNX models in the making: a `Net` collects nodes and generic weights; every value is a name.

`Net.free` makes a tensor all of whose axes are Dims of the model that may be cut, `Net.sink` sums over all of them:
what stands between the two is what a test is about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
OPSET = 21
"""The opset of tests that do not care; the table names another where a rule differs or an op is newer."""
FEATURES, OUTPUTS = 6, 4


class Net:
    """A model under construction, with random weights of its own ``seed``."""

    def __init__(self, seed: int = 0, opset: int = OPSET) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.infos: list[onnx.ValueInfoProto] = []
        self.domains: list[str] = []
        self._count = 0

    def name(self, stem: str) -> str:
        """A name not used before."""
        self._count += 1
        return f"{stem}_{self._count}"

    def input(self, *shape: int | str, dtype: int = FLOAT) -> str:
        """A model input; a str is the name of a dynamic size."""
        self.inputs.append(helper.make_tensor_value_info(self.name("input"), dtype, shape))
        return str(self.inputs[-1].name)

    def const(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """A constant as it stands: sizes, axes, bounds."""
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), self.name("constant")))
        return str(self.weights[-1].name)

    def weight(self, *shape: int, fan: int = 1, positive: bool = False) -> str:
        """Random weights no two of which are equal, away from zero, of unit gain where ``fan`` products are summed."""
        values = self.random.uniform(0.5, 1.5, shape)
        signs = 1 if positive else self.random.choice([-1.0, 1.0], shape)
        return self.const(values * signs / math.sqrt(fan), np.float32)

    def ops(self, kind: str, *inputs: str, outs: int = 1, name: str = "", **attrs: Any) -> list[str]:
        """A node; the names of its outputs."""
        names = [self.name(kind.lower()) for _ in range(outs)]
        if attrs.get("domain", "") not in ("", *self.domains):
            self.domains.append(attrs["domain"])
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name or names[0], **attrs))
        return names

    def op(self, kind: str, *inputs: str, name: str = "", **attrs: Any) -> str:
        """A node of one output; the name of it."""
        return self.ops(kind, *inputs, name=name, **attrs)[0]

    def output(self, name: str) -> None:
        """``name`` becomes an output of the model."""
        self.outputs.append(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The static shape of a value, as shape inference finds it."""
        for weight in self.weights:
            if weight.name == name:
                return tuple(weight.dims)
        return tuple(d.dim_value for d in self._type(name).shape.dim)

    def _type(self, name: str) -> onnx.TypeProto.Tensor:
        inferred = onnx.shape_inference.infer_shapes(self.model(name), strict_mode=True, data_prop=True)
        found: onnx.TypeProto.Tensor = inferred.graph.output[0].type.tensor_type
        return found

    def model(self, *outputs: str) -> onnx.ModelProto:
        """What was built, checked by nobody yet."""
        made = [helper.make_empty_tensor_value_info(name) for name in outputs or self.outputs]
        graph = helper.make_graph(self.nodes, "test", self.inputs, made, self.weights, value_info=self.infos)
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in self.domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for info, found in zip(model.graph.output, inferred.graph.output, strict=True):
            known = found.type.tensor_type.HasField("shape")
            info.CopyFrom(found if known else helper.make_tensor_value_info(info.name, FLOAT, [None, None]))
        return model

    # The two ends of a test.

    def free(self, *shape: int, positive: bool = False) -> str:
        """Random activations all of whose axes may be cut: one matrix product, its columns told apart by a reshape.

        They are no linear function of the weights, so that a sum over an axis tells its order, too.
        """
        size = math.prod(shape)
        flat = self.op("Gemm", self.input(1, FEATURES), self.weight(FEATURES, size, fan=FEATURES), self.weight(size))
        flat = self.op("Softplus", flat) if positive else self.op("Elu", flat, alpha=2.0)
        return self.op("Reshape", flat, self.const(shape))

    def sink(self, name: str, hidden: int = 0, shape: Sequence[int] | None = None) -> None:
        """Sum over all axes of a value with random weights, into an output; over a ``hidden`` layer where asked for.

        ``shape`` is for ops whose result onnx cannot infer.
        """
        if shape is None and self._type(name).elem_type != FLOAT:
            name = self.op("Cast", name, to=FLOAT)
        if shape is not None:
            self.infos.append(helper.make_tensor_value_info(name, FLOAT, shape))
        total = math.prod(shape or self.shape(name))
        flat = self.op("Reshape", name, self.const([1, total]))
        if hidden:
            flat = self.op("Tanh", self.op("MatMul", flat, self.weight(total, hidden, fan=total)))
            total = hidden
        self.output(self.op("MatMul", flat, self.weight(total, OUTPUTS, fan=total)))


class Body(Net):
    """A graph inside a node of ``net``, which may read values of it by name. All bodies use the same names."""

    def __init__(self, net: Net, depth: int = 1) -> None:
        super().__init__(opset=net.opset)
        self.random, self.domains = net.random, net.domains
        self.stem = "in_" * depth

    def name(self, stem: str) -> str:
        """A name that the graph outside does not have."""
        return super().name(self.stem + stem)

    def graph(
        self, *outputs: str, condition: bool = False, shape: Sequence[int | None] | None = None
    ) -> onnx.GraphProto:
        """The body; ``outputs`` in the order that its node asks for, the first BOOL where it is a ``condition``.

        A Scan that is given values of unknown rank needs to be told the ``shape`` of what its body gives.
        """
        kinds = [BOOL if condition and i == 0 else FLOAT for i in range(len(outputs))]
        ends = [helper.make_tensor_value_info(*end, shape) for end in zip(outputs, kinds, strict=True)]
        return helper.make_graph(self.nodes, "body", self.inputs, ends, self.weights)

    def given(self, dtype: int = FLOAT, shape: Sequence[int | str | None] | None = None) -> str:
        """An input of the body, of a shape that the file does not tell unless it is named."""
        self.inputs.append(helper.make_tensor_value_info(self.name("given"), dtype, shape))
        return str(self.inputs[-1].name)
