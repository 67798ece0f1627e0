"""Applying a choice of positions to a traced module: tensors by `take`, arguments that are sizes by slots."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import fx

from graphprune.analysis import Analysis
from graphprune.dims import Chosen, Dim, counts, picks, size_after, touched
from graphprune.formats.torch.model import TorchModel, attribute, clone, set_tensor, stored
from graphprune.formats.torch.view import Traced, arguments
from graphprune.rules.registry import Slot


def apply(model: TorchModel, analysis: Analysis, chosen: Chosen) -> TorchModel:
    """A new model with the positions ``chosen`` of each atom (fewer: a cut; reordered: a permutation)."""
    made = clone(model)
    twins = dict(zip(model.traced.graph.nodes, made.traced.graph.nodes, strict=True))
    _weights(made, model, analysis, chosen)
    _numbers(model, analysis, chosen, twins)
    made.traced.graph.lint()
    made.traced.recompile()
    return made


def _weights(made: TorchModel, model: TorchModel, analysis: Analysis, chosen: Chosen) -> None:
    tied: dict[int, list[str]] = defaultdict(list)
    for path, tensor in _all_paths(model.traced):
        tied[id(tensor)].append(path)
    originals = stored(model.traced)
    for name, _, _, layout in analysis.uses:
        if name not in originals or not any(touched(dim, chosen) for dim in layout):
            continue
        data = originals[name].detach()
        for axis, positions in picks(layout, chosen):
            index = torch.as_tensor(positions, device=data.device)
            data = data.index_select(axis, index) if index.ndim == 1 else data.take_along_dim(index, axis)
        data = data.clone().contiguous()
        if isinstance(originals[name], torch.nn.Parameter):  # one for all its names: tied parameters stay tied
            data = torch.nn.Parameter(data, requires_grad=originals[name].requires_grad)
        for path in tied[id(originals[name])]:
            set_tensor(made.traced, path, data)


def _all_paths(module: fx.GraphModule) -> list[tuple[str, torch.Tensor]]:
    found = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    known = {path for path, _ in found}
    constants = [(path, tensor) for path, tensor in stored(module).items() if path not in known]
    return [*found, *constants]


def _numbers(model: TorchModel, analysis: Analysis, chosen: Chosen, twins: dict[fx.Node, fx.Node]) -> None:
    sizes = counts(chosen)

    def changed(dim: Dim) -> bool:
        return touched(dim, sizes) and size_after(dim, sizes) != dim.extent

    places: dict[tuple[int, str | int], list[Slot]] = defaultdict(list)
    for slot in analysis.facts.slots:
        places[slot.node.index, slot.place].append(slot)
    for (index, place), slots in places.items():
        due = [slot for slot in slots if changed(slot.watch)]
        if due:
            traced = model.calls[index]
            new = {slot.index: -1 if slot.dim.size is None else size_after(slot.dim, sizes) for slot in slots}
            _write(traced, twins[traced.node], place, new, {slot.index for slot in due})
    for pin in analysis.facts.pins:
        if changed(pin.watch):
            set_argument(twins[model.calls[pin.node.index].node], pin.attr, pin.value)


def _write(traced: Traced, node: fx.Node, place: str | int, new: dict[int, int], due: set[int]) -> None:
    call = traced.call
    assert call is not None, "slots come from rules, and rules from calls"
    if isinstance(place, int):
        words = [word for word in call.inputs.split() if not word.startswith("-")]
        name = words[place].lstrip("@") if place < len(words) else ""
    else:
        name = call.attrs.get(place, "")
    if name == "?sizes":
        _explicit_split(node, [new[i] for i in sorted(new)])
        return
    old = arguments(node).get(name)
    if isinstance(old, fx.Node):
        set_argument(node, name, _stored(node, name, old, new))
    elif isinstance(old, list | tuple):
        rank = len(traced.node.args[0].meta["val"].shape) if place == "pads" else 0  # type: ignore[union-attr]
        entries = {_backwards(entry, rank) if rank else entry: entry for entry in new}
        set_argument(node, name, [_pick(value, entries.get(i), new, due) for i, value in enumerate(old)])
    elif name:
        set_argument(node, name, new[min(new)])


def _stored(node: fx.Node, name: str, old: fx.Node, new: dict[int, int]) -> fx.Node:
    """Numbers in a tensor that is stored: a copy of it for this call alone, with the new ones."""
    owner = node.graph.owning_module
    assert owner is not None
    assert old.op == "get_attr", "rules give slots to constants only"
    value = attribute(owner, str(old.target)).clone()
    for entry, number in new.items():
        value.view(-1)[entry] = number
    path = f"{node.name}_{name}"
    owner.register_buffer(path, value)
    with node.graph.inserting_before(node):
        held = node.graph.get_attr(path)
    held.meta = dict(old.meta)
    return held


def _backwards(entry: int, rank: int) -> int:
    """Where torch keeps an entry of the pads: from the last axis on, before and after side by side."""
    return 2 * (rank - 1 - entry % rank) + entry // rank


def _pick(value: Any, entry: int | None, new: dict[int, int], due: set[int]) -> Any:
    return value if entry is None or entry not in due or value == -1 else new[entry]


def _explicit_split(node: fx.Node, sizes: list[int]) -> None:
    """``split`` and ``chunk`` into equal parts become a split into parts of given sizes."""
    args = arguments(node)
    node.target = torch.ops.aten.split_with_sizes.default
    node.args = (args["self"], sizes, args.get("dim", 0))
    node.kwargs = {}


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Set the argument ``name`` of an ATen call, where it stands."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    position = names.index(name)
    if schema.arguments[position].kwarg_only or position >= len(node.args):
        node.kwargs = {**node.kwargs, name: value}
    else:
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
