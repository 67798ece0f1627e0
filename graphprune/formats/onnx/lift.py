"""An ONNX graph that torch can differentiate: weights are tensors, and nodes run one after the other.

`lift_ops` has a line for each op. An op without one is run by onnx's reference implementation where nothing has to be
differentiated through it: computed shapes, masks, whatever comes before the first watched value.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from graphprune.analysis import FLOATS
from graphprune.errors import UsageError
from graphprune.formats.onnx import (
    lift_fused,  # noqa: F401
    tensors,
)
from graphprune.formats.onnx.bodies import bodies, captured, places
from graphprune.formats.onnx.lift_ops import ByReference, find
from graphprune.formats.onnx.model import OnnxModel
from graphprune.formats.onnx.names import STANDARD
from graphprune.formats.onnx.runtime import make_feeds
from graphprune.formats.onnx.shapes import input_shapes, symbols_of
from graphprune.graph import Array, Graph, Node

Watch = Callable[[str, Tensor], Tensor]
Step = tuple[Node, onnx.NodeProto, list[str]]
"""A node, as the view and as the file have it, and the values that nobody reads after it."""
_SEGMENTS, _SEGMENT = 4, (128, 512)
"""Into how many segments a graph is cut, and how few and how many nodes each may have: at their ends the values in use
are kept for the way back; what is between is computed again."""


@dataclass
class Lifted:
    """``model`` with its constants as tensors, called with inputs by name; all floats are computed as ``dtype``."""

    model: OnnxModel
    constants: dict[str, Tensor]
    dtype: torch.dtype

    @property
    def graph(self) -> Graph:
        """The format-free view."""
        return self.model.graph

    @property
    def module(self) -> Lifted:
        """What a loss is called with."""
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        """The constants that require a gradient: floats, and more than one."""
        return {name: value for name, value in self.constants.items() if value.requires_grad}

    def watched(self, watch: Watch) -> Callable[[Mapping[str, Any]], dict[str, Tensor]]:
        """This function, whose values go through ``watch``."""
        return partial(self, watch=watch)

    def outputs(self, module: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Outputs by name."""
        found: dict[str, Tensor] = module(batch)
        return found

    def positive(self) -> tuple[Lifted, dict[str, Array]]:
        """A copy with absolute weights in double precision, and inputs of ones (integers as the model takes them)."""
        made = lift(self.model, torch.float64, trainable=True)
        for name, value in made.weights.items():
            made.constants[name] = value.detach().abs().requires_grad_()
        proto, example = self.model.proto, self.graph.example
        sizes = {symbol: example.get(symbol, 1) for symbol in symbols_of(input_shapes(proto))[0]}
        feeds = self.model.given[1] if self.model.given else make_feeds(self.graph, proto, sizes, seed=0)
        return made, {name: np.ones_like(v) if v.dtype.kind == "f" else v for name, v in feeds.items()}

    @cached_property
    def steps(self) -> list[Step]:
        """Nodes of the main graph in order, and the values that nobody reads after each."""
        known, graph = self.graph.weights, self.graph
        stand = {place.at: i for i, place in enumerate(places(self.model.proto, known)) if not place.scope.number}
        nodes = [(graph.nodes[i], self.model.proto.graph.node[at]) for at, i in stand.items()]
        ends: dict[str, int] = {}
        for step, (_, proto) in enumerate(nodes):
            ends |= dict.fromkeys((*proto.input, *captured(proto), *proto.output), step)
        for name in {*graph.outputs, *known, ""}:
            ends.pop(name, None)
        last: list[list[str]] = [[] for _ in nodes]
        for name, step in ends.items():
            last[step].append(name)
        return [(node, proto, done) for (node, proto), done in zip(nodes, last, strict=True)]

    def __call__(self, batch: Mapping[str, Any], watch: Watch | None = None) -> dict[str, Tensor]:
        """Outputs by name. ``watch(name, value)`` sees every input and value, and says what goes on in its place.

        ``batch`` holds arrays or tensors by input name; what else it holds is left alone.
        """
        watch = watch or (lambda name, value: value)
        values = self.constants | {name: watch(name, value) for name, value in self.inputs(batch).items()}
        size = int(np.clip(len(self.steps) // _SEGMENTS, *_SEGMENT))
        *first, last = [self.steps[i : i + size] for i in range(0, len(self.steps), size)] or [[]]
        for steps in first:
            values = checkpoint(self.through, steps, values, watch, use_reentrant=False, preserve_rng_state=False)
        values = self.through(last, values, watch)
        return {name: values[name] for name in self.graph.outputs}

    def through(
        self, steps: list[Step], given: Mapping[str, Tensor], watch: Watch = lambda name, value: value
    ) -> dict[str, Tensor]:
        """The values that are still to be read when ``steps`` are done."""
        values = dict(given)
        for node, proto, last in steps:
            found = self._run(node, proto, values)
            for name, value in zip(node.outputs, found, strict=False):
                values[name] = watch(name, value)
            for name in last:
                values.pop(name, None)
        return values

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What of ``batch`` the model takes, in its types."""
        return {name: self._input(name, batch) for name in self.graph.inputs}

    def _input(self, name: str, batch: Mapping[str, Any]) -> Tensor:
        if name not in batch:
            raise UsageError(f"the batch has no input {name!r}", hint=f"the model takes {list(self.graph.inputs)}")
        value = batch[name] if isinstance(batch[name], Tensor) else _shared(np.asarray(batch[name]))
        return value.to(self._type(self.graph.values[name].dtype))

    def _type(self, name: str) -> torch.dtype:
        """The type that values of the numpy type ``name`` are computed in."""
        found = self.dtype if name in FLOATS else getattr(torch, name, None)
        if not isinstance(found, torch.dtype):
            raise UsageError(
                f"torch has no numbers of type {name}",
                hint="prune the torch module instead, or choose a score without gradients",
            )
        return found

    def _run(self, node: Node, proto: onnx.NodeProto, values: Mapping[str, Tensor]) -> list[Tensor]:
        name = node.kind if proto.domain in STANDARD else f"{proto.domain}.{node.kind}"
        function = find(name, self.graph.opset)
        if function is None:
            return self._by_reference(node, proto, values)
        inputs = [values[name] if name else None for name in node.inputs]
        try:
            found = function(*inputs, **self._attributes(node, proto))
        except ByReference:
            return self._by_reference(node, proto, values)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            raise UsageError(
                f"torch does not run {node.kind} (node {node.label}): {error}",
                hint="prune the torch module instead, or choose a score without gradients",
            ) from error
        listed = list(found) if isinstance(found, tuple | list) else [found]
        return self._by_reference(node, proto, values) if any(node.outputs[len(listed) :]) else listed

    def _attributes(self, node: Node, proto: onnx.NodeProto) -> dict[str, Any]:
        given = {a.name: node.attrs[a.name] for a in proto.attribute}
        if node.kind == "Split":
            given.setdefault("num_outputs", len(node.outputs))
        if node.kind == "Cast":
            given["to"] = self._type(tensors.dtype_name(given["to"]))
        return {k: self._tensor(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}

    def _tensor(self, value: Array) -> Tensor:
        made = _shared(value)
        return made.to(self._type(str(made.dtype).removeprefix("torch.")))

    def _by_reference(self, node: Node, proto: onnx.NodeProto, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Without a gradient, by onnx's numpy implementation; UsageError where a gradient would have to go through."""
        names = list(dict.fromkeys(name for name in (*proto.input, *captured(proto)) if name))
        infos = [helper.make_empty_tensor_value_info(name) for name in names]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.outputs if name]
        whole = self.model.proto
        alone = helper.make_model(
            helper.make_graph([proto], "alone", infos, outputs),
            opset_imports=whole.opset_import,
            functions=whole.functions,
        )
        where = f"{node.kind} (node {node.label})"
        try:
            feeds = {name: self._array(name, values[name]) for name in names}
            found = dict(zip((o.name for o in outputs), ReferenceEvaluator(alone).run(None, feeds), strict=True))
            made = [self._tensor(np.asarray(found[name])) if name else torch.empty(0) for name in node.outputs]
        except UsageError:
            raise
        except Exception as error:  # whatever a numpy kernel runs into
            raise UsageError(
                f"{where} cannot be run for gradients: {error}",
                hint="prune the torch module instead, or choose a score without gradients",
            ) from error
        inner = bool(bodies(proto)) and any(value.requires_grad for value in self.constants.values())
        if (inner or any(values[name].requires_grad for name in names)) and any(t.is_floating_point() for t in made):
            raise UsageError(
                f"no gradient is known of {where}",
                hint="prune the torch module instead, or choose a score without gradients",
            )
        return made

    def _array(self, name: str, value: Tensor) -> Array:
        array: Array = value.detach().numpy()
        held = self.graph.values.get(name)
        return array.astype(np.float32) if array.dtype == np.float64 and held and held.dtype == "float32" else array


def lift(model: OnnxModel, dtype: torch.dtype = torch.float32, *, trainable: bool = False) -> Lifted:
    """``model`` as a function that torch can differentiate; by its weights, too, where it is ``trainable``."""
    made = Lifted(model, {}, dtype)
    main = model.proto.graph
    inside = set(model.graph.weights) - {t.name for t in main.initializer} - {o for n in main.node for o in n.output}
    for name, weight in model.graph.weights.items():
        if name in inside:  # a body runs as a whole
            continue
        value = made._tensor(weight.load())
        made.constants[name] = value.requires_grad_(trainable and weight.dtype in FLOATS and value.numel() > 1)
    return made


_WIDER = {"bfloat16": np.float32, "int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}
"""Types that torch does not take over from numpy."""


def _shared(array: Array) -> Tensor:
    """``array`` as a tensor on the same memory where it can be; nothing writes to it."""
    array = array.astype(_WIDER.get(str(array.dtype), array.dtype), copy=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy holds bytes of a protobuf as read-only
        return torch.from_numpy(np.asarray(array, order="C"))
