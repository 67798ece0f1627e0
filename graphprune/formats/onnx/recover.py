"""What a cut moved and no training is needed to mend: the running statistics of batch norms.

As for torch modules, each batch is normalised by its own statistics on the way, so that one pass is enough: what a
batch norm hands on does not depend on its stored statistics, and the next one sees about what it will see in the end.
(Batch norm after batch norm, in the order of the graph, is exact for small batches too, and takes a pass for each.)
Only means and variances leave the runtime. They are written at the end, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from graphprune.errors import UsageError
from graphprune.formats.onnx.model import OnnxModel, constant_tensor
from graphprune.formats.onnx.runtime import run
from graphprune.formats.onnx.tensors import from_array

Floats = npt.NDArray[np.float64]
_AXES_ARE_AN_INPUT = 18
"""The opset since which ReduceMean takes its axes as an input."""
_MEAN, _VARIANCE = 3, 4  # inputs of BatchNormalization


def reestimate_batch_norm(model: Any, batches: Iterable[Any], loss: Callable[[Any, Any], Any] | None = None) -> int:
    """Set the mean and variance of every batch norm to those of all ``batches``; how many were set.

    See `graphprune.reestimate_batch_norm`.
    """
    if not isinstance(model, onnx.ModelProto) or loss is not None:
        raise UsageError(
            "batch norms of a file are re-estimated in place, on batches of inputs by name, and without a loss",
            hint="pass result.model, or onnx.load(path), and save it afterwards with onnx.save",
        )
    norms = _norms(model)
    if not norms:
        raise UsageError(
            "no batch norm with running statistics ran, so there is nothing to re-estimate",
            hint="exporters often fold batch norms into convolutions; a model without them needs no re-estimation",
        )
    runner = run(OnnxModel(_watched(model, norms)))
    found = [_Statistics() for _ in norms]
    for number, batch in enumerate(batches):
        if not isinstance(batch, Mapping):
            raise UsageError(f"batch {number} is no mapping", hint="give arrays by the names of the model's inputs")
        sums = runner(batch)
        for at, statistics in enumerate(found):
            mean, variance = (sums[f"{_name(at)}/{what}"].astype(np.float64) for what in ("mean", "variance"))
            if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
                raise UsageError(
                    f"the statistics for {norms[at].input[_MEAN]!r} are not finite in batch {number};"
                    " nothing was changed",
                    hint="look for NaN, infinity or an empty batch in the inputs, and for weights that are not finite",
                )
            count = int(sums[f"{_name(at)}/count"]) // len(mean)
            statistics.add(count, mean, variance * count)
    if not found[0].count:
        raise UsageError("there are no batches to take statistics on", hint="batches=... was empty or used up")
    for norm, statistics in zip(norms, found, strict=True):
        _write(model, norm, _MEAN, statistics.mean)
        _write(model, norm, _VARIANCE, statistics.squares / max(statistics.count - 1, 1))
    return len(norms)


@dataclass
class _Statistics:
    """Mean and sum of squared distances from it of all values so far."""

    count: int = 0
    mean: Floats | float = 0.0
    squares: Floats | float = 0.0

    def add(self, count: int, mean: Floats, squares: Floats) -> None:
        """Take in a batch (Chan et al., "Updating formulae and a pairwise algorithm for computing variances")."""
        apart, whole = mean - self.mean, self.count + count
        self.mean = self.mean + apart * (count / whole)
        self.squares = self.squares + squares + apart**2 * (self.count * count / whole)
        self.count = whole


def _stored(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    return held | {n.output[0]: tensor for n in model.graph.node if (tensor := constant_tensor(n)) is not None}


def _norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Batch norms of the main graph that apply statistics which are stored in the file."""
    held = _stored(model)
    return [
        node
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        and node.domain in ("", "ai.onnx")
        and node.input[_MEAN] in held
        and node.input[_VARIANCE] in held
        and not any(a.name == "training_mode" and a.i for a in node.attribute)
    ]


def _name(number: int) -> str:
    return f"graphprune/norm_{number}"


def _watched(model: onnx.ModelProto, norms: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The model with each batch norm on the statistics of its batch, and these as the outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    held = _stored(model)
    number_of = {norm.output[0]: number for number, norm in enumerate(norms)}
    nodes = list(proto.graph.node)
    del proto.graph.node[:], proto.graph.output[:]
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.int64), f"graphprune/{name}")
        for name, value in (("rows", [0, 0, -1]), ("axes", [0, 2]))
    )
    for node in nodes:
        number = number_of.get(node.output[0])
        if number is not None:
            kind = held[node.input[_MEAN]].data_type
            proto.graph.node.extend(_measured(node.input[0], _name(number), kind, opset))
            node.input[_MEAN], node.input[_VARIANCE] = f"{_name(number)}/own_mean", f"{_name(number)}/own_variance"
            proto.graph.output.extend(_outputs(_name(number), kind))
        proto.graph.node.append(node)
    return proto


def _wide(kind: int) -> int:
    """Statistics are taken in float32, those of doubles in double."""
    return kind if kind == onnx.TensorProto.DOUBLE else onnx.TensorProto.FLOAT


def _outputs(name: str, kind: int) -> Iterator[onnx.ValueInfoProto]:
    for part in ("mean", "variance", "count"):
        dtype = onnx.TensorProto.INT64 if part == "count" else _wide(kind)
        yield helper.make_tensor_value_info(f"{name}/{part}", dtype, None)


def _measured(value: str, name: str, kind: int, opset: int) -> Iterator[onnx.NodeProto]:
    """Mean and variance of each channel of ``value``, wide and as the batch norm takes them, and how many values."""
    attributes: dict[str, Any] = {"keepdims": 1} | ({} if opset >= _AXES_ARE_AN_INPUT else {"axes": [0, 2]})
    axes = ["graphprune/axes"] if opset >= _AXES_ARE_AN_INPUT else []

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [f"{name}/{output}"], f"{name}/{output}", **attributes)

    yield node("Size", [value], "count")
    yield node("Cast", [value], "wide", to=_wide(kind))
    yield node("Reshape", [f"{name}/wide", "graphprune/rows"], "rows")
    yield node("ReduceMean", [f"{name}/rows", *axes], "centre", **attributes)
    yield node("Sub", [f"{name}/rows", f"{name}/centre"], "apart")
    yield node("Mul", [f"{name}/apart", f"{name}/apart"], "squares")
    yield node("ReduceMean", [f"{name}/squares", *axes], "variance", **attributes | {"keepdims": 0})
    yield node("ReduceMean", [f"{name}/rows", *axes], "mean", **attributes | {"keepdims": 0})
    yield node("Cast", [f"{name}/mean"], "own_mean", to=kind)
    yield node("Cast", [f"{name}/variance"], "own_variance", to=kind)


def _write(model: onnx.ModelProto, norm: onnx.NodeProto, at: int, values: Floats | float) -> None:
    """``values`` for one input of a batch norm; where others read it too, as a vector of its own."""
    held = _stored(model)[norm.input[at]]
    readers = sum(list(node.input).count(norm.input[at]) for node in model.graph.node)
    made = from_array(np.asarray(values).astype(numpy_helper.to_array(held).dtype), held)
    if readers == 1:
        held.CopyFrom(made)
        return
    made.name = f"{norm.output[0]}/{'mean' if at == _MEAN else 'variance'}"
    model.graph.initializer.append(made)
    norm.input[at] = made.name
