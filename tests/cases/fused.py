"""Fused ops of ONNX Runtime: attention, norms, activations, and layers with one behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from graphprune.formats.onnx.names import rule_name
from tests.build import Net
from tests.cases.table import add, case

B, S, T, P, D, V, I, H = 2, 3, 4, 2, 6, 5, 7, 4
"""Batch, queries, keys, keys of the past, head size, value head size, width of the input, heads."""
DOMAIN = "com.microsoft"


def _fused(
    kind: str,
    title: str,
    free: str,
    inputs: Callable[[Net], Sequence[str]],
    *outputs: Sequence[int],
    opset: int = 21,
    **attrs: Any,
) -> None:
    """An entry with outputs of these shapes; what has an empty one is not asked for."""

    def build(net: Net) -> None:
        names = net.ops(kind, *inputs(net), outs=len(outputs), domain=DOMAIN, name="tested", **attrs)
        net.nodes[-1].output[:] = [name if shape else "" for name, shape in zip(names, outputs, strict=True)]
        for name, shape in zip(names, outputs, strict=True):
            if shape:
                net.sink(name, hidden=5, shape=shape)

    add(rule_name(kind, DOMAIN), title, free, build, opset=opset)


# Attention with its projections inside.


def _projected(net: Net, values: int = D) -> list[str]:
    wide = H * (2 * D + values)
    return [net.free(B, S, I), net.weight(I, wide, fan=I), net.weight(wide)]


_fused("Attention", "", "+~+ ++ + -> +~+", _projected, (B, S, H * D), num_heads=H)
_fused(
    "Attention",
    "values of another size",
    "+~+ ++ + -> +~+",
    lambda net: _projected(net, V),
    (B, S, H * V),
    num_heads=H,
    qkv_hidden_sizes=[H * D, H * D, H * V],
)
_fused("Attention", "causal", "+.+ ++ + -> +.+", _projected, (B, S, H * D), num_heads=H, unidirectional=1)
_fused("Attention", "a scale of its own", "+~+ ++ + -> +~+", _projected, (B, S, H * D), num_heads=H, scale=0.3)
_fused(
    "Attention",
    "padding",
    "..+ ++ + .. -> ..+",
    lambda net: [*_projected(net), net.const([[1, 1, 0], [1, 1, 1]], np.int32)],
    (B, S, H * D),
    num_heads=H,
)
_fused(
    "Attention",
    "scores a head",
    "+~+ ++ + / / .+~~ -> +~+",
    lambda net: [*_projected(net), "", "", net.weight(1, H, S, S)],
    (B, S, H * D),
    num_heads=H,
)
_fused(
    "Attention",
    "causal, with a cache",
    "+.+ ++ + / .++.+ -> +.+ .++.+",
    lambda net: [*_projected(net), "", net.free(2, B, H, P, D)],
    (B, S, H * D),
    (2, B, H, P + S, D),
    num_heads=H,
    unidirectional=1,
)


# Attention of queries, keys and values.


def _flat(net: Net, keys: int = H, values: int = D) -> list[str]:
    return [net.free(B, S, H * D), net.free(B, T, keys * D), net.free(B, T, keys * values)]


def _cached(net: Net, keys: int = H, values: int = D) -> list[str]:
    return [net.free(B, keys, P, D), net.free(B, keys, P, values)]


_MULTI = "MultiHeadAttention"
_fused(_MULTI, "", "+++ +~+ +~+ -> +++", _flat, (B, S, H * D), num_heads=H)
_fused(
    _MULTI,
    "bias, values of another size",
    "+++ +~+ +~+ + -> +++",
    lambda net: [*_flat(net, values=V), net.weight(H * (2 * D + V))],
    (B, S, H * V),
    num_heads=H,
)
_fused(
    _MULTI,
    "keys as heads",
    "+++ ++~+ ++~+ -> +++",
    lambda net: [net.free(B, S, H * D), net.free(B, H, T, D), net.free(B, H, T, D)],
    (B, S, H * D),
    num_heads=H,
)
_fused(
    _MULTI,
    "padding and scores a head",
    "..+ ..+ ..+ / .. .+.. -> ..+",
    lambda net: [*_flat(net), "", net.const([[1, 1, 0, 1], [1, 1, 1, 1]], np.int32), net.weight(1, H, S, T)],
    (B, S, H * D),
    num_heads=H,
)
_fused(
    _MULTI,
    "scores for all heads, and a cache",
    "+++ +~+ +~+ / / ..+~ ++~+ ++~+ -> +++ ++~+ ++~+",
    lambda net: [*_flat(net), "", "", net.weight(1, 1, S, P + T), *_cached(net)],
    (B, S, H * D),
    (B, H, P + T, D),
    (B, H, P + T, D),
    num_heads=H,
)
_fused(
    _MULTI,
    "causal",
    "+.+ +.+ +.+ -> +.+",
    lambda net: [net.free(B, S, H * D) for _ in range(3)],
    (B, S, H * D),
    num_heads=H,
    unidirectional=1,
)

_DECODER = "DecoderMaskedMultiHeadAttention"


def _step(net: Net) -> list[str]:
    return [net.free(B, 1, H * D), net.free(B, 1, H * D), net.free(B, 1, H * D)]


_fused(
    _DECODER,
    "",
    "..+ ..+ ..+ / / .+.+ .+.+ . / / + -> ..+ .+.+ .+.+",
    lambda net: [*_step(net), "", "", *_cached(net), net.const([1], np.int32), "", "", net.weight(3 * H * D)],
    (B, 1, H * D),
    (B, H, P, D),
    (B, H, P, D),
    num_heads=H,
    past_present_share_buffer=1,
)
_fused(
    _DECODER,
    "keys of an encoder",
    "+.+ ++~+ ++~+ -> +.+",
    lambda net: [net.free(B, 1, H * D), net.free(B, H, T, D), net.free(B, H, T, D)],
    (B, 1, H * D),
    num_heads=H,
)


# Grouped queries: head sizes are multiples of 8, half of it where halves are rotated.

_GROUPED, K, E = "GroupQueryAttention", 2, 24
_CACHES = (1, K, P + S, E), (1, K, P + S, E)


def _grouped(net: Net, size: int = E) -> list[str]:
    heads = [net.free(1, S, n * size) for n in (2 * K, K, K)]
    return [*heads, net.free(1, K, P, size), net.free(1, K, P, size), *_lengths(net)]


def _lengths(net: Net) -> list[str]:
    return [net.const([P + S - 1], np.int32), net.const(P + S, np.int32)]


def _angles(net: Net, half: int) -> list[str]:
    angles = net.random.uniform(0, 3, (10, half))
    return [net.const(np.cos(angles), np.float32), net.const(np.sin(angles), np.float32)]


_GQA = {"num_heads": 2 * K, "kv_num_heads": K}
_fused(
    _GROUPED,
    "",
    "..+ ..+ ..+ .+.+ .+.+ . 1 -> ..+ .+.+ .+.+",
    _grouped,
    (1, S, 2 * K * E),
    *_CACHES,
    **_GQA,
)
_fused(
    _GROUPED,
    "packed",
    "..+ / / .+.+ .+.+ . 1 -> ..+ .+.+ .+.+",
    lambda net: [net.free(1, S, 4 * K * E), "", "", *_grouped(net)[3:]],
    (1, S, 2 * K * E),
    *_CACHES,
    **_GQA,
)
for _interleaved in (0, 1):
    _fused(
        _GROUPED,
        f"rotated, interleaved {_interleaved}",
        "..+ ..+ ..+ .+.+ .+.+ . 1 .+ .+ -> ..+ .+.+ .+.+",
        lambda net: [*_grouped(net, 32), *_angles(net, 16)],
        (1, S, 2 * K * 32),
        (1, K, P + S, 32),
        (1, K, P + S, 32),
        do_rotary=1,
        rotary_interleaved=_interleaved,
        **_GQA,
    )
_fused(
    _GROUPED,
    "in part rotated, packed",
    "..+ / / .+.. .+.. . 1 .. .. -> ..+ .+.. .+..",
    lambda net: [net.free(1, S, 4 * K * 32), "", "", *_grouped(net, 32)[3:], *_angles(net, 8)],
    (1, S, 2 * K * 32),
    (1, K, P + S, 32),
    (1, K, P + S, 32),
    do_rotary=1,
    **_GQA,
)
_fused(
    _GROUPED,
    "scores a head and sinks",
    "..+ ..+ ..+ .+.+ .+.+ . 1 / / / .+.. + -> ..+ .+.+ .+.+",
    lambda net: [*_grouped(net), "", "", "", net.weight(1, 2 * K, S, P + S), net.weight(2 * K)],
    (1, S, 2 * K * E),
    *_CACHES,
    local_window_size=3,
    **_GQA,
)


# Linear attention: decay a head or a position of it, and how strongly values are written.


def _linear(net: Net, rule: str, decay: int) -> list[str]:
    query, key, value = (net.free(B, S, n) for n in (2 * K * D, K * D, K * V))
    key = net.op("Mul", key, net.const(0.3, np.float32))
    fading = net.op("Neg", net.free(B, S, decay, positive=True)) if "gated" in rule else ""
    written = net.op("Sigmoid", net.free(B, S, K)) if "delta" in rule else ""
    return [query, key, value, net.free(B, K, D, V), fading, written]


for _rule, _free in (("linear", "/ /"), ("gated", "+.+ /"), ("delta", "/ +.+"), ("gated_delta", "+.+ +.+")):
    for _decay in (K, K * D) if "gated" in _rule else (K,):
        _fused(
            "LinearAttention",
            f"{_rule}, {_decay}",
            f"+.+ +.+ +.+ ++++ {_free} -> +.+ ++++",
            partial(_linear, rule=_rule, decay=_decay),
            (B, S, 2 * K * V),
            (B, K, D, V),
            update_rule=_rule,
            q_num_heads=2 * K,
            kv_num_heads=K,
        )


# Rotary embedding.


def _rotary(title: str, free: str, shape: tuple[int, ...], half: int, ids: Any, **attrs: Any) -> None:
    def inputs(net: Net) -> list[str]:
        return [net.free(*shape), net.const(ids), *_angles(net, half)]

    _fused("RotaryEmbedding", title, free, inputs, shape, **attrs)


_IDS = [[0, 1, 2], [4, 5, 6]]
_rotary("", "++++ ++ .+ .+ -> ++++", (B, 3, 3, 8), 4, _IDS)
_rotary("interleaved", "++++ ++ .+ .+ -> ++++", (B, 3, 3, 8), 4, _IDS, interleaved=1)
_rotary("flat", "+++ ++ .+ .+ -> +++", (B, 3, 24), 4, _IDS)
_rotary("flat, first place", "+.+ . .+ .+ -> +.+", (B, 3, 24), 4, [2], num_heads=3)
_rotary("in part, flat", "+++ ++ .. .. -> +++", (B, 3, 48), 4, _IDS, num_heads=3, rotary_embedding_dim=8)


# Norms.

_SKIP = "SkipLayerNormalization"


def _skip(net: Net, *skip: int, weights: int = 3) -> list[str]:
    return [net.free(B, S, I), net.free(*skip or (B, S, I)), *(net.weight(I) for _ in range(weights))]


_fused(_SKIP, "", "++~ ++~ ~ ~ ~ -> ++~", _skip, (B, S, I))
_fused(_SKIP, "with the sum", "++~ ++~ ~ ~ ~ -> ++~ / / ++~", _skip, (B, S, I), (), (), (B, S, I))
_fused(_SKIP, "a skip for all", "++~ .+~ ~ ~ -> ++~", lambda net: _skip(net, 1, S, I, weights=2), (B, S, I))
_fused(
    "SkipSimplifiedLayerNormalization",
    "",
    "++~ ++~ ~ ~ -> ++~ / / ++~",
    lambda net: _skip(net, weights=2),
    (B, S, I),
    (),
    (),
    (B, S, I),
)


@case("rms_norm", "as ONNX Runtime names it", "++~ ~ -> ++~")
def simplified(net: Net) -> None:
    """In the domain of the standard, which does not know it."""
    y = net.op("SimplifiedLayerNormalization", net.free(B, S, I), net.weight(I), axis=-1, epsilon=1e-5, name="tested")
    net.sink(y, shape=(B, S, I))


def _embed(net: Net) -> list[str]:
    ids = [net.const([[1, 0, 4], [2, 2, 3]], np.int32), net.const([[0, 0, 1], [0, 1, 1]], np.int32)]
    tables = [net.weight(n, I) for n in (6, S, 2)]
    return [*ids, *tables, net.weight(I), net.weight(I)]


_fused("EmbedLayerNormalization", "", ".. .. .~ .~ .~ ~ ~ -> ..~ / ..~", _embed, (B, S, I), (), (B, S, I))


# Activations.

for _kind in ("Gelu", "QuickGelu", "FastGelu"):
    _fused(_kind, "", "+++ -> +++", lambda net: [net.free(B, S, I)], (B, S, I))
for _kind in ("BiasGelu", "FastGelu"):
    _fused(_kind, "bias", "+++ + -> +++", lambda net: [net.free(B, S, I), net.weight(I)], (B, S, I))


# Layers.


def _product(
    title: str, free: str, left: Sequence[int], right: Sequence[int], out: Sequence[int], **attrs: int
) -> None:
    def inputs(net: Net) -> list[str]:
        return [net.free(*left), net.weight(*right, fan=I)]

    for kind in ("FusedMatMul",) if "transBatchA" in attrs else ("FusedMatMul", "TransposeMatMul"):
        _fused(kind, title, free, inputs, out, alpha=0.5, **attrs)


_product("", "+++ ++ -> +++", (B, S, I), (I, 5), (B, S, 5))
_product("right transposed", "+++ ++ -> +++", (B, S, I), (5, I), (B, S, 5), transB=1)
_product("both transposed", "+++ +++ -> +++", (B, I, S), (B, 5, I), (B, S, 5), transA=1, transB=1)
_product("leading axes behind", "+++ +++ -> +++", (I, B, S), (S, B, 5), (B, I, 5), transBatchA=1, transBatchB=1)
_product("transposed, too", "+++ +++ -> +++", (S, B, I), (B, S, 5), (B, I, 5), transBatchA=1, transA=1)
_fused(
    "FusedGemm",
    "",
    "++ ++ + -> ++",
    lambda net: [net.free(S, I), net.weight(5, I, fan=I), net.weight(5)],
    (S, 5),
    transB=1,
    activation="LeakyRelu",
    activation_alpha=0.3,
)


def _conv(title: str, free: str, groups: int, behind: Callable[[Net], list[str]]) -> None:
    def inputs(net: Net) -> list[str]:
        return [net.free(B, 6, 4, 4), net.weight(8, 6 // groups, 3, 3, fan=54), *behind(net)]

    _fused("FusedConv", title, free, inputs, (B, 8, 2, 2), group=groups, activation="Relu")


_conv("bias", "++.. ++.. + -> ++..", 1, lambda net: [net.weight(8)])
_conv("grouped, with a sum", "++.. ++.. + ++.. -> ++..", 2, lambda net: [net.weight(8), net.free(B, 8, 2, 2)])


@case("com.microsoft.nhwc_max_pool", "", "+..+ -> +..+")
def nhwc_max_pool(net: Net) -> None:
    """Of bytes alone."""
    x = net.op("Cast", net.op("Mul", net.free(B, 4, 4, I, positive=True), net.const(30, np.float32)), to=2)
    y = net.op("NhwcMaxPool", x, domain=DOMAIN, kernel_shape=[2, 2], strides=[2, 2], name="tested")
    net.sink(net.op("Cast", y, to=1), hidden=5, shape=(B, 2, 2, I))


_fused(
    "CausalConvWithState",
    "",
    "++. +.. + ++. -> ++. ++.",
    lambda net: [net.free(B, I, S), net.weight(I, 1, 3, fan=3), net.weight(I), net.free(B, I, 2)],
    (B, I, S),
    (B, I, 2),
    activation="silu",
)


def _mixture(net: Net, up: int, biased: bool) -> list[str]:
    """Four experts of 6 units, two of which are taken; the kernel overwrites an input that nobody else reads."""
    x = net.free(B, S, I)
    net.sink(net.op("Tanh", x))
    first = [net.weight(4, up * 6, I, fan=I), net.weight(4, up * 6) if biased else ""]
    second = [net.weight(4, I, 6, fan=6), net.weight(4, I) if biased else ""]
    return [x, net.free(B * S, 4), *first, *second]


for _title, _up, _biased, _more in (
    ("", 1, False, {"activation_type": "relu"}),
    ("biased", 1, True, {"activation_type": "gelu", "normalize_routing_weights": 1}),
    ("gate and value interleaved", 2, True, {"activation_type": "swiglu", "swiglu_fusion": 1}),
):
    _fused(
        "MoE",
        _title,
        f"+++ +~ ~++ {'~+' if _biased else '/'} ~++ {'~+' if _biased else '/'} -> +++",
        partial(_mixture, up=_up, biased=_biased),
        (B, S, I),
        k=2,
        **_more,
    )
