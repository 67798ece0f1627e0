"""The format-free Graph of a traced torch module, and for each of its nodes the call that a cut must rewrite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.formats.torch.calls import CALLS, Call
from graphprune.formats.torch.model import TorchModel, attribute, stored
from graphprune.graph import Array, Graph, Node, Shape, Value, Weight

_SKIPPED = ("_assert_tensor_metadata", "sym_constrain_range_for_size", "_assert_scalar", "sym_constrain_range")
NEWEST = 99
"""The opset that torch's semantics match: the newest."""


@dataclass(frozen=True)
class Traced:
    """The traced node behind a Node, and its Call (None where there is none)."""

    node: fx.Node
    call: Call | None


@dataclass
class _Made:
    graph: Graph
    calls: dict[int, Traced]


def view(model: TorchModel) -> Graph:
    """Nodes, values and weights of the traced graph."""
    return _make(model).graph


def calls(model: TorchModel) -> dict[int, Traced]:
    """The traced node behind each node of the view."""
    return _make(model).calls


def _make(model: TorchModel) -> _Made:
    if not hasattr(model, "_made"):
        model._made = _Builder(model).build()  # type: ignore[attr-defined]
    return model._made  # type: ignore[attr-defined,no-any-return]


class _Builder:
    def __init__(self, model: TorchModel) -> None:
        self.model = model
        self.values: dict[str, Value] = {}
        self.weights: dict[str, Weight] = {}
        self.known: dict[str, Array] = {}
        self.names: dict[fx.Node, str] = {}
        self.nodes: list[Node] = []
        self.calls: dict[int, Traced] = {}
        self.example: dict[str, int] = {}

    def build(self) -> _Made:
        inputs: list[str] = []
        outputs: list[str] = []
        canonical = {id(tensor): name for name, tensor in stored(self.model.traced).items()}
        for node in self.model.traced.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = node.name
                self._value(node.name, node.meta.get("val"))
                inputs.append(node.name)
            elif node.op == "get_attr":
                self._weight(node, canonical)
            elif node.op == "output":
                outputs += [self.names[n] for n in node.all_input_nodes if n in self.names]
            elif node.op == "call_function":
                self._call(node)
            else:
                self._unknown(node, str(node.target))
        graph = Graph(
            tuple(self.nodes),
            self.values,
            self.weights,
            tuple(inputs),
            tuple(dict.fromkeys(outputs)),
            self.example,
            NEWEST,
            self.known,
            merged=False,
        )
        return _Made(graph, self.calls)

    def _weight(self, node: fx.Node, canonical: dict[int, str]) -> None:
        tensor = attribute(self.model.traced, str(node.target))
        if not isinstance(tensor, Tensor):
            return
        name = canonical[id(tensor)]
        self.names[node] = name
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.weights[name] = Weight(name, tuple(tensor.shape), dtype, partial(_load, tensor))
        self.values[name] = Value(name, tuple(tensor.shape), dtype)

    def _value(self, name: str, fake: Any) -> None:
        if not isinstance(fake, Tensor):
            self.values[name] = Value(name, None)
            return
        shape: list[int | str] = []
        for size in fake.shape:
            if isinstance(size, torch.SymInt):
                shape.append(str(size))
                self.example[str(size)] = _hint(size)
            else:
                shape.append(int(size))
        self.values[name] = Value(name, tuple(shape), str(fake.dtype).removeprefix("torch."))

    def _call(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if getattr(node.target, "__name__", "") == "getitem":
            source, i = node.args
            if isinstance(source, fx.Node) and isinstance(i, int):
                self.names[node] = f"{self.names.get(source, source.name)}.{i}"
            return
        short = _name(node)
        if short == "sym_size" and isinstance(node.args[0], fx.Node) and node.args[0] in self.names:
            self._size(node, self.names[node.args[0]])
            return
        if short in _SKIPPED or isinstance(value, torch.SymInt | int | float | bool | None):
            return
        found = CALLS.get(_overload(node)) or CALLS.get(short)
        if found is None:
            self._unknown(node, short)
        else:
            self._known(node, found)

    def _size(self, node: fx.Node, source: str) -> None:
        """The model reads a size when it runs; the result is a number and no value of the graph."""
        self.calls[len(self.nodes)] = Traced(node, None)
        attrs = {"axis": node.args[1]}
        self.nodes.append(Node(len(self.nodes), "torch_size", _label(node), (source,), (), attrs, "sym_size"))

    def _outputs(self, node: fx.Node) -> tuple[str, ...]:
        value = node.meta.get("val")
        self.names[node] = node.name
        if isinstance(value, tuple | list):
            for i, part in enumerate(value):
                self._value(f"{node.name}.{i}", part)
            return tuple(f"{node.name}.{i}" for i in range(len(value)))
        self._value(node.name, value)
        return (node.name,)

    def _unknown(self, node: fx.Node, op: str) -> None:
        inputs = tuple(self.names[n] for n in node.all_input_nodes if n in self.names)
        self._add(node, None, f"torch.{op}", inputs, {})

    def _add(self, node: fx.Node, call: Call | None, op: str, inputs: tuple[str, ...], attrs: dict[str, Any]) -> None:
        index = len(self.nodes)
        outputs = self._outputs(node)
        self.nodes.append(Node(index, op, _label(node), inputs, outputs, attrs, _name(node) or op, scope=_scope(node)))
        self.calls[index] = Traced(node, call)

    def _known(self, node: fx.Node, call: Call) -> None:
        args = arguments(node)
        attrs: dict[str, Any] = {}
        for name, source in call.attrs.items():
            if source[0] == "=":
                attrs[name] = int(source[1:])
            elif source[0] != "?" and args.get(source) is not None and not isinstance(args[source], fx.Node):
                attrs[name] = args[source]
        if call.inputs == "*":  # of operands that are numbers nothing else is left
            attrs |= {name: value for name, value in args.items() if type(value) in (int, float)}
        inputs = tuple(self._inputs(node, call, args))
        if call.fix is not None:
            first = self.values.get(inputs[0]) if inputs else None
            call.fix(attrs, args, [s if isinstance(s, int) else -1 for s in (first.shape or ())] if first else [])
        self._add(node, call, attrs.pop("op", call.op), inputs, attrs)

    def _inputs(self, node: fx.Node, call: Call, args: dict[str, Any]) -> Iterator[str]:
        if call.inputs == "*":
            for value in args.values():
                if isinstance(value, fx.Node) and value in self.names:
                    yield self.names[value]
            return
        for word in call.inputs.split():
            if word.startswith("@"):
                yield self._constant(node, word[1:], args.get(word[1:]))
            elif word.startswith("*"):
                listed = args.get(word[1:]) or ()
                for value in listed if isinstance(listed, list | tuple) else (listed,):
                    yield self.names.get(value, "") if isinstance(value, fx.Node) else ""
            elif not word.startswith("-"):
                value = next((args[w] for w in word.split("|") if args.get(w) is not None), None)
                yield self.names.get(value, "") if isinstance(value, fx.Node) else ""

    def _constant(self, node: fx.Node, word: str, value: Any) -> str:
        """A list or number given as an argument, as a small constant input; unknown entries are nan."""
        name = f"{node.name}@{word}"
        listed = value if isinstance(value, list | tuple) else [value]
        entries = [float(v) if isinstance(v, int) and not isinstance(v, torch.SymInt) else np.nan for v in listed]
        scalar = not isinstance(value, list | tuple)
        self.known[name] = np.asarray(entries[0] if scalar else entries, np.float64)
        self.values[name] = Value(name, () if scalar else (len(entries),), "int64")
        return name


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an ATen call by schema name, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {**{str(i): value for i, value in enumerate(node.args)}, **node.kwargs}
    found: dict[str, Any] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(node.args):
            found[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return (
        str(packet).removeprefix("aten.") if packet is not None else getattr(node.target, "__name__", str(node.target))
    )


def _overload(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.")


def _label(node: fx.Node) -> str:
    """The module path that the node was traced in, and its own name."""
    scope = _scope(node)
    return f"{scope}/{node.name}" if scope else node.name


def _scope(node: fx.Node) -> str:
    """The path of the module that the node was traced in."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]).removeprefix("L['self'].").removeprefix("L['self']") if paths else ""


def _hint(size: Any) -> int:
    try:
        return int(size.node.hint)
    except (AttributeError, TypeError):
        return 1


def _load(tensor: Tensor) -> Array:
    data = tensor.detach().cpu()
    return data.float().numpy() if data.dtype == torch.bfloat16 else data.numpy()


__all__ = ["Shape", "Traced", "arguments", "calls", "view"]
