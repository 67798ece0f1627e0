"""Why: the chain of nodes through which tensors came to share a Dim, or through which it was frozen.

Nothing is logged during analysis. Two axes are neighbours when one node has both as operands and both carry the atom;
the shortest chain over such neighbours is the explanation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphprune.analysis import Analysis, Atom
from graphprune.cost import CostModel
from graphprune.dims import Dim, atoms
from graphprune.errors import UsageError, printable
from graphprune.graph import Node

if TYPE_CHECKING:
    import networkx as nx

Place = tuple[str, int, int]
"""A tensor's axis: name, axis, and the index of the one reader where its layout is private (else -1)."""


@dataclass(frozen=True)
class Step:
    """One link of a chain: through ``node`` to ``axis`` of ``tensor``."""

    node: Node
    tensor: str
    axis: int

    def __str__(self) -> str:
        return f"{self.node.kind} {self.node.label}"


def find(analysis: Analysis, name: str) -> Atom:
    """The atom named ``name``, or the first that lives in the weight ``name``; UsageError with near names otherwise."""
    for atom in analysis.atoms:
        if atom.name == name:
            return atom
    for test in (lambda weight: weight == name, lambda weight: weight.startswith((f"{name}.", f"{name}/"))):
        for atom in sorted(analysis.atoms, key=lambda atom: atom.reason is not None):
            if any(map(test, atom.weights)):
                return atom
    near = [atom.name for atom in analysis.atoms if name.lower() in atom.name.lower()][:5]
    hint = f"did you mean {', '.join(near)}?" if near else "graphprune inspect lists all names"
    raise UsageError(f"there is no dim or weight {name!r}", hint=hint)


def explain(analysis: Analysis, name: str, limit: int = 20) -> str:
    """What the Dim ``name`` is, how its weights came to share it, and what froze it if it is frozen."""
    atom = find(analysis, name)
    neighbours = _graph(analysis, atom.dim)
    start = _place(analysis, atom, 0)
    lines = [f"{atom.name}: {atom.kind}, {atom.size} positions, in {len(atom.weights)} weights"]
    if atom.reason:
        lines.append(f"frozen: {atom.reason}")
        lines += _to_reason(analysis, atom, start, neighbours)
    elif atom.inexact:
        lines.append(f"prunable, not exact: {atom.inexact}")
    else:
        lines.append("prunable, exact: removing a position equals zeroing it")
    if atom.dim.under is not None:
        outer = analysis.by_dim[atom.dim.under]
        lines.append(f"under {outer.name}: each of its {outer.size} positions may keep its own")
    lines.append(f"from {start[0]!r} axis {start[1]}")
    chains = _chains(start, neighbours)
    shown = 0
    for number in range(1, len(atom.uses)):
        place = _place(analysis, atom, number)
        if place == start or place not in chains or shown == limit:
            continue
        shown += 1
        steps = " > ".join(map(str, chains[place])) or "the same tensor"
        lines.append(f"  to {place[0]!r} axis {place[1]} through {steps}")
    if len(atom.uses) - 1 > shown >= limit:
        lines.append(f"  ... and {len(atom.uses) - 1 - shown} more")
    return "\n".join(lines)


def _place(analysis: Analysis, atom: Atom, number: int) -> Place:
    use = atom.uses[number]
    private = (use.node.index, use.input) in analysis.facts.private
    return use.weight, use.axis, use.node.index if private else -1


def _operands(analysis: Analysis, node: Node) -> Iterator[tuple[Place, Dim]]:
    for i, name in enumerate(node.inputs):
        private = analysis.facts.private.get((node.index, i))
        layout = private if private is not None else analysis.facts.layouts.get(name, ())
        for axis, dim in enumerate(layout):
            yield (name, axis, node.index if private is not None else -1), dim
    for name in node.outputs:
        for axis, dim in enumerate(analysis.facts.layouts.get(name, ())):
            yield (name, axis, -1), dim


Neighbours = dict[Place, list[tuple[Node, Place]]]


def _graph(analysis: Analysis, wanted: Dim) -> Neighbours:
    neighbours: Neighbours = {}
    for node in analysis.graph.nodes:
        here = [place for place, dim in _operands(analysis, node) if any(atom is wanted for atom in atoms(dim))]
        for place in here:
            neighbours.setdefault(place, []).extend((node, other) for other in here if other != place)
    return neighbours


def _chains(start: Place, neighbours: Neighbours) -> dict[Place, list[Step]]:
    """The shortest chain from ``start`` to every place."""
    came: dict[Place, tuple[Place, Node]] = {}
    queue, seen = deque([start]), {start}
    while queue:
        place = queue.popleft()
        for node, other in neighbours.get(place, ()):
            if other not in seen:
                seen.add(other)
                came[other] = place, node
                queue.append(other)
    chains: dict[Place, list[Step]] = {start: []}
    for place in sorted(came, key=lambda p: p[0]):
        steps, at = [], place
        while at != start:
            before, node = came[at]
            steps.append(Step(node, at[0], at[1]))
            at = before
        chains[place] = steps[::-1]
    return chains


def _to_reason(analysis: Analysis, atom: Atom, start: Place, neighbours: Neighbours) -> list[str]:
    chains = _chains(start, neighbours)
    label = atom.reason.node if atom.reason else ""
    ends = [node for node in analysis.graph.nodes if node.label == label] if label else []
    goals = {place for node in ends for place, _ in _operands(analysis, node)} or {
        place for place in chains if place[0] in (*analysis.graph.inputs, *analysis.graph.outputs)
    }
    reached = [chains[place] for place in goals if place in chains]
    if not reached:
        return []
    nearest: list[Step] = min(reached, key=len)
    return [f"  reached from {start[0]!r} through {' > '.join(map(str, nearest)) or 'nothing else'}"]


def describe(analysis: Analysis) -> list[dict[str, Any]]:
    """One record a Dim, as ``inspect --json`` prints it: what a position is worth in parameters and MACs included."""
    model = CostModel(analysis)
    dense = model({})
    records = []
    for atom in analysis.atoms:
        one = model({atom.dim: atom.size - 1}) if atom.reason is None else dense
        records.append(
            {
                "name": atom.name,
                "kind": atom.kind,
                "size": atom.size,
                "prunable": atom.reason is None,
                "exact": atom.reason is None and atom.inexact is None,
                "reason": str(atom.reason or atom.inexact or ""),
                "params_per_position": dense.params - one.params,
                "macs_per_position": dense.macs - one.macs,
                "weights": [{"weight": use.weight, "axis": use.axis, "layout": repr(use.dim)} for use in atom.uses],
            }
        )
    return records


def network(analysis: Analysis) -> nx.Graph:
    """Dims and the weights they live in as a bipartite networkx graph, for GraphML and DOT."""
    import networkx as nx

    graph = nx.Graph()
    for record in describe(analysis):
        name = printable(f"dim {record['name']}")
        state = "prunable" if record["prunable"] else "frozen"
        graph.add_node(
            name, type="dim", kind=record["kind"], size=record["size"], state=state, reason=printable(record["reason"])
        )
        axes: dict[str, list[int]] = {}
        for use in record["weights"]:
            axes.setdefault(use["weight"], []).append(use["axis"])
        for weight, where in axes.items():
            shown = printable(weight)
            graph.add_node(shown, type="weight", shape=str(list(analysis.graph.weights[weight].shape)))
            graph.add_edge(name, shown, axes=", ".join(map(str, sorted(set(where)))))
    return graph


def to_dot(graph: nx.Graph) -> str:
    """``graph`` in the DOT language: every name and value quoted, so that nothing a name holds can break it.

    >>> import networkx as nx
    >>> print(to_dot(nx.Graph([('dim "a"', "w:0")])), end="")
    graph {
      "dim \\"a\\"";
      "w:0";
      "dim \\"a\\"" -- "w:0";
    }
    """
    nodes = [f"  {_quote(name)}{_attributes(data)};" for name, data in graph.nodes(data=True)]
    edges = [f"  {_quote(a)} -- {_quote(b)}{_attributes(data)};" for a, b, data in graph.edges(data=True)]
    return "\n".join(["graph {", *nodes, *edges, "}", ""])


def _attributes(data: dict[str, Any]) -> str:
    return f" [{', '.join(f'{key}={_quote(value)}' for key, value in data.items())}]" if data else ""


def _quote(value: object) -> str:
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
