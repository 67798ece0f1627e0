"""Integers that remember where they came from.

Modules and configurations keep sizes as attributes: ``num_heads``, split sizes in a list, a width in a nested config.
Which attribute a number in a call came from is not guessed by value: every integer is replaced by a `Size`, the code
is run once, and each number that reaches a call says by which arithmetic on which attributes (`Attribute`) it was made.
Numbers that a call must have after a cut are then equations for the attributes. What passes through a float, a string
or a tensor is forgotten; a number that was read off the shape of a tensor is marked, as it follows the cut by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))
_DEPTH = 4
_MOST = 16
"""Solutions of a set of equations that are looked at."""


@dataclass(frozen=True, eq=False)
class Attribute:
    """An integer ``value`` in attribute ``name`` of ``holder``, at ``path`` where it is in lists, tuples or dicts."""

    holder: Any
    name: str
    path: tuple[Any, ...]
    value: Any

    def at(self, other: Any = None) -> Any:
        """What is there now, or in the same place of another holder; None where there is nothing."""
        found: Any = vars(self.holder if other is None else other).get(self.name)
        try:
            for key in self.path:
                found = found[key]
        except (LookupError, TypeError):
            return None
        return found


Values = Mapping[Attribute, int]
Equation = tuple["Size", int]


class Size(int):
    """An integer and how it was made: ``compute`` gives it for other values of its ``parts``."""

    parts: frozenset[Attribute]
    known: bool
    compute: Callable[[Values], int]

    def __deepcopy__(self, memo: Any) -> Size:
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)


def size_of(value: int, parts: Iterable[Attribute], compute: Callable[[Values], int], *, known: bool = True) -> Size:
    """``value`` as a Size; not ``known`` where it is more than arithmetic on attributes."""
    size = Size(value)
    size.parts, size.compute, size.known = frozenset(parts), compute, known
    return size


def attribute_size(attribute: Attribute) -> Size:
    """The Size that stands at ``attribute``."""
    return size_of(attribute.value, [attribute], lambda values: values.get(attribute, attribute.value))


def read_size(value: int) -> Size:
    """A number that was read off a tensor."""
    return size_of(value, [], lambda values: value, known=False)


def _arithmetic(name: str, swapped: bool) -> Callable[[Size, Any], Any]:
    function = getattr(operator, name)

    def method(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        left, right = (other, self) if swapped else (self, other)
        made = function(int(left), int(right))
        if not isinstance(made, int):
            return made
        sides = [side if isinstance(side, Size) else None for side in (left, right)]
        found = [side for side in sides if side is not None]

        def compute(values: Values) -> int:
            a, b = (side.compute(values) if side else int(n) for side, n in zip(sides, (left, right), strict=True))
            return int(function(a, b))

        parts = frozenset().union(*(side.parts for side in found))
        return size_of(made, parts, compute, known=all(side.known for side in found))

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod", "pow"):
    setattr(Size, f"__{_name}__", _arithmetic(_name, swapped=False))
    setattr(Size, f"__r{_name}__", _arithmetic(_name, swapped=True))


def attributes(roots: Iterable[Any], kind: Any = int) -> list[Attribute]:
    """Every number above zero in the objects ``roots``, and in plain objects that these hold, in a fixed order."""
    return [
        Attribute(holder, name, path, number)
        for holder in holders(roots)
        for name, value in _public(holder).items()
        for path, number in _leaves(value, kind)
    ]


def holders(roots: Iterable[Any]) -> list[Any]:
    """``roots`` and the plain objects (configurations, records) that they hold, each once."""
    found: dict[int, Any] = {}
    layer = list(roots)
    for _ in range(_DEPTH):
        layer = [thing for thing in layer if id(thing) not in found]
        found.update({id(thing): thing for thing in layer})
        layer = [value for thing in layer for attribute in _public(thing).values() for value in _objects(attribute)]
    return list(found.values())


def _public(holder: Any) -> dict[str, Any]:
    own = _OWN if isinstance(holder, nn.Module) else ()
    return {name: value for name, value in vars(holder).items() if name not in own}


def _objects(value: Any) -> Iterator[Any]:
    """Plain objects with attributes: no modules, tensors, classes, functions, nothing of torch's own."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _objects(part)
    elif hasattr(value, "__dict__") and not callable(value) and not isinstance(value, nn.Module | Tensor):
        yield from [value] if type(value).__module__.partition(".")[0] not in ("builtins", "torch", "types") else []


def _leaves(value: Any, kind: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, kind) and not isinstance(value, bool):
        if value > 0:
            yield (), value
    elif isinstance(value, list | tuple | dict):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            for path, number in _leaves(part, kind):
                yield (key, *path), number


def put(values: Values) -> None:
    """Write each value to its attribute. Lists and tuples are replaced, not changed."""
    for attribute, value in values.items():
        attributes = vars(attribute.holder)
        attributes[attribute.name] = _replaced(attributes.get(attribute.name), attribute.path, value)


def _replaced(old: Any, path: Sequence[Any], value: int) -> Any:
    if not path:
        return value
    new = dict(old) if isinstance(old, dict) else list(old)
    new[path[0]] = _replaced(new[path[0]], path[1:], value)
    if isinstance(old, tuple):
        return type(old)(*new) if hasattr(old, "_fields") else type(old)(new)
    return new


class ConflictError(Exception):
    """One attribute would have to be two sizes at once."""

    def __init__(self, attribute: Attribute, sizes: Iterable[int]) -> None:
        super().__init__(
            f"{attribute.name} is used as {' and as '.join(map(str, sorted(sizes)))} where it was {attribute.value}"
        )


def conflict(equations: Iterable[Equation]) -> ConflictError | None:
    """The first attribute that two equations give two values."""
    wanted: dict[Attribute, set[int]] = {}
    for size, value in equations:
        if size.known and _is_attribute(size):
            wanted.setdefault(next(iter(size.parts)), set()).add(value)
    return next((ConflictError(attribute, values) for attribute, values in wanted.items() if len(values) > 1), None)


def solve(equations: Sequence[Equation], known: Values | None = None) -> Iterator[dict[Attribute, int]]:
    """Values of attributes that satisfy the equations, as far as there are; at most `_MOST` of them.

    Equations that are an attribute go first, in their order, then those with one open attribute. Where all that are
    left have several, one attribute after the other is tried at its old value.
    """
    left = [(size, value) for size, value in equations if size.known]
    left.sort(key=lambda equation: not _is_attribute(equation[0]))
    yield from _first(_MOST, _solutions(left, dict(known or {})))


def _first(most: int, solutions: Iterator[dict[Attribute, int]]) -> Iterator[dict[Attribute, int]]:
    for _, solution in zip(range(most), solutions, strict=False):
        yield solution


def _is_attribute(size: Size) -> bool:
    """Whether ``size`` is an attribute as it stands, and not computed."""
    return len(size.parts) == 1 and all(
        size.compute({attribute: at}) == at for attribute in size.parts for at in (1, 7, 12)
    )


def _solutions(equations: list[Equation], known: dict[Attribute, int]) -> Iterator[dict[Attribute, int]]:
    while True:
        due: dict[Attribute, list[Equation]] = {}
        for size, value in equations:
            free = size.parts - known.keys()
            if len(free) == 1:
                due.setdefault(next(iter(free)), []).append((size, value))
        if not due:
            break
        known = {**known, **{attribute: _root(attribute, asked, known) for attribute, asked in due.items()}}
    stuck = next((size for size, _ in equations if len(size.parts - known.keys()) > 1), None)
    if stuck is None:
        yield known
        return
    for attribute in sorted(stuck.parts - known.keys(), key=lambda a: (a.name, str(a.path))):
        yield from _solutions(equations, {**known, attribute: attribute.value})


def _root(attribute: Attribute, equations: list[Equation], known: Values) -> int:
    """The value of ``attribute`` that satisfies most of ``equations``: its old one if that does, else the largest."""
    plain = [value for size, value in equations if _is_attribute(size)]
    if plain:
        return plain[0]

    def satisfied(at: int) -> int:
        return sum(_equals(size, value, {**known, attribute: at}) for size, value in equations)

    values = range(attribute.value, 0, -1)
    return next((at for at in values if satisfied(at) == len(equations)), None) or max(values, key=satisfied)


def _equals(size: Size, value: int, values: Values) -> bool:
    try:
        return size.compute(values) == value
    except ArithmeticError:
        return False
