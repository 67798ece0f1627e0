"""Analysis: run every rule once over a Graph, and name what came out of it.

The result lists each atom that lives in a weight: its name, kind, the weights and axes it lives in, whether cutting it
is exact, and if it is frozen, why. This is what `inspect` shows and what scores and budgets work on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from graphprune.dims import Chosen, Dim, Reason, atoms, freeze, is_frozen, picks, product
from graphprune.graph import Array, Graph, Node, Shape, Weight, pick
from graphprune.nesting import nest
from graphprune.rules import FROZEN, RULES, Facts, Op
from graphprune.rules.positions import only_looked_up
from graphprune.rules.registry import FOUND
from graphprune.signature import Layout
from graphprune.values import Values

KINDS = ("cache", "state", "head-size", "kv-group", "head", "hidden", "channel", "mlp", "place", "other")
"""Kinds of atoms, the most specific first; the first that any node gives an atom is what it is called."""
DEFAULT_KINDS = ("state", "kv-group", "head", "channel", "mlp", "other")
OPTIONAL_KINDS = ("hidden", "head-size")
DEFAULTS = "defaults"
"""Weights that are inputs of the model, too, of which the file holds the default: cut only on request, likewise."""
CACHE = "cache"
"""Heads or states that the model gives out and takes in again: cut only on request, as inputs and outputs shrink."""
_CACHED = ("state", "kv-group", "head")
FLOATS = ("float16", "bfloat16", "float32", "float64")
_TABLES = ("int64", "bool")
"""Types of constants that nobody trains: lists of sizes, tables of indices, masks."""


@dataclass(frozen=True)
class Use:
    """One place an atom lives in: axis ``axis`` of weight ``weight``, read by input ``input`` of ``node``."""

    weight: str
    axis: int
    node: Node
    input: int
    dim: Dim


@dataclass(eq=False)
class Atom:
    """A prunable or frozen dimension of the model: what the literature calls a (coupled) group of channels."""

    dim: Dim
    name: str
    kind: str
    uses: list[Use]
    inexact: Reason | None
    index: int = 0
    least: int = 1
    multiple: int = 1

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.dim.size or 0

    @property
    def reason(self) -> Reason | None:
        """Why nothing may be removed from it; None where it is prunable."""
        return self.dim.reason

    @property
    def weights(self) -> list[str]:
        """Names of the weights it lives in, each once."""
        return list(dict.fromkeys(use.weight for use in self.uses))


@dataclass(eq=False)
class Analysis:
    """All that is known of the Dims of ``graph``. ``atoms`` holds every atom that lives in at least one weight."""

    graph: Graph
    facts: Facts
    atoms: list[Atom] = field(default_factory=list)

    @property
    def prunable(self) -> list[Atom]:
        """Atoms from which positions may be removed."""
        return [atom for atom in self.atoms if atom.reason is None]

    @property
    def frozen(self) -> list[Atom]:
        """Atoms that stay whole, each with its reason."""
        return [atom for atom in self.atoms if atom.reason is not None]

    @cached_property
    def by_dim(self) -> dict[Dim, Atom]:
        """The Atom of each resolved dim."""
        return {atom.dim: atom for atom in self.atoms}

    @cached_property
    def pairs(self) -> dict[Dim, Dim]:
        """Of each prunable dim that lies under another, the product of that one with it."""
        dims = (atom.dim for atom in self.prunable)
        return {dim: product(dim.under, dim) for dim in dims if dim.under is not None}

    @cached_property
    def uses(self) -> list[tuple[str, Node | None, int, Layout]]:
        """Every stored tensor with its layout: one entry a weight, or one a reader where its layout is private."""
        return list(_stored(self.graph, self.facts))

    def fit(self, values: Mapping[str, Array], chosen: Chosen) -> dict[str, Array]:
        """Inputs or outputs of the whole model as one that is cut to ``chosen`` takes and gives them (a cache)."""
        return {name: pick(value, picks(self.facts.layouts.get(name, ()), chosen)) for name, value in values.items()}

    def meant(self, name: str) -> tuple[Weight | None, Layout | None]:
        """The numbers that weight ``name`` stands for, and their layout where that is not the stored one's.

        None where it stands for none: what scales others, and integers whose scale is not known.
        """
        meaning = self.facts.meanings.get(name)
        if meaning is not None:
            return meaning.weight, meaning.layout
        weight = self.graph.weights[name]
        return (weight if weight.dtype in FLOATS and name not in self.facts.scales else None), None

    def read(self, name: str) -> Array:
        """The numbers that weight ``name`` stands for; as they are stored where these are not known."""
        return (self.meant(name)[0] or self.graph.weights[name]).load()

    def stored(self, name: str, values: Array) -> Array:
        """``values`` as weight ``name`` would hold them: on the grid that its scales span, where it has any."""
        meaning = self.facts.meanings.get(name)
        return meaning.write(values) if meaning and meaning.write else values

    def __str__(self) -> str:
        lines = [f"{len(self.prunable)} prunable and {len(self.frozen)} frozen dims"]
        for atom in self.atoms:
            state = f"frozen: {atom.reason}" if atom.reason else ("exact" if not atom.inexact else "normalised")
            lines.append(f"{atom.name} [{atom.kind}] {atom.size} in {len(atom.uses)} axes, {state}")
        return "\n".join(lines)


def analyse(graph: Graph) -> Analysis:
    """Find every Dim of ``graph``: near-linear in its nodes; reads no weight but small integer ones.

    An op without a rule freezes what it touches; so do the model's inputs and outputs.
    """
    facts = Facts(graph)
    known = Values(graph)
    shared = _shared_constants(graph) if graph.merged else set()
    facts.constant |= set(graph.weights)
    for node in graph.nodes:
        fixed = node.op not in FROZEN and not _is_gate(node)  # each iteration sees other values
        if node.inputs and fixed and all(name in facts.constant for name in node.inputs if name):
            facts.constant |= set(node.outputs)
        _apply(node, facts, known, shared)
    _freeze_uneven(facts)
    _freeze_found(facts)
    _freeze_ends(facts)
    _freeze_unwritable(facts)
    analysis = Analysis(graph, facts)
    analysis.atoms = _collect(facts, analysis)
    nest(facts, [atom.dim for atom in analysis.prunable])
    return analysis


def _freeze_ends(facts: Facts) -> None:
    """Inputs and outputs keep their shapes, but for what an output hands to an input of the next call."""
    graph = facts.graph
    handed = {name: axes for pair in _handed_on(facts) for name, axes in pair.items()}
    for name in (*graph.inputs, *graph.outputs):
        side = "an input" if name in graph.inputs else "an output"
        for axis, dim in enumerate(_layout(name, facts) or ()):
            if axis not in handed.get(name, ()):
                freeze(dim, Reason(f"it is the shape of {side} of the model, {name!r}"))
        for axis in handed.get(name, ()):
            facts.roles.append((facts.layouts[name][axis], CACHE))


def _handed_on(facts: Facts) -> Iterator[dict[str, list[int]]]:
    """Inputs and outputs of one type, alike axis by axis but for one (the sequence); their axes of heads or states."""
    graph = facts.graph
    kinds = _kinds(facts)
    for taken in graph.inputs if graph.resizable else ():
        for given in graph.outputs:
            types = {graph.values[name].dtype for name in (taken, given) if name in graph.values}
            ins, outs = (_layout(name, facts) or () for name in (taken, given))
            same = [i for i, (a, b) in enumerate(zip(ins, outs, strict=False)) if _alike(a, b)]
            axes = [i for i in same if ins[i].size and all(kinds.get(atom) in _CACHED for atom in atoms(ins[i]))]
            if len(types) == 1 and len(ins) == len(outs) <= len(same) + 1 and axes:
                yield dict.fromkeys((taken, given), axes)


def _alike(a: Dim, b: Dim) -> bool:
    """Whether both are made of the same atoms, or stay as long as they are."""
    return [*atoms(a)] == [*atoms(b)] or (a.size == b.size and is_frozen(a) and is_frozen(b) and a.size is not None)


def _freeze_uneven(facts: Facts) -> None:
    """Where a kernel takes multiples only, each part of an axis is cut in multiples, or not at all."""
    for dim, step, node in facts.multiples:
        for atom in atoms(dim):
            if atom.size is None or atom.size % step:
                freeze(atom, Reason(f"it is a part of an axis that is cut in multiples of {step}", node))


def _freeze_found(facts: Facts) -> None:
    """Where positions that a node has found do more than to look up entries, what they are counted over stays whole."""
    for index, dim in facts.found.items():
        node = facts.graph.nodes[index]
        if not only_looked_up(facts, node):
            freeze(dim, Reason(FOUND, node.label))


def _freeze_unwritable(facts: Facts) -> None:
    """A size that is only known when the model runs cannot be written as a number; a reshape may say -1, once."""
    unknown: dict[tuple[int, str | int], dict[int, Dim]] = {}
    for slot in facts.slots:
        if slot.dim.size is None:
            unknown.setdefault((slot.node.index, slot.place), {})[slot.index] = slot.dim
    for (index, _), entries in unknown.items():
        node = facts.graph.nodes[index]
        free = [dim for dim in entries.values() if not is_frozen(dim)]
        for dim in free if node.op != "reshape" or len(free) > 1 else ():
            freeze(dim, Reason("it is part of a size that cannot be written as a number", node.label))
    for node, layout in facts.shapes:
        for dim in layout:
            if dim.size is None:
                freeze(dim, Reason("it is part of a size that the model reads when it runs", node.label))


def _apply(node: Node, facts: Facts, known: Values, shared: set[str]) -> None:
    ins = [_operand(node, i, facts, shared) if name else None for i, name in enumerate(node.inputs)]
    outs = [_layout(name, facts) if name else None for name in node.outputs]
    op = Op(node, ins, outs, facts, known)
    for name in node.outer:
        for dim in _layout(name, facts) or ():
            op.freeze(dim, f"it is read inside the body of {node.kind}")
    if node.op not in RULES:
        why = FROZEN.get(node.op)
        op.freeze_all(f"{node.kind} is frozen: {why}" if why else f"there is no rule for {node.kind}")
    elif (None in ins or None in outs) and not RULES[node.op].gate and _unknown(node, ins, outs, facts.graph):
        op.freeze_all(f"the shape of an operand of {node.kind} is not known")
    else:
        _state(op)


def _is_gate(node: Node) -> bool:
    return node.op in RULES and RULES[node.op].gate


def _unknown(node: Node, ins: list[Layout | None], outs: list[Layout | None], graph: Graph) -> bool:
    """Whether not even the rank of an operand is known (of outputs, only those that somebody reads)."""
    return any(layout is None and name in graph.read for name, layout in zip(node.outputs, outs, strict=True)) or any(
        name and layout is None for name, layout in zip(node.inputs, ins, strict=True)
    )


def _state(op: Op) -> None:
    """Let the rule speak; a node that does not fit its rule freezes whole."""
    try:
        RULES[op.node.op].apply(op)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        op.freeze_all(f"{op.node.kind} does not fit its rule ({error})")
    op.finish()


def _layout(name: str, facts: Facts) -> Layout | None:
    layout = facts.layouts.get(name)
    if layout is None:
        shape = facts.graph.shape(name)
        if shape is None:
            return None
        layout = _fresh(facts.graph, shape)
        facts.layouts[name] = layout
    return layout


def _fresh(graph: Graph, shape: Shape) -> Layout:
    return tuple(Dim(s) if isinstance(s, int) else Dim(None, extent=graph.extent(s)) for s in shape)


def _operand(node: Node, i: int, facts: Facts, shared: set[str]) -> Layout | None:
    name = node.inputs[i]
    if name not in shared:
        return _layout(name, facts)
    layout = _fresh(facts.graph, facts.graph.shape(name) or ())
    facts.private[node.index, i] = layout
    return layout


def _shared_constants(graph: Graph) -> set[str]:
    """Vectors and tables that several nodes read: exporters merge equal ones, which couples nothing."""
    captured = {name for node in graph.nodes for name in (*node.outer, *(node.inputs if _is_gate(node) else ()))}
    return {
        name
        for name, weight in graph.weights.items()
        if (sum(size > 1 for size in weight.shape) <= 1 or weight.dtype in _TABLES)
        and len(graph.consumers.get(name, ())) > 1
        and name not in captured
        and name not in graph.outputs
    }


def _stored(graph: Graph, facts: Facts) -> Iterator[tuple[str, Node | None, int, Layout]]:
    for name in graph.weights:
        if name in facts.layouts:
            yield name, None, 0, facts.layouts[name]
        for node, i in graph.consumers.get(name, ()):
            private = facts.private.get((node.index, i))
            if private is not None:
                yield name, node, i, private


def _collect(facts: Facts, analysis: Analysis) -> list[Atom]:
    """One Atom for each atom of a weight's layout that is not merely a place or a list of axes."""
    graph = facts.graph
    uses: dict[Dim, list[Use]] = {}
    first = {name: (node, -1) for node in reversed(graph.nodes) for name in node.outer}
    first |= {name: readers[0] for name, readers in graph.consumers.items() if readers}
    for name, node, i, layout in analysis.uses:
        if node is None and name not in first:  # it is an output of the model, and nothing else
            continue
        reader, at = (node, i) if node is not None else first[name]
        for axis, dim in enumerate(layout):
            for atom in dict.fromkeys(atoms(dim)):
                if atom.size != 1:
                    uses.setdefault(atom, []).append(Use(name, axis, reader, at, dim))
    kinds = _kinds(facts)
    inexact: dict[Dim, Reason] = {}
    for dim, reason in facts.inexact:
        for atom in atoms(dim):
            inexact.setdefault(atom, reason)
    least: dict[Dim, int] = {}
    for dim, count in facts.least:
        for atom in atoms(dim):
            least[atom] = max(count, least.get(atom, 1))
    multiples: dict[Dim, int] = {}
    for dim, step, _ in facts.multiples:
        for atom in atoms(dim):
            multiples[atom] = math.lcm(step, multiples.get(atom, 1))
    found = [
        Atom(dim, "", kinds.get(dim, "other"), where, inexact.get(dim), 0, least.get(dim, 1), multiples.get(dim, 1))
        for dim, where in uses.items()
        if _worth_showing(graph, where) and not (kinds.get(dim) == "place" and dim.reason)
    ]
    _name(facts, found)
    return found


def _worth_showing(graph: Graph, uses: Iterable[Use]) -> bool:
    """Shape vectors and index tables are constants too, but no weights."""
    return any(graph.weights[use.weight].dtype not in _TABLES for use in uses)


def _kinds(facts: Facts) -> dict[Dim, str]:
    kinds: dict[Dim, str] = {}
    for dim, role in facts.roles:
        layout = list(dict.fromkeys(atoms(dim)))
        for i, atom in enumerate(layout):
            kind = "kv-group" if role == "head" and len(layout) > 1 and i == 0 else role
            best = kinds.get(atom, "other")
            if KINDS.index(kind) < KINDS.index(best):
                kinds[atom] = kind
    return kinds


def _name(facts: Facts, found: list[Atom]) -> None:
    """Name atoms by the weight or node that makes their positions; kind and number tell namesakes apart."""
    taken: dict[str, int] = {}
    for atom in found:
        atom.uses.sort(key=lambda use: (use.node.index, use.input, use.axis))
    found.sort(key=lambda atom: (atom.uses[0].node.index, atom.uses[0].axis))
    for i, atom in enumerate(found):
        atom.index = i
    for atom in sorted(found, key=lambda atom: atom.reason is not None):
        use = next((use for use in atom.uses if _makes(facts, use, atom.dim)), atom.uses[0])
        base = _path(use)
        shares_axis = atom.kind in ("cache", "head", "kv-group", "head-size")
        name = f"{base}:{atom.kind}" if shares_axis or base in taken else base
        taken[name] = taken.get(name, 0) + 1
        atom.name = name if taken[name] == 1 else f"{name}#{taken[name]}"


def _makes(facts: Facts, use: Use, dim: Dim) -> bool:
    """Whether a matrix puts the atom into what its reader computes (a producer, not a consumer of it)."""
    matrix = sum(size > 1 for size in facts.graph.weights[use.weight].shape) > 1
    made = (atom for name in use.node.outputs for axis in facts.layouts.get(name, ()) for atom in atoms(axis))
    return matrix and any(atom is dim for atom in made)


def _path(use: Use) -> str:
    """The module path where the exporter kept one, else the node's name."""
    name = use.weight
    for suffix in (".weight", ".bias", "_weight", "_bias", ".W", ".w"):
        name = name.removesuffix(suffix)
    opaque = name.startswith(("val_", "onnx::", "const")) or not ("." in use.weight or "/" in use.weight)
    return (use.node.scope or use.node.label) if opaque and use.node.name else name


__all__ = [
    "CACHE",
    "DEFAULTS",
    "DEFAULT_KINDS",
    "FLOATS",
    "KINDS",
    "OPTIONAL_KINDS",
    "Analysis",
    "Atom",
    "Use",
    "analyse",
]
