"""Running a model in ONNX Runtime: inputs that fit, outputs, time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime

from graphprune.errors import UsageError, VerifyError
from graphprune.formats.onnx.bodies import bodies
from graphprune.formats.onnx.model import OnnxModel, Trial, copy_without_weights
from graphprune.formats.onnx.shapes import input_shapes, runs_to_try, symbols_of
from graphprune.formats.onnx.tensors import dtype_name, elsewhere, shared
from graphprune.graph import Array, Graph
from graphprune.memory import give_back

Feeds = Mapping[str, Array]
MOST = 1 << 26
"""Numbers that an input made at random has at the most."""
PATIENCE = 1 << 26
"""Numbers that are made at random in all, looking for sizes that a model runs at."""
_ORT_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_ORT_PLACE = re.compile(r"/\S+:\d+ ")


class Runner:
    """A loaded model: call it with feeds, get all outputs by name."""

    def __init__(self, loaded: Any, weights: Mapping[str, Any]) -> None:
        self.session = loaded
        self.weights = weights  # theirs is the memory that the session uses
        self.names = [output.name for output in loaded.get_outputs()]

    def dtypes(self, names: Iterable[str]) -> dict[str, str]:
        """The types of those outputs that are tensors, as numpy names them."""
        given = {output.name: output.type for output in self.session.get_outputs()}
        bare = {name: given[name].removeprefix("tensor(").removesuffix(")") for name in names}
        plain = {"float": "float32", "double": "float64"}
        return {name: plain.get(kind, kind) for name, kind in bare.items() if given[name] == f"tensor({kind})"}

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        try:
            outputs = dict(zip(self.names, self.session.run(self.names, dict(feeds)), strict=True))
        except Exception as error:  # onnxruntime's own classes again
            raise VerifyError(f"ONNX Runtime does not run the model: {first_line(error)}") from error
        return dict(_arrays(outputs))


def run(model: OnnxModel, *, optimise: bool = True, threads: int = 1, profile: str = "") -> Runner:
    """``model`` in ONNX Runtime on the CPU; the result is called with feeds, and watched where ``profile`` is a path.

    The memory of larger weights is shared with the runtime. VerifyError with its own words where it refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling, options.profile_file_prefix = bool(profile), profile
    if not optimise:  # it is not to run for long: weights are used as they lie
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        proto, arrays = _apart(model)
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        options.add_external_initializers(list(values), list(values.values()))
        for name, value in values.items():  # else they are copied in the end
            options.add_initializer(name, value)
        loaded = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=_fatal(proto.graph.node)
        )
    except Exception as error:  # onnxruntime raises classes of its own, none of them public
        raise VerifyError(
            f"ONNX Runtime does not load the model: {first_line(error)}",
            hint="where it is only a kernel that is missing, --verify structure leaves out what has to be run",
        ) from error
    give_back(sum(array.nbytes for array in arrays.values()))
    return Runner(loaded, values)


def _fatal(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """Optimisers that take the process down: this one, where it moves what a body reads (as of ONNX Runtime 1.31)."""
    return ["QDQPropagationTransformer"] if any(bodies(node) for node in nodes) else []


def _apart(model: OnnxModel) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The protobuf with its smaller weights, and the larger ones by name."""
    proto, arrays = copy_without_weights(model.proto), dict[str, Array]()
    for tensor in model.proto.graph.initializer:
        if shared(tensor):
            arrays[tensor.name] = np.ascontiguousarray(model.array(tensor))
            proto.graph.initializer.append(elsewhere(tensor, "weights"))
        else:
            proto.graph.initializer.append(model.tensor(tensor))
    return proto, arrays


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut to a readable length, without the place in ONNX Runtime's source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    words = _ORT_CODE.sub("", lines[0])
    return (_after_signature(words) if _ORT_PLACE.match(words) else words).strip()[:300]


def _after_signature(words: str) -> str:
    depth = 0
    for at, letter in enumerate(words):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            return words[at + 1 :]
    return words


def _arrays(outputs: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """Outputs as arrays; the elements of a sequence are numbered."""
    for name, value in outputs.items():
        if isinstance(value, list):
            yield from _arrays({f"{name}[{i}]": element for i, element in enumerate(value)})
        elif value is not None:
            yield name, np.asarray(value)


def make_feeds(graph: Graph, proto: onnx.ModelProto, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Random inputs: floats normal, integers within the table they index, masks all ones."""
    random = np.random.default_rng(seed)
    declared = input_shapes(proto)
    shapes = {name: [s if isinstance(s, int) else sizes[s] for s in shape] for name, shape in declared.items()}
    for name, shape in shapes.items():
        if math.prod(shape) > MOST:
            raise _too_large(name, shape)
    feeds: dict[str, Array] = {}
    for info in proto.graph.input:
        if info.name not in shapes:
            continue
        mask = "mask" in info.name.lower()
        high = 2 if mask else graph.picked(info.name) or 2
        dtype = np.dtype(dtype_name(info.type.tensor_type.elem_type))
        try:
            feeds[info.name] = _filled(random, shapes[info.name], dtype, int(mask), high)
        except MemoryError as error:
            raise _too_large(info.name, shapes[info.name]) from error
    return feeds


def _too_large(name: str, shape: list[int]) -> VerifyError:
    return VerifyError(
        f"input {name!r} of shape {shape} is too large for random numbers",
        hint="give inputs that it runs on, with --calib inputs.npz",
    )


def _filled(random: np.random.Generator, shape: list[int], dtype: np.dtype[Any], low: int, high: int) -> Array:
    if dtype.kind in "iu":
        return random.integers(low, max(high, low + 1), shape).astype(dtype)
    return np.ones(shape, dtype) if dtype.kind == "b" else random.standard_normal(shape).astype(dtype)


def _styled(value: Array, amplitude: float, positive: bool) -> Array:
    if value.dtype.kind != "f":
        return value
    return ((value % 1 if positive else value) * amplitude).astype(value.dtype)


STYLES = ((1, 32, False), (1, 128, False), (3, 128, False), (1, 128, True))
"""Amplitude of floating-point inputs, smallest unit of the sizes tried, and whether they run from 0 to 1."""


def trials(model: OnnxModel, runner: Callable[[Feeds], dict[str, Array]], seed: int = 0, style: int = 0) -> list[Trial]:
    """The inputs given; else feeds at different dynamic sizes (one where nothing is dynamic, or no two work)."""
    if model.given:
        return [model.given]
    return [trial for trial, _ in find_trials(model, model.graph, runner, seed, style)]


def find_trials(
    model: OnnxModel, graph: Graph, runner: Callable[[Feeds], dict[str, Array]], seed: int = 0, style: int = 0
) -> list[tuple[Trial, dict[str, Array]]]:
    """As `trials`, with a ``graph`` whose shapes may still have holes; each with what ``runner`` made of it."""
    symbols, first = symbols_of(input_shapes(model.proto))
    working: list[tuple[Trial, dict[str, Array]]] = []
    failure = ""
    amplitude, unit, positive = STYLES[style]
    made = 0
    for runs in runs_to_try(symbols, first, unit):
        found: list[tuple[Trial, dict[str, Array]]] = []
        if made > PATIENCE:
            break
        for sizes in runs:
            try:
                feeds = make_feeds(graph, model.proto, sizes, seed)
                made += sum(value.size for value in feeds.values())
                feeds = {k: _styled(v, amplitude, positive) for k, v in feeds.items()}
                found.append(((sizes, feeds), runner(feeds)))
            except VerifyError as error:
                failure = error.what
                break
            if not symbols:
                return found
        working = max(working, found, key=len)
        if len(found) == len(runs):
            return found
    if not working:
        raise VerifyError(
            f"the model runs at none of the input sizes tried: {failure}",
            hint="give inputs that it runs on, with --calib inputs.npz",
        )
    return working


def give(model: OnnxModel, inputs: Mapping[str, Any]) -> None:
    """Use ``inputs`` for every run to come; UsageError where one is missing, unknown, or of another shape."""
    declared = {info.name: info for info in model.proto.graph.input}
    shapes = input_shapes(model.proto)
    if set(inputs) != set(shapes):
        raise UsageError(f"the inputs given are {sorted(inputs)}", hint=f"the model takes {sorted(shapes)}")
    feeds: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    for name, value in inputs.items():
        array = np.asarray(value)
        if len(array.shape) != len(shapes[name]) or not all(
            sizes.setdefault(want, size) == size if isinstance(want, str) else want == size
            for want, size in zip(shapes[name], array.shape, strict=True)
        ):
            raise UsageError(
                f"input {name!r} has shape {list(array.shape)}", hint=f"the model takes {list(shapes[name])}"
            )
        feeds[name] = _converted(name, array, dtype_name(declared[name].type.tensor_type.elem_type))
    model.given, model.like = (sizes, feeds), None
    model.__dict__.pop("graph", None)  # it tells the sizes that MACs count at


def _converted(name: str, array: Array, dtype: str) -> Array:
    """``array`` as the model takes it; UsageError where it holds nothing, something else than numbers, or NaN."""
    wanted = np.dtype(dtype)
    if array.dtype != wanted and (array.dtype.kind not in "biuf" or wanted.kind == "O"):
        raise UsageError(f"input {name!r} holds {array.dtype}", hint=f"the model takes {dtype}")
    if array.size == 0 or (array.dtype.kind == "f" and np.isnan(array).any()):
        why = "is empty" if array.size == 0 else "holds NaN"
        raise UsageError(f"input {name!r} {why}, which proves nothing", hint="give real inputs")
    return array.astype(wanted)
