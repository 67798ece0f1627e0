"""Consumers: the weights that an atom's positions are summed over with, and what is summed.

When positions go, the weights that read the others can make up for part of the loss, and the loss is felt where a
consumer multiplies an activation with a weight: scores and compensation both work there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.analysis import FLOATS, Analysis, Atom
from graphprune.dims import Dim, atoms, holds, product, resolve
from graphprune.graph import Array, Graph, Node
from graphprune.rules.registry import Mask

WIDEST = 2304
"""Features up to which a convolution's channels are told apart by where in its window they are."""
_GEOMETRY = ("strides", "pads", "dilations", "auto_pad")


@dataclass(frozen=True)
class Window:
    """What a convolution gathers at each place: the sizes of its ``kernel``, and the attributes that say where."""

    kernel: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Site:
    """Axis ``axis`` of the activation ``value``: what a consumer sums over, at each element of a ``window`` if any."""

    value: str
    axis: int
    window: Window | None = None


@dataclass(frozen=True)
class Consumer:
    """``axes`` of ``weight`` are summed over with each of ``sites`` (several where modules share the weight).

    ``channels`` is the Dim of the first of these axes, ``dim`` all that is summed over: the channels, times the
    elements of the window if there is one.
    """

    weight: str
    axes: tuple[int, ...]
    sites: tuple[Site, ...]
    nodes: tuple[Node, ...]
    channels: Dim
    dim: Dim

    def matrix(self, stored: Array) -> npt.NDArray[np.float64]:
        """A weight as a matrix from features to outputs, [m, n]."""
        last = np.moveaxis(stored, self.axes, range(-len(self.axes), 0))
        return last.astype(np.float64).reshape(-1, math.prod(stored.shape[axis] for axis in self.axes))

    def stored(self, matrix: Array, like: Array) -> Array:
        """A matrix as a weight of the shape and type of ``like``."""
        shape = np.moveaxis(like, self.axes, range(-len(self.axes), 0)).shape
        return np.moveaxis(matrix.reshape(shape), range(-len(self.axes), 0), self.axes).astype(like.dtype)


def features(graph: Graph, site: Site) -> int:
    """How many numbers are summed over at ``site``."""
    channels = graph.extent((graph.shape(site.value) or ())[site.axis])
    return channels * (math.prod(site.window.kernel) if site.window else 1)


def consumers(analysis: Analysis) -> list[Consumer]:
    """Every weight whose readers all sum over the same axis of it with an activation, in the order of the graph.

    Left out are grouped and depthwise convolutions, and weights that are read in another way too (a tied embedding):
    changing them would change more than the sum. So is what stands in a body, where nobody sees activations.
    """
    graph = analysis.graph
    found: dict[tuple[str, int], dict[Node, Site]] = defaultdict(dict)
    for mask in analysis.facts.masks:
        ends = _ends(analysis, mask)
        if ends is not None:
            weight, axis, site = ends
            found[weight, axis][mask.node] = site
    decoders = {stored: value for value, stored in analysis.facts.decoded.items()}
    made = []
    for (weight, axis), sites in found.items():
        decoded = decoders.get(weight, "") if len(graph.consumers.get(weight, ())) == 1 else ""
        readers = {node for node, _ in graph.consumers.get(decoded or weight, ())}
        if weight in analysis.facts.layouts and readers == set(sites) and weight not in graph.outputs:
            seen, shape = tuple(dict.fromkeys(sites.values())), graph.weights[weight].shape
            channels = resolve(analysis.facts.layouts[weight][axis])
            axes = (axis, *range(2, len(shape))) if seen[0].window else (axis,)
            whole = product(channels, *(Dim(shape[i]) for i in axes[1:]))
            made.append(Consumer(weight, axes, seen, tuple(sites), channels, resolve(whole)))
    return made


def by_atom(found: list[Consumer], wanted: Iterable[Atom]) -> dict[Dim, list[Consumer]]:
    """The consumers of each of ``wanted`` that has any; of pairs those that sum over both."""
    of: dict[Dim, list[Consumer]] = defaultdict(list)
    for consumer in found:
        for dim in dict.fromkeys(atoms(consumer.dim)):
            of[dim].append(consumer)
    read = {atom.dim: [c for c in of.get([*atoms(atom.dim)][-1], ()) if holds(c.dim, atom.dim)] for atom in wanted}
    return {dim: consumers for dim, consumers in read.items() if consumers}


def _ends(analysis: Analysis, mask: Mask) -> tuple[str, int, Site] | None:
    """The weight and its axis, and the activation's, of a contraction of one with the other."""
    if mask.against is None or mask.node.body:
        return None
    graph, decoded = analysis.graph, analysis.facts.decoded
    ends = [(mask.input, mask.axis), mask.against]
    names = [decoded.get(mask.node.inputs[i], mask.node.inputs[i]) for i, _ in ends]
    if names[0] in graph.weights:
        ends.reverse()
        names.reverse()
    (given, axis), (_, weight_axis) = ends
    value, weight = mask.node.inputs[given], names[1]
    stored, shape = graph.weights.get(weight), graph.shape(value)
    if stored is None or names[0] in graph.weights or shape is None or graph.values[value].dtype not in FLOATS:
        return None
    if analysis.meant(weight)[0] is None or shape[axis] != stored.shape[weight_axis] or stored.shape[weight_axis] < 2:
        return None
    return weight, weight_axis % len(stored.shape), Site(value, axis % len(shape), _window(mask.node, stored.shape))


def _window(node: Node, shape: tuple[int, ...]) -> Window | None:
    """The window of a convolution that sees more than each element once, and not too many at a time."""
    given = {name: node.attrs[name] for name in _GEOMETRY if name in node.attrs}
    plain = math.prod(shape[2:]) == 1 and set(given.get("strides", [1])) == {1} and not any(given.get("pads", [0]))
    if node.op != "conv" or plain or math.prod(shape[1:]) > WIDEST:
        return None
    return Window(shape[2:], tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in given.items()))
