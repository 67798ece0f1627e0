"""A Llama-style decoder of any size as an ONNX file: random float16 weights in one file beside it, written as a stream.

    python -m tools.make_large llama.onnx --gb 6

The graph is spelled as exporters spell it: RMS norm out of single ops in float32, rotary embedding from constant
tables, grouped-query attention that repeats keys and values by Expand, a gated MLP. Batch and sequence are dynamic.
There is no cache and no training in it: the logits mean nothing, structure and size do.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

HALF, SINGLE, INT, BOOL = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
OPSET = 18
ALIGN = 4096  # offsets in the data file are multiples of it, as ONNX asks for
CHUNK = 1 << 24  # elements drawn at once

Size = int | str
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Config:
    """The sizes of a decoder; those of Llama 3.2 3B, but for a smaller vocabulary, unless told otherwise."""

    layers: int = 28
    hidden: int = 3072
    mlp: int = 8192
    heads: int = 24
    kv_heads: int = 8
    vocab: int = 32000
    positions: int = 2048
    theta: float = 500000.0

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer."""
        projections = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * self.head
        return projections + 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """Weights of the whole model, the rotary tables apart."""
        return self.layers * self.layer_parameters + 2 * self.vocab * self.hidden + self.hidden


def config_of_size(gigabytes: float, config: Config) -> Config:
    """`config` with as many layers as make a data file of at least `gigabytes` (10^9 bytes)."""
    rest = gigabytes * 1e9 / 2 - replace(config, layers=0).parameters
    return replace(config, layers=max(1, math.ceil(rest / config.layer_parameters)))


def make_large(path: Path, config: Config, seed: int = 0) -> None:
    """Write the model to `path` and its weights to `path` + ".data". Memory stays below some hundred megabytes.

    Raises ValueError where the sizes do not divide.
    """
    if config.hidden % config.heads or config.heads % config.kv_heads or config.head % 2:
        raise ValueError(f"{config} does not divide into heads of an even width, and those into groups")
    data = path.with_name(path.name + ".data")
    with data.open("wb") as stream:
        graph = _Writer(stream, data.name, np.random.default_rng(seed))
        _decoder(graph, config)
    inputs = [helper.make_tensor_value_info("input_ids", INT, ["batch", "sequence"])]
    outputs = [graph.infos.pop("logits")]
    infos = list(graph.infos.values())
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.tensors, value_info=infos)
    opset = helper.make_opsetid("", OPSET)
    onnx.save(helper.make_model(made, producer_name="make_large", opset_imports=[opset], ir_version=9), path)
    onnx.checker.check_model(path)


@dataclass
class _Writer:
    """A graph that grows node by node, and the open file that its large weights go to."""

    stream: BinaryIO
    location: str
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)
    infos: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)

    def op(self, kind: str, inputs: Sequence[str], name: str, shape: Sequence[Size], dtype: int, **attrs: Any) -> str:
        """Add a node whose only output is the value `name`; returns that name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"node_{name}", **attrs))
        self.infos[name] = helper.make_tensor_value_info(name, dtype, list(shape))
        return name

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """Add a small constant inside the file, once."""
        if all(tensor.name != name for tensor in self.tensors):
            self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def normal(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> str:
        """Add a weight of normal random numbers."""
        count = math.prod(shape)
        sizes = (min(CHUNK, count - start) for start in range(0, count, CHUNK))
        draw = (mean + scale * self.rng.standard_normal(size, np.float32) for size in sizes)
        return self.weight(name, shape, draw)

    def weight(self, name: str, shape: tuple[int, ...], chunks: Iterator[Array]) -> str:
        """Add a float16 weight in the data file, its values in order and in pieces."""
        self.stream.write(b"\0" * (-self.stream.tell() % ALIGN))
        offset = self.stream.tell()
        for chunk in chunks:
            self.stream.write(chunk.astype(np.float16).tobytes())
        tensor = TensorProto(name=name, data_type=HALF, dims=shape, data_location=TensorProto.EXTERNAL)
        entries = {"location": self.location, "offset": offset, "length": self.stream.tell() - offset}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name


def _decoder(graph: _Writer, config: Config) -> None:
    wide = ("batch", "sequence", config.hidden)
    table = graph.normal("model.embed_tokens.weight", (config.vocab, config.hidden), 1.0)
    x = graph.op("Gather", [table, "input_ids"], "embedded", wide, HALF)
    places = _places(graph, config)
    for index in range(config.layers):
        name = f"model.layers.{index}"
        attended = _attention(graph, _norm(graph, x, f"{name}.input_layernorm", config), places, name, config)
        x = graph.op("Add", [x, attended], f"{name}.attended", wide, HALF)
        fed = _mlp(graph, _norm(graph, x, f"{name}.post_attention_layernorm", config), name, config)
        x = graph.op("Add", [x, fed], f"{name}.out", wide, HALF)
    last = _linear(graph, _norm(graph, x, "model.norm", config), "lm_head", config.hidden, config.vocab)
    graph.op("Cast", [last], "logits", ["batch", "sequence", config.vocab], SINGLE, to=SINGLE)


def _places(graph: _Writer, config: Config) -> tuple[str, str, str]:
    """Cosines and sines [sequence, head] of the positions in use, and the mask [sequence, sequence] of the future."""
    zero, one = graph.constant("zero", 0), graph.constant("one", 1)
    shape = graph.op("Shape", ["input_ids"], "ids_shape", [2], INT)
    length = graph.op("Gather", [shape, one], "length", [], INT)
    end = graph.op("Unsqueeze", [length, graph.constant("axis_0", [0])], "end", [1], INT)
    angles = np.arange(config.positions)[:, None] * config.theta ** -(np.arange(0, config.head, 2) / config.head)
    tables = []
    for name, function in (("cos", np.cos), ("sin", np.sin)):
        values: Array = np.concatenate([function(angles)] * 2, axis=1)
        whole = graph.weight(f"{name}_table", values.shape, iter([values]))
        start, axis = graph.constant("start_0", [0]), graph.constant("axis_0", [0])
        tables.append(graph.op("Slice", [whole, start, end, axis], name, ["sequence", config.head], HALF))
    step = graph.op("Range", [zero, length, one], "steps", ["sequence"], INT)
    row = graph.op("Unsqueeze", [step, graph.constant("axis_1", [1])], "rows", ["sequence", 1], INT)
    past = graph.op("GreaterOrEqual", [row, step], "past", ["sequence", "sequence"], BOOL)
    nothing = graph.constant("nothing", 0, np.float16)
    never = graph.constant("never", -65504, np.float16)
    mask = graph.op("Where", [past, nothing, never], "mask", ["sequence", "sequence"], HALF)
    return tables[0], tables[1], mask


def _linear(graph: _Writer, x: str, name: str, inputs: int, outputs: int, scale: float = 1.0) -> str:
    weight = graph.normal(f"{name}.weight", (inputs, outputs), scale / math.sqrt(inputs))
    return graph.op("MatMul", [x, weight], name, ["batch", "sequence", outputs], HALF)


def _norm(graph: _Writer, x: str, name: str, config: Config) -> str:
    """RMS norm, computed in float32."""
    wide, one = ("batch", "sequence", config.hidden), ("batch", "sequence", 1)
    two = graph.constant("two", 2, np.float32)
    least = graph.constant("epsilon", 1e-5, np.float32)
    last = graph.constant("axis_last", [-1])
    single = graph.op("Cast", [x], f"{name}.single", wide, SINGLE, to=SINGLE)
    square = graph.op("Pow", [single, two], f"{name}.square", wide, SINGLE)
    mean = graph.op("ReduceMean", [square, last], f"{name}.mean", one, SINGLE)
    above = graph.op("Add", [mean, least], f"{name}.above", one, SINGLE)
    root = graph.op("Sqrt", [above], f"{name}.root", one, SINGLE)
    inverse = graph.op("Reciprocal", [root], f"{name}.inverse", one, SINGLE)
    scaled = graph.op("Mul", [single, inverse], f"{name}.scaled", wide, SINGLE)
    half = graph.op("Cast", [scaled], f"{name}.half", wide, HALF, to=HALF)
    weight = graph.normal(f"{name}.weight", (config.hidden,), 0.1, 1.0)
    return graph.op("Mul", [weight, half], name, wide, HALF)


def _attention(graph: _Writer, x: str, places: tuple[str, str, str], layer: str, config: Config) -> str:
    heads, groups, head = config.heads, config.kv_heads, config.head
    cos, sin, mask = places
    name = f"{layer}.self_attn"
    q = _rotated(graph, _heads(graph, x, f"{name}.q_proj", heads, config, scale=2.0), (cos, sin), heads, config)
    k = _rotated(graph, _heads(graph, x, f"{name}.k_proj", groups, config, scale=2.0), (cos, sin), groups, config)
    v = _heads(graph, x, f"{name}.v_proj", groups, config)
    k, v = (_repeated(graph, value, config) for value in (k, v))
    square, whole = ("batch", heads, "sequence", "sequence"), ("batch", heads, "sequence", head)
    across = ("batch", heads, head, "sequence")
    k = graph.op("Transpose", [k], f"{name}.k_across", across, HALF, perm=[0, 1, 3, 2])
    scores = graph.op("MatMul", [q, k], f"{name}.scores", square, HALF)
    scale = graph.constant("attention_scale", 1 / math.sqrt(head), np.float16)
    scores = graph.op("Mul", [scores, scale], f"{name}.scaled", square, HALF)
    scores = graph.op("Add", [scores, mask], f"{name}.masked", square, HALF)
    shares = graph.op("Softmax", [scores], f"{name}.shares", square, HALF, axis=-1)
    mixed = graph.op("MatMul", [shares, v], f"{name}.mixed", whole, HALF)
    moved = ("batch", "sequence", heads, head)
    mixed = graph.op("Transpose", [mixed], f"{name}.moved", moved, HALF, perm=[0, 2, 1, 3])
    joined = graph.constant("joined", [0, 0, heads * head])
    flat = graph.op("Reshape", [mixed, joined], f"{name}.flat", ["batch", "sequence", heads * head], HALF)
    return _linear(graph, flat, f"{name}.o_proj", heads * head, config.hidden)


def _heads(graph: _Writer, x: str, name: str, heads: int, config: Config, scale: float = 1.0) -> str:
    """A projection cut into heads: [batch, heads, sequence, head]."""
    flat = _linear(graph, x, name, config.hidden, heads * config.head, scale)
    target = graph.constant(f"cut_{heads}", [0, 0, heads, config.head])
    cut = graph.op("Reshape", [flat, target], f"{name}.cut", ["batch", "sequence", heads, config.head], HALF)
    shape = ("batch", heads, "sequence", config.head)
    return graph.op("Transpose", [cut], f"{name}.heads", shape, HALF, perm=[0, 2, 1, 3])


def _rotated(graph: _Writer, x: str, tables: tuple[str, str], heads: int, config: Config) -> str:
    """x * cos + rotate_half(x) * sin"""
    whole = ("batch", heads, "sequence", config.head)
    half = ("batch", heads, "sequence", config.head // 2)
    start, middle = graph.constant("start_0", [0]), graph.constant("middle", [config.head // 2])
    last, end = graph.constant("axis_last", [-1]), graph.constant("to_the_end", [2**31])
    left = graph.op("Slice", [x, start, middle, last], f"{x}.left", half, HALF)
    right = graph.op("Slice", [x, middle, end, last], f"{x}.right", half, HALF)
    negative = graph.op("Neg", [right], f"{x}.negative", half, HALF)
    turned = graph.op("Concat", [negative, left], f"{x}.turned", whole, HALF, axis=-1)
    along = graph.op("Mul", [x, tables[0]], f"{x}.along", whole, HALF)
    aside = graph.op("Mul", [turned, tables[1]], f"{x}.aside", whole, HALF)
    return graph.op("Add", [along, aside], f"{x}.rotated", whole, HALF)


def _repeated(graph: _Writer, x: str, config: Config) -> str:
    """Each key or value head once for every query head of its group."""
    groups, times, head = config.kv_heads, config.heads // config.kv_heads, config.head
    single, many = (("batch", groups, n, "sequence", head) for n in (1, times))
    apart = graph.op("Unsqueeze", [x, graph.constant("axis_2", [2])], f"{x}.apart", single, HALF)
    copies = graph.constant("copies", [1, 1, times, 1, 1])
    copied = graph.op("Expand", [apart, copies], f"{x}.copied", many, HALF)
    target = graph.constant("repeated", [0, config.heads, -1, head])
    shape = ("batch", config.heads, "sequence", head)
    return graph.op("Reshape", [copied, target], f"{x}.repeated", shape, HALF)


def _mlp(graph: _Writer, x: str, layer: str, config: Config) -> str:
    name, shape = f"{layer}.mlp", ("batch", "sequence", config.mlp)
    gate = _linear(graph, x, f"{name}.gate_proj", config.hidden, config.mlp)
    up = _linear(graph, x, f"{name}.up_proj", config.hidden, config.mlp)
    sigmoid = graph.op("Sigmoid", [gate], f"{name}.sigmoid", shape, HALF)
    opened = graph.op("Mul", [gate, sigmoid], f"{name}.silu", shape, HALF)
    gated = graph.op("Mul", [opened, up], f"{name}.gated", shape, HALF)
    return _linear(graph, gated, f"{name}.down_proj", config.mlp, config.hidden)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how large the model is."""
    parser.add_argument("--gb", type=float, default=6.0, help="size of the data file in 10^9 bytes; sets the layers")
    parser.add_argument("--layers", type=int, help="number of layers, whatever size that makes")
    for name in ("hidden", "mlp", "heads", "kv_heads", "vocab"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Config, name))


def config_from(options: argparse.Namespace) -> Config:
    """The Config that the options ask for."""
    config = Config(0, options.hidden, options.mlp, options.heads, options.kv_heads, options.vocab)
    return replace(config, layers=options.layers) if options.layers else config_of_size(options.gb, config)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a Llama-style ONNX file with random float16 weights.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments(parser)
    options = parser.parse_args()
    config = config_from(options)
    make_large(options.path, config, options.seed)
    size = options.path.with_name(options.path.name + ".data").stat().st_size
    print(f"{options.path}: {config.layers} layers, {config.parameters / 1e6:,.1f} M parameters, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
