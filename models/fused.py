"""Transformers in the fused ops of ONNX Runtime, and decoders with a cache of keys and values, fused or not.

Tiny, with random weights: two layers, width 64, four heads. Decoders in fused ops are built by hand; they take and give
keys and values, as files for generation do, or go without, with the same weights. BERT is fused by ONNX Runtime's
optimiser. GPT-2 and Llama are exported with their cache, attention spelled out.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS, GROUPS, LAYERS, MLP, PLACES = 53, 64, 4, 2, 2, 96, 256
HEAD = WIDTH // HEADS
LARGER = 32
"""The head size of the decoder with grouped queries: rotated heads are a multiple of 16, so that half is one too."""
RUNTIME = "com.microsoft"


@dataclass
class _Writer:
    """A graph under construction; weights are drawn in order, so that equal layers get equal weights."""

    cache: bool
    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, outs: Sequence[int] = (0,), domain: str = RUNTIME, **attrs: Any) -> list[str]:
        """A node; its outputs at the places ``outs`` are asked for."""
        name = f"{kind}_{len(self.nodes)}"
        asked = [f"{name}_{i}" if i in outs else "" for i in range(max(outs) + 1)]
        self.nodes.append(helper.make_node(kind, list(inputs), asked, name, domain=domain, **attrs))
        return [output for output in asked if output]

    def plain(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """A node of the standard, of one output."""
        return self.op(kind, *inputs, domain="", **attrs)[0]

    def weight(self, name: str, *shape: int) -> str:
        """A matrix that keeps the scale of what it multiplies; a table of unit variance; or a vector about 1."""
        drawn = self.random.standard_normal(shape)
        table, vector = name.endswith("embed"), len(shape) == 1
        values = drawn if table else 1 + 0.2 * drawn if vector else drawn * np.sqrt(1.5 / shape[0])
        return self.const(name, values.astype(np.float32))

    def const(self, name: str, value: Any) -> str:
        """A constant as it stands."""
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def input(self, name: str, dtype: int, *shape: int | str) -> str:
        """An input of the model."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, *shape: int | str) -> None:
        """``value`` is an output of the model, called ``name``."""
        self.plain("Identity", value)
        self.nodes[-1].output[0] = name
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def model(self) -> onnx.ModelProto:
        """What was built."""
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(RUNTIME, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def gpt(cache: bool = True, seed: int = 0) -> onnx.ModelProto:
    """A decoder in the manner of GPT-2: places in a table, keys and values of a layer in one tensor."""
    net = _Writer(cache, np.random.default_rng(seed))
    ids, places = (net.input(name, TensorProto.INT64, "batch", "new") for name in ("input_ids", "position_ids"))
    words = net.plain("Gather", net.weight("words.embed", VOCABULARY, WIDTH), ids)
    hidden = net.plain("Add", words, net.plain("Gather", net.weight("places.embed", PLACES, WIDTH), places))
    x = net.plain("LayerNormalization", hidden, *_pair(net, "first.norm", WIDTH))
    for i in range(LAYERS):
        wide = 3 * WIDTH
        inputs = [x, net.weight(f"{i}.qkv", WIDTH, wide), net.weight(f"{i}.qkv.bias", wide)]
        size = 2, "batch", HEADS, "past", HEAD
        past = ["", net.input(f"past_{i}", TensorProto.FLOAT, *size)] if cache else []
        found = net.op("Attention", *inputs, *past, outs=(0, 1)[: 1 + cache], num_heads=HEADS, unidirectional=1)
        if cache:
            net.output(found[1], f"present_{i}", 2, "batch", HEADS, "all", HEAD)
        out = net.plain("MatMul", found[0], net.weight(f"{i}.out", WIDTH, WIDTH))
        x, hidden = _skip(net, f"{i}.middle", out, hidden)
        up = net.plain("MatMul", x, net.weight(f"{i}.up", WIDTH, MLP))
        (bent,) = net.op("FastGelu", up, net.weight(f"{i}.up.bias", MLP))
        x, hidden = _skip(net, f"{i}.end", net.plain("MatMul", bent, net.weight(f"{i}.down", MLP, WIDTH)), hidden)
    net.output(net.plain("MatMul", x, net.weight("head", WIDTH, VOCABULARY)), "logits", "batch", "new", VOCABULARY)
    return net.model()


def _pair(net: _Writer, name: str, size: int) -> list[str]:
    return [net.weight(f"{name}.scale", size), net.weight(f"{name}.shift", size)]


def _skip(net: _Writer, name: str, out: str, hidden: str) -> list[str]:
    inputs = out, hidden, *_pair(net, f"{name}.norm", WIDTH), net.weight(f"{name}.bias", WIDTH)
    return net.op("SkipLayerNormalization", *inputs, outs=(0, 3), epsilon=1e-5)


def llama(cache: bool = True, seed: int = 0) -> onnx.ModelProto:
    """A decoder in the manner of Llama: grouped queries, rotated inside one layer, by an op of its own in the next."""
    net = _Writer(cache, np.random.default_rng(seed))
    ids, places = (net.input(name, TensorProto.INT64, "batch", "new") for name in ("input_ids", "position_ids"))
    lengths, total = _lengths(net, net.input("attention_mask", TensorProto.INT64, "batch", "all" if cache else "new"))
    angles = np.arange(PLACES)[:, None] / 10 ** (np.arange(LARGER // 2) / 8)
    tables = [net.const(name, f(angles).astype(np.float32)) for name, f in (("cos", np.cos), ("sin", np.sin))]
    hidden = net.plain("Gather", net.weight("words.embed", VOCABULARY, WIDTH), ids)
    x = net.plain("SimplifiedLayerNormalization", hidden, net.weight("first.norm", WIDTH), axis=-1, epsilon=1e-5)
    for i in range(LAYERS):
        wide = {"q": HEADS * LARGER, "k": GROUPS * LARGER, "v": GROUPS * LARGER}
        q, k, v = (net.plain("MatMul", x, net.weight(f"{i}.{name}", WIDTH, size)) for name, size in wide.items())
        if i % 2:
            q, k = (net.op("RotaryEmbedding", y, places, *tables)[0] for y in (q, k))
        size = "batch", GROUPS, "past", LARGER
        past = [net.input(f"past_{i}.{name}", TensorProto.FLOAT, *size) for name in "kv"] if cache else ["", ""]
        inputs = q, k, v, *past, lengths, total, *([] if i % 2 else tables)
        heads: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": GROUPS, "do_rotary": int(not i % 2)}
        found = net.op("GroupQueryAttention", *inputs, outs=(0, 1, 2)[: 3 if cache else 1], **heads)
        for name, value in zip("kv", found[1:], strict=False):
            net.output(value, f"present_{i}.{name}", "batch", GROUPS, "all", LARGER)
        out = net.plain("MatMul", found[0], net.weight(f"{i}.o", HEADS * LARGER, WIDTH))
        x, hidden = _simple(net, f"{i}.middle", out, hidden)
        gate, up = (net.plain("MatMul", x, net.weight(f"{i}.{name}", WIDTH, MLP)) for name in ("gate", "up"))
        bent = net.plain("Mul", net.op("QuickGelu", gate, alpha=1.0)[0], up)
        x, hidden = _simple(net, f"{i}.end", net.plain("MatMul", bent, net.weight(f"{i}.down", MLP, WIDTH)), hidden)
    net.output(net.plain("MatMul", x, net.weight("head", WIDTH, VOCABULARY)), "logits", "batch", "new", VOCABULARY)
    return net.model()


def _simple(net: _Writer, name: str, out: str, hidden: str) -> list[str]:
    inputs = out, hidden, net.weight(f"{name}.norm", WIDTH)
    return net.op("SkipSimplifiedLayerNormalization", *inputs, outs=(0, 3), epsilon=1e-5)


def _lengths(net: _Writer, mask: str) -> list[str]:
    """How many positions each row has, less one, and how many there are, from a mask of them all."""
    count = net.plain("ReduceSum", mask, net.const("last", np.array([1])), keepdims=0)
    size = net.plain("Gather", net.plain("Shape", mask), net.const("second", np.array(1)))
    less = net.plain("Sub", count, net.const("one", np.array(1)))
    return [net.plain("Cast", value, to=TensorProto.INT32) for value in (less, size)]


DECODERS: dict[str, Callable[..., onnx.ModelProto]] = {"gpt": gpt, "llama": llama}


def bert() -> onnx.ModelProto:
    """The BERT of the zoo, exported and fused by ONNX Runtime's own optimiser for transformers."""
    import torch
    from onnxruntime.transformers import optimizer

    from models.export import quiet
    from models.transformers_zoo import build

    module, inputs = build("bert")
    module.float().set_attn_implementation("eager")  # type: ignore[operator]
    axes = {name: {0: "batch", 1: "length"} for name in inputs}
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        path = str(Path(folder) / "bert.onnx")
        names = list(inputs)
        torch.onnx.export(
            module.eval(), (), path, kwargs=inputs, input_names=names, dynamic_axes=axes, dynamo=False, opset_version=17
        )
        made = optimizer.optimize_model(path, "bert", num_heads=HEADS, hidden_size=WIDTH, opt_level=0)
        made.save_model_to_file(path)
        return onnx.load(path)


def exported(name: str) -> onnx.ModelProto:
    """GPT-2 or Llama of transformers, its cache as inputs and outputs, as torch's exporter spells attention out."""
    from models.cached import exported as with_cache

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        with_cache(_decoder(name), path)
        return onnx.load(path)


def _decoder(name: str) -> Any:
    """A tiny decoder of transformers with random weights."""
    import transformers

    from models.transformers_zoo import generic

    common: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes: dict[str, Any]
    if name == "gpt2":
        sizes = {"n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS, "n_inner": MLP, "n_positions": PLACES}
        model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**common, **sizes))
    else:
        sizes = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS}
        sizes |= {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "max_position_embeddings": PLACES}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common, **sizes))
    generic(model)
    return model
