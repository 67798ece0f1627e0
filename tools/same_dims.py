"""Which prunable Dims two analyses of one model have in common, and what became of the others.

A Dim is recognised by its size and the weights it lives in. Exporters transpose, reshape, rename and fold weights, so a
weight of one graph is one of the other where their names and numbers of elements are the same, or their values, in
whatever order. What has no counterpart (a folded normalisation, a table that was computed when the model was exported)
says nothing about either side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from graphprune.analysis import Analysis, Atom
from graphprune.graph import Graph, Weight

Names = Mapping[str, str]
Key = tuple[int, frozenset[str]]


@dataclass(frozen=True)
class Comparison:
    """How many Dims are in both, and a line for each that is in the first or the second alone."""

    both: int
    first: list[str]
    second: list[str]


def compare(first: Analysis, second: Analysis) -> Comparison:
    """The prunable Dims of two analyses, matched by size and weights."""
    sides = tuple(zip((first, second), shared(first.graph, second.graph), strict=True))
    keys = [{atom: key(atom, names) for atom in side.prunable} for side, names in sides]
    both = Counter(keys[0].values()) & Counter(keys[1].values())
    lines = [
        [f"{text(atom)}; {fate(atom, here, *there)}" for atom in alone(found, both)]
        for found, (_, here), there in zip(keys, sides, reversed(sides), strict=True)
    ]
    return Comparison(both.total(), *lines)


def shared(first: Graph, second: Graph) -> tuple[Names, Names]:
    """For each side, the weights that the other side has, too, under the name that the second gives them."""
    by_name = {(name, weight.size): name for name, weight in second.weights.items()}
    by_value: dict[bytes, str] = {}
    mine = {name: by_value.setdefault(values(weight), name) for name, weight in second.weights.items()}
    pairs = {
        name: mine[by_name[name, weight.size]] if (name, weight.size) in by_name else by_value.get(values(weight), "")
        for name, weight in first.weights.items()
    }
    known = set(pairs.values())
    return {name: of for name, of in pairs.items() if of}, {name: of for name, of in mine.items() if of in known}


def values(weight: Weight) -> bytes:
    """What tells a weight from others however its axes are ordered; its name where it is no table of numbers."""
    if weight.size < 2 or not weight.dtype.startswith("float"):
        return weight.name.encode()
    return np.sort(weight.load().astype(np.float32), axis=None).tobytes()


def weights(atom: Atom, names: Names) -> frozenset[str]:
    """The weights it lives in, as far as both sides have them."""
    return frozenset(names[name] for name in atom.weights if name in names)


def key(atom: Atom, names: Names) -> Key:
    """What the same Dim has in common on both sides."""
    return atom.size, weights(atom, names)


def alone(found: Mapping[Atom, Key], both: Counter[Key]) -> Iterator[Atom]:
    """The Dims beyond those that both sides have."""
    left = both.copy()
    for atom, what in found.items():
        if left[what] > 0:
            left[what] -= 1
        else:
            yield atom


def text(atom: Atom) -> str:
    """A Dim in a few words."""
    return f"{atom.size} of {atom.name} ({atom.kind}, {len(atom.weights)} weights)"


def fate(atom: Atom, here: Names, other: Analysis, there: Names) -> str:
    """What the other side has in its weights: why it is frozen, or the Dim most like it, and how often it has them."""
    mine = weights(atom, here)
    met = [a for a in other.atoms if mine & weights(a, there)]
    if not met:
        return "none of its weights is there"
    best = min(met, key=lambda a: (a.size != atom.size, a.reason is None, a.kind != atom.kind))
    copies = [Counter(names.values()) for names in (here, there)]
    uneven = sorted(name for name in mine if copies[0][name] != copies[1][name])
    found = f"frozen there: {best.reason}" if best.reason else f"there {text(best)}"
    if uneven:
        found += f"; copies of {uneven[0]}: {copies[0][uneven[0]]} here, {copies[1][uneven[0]]} there"
    return found
