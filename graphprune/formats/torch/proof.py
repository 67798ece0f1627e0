"""What proofs need of a torch model: running it, a model with positions zeroed, one nudged by a rounding error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphprune.analysis import Analysis
from graphprune.dims import Chosen, Dim, atoms, ones, touched
from graphprune.errors import UsageError, VerifyError
from graphprune.formats.torch.model import TorchModel, Trial, clone, set_tensor, stored
from graphprune.graph import Array, Graph
from graphprune.rules.registry import Mask

Runner = Callable[[Mapping[str, Array]], dict[str, Array]]


def run(model: TorchModel, *, threads: int = 1) -> Runner:
    """A function from arrays by placeholder name to outputs by number."""
    return lambda feeds: run_with(torch.fx.Interpreter(model.traced), model, feeds)


def run_with(interpreter: torch.fx.Interpreter, model: TorchModel, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs by number when ``interpreter`` runs the traced module on arrays by placeholder name."""
    places = [node.name for node in model.traced.graph.nodes if node.op == "placeholder"]
    values = [tensor(feeds.get(name), model.inputs.get(name)) for name in places]
    try:
        with torch.no_grad():
            found = interpreter.run(*values, enable_io_processing=False)
    except Exception as error:
        raise VerifyError(f"torch does not run the model: {str(error).strip().splitlines()[0][:300]}") from error
    flat, _ = torch.utils._pytree.tree_flatten(found)
    return {str(i): _array(value) for i, value in enumerate(flat) if isinstance(value, Tensor)}


def last(model: TorchModel, output: str) -> Runner:
    """Runs ``model`` for the last position along axis 1 of ``output`` [a, b, c]: the result is [a, 1, c]."""
    number = str(model.graph.outputs.index(output))
    return lambda feeds: {output: run(model)(feeds)[number][:, -1:]}


def tensor(value: Any, example: Any) -> Any:
    """An input of the traced module, of the type of ``example``; what is no tensor there is as it is there."""
    if not isinstance(example, Tensor):
        return example
    return torch.as_tensor(np.asarray(value)).to(example.device, example.dtype)


def _array(value: Tensor) -> Array:
    value = value.detach().cpu()
    return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())


def trials(model: TorchModel, runner: Runner, seed: int = 0, style: int = 0) -> list[Trial]:
    """The example inputs (floating-point ones scaled in later styles)."""
    if model.given:
        return [model.given]
    scale = (1.0, 3.0, 0.3, 10.0)[style]
    feeds = {}
    for name, value in model.inputs.items():
        if isinstance(value, Tensor):
            array = _array(value)
            feeds[name] = array * np.asarray(scale, array.dtype) if array.dtype.kind == "f" else array
        else:
            feeds[name] = np.asarray(0)
    return [({}, feeds)]


def give(model: TorchModel, inputs: Mapping[str, Any]) -> None:
    """Use ``inputs`` (by placeholder name) for every run to come."""
    takes = {name for name, value in model.inputs.items() if isinstance(value, Tensor)}
    if not takes <= set(inputs) <= set(model.inputs):
        raise UsageError(f"the inputs given are {sorted(inputs)}", hint=f"the model takes {sorted(takes)}")
    model.given = {}, {name: np.asarray(value) for name, value in inputs.items()}


def maskable(analysis: Analysis) -> set[Dim]:
    """Atoms for which zeroing can be shown to equal removing."""
    able = {atom.dim for atom in analysis.prunable if not atom.inexact}
    for mask in analysis.facts.masks:
        if not mask.placed:
            able -= set(atoms(mask.dim))
    return able & {atom for mask in analysis.facts.masks for atom in atoms(mask.dim)}


def mask(model: TorchModel, analysis: Analysis, chosen: Chosen) -> TorchModel:
    """The model at full size, with zeros at the removed positions wherever an axis of theirs is summed over."""
    made = clone(model)
    graph = made.traced.graph
    twins = dict(zip(model.traced.graph.nodes, graph.nodes, strict=True))
    for path, wanted in _masks(analysis, chosen):
        made.traced.register_buffer(path, _kept(analysis, wanted, chosen))
        _multiply(made, wanted, twins[model.calls[wanted.node.index].node], path)
    made.traced.recompile()
    return made


def masked(model: TorchModel, analysis: Analysis, dims: Iterable[Dim]) -> Callable[[Chosen], Runner]:
    """For positions of ``dims`` to keep, a function that runs the model as `mask` makes it: one module for all."""
    free = {dim: np.arange(dim.extent) for dim in dims}
    made = mask(model, analysis, free)

    def at(chosen: Chosen) -> Runner:
        kept = {path: _kept(analysis, wanted, chosen) for path, wanted in _masks(analysis, free)}

        def run_masked(feeds: Mapping[str, Array]) -> dict[str, Array]:
            for path, value in kept.items():
                setattr(made.traced, path, value)
            return run(made)(feeds)

        return run_masked

    return at


def _masks(analysis: Analysis, dims: Iterable[Dim]) -> Iterator[tuple[str, Mask]]:
    """Where zeros can be put in place of positions of ``dims``, each under a name."""
    free = dict.fromkeys(dims)
    for number, wanted in enumerate(analysis.facts.masks):
        if touched(wanted.dim, free) and wanted.placed:
            yield f"graphprune_mask_{number}", wanted


def _kept(analysis: Analysis, wanted: Mask, chosen: Chosen) -> Tensor:
    """One where positions stay."""
    whole = np.ones([1] * len(wanted.layout))
    kept = torch.as_tensor(ones(wanted.layout, wanted.axis, chosen) if touched(wanted.dim, chosen) else whole)
    return kept.to(getattr(torch, analysis.graph.values[wanted.node.inputs[wanted.input]].dtype))


def _multiply(made: TorchModel, wanted: Mask, node: Any, path: str) -> None:
    name = wanted.node.inputs[wanted.input]
    source = next(n for n in node.all_input_nodes if _value_name(made, n) == name)
    with made.traced.graph.inserting_before(node):
        held = made.traced.graph.get_attr(path)
        factor = made.traced.graph.call_function(torch.ops.aten.mul.Tensor, (source, held))
    node.replace_input_with(source, factor)


def _value_name(model: TorchModel, node: Any) -> str:
    if node.op == "get_attr":
        tensor = stored(model.traced)
        target = str(node.target)
        if target in tensor:
            return target
        from graphprune.formats.torch.model import attribute

        wanted = attribute(model.traced, target)
        return next((name for name, value in tensor.items() if value is wanted), target)
    if getattr(node.target, "__name__", "") == "getitem":
        return f"{node.args[0].name}.{node.args[1]}"
    return str(node.name)


def unrounded(model: TorchModel) -> None:
    """Quantised modules cannot be read, so that nothing is rounded."""
    del model


def forced(model: TorchModel, graph: Graph) -> dict[str, TorchModel]:
    """Nothing: what hangs on data is frozen."""
    del model, graph
    return {}


def nudge(model: TorchModel, analysis: Analysis, seed: int) -> TorchModel:
    """Every floating-point weight that carries a prunable atom, moved by one unit in the last place."""
    made = clone(model)
    generator = torch.Generator().manual_seed(seed)
    tensors = stored(made.traced)
    for name in {name for atom in analysis.prunable for name in atom.weights}:
        tensor = tensors.get(name)
        if tensor is not None and tensor.is_floating_point():
            signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) * 2 - 1
            set_tensor(made.traced, name, tensor.detach() * (1 + signs * torch.finfo(tensor.dtype).eps))
    return made


def check(model: TorchModel) -> None:
    """The graph is well formed."""
    try:
        model.traced.graph.lint()
    except RuntimeError as error:
        raise VerifyError(f"the traced graph is broken: {error}") from error


def remarks(model: TorchModel, made: TorchModel) -> list[str]:
    """Nothing."""
    del model, made
    return []


def same(a: TorchModel, b: TorchModel) -> bool:
    """Whether two models hold the same tensors."""
    left, right = stored(a.traced), stored(b.traced)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
