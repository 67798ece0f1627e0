"""Which attributes the calls of a module use as numbers, and what those numbers are after a cut.

The module runs once with a `Size` for every integer it holds. A call that one reaches is found again in the trace: made
in the same module, its result as large, the same number in the same argument. The traced graph that was cut has, in the
same place, the number that is right afterwards.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from graphprune.formats.torch.sizes import Attribute, Equation, Size, attribute_size, put, read_size

Spot = tuple[int | str, int | None]
"""An argument, by position or name, and the entry where it is a list."""


@dataclass(frozen=True)
class _Made:
    """A call of the trace with its numbers before and after the cut."""

    name: str
    shape: tuple[int, ...]
    before: dict[Spot, int]
    after: dict[Spot, int]


def equations(
    source: nn.Module, held: list[Attribute], run: Callable[[nn.Module], Any], before: fx.Graph, after: fx.Graph
) -> list[Equation]:
    """What the numbers that ``source`` gives to calls must be after the cut, made of the attributes ``held``.

    ``source`` is run once, and left with a Size in each of them.
    """
    traced = _traced(source, before, after)
    found: list[Equation] = []
    turns: Counter[Any] = Counter()

    def see(part: nn.Module, function: Any, numbers: list[tuple[list[Spot], Size]], shape: tuple[int, ...]) -> None:
        for spots, size in numbers:
            if size.parts:
                key = id(part), function.__name__, shape, tuple(spots), int(size)
                found.extend(_equation(traced[id(part)], key, turns, size))

    put({attribute: attribute_size(attribute) for attribute in held})
    with _entered(source) as stack, _Watch(lambda *seen: see(stack[-1], *seen)):
        run(source)
    return found


def _equation(made: list[_Made], key: Any, turns: Counter[Any], size: Size) -> Iterator[Equation]:
    """The number in a call after the cut: in all calls like it in the trace, or in the one whose turn it is."""
    _, name, shape, spots, value = key
    like = [call for call in made if call.shape == shape]
    like = [call for call in like if call.name == name] or like
    new = [call.after[spot] for call in like for spot in spots if call.before.get(spot) == value]
    turn = turns[key]
    turns[key] += 1
    if name == "__getitem__":  # one slicing is several calls in a row, and the result as large as that of the last
        new, turn = [call.after[spot] for call in made for spot in call.before if call.before[spot] == value], len(new)
    if len(set(new)) == 1:
        yield size, new[0]
    elif turn < len(new):
        yield size, new[turn]


@contextmanager
def _entered(source: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules of ``source`` that are running, the innermost last."""
    inside = {id(part) for part in source.modules()}
    stack = [source]

    def enter(part: nn.Module, args: Any) -> None:
        stack.append(part if id(part) in inside else stack[-1])

    def leave(part: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    hooks = torch.nn.modules.module
    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Shows every call that a Size reaches, and marks sizes that are read off tensors."""

    def __init__(self, see: Callable[[Any, list[tuple[list[Spot], Size]], tuple[int, ...]], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Size):
            return torch.Size([read_size(size) for size in result])
        if type(result) is int:
            return read_size(result)
        numbers = list(_numbers(args, kwargs or {}))
        if numbers:
            self.see(function, numbers, _shape(result))
        return result


def _numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[list[Spot], Size]]:
    """Sizes among the arguments, and where: numbers in a row may also be the entries of one list."""
    start = sum(isinstance(arg, Tensor) for arg in args)
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for position, value in given:
        for entry, size in _entries(value):
            spots: list[Spot] = [(position, entry)]
            if entry is None and isinstance(position, int):
                spots.append((start, position - start))
            yield spots, size


def _entries(value: Any) -> Iterator[tuple[int | None, Size]]:
    if isinstance(value, Size):
        yield None, value
    elif isinstance(value, slice):
        for part in (value.start, value.stop):
            yield from _entries(part)
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from ((i, size) for _, size in _entries(part))


def _shape(value: Any) -> tuple[int, ...]:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _traced(source: nn.Module, before: fx.Graph, after: fx.Graph) -> dict[int, list[_Made]]:
    """The calls of the trace by the module they were made in."""
    found: dict[int, list[_Made]] = defaultdict(list)
    for old, new in zip(before.nodes, after.nodes, strict=True):
        owner = owners(source, old)
        if old.op == "call_function" and owner:
            later = dict(_written(new))
            if old.target is torch.ops.aten.split.Tensor and new.target is not old.target:
                later = {(position, None): size for (position, entry), size in later.items() if entry == 0}
            numbers = {spot: value for spot, value in _written(old) if later.get(spot, -1) > 0}
            found[id(owner[0])].append(_Made(_name(old), _traced_shape(old), numbers, later))
    return found


def _written(node: fx.Node) -> Iterator[tuple[Spot, int]]:
    """Every number among the arguments of a node, by position and by name."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    listed = [*enumerate(node.args), *((names.index(k) if k in names else k, v) for k, v in node.kwargs.items())]
    for position, value in listed:
        for entry, part in enumerate(value) if isinstance(value, list | tuple) else [(None, value)]:
            if type(part) is int:
                yield (position, entry), part
                if isinstance(position, int) and position < len(names):
                    yield (names[position], entry), part


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target)).rpartition(".")[2]


def _traced_shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return tuple(map(_hint, value.shape)) if isinstance(value, Tensor) else ()


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) and size.node.hint is not None else int(size)


def owners(source: nn.Module, node: fx.Node) -> list[nn.Module]:
    """The modules that a node was traced in, the innermost first, and ``source`` itself where there is no other."""
    found = []
    for path, _ in reversed(list((node.meta.get("nn_module_stack") or {}).values())):
        name = str(path).partition("@")[0].removeprefix("L['self']").removeprefix(".")
        try:
            found.append(source.get_submodule(name))
        except AttributeError:
            continue
    return found
