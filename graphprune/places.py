"""Where an atom is, in words that another export of the same model understands: names of weights and of modules.

Exporters rename, fold and transpose weights, but seldom all of what shares a Dim: a bias keeps its name, and a node the
path of the module that it was traced in. A quantiser adds a word to the names of weights, which is left out. A place is
``fc1.weight[0]``, axis 0 of a weight, or ``fc1>[2]``, axis 2 of what a contraction in module ``fc1`` makes of a weight.
Where the atom is only part of the axis (heads, one side of a concat), a check sum of the positions follows:
``qkv>[2]@1c3f09aa``. An atom that lies under another has places of both together, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from graphprune.analysis import Analysis
from graphprune.dims import Dim, atoms, holds, numbers, resolve
from graphprune.signature import Layout

INTEGERS = "_quantized"
"""What ONNX Runtime's quantiser adds to the name of a weight that it makes integers of."""


def places(analysis: Analysis) -> dict[str, list[Dim]]:
    """The atoms at each place, and pairs (`Analysis.pairs`): one, or several where a module is called twice."""
    found: dict[str, dict[Dim, None]] = {}
    for where, dim in _axes(analysis):
        for atom in dict.fromkeys(atoms(dim)):
            pair = analysis.pairs.get(atom)
            for target in (atom, *([pair] if pair is not None and holds(dim, pair) else [])):
                if atom in analysis.by_dim:
                    found.setdefault(where + _part(dim, target), {})[target] = None
    return {place: list(owners) for place, owners in found.items()}


def _axes(analysis: Analysis) -> Iterator[tuple[str, Dim]]:
    """Every axis that has a name elsewhere too; constants that an exporter may have merged have none."""
    facts = analysis.facts
    layouts: list[tuple[str, Layout]] = [
        (name.removesuffix(INTEGERS), layout) for name, reader, _, layout in analysis.uses if reader is None
    ]
    layouts += [
        (f"{node.scope}>", facts.layouts.get(node.outputs[0], ()))
        for node in dict.fromkeys(made.node for made in facts.contractions)
        if node.scope and any(name in facts.constant for name in node.inputs)
    ]
    for name, layout in layouts:
        for axis, dim in enumerate(layout):
            yield f"{name}[{axis}]", dim


def _part(dim: Dim, target: Dim) -> str:
    """ "" where ``target`` is the whole of ``dim``, else which of its positions are which of the target's."""
    return "" if resolve(dim) is target else f"@{zlib.crc32(numbers(dim, target).tobytes()):08x}"
