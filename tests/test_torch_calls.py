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
from graphprune.graph import Graph, Node, Value, Weight
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


def _heads(x: Any, count: int) -> Any:
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


def _unused(m: Any, x: Tensor) -> Any:
    hidden = m.q(x)
    last = hidden[:, :, -1]
    return m.o(hidden.relu()).view(*last.shape, 5)


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


def _picture(found: list[int], compute: Callable[..., Any], **parts: Any) -> Case:
    return found, compute, parts, (IMAGE,)


def _words(found: list[int], compute: Callable[..., Any], /, *inputs: Tensor, **parts: Any) -> Case:
    return found, compute, parts, (WORDS, *inputs)


def _attention(found: list[int], compute: Callable[..., Any], /, *inputs: Tensor, **widths: int) -> Case:
    out = widths.pop("o", 12)
    parts = {name: nn.Linear(12, width) for name, width in widths.items()}
    return found, compute, {**parts, "o": nn.Linear(out, 5)}, (WORDS, *inputs)


def _conv(inputs: int, outputs: int, kernel: int, **options: Any) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, **options)


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
    "a position of which only the shape is used": lambda: _attention([18], _unused, q=18, o=18),
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
    "gru, last state": lambda: _words(
        [8], lambda m, x: m.o(m.r(x)[1][-1]), r=nn.GRU(12, 8, 2, batch_first=True), o=nn.Linear(8, 5)
    ),
    "state given from outside": lambda: _words(
        [], lambda m, x, h: m.o(m.r(x, h)[0]), _random(1, 2, 8), r=nn.GRU(12, 8, batch_first=True), o=nn.Linear(8, 5)
    ),
    "lstm with projection": lambda: _words(
        [], lambda m, x: m.o(m.r(x)[0]), r=nn.LSTM(12, 9, proj_size=8, batch_first=True), o=nn.Linear(8, 5)
    ),
    "gru cell": lambda: _words([8], _cell, r=nn.GRUCell(12, 8), o=nn.Linear(8, 5)),
    "rnn cell": lambda: _words([8], _cell, r=nn.RNNCell(12, 8), o=nn.Linear(8, 5)),
    "lstm cell": lambda: _words([8], _long_cell, r=nn.LSTMCell(12, 8), o=nn.Linear(8, 5)),
    "padded channels": lambda: _picture(
        [2, 3, 11], _shortcut, a=_conv(3, 11, 3, padding=1), b=_conv(11, 16, 3, padding=1), o=nn.Linear(16, 5)
    ),
    "shuffled channels": lambda: _picture(
        [3, 4, 4], _shuffled, a=_conv(3, 16, 3), b=_conv(16, 12, 3, groups=4), o=nn.Linear(12, 5)
    ),
    "group norm": lambda: _image(
        [3, 4, 8], lambda m, x: m.g(m.b(m.a(x))), 12, a=_conv(3, 8, 3), b=_conv(8, 12, 3), g=nn.GroupNorm(4, 12)
    ),
    "instance norm": lambda: _image(
        [8], lambda m, x: m.g(m.a(x)).relu(), 8, a=_conv(3, 8, 3), g=nn.InstanceNorm2d(8, affine=True)
    ),
    "slope a channel": lambda: _image([8], lambda m, x: m.p(m.a(x)), 8, a=_conv(3, 8, 3), p=nn.PReLU(8)),
    "pixel shuffle": lambda: _image([4], lambda m, x: functional.pixel_shuffle(m.a(x), 2), 4, a=_conv(3, 16, 3)),
    "pixel unshuffle": lambda: _image([4], lambda m, x: functional.pixel_unshuffle(m.a(x), 2), 16, a=_conv(3, 4, 3)),
    "resized": lambda: _image(
        [8], lambda m, x: functional.interpolate(m.a(x), scale_factor=2, mode="bilinear"), 8, a=_conv(3, 8, 3)
    ),
    "transposed convolution": lambda: _image(
        [6, 8], lambda m, x: m.t(m.a(x)).relu(), 6, a=_conv(3, 8, 3), t=nn.ConvTranspose2d(8, 6, 2, 2)
    ),
    "patches": lambda: _picture(
        [4], lambda m, x: m.o(functional.unfold(m.a(x), 3).mean(2)), a=_conv(3, 4, 3), o=nn.Linear(36, 5)
    ),
    "patches put back": lambda: _words(
        [8],
        lambda m, x: m.o(functional.fold(m.a(x).transpose(1, 2), (1, 9), (1, 3)).sum((2, 3))),
        a=_twelve(24),
        o=nn.Linear(8, 5),
    ),
    "flattened": lambda: _picture(
        [8], lambda m, x: m.o(functional.max_pool2d(m.a(x), 2).flatten(1)), a=_conv(3, 8, 3), o=nn.Linear(72, 5)
    ),
    "one layer norm for two": lambda: _words(
        [8],
        lambda m, x: m.o(m.n(m.a(x))) + m.p(m.n(m.b(x))),
        a=_twelve(8),
        b=_twelve(8),
        n=nn.LayerNorm(8),
        o=nn.Linear(8, 5),
        p=nn.Linear(8, 5),
    ),
    "weight norm": lambda: _words(
        [8], _plain, a=nn.utils.parametrizations.weight_norm(nn.Linear(12, 8)), o=nn.Linear(8, 5)
    ),
    "spectral norm": lambda: _words(
        [8], _plain, a=nn.utils.parametrizations.spectral_norm(nn.Linear(12, 8)), o=nn.Linear(8, 5)
    ),
    "gated": lambda: _words([8], lambda m, x: m.o(functional.glu(m.a(x))), a=_twelve(16), o=nn.Linear(8, 5)),
    "bilinear": lambda: _words(
        [6, 7, 8],
        lambda m, x: m.o(m.b(m.a(x), m.c(x))),
        a=_twelve(8),
        c=_twelve(6),
        b=nn.Bilinear(8, 6, 7),
        o=nn.Linear(7, 5),
    ),
    "largest of three": lambda: _words(
        [3, 8], lambda m, x: m.o(m.a(x).unflatten(-1, (8, 3)).max(-1)[0]), a=_twelve(24), o=nn.Linear(8, 5)
    ),
    "place of the largest": lambda: _words(
        [8], lambda m, x: m.o(m.a(x).unflatten(-1, (8, 3)).max(-1)[1].to(x.dtype)), a=_twelve(24), o=nn.Linear(8, 5)
    ),
    "divided by a norm": lambda: _words(
        [8], lambda m, x: m.o(functional.normalize(m.a(x), p=1.0, dim=-1)), a=_twelve(8), o=nn.Linear(8, 5)
    ),
    "picked by a stored index": lambda: _words(
        [2, 5, 6], _stored_index, a=_twelve(8), i=nn.Buffer(torch.tensor([2])), b=nn.Linear(1, 6), o=nn.Linear(6, 5)
    ),
    "rolled": lambda: _words([8], lambda m, x: m.o(m.a(x).roll(1, 1)), a=_twelve(8), o=nn.Linear(8, 5)),
    "picked by a mask": lambda: _words(
        [8], lambda m, x, mask: m.o(m.a(x)[mask]), _MASK, a=_twelve(8), o=nn.Linear(8, 5)
    ),
    "picked along the second axis": lambda: _words(
        [8], lambda m, x, mask: m.o(m.a(x)[:, mask]), _MASK[1], a=_twelve(8), o=nn.Linear(8, 5)
    ),
    "written in place": lambda: _words([8], _written, a=_twelve(8), t=nn.Parameter(_random(8)), o=nn.Linear(8, 5)),
    "bag of words": lambda: (
        [8],
        lambda m, ids: m.o(m.e(ids)),
        {"e": nn.EmbeddingBag(20, 8), "o": nn.Linear(8, 5)},
        (IDS,),
    ),
    "embedding tied to the output": lambda: ([8], _tied, {"e": nn.Embedding(20, 8), "a": nn.Linear(8, 8)}, (IDS,)),
}
"""What each case is called -> the sizes of its prunable Dims, what it computes, its parts, its inputs."""


def _stored_index(m: Any, x: Tensor) -> Any:
    return m.o(m.b(m.a(x).index_select(-1, m.i)).relu())


def _plain(m: Any, x: Tensor) -> Any:
    return m.o(m.a(x).relu())


def _written(m: Any, x: Tensor) -> Any:
    y = m.a(x).clone()
    y[:, 0] = m.t
    return m.o(y)


def _tied(m: Any, ids: Tensor) -> Any:
    return functional.linear(m.a(m.e(ids)).relu(), m.e.weight)


def _prove(source: Any, **how: Any) -> Analysis:
    format = of(source)
    model = format.read(source, **how)
    analysis = analyse(model.graph)
    proof = Proof(format, model, analysis)
    random = np.random.default_rng(0)
    half = {a.dim: np.sort(random.permutation(a.size)[: max(a.least, a.size // 2)]) for a in analysis.prunable}
    checks = proof.permutation(), proof.zero_equals_cut(half), proof.runs(format.apply(model, analysis, half))
    assert all(check.passed for check in checks), checks
    assert all((check.error or 0) < 1e-12 for check in checks), checks
    return analysis


def _module(name: str) -> tuple[list[int], nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    found, compute, parts, inputs = CASES[name]()
    return found, generic(Model(compute, parts).eval()), inputs


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """The Dims expected, no more and no fewer, and right."""
    found, module, inputs = _module(name)
    analysis = _prove(module, example_inputs=inputs)
    assert sorted(atom.size for atom in analysis.prunable) == sorted(found), analysis


@pytest.mark.parametrize("name", CASES)
def test_case_decomposed(name: str) -> None:
    """The same program in core ATen is right as well; where calls came apart it may find other Dims."""
    _, module, inputs = _module(name)
    _prove(torch.export.export(module, inputs).run_decompositions())


@pytest.mark.parametrize(("order", "exact"), [(2.0, True), (1.0, True), (float("inf"), True), (-float("inf"), False)])
def test_norms_to_which_zeros_add_nothing(order: float, exact: bool) -> None:
    """A vector norm of positive order is a sum or a maximum of magnitudes; the least magnitude is neither."""
    parts = {"a": _twelve(8), "o": nn.Linear(8, 5)}
    module = generic(Model(lambda m, x: m.o(m.a(x) / torch.linalg.vector_norm(m.a(x), order, -1, True)), parts).eval())
    (atom,) = _prove(module, example_inputs=(WORDS,)).prunable
    assert (atom.inexact is None) == exact


def test_batch_of_any_size() -> None:
    """Batch and heads in one axis: the heads are cut, and the cut module runs at other sizes."""

    def compute(m: Any, x: Tensor) -> Any:
        y = _heads(m.a(x), 4).flatten(0, 1)
        return m.o(y.view(y.shape[0] // 4, 4, 7, 3).transpose(1, 2).flatten(2))

    module = generic(Model(compute, {"a": _twelve(12), "o": _twelve(5)}).eval())
    format = of(module)
    model = format.read(
        module, example_inputs=(WORDS,), dynamic_shapes={"inputs": ({0: torch.export.Dim("batch", min=2, max=64)},)}
    )
    analysis = analyse(model.graph)
    assert sorted(atom.size for atom in analysis.prunable) == [3, 4]
    cut = format.apply(model, analysis, {atom.dim: np.array([0, 2]) for atom in analysis.prunable})
    (name,) = model.inputs
    assert format.run(cut)({name: np.ones((5, 7, 12))})["0"].shape == (5, 7, 5)


def test_size_read_at_run_time_freezes() -> None:
    """Where the model reads the size of an axis when it runs, what enters that size beside the unknown stays whole."""
    shapes: dict[str, tuple[int | str, ...]] = {
        "x": ("b", 7),
        "w": (12, 7),
        "y": ("b", 12),
        "size": (2,),
        "z": ("4*b", 3),
    }
    values = {name: Value(name, shape) for name, shape in shapes.items()}
    weights = {"w": Weight("w", (12, 7), "float32", lambda: np.zeros((12, 7)))}
    nodes = (
        Node(0, "linear", "", ("x", "w"), ("y",), {}),
        Node(1, "reshape", "", ("y", "size"), ("z",), {}),
        Node(2, "torch_size", "read", ("z",), (), {"axis": 0}),
    )
    known = {"size": np.array([-1.0, 3.0])}
    found = [analyse(Graph(nodes[:n], values, weights, ("x",), (), {}, 99, known)) for n in (2, 3)]
    assert [[atom.size for atom in analysis.prunable] for analysis in found] == [[4, 3], [3]]
    assert "the model reads when it runs (node read)" in str(found[1])
