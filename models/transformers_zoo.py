"""The architectures of transformers at tiny sizes, with random weights made generic, to run proofs on.

Sizes are small but lifelike in proportion: two layers, width 64 in 4 heads, an MLP of 96, a vocabulary of 53, images of
32 or 64 pixels, so that embeddings do not dominate and half of every Dim leaves about a quarter of the parameters.
Every model ends in a head (logits of a few classes or of the vocabulary), as a model in use does.

With transformers' own initialisation norms are one, biases zero and attention nearly even, which hides wrong wiring;
`generic` draws every weight anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Build = Callable[[], tuple[nn.Module, dict[str, Tensor]]]
VOCABULARY, WIDTH, HEADS, LAYERS, MLP, CLASSES, BATCH, LENGTH = 53, 64, 4, 2, 96, 5, 2, 7
SIZES = f"{LAYERS} layers, width {WIDTH}, {HEADS} heads, MLP {MLP}, vocabulary {VOCABULARY}, batch {BATCH}"

ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": MLP,
    "max_position_embeddings": 16,
    "num_labels": CLASSES,
    "pad_token_id": 0,
}
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": MLP,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": CLASSES,
}
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": False}


class Picked(nn.Module):
    """A model of which only the output ``name`` is wanted, averaged over space where it is a list of feature maps."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, **inputs: Tensor) -> Any:
        """The one output."""
        found = getattr(self.model(**inputs), self.name)
        return found[-1].mean((2, 3)) if isinstance(found, list | tuple) else found


def _make(config: str, model: str, **options: Any) -> nn.Module:
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
    return made


def _ids(**more: Tensor) -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, **more}


def _masked() -> dict[str, Tensor]:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[1, -2:] = 0
    return _ids(attention_mask=mask)


def _pixels(size: int = 32, channels: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {"pixel_values": torch.randn(BATCH, channels, size, size, generator=generator, dtype=torch.float64)}


def _encoder(name: str, **options: Any) -> Build:
    return lambda: (_make(f"{name}Config", f"{name}ForSequenceClassification", **{**ENCODER, **options}), _masked())


def _decoder(name: str, **options: Any) -> Build:
    stem = name.removesuffix("Text")
    return lambda: (_make(f"{name}Config", f"{stem}ForCausalLM", **{**DECODER, **options}), _masked())


def _older(name: str, model: str = "", /, **options: Any) -> Build:
    """Decoders whose configurations name their sizes in ways of their own."""
    common = {"vocab_size": VOCABULARY, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return lambda: (_make(f"{name}Config", model or f"{name}ForCausalLM", **{**common, **options}), _masked())


def _vision(name: str, size: int = 32, /, **options: Any) -> Build:
    build = f"{name}Config", f"{name}ForImageClassification"
    return lambda: (_make(*build, **{**VISION, "image_size": size, **options}), _pixels(size))


def _convolutional(name: str, size: int = 32, /, **options: Any) -> Build:
    build = f"{name}Config", f"{name}ForImageClassification"
    return lambda: (_make(*build, num_labels=CLASSES, **options), _pixels(size))


def _t5() -> tuple[nn.Module, dict[str, Tensor]]:
    sizes = {"d_model": WIDTH, "d_kv": 16, "d_ff": MLP, "num_layers": LAYERS, "num_heads": HEADS}
    model = _make("T5Config", "T5ForConditionalGeneration", vocab_size=VOCABULARY, use_cache=False, **sizes)
    return Picked(model, "logits"), _masked() | {"decoder_input_ids": _ids()["input_ids"][:, :5]}


def _bart() -> tuple[nn.Module, dict[str, Tensor]]:
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _SIDE.items()}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
    options = {"vocab_size": VOCABULARY, "d_model": WIDTH, "max_position_embeddings": 16, **sizes, **ends}
    model = _make("BartConfig", "BartForConditionalGeneration", **options)
    return Picked(model, "logits"), _masked() | {"decoder_input_ids": _ids()["input_ids"][:, :5]}


_SIDE = {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": MLP}


def _whisper() -> tuple[nn.Module, dict[str, Tensor]]:
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _SIDE.items()}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "use_cache": False}
    places = {"max_source_positions": 10, "max_target_positions": 12, "num_mel_bins": 8}
    options = {"vocab_size": VOCABULARY, "d_model": WIDTH, **places, **sizes, **ends}
    model = _make("WhisperConfig", "WhisperForConditionalGeneration", **options)
    sound = torch.randn(BATCH, 8, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Picked(model, "logits"), {"input_features": sound, "decoder_input_ids": _ids()["input_ids"][:, :5]}


def _two_towers(name: str, **text: Any) -> Build:
    def build() -> tuple[nn.Module, dict[str, Tensor]]:
        words = {**ENCODER, "bos_token_id": 1, "eos_token_id": 2, **text}
        config = getattr(transformers, f"{name}Config")(text_config=words, vision_config=VISION)
        if hasattr(config, "projection_dim"):
            config.projection_dim = config.text_config.projection_dim = config.vision_config.projection_dim = 24
        model = getattr(transformers, f"{name}Model")(config)
        ids = _masked()
        ids["input_ids"][:, -1] = 2
        return Picked(model, "logits_per_image"), ids | _pixels()

    return build


def _rt_detr() -> tuple[nn.Module, dict[str, Tensor]]:
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 2, 1, 1]}
    model = _make("RTDetrResNetConfig", "RTDetrResNetBackbone", out_features=["stage4"], **sizes)
    return Classified(model, 96), _pixels(64)


class Classified(nn.Module):
    """A backbone with the head of a classifier."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits of the last feature map, averaged over space."""
        logits: Tensor = self.head(self.backbone(pixel_values).feature_maps[-1].mean((2, 3)))
        return logits


_ROPE = {"head_dim": 16}
_SWIN = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}
_GPT = {"n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS, "n_positions": 16, "n_inner": MLP}
_DISTIL = {"dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": MLP}
_OPT = {"hidden_size": WIDTH, "ffn_dim": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_PLAIN = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}
_PVT = {"hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [3, 3, 2, 2]}
_SEGFORMER = {"hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [3, 3, 2, 2]}
_LEVIT = {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "key_dim": [8, 8, 8], "depths": [1, 1, 1]}
_CVT = {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}
_MOBILE_VIT = {"hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96]}
_EFFICIENT = {"hidden_dim": 640, "width_coefficient": 0.5, "depth_coefficient": 0.4}

ZOO: dict[str, Build] = {
    "bert": _encoder("Bert"),
    "roberta": _encoder("Roberta"),
    "distilbert": lambda: (
        _make(
            "DistilBertConfig",
            "DistilBertForSequenceClassification",
            vocab_size=VOCABULARY,
            max_position_embeddings=16,
            num_labels=CLASSES,
            **_DISTIL,
        ),
        _masked(),
    ),
    "albert": _encoder("Albert", embedding_size=24),
    "electra": _encoder("Electra", embedding_size=24),
    "deberta": _encoder("Deberta", **_RELATIVE),
    "deberta_v2": _encoder("DebertaV2", **_RELATIVE, position_buckets=4, norm_rel_ebd="layer_norm", share_att_key=True),
    "gpt2": _older("GPT2", "GPT2LMHeadModel", **_GPT),
    "gpt_neox": _older("GPTNeoX", **_PLAIN, intermediate_size=MLP, max_position_embeddings=16, rotary_pct=0.5),
    "gptj": _older("GPTJ", **_GPT, rotary_dim=8),
    "opt": _older("OPT", **_OPT, word_embed_proj_dim=WIDTH, max_position_embeddings=16),
    "bloom": _older("Bloom", hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS),
    "falcon": _older("Falcon", **_PLAIN, ffn_hidden_size=MLP),
    "llama": _decoder("Llama", **_ROPE),
    "mistral": _decoder("Mistral", **_ROPE, sliding_window=4),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3", **_ROPE),
    "gemma2": _decoder("Gemma2", **_ROPE, sliding_window=4),
    "gemma3": _decoder("Gemma3Text", **_ROPE, sliding_window=4),
    "phi3": _decoder("Phi3"),
    "cohere": _decoder("Cohere"),
    "olmo2": _decoder("Olmo2"),
    "smollm3": _decoder("SmolLM3"),
    "mixtral": _decoder("Mixtral", **EXPERTS, num_local_experts=4),
    "qwen2_moe": _decoder(
        "Qwen2Moe", **EXPERTS, num_experts=4, moe_intermediate_size=40, shared_expert_intermediate_size=56
    ),
    "mamba": lambda: (
        _make(
            "MambaConfig",
            "MambaForCausalLM",
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            state_size=8,
            use_cache=False,
        ),
        _ids(),
    ),
    "t5": _t5,
    "bart": _bart,
    "whisper": _whisper,
    "clip": _two_towers("CLIP"),
    "siglip": _two_towers("Siglip", max_position_embeddings=LENGTH, projection_size=WIDTH),
    "vit": _vision("ViT"),
    "deit": _vision("DeiT"),
    "beit": _vision("Beit", use_relative_position_bias=True, use_mask_token=False),
    "swin": _convolutional("Swin", image_size=32, **_SWIN),
    "swinv2": _convolutional("Swinv2", image_size=32, **_SWIN),
    "convnext": _convolutional("ConvNext", **_STAGES),
    "convnextv2": _convolutional("ConvNextV2", **_STAGES),
    "resnet": _convolutional("ResNet", 64, embedding_size=16, depths=[1, 2, 1, 1], hidden_sizes=[32, 48, 64, 96]),
    "regnet": _convolutional(
        "RegNet", 64, embedding_size=16, depths=[1, 2, 1, 1], hidden_sizes=[32, 48, 64, 96], groups_width=8
    ),
    "mobilenet_v1": _convolutional("MobileNetV1", 64, depth_multiplier=0.25),
    "mobilenet_v2": _convolutional("MobileNetV2", 64, depth_multiplier=0.35),
    "efficientnet": _convolutional("EfficientNet", 64, image_size=64, **_EFFICIENT),
    "segformer": _convolutional("Segformer", 64, depths=[1, 1, 1, 1], **_SEGFORMER),
    "rt_detr_resnet": _rt_detr,
    "dinov2": _vision("Dinov2", mlp_ratio=2),
    "levit": _convolutional("Levit", 96, image_size=96, **_LEVIT),
    "pvt_v2": _convolutional("PvtV2", 64, image_size=64, depths=[1, 1, 1, 1], **_PVT),
    "poolformer": _convolutional("PoolFormer", 64, **_STAGES, mlp_ratio=2.0),
    "mobilevit": _convolutional("MobileViT", 128, image_size=128, **_MOBILE_VIT),
    "cvt": _convolutional("Cvt", 64, **_CVT),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module ``name`` in evaluation mode with generic weights in float64, and its example inputs by keyword."""
    torch.manual_seed(seed)
    module, inputs = ZOO[name]()
    return generic(module.eval(), seed), inputs


def generic(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every weight anew, in float64: nothing is constant, zero or even, and attention tells heads apart.

    Vectors that scale are between 0.5 and 1.5, biases between -0.3 and 0.3, batch-norm statistics off their defaults,
    embeddings of unit variance, matrices of the variance that keeps activations at unit scale.
    """
    generator = torch.Generator().manual_seed(seed)
    module.double()
    inputs_first = {id(part.weight) for part in module.modules() if type(part).__name__ == "Conv1D"}
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _draw(name, parameter, id(parameter) in embeddings, id(parameter) in inputs_first, generator)
        for part in module.modules():
            for name in ("running_mean", "running_var"):
                value = getattr(part, name, None)
                if isinstance(value, Tensor):
                    value.uniform_(*((-0.3, 0.3) if name == "running_mean" else (0.5, 1.5)), generator=generator)
    return module


def _draw(name: str, parameter: Tensor, embedding: bool, inputs_first: bool, generator: torch.Generator) -> None:
    last = name.rsplit(".", 1)[-1]
    if parameter.dim() == 0:
        parameter.uniform_(0.5, 1.5, generator=generator)
    elif "bias" in last and parameter.dim() == 1:
        parameter.uniform_(-0.3, 0.3, generator=generator)
    elif last == "A_log":
        parameter.uniform_(0.0, 2.0, generator=generator)
    elif sum(size > 1 for size in parameter.shape) == 1 or last in ("gamma", "layer_scale", "lambda1", "logit_scale"):
        parameter.uniform_(0.5, 1.5, generator=generator)
    elif embedding:
        parameter.normal_(generator=generator)
    else:
        shape = list(parameter.shape)
        fan = shape[0] if inputs_first else math.prod(shape[1:]) if len(shape) > 3 else math.prod(shape[-1:])
        fan = math.prod(shape[1:]) if "conv" in name and len(shape) == 3 else fan
        parameter.normal_(std=math.sqrt(1.5 / max(fan, 1)), generator=generator)
