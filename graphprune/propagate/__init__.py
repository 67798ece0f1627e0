"""Moments of activations without a forward pass: from weights and what normalisations remember, node by node.

Inputs of the model are independent and standard normal, rows of a table equally likely. What an op does to means and
covariances is in `pointwise`, `layers` and `moves`. Where nothing is known, elements are independent and standard
normal again, and how many activations rest on that is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from graphprune.consumers import Site
from graphprune.graph import Graph, Node
from graphprune.propagate import moves  # noqa: F401  (its ops register themselves)
from graphprune.propagate.call import NEEDED, OPS, Call, Given, sizes
from graphprune.propagate.layers import near, rows, told_apart
from graphprune.propagate.state import State, normal
from graphprune.stats import Moments
from graphprune.values import Values


def propagate(graph: Graph, sites: Iterable[Site]) -> tuple[dict[Site, Moments], tuple[str, ...]]:
    """`Moments` at each site, of a single vector; and remarks on what was guessed."""
    by_value: dict[str, list[Site]] = {}
    for site in dict.fromkeys(sites):
        by_value.setdefault(site.value, []).append(site)
    found, guesses = dict[Site, Moments](), 0
    for name, state in _walk(graph, set(by_value)):
        for site in by_value.get(name, ()):
            found[site] = moments(state, site)
            guesses += state.guessed
    words = f"{guesses} of {len(found)} activations rest on ops that moments are not carried through: guessed"
    return found, (words,) if guesses else ()


def _walk(graph: Graph, wanted: set[str]) -> Iterator[tuple[str, State]]:
    """Every activation that ``wanted`` rest on, in the order of the graph; each is forgotten after its last reader."""
    left, known = _uses(graph, wanted), Values(graph)
    states: dict[str, Given] = {name: _guess(graph, name, guessed=False) for name in graph.inputs}
    yield from ((name, state) for name, state in states.items() if isinstance(state, State))
    for node in graph.nodes:
        if not any(name in left for name in node.outputs):
            continue
        states |= _step(graph, node, states, known)
        for name in node.outputs:
            state = states.get(name)
            if name in wanted or isinstance(state, State):
                yield name, state if isinstance(state, State) else _guess(graph, name, guessed=True)
        for name in _needed(node):
            left[name] = left.get(name, 0) - 1
            if left[name] == 0:
                states.pop(name, None)


def _needed(node: Node) -> list[str]:
    """The inputs that count."""
    at = NEEDED.get(node.op, range(len(node.inputs)))
    return [node.inputs[i] for i in at if i < len(node.inputs) and node.inputs[i]]


def _uses(graph: Graph, wanted: set[str]) -> dict[str, int]:
    """How often each value that ``wanted`` rest on is read."""
    left = dict.fromkeys(wanted, 0)
    for node in reversed(graph.nodes):
        if any(name in left for name in node.outputs):
            for name in _needed(node):
                left[name] = left.get(name, 0) + 1
    return left


def _step(graph: Graph, node: Node, states: dict[str, Given], known: Values) -> dict[str, Given]:
    ins = [_given(graph, name, states, known) if name in _needed(node) else None for name in node.inputs]
    outputs = [name for name in node.outputs if name]
    if not any(isinstance(x, State) for x in ins) and node.op not in ("gather", "softmax"):
        return {name: known(name) for name in outputs}
    try:
        made = OPS[node.op](Call(graph, node, ins, known))
        if made is not None:
            listed = made if isinstance(made, list) else [made]
            return dict(zip(outputs, listed, strict=False))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, StopIteration):
        pass  # silence is a guess
    return {name: _guess(graph, name, guessed=True) for name in outputs}


def _given(graph: Graph, name: str, states: dict[str, Given], known: Values) -> Given:
    if name in states:
        return states[name]
    weight = graph.weights.get(name)
    return weight.load() if weight is not None else known(name)


def _guess(graph: Graph, name: str, guessed: bool) -> State:
    """Independent, of mean 0 and variance 1, along the axis of channels or the last."""
    shape = sizes(graph, name) if graph.shape(name) is not None else ()
    convolved = any(node.convolves for node, _ in graph.consumers.get(name, ()))
    axis = 1 if len(shape) > 3 or (convolved and len(shape) > 2) else len(shape) - 1
    return normal(shape, axis if axis >= 0 else None, guessed=guessed)


def moments(state: State, site: Site) -> Moments:
    """Those of one vector along the site's axis, at each element of its window."""
    axis = site.axis
    state = told_apart(state, axis)
    found, inverse = rows(state, axis)
    share = np.bincount(inverse.reshape(-1), minlength=len(found)) / inverse.size
    raw = state.cov + np.outer(state.mean, state.mean)
    mean, absolute = share @ state.mean[found], share @ state.absolute[found]
    second = np.sum([part * raw[np.ix_(row, row)] for part, row in zip(share, found, strict=True)], axis=0)
    if site.window:
        close = near(site.window.kernel)
        elements = len(close)
        outer = np.kron(np.outer(mean, mean), np.ones_like(close))
        second = np.kron(second - np.outer(mean, mean), close) + outer
        mean, absolute = mean.repeat(elements), absolute.repeat(elements)
    return Moments(1, mean, second, absolute)
