"""What proofs need of an ONNX model: a checker, a model with positions zeroed, and one nudged by a rounding error."""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.analysis import Analysis
from graphprune.dims import Chosen, Dim, atoms, ones, touched
from graphprune.errors import VerifyError
from graphprune.formats.onnx.bodies import force, places, scopes
from graphprune.formats.onnx.check import check_structure
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.runtime import first_line
from graphprune.formats.onnx.shapes import skeleton
from graphprune.graph import Array, Graph
from graphprune.rules.control import taken
from graphprune.rules.registry import Mask
from graphprune.values import Values

_ULP = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-23, "float64": 2**-52}
"""One unit in the last place, relative, of each floating-point type."""


def check(model: OnnxModel) -> None:
    """The onnx checker and strict shape inference; VerifyError with their words."""
    try:
        check_structure(model)
        onnx.shape_inference.infer_shapes(skeleton(model), strict_mode=True, data_prop=True)
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
    value = analysis.graph.values.get(mask.node.inputs[mask.input])
    return mask.dim.size is not None and value is not None and value.dtype in _ULP and value.shape is not None


def mask(model: OnnxModel, analysis: Analysis, chosen: Chosen) -> OnnxModel:
    """The model at full size, with zeros at the removed positions wherever an axis of theirs is summed over."""
    made = model.copy()
    proto = made.proto
    everywhere = places(proto, analysis.graph.weights)
    extra: dict[int, dict[int, list[onnx.NodeProto]]] = {}
    for number, wanted in enumerate(analysis.facts.masks):
        if not touched(wanted.dim, chosen) or not _puts_zeros(analysis, wanted):
            continue
        place = everywhere[wanted.node.index]
        node = place.node
        dtype = np.dtype(analysis.graph.values[wanted.node.inputs[wanted.input]].dtype)
        kept = ones(wanted.layout, wanted.axis, chosen).astype(dtype)
        name = f"graphprune/mask_{number}"
        tensor = onnx.numpy_helper.from_array(kept, name)
        helpers = [
            onnx.helper.make_node("Constant", [], [name], value=tensor),
            onnx.helper.make_node("Mul", [node.input[wanted.input], name], [f"{name}/masked"]),
        ]
        node.input[wanted.input] = f"{name}/masked"
        extra.setdefault(place.scope.number, {}).setdefault(place.at, []).extend(helpers)
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
