"""Decoders of transformers with their cache of keys and values as inputs and outputs, as text is made with."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NEW, PAST = 3, 4


class Cached(nn.Module):
    """The decoder as a function of tensors: ids, mask, places, then key and value of each layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, places: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for i in range(len(past) // 2):
            cache.update(past[2 * i], past[2 * i + 1], i)
        found = self.model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        )
        return (found.logits, *(x for layer in found.past_key_values.layers for x in (layer.keys, layer.values)))


def exported(model: Any, path: Path) -> None:
    """Write ``model``, attention spelled out, to ``path``.

    "input_ids", "position_ids" int64 [batch, new], "attention_mask" int64 [batch, all], "past_0.key" and so on float32
    [batch, heads, past, size] -> "logits" [batch, new, vocabulary], "present_0.key" and so on.
    """
    import onnx

    from models.export import quiet, save

    model.float().eval().set_attn_implementation("eager")
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    caches = [f"{i}.{what}" for i in range(config.num_hidden_layers) for what in ("key", "value")]
    given = ["input_ids", "attention_mask", "position_ids", *(f"past_{cache}" for cache in caches)]
    made = ["logits", *(f"present_{cache}" for cache in caches)]
    inputs = torch.ones(2, NEW, dtype=torch.int64), torch.ones(2, NEW + PAST, dtype=torch.int64)
    places = torch.arange(PAST, PAST + NEW).repeat(2, 1)
    states = [torch.randn(2, heads, PAST, size) for _ in caches]
    options: dict[str, Any] = {
        "input_names": given,
        "output_names": made,
        "dynamic_axes": {name: _axes(name) for name in (*given, *made)},
    }
    with quiet(), torch.no_grad():
        torch.onnx.export(
            Cached(model), (*inputs, places, *states), str(path), dynamo=False, opset_version=17, **options
        )
    save(onnx.load(path), path)


def _axes(name: str) -> dict[int, str]:
    """The dynamic axes of an input or output."""
    if name.startswith(("past", "present")):
        return {0: "batch", 2: "past" if name.startswith("past") else "all"}
    return {0: "batch", 1: "all" if name == "attention_mask" else "new"}
