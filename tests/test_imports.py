"""The folder reads in the order data flows: imports go one way, and the core knows no format."""

from __future__ import annotations

import ast
import doctest
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import graphprune
from graphprune.rules import registry

ROOT = Path(graphprune.__file__).parent
ORDER = (
    "errors", "memory", "memo", "graph", "classes", "integers", "dims", "signature", "rules", "values", "nesting",
    "analysis", "consumers", "stats", "propagate", "compensate", "sequential", "scores", "liveness", "cost",
    "allocate", "budget", "places", "plan", "latency", "formats", "data", "verify", "tried", "helpful", "trace",
    "explain", "pictures", "sensitivity", "report", "smallest", "pareto", "loaded", "profile", "pipeline",
    "iterate", "survey", "catalogue", "terminal", "options", "cli", "__init__", "__main__",
)  # fmt: skip
"""Data flows from the left to the right; a module imports what is left of it (its own package counts as one)."""
OUTSIDE = ("onnx", "onnx_graphsurgeon", "onnxruntime", "torch")
"""What only formats may import; nobody does when graphprune itself is imported."""
MODULES = sorted(path for path in ROOT.rglob("*.py"))


def stage(name: str) -> str:
    """The stage that a module belongs to: ``graphprune.rules.conv`` to rules, graphprune itself comes last."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def dotted(path: Path) -> str:
    """The name of the module in the file ``path``."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" else parts[:-1])


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: imports are absolute"
            yield from _from(node.module, [alias.name for alias in node.names])


def _from(module: str, names: list[str]) -> Iterator[str]:
    """``from graphprune import formats`` imports graphprune.formats; other names are in the module itself."""
    for name in names:
        file = ROOT.parent / Path(*module.split("."), f"{name}.py")
        package = ROOT.parent / Path(*module.split("."), name, "__init__.py")
        yield f"{module}.{name}" if file.is_file() or package.is_file() else module


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_go_one_way(path: Path) -> None:
    here = stage(dotted(path))
    assert here in ORDER, f"{here} has no place in the order: say where data flows through it"
    for name in imported(path):
        if name.partition(".")[0] == "graphprune":
            assert ORDER.index(stage(name)) <= ORDER.index(here), f"{dotted(path)} imports {name}, which comes after it"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_formats_know_a_format(path: Path) -> None:
    if stage(dotted(path)) != "formats" or path == ROOT / "formats" / "__init__.py":
        found = {name.partition(".")[0] for name in imported(path)} & set(OUTSIDE)
        assert not found, f"{dotted(path)} imports {', '.join(found)}"


def test_the_order_is_not_empty() -> None:
    """The test sees imports at all: verify rests on formats, the ONNX format on onnx."""
    assert "graphprune.formats" in set(imported(ROOT / "verify.py"))
    assert "onnx" in set(imported(ROOT / "formats" / "onnx" / "read.py"))
    assert "graphprune.formats" in set(imported(ROOT / "loaded.py"))


def test_a_fresh_import_is_light() -> None:
    code = f"import sys, graphprune; print([m for m in {OUTSIDE!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent, timeout=60
    )
    assert done.stdout.strip() == "[]"


def _names() -> list[str]:
    """All modules of the package but the ones that need torch, and the command line's entry."""
    found = pkgutil.walk_packages([str(ROOT)], "graphprune.")
    return [m.name for m in found if not any(part in m.name for part in ("torch", ".lift", "__main__"))]


@pytest.mark.parametrize("name", ["graphprune", *_names()])
def test_doctests(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples in docstrings run; the rules they register do not stay."""
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    failed, _ = doctest.testmod(import_module(name))
    assert failed == 0


def test_there_are_doctests() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    count = sum(bool(test.examples) for name in _names() for test in finder.find(import_module(name)))
    assert count >= 8
