"""What proofs need of an ONNX model: a checker, a model with positions zeroed, and one nudged by a rounding error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx

from graphprune.analysis import Analysis
from graphprune.dims import Chosen, Dim, atoms, ones, touched
from graphprune.errors import VerifyError
from graphprune.formats.onnx.bodies import force, places, scopes
from graphprune.formats.onnx.check import check_structure
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.runtime import Feeds, first_line, run
from graphprune.formats.onnx.shapes import infer, skeleton
from graphprune.graph import Array, Graph
from graphprune.rules.control import taken
from graphprune.rules.registry import Mask
from graphprune.values import Values

_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")
_ULP = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-23, "float64": 2**-52}
"""One unit in the last place, relative, of each floating-point type."""
Runner = Callable[[Feeds], dict[str, Array]]


def check(model: OnnxModel) -> None:
    """The onnx checker and strict shape inference; VerifyError with their words."""
    try:
        check_structure(model)
        infer(skeleton(model), strict=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise VerifyError(f"the pruned model is not valid ONNX: {first_line(error)}") from error


def maskable(analysis: Analysis) -> set[Dim]:
    """Atoms for which zeroing can be shown to equal removing: exact, and summed over only where zeros can be put."""
    able = {atom.dim for atom in analysis.prunable if not atom.inexact}
    for dim, _ in analysis.facts.inexact:
        able -= set(atoms(dim))
    for mask in analysis.facts.masks:
        if not _puts_zeros(analysis, mask):
            able -= set(atoms(mask.dim))
    return able & {atom for mask in analysis.facts.masks for atom in atoms(mask.dim)}


def _puts_zeros(analysis: Analysis, mask: Mask) -> bool:
    """Whether zeros can be put there: on floats, or on integers with one zero point for all."""
    graph, name = analysis.graph, mask.node.inputs[mask.input]
    value = graph.values.get(name)
    if not mask.placed or value is None or value.shape is None:
        return False
    zero = graph.shape(mask.node.inputs[mask.zero]) if mask.zero is not None else ()
    return value.dtype in _ULP or (value.dtype in _INTEGERS and zero is not None and set(zero) <= {1})


def mask(model: OnnxModel, analysis: Analysis, chosen: Chosen) -> OnnxModel:
    """The model at full size, with zeros at the removed positions wherever an axis of theirs is summed over."""
    return _multiplied(model, analysis, chosen, chosen)


def masked(model: OnnxModel, analysis: Analysis, dims: Iterable[Dim]) -> Callable[[Chosen], Runner]:
    """For positions of ``dims`` to keep, a function that runs the model as `mask` makes it: one session for all."""
    free = dict.fromkeys(dims, np.zeros(0, np.int64))
    made = _multiplied(model, analysis, free, None)
    where = list(_masks(analysis, free))
    for name, wanted in where:
        kind = onnx.helper.np_dtype_to_tensor_dtype(_kept(analysis, wanted, {}).dtype)
        made.proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * len(wanted.layout)))
    runner = run(made)

    def at(chosen: Chosen) -> Runner:
        kept = {name: _kept(analysis, wanted, chosen) for name, wanted in where}
        return lambda feeds: runner({**feeds, **kept})

    return at


def _masks(analysis: Analysis, dims: Iterable[Dim]) -> Iterator[tuple[str, Mask]]:
    """Where zeros can be put in place of positions of ``dims``, each under a name."""
    free = dict.fromkeys(dims)
    for number, wanted in enumerate(analysis.facts.masks):
        if touched(wanted.dim, free) and _puts_zeros(analysis, wanted):
            yield f"graphprune/mask_{number}", wanted


def _kept(analysis: Analysis, wanted: Mask, chosen: Chosen) -> Array:
    """One where positions stay: a factor of floats, of integers a condition."""
    dtype = analysis.graph.values[wanted.node.inputs[wanted.input]].dtype
    whole = np.ones([1] * len(wanted.layout))
    kept = ones(wanted.layout, wanted.axis, chosen) if touched(wanted.dim, chosen) else whole
    return kept.astype(np.dtype(dtype)) if dtype in _ULP else kept != 0


def _multiplied(model: OnnxModel, analysis: Analysis, dims: Iterable[Dim], chosen: Chosen | None) -> OnnxModel:
    """The model with nodes that take the masks of ``dims``: those of ``chosen`` as constants, else from outside."""
    made = model.copy()
    proto = made.proto
    everywhere = places(proto, analysis.graph.weights)
    extra: dict[int, dict[int, list[onnx.NodeProto]]] = {}
    for name, wanted in _masks(analysis, dims):
        place = everywhere[wanted.node.index]
        node = place.node
        dtype = str(np.dtype(analysis.graph.values[wanted.node.inputs[wanted.input]].dtype))
        point = node.input[wanted.zero] if wanted.zero is not None else ""
        helpers = _helpers(name, node.input[wanted.input], dtype, point)
        if chosen is not None:
            kept = onnx.numpy_helper.from_array(_kept(analysis, wanted, chosen), name)
            helpers.insert(0, onnx.helper.make_node("Constant", [], [name], value=kept))
        extra.setdefault(place.scope.number, {}).setdefault(place.at, []).extend(helpers)
        node.input[wanted.input] = f"{name}/masked"
    for scope in reversed(scopes(proto)):  # bodies before the nodes that they are in
        if scope.number in extra:
            ahead = extra[scope.number]
            nodes = [one for at, node in enumerate(scope.graph.node) for one in (*ahead.get(at, ()), node)]
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del scope.graph.node[:]
            scope.graph.node.extend(copies)
    return made


def forced(model: OnnxModel, graph: Graph) -> dict[str, OnnxModel]:
    """The model with every If whose condition hangs on data made to take its first branch, and its second.

    ``graph`` is the view of the model that this one was made of.
    """
    known = Values(graph)
    open_ = {node.outputs[0] for node in graph.nodes if node.op == "if" and taken(known(node.inputs[0])) is None}
    found = {}
    for branch, words in enumerate(("first", "second") if open_ else ()):
        made = model.copy()
        inside = [(scope, scope.graph.node[at]) for scope in scopes(made.proto) for at in scope.inner]
        force(made.proto, [node for scope, node in inside if scope.name(node.output[0]) in open_], branch)
        found[f"{words} branch of every If"] = made
    return found


def _helpers(name: str, value: str, dtype: str, point: str) -> list[onnx.NodeProto]:
    """Nodes that put zeros (the integer ``point``, if there is one) where the mask ``name`` is 0 into ``value``."""
    if dtype in _ULP:
        return [onnx.helper.make_node("Mul", [value, name], [f"{name}/masked"])]
    made = []
    for part, source in (("value", value), ("zero", point)):
        if source:
            made.append(onnx.helper.make_node("Cast", [source], [f"{name}/{part}"], to=onnx.TensorProto.INT32))
    if not point:
        zero = onnx.numpy_helper.from_array(np.zeros((), np.int32), f"{name}/zero")
        made.append(onnx.helper.make_node("Constant", [], [f"{name}/zero"], value=zero))
    made.append(onnx.helper.make_node("Where", [name, f"{name}/value", f"{name}/zero"], [f"{name}/where"]))
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return [*made, onnx.helper.make_node("Cast", [f"{name}/where"], [f"{name}/masked"], to=to)]


def nudge(model: OnnxModel, analysis: Analysis, seed: int) -> OnnxModel:
    """Every floating-point weight that carries a prunable atom, moved by one unit in the last place, up or down."""
    random = np.random.default_rng(seed)
    names = {name for atom in analysis.prunable for name in atom.weights}
    weights = {name: weight for name, weight in model.graph.weights.items() if name in names and weight.dtype in _ULP}
    made = model.copy()
    made.put({name: _nudged(weight.load(), random) for name, weight in weights.items()})
    return made


def _nudged(data: Array, random: np.random.Generator) -> Array:
    signs = random.integers(0, 2, data.shape, dtype=np.int8) * 2.0 - 1
    moved = data.astype(np.float64) * (1 + signs * _ULP[str(data.dtype)])
    return moved.astype(data.dtype)
