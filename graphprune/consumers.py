"""Consumers: the weights that an atom's positions are summed over with, and what is summed.

When positions go, the weights that read the others can make up for part of the loss, and the loss is felt where a
consumer multiplies an activation with a weight: scores and compensation both work there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from graphprune.analysis import Analysis
from graphprune.dims import Dim, atoms, resolve
from graphprune.graph import Graph, Node
from graphprune.rules.registry import Mask

FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Site:
    """Axis ``axis`` of the activation ``value``: what a consumer sums over."""

    value: str
    axis: int


@dataclass(frozen=True)
class Consumer:
    """Axis ``axis`` of ``weight`` is summed over with each of ``sites`` (several where modules share the weight)."""

    weight: str
    axis: int
    sites: tuple[Site, ...]
    nodes: tuple[Node, ...]
    dim: Dim


def consumers(analysis: Analysis) -> list[Consumer]:
    """Every weight whose readers all sum over the same axis of it with an activation, in the order of the graph.

    Left out are grouped and depthwise convolutions, and weights that are read in another way too (a tied embedding):
    changing them would change more than the sum.
    """
    graph = analysis.graph
    found: dict[tuple[str, int], dict[Node, Site]] = defaultdict(dict)
    for mask in analysis.facts.masks:
        ends = _ends(graph, mask)
        if ends is not None:
            weight, axis, site = ends
            found[weight, axis][mask.node] = site
    made = []
    for (weight, axis), sites in found.items():
        readers = {node for node, _ in graph.consumers.get(weight, ())}
        dim = analysis.facts.layouts[weight][axis] if weight in analysis.facts.layouts else None
        if dim is not None and readers == set(sites) and weight not in graph.outputs:
            made.append(Consumer(weight, axis, tuple(dict.fromkeys(sites.values())), tuple(sites), resolve(dim)))
    return made


def by_atom(found: list[Consumer]) -> dict[Dim, list[Consumer]]:
    """The consumers of each atom."""
    of: dict[Dim, list[Consumer]] = defaultdict(list)
    for consumer in found:
        for atom in dict.fromkeys(atoms(consumer.dim)):
            of[atom].append(consumer)
    return of


def _ends(graph: Graph, mask: Mask) -> tuple[str, int, Site] | None:
    """The weight and its axis, and the activation's, of a contraction of one with the other."""
    if mask.against is None:
        return None
    ends = [(mask.input, mask.axis), mask.against]
    if mask.node.inputs[ends[0][0]] in graph.weights:
        ends.reverse()
    (given, axis), (held, weight_axis) = ends
    value, weight = mask.node.inputs[given], mask.node.inputs[held]
    stored, shape = graph.weights.get(weight), graph.shape(value)
    if stored is None or value in graph.weights or shape is None or stored.dtype not in FLOATS:
        return None
    if shape[axis] != stored.shape[weight_axis] or stored.shape[weight_axis] < 2:
        return None
    return weight, weight_axis % len(stored.shape), Site(value, axis % len(shape))
