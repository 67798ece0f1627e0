"""Shapes by execution: what static inference leaves open is read off runs at different sizes.

An axis of the same size in all runs is static; one that follows an input takes that input's symbol; any other gets a
symbol of its own. Every symbol of the inputs must vary between the runs: where the model runs at no two sizes tried,
unknown stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from graphprune.errors import VerifyError
from graphprune.formats.onnx import runtime
from graphprune.formats.onnx.model import OnnxModel, constant_tensor
from graphprune.formats.onnx.shapes import UNKNOWN, Sizes, input_shapes, runs_to_try, symbols_of
from graphprune.graph import Graph, Shape

_SUFFIX = "/graphprune_shape"


def probe(model: OnnxModel, graph: Graph, known: dict[str, Shape], dtypes: dict[str, str]) -> Sizes:
    """Fill the holes of ``known`` and ``dtypes``, and return an example size for every symbol.

    The examples are those of the inputs the user gave, else of the smaller of the two runs.
    """
    symbols, first = symbols_of(input_shapes(model.proto))
    names = _open_values(model, graph, known, set(symbols))
    fallback = model.given[0] if model.given else next(runs_to_try(symbols, first))[0]
    if not names or model.large:
        return fallback
    try:
        runner = runtime.run(_with_shape_outputs(model.copy(), names), optimise=False)
        dtypes |= runner.dtypes(names)
        runner.names = [name + _SUFFIX for name in names]
        trials = runtime.find_trials(model, graph, runner)
    except VerifyError:
        return fallback
    names_of = {tuple(sizes[s] for sizes, _ in trials): s for s in reversed(symbols)}
    if any(len(set(sizes)) == 1 for sizes in names_of):
        return fallback
    runs = [runner(feeds) for _, feeds in trials]
    shown = runner(model.given[1]) if model.given else runs[0]
    example = dict(model.given[0] if model.given else trials[0][0])
    for name in names:
        *seen, at = ([int(v) for v in run[name + _SUFFIX]] for run in (*runs, shown))
        if len(set(map(len, seen))) == 1:
            known[name] = merge(known.get(name), list(zip(*seen, strict=True)), names_of)
            for size, extent in zip(known[name], at, strict=True):
                if isinstance(size, str):
                    example.setdefault(size, extent)
    return example


def merge(known: Shape | None, seen: list[tuple[int, ...]], names: Mapping[tuple[int, ...], str]) -> Shape:
    """A shape from several observations; what inference knew stays."""
    merged: list[int | str] = []
    for i, sizes in enumerate(seen):
        before = known[i] if known is not None else UNKNOWN
        if isinstance(before, int) or not before.startswith(UNKNOWN):
            merged.append(before)
        else:
            merged.append(sizes[0] if len(set(sizes)) == 1 else names.get(sizes, f"({'|'.join(map(str, sizes))})"))
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
    """The model, changed: the shapes of ``names``, and the values themselves, are its only outputs."""
    proto = model.proto
    del proto.graph.output[:]
    for name in names:
        proto.graph.output.add(name=name)
        proto.graph.node.append(onnx.helper.make_node("Shape", [name], [name + _SUFFIX]))
        output = onnx.helper.make_tensor_value_info(name + _SUFFIX, onnx.TensorProto.INT64, None)
        proto.graph.output.append(output)
    return model
