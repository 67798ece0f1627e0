"""Files as ONNX Runtime quantises them: integers between QuantizeLinear and DequantizeLinear, in ops of their own, or
made as the model runs; and weights alone, in blocks of four or eight bits.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Feeds = Mapping[str, Any]
BLOCK = 32


def prepared(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The file as the quantiser wants it: optimised, batch norms folded, shapes inferred."""
    from onnxruntime.quantization.preprocess import quant_pre_process

    with _folder() as folder:
        quant_pre_process(_file(source, folder), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
        made = onnx.load(folder / "prepared.onnx")
        del made.graph.value_info[:]  # those of what was fused are stale
        return made


def static(
    prepared: onnx.ModelProto,
    batches: Sequence[Feeds],
    *,
    in_ops: bool = False,
    per_channel: bool = False,
    numbers: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Weights in int8, activations in uint8 with scales from ``batches``, or as ``numbers`` say by tensor.

    ``in_ops``: ops that compute with integers, in the place of pairs of QuantizeLinear and DequantizeLinear.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """What the quantiser takes its batches from."""

        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Any:
            """The next batch, or None."""
            return next(self.left, None)

    with _folder() as folder:
        quantize_static(
            _file(prepared, folder),
            str(folder / "quantised.onnx"),
            Reader(),
            quant_format=QuantFormat.QOperator if in_ops else QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"TensorQuantOverrides": dict(numbers)} if numbers else {},
        )
        return onnx.load(folder / "quantised.onnx")


def dynamic(prepared: onnx.ModelProto, *, per_channel: bool = False) -> onnx.ModelProto:
    """Weights in integers, activations as the model runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _folder() as folder:
        kind = QuantType.QInt8 if per_channel else QuantType.QUInt8
        quantize_dynamic(
            _file(prepared, folder), str(folder / "quantised.onnx"), per_channel=per_channel, weight_type=kind
        )
        return onnx.load(folder / "quantised.onnx")


def in_blocks(
    prepared: onnx.ModelProto, bits: int = 4, *, symmetric: bool = True, block: int = BLOCK
) -> onnx.ModelProto:
    """The weights of matrix products alone, in blocks of ``block``."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    copy = onnx.ModelProto.FromString(prepared.SerializeToString())
    with _quiet():
        quantiser = MatMulNBitsQuantizer(copy, bits=bits, block_size=block, is_symmetric=symmetric)
        quantiser.process()
    made: onnx.ModelProto = quantiser.model.model
    return made


def numbers(quantised: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """Scale and zero point of each tensor of a file with pairs, as `static` takes them."""
    from onnxruntime.quantization import QuantType

    kinds = {np.dtype(np.int8): QuantType.QInt8, np.dtype(np.uint8): QuantType.QUInt8}
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    found: dict[str, list[dict[str, Any]]] = {}
    for node in (n for n in quantised.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")):
        name = node.input[0].removesuffix("_quantized").removesuffix("_QuantizeLinear_Input")
        if held[node.input[2]].dtype in kinds:
            if node.op_type == "DequantizeLinear" and node.input[0] not in held:
                continue
            scale, zero = (held[end] for end in node.input[1:3])
            given = {a.name: a.i for a in node.attribute if scale.ndim}
            found[name] = [
                {"scale": np.array(s), "zero_point": np.array(z), "quant_type": kinds[zero.dtype], **given}
                for s, z in zip(scale.reshape(-1), zero.reshape(-1), strict=True)
            ]
    return found


def kernels(model: onnx.ModelProto) -> dict[str, int]:
    """The kernels that compute with integers, by name and number, in the graph that ONNX Runtime makes of a file."""
    import onnxruntime

    with _folder() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]
    integer = [kind for kind in found if kind.startswith(("Q", "DynamicQ", "MatMulN")) or "Integer" in kind]
    return {kind: integer.count(kind) for kind in sorted(set(integer) - {"QuantizeLinear"})}


def resnet50(size: int = 64) -> onnx.ModelProto:
    """ResNet-50 as transformers has it, with random weights that keep activations alive, on images of ``size``."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    from models.export import export
    from models.transformers_zoo import generic

    class Logits(torch.nn.Module):
        """The class scores alone."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = generic(ResNetForImageClassification(ResNetConfig())).float().train(False)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            """Images to logits."""
            return torch.as_tensor(self.network(image).logits)

    with _folder() as folder:
        export(Logits(), {"image": (torch.randn(1, 3, size, size), {})}, "logits", folder / "resnet50.onnx")
        return onnx.load(folder / "resnet50.onnx")


def _file(source: str | Path | onnx.ModelProto, folder: Path) -> str:
    """A path: the quantiser moves the weights of a model that it is given out of it."""
    if isinstance(source, onnx.ModelProto):
        onnx.save(source, folder / "given.onnx")
        return str(folder / "given.onnx")
    return str(source)


@contextmanager
def _folder() -> Iterator[Path]:
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser says much on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
