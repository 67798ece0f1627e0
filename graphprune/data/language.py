"""Text that a causal language model writes itself, from its graph alone.

The model writes snippets of SNIPPET tokens, many side by side, and a window is a row of them. A snippet starts with any
token of the vocabulary, which keeps them diverse; each further one is drawn from the model's own distribution
(temperature 1). Where a format does not keep what it found for earlier tokens, a token costs a run over all before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.data.files import beside
from graphprune.data.inputs import Feeds, Input, ids
from graphprune.errors import UsageError
from graphprune.formats import Format, Runner
from graphprune.graph import Array, Graph, Shape

Tokens = npt.NDArray[np.int64]
SNIPPET = 16
"""Tokens of a snippet: 8 are run for each that is made, where nothing is kept in between."""
LANES = 64
"""Snippets that are written side by side."""
_PROBE = 16


def logits_of(graph: Graph, takes: Mapping[str, Input]) -> int | None:
    """The number of the output [batch, sequence, V] of a model whose ids pick from a table of V rows.

    Exporters that leave sizes open may call them otherwise in an output: `causal` sees what they are.
    """
    one = ids(takes)
    if one is None or any(other.dtype.kind == "f" or len(other.shape) > 2 for other in takes.values()):
        return None
    wanted = _open((*one.shape, one.rows))
    return next((i for i, name in enumerate(graph.outputs) if _open(graph.shape(name) or ()) == wanted), None)


def _open(shape: Shape) -> list[int | None]:
    """A shape with None for sizes that are left open."""
    return [size if isinstance(size, int) else None for size in shape]


def causal(run: Runner, number: int, takes: Mapping[str, Input], length: int, seed: int) -> bool:
    """Whether what stands last changes nothing before it in output ``number``: two runs."""
    one = ids(takes)
    assert one is not None
    batch, size = one.sized({str(one.shape[0]): 1, str(one.shape[1]): min(_PROBE, length)})
    rows = np.random.default_rng(seed).integers(0, one.rows, (batch, size))
    other = rows.copy()
    other[:, -1] = (rows[:, -1] + 1) % one.rows
    before, after = (_output(run(beside_as(takes, tokens)), number).astype(np.float64) for tokens in (rows, other))
    if before.shape != (batch, size, one.rows):
        return False
    change = np.abs(before - after).max(axis=(0, 2))
    return bool(size > 1 and change[:-1].max() <= 1e-3 * change[-1])


def _output(outputs: Mapping[str, Array], number: int) -> Array:
    return list(outputs.values())[number]


def beside_as(takes: Mapping[str, Input], tokens: Array) -> Feeds:
    """``tokens`` and what goes beside them, in the types that the model takes."""
    return {name: np.asarray(x).astype(takes[name].dtype) for name, x in beside(takes, tokens).items()}


def write(
    format: Format,
    model: Any,
    takes: Mapping[str, Input],
    number: int,
    windows: int,
    length: int,
    seed: int,
    progress: Callable[[float], None],
) -> Tokens:
    """``windows`` of ``length`` tokens [windows, length] that the model itself draws."""
    one = ids(takes)
    assert one is not None
    random = np.random.default_rng(seed)
    step = _step(format, model, takes, one, number)
    size = min(SNIPPET, length)
    made = random.integers(0, one.rows, (-(-windows * length // size), size))
    lanes = one.shape[0] if isinstance(one.shape[0], int) else LANES
    for at in range(0, len(made), lanes):
        some = made[at : at + lanes]
        for place in range(1, size):
            some[:, place] = draw(step(some[:, :place]), random)
            progress((at * size + (place + 1) * len(some)) / made.size)
    return made.reshape(-1)[: windows * length].reshape(windows, length)


def _step(format: Format, model: Any, takes: Mapping[str, Input], one: Input, number: int) -> Callable[[Tokens], Array]:
    """From tokens [n, t] to the logits [n, V] of what comes next; fixed sizes are filled up with what has no effect."""
    if all(isinstance(size, str) for size in one.shape):
        last = format.last(model, model.graph.outputs[number])
        return lambda tokens: _output(last(beside_as(takes, tokens)), 0)[:, -1]
    run = format.run(model)

    def step(tokens: Tokens) -> Array:
        n, t = tokens.shape
        full = np.zeros(one.sized({str(one.shape[0]): n, str(one.shape[1]): t}), np.int64)
        full[:n, :t] = tokens
        return _output(run(beside_as(takes, full)), number)[:n, t - 1]

    return step


def draw(logits: Array, random: np.random.Generator) -> Tokens:
    """One token a row of ``logits`` [n, V], by their probabilities."""
    x = logits.astype(np.float64)
    if not np.isfinite(x.max(axis=-1)).all():
        raise UsageError("the model's logits are not finite on its own text", hint="give data: --calib FILE, or noise")
    chances = np.cumsum(np.exp(x - x.max(axis=-1, keepdims=True)), axis=-1)
    at = random.random(len(x)) * chances[:, -1]
    return np.array([np.searchsorted(row, point, side="right") for row, point in zip(chances, at, strict=True)])
