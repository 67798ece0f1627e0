"""A quantised model as it computes before anything is rounded: the same weights and scales, on numbers with fractions.

Rounding makes a quantised model jump: a sum taken in another order may land on the next integer, and some layers later
much has moved. Proofs that drown in this are taken here, where only the rounding is missing. What computes with
integers is written as what it stands for; an op that is not known to do so ends it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphprune.analysis import analyse
from graphprune.formats.onnx.model import OnnxModel
from graphprune.graph import Array, Graph, Node
from graphprune.rules.registry import Integers


class Twin(NamedTuple):
    """The op ``kind`` that an op on integers stands for.

    Its operands are ``plain`` inputs, and what the others stand for. Its result is divided by input ``result``, the
    input behind that is added; input ``bias`` is added to it as it is.
    """

    kind: str
    result: int | None = None
    plain: tuple[int, ...] = ()
    bias: int = -1


TWINS = {
    "quantize_linear": Twin("Identity", 1, (0,)),
    "dequantize_linear": Twin("Identity"),
    "conv_integer": Twin("Conv"),
    "mat_mul_integer": Twin("MatMul"),
    "q_linear_conv": Twin("Conv", 6),
    "q_linear_mat_mul": Twin("MatMul", 6),
    "mat_mul_integer_to_float": Twin("MatMul", bias=6),
    "dynamic_quantize_mat_mul": Twin("MatMul", plain=(0,), bias=4),
    "q_gemm": Twin("Gemm", 7),
    "q_linear_add": Twin("Add", 6),
    "q_linear_mul": Twin("Mul", 6),
    "q_linear_where": Twin("Where", 7, (0,)),
    "q_linear_concat": Twin("Concat", 0),
    "q_linear_sigmoid": Twin("Sigmoid", 3),
    "q_linear_leaky_relu": Twin("LeakyRelu", 3),
    "q_linear_softmax": Twin("Softmax", 3),
    "q_linear_average_pool": Twin("AveragePool", 3),
    "q_linear_global_average_pool": Twin("GlobalAveragePool", 3),
}
"""Names without their domain. A new op is a line."""
ROUNDS = ("quantize_linear", "dynamic_quantize_linear", "dynamic_quantize_mat_mul")
"""Where numbers with fractions become integers."""


def unrounded(model: OnnxModel) -> OnnxModel | None:
    """``model`` without the rounding of activations; None where nothing is rounded, or not all of it is followed."""
    graph = model.graph
    made, weights = model.copy(), graph.weights
    protos = [n for n in made.proto.graph.node if not (n.op_type == "Constant" and n.output[0] in weights)]
    if not any(_bare(node) in ROUNDS for node in graph.nodes) or len(protos) != len(graph.nodes):
        return None  # bodies and functions are not followed
    facts = analyse(graph).facts
    constants = [n for n in made.proto.graph.node if n.op_type == "Constant" and n.output[0] in weights]
    writer = _Writer(graph)
    for node, proto in zip(graph.nodes, protos, strict=True):
        if not writer.write(node, proto, [item for item in facts.integers if item.node is node]):
            return None
    if writer.free & set(graph.outputs):
        return None
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in [*constants, *writer.nodes]]
    del made.proto.graph.node[:]
    made.proto.graph.node.extend(copies)
    infos = [info for info in made.proto.graph.value_info if info.name not in writer.free]
    del made.proto.graph.value_info[:]
    made.proto.graph.value_info.extend(infos)
    return made


def _bare(node: Node) -> str:
    return node.op.removeprefix("com.microsoft.")


class _Writer:
    """Nodes written so far; ``free`` are the values that were integers and have fractions now."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.free: set[str] = set()
        self.count = 0

    def op(self, kind: str, *inputs: str, made: str = "", **attrs: Any) -> str:
        """A node of one output."""
        self.count += 1
        name = made or f"graphprune/unrounded_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attrs))
        return name

    def write(self, node: Node, proto: onnx.NodeProto, said: list[Integers]) -> bool:
        """One node as it is, or as what it stands for; False where that is not known."""
        op, reads = _bare(node), self.free & set(proto.input)
        twin = TWINS.get(op)
        if op == "dynamic_quantize_linear":
            self.op("Identity", proto.input[0], made=proto.output[0])
            for name, value in zip(proto.output[1:], (1, 0), strict=True):
                tensor = onnx.numpy_helper.from_array(np.array(value, np.float32))
                self.op("Constant", made=name, value=tensor)
            self.free.update((proto.output[0], proto.output[2]))
        elif not reads and op == "dequantize_linear" and self._stand_in(proto, said, TWINS[op]):
            pass  # weights: ONNX Runtime may fuse what dequantises them into a product that rounds
        elif not reads and op not in ROUNDS:
            self.nodes.append(proto)
        elif twin is not None:
            return self._stand_in(proto, said, twin)
        elif said:
            return False
        else:
            self._pass_on(proto, op, reads)
        return True

    def _pass_on(self, proto: onnx.NodeProto, op: str, reads: set[str]) -> None:
        """An op that takes whatever it is given: its other operands of the same kind become floats, too."""
        if op == "cast":
            floats = proto.attribute[0].i in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
            proto.attribute[0].i = proto.attribute[0].i if floats else TensorProto.FLOAT
            self.free.update(() if floats else proto.output)
        else:
            kinds = {self._dtype(name) for name in reads}
            for i, name in enumerate(proto.input):
                if name and name not in reads and self._dtype(name) in kinds:
                    proto.input[i] = self.op("Cast", name, to=TensorProto.FLOAT)
            self.free.update(proto.output)
        self.nodes.append(proto)

    def _dtype(self, name: str) -> str:
        value = self.graph.values.get(name)
        return value.dtype if value else ""

    def _stand_in(self, proto: onnx.NodeProto, said: list[Integers], twin: Twin) -> bool:
        attrs = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        if attrs.get("channels_last") or attrs.get("block_size"):
            return False
        operands = {i: proto.input[i] for i in twin.plain}
        for item in said:
            if item.input < len(proto.input) and proto.input[item.input]:
                operands[item.input] = self._number(proto, item)
        taken = onnx.defs.get_schema(twin.kind).attributes
        inputs = [operands[i] for i in sorted(operands)]
        found = self.op(twin.kind, *inputs, **{name: value for name, value in attrs.items() if name in taken})
        if 0 <= twin.bias < len(proto.input) and proto.input[twin.bias]:
            found = self.op("Add", found, proto.input[twin.bias])
        if twin.result is not None:
            axis = int(attrs.get("axis", 1)) if twin.kind == "Identity" else 0
            found = self._scaled("Div", found, proto, twin.result, axis, proto.output[0])
            found = self._scaled("Add", found, proto, twin.result + 1, axis, proto.output[0])
            found = self._clipped(found, proto, twin.result + 1)
        if twin.result is not None or twin.kind in ("Conv", "MatMul"):
            self.free.add(proto.output[0])
        self.op("Identity", found, made=proto.output[0])
        return True

    def _number(self, proto: onnx.NodeProto, item: Integers) -> str:
        """What an operand stands for: less its zero point, times its scales."""
        value = proto.input[item.input]
        found = self.op("Cast", value, to=TensorProto.FLOAT)
        found = self._scaled("Sub", found, proto, item.zero, item.axis, value)
        for scale in item.scales:
            found = self._scaled("Mul", found, proto, scale, item.axis, value)
        return found

    def _scaled(self, kind: str, value: str, proto: onnx.NodeProto, i: int, axis: int, like: str) -> str:
        """``value`` and input ``i``; a vector lies along ``axis`` of what has the shape of ``like``."""
        if not 0 <= i < len(proto.input) or not proto.input[i]:
            return value
        shape, rank = self.graph.shape(proto.input[i]) or (), len(self.graph.shape(like) or ())
        alone = [] if shape in ((), (1,)) else [-1 if i == axis % rank else 1 for i in range(rank)]
        weight = self.graph.weights.get(proto.input[i])
        if weight is not None:
            data = weight.load().astype(np.float32)
            factor = self._constant(data.reshape(alone if data.ndim < 2 else data.shape))
        else:
            factor = self.op("Cast", proto.input[i], to=TensorProto.FLOAT)
            factor = self.op("Reshape", factor, self._constant(np.array(alone, np.int64))) if shape == (1,) else factor
        return self.op(kind, value, factor)

    def _clipped(self, value: str, proto: onnx.NodeProto, zero: int) -> str:
        """``value`` within the range of the integers that ``zero`` is one of: a quantiser leaves activations to it."""
        given = self._dtype(proto.input[zero]) if zero < len(proto.input) and proto.input[zero] else "uint8"
        bits, signed = int(given[-2:].strip("t")), given[0] == "i"
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return self.op("Clip", value, *(self._constant(np.array(end, np.float32)) for end in (low, high)))

    def _constant(self, data: Array) -> str:
        return self.op("Constant", value=onnx.numpy_helper.from_array(data))
