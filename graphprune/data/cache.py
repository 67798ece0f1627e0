"""What took long to compute, kept on disk: arrays under a key that says what they were made from.

A file that is damaged counts as absent and is written anew; a cache that cannot be written is no cache.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from graphprune.graph import Array, Graph
from graphprune.plan import fingerprint

LIMIT = 4 << 30
"""Bytes that the folder may hold; what was not used for longest goes first."""


def folder() -> Path:
    """In $GRAPHPRUNE_CACHE, or ~/.cache/graphprune."""
    return Path(os.environ.get("GRAPHPRUNE_CACHE") or "~/.cache/graphprune").expanduser() / "statistics"


def model_key(graph: Graph) -> str:
    """A hash of a model: its structure, and every weight."""
    digest = hashlib.blake2b(fingerprint(graph).encode(), digest_size=16)
    for name, weight in graph.weights.items():
        digest.update(f"{name} {weight.dtype} {weight.shape}".encode())
        digest.update(np.ascontiguousarray(weight.load()).view(np.uint8).data if weight.size else b"")
    return digest.hexdigest()


def data_key(batches: Iterable[Mapping[str, Array]]) -> str:
    """A hash of batches of inputs."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for name, array in batch.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b"next")
    return digest.hexdigest()


def code_key(*functions: Callable[..., Any]) -> str:
    """A hash of the files that functions are written in: what older code computed is not found again."""
    digest = hashlib.blake2b(digest_size=16)
    for function in functions:
        with suppress(OSError, TypeError):
            digest.update(Path(inspect.getfile(getattr(function, "func", function))).read_bytes())
    return digest.hexdigest()


def remembered(made_from: Iterable[object], make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """The arrays that ``make`` returned for the same ``made_from`` before, or returns now."""
    words = "\n".join(map(str, made_from))
    path = folder() / f"{hashlib.blake2b(words.encode(), digest_size=16).hexdigest()}.npz"
    with suppress(OSError, ValueError, EOFError, KeyError, BadZipFile), np.load(path) as held:
        found = {name: held[name] for name in held.files}
        path.touch()
        return found
    made = make()
    with suppress(OSError):
        _write(path, made)
    return made


def _write(path: Path, made: dict[str, Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with half.open("wb") as file:
            np.savez(file, **made)  # type: ignore[arg-type]
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    _trim(path.parent)


def _trim(path: Path) -> None:
    oldest = sorted(path.glob("*.npz"), key=lambda file: file.stat().st_mtime)
    sizes = [file.stat().st_size for file in oldest]
    while len(sizes) > 1 and sum(sizes) > LIMIT:
        oldest.pop(0).unlink()
        sizes.pop(0)
