"""Hints for Torch-Pruning on modules of transformers, as its own examples give them (bert, vit, swin, llm).

They are found by the names that layers have there, which is what tools/bench_torch_pruning.py needs to be fair to it;
graphprune itself knows no such name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

QKV = re.compile(r"(q|k|v|query|key|value|q_lin|k_lin|v_lin|projection_(query|key|value))(_proj)?|c_attn|qkv(_proj)?")
ATTENTION = re.compile(f"{QKV.pattern}|query_key_value|in_proj|queries(_keys_values)?|keys_values")
QKV_FUSED = re.compile("qkv|c_attn")
OUT = ("out_features", "nf", "out_channels", "embedding_dim")
LOGITS = ("lm_head", "classifier", "score", "fc", "head", "embed_out", "proj_out")
HEADS = ("num_attention_heads", "num_heads", "n_heads")
Attention = list[tuple[Any, Any, int]]
"""Layers that make queries, keys and values: the module that each is part of, the layer, its number of heads."""


def projections(module: nn.Module) -> Iterator[tuple[Any, Any, int]]:
    """The entries of `Attention`."""
    for name, layer in module.named_modules():
        above, _, last = name.rpartition(".")
        if not QKV.fullmatch(last) or not hasattr(layer, "weight"):
            continue
        owner = module.get_submodule(above)
        config = getattr(owner, "config", None)
        places = ("num_key_value_heads", *HEADS) if last in ("k_proj", "v_proj") else HEADS
        heads = [count for key in places for at in (owner, config) if type(count := getattr(at, key, None)) is int]
        if heads:
            yield owner, layer, heads[0]


def _nothing(module: nn.Module, attention: Attention) -> dict[str, Any]:
    """Only what every example gives."""
    return {}


def _heads(module: nn.Module, attention: Attention) -> dict[str, Any]:
    """As its bert and llm examples: whole heads go, their size stays."""
    heads = {"num_heads": {layer: count for _, layer, count in attention}}
    return heads | {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}


def _sizes(module: nn.Module, attention: Attention) -> dict[str, Any]:
    """As its vit and swin examples: all heads stay, each gets smaller."""
    return {"num_heads": {layer: count for _, layer, count in attention}}


def _both(module: nn.Module, attention: Attention) -> dict[str, Any]:
    """Fewer heads, each smaller."""
    return _sizes(module, attention) | {"prune_num_heads": True, "head_pruning_ratio": 0.5}


def _eager(module: nn.Module, attention: Attention) -> dict[str, Any]:
    """Whole heads, without the fused attention, so that the copies of key and value heads are seen."""
    if (config := _config(module)) is not None:
        config._attn_implementation = "eager"
    return _heads(module, attention)


def _whole(module: nn.Module, attention: Attention) -> dict[str, Any]:
    """Attention is left alone."""
    found = [part for name, part in module.named_modules() if ATTENTION.fullmatch(name.rpartition(".")[2])]
    return {"ignored_layers": _outputs(module) + found}


def _inner(module: nn.Module, attention: Attention) -> dict[str, Any]:
    """Attention and the residual stream are left alone: whatever is as wide as the embedding."""
    given = [getattr(_config(module), key, None) for key in ("hidden_size", "hidden_sizes", "embed_dim", "d_model")]
    sizes = [size for value in given for size in (value if isinstance(value, list | tuple) else [value])]
    stream = [size for size in sizes if isinstance(size, int)]
    wide = [part for part in module.modules() if any(getattr(part, key, None) in stream for key in OUT)]
    return {"ignored_layers": [*_whole(module, attention)["ignored_layers"], *wide]}


HINTS: dict[str, Callable[[nn.Module, Attention], dict[str, Any]]] = {
    "output left alone": _nothing,
    "whole heads": _heads,
    "whole heads with eager attention": _eager,
    "size of heads": _sizes,
    "heads and their size": _both,
    "attention left alone": _whole,
    "residual stream left alone": _inner,
}
SAME = [way for way in HINTS if "left alone" not in way or way.startswith("output")]
"""Ways that build the groups that it builds with no hint: where that does not end, these need not be tried."""


def common(module: nn.Module) -> dict[str, Any]:
    """What every one of its examples gives: the output layer, fused gates, and pruners for layers it does not know."""
    import torch

    parts = list(module.modules())
    own = {
        kind: maker() for name, maker in OWN.items() for kind in {type(p) for p in parts if type(p).__name__ == name}
    }
    gates = {part.gate_up_proj: 2 for part in parts if hasattr(getattr(part, "gate_up_proj", None), "weight")}
    roots = [torch.nn.modules.conv._ConvNd, torch.nn.Linear, *own] if own else []
    hints = {"ignored_layers": _outputs(module), "customized_pruners": own, "root_module_types": roots}
    hints |= {"out_channel_groups": gates}
    return {name: value for name, value in hints.items() if value}


def _outputs(module: nn.Module) -> list[nn.Module]:
    """The layers that make logits: the last with weights of each head."""
    heads = [part for name, part in module.named_modules() if name.removeprefix("model.") in LOGITS]
    return [[part for part in head.modules() if hasattr(part, "weight")][-1] for head in heads]


def _config(module: nn.Module) -> Any:
    return next((part.config for part in module.modules() if hasattr(part, "config")), None)


def _conv1d() -> Any:
    """A pruner for transformers' Conv1D, a linear layer with its inputs first."""
    import torch_pruning as tp

    class Pruner(tp.BasePruningFunc):  # type: ignore[misc]
        def prune_out_channels(self, layer: Any, idxs: list[int]) -> Any:
            keep = sorted(set(range(layer.nf)) - set(idxs))
            layer.weight = self._prune_parameter_and_grad(layer.weight, keep, 1)
            layer.bias = self._prune_parameter_and_grad(layer.bias, keep, 0)
            layer.nf = len(keep)
            return layer

        def prune_in_channels(self, layer: Any, idxs: list[int]) -> Any:
            keep = sorted(set(range(layer.nx)) - set(idxs))
            layer.weight = self._prune_parameter_and_grad(layer.weight, keep, 0)
            layer.nx = len(keep)
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.nf)

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.nx)

    return Pruner()


def _merging() -> Any:
    """Its swin example's pruner for the layer that puts four neighbours into one."""
    import torch_pruning as tp

    class Pruner(tp.BasePruningFunc):  # type: ignore[misc]
        def prune_out_channels(self, layer: Any, idxs: list[int]) -> Any:
            tp.prune_linear_out_channels(layer.reduction, idxs)
            return layer

        def prune_in_channels(self, layer: Any, idxs: list[int]) -> Any:
            four = [index + corner * self.get_in_channels(layer) for corner in range(4) for index in idxs]
            tp.prune_linear_in_channels(layer.reduction, four)
            tp.prune_layernorm_out_channels(layer.norm, four)
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.reduction.out_features)

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.reduction.in_features) // 4

    return Pruner()


OWN = {"Conv1D": _conv1d, "SwinPatchMerging": _merging}


def tie(dense: nn.Module, module: nn.Module) -> int:
    """Make parameters one again that were one in the dense module and were cut alike; how many."""
    first: dict[int, str] = {}
    tied = 0
    for name, parameter in dense.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        here, there = module.get_parameter(name), module.get_parameter(other)
        if here is not there and here.shape == there.shape and bool((here == there).all()):
            above, _, last = name.rpartition(".")
            setattr(module.get_submodule(above), last, there)
            tied += 1
    return tied


def remember(owner: Any, layer: Any, heads: int, left: int, before: int) -> int:
    """Set the integers of an attention module that are sizes of what was cut, as its examples do; how many."""
    groups = getattr(owner, "num_key_value_groups", 1)
    if getattr(owner, "num_key_value_heads", 0) == heads:
        return 0
    if groups > 1 and layer is not getattr(owner, "q_proj", None):
        return 0
    parts = 3 if QKV_FUSED.search(_last(owner, layer)) else 1
    old, new = before // parts, width(layer) // parts
    if old == new:
        return 0
    sizes = {old: new, heads: left, old // heads: new // max(1, left)}
    done = 0
    for key, value in list(vars(owner).items()):
        if type(value) is not int or not re.search("head|dim|size|groups", key) or re.search("window|rotary", key):
            continue
        after = max(1, groups * left // heads) if key == "num_key_value_groups" else sizes.get(value, value)
        if after != value:
            setattr(owner, key, after)
            done += 1
    return done


def _last(owner: Any, layer: Any) -> str:
    return str(next(name for name, part in owner.named_children() if part is layer))


def width(layer: Any) -> int:
    """How many outputs a layer has."""
    return int(layer.weight.shape[1 if type(layer).__name__ == "Conv1D" else 0])
