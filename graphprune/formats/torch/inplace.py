"""Cutting the user's own nn.Module in place: tensors by name, sizes that modules remember, then a proof of equality.

The traced module holds the truth. Its tensors are put into the original under the same names. Integers that modules and
their configs keep (``num_heads``, split sizes ...) and that calls use become what the calls of the traced module were
given (`used`). Others stay, unless the proof needs them: then they follow where all that was of their size in their
module changed alike. If the result does not compute what the traced module computes, everything is put back.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.analysis import Analysis
from graphprune.dims import Chosen, counts, size_after
from graphprune.errors import UsageError, VerifyError
from graphprune.formats.torch.config import update_config
from graphprune.formats.torch.equal import Trials
from graphprune.formats.torch.model import TorchModel, stored
from graphprune.formats.torch.sizes import (
    Attribute,
    ConflictError,
    Equation,
    Values,
    attributes,
    conflict,
    holders,
    put,
    solve,
)
from graphprune.formats.torch.used import equations, owners

_NAMES = 12
"""Names of attributes that no call uses that are tried one by one."""
_SIZES: dict[type[nn.Module], tuple[tuple[str, int], ...]] = {
    nn.Linear: (("out_features", 0), ("in_features", 1)),
    nn.Embedding: (("num_embeddings", 0), ("embedding_dim", 1)),
    nn.modules.batchnorm._NormBase: (("num_features", 0),),
    nn.GroupNorm: (("num_channels", 0),),
}
"""Attributes of torch's own layers that are the size of an axis of their weight, and that not all of them use."""


def cut_in_place(model: TorchModel, pruned: TorchModel, analysis: Analysis, chosen: Chosen) -> nn.Module:
    """Give the module that was traced the tensors and sizes of ``pruned``, and return it.

    VerifyError, with the module as it was, where it then computes something else; UsageError where there is no module.
    """
    source = model.source
    if not isinstance(source, nn.Module):
        raise UsageError("only an nn.Module can be cut in place", hint="use result.model")
    undo = _Undo(source)
    try:
        trials = Trials(model)
        held = attributes(source.modules())
        found = equations(source, held, trials.run, model.traced.graph, pruned.traced.graph)
        undo()
        reached = {part for size, _ in found for part in size.parts}
        used = [part for part in held if part in reached]
        idle = _agreed([part for part in held if part not in reached], model, analysis, chosen)
        _tensors(source, pruned)
        _sizes(source, pruned, trials, found, idle)
        _config(source, trials, pruned, used)
    except BaseException as error:
        undo()
        if not isinstance(error, Exception):  # interrupted
            raise
        raise VerifyError(
            f"{type(source).__name__} cannot be cut in place: {_why(error)}; the module was left as it was",
            hint="use the traced module, result.model: it trains, saves its state and exports again",
        ) from error
    return source


def _config(source: nn.Module, trials: Trials, pruned: TorchModel, sure: Iterable[Attribute]) -> None:
    """Update the configs where they can say what was cut; the module works without."""
    settled = _Undo(source)
    try:
        update_config(source, trials, pruned.traced, sure)
    except Exception:  # of the constructors of other people's classes
        settled()


def _why(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return text if isinstance(error, VerifyError | ConflictError) else f"its own code then fails: {text}"


class _Undo:
    """Everything that a cut in place, or a run of the module, may touch, to put it back."""

    def __init__(self, module: nn.Module) -> None:
        stores: list[Any] = [vars(holder) for holder in holders(module.modules())]
        stores += [value for store in stores for value in store.values() if type(value) in _CONTAINERS]
        self.stores = [(store, copy.copy(store)) for store in stores]

    def __call__(self) -> None:
        for store, old in self.stores:
            store.clear()
            store.update(old) if isinstance(store, dict) else store.extend(old)


_CONTAINERS = (dict, list, OrderedDict)


def _tensors(source: nn.Module, pruned: TorchModel) -> None:
    """Parameters and buffers by name, also where attributes list them; tied ones stay tied."""
    new: dict[str, Tensor] = stored(pruned.traced)
    new.update(pruned.traced.named_parameters(remove_duplicate=False))
    new.update(pruned.traced.named_buffers(remove_duplicate=False))
    made: dict[int, Tensor] = {}
    for path, part in source.named_modules():
        for store in (part._parameters, part._buffers, vars(part)):
            for name, old in list(store.items()):
                value = new.get(f"{path}.{name}" if path else name)
                if isinstance(old, Tensor) and value is not None and not _same(old, value):
                    made.setdefault(id(old), _like(old, value))
    for part in source.modules():
        for store in (part._parameters, part._buffers, vars(part)):
            store.update({name: _exchanged(value, made) for name, value in store.items() if name not in _STORES})


_STORES = ("_parameters", "_buffers", "_modules")


def _same(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and torch.equal(old, new.to(old))


def _like(old: Tensor, value: Tensor) -> Tensor:
    copy = value.detach().clone().to(old)
    return nn.Parameter(copy, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else copy


def _exchanged(value: Any, made: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return made.get(id(value), value)
    if type(value) is list and any(id(part) in made for part in value):
        return [_exchanged(part, made) for part in value]
    return value


def _sizes(
    source: nn.Module, pruned: TorchModel, trials: Trials, found: list[Equation], idle: dict[Attribute, int]
) -> None:
    """Set the first solution of the equations that passes the proof, with ``idle`` attributes or without."""
    before = {attribute: attribute.value for attribute in (*idle, *(part for size, _ in found for part in size.parts))}
    first: Exception | None = conflict(found)
    for values in _candidates(found, idle) if first is None else ():
        put(values)
        _layers(source)
        try:
            return trials.require(source, pruned.traced)
        except Exception as error:  # of the module's own code too
            first = first or error
            put(before)
    raise first or VerifyError("no sizes of its attributes were found that suit its calls")


def _candidates(found: list[Equation], idle: dict[Attribute, int]) -> Iterator[Values]:
    """Every solution, first as it is; then with attributes of one name that no call uses, then with all of them."""
    names = list(dict.fromkeys(attribute.name for attribute in idle))[:_NAMES]
    for solution in solve(found):
        yield solution
        for name in names:
            yield {**solution, **{attribute: value for attribute, value in idle.items() if attribute.name == name}}
        yield {**idle, **solution}


def _layers(source: nn.Module) -> None:
    """Sizes that torch's own layers keep, read off their new weights."""
    for part in source.modules():
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        for name, axis in (size for kind, sizes in _SIZES.items() if isinstance(part, kind) for size in sizes):
            setattr(part, name, weight.shape[axis])
        if isinstance(part, nn.modules.conv._ConvNd):
            sides = weight.shape[0], weight.shape[1] * part.groups
            part.out_channels, part.in_channels = reversed(sides) if part.transposed else sides


def _agreed(held: list[Attribute], model: TorchModel, analysis: Analysis, chosen: Chosen) -> dict[Attribute, int]:
    """New values of the attributes ``held`` by modules in which everything that was of their size changed alike."""
    sizes = counts(chosen)
    new: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    found = [(owners(model.source, model.calls[slot.node.index].node), slot.dim) for slot in analysis.facts.slots]
    found += [(list(_around(model.source, name)), dim) for name, _, _, layout in analysis.uses for dim in layout]
    for part, dim in ((part, dim) for parts, dim in found for part in parts):
        if dim.size is not None:
            new[id(part)][dim.size].add(size_after(dim, sizes))
    plain = [part for part in held if not part.path and id(part.holder) in new]
    agreed = {part: new[id(part.holder)][part.value] for part in plain}
    return {
        part: next(iter(values)) for part, values in agreed.items() if len(values) == 1 and part.value not in values
    }


def _around(source: nn.Module, name: str) -> Iterator[nn.Module]:
    """The modules that a tensor is in, the innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        try:
            yield source.get_submodule(name)
        except AttributeError:
            return
    yield source
