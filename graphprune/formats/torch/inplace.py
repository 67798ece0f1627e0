"""Cutting the user's own nn.Module in place: tensors by name, sizes that modules remember, then a proof of equality.

The traced module holds the truth. Its tensors are put into the original under the same names; integers that modules
keep (``num_heads``, ``out_channels``, split sizes ...) are found where the trace says they were used: a node whose
argument was a size that changed was traced inside certain modules, and an attribute of theirs that holds the old number
is set to the new one. If the result does not compute what the traced module computes, everything is put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from graphprune.analysis import Analysis
from graphprune.dims import Chosen, size_after
from graphprune.errors import UsageError, VerifyError
from graphprune.formats.torch.config import update_config
from graphprune.formats.torch.model import TorchModel, stored
from graphprune.formats.torch.train import evaluating

_TOLERANCE = 1e-4
_SIZES: dict[str, tuple[tuple[str, str, int], ...]] = {
    "Linear": (("out_features", "weight", 0), ("in_features", "weight", 1)),
    "Conv1D": (("nx", "weight", 0), ("nf", "weight", 1)),
    "Embedding": (("num_embeddings", "weight", 0), ("embedding_dim", "weight", 1)),
}
"""Attributes of well-known modules that are the size of an axis of a tensor of theirs."""
_SETTLED = {attribute for sizes in _SIZES.values() for attribute, _, _ in sizes}
_SETTLED |= {"in_channels", "out_channels", "groups", "num_features", "num_channels"}


def cut_in_place(model: TorchModel, pruned: TorchModel, analysis: Analysis, chosen: Chosen) -> nn.Module:
    """Give the module that was traced the tensors and sizes of ``pruned``, and return it.

    VerifyError, with the module as it was, where it then computes something else; UsageError where there is no module.
    """
    source = model.source
    if not isinstance(source, nn.Module):
        raise UsageError("only an nn.Module can be cut in place", hint="use result.model")
    undo = _Undo(source)
    try:
        _tensors(source, pruned)
        _known_modules(source)
        _remembered(source, model, analysis, chosen)
        error = _difference(source, pruned)
        if not error <= _TOLERANCE:
            raise VerifyError(f"it computes something else (error {error:.1e})")
        pairs = _changed_sizes(analysis, chosen)
        update_config(source, pairs, lambda twin: _difference(twin, pruned) <= _TOLERANCE)
    except Exception as error:
        undo()
        what = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise VerifyError(
            f"{type(source).__name__} cannot be cut in place: {what}; the module was left as it was",
            hint="use the traced module, result.model: it trains, saves its state and exports again",
        ) from error
    return source


class _Undo:
    """Everything that a cut in place may touch, to put it back."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = [(part, dict(part.__dict__)) for part in module.modules()]
        self.stores = [(part, dict(part._parameters), dict(part._buffers)) for part in module.modules()]
        self.configs = [(config, dict(config.__dict__)) for config in _configs(module)]

    def __call__(self) -> None:
        for part, old in (*self.parts, *self.configs):
            part.__dict__.clear()
            part.__dict__.update(old)
        for module, parameters, buffers in self.stores:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)


def _configs(module: nn.Module) -> list[Any]:
    found: dict[int, Any] = {}
    for part in module.modules():
        config = getattr(part, "config", None)
        if config is not None and hasattr(config, "__dict__"):
            found[id(config)] = config
    return list(found.values())


def _tensors(source: nn.Module, pruned: TorchModel) -> None:
    """Parameters and buffers by name; tied ones stay tied."""
    new: dict[str, Tensor] = stored(pruned.traced)
    new.update(pruned.traced.named_parameters(remove_duplicate=False))
    new.update(pruned.traced.named_buffers(remove_duplicate=False))
    made: dict[int, nn.Parameter] = {}
    for part_name, part in source.named_modules():
        for store in (part._parameters, part._buffers):
            for name, old in list(store.items()):
                value = new.get(f"{part_name}.{name}" if part_name else name)
                if old is None or value is None or value.shape == old.shape:
                    continue
                store[name] = _like(old, value, made)


def _like(old: Tensor, value: Tensor, made: dict[int, nn.Parameter]) -> Any:
    if not isinstance(old, nn.Parameter):
        return value.detach().clone()
    if id(old) not in made:
        made[id(old)] = nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)
    return made[id(old)]


def _known_modules(source: nn.Module) -> None:
    """Sizes that torch's own layers keep, read off their new tensors."""
    for part in source.modules():
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        for attribute, tensor, axis in _SIZES.get(type(part).__name__, ()):
            if hasattr(part, attribute):
                setattr(part, attribute, getattr(part, tensor).shape[axis])
        if isinstance(part, nn.modules.conv._ConvNd):
            _conv(part)
        elif isinstance(part, nn.modules.batchnorm._NormBase):
            part.num_features = weight.shape[0]
        elif isinstance(part, nn.LayerNorm | nn.RMSNorm):
            part.normalized_shape = tuple(weight.shape)
        elif isinstance(part, nn.GroupNorm):
            part.num_channels = weight.shape[0]


def _conv(part: nn.modules.conv._ConvNd) -> None:
    outer, inner = part.weight.shape[:2]
    depthwise = part.groups > 1 and part.groups in (part.in_channels, part.out_channels) and inner == 1
    if depthwise and not part.transposed:
        part.groups = outer * part.groups // part.out_channels
    if part.transposed:
        part.in_channels, part.out_channels = outer, inner * part.groups
    else:
        part.out_channels, part.in_channels = outer, inner * part.groups


def _remembered(source: nn.Module, model: TorchModel, analysis: Analysis, chosen: Chosen) -> None:
    """Integers that modules (or their configs) keep and that were arguments of a call, where all calls agree."""
    sizes = {dim: len(index) for dim, index in chosen.items()}
    wishes: dict[tuple[int, str], set[int]] = {}
    holders: dict[int, Any] = {}
    for slot in analysis.facts.slots:
        if slot.dim.size is None:
            continue
        old, new = slot.dim.size, size_after(slot.dim, sizes)
        node = model.calls[slot.node.index].node
        if not _listed(node, old):  # as with flatten: a size that follows from the input says nothing of attributes
            continue
        for part in _owners(source, node):
            for holder in (part, getattr(part, "config", None)):
                for name in _integers(holder, old):
                    holders[id(holder)] = holder
                    wishes.setdefault((id(holder), name), set()).add(new)
    for (holder_id, name), new_sizes in wishes.items():
        if len(new_sizes) == 1:
            setattr(holders[holder_id], name, new_sizes.pop())


def _changed_sizes(analysis: Analysis, chosen: Chosen) -> set[tuple[int, int]]:
    """Old and new size of every axis, factor and argument."""
    sizes = {dim: len(index) for dim, index in chosen.items()}
    dims = [*chosen, *(slot.dim for slot in analysis.facts.slots)]
    dims += [dim for _, _, _, layout in analysis.uses for dim in layout]
    return {(dim.size, size_after(dim, sizes)) for dim in dims if dim.size}


def _owners(source: nn.Module, node: Any) -> Iterator[nn.Module]:
    """The modules a node was traced in, the innermost first; the root only where its own forward made the call."""
    for depth, (path, _) in enumerate(reversed(list((node.meta.get("nn_module_stack") or {}).values()))):
        name = str(path).removeprefix("L['self']").removeprefix(".")
        if name or depth == 0:
            try:
                yield source.get_submodule(name)
            except AttributeError:
                continue


def _listed(node: Any, old: int) -> bool:
    """Whether sizes were given to the call: ``old`` itself, or a list in which -1 may stand for it."""
    values = [*node.args, *node.kwargs.values()]
    lists = [value for value in values if isinstance(value, list | tuple)]
    return old in values or any(old in entries or -1 in entries for entries in lists)


def _integers(holder: Any, value: int) -> Iterator[str]:
    """Attributes of ``holder`` that are the integer ``value``, but for sizes that `_known_modules` reads off."""
    settled = _SETTLED if isinstance(getattr(holder, "weight", None), Tensor) else ()
    for name, found in getattr(holder, "__dict__", {}).items():
        if type(found) is int and found == value and not name.startswith("_") and name not in settled:
            yield name


def _difference(source: nn.Module, pruned: TorchModel) -> float:
    places = [node.name for node in pruned.traced.graph.nodes if node.op == "placeholder"]
    with torch.no_grad(), evaluating(source), evaluating(pruned.traced):
        expected = torch.fx.Interpreter(pruned.traced).run(
            *[pruned.inputs[name] for name in places], enable_io_processing=False
        )
        args, kwargs = pruned.called
        found = source(*args, **kwargs)
    left, right = (_flat(value) for value in (expected, found))
    if len(left) != len(right) or any(a.shape != b.shape for a, b in zip(left, right, strict=True)):
        return float("inf")
    scale = max(float(a.abs().max()) for a in left if a.numel())
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True) if a.numel()) / (scale or 1.0)


def _flat(value: Any) -> list[Tensor]:
    flat, _ = torch.utils._pytree.tree_flatten(value)
    return [part.double() for part in flat if isinstance(part, Tensor)]
