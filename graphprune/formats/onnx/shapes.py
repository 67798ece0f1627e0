"""Shapes that are written in the file or follow by static inference, and the sizes to run a model at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import permutations

import numpy as np
import onnx

from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.bodies import scopes
from graphprune.formats.onnx.model import OnnxModel, copy_without_weights
from graphprune.formats.onnx.names import as_onnx
from graphprune.graph import Shape

_SMALL = 4096
_SCALES = 16
_LONGEST = 1 << 20
_BATCHES = ((1, 2), (2, 3))
_MOST = 4
"""Symbols up to which one is looked for that is the sum of two others."""
UNKNOWN = "unk__"


def skeleton(model: OnnxModel) -> onnx.ModelProto:
    """The model without the bytes of its weights (small integer ones and scales, which shapes hang on, are kept)."""
    proto = as_onnx(copy_without_weights(model.proto))
    for tensor in model.proto.graph.initializer:
        small = int(np.prod(tensor.dims, dtype=np.int64)) <= (_SMALL if tensor.data_type in (6, 7) else _SCALES)
        proto.graph.initializer.append(model.tensor(tensor) if small else tensors.without_data(tensor))
    return proto


def static_shapes(proto: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes and dtype names by value, as far as inference finds them; unknown sizes are symbols of their own."""
    try:
        inferred = infer(proto)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = proto
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    for scope in scopes(inferred):
        graph = scope.graph
        for info in (*graph.value_info, *graph.output, *graph.input):
            name = scope.name(info.name)
            read = declared_shape(info, name)
            if info.type.HasField("tensor_type"):
                dtypes[name] = tensors.dtype_name(info.type.tensor_type.elem_type)
            if read is not None:
                shapes[name] = read
    return shapes, dtypes


def infer(proto: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """``proto`` with the shapes that onnx infers, by the values of integers where these are few.

    onnx makes an object of each entry of a vector that is added to another, which may be declared to have 2^40 of them.
    """
    plain = onnx.shape_inference.infer_shapes(proto)
    infos = (
        info for scope in scopes(plain) for info in (*scope.graph.input, *scope.graph.value_info, *scope.graph.output)
    )
    vectors = [shape[0] for shape in map(declared_shape, infos) if shape and len(shape) == 1]
    few = all(isinstance(size, str) or size <= _LONGEST for size in vectors)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=few)


def declared_shape(info: onnx.ValueInfoProto, name: str = "") -> Shape | None:
    """The shape written in a value info, for the value ``name``; None where there is no tensor or no rank."""
    if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
        return None
    sizes: list[int | str] = []
    for i, dim in enumerate(info.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            sizes.append(dim.dim_value)
        else:
            sizes.append(str(dim.dim_param or f"{UNKNOWN}{name or info.name}_{i}"))  # bytes where it is no valid text
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


Sizes = dict[str, int]


def runs_to_try(symbols: Mapping[str, int], first_axes: set[str], first_unit: int = 32) -> Iterator[tuple[Sizes, ...]]:
    """Assignments to try, each for two runs or three between which every symbol varies.

    Batch axes are small, the others distinct multiples of a unit; or one is the sum of two others (past, new and all
    positions), also with a batch only where there is one new position, as caches ask for; or all others are equal; or
    one that has no name in the file is the batch again.
    """
    others = [s for s in symbols if s not in first_axes]
    units = dict.fromkeys((first_unit, 32, 8, 1, 7, 16, 64, 160, 224, 512))

    def made(unit: int, batches: tuple[int, ...], spread: int = 2) -> tuple[Sizes, ...]:
        runs = [{s: unit * (2 + run + spread * i) for i, s in enumerate(others)} for run in range(len(batches))]
        return tuple(dict.fromkeys(first_axes, batch) | sizes for batch, sizes in zip(batches, runs, strict=True))

    if not 3 <= len(others) <= _MOST:
        yield from (made(unit, batches, spread) for unit in units for spread in (2, 0) for batches in _BATCHES)
        for again in (symbol for symbol in others if first_axes and symbol.startswith(UNKNOWN)):
            batch = min(first_axes)
            yield from (tuple({**s, again: s[batch]} for s in made(unit, _BATCHES[0])) for unit in units)
        return
    for unit in units:
        yield from (made(unit, batches) for batches in _BATCHES)
        for new, past, total in sorted(permutations(others, 3), key=lambda three: symbols[three[2]]):
            for batches in _BATCHES:
                yield tuple({**s, total: s[new] + s[past]} for s in made(unit, batches))
            *one, several = made(unit, (1, 1, 2))
            yield tuple({**s, total: s[new] + s[past]} for s in (*one, {**several, new: 1}))
    yield from (made(unit, batches, 0) for unit in units for batches in _BATCHES)


def symbols_of(shapes: Mapping[str, Shape]) -> tuple[dict[str, int], set[str]]:
    """All symbols of the inputs, with how often they occur, and those that stand first (batch)."""
    symbols = Counter(s for shape in shapes.values() for s in shape if isinstance(s, str))
    first = {shape[0] for shape in shapes.values() if len(shape) > 1 and isinstance(shape[0], str)}
    return symbols, {str(s) for s in first}
