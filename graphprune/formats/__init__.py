"""Formats: a place each with four verbs, ``read, apply, run, save``, and what proofs need beside them.

Nothing outside a format knows what a file looks like; the rest of the package talks to the `Format` below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from graphprune.analysis import Analysis
from graphprune.consumers import Site
from graphprune.dims import Chosen, Dim
from graphprune.errors import ReadError
from graphprune.graph import Array, Graph
from graphprune.stats import Batches, Moments

Feeds = Mapping[str, Array]
Runner = Callable[[Feeds], dict[str, Array]]
Trial = tuple[dict[str, int], dict[str, Array]]


class Model(Protocol):
    """What every format's model has: the format-free view, its size, inputs that the user gave."""

    given: Trial | None

    @property
    def graph(self) -> Graph: ...
    @property
    def bytes(self) -> int: ...
    @property
    def large(self) -> bool: ...
    def data_files(self) -> set[Path]: ...


class Format(Protocol):
    """A module with these functions is a format."""

    def read(self, source: Any, **how: Any) -> Any: ...
    def apply(self, model: Any, analysis: Analysis, chosen: Chosen) -> Any: ...
    def save(self, model: Any, path: str | Path, progress: Callable[[float], None] | None = None) -> Path: ...
    def run(self, model: Any, *, threads: int = 1) -> Runner: ...
    def trials(self, model: Any, runner: Runner, seed: int = 0, style: int = 0) -> list[Trial]: ...
    def mask(self, model: Any, analysis: Analysis, chosen: Chosen) -> Any: ...
    def maskable(self, analysis: Analysis) -> set[Dim]: ...
    def nudge(self, model: Any, analysis: Analysis, seed: int) -> Any: ...
    def moments(self, model: Any, sites: Sequence[Site], batches: Batches) -> dict[Site, Moments]: ...
    def replaced(self, model: Any, values: Mapping[str, Array]) -> Any: ...
    def check(self, model: Any) -> None: ...
    def give(self, model: Any, inputs: Mapping[str, Any]) -> None: ...
    def native(self, model: Any) -> Any: ...
    def exported(self, model: Any) -> Any: ...
    def disk_bytes(self, path: Path) -> int: ...
    def cut_in_place(self, model: Any, pruned: Any, analysis: Analysis, chosen: Chosen) -> Any: ...
    def gradients(self, model: Any, loss: Any, batches: Any) -> Any: ...
    def vocabulary(self) -> list[tuple[str, str, str]]: ...
    def same(self, a: Any, b: Any) -> bool: ...


def of(source: Any) -> Format:
    """The format that reads ``source``: a path, or a model already in memory."""
    module = type(source).__module__.partition(".")[0]
    bases = {base.__module__.partition(".")[0] for base in type(source).__mro__}
    if "torch" in bases or (isinstance(source, str | Path) and str(source).endswith(".pt2")):
        return _torch()
    if isinstance(source, str | Path) or module == "onnx":
        return import_module("graphprune.formats.onnx")
    raise ReadError(
        f"cannot read a {type(source).__module__}.{type(source).__qualname__}",
        hint="pass the path of an .onnx or .pt2 file, an onnx.ModelProto, or a torch module with example_inputs",
    )


def _torch() -> Format:
    try:
        return import_module("graphprune.formats.torch")
    except ModuleNotFoundError as error:
        raise ReadError("torch models need torch", hint='pip install "graphprune[torch]"') from error
