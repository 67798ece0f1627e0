"""Nesting: an atom that is only ever found under another, so that each position of that one may keep its own.

Channels lie under the groups of a grouped convolution, query heads under their key head: nothing ever puts channel 3 of
one group together with channel 3 of another. Then channels may be permuted in each group by itself, and the model still
computes the same; so each group may keep other channels, as many as every other group. An atom b is under an atom a if

- whatever holds b holds a as well, at each position once: on the same axis, or (a grouped convolution's weight) on
  another. What holds b alone, such as a scale that all heads share, ties the positions of b together;
- at a node that b goes through, nothing holds a twice: of two axes that are both a, which one is meant for b?
- at such a node, nothing is computed over a but not b (a sum over heads, a softmax of groups): positions of b that meet
  there would have to be the same.

This is seen from layouts and from what rules say, in one pass. The permutation proof, which then permutes b under each
position of a by itself, is the judge.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from graphprune.dims import Dim, atoms, resolve
from graphprune.rules import Facts
from graphprune.signature import Layout

Atoms = frozenset[Dim]
_NONE: Atoms = frozenset()


class _Company(NamedTuple):
    """What the atoms of a layout have beside them: ``always`` at each of its positions, ``twice`` at one position."""

    beside: dict[Dim, Atoms]
    always: Atoms = _NONE
    twice: Atoms = _NONE


def nest(facts: Facts, free: Sequence[Dim]) -> None:
    """Say of each of the atoms ``free`` under which other one it lies; the later ones lie under the earlier ones."""
    outer, order = _beside(facts, set(free)), {atom: i for i, atom in enumerate(free)}
    for atom in reversed(free):
        fit = (other for other in outer.get(atom, ()) if atom not in _above(other))
        atom.under = max(fit, key=lambda other: (other.extent, -order[other]), default=None)
    for layout in _layouts(facts):
        _untangle(layout)


def _above(atom: Dim) -> Iterator[Dim]:
    """The atom, the one it lies under, and so on."""
    found: Dim | None = atom
    while found is not None:
        yield found
        found = found.under


def _beside(facts: Facts, free: set[Dim]) -> dict[Dim, Atoms]:
    """The atoms that each atom could lie under."""
    known: dict[int, _Company] = {}
    found = _everywhere(_company(layout, free, known).beside for layout in _layouts(facts))
    mixed = _mixed(facts)
    for node in facts.graph.nodes:
        private = (facts.private.get((node.index, i)) or facts.layouts.get(name) for i, name in enumerate(node.inputs))
        layouts = [*private, *(facts.layouts.get(name) for name in node.outputs)]
        seen = [_company(layout, free, known) for layout in layouts if layout]
        through = {atom for company in seen for atom in company.beside if found.get(atom)}
        twice = _twice(seen) if through else _NONE
        for atom in through:
            found[atom] = found[atom].difference(twice, *(dims for dims in mixed[node.index] if atom not in dims))
    return found


def _everywhere(besides: Iterable[Mapping[Dim, Atoms]]) -> dict[Dim, Atoms]:
    """What each atom has beside it wherever it is."""
    found: dict[Dim, Atoms] = {}
    for beside in besides:
        for atom, others in beside.items():
            found[atom] = found.get(atom, others) & others
    return found


def _mixed(facts: Facts) -> dict[int, list[Atoms]]:
    """Which atoms each node computes over."""
    found: dict[int, list[Atoms]] = defaultdict(list)
    for node, dim in facts.mixed:
        found[node.index].append(frozenset(atoms(dim)))
    return found


def _twice(seen: Iterable[_Company]) -> Atoms:
    """The atoms that an operand of a node has twice."""
    return _NONE.union(*(company.twice for company in seen))


def _layouts(facts: Facts) -> Iterable[Layout]:
    return (*facts.layouts.values(), *facts.private.values())


def _company(layout: Layout, free: set[Dim], known: dict[int, _Company]) -> _Company:
    """That of all axes together, each of which is looked at once."""
    if id(layout) not in known:
        known[id(layout)] = _product([_of(dim, free, known) for dim in layout])
    return known[id(layout)]


def _of(dim: Dim, free: set[Dim], known: dict[int, _Company]) -> _Company:
    dim = resolve(dim)
    if dim.kind == "atom":
        return _Company({dim: _NONE}, frozenset((dim,))) if dim in free else _Company({})
    if id(dim) not in known:
        parts = [_of(part, free, known) for part in dim.parts]
        known[id(dim)] = _product(parts) if dim.kind == "product" else _sum(parts)
    return known[id(dim)]


def _product(parts: Sequence[_Company]) -> _Company:
    """At each position there is one of every part."""
    if not any(part.beside for part in parts):
        return _Company({})
    held = Counter(atom for part in parts for atom in part.beside)
    twice = _NONE.union((atom for atom, times in held.items() if times > 1), *(part.twice for part in parts))
    beside: dict[Dim, Atoms] = {}
    for i, part in enumerate(parts):
        rest = _NONE.union(*(other.always for j, other in enumerate(parts) if j != i))
        for atom, others in part.beside.items():
            around = (others | rest) - twice - {atom}
            beside[atom] = beside.get(atom, around) & around
    return _Company(beside, _NONE.union(*(part.always for part in parts)), twice)


def _sum(parts: Sequence[_Company]) -> _Company:
    """At each position there is one part."""
    beside = _everywhere(part.beside for part in parts)
    always = parts[0].always.intersection(*(part.always for part in parts[1:]))
    return _Company(beside, always, _NONE.union(*(part.twice for part in parts)))


def _untangle(layout: Layout) -> None:
    """An axis that another one follows follows none: then positions can be taken of one axis after the other."""
    on = [set(atoms(dim)) for dim in layout] if len(layout) > 1 else []
    led = {other.under for held in on for other in held if other.under is not None and other.under not in held}
    for held in on:
        if led & held:
            for atom in held:
                if atom.under is not None and atom.under not in held:
                    atom.under = None
