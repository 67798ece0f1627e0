"""Attention as one op, and rotary position embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.build import Net
from tests.cases.table import add, case

S, T, D, V = 3, 4, 6, 5
"""Queries, keys, head size, value head size."""


def _heads(net: Net, query: int, key: int) -> tuple[str, str, str]:
    return net.free(2, query, S, D), net.free(2, key, T, D), net.free(2, key, T, V)


def _flat(net: Net, query: int, key: int) -> tuple[str, str, str]:
    return net.free(2, S, query * D), net.free(2, T, key * D), net.free(2, T, key * V)


def _attention(title: str, free: str, make: Any, heads: tuple[int, int], opset: int = 23, **attrs: Any) -> None:
    def build(net: Net) -> None:
        if make is _flat:
            attrs.update(q_num_heads=heads[0], kv_num_heads=heads[1])
        net.sink(net.op("Attention", *make(net, *heads), name="tested", **attrs))

    add("attention", title, free, build, opset=opset)


_attention("one head a head", "++++ ++~+ ++~+ -> ++++", _heads, (3, 3))
_attention("grouped queries", "++++ ++~+ ++~+ -> ++++", _heads, (6, 3))
_attention("one key head", "++++ +.~+ +.~+ -> ++++", _heads, (4, 1))
_attention("flat", "+++ +~+ +~+ -> +++", _flat, (3, 3))
_attention("flat, grouped", "+++ +~+ +~+ -> +++", _flat, (6, 2))
_attention("a scale of its own, capped", "+++ +~+ +~+ -> +++", _flat, (6, 2), scale=0.3, softcap=2.0)
_attention("opset 24", "+++ +~+ +~+ -> +++", _flat, (6, 2), opset=24)
_attention("causal", "++.+ ++.+ ++.+ -> ++.+", _heads, (6, 3), is_causal=1)
_attention("a window", "++.+ ++.+ ++.+ -> ++.+", _heads, (6, 3), opset=25, left_window_size=1)
_attention("causal, flat", "+.+ +.+ +.+ -> +.+", _flat, (6, 3), is_causal=1)


@case("attention", "mask", "++++ ++~+ ++~+ +~ -> ++++", opset=23)
def attention_mask(net: Net) -> None:
    net.sink(net.op("Attention", *_heads(net, 4, 2), net.weight(S, T), name="tested"))


@case("attention", "mask a head", "+++ +~+ +~+ .++~ -> +++", opset=23)
def attention_mask_head(net: Net) -> None:
    heads = {"q_num_heads": 4, "kv_num_heads": 2}
    net.sink(net.op("Attention", *_flat(net, 4, 2), net.weight(1, 4, S, T), name="tested", **heads))


@case("attention", "boolean mask", "++++ ++~+ ++~+ +~ -> ++++", opset=23)
def attention_boolean(net: Net) -> None:
    seen = np.tril(np.ones((S, T)), 1)
    net.sink(net.op("Attention", *_heads(net, 4, 2), net.const(seen, np.bool_), name="tested"))


@case("attention", "all four outputs", "++++ ++~+ ++~+ +~ ++~+ ++~+ -> ++++ ++~+ ++~+ +++~", opset=23)
def attention_cache(net: Net) -> None:
    """Keys of the past are joined in front."""
    mask, past = net.weight(S, T + 2), (net.free(2, 2, 2, D), net.free(2, 2, 2, V))
    for name in net.ops("Attention", *_heads(net, 4, 2), mask, *past, outs=4, name="tested"):
        net.sink(name)


@case("attention", "flat, with a cache", "+++ +~+ +~+ / ++~+ ++~+ -> +++ ++~+ ++~+", opset=23)
def attention_flat_cache(net: Net) -> None:
    past = net.free(2, 2, 2, D), net.free(2, 2, 2, V)
    inputs = *_flat(net, 4, 2), "", *past
    for name in net.ops("Attention", *inputs, outs=3, q_num_heads=4, kv_num_heads=2, name="tested"):
        net.sink(name)


@case("attention", "lengths", "++.+ ++.+ ++.+ / / / + -> ++.+", opset=24)
def attention_lengths(net: Net) -> None:
    inputs = *_heads(net, 4, 2), "", "", "", net.const([2, 4])
    net.sink(net.op("Attention", *inputs, name="tested"))


@case("linear_attention", "", "+.+ +.+ +.+ ++++ +.+ +.+ -> +.+ ++++", opset=27)
def linear_attention(net: Net) -> None:
    query, key, value = net.free(2, S, 4 * D), net.free(2, S, 2 * D), net.free(2, S, 2 * V)
    key = net.op("Mul", key, net.const(0.3, np.float32))
    decay, beta = net.op("Neg", net.free(2, S, 2, positive=True)), net.op("Sigmoid", net.free(2, S, 2))
    inputs = query, key, value, net.free(2, 2, D, V), decay, beta
    for name in net.ops("LinearAttention", *inputs, outs=2, q_num_heads=4, kv_num_heads=2, name="tested"):
        net.sink(name, hidden=5)


def _rotary(title: str, free: str, shape: tuple[int, ...], places: bool = True, **attrs: Any) -> None:
    def build(net: Net) -> None:
        half = 4 if len(shape) == 4 else shape[-1] // attrs["num_heads"] // 2
        rows = [10, half] if places else [2, 3, half]
        angles = net.random.uniform(0, 3, rows)
        caches = net.const(np.cos(angles), np.float32), net.const(np.sin(angles), np.float32)
        ids = [net.const([[0, 1, 2], [4, 5, 6]])] if places else []
        net.sink(net.op("RotaryEmbedding", net.free(*shape), *caches, *ids, name="tested", **attrs), hidden=5)

    add("rotary_embedding", title, free, build, opset=23)


_rotary("", "++++ .+ .+ ++ -> ++++", (2, 3, 3, 8))
_rotary("interleaved", "++++ .+ .+ ++ -> ++++", (2, 3, 3, 8), interleaved=1)
_rotary("flat", "+++ .+ .+ ++ -> +++", (2, 3, 24), num_heads=4)
_rotary("angles a place", "++++ +++ +++ -> ++++", (2, 3, 3, 8), places=False)
_rotary("part of the head", "+++. .. .. ++ -> +++.", (2, 3, 3, 16), rotary_embedding_dim=8)
