"""A language model that goes on by a token says what it says on the whole text."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto

import graphprune
from graphprune.data.inputs import inputs
from graphprune.data.language import beside_as
from graphprune.formats.onnx import onward
from graphprune.formats.onnx.last import last as ended
from graphprune.formats.onnx.onward import Onward
from graphprune.loaded import Loaded
from models import zoo
from tests.build import Net

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = 13


def causal(how: str) -> Loaded:
    """Embedding, something that looks back, and logits."""
    net = Net()
    net.inputs = []
    tokens = net.input("batch", "sequence", dtype=TensorProto.INT64)
    x = net.op("Gather", net.weight(ROWS, 8), tokens)
    if how == "sums":
        x = net.op("CumSum", x, net.const(1))
    elif how == "far":  # a token, and the one five before it
        x = net.op("Transpose", x, perm=[0, 2, 1])
        x = net.op("Conv", x, net.weight(8, 8, 2), dilations=[5], pads=[5, 0])
        x = net.op("Transpose", x, perm=[0, 2, 1])
    elif how == "means":  # a product with what knows no tokens
        length = net.op("Gather", net.op("Shape", tokens), net.const(1))
        one = net.op(
            "Expand",
            net.const(1.0, np.float32),
            net.op("Concat", *[net.op("Unsqueeze", length, net.const([0]))] * 2, axis=0),
        )
        x = net.op("MatMul", net.op("Trilu", one, upper=0), x)
    net.output(net.op("MatMul", net.op("Tanh", x), net.weight(8, ROWS)))
    return graphprune.load(net.model())


def going(loaded: Loaded) -> Onward:
    """What runs for the last position."""
    return ended(loaded.model, loaded.analysis.graph.outputs[0])


def both(loaded: Loaded, tokens: npt.NDArray[np.int64], last: Onward) -> tuple[Any, Any]:
    """The last position, by ``last`` and by a run over all."""
    feeds = beside_as(inputs(loaded.analysis.graph), tokens)
    whole = next(iter(loaded.format.run(loaded.model)(feeds).values()))
    return next(iter(last(feeds).values())), whole[:, -1:]


def text(loaded: Loaded, *size: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Any tokens."""
    rows = max(loaded.analysis.graph.picked(name) for name in loaded.analysis.graph.inputs)
    return np.random.default_rng(seed).integers(0, rows, size)


@pytest.mark.parametrize("name", ["gpt2/dynamo-21-dynamic", "llama/dynamo-21-dynamic", "opt/legacy-15-dynamic"])
def test_goes_on(name: str) -> None:
    """A token at a time, several at once, another text, a shorter one, another number of them."""
    loaded = graphprune.load(zoo.graph(name))
    last = going(loaded)
    one, other = text(loaded, 3, 12), text(loaded, 3, 12, seed=1)
    asked = [one[:, :end] for end in range(1, 9)]
    asked += [one, other[:, :5], other[:, :6], other[:, :2], one[:2, :7], one[:2, :7]]
    for tokens in asked:
        found, right = both(loaded, tokens, last)
        np.testing.assert_allclose(found, right, atol=1e-4 * np.abs(right).max())
    assert last._ahead is not None


def test_a_token_costs_a_token() -> None:
    """What goes in is one token, and what was kept."""
    loaded = graphprune.load(zoo.graph("llama/dynamo-21-dynamic"))
    last = going(loaded)
    tokens = text(loaded, 2, 9)
    for end in range(1, 9):
        both(loaded, tokens[:, :end], last)
    assert last._ahead is not None
    seen: list[Any] = []
    runner: Any = last._ahead.runner

    def watched(feeds: Any) -> Any:
        seen.append(feeds)
        return runner(feeds)

    last._ahead.runner = watched  # type: ignore[assignment]
    both(loaded, tokens, last)
    (feeds,) = seen
    assert feeds[last._ahead.text.ids].shape == (2, 1)
    assert len(last._ahead.kept) == 4, "keys and values of two layers"
    assert all(8 in feeds[onward._PAST + name].shape for name in last._ahead.kept)


@pytest.mark.parametrize("how", ["nothing", "sums", "means", "far"])
def test_what_looks_back_otherwise(how: str) -> None:
    """Running sums seem to go on, and do not: the plain graph is run, as where there is no way to go on."""
    loaded = causal(how)
    last = going(loaded)
    assert (last._ahead is None) == (how == "means")
    tokens = text(loaded, 3, 8)
    for end in range(1, 9):
        found, right = both(loaded, tokens[:, :end], last)
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
    assert (last._ahead is None) == (how != "nothing")
