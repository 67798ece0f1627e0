"""Llama decoders for export: SmolLM2's trained weights out of a GGUF file, or any size with random ones.

Only the way from token ids to logits, without a key-value cache. The GGUF weights are 4-bit and are dequantised to
float32, so quality is that of the quantised model.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

# GGUF name inside a block -> transformers' name inside a layer
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Logits(nn.Module):
    """The decoder as a function of two tensors with one result; parameters keep transformers' names."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.lm_head = model.lm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        logits: Tensor = self.lm_head(hidden)
        return logits


def smollm2_config(layers: int = 30, width: int = 576) -> LlamaConfig:
    """SmolLM2-135M: 9 query heads on 3 key-value heads, gated MLP of 8/3 widths, embedding tied to the output."""
    if width % 18:
        raise ValueError(f"width {width} is no multiple of 18: 9 heads of an even size are needed")
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=width // 9,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )


def tiny_config() -> LlamaConfig:
    """Two layers, 8 query heads of size 16 on 2 key-value heads: the queries are twice as wide as the stream."""
    return LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
    )


def trained(gguf: Path) -> nn.Module:
    """SmolLM2-135M-Instruct with the weights of a GGUF file, as a function of two tensors."""
    return Logits(decoder(gguf))


def decoder(gguf: Path) -> LlamaForCausalLM:
    """SmolLM2-135M-Instruct with the weights of a GGUF file, as transformers has it."""
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    model = LlamaForCausalLM(smollm2_config())
    heads = {"attn_q": 9, "attn_k": 3}
    weights = {}
    for tensor in GGUFReader(gguf).tensors:
        array = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        name, kind = _name(tensor.name)
        weights[name] = _unpermute(torch.from_numpy(array), heads[kind]) if kind in heads else torch.from_numpy(array)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model


def random(config: LlamaConfig, seed: int = 0) -> nn.Module:
    """A decoder with generic weights: norms between 0.5 and 1.5, matrices large enough that attention is far from even.

    With transformers' own initialisation all positions get nearly the same attention and all norms are one, which hides
    wrong wiring.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            elif name == "model.embed_tokens.weight":
                parameter.normal_()
            else:
                parameter.normal_(std=(2 / parameter.shape[1]) ** 0.5)
    return Logits(model)


def _name(gguf_name: str) -> tuple[str, str]:
    """The name in transformers, and the kind of tensor."""
    outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if gguf_name in outside:
        return outside[gguf_name], ""
    _, layer, kind, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.weight", kind


def _unpermute(weight: Tensor, heads: int) -> Tensor:
    """GGUF interleaves the two halves of each rotary pair; transformers keeps the halves apart."""
    size = weight.shape[0] // heads
    return weight.reshape(heads, size // 2, 2, -1).transpose(1, 2).reshape(weight.shape)
