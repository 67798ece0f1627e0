"""Small modules through the torch format, one a mechanism: which Dims are found, and that they are right.

Each is exported in float64 with generic weights; every prunable Dim is permuted, half of each is cut and compared with
zeros, and the cut module runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from graphprune.analysis import Analysis, analyse
from graphprune.formats import of
from graphprune.verify import Proof
from models.transformers_zoo import generic

pytestmark = pytest.mark.filterwarnings("ignore")

Case = tuple[list[int], Callable[..., Any], dict[str, Any], tuple[Tensor, ...]]


class Model(nn.Module):
    """``compute(self, *inputs)`` with the parts given."""

    def __init__(self, compute: Callable[..., Any], parts: dict[str, Any]) -> None:
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        """What the case computes."""
        return self.compute(self, *inputs)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


WORDS, IMAGE = _random(2, 7, 12), _random(2, 3, 8, 8)
IDS = torch.arange(12).reshape(3, 4)
LINEAR = nn.Linear(8, 5)


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _attend(m: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    return m.o(functional.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2))


def _fused(m: Any, x: Tensor) -> Any:
    return _attend(m, *(_heads(part, 4) for part in m.q(x).chunk(3, -1)))


def _permuted(m: Any, x: Tensor) -> Any:
    q, k, v = m.q(x).reshape(2, 7, 3, 4, 3).permute(2, 0, 3, 1, 4)
    return m.o(((q * 3**-0.5) @ k.transpose(-2, -1)).softmax(-1).matmul(v).transpose(1, 2).reshape(2, 7, 12))


def _grouped(m: Any, x: Tensor) -> Any:
    parts = _heads(m.q(x), 4), _heads(m.k(x), 2), _heads(m.v(x), 2)
    return _attend(m, *parts, is_causal=True, enable_gqa=True)


def _interleaved(m: Any, x: Tensor) -> Any:
    k, v = (_heads(part(x), 2).repeat_interleave(2, 1) for part in (m.k, m.v))
    return _attend(m, _heads(m.q(x), 4), k, v)


def _masked(m: Any, x: Tensor, mask: Tensor) -> Any:
    return _attend(m, _heads(m.q(x), 4), _heads(m.k(x), 4), _heads(m.v(x), 4), attn_mask=mask[:, None, None])


def _slopes(m: Any, x: Tensor) -> Any:
    scale = 0.5 ** torch.arange(1, 5, dtype=x.dtype)
    return m.o((_heads(m.q(x), 4) * scale[:, None, None]).transpose(1, 2).flatten(2).relu())


def _newest(m: Any, x: Tensor) -> Any:
    parts = m.q(x).unflatten(-1, (6, 3))
    return m.o((parts[:, :, :-2] * parts[:, :, [-2]] + parts[:, :, [-1]]).flatten(2))


def _cell(m: Any, x: Tensor) -> Any:
    state = torch.zeros(2, 8, dtype=x.dtype)
    for i in range(3):
        state = m.r(x[:, i], state)
    return m.o(state)


def _long_cell(m: Any, x: Tensor) -> Any:
    state = memory = torch.zeros(2, 8, dtype=x.dtype)
    for i in range(3):
        state, memory = m.r(x[:, i], (state, memory))
    return m.o(state)


def _shuffled(m: Any, x: Tensor) -> Any:
    y = m.a(x).unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    return m.o(m.b(y).mean((2, 3)))


def _shortcut(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    return m.o((m.b(y).relu() + functional.pad(y, (0, 0, 0, 0, 2, 3))).mean((2, 3)))


def _recurrent(kind: type[nn.Module], wide: int = 1, **options: Any) -> Case:
    parts = {"e": nn.Linear(12, 10), "r": kind(10, 8, batch_first=True, **options), "o": nn.Linear(8 * wide, 5)}
    return [10, 8], lambda m, x: m.o(m.r(m.e(x))[0]), parts, (WORDS,)


def _image(found: list[int], compute: Callable[..., Any], out: int, **parts: Any) -> Case:
    return found, lambda m, x: m.o(compute(m, x).mean((2, 3))), {**parts, "o": nn.Linear(out, 5)}, (IMAGE,)


def _words(found: list[int], compute: Callable[..., Any], /, *inputs: Tensor, **parts: Any) -> Case:
    return found, compute, parts, (WORDS, *inputs)


def _attention(found: list[int], compute: Callable[..., Any], /, *inputs: Tensor, **widths: int) -> Case:
    out = widths.pop("o", 12)
    parts = {name: nn.Linear(12, width) for name, width in widths.items()}
    return found, compute, {**parts, "o": nn.Linear(out, 5)}, (WORDS, *inputs)


def _conv(*sizes: int, **options: Any) -> nn.Module:
    return nn.Conv2d(*sizes, **options)


def _twelve(width: int) -> nn.Module:
    return nn.Linear(12, width)


_MASK = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
_ENCODER = nn.TransformerEncoderLayer(12, 4, 20, batch_first=True)

CASES: dict[str, Callable[[], Case]] = {
    "qkv in one, split by chunk": lambda: _attention([3, 4, 3], _fused, q=36),
    "qkv in one, taken apart": lambda: _attention([4, 3], _permuted, q=36),
    "grouped queries": lambda: _attention([2, 2, 3, 5], _grouped, q=12, k=6, v=10, o=20),
    "repeated keys": lambda: _attention([2, 2, 3, 3], _interleaved, q=12, k=6, v=6),
    "boolean attention mask": lambda: _attention([3, 4, 3], _masked, _MASK, q=12, k=12, v=12),
    "slopes of heads": lambda: _attention([4, 3], _slopes, q=12),
    "one position from the end": lambda: _attention([3, 4], _newest, q=18),
    "multi-head attention": lambda: _words(
        [3, 4, 12], lambda m, x: m.o(m.m(x, x, x)[0]), m=nn.MultiheadAttention(12, 4, batch_first=True), o=_twelve(5)
    ),
    "transformer encoder": lambda: _words(
        [3, 3, 4, 4, 12, 20, 20],
        lambda m, x: m.o(m.m(m.a(x))),
        a=_twelve(12),
        m=nn.TransformerEncoder(_ENCODER, 2, enable_nested_tensor=False),
        o=_twelve(5),
    ),
    "lstm": lambda: _recurrent(nn.LSTM),
    "lstm, two layers": lambda: _recurrent(nn.LSTM, num_layers=2),
    "lstm, both directions": lambda: _recurrent(nn.LSTM, 2, num_layers=2, bidirectional=True),
    "lstm without bias": lambda: _recurrent(nn.LSTM, bias=False),
    "gru, both directions": lambda: _recurrent(nn.GRU, 2, num_layers=2, bidirectional=True),
    "rnn": lambda: _recurrent(nn.RNN, num_layers=2),
    "gru, last state": lambda: _words([8], lambda m, x: m.o(m.r(x)[1][-1]), r=nn.GRU(12, 8, 2, batch_first=True), o=LINEAR),
    "state given from outside": lambda: _words(
        [], lambda m, x, h: m.o(m.r(x, h)[0]), _random(1, 2, 8), r=nn.GRU(12, 8, batch_first=True), o=LINEAR
    ),
    "lstm with projection": lambda: _words(
        [], lambda m, x: m.o(m.r(x)[0]), r=nn.LSTM(12, 9, proj_size=8, batch_first=True), o=LINEAR
    ),
    "gru cell": lambda: _words([8], _cell, r=nn.GRUCell(12, 8), o=LINEAR),
    "rnn cell": lambda: _words([8], _cell, r=nn.RNNCell(12, 8), o=LINEAR),
    "lstm cell": lambda: _words([8], _long_cell, r=nn.LSTMCell(12, 8), o=LINEAR),
    "padded channels": lambda: _image([2, 3, 11], lambda m, x: x, 3)
    if False
    else ([2, 3, 11], _shortcut, {"a": _conv(3, 11, 3, padding=1), "b": _conv(11, 16, 3, padding=1), "o": nn.Linear(16, 5)}, (IMAGE,)),
}
