"""What a rule is, and what a rule may say about the node it is given.

A rule is an axis text (``rule("relu", text="... -> ...")``) or a function of an `Op` for the ops whose axes depend on
their arguments (``@rule("reshape")``). Rules only *add facts*; they never look at what earlier rules said, so their
order does not matter. Axes that a function does not mention are frozen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.dims import Dim, Reason, atoms, freeze, tie
from graphprune.graph import Array, Body, Graph, Node, Weight
from graphprune.integers import dequantise, quantise
from graphprune.signature import Binding, Layout, Signature, bind, parse

CHANNEL, MLP, HEAD, HEAD_SIZE, HIDDEN, STATE = "channel", "mlp", "head", "head-size", "hidden", "state"
FOUND = "its positions are the result"
PLACE = "place"
"""Positions in space or in a kernel: never cut, never shown."""


@dataclass(frozen=True)
class Slot:
    """A number in the model that is the size of a Dim: element ``index`` of an attribute or of an integer input.

    It is rewritten to the new size of ``dim`` whenever ``watch`` changed size.
    """

    node: Node
    place: str | int
    index: int
    dim: Dim
    watch: Dim


@dataclass(frozen=True)
class Pin:
    """An attribute whose default depends on the size of ``watch`` and must keep its old ``value`` after a cut."""

    node: Node
    attr: str
    value: float
    watch: Dim


@dataclass(frozen=True)
class Contraction:
    """Multiply-accumulates of a node: ``fixed`` (untouchable axes) times the sizes of ``dims``."""

    node: Node
    fixed: int
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Mask:
    """Axis ``axis`` of input ``input`` is summed over: zeroing positions there equals removing them.

    ``against`` is the input and axis that it is multiplied with, where the rule says so; ``zero`` the input that says
    which integer stands for zero, where another than 0 does.
    """

    node: Node
    input: int
    axis: int
    layout: Layout
    against: tuple[int, int] | None = None
    zero: int | None = None

    @property
    def dim(self) -> Dim:
        """What is summed over."""
        return self.layout[self.axis]

    @property
    def placed(self) -> bool:
        """Whether it is known where its positions are: how many there are, and of those that they may follow."""
        above = {atom.under for atom in atoms(self.dim)}
        return all(dim.size is not None for dim in self.layout if dim is self.dim or not above.isdisjoint(atoms(dim)))


@dataclass(frozen=True)
class Index:
    """Input ``input`` is a constant that names ``positions`` of ``dim``, over ``layout``: a cut numbers them anew.

    What is named is the same Dim as where it is named, so that how many stay of each atom tells all the numbers.
    """

    node: Node
    input: int
    layout: Layout
    dim: Dim
    positions: Array


@dataclass(frozen=True)
class Integers:
    """Input ``input`` holds integers: less those of input ``zero``, times those of ``scales``, along ``axis``."""

    node: Node
    input: int
    scales: tuple[int, ...]
    zero: int
    axis: int


@dataclass(frozen=True)
class Meaning:
    """The numbers that a weight of integers stands for, as a ``weight`` of its own, and the ``layout`` of these.

    ``write`` makes integers of other numbers again, where it is known how.
    """

    weight: Weight
    layout: Layout
    write: Callable[[Array], Array] | None = None


@dataclass
class Facts:
    """Everything the rules said about a graph. ``mixed``: what nodes compute over, sums and all else.

    ``found`` is the Dim that a node (by index) names positions of, ``looked_up`` inputs (of nodes) that such numbers
    reach, where they are known to pick entries of the same Dim.
    """

    graph: Graph
    layouts: dict[str, Layout] = field(default_factory=dict)
    private: dict[tuple[int, int], Layout] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    indices: list[Index] = field(default_factory=list)
    shapes: list[tuple[Node, tuple[Dim, ...]]] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    inexact: list[tuple[Dim, Reason]] = field(default_factory=list)
    mixed: list[tuple[Node, Dim]] = field(default_factory=list)
    roles: list[tuple[Dim, str]] = field(default_factory=list)
    least: list[tuple[Dim, int]] = field(default_factory=list)
    multiples: list[tuple[Dim, int, str]] = field(default_factory=list)
    integers: list[Integers] = field(default_factory=list)
    meanings: dict[str, Meaning] = field(default_factory=dict)
    decoded: dict[str, str] = field(default_factory=dict)
    scales: set[str] = field(default_factory=set)
    found: dict[int, Dim] = field(default_factory=dict)
    looked_up: set[tuple[int, int]] = field(default_factory=set)
    repeats: dict[Body, int] = field(default_factory=dict)
    never: set[Body] = field(default_factory=set)
    constant: set[str] = field(default_factory=set)

    def idle(self, node: Node) -> bool:
        """Whether ``node`` is in a body that never runs."""
        return any(node.body[:depth] in self.never for depth in range(1, len(node.body) + 1))


class Op:
    """One node as its rule sees it: layouts of inputs and outputs (None where absent) and the facts it may state.

    ``idle`` is a node that never runs. It has to fit the others, or the model would not load, and freezes nothing.
    """

    def __init__(
        self, node: Node, ins: Sequence[Layout | None], outs: Sequence[Layout | None], facts: Facts, known: Known
    ) -> None:
        self.node = node
        self.ins = ins
        self.outs = outs
        self.facts = facts
        self.label = node.label
        self.idle = facts.idle(node)
        self._known = known
        self._spoken: set[int] = set()
        self._zeros: dict[int, int] = {}

    # What the node says.

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute ``name``, or ``default``."""
        return self.node.attrs.get(name, default)

    def known(self, i: int) -> npt.NDArray[np.float64] | None:
        """The integer or float values of input ``i`` as far as they are constant (nan: not), None if it is absent."""
        if i >= len(self.node.inputs) or not self.node.inputs[i]:
            return None
        return self._known(self.node.inputs[i])

    def param(self, name: str, i: int) -> list[int] | None:
        """An integer list that older opsets hold in attribute ``name`` and newer ones in input ``i``."""
        value = self.attr(name)
        if value is None:
            value = self.known(i)
        if value is None:
            return None
        flat = np.asarray(value, np.float64).reshape(-1)
        return None if np.isnan(flat).any() else [int(v) for v in flat]

    def given(self, name: str, i: int) -> bool:
        """Whether the parameter is there at all, as attribute or input."""
        return name in self.node.attrs or (i < len(self.node.inputs) and bool(self.node.inputs[i]))

    @property
    def x(self) -> Layout:
        """The layout of the first input."""
        return self.ins[0] or ()

    @property
    def y(self) -> Layout:
        """The layout of the first output."""
        return self.outs[0] or ()

    # What the rule says.

    def tie(self, a: Dim, b: Dim) -> None:
        """The two axes are the same Dim."""
        self._spoken.update((id(a), id(b)))
        tie(a, b, self.label)

    def tie_same(self, a: Layout, b: Layout, leave: Sequence[int] = ()) -> None:
        """Axis by axis; axes in ``leave`` are left for the rule to speak of."""
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            if i not in leave:
                self.tie(left, right)

    def broadcast(self, a: Layout, out: Layout) -> None:
        """``a`` aligned with ``out`` from the right; axes of size 1 that are repeated stay alone."""
        self.speak_of(*a, *out[len(out) - len(a) :])
        for left, right in zip(reversed(a), reversed(out), strict=False):
            if left is not right and (left.size != 1 or right.size == 1):
                tie(left, right, self.label)

    def freeze(self, dim: Dim, why: str) -> None:
        """Nothing may be removed from ``dim``."""
        self._spoken.add(id(dim))
        if not self.idle:
            freeze(dim, Reason(why, self.label))

    def freeze_all(self, why: str) -> None:
        """Every axis of every input and output stays whole."""
        for layout in (*self.ins, *self.outs):
            self.freeze_layout(layout, why)

    def freeze_layout(self, layout: Layout | None, why: str) -> None:
        """Every axis of one operand stays whole."""
        for dim in layout or ():
            self.freeze(dim, why)

    def inexact(self, dim: Dim, why: str) -> None:
        """Positions may go, but what stays is computed from fewer values (a mean, a softmax): not the same function."""
        self._spoken.add(id(dim))
        if not self.idle:
            self.facts.inexact.append((dim, Reason(why, self.label)))
        self.mixes(dim)

    def mixes(self, dim: Dim) -> None:
        """What comes out is computed over it, as `inexact`, `mask` and axis texts say of themselves."""
        self.facts.mixed.append((self.node, dim))

    def role(self, dim: Dim, role: str) -> None:
        """What the Dim is, in the field's words."""
        self.facts.roles.append((dim, role))

    def slot(self, place: str | int, index: int, dim: Dim, watch: Dim | None = None) -> None:
        """Element ``index`` of attribute or input ``place`` is the size of ``dim``."""
        self.facts.slots.append(Slot(self.node, place, index, dim, watch or dim))

    def pin(self, attr: str, value: float, watch: Dim) -> None:
        """The attribute ``attr`` is absent and its default follows ``watch``: a cut writes the old ``value`` out."""
        self.facts.pins.append(Pin(self.node, attr, value, watch))

    def finds(self, dim: Dim) -> None:
        """Numbers that come out name positions of ``dim``; fewer of them are others, and it stays where these count."""
        self.inexact(dim, f"{self.node.kind} is computed over it")
        self.facts.found[self.node.index] = dim

    def names(self, i: int, dim: Dim, positions: Array) -> None:
        """Input ``i`` names ``positions`` of ``dim``."""
        self.facts.indices.append(Index(self.node, i, self.ins[i] or (), dim, positions))

    def place(self, name: str, i: int, inputs_since: int) -> str | int:
        """Where a parameter lives: the attribute where it is one, or would be one in this opset; else the input."""
        if name in self.node.attrs or self.facts.graph.opset < inputs_since:
            return name
        return i

    def least(self, dim: Dim, count: int) -> None:
        """At least ``count`` positions must stay."""
        self.facts.least.append((dim, count))

    def multiple(self, dim: Dim, step: int) -> None:
        """The op only runs where ``dim`` has a multiple of ``step`` positions."""
        self.facts.multiples.append((dim, step, self.label))

    def macs(self, fixed: int, *dims: Dim) -> None:
        """The node costs ``fixed`` times the sizes of ``dims``; axes of unknown size count by example."""
        if not self.idle:
            self.facts.contractions.append(Contraction(self.node, fixed, dims))

    def repeat(self, times: int) -> None:
        """The body that begins here runs so many times."""
        self.facts.repeats[*self.node.body, (self.node.index, 0)] = times

    def never(self, branch: int) -> None:
        """Of the bodies that begin here the one of this number never runs."""
        self.facts.never.add((*self.node.body, (self.node.index, branch)))

    def mask(self, i: int, axis: int, against: tuple[int, int] | None = None, part: Dim | None = None) -> None:
        """Input ``i`` is summed over ``axis``, or a ``part`` of it, multiplied with the input and axis ``against``."""
        layout = self.ins[i]
        if layout is not None:
            self.facts.masks.append(Mask(self.node, i, axis, layout, against, self._zeros.get(i)))
            self.mixes(part or layout[axis])

    def means(self, i: int, scales: Sequence[int], zero: int = -1, axis: int = 0) -> None:
        """Input ``i`` holds integers: less those of ``zero``, times those of ``scales``; vectors lie along ``axis``."""
        self.facts.integers.append(Integers(self.node, i, tuple(scales), zero, axis))
        if self._name(zero):
            self._zeros[i] = zero

        def read(stored: Array, *others: Array) -> Array:
            found = [*others, None]
            return dequantise(stored, list(others[: len(scales)]), found[len(scales)], axis)

        def write(values: Array, stored: Array, *others: Array) -> Array:
            found = [*others, None]
            return quantise(values, list(others[: len(scales)]), found[len(scales)], axis, stored)

        self.stands_for(i, [*scales, zero], self.ins[i] or (), read, write)

    def stands_for(
        self,
        i: int,
        scales: Sequence[int | str],
        layout: Layout,
        read: Callable[..., Array],
        write: Callable[..., Array] | None = None,
    ) -> None:
        """Input ``i`` stands for what ``read`` makes of it and of ``scales``: inputs by number, or weights by name."""
        names = [name for name in map(self._name, (i, *scales)) if name]
        stored = [self.facts.graph.weights.get(name) for name in names]
        self.facts.scales.update(names[1:])
        if i < len(self.node.inputs) and all(stored):
            every = [weight for weight in stored if weight]
            shape = tuple(dim.extent for dim in layout)
            weight = Weight(names[0], shape, "float32", lambda: read(*(weight.load() for weight in every)))
            back = write and (lambda values: write(values, *(weight.load() for weight in every)))
            self.facts.meanings.setdefault(names[0], Meaning(weight, layout, back))

    def _name(self, i: int | str) -> str:
        return i if isinstance(i, str) else self.node.inputs[i] if 0 <= i < len(self.node.inputs) else ""

    def extent(self, output: bool, operand: int, axis: int) -> int:
        """The (example) size of one axis of an operand."""
        name = (self.node.outputs if output else self.node.inputs)[operand]
        shape = self.facts.graph.shape(name) or ()
        return self.facts.graph.extent(shape[axis])

    def speak_of(self, *dims: Dim) -> None:
        """The rule has said what there is to say of ``dims`` (as parts of a product or sum, or that they are free)."""
        self._spoken.update(map(id, dims))

    def finish(self) -> None:
        """Freeze every axis that the rule said nothing about."""
        for layout in (*self.ins, *self.outs):
            for dim in layout or ():
                if id(dim) not in self._spoken and dim.size != 1:
                    self.freeze(dim, f"the rule for {self.node.kind} does not speak of this axis")

    def axes(self, text: str, *, sizes: Mapping[str, Any] | None = None, **options: str) -> Mapping[str, Dim]:
        """State an axis text. ``sizes``: letter -> attribute name (a slot) or number.

        Options: ``macs`` (letters whose sizes multiply), ``inexact`` (letters that may go at a change of function),
        ``masked`` ("no": zeros cannot be written on this op's inputs), ``means`` (what integers stand for, such as
        "(3-5)*4": input 3 less input 5, times input 4), ``why`` (what keeps the other axes whole). Returns the Dim of
        each letter.
        """
        signature = parse(text)
        numbers = {
            letter: int(self.attr(where, 1)) if isinstance(where, str) else where
            for letter, where in (sizes or {}).items()
            if not isinstance(where, str) or where in self.node.attrs or where == "group"
        }
        bound = bind(signature, self.ins, self.outs, numbers)
        if isinstance(bound, str):
            self.freeze_all(bound)
            return {}
        self._state(signature, bound, options.get("why", f"{self.node.kind} may not lose positions of it"))
        empty = (name for name, axes in zip(self.node.inputs, signature.inputs, strict=False) if not axes)
        self.facts.scales.update(empty)
        for letter in numbers:
            if sizes and isinstance(sizes[letter], str):
                self.slot(sizes[letter], 0, bound.letters[letter])
        for letter in options.get("inexact", "").split():
            self.inexact(bound.letters[letter], f"{self.node.kind} is computed over it")
        for i, zero, scales in _MEANS.findall(options.get("means", "")):
            factors, point = [int(scale) for scale in scales.split("*")[1:]], int(zero or -1)
            self.means(int(i), factors, point, _along(bound, int(i), [*factors, point]))
        for cost in filter(None, options.get("macs", "").split(",")):
            self._cost(cost.split(), bound, signature)
        for letter in {letter.rstrip("'") for letter in signature.contracted} & bound.letters.keys():
            self.mixes(bound.letters[letter])
        if options.get("masked") != "no":
            self._masks(signature, bound)
        return bound.letters

    def _state(self, signature: Signature, bound: Binding, why: str) -> None:
        for layout in (*self.ins, *self.outs):
            self._spoken.update(map(id, layout or ()))
        for a, b in bound.ties:
            tie(a, b, self.label)
        for dim in bound.frozen:
            self.role(dim, PLACE)
            if not dim.reason:
                self.freeze(dim, why)
        reference = next((dims for dims, n in bound.leading if n >= len(signature.inputs)), None)
        for dims, _ in bound.leading:
            self.broadcast(tuple(dims), tuple(reference if reference is not None else bound.leading[0][0]))

    def _cost(self, letters: list[str], bound: Binding, signature: Signature) -> None:
        fixed, dims = 1, []
        for letter in letters:
            if letter.isdigit():
                fixed *= int(letter)
            elif letter == "...":
                dims += next(d for d, n in bound.leading if n >= len(signature.inputs))
            elif letter in bound.letters:
                dims.append(bound.letters[letter])
            elif letter in bound.stars:
                number, start, stop = bound.stars[letter]
                output = number >= len(signature.inputs)
                operand = number - len(signature.inputs) * output
                fixed *= math.prod(self.extent(output, operand, axis) for axis in range(start, stop))
        self.macs(fixed, *dims)

    def _masks(self, signature: Signature, bound: Binding) -> None:
        done = set()
        for letter in signature.contracted:
            places = [place for place in bound.where.get(letter, ()) if place[0] < len(self.ins)]
            if places and places[0] not in done:
                done.add(places[0])
                part = bound.letters.get(letter.rstrip("'"))
                self.mask(*places[0], places[1] if len(places) == 2 else None, part)


_MEANS = re.compile(r"(\d+)(?:-(\d+)\))?((?:\*\d+)*)")


def _along(bound: Binding, i: int, scales: Sequence[int]) -> int:
    """The axis of operand ``i`` that has the letters of its scales."""
    axes = {
        axis for places in bound.where.values() if {n for n, _ in places} & {*scales} for n, axis in places if n == i
    }
    return min(axes, default=0)


Known = Callable[[str], npt.NDArray[np.float64] | None]
Apply = Callable[[Op], None]


@dataclass(frozen=True)
class Rule:
    """How an op ties its axes: ``text`` is its axis text, or the one-line description of its function.

    A ``gate`` is where values go into a body or come out of one: no node of a file has its operands, and it is asked
    where the rank of one is not known, too.
    """

    op: str
    text: str
    apply: Apply
    gate: bool = False


RULES: dict[str, Rule] = {}
FROZEN: dict[str, str] = {}


def rule(
    *ops: str, text: str = "", sizes: Mapping[str, Any] | None = None, gate: bool = False, **options: str
) -> Callable[[Apply], Apply]:
    """Register one rule for each of ``ops``: an axis text as it stands, or as a decorator the function below it.

    >>> rule("my_activation", text="... -> ...")  # doctest: +ELLIPSIS
    <function ...>
    """

    def register(apply: Apply) -> Apply:
        for op in ops:
            if op in RULES or op in FROZEN:
                raise ValueError(f"two rules for {op}")
            RULES[op] = Rule(op, text or (apply.__doc__ or "").strip().splitlines()[0], apply, gate)
        return apply

    if text:
        parse(text)
        roles = {letter: role for letter, role in options.items() if role in (CHANNEL, MLP, HEAD, HIDDEN, STATE)}
        rest = {name: value for name, value in options.items() if name not in roles}

        def state(op: Op) -> None:
            letters = op.axes(text, sizes=sizes, **rest)
            for letter, role in roles.items():
                if letter in letters:
                    op.role(letters[letter], role)

        register(state)
    return register


def frozen(reason: str, *ops: str) -> None:
    """Register ``ops`` as frozen on purpose, with the reason that users read."""
    for op in ops:
        if op in RULES or op in FROZEN:
            raise ValueError(f"two rules for {op}")
        FROZEN[op] = reason
