"""The configuration of a cut Hugging Face model: which of its numbers must change so that it builds the cut model.

Nothing is known of any architecture. The class is built once, on the meta device, from a config in which every integer
is a `Size`: so each axis of each parameter, and each attribute, says which numbers of the config it was made of. The
sizes of the cut model are then equations for them. Ratios (``mlp_ratio``) are floats, and are scaled where axes are
still wrong. The model built anew, with the tensors of the cut one, must compute the same: an attention scale or a
rotary table may follow from the config too. A plan that cuts layers unequally has no such config, and it stays.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from graphprune.formats.torch.equal import Trials
from graphprune.formats.torch.sizes import (
    Attribute,
    Equation,
    Size,
    attribute_size,
    attributes,
    conflict,
    holders,
    put,
    solve,
)

_BUILDS = 64
"""Models that are built to find ratios, on the meta device."""
Shapes = dict[str, tuple[int, ...]]


def update_config(source: nn.Module, trials: Trials, traced: fx.GraphModule, sure: Iterable[Attribute]) -> bool:
    """Change the config of ``source``, or of its outermost parts that have one, so that classes build what is there.

    False, and no change, where none does. Attributes then are what the class makes of the config; those that are known
    to be right before are ``sure``.
    """
    done = [_update(source, path, trials, traced, list(sure)) for path in _configured(source)]
    return bool(done) and all(done)


def _configured(source: nn.Module) -> list[str]:
    found: list[str] = []
    for path, part in source.named_modules():
        inside = any(path.startswith(f"{outer}.") or not outer for outer in found)
        if not inside and hasattr(getattr(part, "config", None), "to_dict"):
            found.append(path)
    return found


def _update(source: nn.Module, path: str, trials: Trials, traced: fx.GraphModule, sure: list[Attribute]) -> bool:
    module: Any = source.get_submodule(path)
    for config in _configs(module, sure):
        try:
            twin = _rebuilt(module, config)
            trials.require(_with(source, path, twin), traced)
        except Exception:  # a config that makes no model, or another one
            continue
        put(_changes(module.config, config) | _adopted(module, twin))
        trials.require(source, traced)
        return True
    return False


def _configs(module: Any, sure: list[Attribute]) -> Iterator[Any]:
    """Configs of which the class of ``module`` builds parameters of its shapes, the likeliest first."""
    for start in (copy.deepcopy(module.config), _filled(module, sure)):
        held = attributes([start])
        put({attribute: attribute_size(attribute) for attribute in held})
        found = list(_equations(module, start, sure))
        if conflict(found) is not None:  # layers that were cut unequally
            return
        for solution in solve(found):
            put({attribute: solution.get(attribute, attribute.value) for attribute in held})
            solved = {(attribute.name, attribute.path) for attribute in solution}
            config = _scaled(type(module), type(start).from_dict(start.to_dict()), _shapes(module), solved)
            if config is not None:
                yield config


def _filled(module: Any, sure: list[Attribute]) -> Any:
    """The config with a number for what its class finds missing or None there: that of attributes of the same name."""
    config, missing = copy.deepcopy(module.config), set[tuple[int, str]]()

    def miss(self: Any, name: str) -> None:
        missing.add((id(self), name))
        raise AttributeError(name)

    parts = {id(holder): holder for holder in holders([config])}
    for holder in parts.values():
        missing |= {(id(holder), name) for name, value in vars(holder).items() if value is None}
        holder.__class__ = type(type(holder).__name__, (type(holder),), {"__getattr__": miss})
    with torch.device("meta"):
        type(module)(config)
    for holder in parts.values():
        holder.__class__ = type(holder).__base__
    for where, name in sorted(missing, key=lambda pair: pair[1]):
        found = {attribute.at() for attribute in sure if attribute.name == name and not attribute.path}
        if len(found) == 1 and where in parts:
            vars(parts[where])[name] = found.pop()
    return config


def _equations(module: Any, config: Any, sure: list[Attribute]) -> Iterator[Equation]:
    """What the numbers that axes of parameters, and attributes of parts, are made of come to in ``module``."""
    with torch.device("meta"), _Made() as made:
        twin = type(module)(config)
    now = _shapes(module)
    for name, tensor in twin.state_dict().items():
        yield from _equal(made.axes(tensor), now.get(name, ()))
    parts = {id(part): path for path, part in module.named_modules()}
    for attribute in sure:
        if id(attribute.holder) in parts:
            yield from _equal([attribute.at(twin.get_submodule(parts[id(attribute.holder)]))], [attribute.at()])


def _equal(made: Sequence[Any], now: Sequence[Any]) -> Iterator[Equation]:
    yield from ((size, int(value)) for size, value in zip(made, now, strict=False) if isinstance(size, Size))


class _Made(TorchFunctionMode):
    """Remembers of which sizes each new tensor was made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, list[int]]] = {}

    def axes(self, tensor: Tensor) -> list[int]:
        """The sizes of the axes of a tensor as they were given when it was made."""
        _, axes = self.made.get(tensor.untyped_storage()._cdata, (None, []))
        return axes if axes == list(tensor.shape) else []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.layout is torch.strided:
            axes = next((axes for axes in self._given(args, kwargs or {}) if axes == list(result.shape)), None)
            if axes:
                self.made[result.untyped_storage()._cdata] = result, axes
        return result

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[list[int]]:
        """Lists of sizes among the arguments: given, or of tensors from which the result was computed."""
        yield [arg for arg in args if isinstance(arg, int)]
        for value in (*args, *kwargs.values()):
            if isinstance(value, list | tuple):
                yield [part for part in value if isinstance(part, int)]
            elif isinstance(value, Tensor):
                yield self.axes(value)


def _scaled(kind: Any, config: Any, wanted: Shapes, solved: set[Any]) -> Any | None:
    """``config`` with numbers scaled by the ratios that most axes are off, one by one, until it builds ``wanted``.

    Of those that are not ``solved``; None where that does not help. `_BUILDS` models are built at most.
    """
    wrong, builds = _wrong(kind, config, wanted), 1
    while wrong:
        before = sum(wrong.values())
        numbers = [a for a in attributes([config], (float, int)) if (a.name, a.path) not in solved and _scales(a.value)]
        for attribute, (ratio, _) in product(numbers, wrong.most_common(2)):
            value = type(attribute.value)(attribute.value * ratio)
            put({attribute: value})
            left, builds = _wrong(kind, config, wanted), builds + 1
            if left is not None and sum(left.values()) < before:
                wrong = left
                break
            put({attribute: attribute.value})
            if builds >= _BUILDS:
                return None
        else:
            return None
    return config if wrong is not None else None


def _scales(value: float) -> bool:
    """Whether a number may be a ratio or a size: no epsilon, no base of a rotary table."""
    return isinstance(value, int) or 0.02 <= value <= 50


def _wrong(kind: Any, config: Any, wanted: Shapes) -> Counter[float] | None:
    """By what ratios axes of the parameters that ``config`` builds are off, and how many each; None: no such model."""
    try:
        with torch.device("meta"):
            built = _shapes(kind(config))
    except Exception:
        return None
    if built.keys() != wanted.keys() or any(len(built[name]) != len(wanted[name]) for name in built):
        return None
    axes = [pair for name in built for pair in zip(wanted[name], built[name], strict=True)]
    return Counter(want / have for want, have in axes if want != have)


def _shapes(module: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _rebuilt(module: nn.Module, config: Any) -> nn.Module:
    """What the class of ``module`` builds of ``config``, with the tensors of ``module``."""
    with torch.random.fork_rng(devices=[]):
        twin = type(module)(config)
    twin.load_state_dict(module.state_dict(), assign=True)
    like = dict(module.named_buffers())
    for path, part in twin.named_modules():
        for name, buffer in part._buffers.items():
            old = like.get(f"{path}.{name}" if path else name)
            part._buffers[name] = buffer.to(old) if buffer is not None and old is not None else buffer
    return twin.eval()


def _with(source: nn.Module, path: str, twin: nn.Module) -> nn.Module:
    """``source`` with ``twin`` in the place of the part at ``path``."""
    if not path:
        return twin
    name, _, rest = path.partition(".")
    made = copy.copy(source)
    made._modules = {**source._modules, name: _with(source.get_submodule(name), rest, twin)}
    return made


def _adopted(module: nn.Module, twin: nn.Module) -> dict[Attribute, int]:
    """The integers of the parts of ``module`` that are others in ``twin``."""
    found: dict[Attribute, int] = {}
    for part, other in zip(module.modules(), twin.modules(), strict=True):
        found.update(_changes(part, other))
    return found


def _changes(old: Any, new: Any) -> dict[Attribute, int]:
    """The numbers of ``old``, and of what it holds, that are others in ``new``."""
    found: dict[Attribute, int] = {}
    for holder, twin in zip(holders([old]), holders([new]), strict=False):
        for there in attributes([twin], (int, float)) if type(holder) is type(twin) else ():
            here = Attribute(holder, there.name, there.path, there.at(holder))
            if there.holder is twin and isinstance(here.value, int | float | None) and here.value != there.value:
                found[here] = there.value
    return found
