"""Applying a choice of positions to an ONNX model: the one place that writes.

`take` gives the positions of every axis; slots give the numbers that are sizes. Nodes that must change go through
onnx-graphsurgeon, only those: a full round trip through it loses metadata, doc strings and value infos, and what is
never touched cannot be lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from graphprune.analysis import Analysis
from graphprune.dims import Chosen, Dim, counts, picks, size_after, take, touched
from graphprune.formats.onnx import tensors
from graphprune.formats.onnx.bodies import Place, Scope, places, scopes
from graphprune.formats.onnx.model import Edit, OnnxModel, constant_tensor, copy_without_weights, held_tensors
from graphprune.graph import Array, Node, Picks, pick
from graphprune.rules.registry import Index, Slot

G_LOGGER.severity = G_LOGGER.ERROR


def apply(model: OnnxModel, analysis: Analysis, chosen: Chosen) -> OnnxModel:
    """A new model with the positions ``chosen`` of each atom (fewer: a cut; reordered: a permutation)."""
    surgeon = _Surgeon(model, analysis, chosen)
    surgeon.weights()
    surgeon.numbers()
    surgeon.shapes()
    return surgeon.finish()


class _Surgeon:
    """One operation on one model: collects edits by node, then writes them in one pass."""

    def __init__(self, model: OnnxModel, analysis: Analysis, chosen: Chosen) -> None:
        self.source = model
        self.analysis = analysis
        self.chosen = chosen
        self.sizes = counts(chosen)
        self.edits: dict[str, Edit] = {}
        self.constants: dict[str, Array] = {}
        self.rewired: dict[int, dict[int, Array]] = defaultdict(dict)
        self.attrs: dict[int, dict[str, object]] = defaultdict(dict)
        self.overwrites: dict[int, dict[int, dict[int, int]]] = defaultdict(dict)
        self.restores: dict[int, tuple[int, dict[int, int]]] = {}
        self.values: dict[str, Array] = {}
        self._taken: set[str] = set()
        for scope in scopes(model.proto):
            self._taken |= {node.name for node in scope.graph.node} | {*scope.names, *scope.names.values()}

    # Weights.

    def weights(self) -> None:
        """Positions of every stored tensor; vectors that several nodes read part ways where their cuts differ."""
        for name, node, i, layout in self.analysis.uses:
            if not any(touched(dim, self.chosen) for dim in layout):
                continue
            wanted = picks(layout, self.chosen)
            if node is None:
                self._edit(name, wanted)
            else:
                self.rewired[node.index][i] = pick(self._array(name), wanted)

    def _array(self, name: str) -> Array:
        if name not in self.values:
            self.values[name] = self.analysis.graph.weights[name].load()
        return self.values[name]

    def _edit(self, name: str, wanted: Picks) -> None:
        if name in self._initialisers:
            before = self.source.edits.get(name)
            values = before.array() if before else None
            self.edits[name] = Edit(self._initialisers[name], self.source.folder, wanted, values)
        else:
            self.constants[name] = pick(self.analysis.graph.weights[name].load(), wanted)

    @cached_property
    def _initialisers(self) -> dict[str, onnx.TensorProto]:
        return {t.name: t for t in self.source.proto.graph.initializer}

    # Numbers that are sizes.

    def _changed(self, dim: Dim) -> bool:
        return touched(dim, self.sizes) and size_after(dim, self.sizes) != dim.extent

    def _new_size(self, dim: Dim) -> int:
        """The number to write: -1 (follows by itself) where part of the size is only known when the model runs."""
        return -1 if dim.size is None else size_after(dim, self.sizes)

    def numbers(self) -> None:
        """Slots whose Dim changed size, grouped by where they live; attributes that were left out; indices."""
        places: dict[tuple[int, str | int], list[Slot]] = defaultdict(list)
        for slot in self.analysis.facts.slots:
            places[slot.node.index, slot.place].append(slot)
        for slots in places.values():
            due = [slot for slot in slots if self._changed(slot.watch)]
            if due:
                self._write_slots(slots, due)
        for pin in self.analysis.facts.pins:
            if self._changed(pin.watch):
                self.attrs[pin.node.index][pin.attr] = pin.value
        for index in self.analysis.facts.indices:
            if any(touched(dim, self.sizes) for dim in (index.dim, *index.layout)):
                self.rewired[index.node.index][index.input] = self._numbered(index)

    def _numbered(self, index: Index) -> Array:
        """The positions that an index names, as they are counted once the first ones of each atom stay."""
        first = {dim: np.arange(size) for dim, size in self.sizes.items()}
        named = pick(index.positions, picks(index.layout, first))
        dtype = self.analysis.graph.values[index.node.inputs[index.input]].dtype
        return np.searchsorted(take(index.dim, first), named).astype(dtype)

    def _write_slots(self, slots: list[Slot], due: list[Slot]) -> None:
        node, place = due[0].node, due[0].place
        new = {slot.index: self._new_size(slot.dim) for slot in due}
        if isinstance(place, str):
            old = node.attrs.get(place)
            if isinstance(old, int):
                self.attrs[node.index][place] = new[0]
            else:
                whole = old or [size_after(slot.dim, self.sizes) for slot in slots]
                self.attrs[node.index][place] = [
                    _keep_minus_one(int(v), new.get(i), place) for i, v in enumerate(whole)
                ]
        elif place >= len(node.inputs) or not node.inputs[place]:
            self.rewired[node.index][place] = np.array([size_after(slot.dim, self.sizes) for slot in slots], np.int64)
            self.attrs[node.index]["num_outputs"] = None
        elif node.inputs[place] in self.analysis.graph.weights:
            data = np.array(self._array(node.inputs[place]))
            flat = data.reshape(-1)
            for i, value in new.items():
                flat[i] = _keep_minus_one(int(flat[i]), value, "shape" if node.op == "reshape" else "")
            if not np.array_equal(data, self._array(node.inputs[place])):
                self.rewired[node.index][place] = data
        else:
            self.overwrites[node.index][place] = new

    def shapes(self) -> None:
        """Shape nodes that would now read a smaller size go on reading the old one: what hangs on it is patched."""
        for node, dims in self.analysis.facts.shapes:
            old = {i: dim.size or 0 for i, dim in enumerate(dims) if self._changed(dim)}
            if old and self._reads(node, old):
                self.restores[node.index] = len(dims), old

    def _reads(self, node: Node, entries: Iterable[int]) -> bool:
        """Whether anybody looks at one of ``entries`` of a Shape node's result."""
        graph = self.analysis.graph
        for reader, i in graph.consumers.get(node.outputs[0], ()):
            index = reader.inputs[1] if reader.op == "gather" and i == 0 else ""
            if index not in graph.weights:
                return True
            rank = len(graph.shape(node.inputs[0]) or ())
            if {int(v) % max(1, rank) for v in np.reshape(self._array(index), -1)} & set(entries):
                return True
        return node.outputs[0] in graph.outputs

    # Writing.

    def finish(self) -> OnnxModel:
        """The edited copy."""
        self._settle_constants()
        orphans = self._orphans()
        due = {*self.rewired, *self.attrs, *self.overwrites, *self.restores}
        proto, stand = self._target(due)
        for tensor in self.source.proto.graph.initializer:
            if tensor.name not in orphans:
                proto.graph.initializer.append(self._initialiser(tensor))
        here: dict[int, dict[int, int]] = defaultdict(dict)
        for index in sorted(due):
            here[stand[index].scope.number][stand[index].at] = index
        for scope in reversed(scopes(proto)):  # bodies before the nodes that they are in
            self._write(proto, scope, here[scope.number], orphans)
        left = {tensor.name for tensor in proto.graph.initializer}
        edits = {name: edit for name, edit in (self.source.edits | self.edits).items() if name in left}
        made = OnnxModel(proto, self.source.folder, None, edits)
        return made if self.source.external else made.settled()

    def _target(self, due: set[int]) -> tuple[onnx.ModelProto, Mapping[int, Place]]:
        """What is written to, and where each of ``due`` stands in it: the model with its calls where that will do."""
        weights, written = self.analysis.graph.weights, self.source.written
        if written is not None:
            nodes = self.analysis.graph.nodes
            by_name = {place.scope.name(place.node.output[0]): place for place in places(written, weights)}
            held = {scope.name(name) for scope in scopes(written) for name, _ in held_tensors(scope.graph)}
            names = {index: nodes[index].outputs[0] for index in due}
            if held >= set(self.constants) and by_name.keys() >= set(names.values()):
                proto = copy_without_weights(written)
                by_name = {place.scope.name(place.node.output[0]): place for place in places(proto, weights)}
                return proto, {index: by_name[name] for index, name in names.items()}
        proto = copy_without_weights(self.source.proto)
        return proto, dict(enumerate(places(proto, weights)))

    def _write(self, proto: onnx.ModelProto, scope: Scope, due: dict[int, int], orphans: set[str]) -> None:
        """The nodes, constants and shapes of one graph; ``due``: nodes to operate on, by where they stand."""
        graph = scope.graph
        if scope.number:
            for tensor in list(graph.initializer):
                if scope.name(tensor.name) in orphans:
                    graph.initializer.remove(tensor)
                elif (data := self.constants.get(scope.name(tensor.name))) is not None:
                    tensor.CopyFrom(tensors.from_array(data, tensor))
        replaced = dict(zip(due, self._operate(proto, scope, due), strict=True)) if due else {}
        nodes: list[onnx.NodeProto] = []
        for at, node in enumerate(graph.node):
            if node.op_type == "Constant" and scope.name(node.output[0]) in self.analysis.graph.weights:
                nodes += [] if scope.name(node.output[0]) in orphans else [self._constant_node(scope, node)]
            else:
                nodes += replaced.get(at, [node])
        nodes = [_copy(node) for node in nodes]
        del graph.node[:]
        graph.node.extend(nodes)
        self._value_infos(scope)

    def _settle_constants(self) -> None:
        """A constant that one node alone reads is edited where it stands; a shared one is copied for its reader."""
        graph = self.analysis.graph
        for index, inputs in self.rewired.items():
            node = graph.nodes[index]
            for i in list(inputs):
                name = node.inputs[i] if i < len(node.inputs) else ""
                alone = (
                    len(graph.consumers.get(name, ())) == 1 and name not in graph.outputs and name not in self._outer
                )
                if name in graph.weights and alone:
                    data = inputs.pop(i)
                    if name in self._initialisers:
                        tensor = self._initialisers[name]
                        self.edits[name] = Edit(tensor, self.source.folder, (), data)
                    else:
                        self.constants[name] = data
        for index in [index for index, inputs in self.rewired.items() if not inputs]:
            del self.rewired[index]

    def _orphans(self) -> set[str]:
        """Constants whose every reader was given a copy of its own; what nobody read before stays."""
        graph = self.analysis.graph
        left: dict[str, int] = {}
        for index, inputs in self.rewired.items():
            node = graph.nodes[index]
            for name in (node.inputs[i] for i in inputs if i < len(node.inputs) and node.inputs[i]):
                left[name] = left.get(name, len(graph.consumers[name])) - 1
        listed = {info.name for info in self.source.proto.graph.input}
        kept = self._outer | listed | set(graph.outputs)
        return {name for name, readers in left.items() if not readers and name not in kept}

    @cached_property
    def _outer(self) -> set[str]:
        return {name for node in self.analysis.graph.nodes for name in node.outer}

    def _initialiser(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        edit = self.edits.get(tensor.name)
        if edit is None:
            return tensor
        sizes = list(tensor.dims if edit.values is None else edit.values.shape)
        for axis, index in edit.picks:
            sizes[axis] = index.size if index.ndim == 1 else index.shape[axis]
        bare = tensors.without_data(tensor)
        del bare.dims[:]
        bare.dims.extend(sizes)
        return bare

    def _constant_node(self, scope: Scope, node: onnx.NodeProto) -> onnx.NodeProto:
        data = self.constants.get(scope.name(node.output[0]))
        if data is None:
            return node
        tensor = constant_tensor(node)
        changed = _copy(node)
        del changed.attribute[:]
        like = tensor if tensor is not None else onnx.numpy_helper.from_array(data)
        value = onnx.helper.make_attribute("value", tensors.from_array(data, like), node.attribute[0].doc_string)
        changed.attribute.append(value)
        return changed

    def _operate(self, proto: onnx.ModelProto, scope: Scope, due: dict[int, int]) -> list[list[onnx.NodeProto]]:
        """The nodes ``due`` through onnx-graphsurgeon, each with the constants and overwrites it needs before it."""
        originals = [scope.graph.node[at] for at in due]
        graph = onnx.GraphProto(name="operation", node=originals)
        mini = onnx.helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
        table = gs.import_onnx(mini)
        patients = list(table.nodes)
        before, after = [], []
        for index, patient in zip(due.values(), patients, strict=True):
            helpers: list[gs.Node] = []
            for name, value in self.attrs.get(index, {}).items():
                if value is None:
                    patient.attrs.pop(name, None)
                else:
                    patient.attrs[name] = value
            for i, data in self.rewired.get(index, {}).items():
                _set_input(patient, i, self._constant(helpers, f"{patient.outputs[0].name}/input_{i}", data))
            for i, new in self.overwrites.get(index, {}).items():
                self._overwrite(helpers, index, patient, i, new)
            before.append(helpers)
            after.append(self._restore(patient, *self.restores[index]) if index in self.restores else [])
        table.nodes = [
            n for group in zip(before, patients, after, strict=True) for n in (*group[0], group[1], *group[2])
        ]
        made = iter(gs.export_onnx(table, do_type_check=False).graph.node)
        groups = []
        for index, original, ahead, behind in zip(due.values(), originals, before, after, strict=True):
            group = [next(made) for _ in range(len(ahead) + 1 + len(behind))]
            group[len(ahead)] = _merge(original, group[len(ahead)], self.attrs.get(index, {}))
            groups.append(group)
        return groups

    # Small nodes put in. Names are new ones, also where the file was cut before.

    def _name(self, wish: str) -> str:
        while wish in self._taken:
            wish += "_"
        self._taken.add(wish)
        return wish

    def _constant(self, helpers: list[gs.Node], name: str, data: Array) -> gs.Variable:
        """A Constant node, not an initialiser: files of old IR versions list every initialiser as an input."""
        output = gs.Variable(self._name(name))
        value = gs.Constant(output.name, np.array(data, order="C"))
        helpers.append(gs.Node("Constant", output.name, {"value": value}, [], [output]))
        return output

    def _pick(
        self,
        helpers: list[gs.Node],
        name: str,
        value: gs.Variable,
        new: dict[int, int],
        output: gs.Variable,
        shape: tuple[int, ...],
    ) -> None:
        """``output`` is ``value`` with the entries ``new`` replaced; the other entries go on being computed."""
        mask, numbers = np.zeros(shape, bool), np.zeros(shape, np.int64)
        for entry, size in new.items():
            mask.flat[entry], numbers.flat[entry] = True, size
        inputs = [
            self._constant(helpers, f"{name}/mask", mask),
            self._constant(helpers, f"{name}/sizes", numbers),
            value,
        ]
        helpers.append(gs.Node("Where", self._name(f"{name}/where"), {}, inputs, [output]))

    def _overwrite(self, helpers: list[gs.Node], index: int, node: gs.Node, i: int, new: dict[int, int]) -> None:
        """Input ``i``, a computed shape, with some entries replaced."""
        target = node.inputs[i]
        output = gs.Variable(self._name(f"{node.outputs[0].name}/shape_{i}"))
        self._pick(helpers, output.name, target, new, output, self._shape(self.analysis.graph.nodes[index].inputs[i]))
        node.inputs[i] = output

    def _restore(self, node: gs.Node, entries: int, old: dict[int, int]) -> list[gs.Node]:
        """A Shape node's result, so many ``entries``, with the old sizes put back."""
        seen, helpers = node.outputs[0], []  # type: gs.Variable, list[gs.Node]
        node.outputs[0] = gs.Variable(self._name(f"{seen.name}/after"))
        self._pick(helpers, f"{seen.name}/before", node.outputs[0], old, seen, (entries,))
        return helpers

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(map(int, self.analysis.graph.shape(name) or ()))

    def _value_infos(self, scope: Scope) -> None:
        graph = scope.graph
        for info in (*graph.value_info, *graph.input, *graph.output):
            layout = self.analysis.facts.layouts.get(scope.name(info.name))
            if layout is None or not info.type.HasField("tensor_type"):
                continue
            for dim, size in zip(layout, info.type.tensor_type.shape.dim, strict=False):
                if size.HasField("dim_value") and self._changed(dim):
                    size.dim_value = size_after(dim, self.sizes)


def _keep_minus_one(old: int, new: int | None, place: str) -> int:
    """A reshape target of -1 follows by itself."""
    return old if new is None or (place == "shape" and old == -1) else new


def _merge(original: onnx.NodeProto, made: onnx.NodeProto, changed: Iterable[str]) -> onnx.NodeProto:
    """``original`` with the inputs, outputs and ``changed`` attributes of ``made``; all else as it was."""
    merged = _copy(original)
    merged.input[:], merged.output[:] = made.input, made.output
    fresh = {a.name: a for a in made.attribute if a.name in changed}
    attributes = [fresh.pop(a.name, a) for a in original.attribute if a.name in fresh or a.name not in changed]
    del merged.attribute[:]
    merged.attribute.extend([*attributes, *fresh.values()])
    return merged


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _set_input(node: gs.Node, i: int, value: gs.Variable) -> None:
    while len(node.inputs) <= i:
        node.inputs.append(gs.Variable.empty())
    node.inputs[i] = value
