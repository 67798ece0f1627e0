"""Writing a traced module: exported again, as .pt2 or through torch.onnx.export, beside the target and renamed."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphprune.errors import GraphpruneError, VerifyError, WriteError
from graphprune.formats import onnx
from graphprune.formats.torch.model import TorchModel
from graphprune.formats.torch.proof import run, trials
from graphprune.formats.torch.train import evaluating
from graphprune.graph import Array

_TOLERANCE = 1e-3
"""The exporter folds and reorders sums; a file whose outputs differ by more is not written."""


def exported(model: TorchModel) -> torch.export.ExportedProgram:
    """The model exported again, with the dynamic shapes it was traced with."""
    args, kwargs = model.called
    with evaluating(model.traced):
        return torch.export.export(model.traced, args, kwargs, dynamic_shapes=model.dynamic, strict=False)


def save(model: TorchModel, path: str | Path, progress: Callable[[float], None] | None = None) -> Path:
    """Export again and write a .pt2 or an .onnx file. VerifyError where the .onnx file computes something else."""
    path = Path(path)
    if path.suffix == ".onnx":
        return onnx.save(_as_onnx(model), path, progress)
    if path.suffix != ".pt2":
        raise WriteError(f"a torch model is written as .pt2 or .onnx, not as {path.name}", hint=f"say {path.stem}.pt2")
    half = path.with_name(f"{path.name}.{os.getpid()}.partial.pt2")
    try:
        torch.export.save(exported(model), str(half))
        half.replace(path)
    except (OSError, RuntimeError) as error:
        raise WriteError(f"cannot write {path}: {error}", hint="check the folder and the free space") from error
    finally:
        half.unlink(missing_ok=True)
    return path


def disk_bytes(path: Path) -> int:
    """Bytes of the file."""
    return path.stat().st_size


def _as_onnx(model: TorchModel) -> onnx.OnnxModel:
    """The model as torch.onnx.export writes it, run beside the module on the same inputs."""
    try:
        with _quiet():
            program: Any = torch.onnx.export(exported(model), dynamo=True, verbose=False)
        made = onnx.read(program.model_proto)
    except ModuleNotFoundError as error:
        raise WriteError("torch.onnx.export needs onnxscript", hint="pip install onnxscript") from error
    except GraphpruneError:
        raise
    except Exception as error:  # torch.onnx.export raises many kinds
        raise WriteError(f"torch.onnx.export fails: {_cause(error)}", hint="write a .pt2 file instead") from error
    runner = run(model)
    (_, feeds), *_ = trials(model, runner)
    expected = list(runner(feeds).values())
    given = dict(zip(made.graph.inputs, (feeds[name] for name in _tensors(model)), strict=True))
    found = list(onnx.run(made)(given).values())
    apart = _apart(expected, found)
    if not apart <= _TOLERANCE:
        raise VerifyError(
            f"the file of torch.onnx.export computes something else than the module (error {apart:.1e})",
            hint="write a .pt2 file instead, and report this with the model",
        )
    return made


def _cause(error: BaseException) -> str:
    """The first line of what the exporter stumbled on."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _tensors(model: TorchModel) -> Iterator[str]:
    """Names of the inputs that are tensors; numbers and None are part of the graph."""
    return (name for name, value in model.inputs.items() if isinstance(value, torch.Tensor))


def _apart(expected: list[Array], found: list[Array]) -> float:
    """The largest difference over all outputs, relative to the largest number of its output."""
    if [a.shape for a in expected] != [b.shape for b in found]:
        return float("inf")
    pairs = ((np.float64(a), np.float64(b)) for a, b in zip(expected, found, strict=True) if a.size)
    return max((float(np.abs(a - b).max() / (np.abs(a).max() or 1)) for a, b in pairs), default=0.0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs what torchvision would have added, and prints steps with colours."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
