"""Integers with a scale: scales and zero points are weights on the same Dim as what they scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from graphprune.formats.onnx.names import rule_name
from tests.build import FLOAT, Net
from tests.cases.table import add, case

DOMAIN = "com.microsoft"


def _bytes(net: Net, *shape: int, dtype: Any = np.int8) -> str:
    low, high = (-127, 128) if dtype == np.int8 else (0, 255)
    return net.const(net.random.integers(low, high, shape), dtype)


def _scale(net: Net, *shape: int) -> str:
    return net.const(net.random.uniform(0.01, 0.03, shape), np.float32)


@case("dequantize_linear", "a scale a column", "++ + + -> ++")
def dequantize(net: Net) -> None:
    w = net.op("DequantizeLinear", _bytes(net, 6, 5), _scale(net, 5), _bytes(net, 5), axis=1, name="tested")
    net.sink(net.op("MatMul", net.free(3, 6), w))


@case("dequantize_linear", "one scale", "++ 1 -> ++")
def dequantize_one(net: Net) -> None:
    w = net.op("DequantizeLinear", _bytes(net, 6, 5), _scale(net), name="tested")
    net.sink(net.op("MatMul", net.free(3, 6), w))


@case("dequantize_linear", "negative axis, shared scale", "++ + -> ++")
def dequantize_rows(net: Net) -> None:
    w = net.op("DequantizeLinear", _bytes(net, 6, 5), _scale(net, 6), axis=-2, name="tested")
    net.sink(net.op("MatMul", net.free(3, 6), w))


def _block(title: str, free: str, axis: int, size: int, *scales: int) -> None:
    def build(net: Net) -> None:
        inputs = _bytes(net, 6, 5), _scale(net, *scales), _bytes(net, *scales)
        w = net.op("DequantizeLinear", *inputs, axis=axis, block_size=size, name="tested")
        net.sink(net.op("MatMul", net.free(3, 6), w))

    add("dequantize_linear", title, free, build)


_block("blocks", "++ ++ ++ -> ++", 0, 3, 2, 5)
_block("blocks, the last cut short", ".+ .+ .+ -> .+", 0, 4, 2, 5)
_block("blocks along the other axis, the last cut short", "+. +. +. -> +.", 1, 3, 6, 2)


@case("dequantize_linear", "of four bits, in blocks", "++ ++ -> ++")
def dequantize_narrow(net: Net) -> None:
    """Two values in a byte of the file, the odd ones too."""
    narrow = helper.make_tensor("narrow", TensorProto.INT4, (6, 5), net.random.integers(-7, 8, 30))
    net.weights.append(narrow)
    w = net.op("DequantizeLinear", "narrow", _scale(net, 3, 5), axis=0, block_size=2, name="tested")
    net.sink(net.op("MatMul", net.free(3, 6), w))


def _weights(net: Net) -> None:
    w = net.op("DequantizeLinear", _bytes(net, 6, 5), _scale(net), _bytes(net), name="tested")
    net.sink(net.op("MatMul", net.free(3, 6), w))


for _opset in (10, 13, 19, 23):
    add("dequantize_linear", f"opset {_opset}", "++ 1 1 -> ++", _weights, opset=_opset)


def _quantize(
    title: str, free: str, *scales: int, kind: str = "QuantizeLinear", domain: str = "", **attrs: Any
) -> None:
    attrs |= {"domain": domain} if domain else {}

    def build(net: Net) -> None:
        scale, zero = _scale(net, *scales), _bytes(net, *scales, dtype=np.uint8)
        names = ("tested", "") if kind == "QuantizeLinear" else ("", "tested")
        q = net.op("QuantizeLinear", net.free(3, 4, 5), scale, zero, name=names[0], **attrs)
        net.infos.append(helper.make_tensor_value_info(q, TensorProto.UINT8, (3, 4, 5)))
        net.sink(net.op("DequantizeLinear", q, scale, zero, name=names[1], **attrs), shape=(3, 4, 5))

    add(rule_name(kind, domain), title, free, build)


_quantize("one scale", "+++ 1 1 -> +++")
_quantize("a scale a channel", "+++ + + -> +++", 4, axis=1)
_quantize("default axis", "+++ + + -> +++", 4)
_quantize("", "+++ + + -> +++", 4, domain=DOMAIN, axis=1)
_quantize("activation", "+++ + + -> +++", 4, kind="DequantizeLinear", domain=DOMAIN, axis=1)


@case("dynamic_quantize_linear", "", "+++ -> +++ 1 1")
def dynamic_quantize(net: Net) -> None:
    """Its scale is taken over all positions, zeros among them: what is gone is as what is zero."""
    parts = net.ops("DynamicQuantizeLinear", net.free(3, 4, 5), outs=3, name="tested")
    net.sink(net.op("DequantizeLinear", *parts))


# Layers that compute with integers.


def _one(net: Net, scale: float = 0.03, zero: int = 3, dtype: Any = np.int8) -> list[str]:
    return [net.const(scale, np.float32), net.const(zero, dtype)]


def _activation(net: Net, *shape: int, dtype: Any = np.int8) -> list[str]:
    """Integers all of whose axes may be cut, with their scale and zero point."""
    ends = _one(net, zero=3 if dtype == np.int8 else 100, dtype=dtype)
    return [net.op("QuantizeLinear", net.free(*shape), *ends), *ends]


def _result(net: Net, name: str, ends: list[str], shape: Sequence[int]) -> None:
    """What comes out, with scale and zero point, and as onnx cannot infer its shape."""
    net.infos.append(helper.make_tensor_value_info(name, TensorProto.INT8, shape))
    net.sink(net.op("Tanh", net.op("DequantizeLinear", name, *ends)), shape=shape)


def _conv_integer(title: str, free: str, group: int, zeros: int | None) -> None:
    def build(net: Net) -> None:
        x, _, zero = _activation(net, 2, 4, 4, 4, dtype=np.uint8)
        w = _bytes(net, 6, 4 // group, 2, 2, dtype=np.uint8)
        points = [] if zeros is None else [_bytes(net, *([zeros] if zeros else []), dtype=np.uint8)]
        made = net.op("ConvInteger", x, w, zero, *points, group=group, name="tested")
        net.sink(net.op("Mul", net.op("Cast", made, to=FLOAT), net.const(1e-4, np.float32)))

    add("conv_integer", title, free, build)


_conv_integer("", "++.. ++.. 1 -> ++..", 1, None)
_conv_integer("zero point", "++.. ++.. 1 1 -> ++..", 1, 0)
_conv_integer("grouped", "++.. ++.. 1 1 -> ++..", 2, 0)


def _conv(title: str, free: str, *scales: int, group: int = 1, domain: str = "", last: bool = False) -> None:
    """6 channels out of 4, on a field of 3 by 3."""

    def build(net: Net) -> None:
        x = _activation(net, *((2, 3, 3, 4) if last else (2, 4, 3, 3)))
        w = _bytes(net, 6, 4 // group, 2, 2), _scale(net, *scales), net.const(np.zeros(scales), np.int8)
        ends, bias = _one(net, 0.1), net.const(net.random.integers(-900, 900, 6), np.int32)
        attrs = {"domain": domain, "channels_last": 1} if last else {"domain": domain} if domain else {}
        made = net.op("QLinearConv", *x, *w, *ends, bias, group=group, name="tested", **attrs)
        _result(net, made, ends, (2, 2, 2, 6) if last else (2, 6, 2, 2))

    add(rule_name("QLinearConv", domain), title, free, build)


_conv("a scale a channel", "++.. 1 1 ++.. + + 1 1 + -> ++..", 6)
_conv("one scale", "++.. 1 1 ++.. 1 1 1 1 + -> ++..")
_conv("one scale in a vector", "++.. 1 1 ++.. . . 1 1 + -> ++..", 1)
_conv("grouped, a scale a channel", "++.. 1 1 ++.. + + 1 1 + -> ++..", 6, group=2)
_conv("channels last", "+..+ 1 1 ++.. + + 1 1 + -> +..+", 6, domain=DOMAIN, last=True)


def _product(kind: str, title: str, free: str, *scales: int, two: bool = False, domain: str = "") -> None:
    def build(net: Net) -> None:
        a, domains = _activation(net, 2, 3, 6), {"domain": domain} if domain else {}
        b = _activation(net, 2, 6, 5) if two else [_bytes(net, 6, 5), _scale(net, *scales), _bytes(net, *scales)]
        ends = _one(net, 0.2)
        if kind == "QLinearMatMul":
            made = net.op(kind, *a, *b, *ends, name="tested", **domains)
            _result(net, made, ends, (2, 3, 5))
        elif kind == "MatMulInteger":
            made = net.op(kind, a[0], b[0], a[2], b[2], name="tested", **domains)
            net.sink(net.op("Mul", net.op("Cast", made, to=FLOAT), net.const(1e-3, np.float32)))
        else:
            bias = net.weight(5)
            made = net.op(kind, a[0], b[0], a[1], b[1], a[2], b[2], bias, name="tested", **domains)
            net.sink(made, shape=(2, 3, 5))

    add(rule_name(kind, domain), title, free, build)


_product("QLinearMatMul", "a scale a column", "+++ 1 1 ++ + + 1 1 -> +++", 5)
_product("QLinearMatMul", "one scale", "+++ 1 1 ++ 1 1 1 1 -> +++")
_product("QLinearMatMul", "two activations", "+++ 1 1 +++ 1 1 1 1 -> +++", two=True)
_product("MatMulInteger", "one zero point", "+++ ++ 1 1 -> +++")
_product("MatMulInteger", "a zero point a column", "+++ ++ 1 + -> +++", 5)
_product("MatMulInteger", "two activations", "+++ +++ 1 1 -> +++", two=True)
_product("MatMulIntegerToFloat", "a scale a column", "+++ ++ 1 + 1 + + -> +++", 5, domain=DOMAIN)


@case("com.microsoft.dynamic_quantize_mat_mul", "a scale a column", "+++ ++ + + + -> +++")
def dynamic_quantize_mat_mul(net: Net) -> None:
    b = _bytes(net, 6, 5), _scale(net, 5), _bytes(net, 5), net.weight(5)
    made = net.op("DynamicQuantizeMatMul", net.free(2, 3, 6), *b, domain=DOMAIN, name="tested")
    net.sink(made, shape=(2, 3, 5))


def _gemm(trans: int, title: str, free: str, *scales: int) -> None:
    def build(net: Net) -> None:
        b = _bytes(net, *((5, 6) if trans else (6, 5))), _scale(net, *scales), net.const(np.zeros(scales), np.int8)
        ends, bias = _one(net, 0.1), net.const(net.random.integers(-900, 900, 5), np.int32)
        attrs: dict[str, Any] = {"transB": trans, "alpha": 1.0, "domain": DOMAIN, "name": "tested"}
        made = net.op("QGemm", *_activation(net, 3, 6), *b, bias, *ends, **attrs)
        _result(net, made, ends, (3, 5))

    add("com.microsoft.q_gemm", title, free, build)


_gemm(1, "transB, a scale a column", "++ 1 1 ++ + + + 1 1 -> ++", 5)
_gemm(0, "one scale", "++ 1 1 ++ 1 1 + 1 1 -> ++")


def _elements(kind: str, free: str, *operands: Sequence[int], ends: bool = True, **attrs: Any) -> None:
    """Operands each with a scale and a zero point, and these of the result."""

    def build(net: Net) -> None:
        result = _one(net, 0.05) if ends else []
        given = [name for shape in operands for name in _activation(net, *shape)]
        order = [*result, *given] if kind == "QLinearConcat" else [*given, *result]
        made = net.op(kind, *order, domain=DOMAIN, name="tested", **attrs)
        shape = np.broadcast_shapes(*operands) if kind != "QLinearConcat" else (2, 7, 3)
        shape = (2, 4, 2, 2) if kind == "QLinearAveragePool" else shape
        shape = (2, 4, 1, 1) if kind == "QLinearGlobalAveragePool" else shape
        _result(net, made, result, shape)

    add(rule_name(kind, DOMAIN), "", free, build)


_elements("QLinearAdd", "+++ 1 1 .+ 1 1 1 1 -> +++", (2, 3, 4), (1, 4))
_elements("QLinearMul", "+++ 1 1 .+ 1 1 1 1 -> +++", (2, 3, 4), (1, 4))
_elements("QLinearSigmoid", "+++ 1 1 1 1 -> +++", (2, 3, 4))
_elements("QLinearLeakyRelu", "+++ 1 1 1 1 -> +++", (2, 3, 4), alpha=0.1)
_elements("QLinearSoftmax", "++~ 1 1 1 1 -> ++~", (2, 3, 4), axis=-1, opset=13)
_elements("QLinearConcat", "1 1 +++ 1 1 +++ 1 1 -> +++", (2, 4, 3), (2, 3, 3), axis=1)
_elements("QLinearAveragePool", "++.. 1 1 1 1 -> ++..", (2, 4, 3, 3), kernel_shape=[2, 2])
_elements("QLinearGlobalAveragePool", "++.. 1 1 1 1 -> ++..", (2, 4, 3, 3))


@case("com.microsoft.q_linear_where", "", "+++ +++ 1 1 .+ 1 1 1 1 -> +++")
def where(net: Net) -> None:
    ends, chosen = _one(net, 0.05), net.op("Greater", net.free(2, 3, 4), net.weight(4))
    operands = [*_activation(net, 2, 3, 4), *_activation(net, 1, 4)]
    _result(net, net.op("QLinearWhere", chosen, *operands, *ends, domain=DOMAIN, name="tested"), ends, (2, 3, 4))


def _lowered(title: str, free: str, *scales: int) -> None:
    """Attention with projections in integers: 4 heads of 6."""

    def build(net: Net) -> None:
        x = _activation(net, 2, 3, 7, dtype=np.uint8)
        w, scale = _bytes(net, 7, 72), net.const(net.random.uniform(0.005, 0.008, scales), np.float32)
        zero = net.const(np.zeros(scales), np.int8)
        attrs: dict[str, Any] = {"num_heads": 4, "domain": DOMAIN, "name": "tested"}
        made = net.op("QAttention", x[0], w, net.weight(72), x[1], scale, "", x[2], zero, **attrs)
        net.sink(made, hidden=5, shape=(2, 3, 24))

    add("com.microsoft.q_attention", title, free, build)


_lowered("one scale", "+~+ ++ + 1 1 / 1 1 -> +~+")
_lowered("a scale a column", "+~+ ++ + 1 + / 1 + -> +~+", 72)


@case("com.microsoft.q_embed_layer_normalization", "", ".. .. .~ .~ .~ ~ ~ / 1 1 1 1 1 1 1 1 1 1 -> ..~ .")
def embed(net: Net) -> None:
    ids, kinds = (net.const(net.random.integers(0, n, (2, 3)), np.int32) for n in (9, 2))
    shapes = (9, 6), (3, 6), (2, 6), (6,), (6,)
    tables = [_bytes(net, *shape, dtype=np.uint8) for shape in shapes]
    ends = [_scale(net) for _ in shapes], [net.const(100, np.uint8) for _ in shapes]
    kind = "QEmbedLayerNormalization"
    names = net.ops(kind, ids, kinds, *tables, "", *ends[0], *ends[1], outs=2, domain=DOMAIN, name="tested")
    net.infos.append(helper.make_tensor_value_info(names[1], TensorProto.INT32, (2,)))
    net.sink(net.op("Add", names[0], net.free(2, 3, 1)), shape=(2, 3, 6))


def _lstm(title: str, free: str, *scales: int) -> None:
    def build(net: Net) -> None:
        w, r, bias = _bytes(net, 1, 5, 16), _bytes(net, 1, 4, 16), net.weight(1, 32)
        ends = [end for _ in range(2) for end in (_scale(net, *scales), net.const(np.zeros(scales), np.int8))]
        attrs: dict[str, Any] = {"hidden_size": 4, "domain": DOMAIN, "name": "tested"}
        y = net.op("DynamicQuantizeLSTM", net.free(3, 2, 5), w, r, bias, "", "", "", "", *ends, **attrs)
        net.sink(y, hidden=5, shape=(3, 1, 2, 4))

    add("com.microsoft.dynamic_quantize_lstm", title, free, build)


_lstm("one scale", ".~+ .+~ .~~ .~ / / / / . . . . -> ..~~", 1)
_lstm("a scale a column", ".~+ .+~ .~~ .~ / / / / .~ .~ .~ .~ -> ..~~", 1, 16)


# Weights in blocks.


def _n_bits(title: str, free: str, bits: int, zeros: str = "", flat: bool = False) -> None:
    """5 columns, 4 blocks of 16; zero points in bytes, as floats, or none."""

    def build(net: Net) -> None:
        b = net.const(net.random.integers(0, 256, (5, 4, 2 * bits)), np.uint8)
        scale = _scale(net, *([20] if flat else [5, 4]))
        point = {"bytes": lambda: net.const(net.random.integers(0, 256, (5, bits // 2)), np.uint8)}
        point["floats"] = lambda: net.const(net.random.uniform(0, 2**bits, (5, 4)), np.float32)
        given = [point[zeros]()] if zeros else [""]
        attrs: dict[str, Any] = {"K": 64, "N": 5, "bits": bits, "block_size": 16}
        made = net.op("MatMulNBits", net.free(2, 64), b, scale, *given, "", net.weight(5), domain=DOMAIN, **attrs)
        net.nodes[-1].name = "tested"
        net.sink(made, shape=(2, 5))

    add("com.microsoft.mat_mul_n_bits", title, free, build)


_n_bits("4 bits", "++ ++. ++ / / + -> ++", 4)
_n_bits("8 bits", "++ ++. ++ / / + -> ++", 8)
_n_bits("4 bits, zero points two a byte", "++ ++. ++ ++ / + -> ++", 4, "bytes")
_n_bits("8 bits, zero points", "++ ++. ++ ++ / + -> ++", 8, "bytes")
_n_bits("2 bits, zero points four a byte", "+. +.. +. +. / + -> ++", 2, "bytes")
_n_bits("4 bits, zero points as floats", "++ ++. ++ ++ / + -> ++", 4, "floats")
_n_bits("4 bits, scales in a vector", "++ ++. + / / + -> ++", 4, flat=True)


def _gathered(title: str, free: str, packed: bool, zeros: bool) -> None:
    """7 rows of 4 blocks of 16 values of four bits."""

    def build(net: Net) -> None:
        if packed:
            data = net.const(net.random.integers(0, 256, (7, 32)), np.uint8)
            points = [net.const(net.random.integers(0, 256, (7, 2)), np.uint8)] if zeros else []
        else:
            data, points = "narrow", []
            net.weights.append(helper.make_tensor(data, TensorProto.INT4, (7, 64), net.random.integers(-7, 8, 448)))
        rows = net.const(net.random.integers(0, 7, (2, 3)))
        attrs: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 1, "block_size": 16, "bits": 4}
        made = net.op("GatherBlockQuantized", data, rows, _scale(net, 7, 4), *points, domain=DOMAIN, **attrs)
        net.nodes[-1].name = "tested"
        net.infos.append(helper.make_tensor_value_info(made, FLOAT, (2, 3, 64)))
        net.sink(net.op("Mul", made, net.op("Add", net.free(2, 3, 1), net.const(3, np.float32))), shape=(2, 3, 64))

    add("com.microsoft.gather_block_quantized", title, free, build)


_gathered("bytes", ".+ .. .+ -> ..+", True, False)
_gathered("bytes, zero points two a byte", ".+ .. .+ .+ -> ..+", True, True)
_gathered("four bits", ".+ .. .+ -> ..+", False, False)


def _mixture(title: str, free: str, bits: int, size: int, up: int, zeros: bool = False, **attrs: Any) -> None:
    """Four experts of 64 units on 64 features, two of which are taken."""

    def build(net: Net) -> None:
        x = net.free(2, 3, 64)
        net.sink(net.op("Tanh", x))
        wide, pack = 64 * up, 8 // bits
        first = [net.const(net.random.integers(0, 256, (4, wide, 64 // pack)), np.uint8)]
        first += [_scale(net, 4, wide, *([64 // size] if size else [])), net.weight(4, wide)]
        second = [net.const(net.random.integers(0, 256, (4, 64, 64 // pack)), np.uint8)]
        second += [_scale(net, 4, 64, *([64 // size] if size else [])), net.weight(4, 64)]
        inputs = [x, net.free(6, 4), *first, *second]
        if zeros:
            shapes = (4, wide, 64 // size // pack), (4, 64, 64 // size // pack)
            inputs += ["", "", "", *(net.const(net.random.integers(0, 256, shape), np.uint8) for shape in shapes)]
        given = {"k": 2, "expert_weight_bits": bits, "normalize_routing_weights": 1, **attrs}
        given |= {"block_size": size} if size else {}
        made = net.op("QMoE", *inputs, domain=DOMAIN, name="tested", **given)
        net.sink(made, shape=(2, 3, 64))

    add("com.microsoft.q_mo_e", title, free, build)


_ACTED: dict[str, Any] = {"activation_type": "swiglu", "swiglu_fusion": 1}
_mixture("4 bits", "+++ +~ ~++ ~+ ~+ ~++ ~+ ~+ -> +++", 4, 0, 1, activation_type="relu")
_mixture("8 bits, gate and value interleaved", "+++ +~ ~++ ~+ ~+ ~++ ~+ ~+ -> +++", 8, 0, 2, **_ACTED)
_mixture("4 bits in blocks", "+++ +~ ~++ ~++ ~+ ~++ ~++ ~+ -> +++", 4, 16, 2, **_ACTED)
_mixture("4 bits, zero points", "+++ +~ ~++ ~++ ~+ ~++ ~++ ~+ / / / ~++ ~++ -> +++", 4, 16, 2, zeros=True, **_ACTED)
