"""Shapes by execution: what static inference leaves open is read off runs at different sizes.

An axis of the same size in all runs is static; one that follows an input takes that input's symbol; any other gets a
symbol of its own. Every symbol of the inputs must vary between the runs: where the model runs at no two sizes tried,
unknown stays unknown. Out of a body the shapes come as further outputs of its node: from the branch of an If that is
taken, and from every iteration of a loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphprune.errors import VerifyError
from graphprune.formats.onnx import runtime
from graphprune.formats.onnx.bodies import Scope, force, scopes
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.shapes import UNKNOWN, Sizes, input_shapes, runs_to_try, symbols_of
from graphprune.graph import Array, Graph, Shape

_SUFFIX = "/graphprune_shape"
_MOST_FORCED = 8
"""Nodes whose branches are looked into one after the other."""


def probe(model: OnnxModel, graph: Graph, known: dict[str, Shape], dtypes: dict[str, str]) -> Sizes:
    """Fill the holes of ``known`` and ``dtypes``, and return an example size for every symbol.

    The examples are those of the inputs the user gave, else of the smaller of the two runs.
    """
    symbols, first = symbols_of(input_shapes(model.proto))
    names = _open_values(model, graph, known, set(symbols))
    fallback = model.given[0] if model.given else next(runs_to_try(symbols, first))[0]
    if not names or model.large:
        return fallback
    main = scopes(model.proto)[0]
    outside = [name for node in main.graph.node for name in node.output if name in set(names)]
    for asked in (names, outside):  # a body may hold shapes that cannot leave it
        try:
            example = _observe(model, graph, asked, known, dtypes, outside)
        except VerifyError:
            continue
        for at, branch, inside in _unseen(main, set(names) - set(outside), known, symbols):
            with suppress(VerifyError):
                example |= _observe(model, graph, inside, known, dtypes, [], (at, branch)) | example
        return example
    return fallback


def _unseen(
    main: Scope, names: set[str], known: dict[str, Shape], symbols: Mapping[str, int]
) -> Iterator[tuple[int, int, list[str]]]:
    """Branches of If that no run has taken: where the node stands, which branch it is, and its open values."""
    for at, inner in list(main.inner.items())[:_MOST_FORCED]:
        for branch, body in enumerate(inner if main.graph.node[at].op_type == "If" else ()):
            inside = [name for name in _within(body) if name in names]
            if inside and all(_is_open(known.get(name), set(symbols)) for name in inside):
                yield at, branch, inside


def _within(scope: Scope) -> Iterator[str]:
    """Every value of a body and of the bodies inside it."""
    yield from (scope.name(name) for node in scope.graph.node for name in node.output)
    for inner in scope.inner.values():
        for body in inner:
            yield from (body.name(info.name) for info in body.graph.input)
            yield from _within(body)


def _observe(
    model: OnnxModel,
    graph: Graph,
    names: list[str],
    known: dict[str, Shape],
    dtypes: dict[str, str],
    outside: list[str],
    forced: tuple[int, int] | None = None,
) -> Sizes:
    """As `probe`, for ``names``; VerifyError where the model does not run with their shapes among its outputs.

    ``outside`` are those of the main graph; ``forced`` is an If and the branch that it is made to take.
    """
    symbols, first = symbols_of(input_shapes(model.proto))
    fallback = model.given[0] if model.given else next(runs_to_try(symbols, first))[0]
    runner = runtime.run(_with_shape_outputs(model.copy(), set(names), outside, forced), optimise=False)
    dtypes |= runner.dtypes(outside)
    runner.names = [name + _SUFFIX for name in names if name + _SUFFIX in runner.names]
    trials, runs = zip(*runtime.find_trials(model, graph, runner), strict=True)
    names_of = {tuple(sizes[s] for sizes, _ in trials): s for s in reversed(symbols)}
    if any(len(set(sizes)) == 1 for sizes in names_of):
        return fallback
    shown = runner(model.given[1]) if model.given else runs[0]
    example = dict(model.given[0] if model.given else trials[0][0])
    for name in (name.removesuffix(_SUFFIX) for name in runner.names):
        sizes = [_sizes(run[name + _SUFFIX]) for run in (*runs, shown)]
        *seen, at = [found for found in sizes if found is not None] or [()]
        if None not in sizes and len(set(map(len, seen))) == 1:
            known[name] = merge(known.get(name), list(zip(*seen, strict=True)), names_of)
            for size, extent in zip(known[name], at, strict=True):
                if isinstance(size, str):
                    example.setdefault(size, abs(extent))
    return example


_NEVER = np.array([-1])
"""In the place of a shape, from a branch that is not taken."""


def _sizes(seen: Array) -> tuple[int, ...] | None:
    """One shape of all iterations that were seen, sizes that vary below zero; None where there were none."""
    rows = seen.reshape(math.prod(seen.shape[:-1]), seen.shape[-1])
    if not len(rows) or (rows == _NEVER[0]).any():
        return None
    return tuple(int(a if a == b else -b) for a, b in zip(rows.min(0), rows.max(0), strict=True))


def merge(known: Shape | None, seen: list[tuple[int, ...]], names: Mapping[tuple[int, ...], str]) -> Shape:
    """A shape from several observations; what inference knew stays, but for a rank that is not so."""
    merged: list[int | str] = []
    told = known if known is not None and len(known) == len(seen) else (UNKNOWN,) * len(seen)
    for before, sizes in zip(told, seen, strict=True):
        if isinstance(before, int) or not before.startswith(UNKNOWN):
            merged.append(before)
        else:
            static = len(set(sizes)) == 1 and sizes[0] >= 0
            merged.append(sizes[0] if static else names.get(sizes, f"({'|'.join(map(str, sizes))})"))
    return tuple(merged)


def _open_values(model: OnnxModel, graph: Graph, known: dict[str, Shape], symbols: set[str]) -> list[str]:
    """Tensors that somebody reads and whose shape has holes that the symbols of the inputs do not explain."""
    read = graph.read - _no_tensors(model.proto)
    made = (name for node in graph.nodes if node.kind != "Constant" for name in node.outputs)
    return [name for name in made if name in read and _is_open(known.get(name), symbols)]


def _is_open(shape: Shape | None, symbols: set[str]) -> bool:
    return shape is None or any(isinstance(size, str) and size not in symbols for size in shape)


def _no_tensors(proto: onnx.ModelProto) -> set[str]:
    """Sequences and optional values, of which there is no shape."""
    keep = {"SequenceAt", "SequenceLength", "ConcatFromSequence", "OptionalHasElement"}
    found = set()
    for scope in scopes(proto):
        infos = (*scope.graph.value_info, *(scope.graph.input if scope.number else ()))
        typed = {i.name for i in infos if i.type.WhichOneof("value") not in (None, "tensor_type")}
        lists = (n for n in scope.graph.node if "Sequence" in n.op_type or n.op_type == "Optional")
        typed |= {name for node in lists if node.op_type not in keep for name in node.output}
        found |= set(map(scope.name, typed))
    return found


def _with_shape_outputs(
    model: OnnxModel, names: set[str], outside: list[str], forced: tuple[int, int] | None
) -> OnnxModel:
    """The model, changed: the shapes of ``names``, and the values ``outside`` bodies themselves, are its only outputs.

    A shape has a mark for each body that its name is in, so that no name is there twice.
    """
    main = scopes(model.proto)[0]
    shown = _show(main, names, "")
    del main.graph.output[:]
    for name in outside:
        main.graph.output.add(name=name)
    for name in shown:
        main.graph.output.append(_integers(name))
    if forced is not None:
        force(model.proto, [main.graph.node[forced[0]]], forced[1])
    return model


def _show(scope: Scope, names: set[str], mark: str) -> list[str]:
    """Let ``scope`` compute the shapes of its values ``names``, and of those in its bodies; what they are called."""
    graph, shown = scope.graph, list[str]()
    own = [*(info.name for info in graph.input if mark), *(name for node in graph.node for name in node.output)]
    for at, inner in scope.inner.items():
        node, made = graph.node[at], [_show(body, names, f"{mark}/in") for body in inner]
        for number, (body, inside) in enumerate(zip(inner, made, strict=True)):
            wanted = [name for others in made for name in others] if node.op_type == "If" else inside
            absent = [name for name in wanted if name not in inside]
            body.graph.node.extend(
                helper.make_node("Constant", [], [f"{name}/{number}"], value=numpy_helper.from_array(_NEVER))
                for name in absent
            )
            body.graph.output.extend(_integers(name if name in inside else f"{name}/{number}") for name in wanted)
        _hand_out(node, inner, [name.removesuffix("/in") for inside in made for name in inside])
        shown += [name.removesuffix("/in") for inside in made for name in inside]
    for written in own:
        if scope.name(written) in names:
            shown.append(f"{scope.name(written)}{_SUFFIX}{mark}")
            graph.node.append(helper.make_node("Shape", [written], [shown[-1]]))
    return shown


def _hand_out(node: onnx.NodeProto, inner: tuple[Scope, ...], names: list[str]) -> None:
    """``names`` are further outputs of ``node``, along which those of a loop are stacked."""
    conditions = node.op_type == "Loop"
    while len(node.output) < len(inner[0].graph.output) - len(names) - conditions:
        node.output.append("")
    node.output.extend(names)
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.extend([0] * len(names))


def _integers(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
