"""Shapes that are written in the file or follow by static inference, and the sizes to run a model at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.model import OnnxModel, copy_without_weights
from graphprune.graph import Shape

_SMALL = 4096
_SCALES = 16
UNKNOWN = "unk__"


def skeleton(model: OnnxModel) -> onnx.ModelProto:
    """The model without the bytes of its weights (small integer ones and scales, which shapes hang on, are kept)."""
    proto = copy_without_weights(model.proto)
    for tensor in model.proto.graph.initializer:
        small = int(np.prod(tensor.dims, dtype=np.int64)) <= (_SMALL if tensor.data_type in (6, 7) else _SCALES)
        proto.graph.initializer.append(model.tensor(tensor) if small else tensors.without_data(tensor))
    return proto


def static_shapes(proto: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes and dtype names by value, as far as inference finds them; unknown sizes are symbols of their own."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = proto
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    graph = inferred.graph
    for info in (*graph.value_info, *graph.output, *graph.input):
        read = declared_shape(info)
        if info.type.HasField("tensor_type"):
            dtypes[info.name] = tensors.dtype_name(info.type.tensor_type.elem_type)
        if read is not None:
            shapes[info.name] = read
    return shapes, dtypes


def declared_shape(info: onnx.ValueInfoProto) -> Shape | None:
    """The shape written in a value info; None where there is no tensor or no rank."""
    if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
        return None
    sizes: list[int | str] = []
    for i, dim in enumerate(info.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            sizes.append(dim.dim_value)
        else:
            sizes.append(str(dim.dim_param or f"{UNKNOWN}{info.name}_{i}"))  # bytes where it is no valid text
    return tuple(sizes)


def input_shapes(proto: onnx.ModelProto) -> dict[str, Shape]:
    """Declared shapes of the inputs that a user feeds (initialisers listed as inputs are not)."""
    weights = {t.name for t in proto.graph.initializer}
    found = {}
    for info in proto.graph.input:
        read = declared_shape(info)
        if info.name not in weights and read is not None:
            found[info.name] = read
    return found


def size_pairs(
    symbols: list[str], first_axes: set[str], first_unit: int = 32
) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Assignments to try: batch axes small, the others distinct multiples of a unit, then all others equal."""
    others = [s for s in symbols if s not in first_axes]
    for unit in dict.fromkeys((first_unit, 32, 8, 1, 7, 16, 64, 160, 224, 512)):
        for spread in (1, 0):
            for batch in ((1, 2), (2, 3)):
                runs = []
                for run in (0, 1):
                    sizes = dict.fromkeys(first_axes, batch[run])
                    sizes |= {s: unit * (2 + run + 2 * spread * i) for i, s in enumerate(others)}
                    runs.append(sizes)
                yield runs[0], runs[1]


def symbols_of(shapes: Mapping[str, Shape]) -> tuple[list[str], set[str]]:
    """All symbols of the inputs, and those that stand first (batch)."""
    symbols = list(dict.fromkeys(s for shape in shapes.values() for s in shape if isinstance(s, str)))
    first = {shape[0] for shape in shapes.values() if len(shape) > 1 and isinstance(shape[0], str)}
    return symbols, {str(s) for s in first}
