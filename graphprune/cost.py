"""What a model costs as a function of the sizes of its Dims: exact polynomials; and time, measured.

Parameters and bytes are sums over weights of products of axis sizes; MACs sums over contractions of products of letter
sizes; what activations take is the largest of such sums, one a node. Axes that stay dynamic count with the example
sizes that the graph was read at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis
from graphprune.dims import Dim, atoms, size_after, touched
from graphprune.graph import Array, Body
from graphprune.liveness import BEFORE, Life, lives
from graphprune.rules.registry import Contraction, Facts
from graphprune.signature import Layout

Sizes = Mapping[Dim, int]
Floats = npt.NDArray[np.float64]
NEAR = 16
"""The order of the norm that stands for the largest."""
COUNTS = ("int64", "int32", "bool", "undefined")
"""Types of constants that count as no parameters."""


@dataclass(frozen=True)
class Cost:
    """``params`` and ``macs`` are counts; ``bytes`` is the size of the stored weights.

    ``activations`` are the bytes of all that is alive beside a node, where they are most (see `graphprune.liveness`).
    """

    params: int
    macs: int
    bytes: int
    activations: int


@dataclass(frozen=True)
class _Term:
    fixed: float
    dims: tuple[Dim, ...]

    def __call__(self, sizes: Sizes) -> float:
        return self.fixed * math.prod(size_after(dim, sizes) for dim in self.dims)


@dataclass(frozen=True)
class _Copies:
    """A vector that several nodes read: those it is cut for get copies, the others share it still."""

    fixed: float
    layouts: tuple[Layout, ...]

    @property
    def dims(self) -> tuple[Dim, ...]:
        return tuple(dim for layout in self.layouts for dim in layout)

    def __call__(self, sizes: Sizes) -> float:
        whole = math.prod(dim.extent for dim in self.layouts[0])
        after = [math.prod(size_after(dim, sizes) for dim in layout) for layout in self.layouts]
        cut = [size for size in after if size != whole]
        return self.fixed * (sum(cut) + (whole if len(cut) < len(after) else 0))


@dataclass(frozen=True)
class _Dearest:
    """What the dearest of several branches costs, ``times`` over."""

    times: int
    branches: tuple[tuple[_Part, ...], ...]

    @property
    def dims(self) -> tuple[Dim, ...]:
        return tuple(dim for branch in self.branches for part in branch for dim in part.dims)

    def __call__(self, sizes: Sizes) -> float:
        return self.times * max(sum(part(sizes) for part in branch) for branch in self.branches)


_Part = _Term | _Copies | _Dearest


def _nested(made: list[Contraction], facts: Facts, body: Body = ()) -> Iterator[_Part]:
    """The contractions in ``body``, one by one, and those of each op with bodies inside it together."""
    inner: dict[int, dict[int, list[Contraction]]] = {}
    for item in made:
        if len(item.node.body) == len(body):
            yield _Term(item.fixed, item.dims)
        else:
            number, branch = item.node.body[len(body)]
            inner.setdefault(number, {}).setdefault(branch, []).append(item)
    for number, branches in inner.items():
        parts = tuple(tuple(_nested(items, facts, (*body, (number, at)))) for at, items in branches.items())
        yield _Dearest(facts.repeats.get((*body, (number, 0)), 1), parts)


class CostModel:
    """The cost of an analysed model at any sizes of ``free`` (atoms that may be cut; all prunable ones by default).

    Terms that no free atom enters are added up once.
    """

    def __init__(self, analysis: Analysis, free: list[Dim] | None = None) -> None:
        wanted = dict.fromkeys(free if free is not None else [atom.dim for atom in analysis.prunable])
        layouts: dict[str, list[Layout]] = {}
        for name, _, _, layout in analysis.uses:
            layouts.setdefault(name, []).append(layout)
        params, stored = [], []
        for name, readers in layouts.items():
            dtype, meaning = analysis.graph.weights[name].dtype, analysis.facts.meanings.get(name)
            if meaning is not None or dtype not in COUNTS:
                if name not in analysis.facts.scales:
                    params.append(_weight(1, [meaning.layout] if meaning and len(readers) == 1 else readers))
                stored.append(_weight(_item_bytes(dtype), readers))
        macs = list(_nested(analysis.facts.contractions, analysis.facts))
        self._nodes, self._peak = analysis.graph.nodes, Peak(list(_alive(analysis)), wanted)
        self._params, self._bytes, self._macs = (Sum(terms, wanted) for terms in (params, stored, macs))

    def params(self, sizes: Sizes) -> int:
        """Number of weights; index tables, scales and zero points are none."""
        return round(self._params(sizes))

    def macs(self, sizes: Sizes) -> int:
        """Multiply-accumulates of all contractions at the example sizes."""
        return round(self._macs(sizes))

    def bytes(self, sizes: Sizes) -> int:
        """Bytes of the stored weights."""
        return round(self._bytes(sizes))

    def activations(self, sizes: Sizes) -> int:
        """Bytes of all activations that are alive beside one node, at the most, at the example sizes."""
        return math.ceil(self._peak(sizes))

    def charged(self, sizes: Sizes) -> float:
        """Nearly `activations`, as a norm of what all nodes need: less of what is almost the most counts, too."""
        return self._peak.norm(sizes)

    def fullest(self, sizes: Sizes) -> str:
        """The first node beside which that many bytes are alive."""
        at = int(np.argmax(self._peak.alive(sizes))) + BEFORE
        return self._nodes[at].label if 0 <= at < len(self._nodes) else f"the {'out' if at > BEFORE else 'in'}puts"

    def __call__(self, sizes: Sizes) -> Cost:
        return Cost(self.params(sizes), self.macs(sizes), self.bytes(sizes), self.activations(sizes))


def _alive(analysis: Analysis) -> Iterator[tuple[Life, _Term]]:
    """Each activation of known shape, and its bytes."""
    for life in lives(analysis.facts):
        value, layout = analysis.graph.values.get(life.value), analysis.facts.layouts.get(life.value)
        if value is not None and layout is not None:
            yield life, _Term(_item_bytes(value.dtype), layout)


def _weight(fixed: float, layouts: list[Layout]) -> _Term | _Copies:
    return _Term(fixed, layouts[0]) if len(layouts) == 1 else _Copies(fixed, tuple(layouts))


class Term(Protocol):
    """What a part of a model costs; sizes of ``dims`` enter."""

    @property
    def dims(self) -> tuple[Dim, ...]:
        """Dims whose sizes it hangs on."""

    def __call__(self, sizes: Sizes) -> float:
        """The cost at these sizes of atoms."""


class Terms:
    """``terms`` at any sizes of ``free`` atoms; from one call to the next only what changed is computed anew."""

    def __init__(self, terms: Sequence[Term], free: Mapping[Dim, object]) -> None:
        self._terms = terms
        self._values = np.array([term({}) for term in terms], np.float64)
        self._places: dict[Dim, list[int]] = {}
        for place, term in enumerate(terms):
            for atom in {atom: None for dim in term.dims for atom in atoms(dim) if atom in free}:
                self._places.setdefault(atom, []).append(place)
        self._sizes = {atom: atom.extent for atom in self._places}

    def __call__(self, sizes: Sizes) -> Floats:
        """One value a term; the next call changes it."""
        now = {atom: sizes.get(atom, atom.extent) for atom in self._places}
        changed = [atom for atom, size in self._sizes.items() if now[atom] != size]
        for place in {place for atom in changed for place in self._places[atom]}:
            self._values[place] = self._terms[place](now)
        self._sizes = now
        return self._values


class Sum:
    """All ``terms`` at any sizes of ``free`` atoms."""

    def __init__(self, terms: Sequence[Term], free: Mapping[Dim, object]) -> None:
        kept = [term for term in terms if any(touched(dim, free) for dim in term.dims)]
        left = set(map(id, kept))
        self._fixed = sum(term({}) for term in terms if id(term) not in left)
        self._values = Terms(kept, free)

    def __call__(self, sizes: Sizes) -> float:
        total: float = sum(self._values(sizes).tolist())
        return self._fixed + total


class Peak:
    """What those of ``terms`` come to that are alive at the same node, at any sizes of ``free`` atoms."""

    def __init__(self, terms: Sequence[tuple[Life, Term]], free: Mapping[Dim, object]) -> None:
        self._first = np.array([life.first - BEFORE for life, _ in terms], np.int64)
        self._after = np.array([life.last - BEFORE + 1 for life, _ in terms], np.int64)
        self._values = Terms([term for _, term in terms], free)

    def alive(self, sizes: Sizes) -> Floats:
        """The sum at each moment: before the first node, at each node, after the last."""
        values, length = self._values(sizes), int(self._after.max(initial=1)) + 1
        return np.cumsum(np.bincount(self._first, values, length) - np.bincount(self._after, values, length))

    def __call__(self, sizes: Sizes) -> float:
        """The largest."""
        return float(self.alive(sizes).max())

    def norm(self, sizes: Sizes) -> float:
        """The norm of order `NEAR` of all."""
        found = self.alive(sizes)
        most = found.max() or 1.0
        return float(most * ((found / most) ** NEAR).sum() ** (1 / NEAR))


def _item_bytes(dtype: str) -> float:
    if dtype in ("int4", "uint4", "float4_e2m1fn"):
        return 0.5
    try:
        return float(np.dtype(dtype).itemsize)
    except TypeError:
        return 2.0 if dtype == "bfloat16" else 1.0


Feeds = Mapping[str, Array]


def latency(runners: Sequence[tuple[Callable[[Feeds], Any], Feeds]], seconds: float = 3.0) -> list[float]:
    """Median seconds of each runner on its inputs, measured alternately so that noise hits all alike."""
    times: list[list[float]] = [[] for _ in runners]
    stop = time.perf_counter() + seconds
    while len(times[-1]) < 5 or (len(times[-1]) < 51 and time.perf_counter() < stop):
        for spent, (runner, feeds) in zip(times, runners, strict=True):
            start = time.perf_counter()
            runner(feeds)
            spent.append(time.perf_counter() - start)
    return [float(np.median(spent[1:])) for spent in times]
