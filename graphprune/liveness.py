"""When activations live: from the node that makes one until the last that reads it.

Nodes run in the order that they are written in, each with all it reads and makes in memory at once, beside what later
ones read (the working set of Liberis & Lane, arXiv 1910.05110). Ops that only change a shape give what they are given;
others never work in place. What follows from weights alone is folded into the model, and takes none.

Of an op with bodies, what its bodies read and what they give is there all the while, and of several branches one runs
at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from graphprune.graph import Node
from graphprune.rules.registry import RULES, Facts

VIEWS = frozenset({"dropout", "flatten", "identity", "reshape", "squeeze", "unflatten", "unsqueeze"})
"""Ops whose first output shares memory with the first input."""
BEFORE = -1
"""When inputs of the model are there: before its first node."""


class Life(NamedTuple):
    """``value`` is in memory from node ``first`` until node ``last``, both included."""

    value: str
    first: int
    last: int


def lives(facts: Facts) -> list[Life]:
    """The life of each activation that has memory of its own; views lengthen that of what they show."""
    graph = facts.graph
    begins = dict(_bodies(graph.nodes))
    ends = {begin: end for end, begin in begins.items()}
    first = dict.fromkeys(graph.inputs, BEFORE)
    last: dict[str, int] = {}
    shows: dict[str, str] = {}
    given: set[str] = set()

    def read(name: str, node: Node) -> None:
        seen = shows.get(name, name)
        if seen not in first:
            return
        begin, made = begins.get(node.index), first[seen]
        if begin is not None and made > begin:
            given.add(seen)  # by a body: it is written where the output of the op is
        elif begin is None or made < begin:
            loops = (ends[number] for number, _ in node.body if made < number)
            last[seen] = max(last.get(seen, BEFORE), next(loops, ends.get(node.index, node.index)))

    for node in graph.nodes:
        if facts.idle(node):
            continue
        for name in (*node.inputs, *node.outer):
            read(name, node)
        for i, name in enumerate(node.outputs):
            seen = shows.get(node.inputs[0], node.inputs[0]) if node.op in VIEWS and not i else ""
            if seen in first:
                shows[name] = seen
            elif name and name not in facts.constant:
                first[name] = begins.get(node.index, node.index)
    for name in graph.outputs:
        last[shows.get(name, name)] = len(graph.nodes)
    return [Life(name, made, max(made, last.get(name, made))) for name, made in first.items() if name not in given]


def _bodies(nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
    """Where each op with bodies ends, and where it begins."""
    begun: list[Node] = []
    for node in nodes:
        if node.op in RULES and RULES[node.op].gate:
            if node.op.endswith("_enter"):
                begun.append(node)
            elif begun and begun[-1].body == node.body:  # bodies that are not read leave one node
                yield node.index, begun.pop().index
