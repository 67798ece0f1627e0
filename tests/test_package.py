"""The package as a user gets it: installed into an environment of its own that has what it asks for, and no torch.

So that this takes seconds, what it asks for is not downloaded but linked from the environment the tests run in: those
distributions only that the metadata of the built package names, and what they need in turn.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from models import digits

ROOT = Path(__file__).parent.parent
LOADED = "import sys, graphprune; print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with graphprune in it."""
    home = tmp_path_factory.mktemp("package") / "venv"
    venv.create(home, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", str(ROOT)], check=True, cwd=home)
    (site,) = home.glob("lib/python*/site-packages")
    (package,) = metadata.distributions(name="graphprune", path=[str(site)])
    for name in _needed(package):
        _link(metadata.distribution(name), site)
    return home


def _needed(package: metadata.Distribution) -> set[str]:
    """The names of all distributions that ``package`` needs, without extras."""
    found: set[str] = set()
    todo = [Requirement(line) for line in package.requires or ()]
    while todo:
        need = todo.pop()
        name = re.sub(r"[-_.]+", "-", need.name).lower()
        if name not in found and (need.marker is None or need.marker.evaluate({"extra": ""})):
            found.add(name)
            todo += [Requirement(line) for line in metadata.requires(name) or ()]
    return found


def _link(package: metadata.Distribution, site: Path) -> None:
    for top in {Path(file).parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
        source = Path(str(package.locate_file(top)))
        if source.exists() and not (site / top).exists():
            (site / top).symlink_to(source)


def _run(*command: str | Path, folder: Path) -> str:
    """What a command prints, run in ``folder`` with nothing of the checkout in reach."""
    around = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_prunes_a_file_in_another_folder(home: Path, tmp_path: Path) -> None:
    shutil.copy(digits.PATH, tmp_path / "digits.onnx")
    command = home / "bin" / "graphprune"
    told = _run(command, "prune", "digits.onnx", "-o", "small.onnx", "--macs", "0.5", "--json", folder=tmp_path)
    report = json.loads(told)
    assert report["verified"]
    assert report["pruned"]["macs"] <= 0.5 * report["dense"]["macs"]
    assert (tmp_path / "small.onnx").stat().st_size < 0.6 * digits.PATH.stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"digits.onnx", "small.onnx"}
    assert "passed permutation" in _run(command, "verify", "small.onnx", folder=tmp_path)


def test_package_is_whole_and_has_no_torch(home: Path, tmp_path: Path) -> None:
    python = home / "bin" / "python"
    place, torch = _run(
        *(
            python,
            "-c",
            "import graphprune, importlib.util as u; print(graphprune.__file__); print(u.find_spec('torch'))",
        ),
        folder=tmp_path,
    ).splitlines()
    assert Path(place).is_relative_to(home)
    assert torch == "None"
    listed = json.loads(_run(python, "-m", "graphprune", "ops", "--json", folder=tmp_path))
    assert sum(row["status"] == "rule" for row in listed) >= 120


def test_package_holds_the_library_only(home: Path) -> None:
    (site,) = home.glob("lib/python*/site-packages")
    (package,) = metadata.distributions(name="graphprune", path=[str(site)])
    tops = {Path(file).parts[0] for file in package.files or ()}
    assert tops == {"..", "graphprune", f"graphprune-{package.version}.dist-info"}  # ".." is bin/graphprune
    assert (site / "graphprune" / "py.typed").exists()
    assert not [need for need in package.requires or () if "torch" in need and "extra ==" not in need]


def test_import_is_light(tmp_path: Path) -> None:
    """Where torch and onnx are installed, neither is imported before a model is read."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {LOADED}"
    assert _run(sys.executable, "-c", code, folder=tmp_path).strip() == "[]"
