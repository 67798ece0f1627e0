"""From a module (and example inputs), an ExportedProgram, a .pt2 file or a GraphModule to a traced model."""

from __future__ import annotations

import contextlib
import copy
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphprune.errors import ReadError
from graphprune.formats.torch.model import TorchModel, stored
from graphprune.formats.torch.train import evaluating, trainable


def read(source: Any, example_inputs: Any = None, dynamic_shapes: Any = None) -> TorchModel:
    """Trace ``source`` with torch.export. ``example_inputs`` is a tuple of positional, or a dict of keyword inputs.

    Raises ReadError where torch.export cannot trace the module, with its reason, or where inputs are missing.
    """
    if isinstance(source, str | Path):
        source = _load(Path(source))
    if isinstance(source, torch.export.ExportedProgram):
        args, kwargs = source.example_inputs or ((), {})
        traced = source.module()
        given = args if example_inputs is None else _tuple(example_inputs)
        return replace(_model(traced, given, kwargs, source), dynamic=dynamic_shapes or _dynamic(source))
    if example_inputs is None:
        raise ReadError("a torch module is traced with example inputs", hint="pass example_inputs=(x,) or a dict")
    args, kwargs = ((), dict(example_inputs)) if isinstance(example_inputs, Mapping) else (_tuple(example_inputs), {})
    program = _export(source, args, kwargs, dynamic_shapes)
    return replace(_model(program.module(), args, kwargs, source), dynamic=dynamic_shapes)


def _load(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise ReadError(f"there is no file {path}", hint="check the path")
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tries older layouts in turn, and warns with a traceback at each
    try:
        return torch.export.load(str(path))
    except Exception as error:  # of torch, of zipfile, of json
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ReadError(f"torch.export cannot load {path}: {why}", hint="export it again: torch.export.save") from error
    finally:
        logger.setLevel(level)


def _dynamic(program: torch.export.ExportedProgram) -> Any:
    """The dynamic shapes that ``program`` was exported with, by input; None where all sizes are fixed."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    flat = [_symbolic(values.get(name), program) for name in program.graph_signature.user_inputs]
    if not any(flat):
        return None
    args, kwargs = torch.utils._pytree.tree_unflatten(flat, program.call_spec.in_spec)
    return (*args, *kwargs.values())


def _symbolic(value: Any, program: torch.export.ExportedProgram) -> dict[int, Any] | None:
    found: dict[int, Any] = {}
    for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
        if isinstance(size, torch.SymInt):
            found[axis] = _dimension(size.node.expr, program)
    return found or None


def _dimension(expression: Any, program: torch.export.ExportedProgram) -> Any:
    """A named Dim with its range; where the size is computed from others, torch is to find that out again."""
    limits = program.range_constraints.get(expression)
    if limits is None or not expression.is_symbol:
        return torch.export.Dim.AUTO
    upper = int(limits.upper) if limits.upper.is_finite else None
    return torch.export.Dim(str(expression), min=int(limits.lower), max=upper)


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any) -> Any:
    try:
        with evaluating(module):
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch.export raises many kinds
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise ReadError(
            f"torch.export cannot trace {type(module).__name__}: {' '.join(lines[:3])[:500]}{_user_code(error)}",
            hint="check the example inputs; quantise after pruning, not before; for control flow that depends on data "
            "see torch.export's documentation",
        ) from error


def _user_code(error: BaseException) -> str:
    """The innermost line that is neither torch's, nor Python's, nor ours."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    python = str(Path(contextlib.__file__).parent)
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(ours) and (not f.filename.startswith(python) or "site-packages" in f.filename)
    ]
    return f"; at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _model(traced: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any], source: Any) -> TorchModel:
    empty = [name for name, tensor in stored(traced).items() if tensor.is_meta]
    if empty:
        raise ReadError(f"{empty[0]!r} is on the meta device and holds no numbers", hint="load the weights first")
    traced = copy.deepcopy(traced)
    inline(traced)
    store_ranges(traced)
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and str(node.target) == "_guards_fn":
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code(lambda node: node.op == "get_attr" or node.is_impure())
    traced = trainable(traced)
    traced.recompile()
    flat, _ = torch.utils._pytree.tree_flatten((tuple(args), dict(kwargs)))
    places = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    return TorchModel(traced, dict(zip(places, flat, strict=False)), source, (tuple(args), dict(kwargs)))


def store_ranges(traced: fx.GraphModule) -> None:
    """Make every ``arange`` over fixed bounds a buffer: numbers along a Dim (slopes of heads) are cut like weights."""
    for number, node in enumerate(list(traced.graph.nodes)):
        if getattr(node.target, "overloadpacket", None) is not torch.ops.aten.arange or node.all_input_nodes:
            continue
        name = f"range_{number}"
        traced.register_buffer(name, node.target(*node.args, **node.kwargs), persistent=False)
        with traced.graph.inserting_before(node):
            held = traced.graph.get_attr(name)
        held.meta = dict(node.meta)
        node.replace_all_uses_with(held)
        traced.graph.erase_node(node)


def inline(traced: fx.GraphModule) -> None:
    """Put the bodies of wrap_with_set_grad_enabled and wrap_with_autocast in the place of their calls."""
    for node in list(traced.graph.nodes):
        name = getattr(node.target, "__name__", "") or str(node.target)
        if node.op != "call_function" or "wrap_with_" not in name:
            continue
        position = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
        body = getattr(traced, str(node.args[position].target))
        inline(body)
        mapping = dict(
            zip((n for n in body.graph.nodes if n.op == "placeholder"), node.args[position + 1 :], strict=True)
        )
        with traced.graph.inserting_before(node):
            outputs = traced.graph.graph_copy(body.graph, mapping)
        for inner, made in mapping.items():
            if isinstance(made, fx.Node) and inner.op == "get_attr":
                _adopt(traced, body, made)
        listed = outputs if isinstance(outputs, list | tuple) else (outputs,)
        for user in list(node.users):
            user.replace_all_uses_with(listed[user.args[1]])
            traced.graph.erase_node(user)
        traced.graph.erase_node(node)


def _adopt(traced: fx.GraphModule, body: fx.GraphModule, node: fx.Node) -> None:
    name = f"inlined_{node.name}"
    setattr(traced, name, getattr(body, str(node.target)))
    node.target = name
