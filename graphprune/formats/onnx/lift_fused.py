"""Fused ops of ONNX Runtime as torch functions: one line an op, as in `lift_ops`, with their domain in front.

What a fused op gives beside its result where nobody asks for it, such as the mean of a norm, is left empty.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from graphprune.formats.onnx.lift_ops import ByReference, Function, find, op

DOMAIN = "com.microsoft"
_EPSILON = 1e-12
_NONE = torch.empty(0)


def fused(names: str, function: Function) -> None:
    """Register ``function`` for ``names`` of the domain."""
    op(" ".join(f"{DOMAIN}.{name}" for name in names.split()), function)


def _sum(*values: Tensor | None) -> Tensor:
    found = [value for value in values if value is not None]
    return sum(found[1:], found[0])


# Activations, and layers with one behind them.


def _activated(x: Tensor, kind: str = "", alpha: Any = None, beta: Any = None) -> Tensor:
    if not kind:
        return x
    function = find(kind, 1)
    names = ("min", "max") if kind == "Clip" else ("alpha", "beta")
    given = {name: value for name, value in zip(names, (alpha, beta), strict=True) if value is not None}
    if function is None:
        raise ByReference
    return function(x, **given)  # type: ignore[no-any-return]


def _fused_matmul(
    a: Tensor,
    b: Tensor,
    alpha: float = 1,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    **moved: int,
) -> Tensor:
    a, b = (x.movedim(0, -2) if moved.get(flag) else x for x, flag in ((a, "transBatchA"), (b, "transBatchB")))
    return alpha * torch.matmul(a.mT if transA and a.dim() > 1 else a, b.mT if transB and b.dim() > 1 else b)


def _fused_gemm(
    *inputs: Tensor,
    activation: str = "",
    activation_alpha: Any = None,
    activation_beta: Any = None,
    activation_gamma: Any = None,
    **attrs: Any,
) -> Tensor:
    del activation_gamma
    function = find("Gemm", 1)
    assert function is not None
    return _activated(function(*inputs, **attrs), activation, activation_alpha, activation_beta)


def _fused_conv(
    x: Tensor,
    w: Tensor,
    b: Any = None,
    z: Any = None,
    activation: str = "",
    activation_params: Any = (),
    **attrs: Any,
) -> Tensor:
    function = find("Conv", 1)
    assert function is not None
    return _activated(_sum(function(x, w, b, **attrs), z), activation, *activation_params)


fused("Gelu", F.gelu)
fused("BiasGelu", lambda x, b: F.gelu(x + b))
fused("FastGelu", lambda x, b=None: F.gelu(_sum(x, b), approximate="tanh"))
fused("QuickGelu", lambda x, alpha=1.702: x * torch.sigmoid(alpha * x))
fused("FusedMatMul TransposeMatMul", _fused_matmul)
fused("FusedGemm", _fused_gemm)
fused("FusedConv", _fused_conv)


# Norms.


def _skip_norm(
    x: Tensor, skip: Tensor, scale: Tensor, shift: Any = None, bias: Any = None, epsilon: float = _EPSILON
) -> Any:
    total = _sum(x, skip, bias)
    return F.layer_norm(total, total.shape[-1:], scale, shift, epsilon), _NONE, _NONE, total


def _skip_rms(x: Tensor, skip: Tensor, scale: Tensor, bias: Any = None, epsilon: float = _EPSILON) -> Any:
    total = _sum(x, skip, bias)
    return F.rms_norm(total, total.shape[-1:], scale, epsilon), _NONE, _NONE, total


def _embed(
    words: Tensor,
    segments: Any,
    word: Tensor,
    place: Tensor,
    segment: Any,
    scale: Tensor,
    shift: Tensor,
    mask: Any = None,
    places: Any = None,
    epsilon: float = _EPSILON,
    mask_index_type: int = 0,
) -> Any:
    if mask_index_type:
        raise ByReference
    at = torch.arange(words.shape[1])[None] if places is None else places.long()
    found = word[words.long()] + place[at] + (0 if segments is None else segment[segments.long()])
    count = torch.zeros(len(words), dtype=torch.int32) if mask is None else mask.sum(1).int()
    return F.layer_norm(found, found.shape[-1:], scale, shift, epsilon), count, found


fused("SkipLayerNormalization", _skip_norm)
fused("SkipSimplifiedLayerNormalization", _skip_rms)
fused("EmbedLayerNormalization", _embed)
op(
    "SimplifiedLayerNormalization",
    lambda x, scale, axis=-1, epsilon=1e-5: F.rms_norm(x, x.shape[axis:], scale, epsilon),
)


# Attention. Heads are (batch, heads, places, size) inside.


def _heads(x: Tensor, count: int) -> Tensor:
    return x if x.dim() == 4 else x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: int = 0) -> Tensor:
    """The first positions of each head turned in pairs, by angles (batch, places, half); the rest as it is."""
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    cos, sin = cos[:, None], sin[:, None]
    pair = a * cos - b * sin, a * sin + b * cos
    made = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([made, rest], -1)


def _rotary(
    x: Tensor,
    ids: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int = 0,
    interleaved: int = 0,
    rotary_embedding_dim: int = 0,
    **attrs: Any,
) -> Tensor:
    del rotary_embedding_dim
    if attrs.get("scale", 1.0) != 1.0 or attrs.get("is_packed_batching", 0):
        raise ByReference
    heads = _heads(x, num_heads or (x.shape[-1] // (2 * cos.shape[-1])))
    places = ids.long() if ids.dim() > 1 else ids.long()[None] + torch.arange(heads.shape[2])[None]
    made = _rotate(heads, cos[places], sin[places], interleaved)
    return made if x.dim() == 4 else made.transpose(1, 2).flatten(2)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float = 0.0,
    bias: Any = None,
    causal: int = 0,
    window: int = -1,
    cap: float = 0.0,
    sink: Any = None,
    before: int = 0,
) -> Tensor:
    """(batch, places, heads times size). Where it is ``causal``, ``before`` keys are ahead of the first query."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * (scale or 1 / math.sqrt(q.shape[-1]))
    scores = cap * torch.tanh(scores / cap) if cap else scores
    scores = _sum(scores, bias)
    if causal:
        keys, queries = torch.arange(k.shape[2]), torch.arange(q.shape[2])[:, None] + before
        unseen = (keys > queries) | ((keys <= queries - window) if window >= 0 else False)
        scores = scores.masked_fill(unseen, -math.inf)
    if sink is not None:
        column = sink.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    return (scores.softmax(-1)[..., : k.shape[2]] @ v).transpose(1, 2).flatten(2)


def _padded(mask: Any, filled: float) -> Any:
    """What is added to scores where ``mask`` (batch, keys), or one a query, is zero."""
    if mask is None:
        return None
    if mask.dim() not in (2, 3):
        raise ByReference
    return ((1 - mask) * filled)[:, None, None] if mask.dim() == 2 else ((1 - mask) * filled)[:, None]


def _joined(past: Any, new: Tensor) -> Tensor:
    return new if past is None else torch.cat([past, new], 2)


def _attention(
    x: Tensor,
    weights: Tensor,
    b: Any = None,
    mask: Any = None,
    past: Any = None,
    bias: Any = None,
    shared: Any = None,
    *,
    num_heads: int,
    qkv_hidden_sizes: Any = None,
    unidirectional: int = 0,
    scale: float = 0.0,
    mask_filter_value: float = -10000.0,
    **attrs: Any,
) -> Any:
    if shared is not None or any(attrs.values()):
        raise ByReference
    joint = _sum(x @ weights, b)
    parts = torch.split(joint, list(qkv_hidden_sizes or [joint.shape[-1] // 3] * 3), -1)
    q, k, v = (_heads(part, num_heads) for part in parts)
    k, v = (_joined(None if past is None else past[i], new) for i, new in enumerate((k, v)))
    added = [value for value in (bias, _padded(mask, mask_filter_value)) if value is not None]
    y = _attend(
        q, k, v, scale, _sum(*added) if added else None, unidirectional, before=0 if past is None else past.shape[3]
    )
    return y, torch.stack([k, v]) if k.shape == v.shape else _NONE


def _multi_head(
    q: Tensor,
    k: Any = None,
    v: Any = None,
    b: Any = None,
    mask: Any = None,
    bias: Any = None,
    past_key: Any = None,
    past_value: Any = None,
    shared: Any = None,
    beams: Any = None,
    *,
    num_heads: int,
    unidirectional: int = 0,
    scale: float = 0.0,
    mask_filter_value: float = -10000.0,
) -> Any:
    if k is None or shared is not None or beams is not None:
        raise ByReference
    if b is not None:
        parts = torch.split(b, [q.shape[-1]] * 2 + [len(b) - 2 * q.shape[-1]])
        q, k, v = (
            x + part if x.dim() == 3 else x + _heads(part[None, None], num_heads)
            for x, part in zip((q, k, v), parts, strict=True)
        )
    q, k, v = (_heads(x, num_heads) for x in (q, k, v))
    k, v = _joined(past_key, k), _joined(past_value, v)
    added = [value for value in (bias, _padded(mask, mask_filter_value)) if value is not None]
    before = 0 if past_key is None else past_key.shape[2]
    return _attend(q, k, v, scale, _sum(*added) if added else None, unidirectional, before=before), k, v


def _grouped(
    q: Tensor,
    k: Any,
    v: Any,
    past_key: Any,
    past_value: Any,
    lengths: Tensor,
    total: Tensor,
    cos: Any = None,
    sin: Any = None,
    ids: Any = None,
    bias: Any = None,
    sink: Any = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    softcap: float = 0.0,
    local_window_size: int = -1,
    causal: int = 1,
    **attrs: Any,
) -> Any:
    before = 0 if past_key is None else past_key.shape[2]
    if k is None:
        size = q.shape[-1] // (num_heads + 2 * kv_num_heads)
        q, k, v = torch.split(q, [num_heads * size, kv_num_heads * size, kv_num_heads * size], -1)
    whole = before + q.shape[1]
    if any(attrs.values()) or bool((lengths + 1 != whole).any()) or int(total) != whole:
        raise ByReference
    q, k, v = _heads(q, num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    if do_rotary:
        places = torch.arange(before, whole)[None] if ids is None else ids.long()
        q, k = (_rotate(x, cos[places], sin[places], rotary_interleaved) for x in (q, k))
    k, v = _joined(past_key, k), _joined(past_value, v)
    return _attend(q, k, v, scale, bias, causal, local_window_size, softcap, sink, before), k, v


fused("RotaryEmbedding", _rotary)
fused("Attention", _attention)
fused("MultiHeadAttention", _multi_head)
fused("GroupQueryAttention", _grouped)
