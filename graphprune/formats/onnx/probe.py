"""Shapes by execution: what static inference leaves open is read off two runs at different sizes.

An axis of the same size in both runs is static; one that follows an input takes that input's symbol; any other gets a
symbol of its own. Every symbol of the inputs must vary between the runs: where the model runs at no two sizes tried,
unknown stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from graphprune.errors import VerifyError
from graphprune.formats.onnx import runtime
from graphprune.formats.onnx.model import OnnxModel, constant_tensor
from graphprune.formats.onnx.shapes import UNKNOWN, input_shapes, size_pairs, symbols_of
from graphprune.graph import Graph, Shape

Sizes = dict[str, int]
_SUFFIX = "/graphprune_shape"


def probe(model: OnnxModel, graph: Graph, known: dict[str, Shape]) -> Sizes:
    """Fill the holes of ``known`` and return an example size for every symbol.

    The examples are those of the inputs the user gave, else of the smaller of the two runs.
    """
    symbols, first = symbols_of(input_shapes(model.proto))
    names = _open_values(model, graph, known, set(symbols))
    fallback = model.given[0] if model.given else next(size_pairs(symbols, first))[0]
    if not names or model.large:
        return fallback
    try:
        runner = runtime.run(_with_shape_outputs(model.copy(), names), optimise=False)
        trials = runtime.find_trials(model, graph, runner)
    except VerifyError:
        return fallback
    if symbols and len(trials) < 2:
        return fallback
    runs = [runner(feeds) for _, feeds in trials]
    pairs = {(trials[0][0][s], trials[-1][0][s]): s for s in reversed(symbols)}
    shown = runner(model.given[1]) if model.given else runs[0]
    example = dict(model.given[0] if model.given else trials[0][0])
    for name in names:
        seen, last, at = ([int(v) for v in run[name + _SUFFIX]] for run in (runs[0], runs[-1], shown))
        if len(seen) == len(last):
            known[name] = merge(known.get(name), list(zip(seen, last, strict=True)), pairs)
            for size, extent in zip(known[name], at, strict=True):
                if isinstance(size, str):
                    example.setdefault(size, extent)
    return example


def merge(known: Shape | None, seen: list[tuple[int, int]], names: Mapping[tuple[int, int], str]) -> Shape:
    """A shape from two observations; what inference knew stays."""
    merged: list[int | str] = []
    for i, pair in enumerate(seen):
        before = known[i] if known is not None else UNKNOWN
        if isinstance(before, int) or not before.startswith(UNKNOWN):
            merged.append(before)
        else:
            merged.append(pair[0] if pair[0] == pair[1] else names.get(pair, f"({pair[0]}|{pair[1]})"))
    return tuple(merged)


def _open_values(model: OnnxModel, graph: Graph, known: dict[str, Shape], symbols: set[str]) -> list[str]:
    """Tensors that somebody reads and whose shape has holes that the symbols of the inputs do not explain."""
    proto = model.proto
    read = graph.read - _no_tensors(proto)
    made = (name for node in proto.graph.node if constant_tensor(node) is None for name in node.output)
    return [name for name in made if name in read and _is_open(known.get(name), symbols)]


def _is_open(shape: Shape | None, symbols: set[str]) -> bool:
    return shape is None or any(isinstance(size, str) and size not in symbols for size in shape)


def _no_tensors(proto: onnx.ModelProto) -> set[str]:
    """Sequences and optional values, of which there is no shape."""
    typed = {i.name for i in proto.graph.value_info if i.type.WhichOneof("value") not in (None, "tensor_type")}
    keep = {"SequenceAt", "SequenceLength", "ConcatFromSequence", "OptionalHasElement"}
    nodes = [
        n for n in proto.graph.node if ("Sequence" in n.op_type or n.op_type == "Optional") and n.op_type not in keep
    ]
    return typed | {name for node in nodes for name in node.output}


def _with_shape_outputs(model: OnnxModel, names: list[str]) -> OnnxModel:
    """The model, changed: the shapes of ``names`` are its only outputs."""
    proto = model.proto
    del proto.graph.output[:]
    for name in names:
        proto.graph.node.append(onnx.helper.make_node("Shape", [name], [name + _SUFFIX]))
        output = onnx.helper.make_tensor_value_info(name + _SUFFIX, onnx.TensorProto.INT64, None)
        proto.graph.output.append(output)
    return model
