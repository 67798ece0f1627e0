"""ONNX graphs as exporters, optimisers and quantisers write them: some 240 files, made from packages.

`ZOO` has a function for each name that writes the file; `graph(name)` is the file, in the cache. Names say how a file
came about: `bert/legacy-17-dynamic` is the BERT of models/transformers_zoo.py through torch's older exporter at opset
17 with dynamic axes, `bert/legacy-17-dynamic/qdq` the same quantised.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import onnx

from models import digits, fashion, fused, light, real
from models.export import quiet, save
from models.packages import make
from models.transformers_zoo import ZOO as ARCHITECTURES
from models.transformers_zoo import build

Write = Callable[[Path], None]
VERSION = 1  # part of the cached files' names: raise it when they change

HEADS, WIDTH = 4, 64
NEWER, OLDER = (18, 21, 22, 23, 24, 25), (13, 14, 15, 16, 17, 18, 19, 20)
"""Opsets of the two exporters: each is that of some architectures."""

UNROLLED = "mamba"
"""What exporters write for the length of their example only."""

HALVES = "bert gpt2 llama qwen3 t5 vit convnext resnet".split()
TYPES = {
    **dict.fromkeys("bert roberta distilbert albert electra deberta".split(), "bert"),
    **dict.fromkeys("vit deit beit".split(), "vit"),
    **dict.fromkeys("gpt2 llama".split(), "gpt2"),
    **{name: name for name in "bart t5 clip swin gpt_neox qwen3".split()},
}
"""What ONNX Runtime's optimiser for transformers is told that a model is."""

EXTENDED = "bert gpt2 llama qwen2 t5 vit swin convnext resnet mobilenet_v2 mamba mixtral".split()
QUANTISED = {
    **dict.fromkeys("resnet mobilenet_v2 convnext efficientnet".split(), ("qdq", "qdq-channel", "qoperator")),
    **dict.fromkeys("bert vit".split(), ("qdq-channel", "qoperator", "dynamic-int8", "float16")),
    **dict.fromkeys("gpt2 llama".split(), ("dynamic-int8", "int4", "int4-qdq", "float16")),
    **dict.fromkeys("mixtral t5".split(), ("dynamic-int8",)),
}


@dataclass(frozen=True)
class Export:
    """How torch's exporter is called."""

    dynamo: bool
    opset: int
    dynamic: bool = False
    half: bool = False

    def __str__(self) -> str:
        words = "dynamo" if self.dynamo else "legacy", str(self.opset), "dynamic" * self.dynamic, "float16" * self.half
        return "-".join(filter(None, words))


def graph(name: str) -> Path:
    """The file ``name`` of the zoo, made on first use."""
    return SHIPPED[name]() if name in SHIPPED else make(f"zoo-{VERSION}/{name}.onnx", MADE[name])


def export(name: str, how: Export, path: Path) -> None:
    """Write an architecture of models/transformers_zoo.py; with attention and experts written out if it must be."""
    import torch

    module, inputs = build(name)
    dtype = torch.float16 if how.half else torch.float32
    module = module.to(dtype).eval()
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    write = _dynamo if how.dynamo else _legacy
    try:
        made = write(module, inputs, how)
    except Exception:  # the exporters raise classes of their own, most of them private
        spell_out(module)
        made = write(module, inputs, how)
    save(made, path)


def spell_out(module: Any) -> None:
    """Attention and experts as plain products, not as the fused calls that an exporter may not know."""
    from transformers import PreTrainedModel

    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
            if part._can_set_experts_implementation():
                part.set_experts_implementation("batched_mm")


def _axes(inputs: Mapping[str, Any], size: Callable[[str, str], Any]) -> dict[str, dict[int, Any]]:
    """The axes that may change: batches, and the length of text."""
    return {
        name: {axis: size(name, what) for axis, what in enumerate(("batch", "length")[: 1 + (value.dim() == 2)])}
        for name, value in inputs.items()
    }


def _dynamo(module: Any, inputs: dict[str, Any], how: Export) -> onnx.ModelProto:
    import torch

    axes = _axes(inputs, lambda name, what: torch.export.Dim.AUTO) if how.dynamic else None
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module, kwargs=inputs, dynamic_shapes=axes, opset_version=how.opset, dynamo=True, verbose=False
        )
    assert program is not None
    return program.model_proto


def _legacy(module: Any, inputs: dict[str, Any], how: Export) -> onnx.ModelProto:
    import torch

    class Positional(torch.nn.Module):
        """Takes tensors, and gives the first of its outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *given: Any) -> Any:
            found = self.model(**dict(zip(inputs, given, strict=True)))
            return found if isinstance(found, torch.Tensor) else found[0]

    own = {"decoder_input_ids": "decoded"}
    axes = _axes(inputs, lambda name, what: own.get(name, what) if what == "length" else what) if how.dynamic else None
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(
            Positional().eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=how.opset,
            dynamo=False,
        )
        return onnx.load(path)


def fuse(source: str, kind: str, path: Path) -> None:
    """What ONNX Runtime's optimiser for transformers makes of a file."""
    from onnxruntime.transformers import optimizer

    made = optimizer.optimize_model(str(graph(source)), kind, num_heads=HEADS, hidden_size=WIDTH, opt_level=0)
    made.save_model_to_file(str(path))


def optimise(source: str, level: str, path: Path) -> None:
    """What ONNX Runtime makes of a file before it runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(graph(source)), options, providers=["CPUExecutionProvider"])


def quantise(source: str, how: str, path: Path) -> None:
    """A file quantised by onnxruntime.quantization, or halved by its converter to float16."""
    from onnxruntime import quantization
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.transformers.onnx_model import OnnxModel

    given = graph(source)
    if how == "dynamic-int8":
        quantization.quantize_dynamic(str(given), str(path), weight_type=quantization.QuantType.QInt8)
    elif how == "float16":
        halved = OnnxModel(onnx.load(given))
        halved.convert_float_to_float16(keep_io_types=True)
        halved.save_model_to_file(str(path))
    elif how.startswith("int4"):
        form = quantization.QuantFormat.QDQ if how == "int4-qdq" else quantization.QuantFormat.QOperator
        made = MatMulNBitsQuantizer(onnx.load(given), block_size=16, is_symmetric=True, quant_format=form)
        made.process()
        made.model.save_model_to_file(str(path))
    else:
        form = quantization.QuantFormat.QOperator if how == "qoperator" else quantization.QuantFormat.QDQ
        signed = quantization.QuantType.QInt8
        quantization.quantize_static(
            str(given),
            str(path),
            _reader(given),
            quant_format=form,
            per_channel=how == "qdq-channel",
            weight_type=signed,
        )


def _reader(path: Path) -> Any:
    """Random inputs that a file runs on, as the quantiser reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    from graphprune.formats import onnx as format

    model = format.read(path)
    batches = iter([feeds for _, feeds in format.trials(model, format.run(model))])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(batches, None)

    return Reader()


def _saved(make_it: Callable[[], onnx.ModelProto], path: Path) -> None:
    onnx.save(make_it(), path)


def _exports() -> dict[str, Write]:
    """Every architecture through both exporters; the opset, and what is dynamic, go round."""
    hows: dict[str, list[Export]] = {}
    for i, (name, newer, older) in enumerate(zip(ARCHITECTURES, cycle(NEWER), cycle(OLDER), strict=False)):
        hows[name] = [Export(True, 20), Export(False, older, dynamic=i % 4 > 0 and name != UNROLLED)]
        hows[name] += [Export(True, newer, dynamic=True)] if i % 2 and name != UNROLLED else []
        hows[name] += [Export(True, 20, half=True)] if name in HALVES else []
    return {f"{name}/{how}": partial(export, name, how) for name, many in hows.items() for how in many}


def _derived(exports: Mapping[str, Write]) -> dict[str, Write]:
    """What becomes of exports in the tools of ONNX Runtime."""
    made: dict[str, Write] = {}
    for name, kind in TYPES.items():
        made[f"{name}/fused"] = partial(fuse, _older(exports, name), kind)
    for name in EXTENDED:
        for source in (_older(exports, name), f"{name}/dynamo-20"):
            made[f"{source}/extended"] = partial(optimise, source, "extended")
    for name, ways in QUANTISED.items():
        for way in ways:
            source = f"{name}/dynamo-20" if way.startswith(("q", "int4")) else _older(exports, name)
            made[f"{source}/{way}"] = partial(quantise, source, way)
    for name, way in (("light/squeezenet", "qdq"), ("light/shufflenet", "qdq"), ("real/minilm", "dynamic-int8")):
        made[f"{name}/{way}"] = partial(quantise, name, way)
    for name in "light/resnet50 light/densenet121 light/inception_v2 real/ocr_rec real/minilm".split():
        made[f"{name}/extended"] = partial(optimise, name, "extended")
    return made | {"resnet/dynamo-20/all": partial(optimise, "resnet/dynamo-20", "all")}


def _older(exports: Mapping[str, Write], name: str) -> str:
    return next(other for other in exports if other.startswith(f"{name}/legacy"))


SHIPPED: dict[str, Callable[[], Path]] = {
    **{f"light/{name}": partial(light.light, name) for name in light.LIGHT},
    "light/squeezenet-listed": partial(light.light, "squeezenet", weights_as_inputs=True),
    **{
        f"real/{load.__name__}": load
        for load in (
            *(real.ocr_rec, real.ocr_det, real.ocr_cls, real.silero_vad, real.minilm, real.minilm_int8),
            *(real.mobilenet_v2, real.mobilenet_v2_as_is, real.llama_tiny, real.smollm2),
        )
    },
    "real/digits": lambda: digits.PATH,
    "real/fashion_resnet20": fashion.resnet20,
    "real/fashion_mobilenet": fashion.mobilenet,
}
"""Files that other modules of this folder make or fetch."""

FUSED: dict[str, Write] = {
    "fused/bert": partial(_saved, fused.bert),
    **{
        f"fused/{name}{'-cache' * cache}": partial(_saved, partial(build, cache=cache))
        for name, build in fused.DECODERS.items()
        for cache in (False, True)
    },
    **{f"cache/{name}": partial(_saved, partial(fused.exported, name)) for name in ("gpt2", "llama")},
}

MADE: dict[str, Write] = {**(_EXPORTS := _exports()), **_derived(_EXPORTS), **FUSED}
ZOO = (*SHIPPED, *MADE)
"""All names."""
