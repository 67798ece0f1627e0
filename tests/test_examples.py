"""The programs in examples/ run as they are started by a user, and what they print makes sense."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_FIGURE = re.compile(r"^([\w-]+):\s+([\d.]+)(%?)", re.MULTILINE)


def run(name: str, *options: str) -> dict[str, float]:
    """The figures that an example prints, by stage; shares are between 0 and 1."""
    command = [sys.executable, "-m", f"examples.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {stage: float(value) / (100 if share else 1) for stage, value, share in _FIGURE.findall(done.stdout)}


def test_plain(tmp_path: Path) -> None:
    found = run("finetune_plain", "--epochs", "1", "--out", str(tmp_path))
    assert found["left"] <= 0.5
    assert found["cut"] + 0.2 < found["re-estimated"] < found["fine-tuned"]
    assert found["fine-tuned"] > 0.95
    assert {path.name for path in tmp_path.iterdir()} == {"digits-small.pt2", "digits-small.pt"}


def test_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    found = run("finetune_trainer", "--each", "400", "--out", str(tmp_path))
    assert found["left"] <= 0.5
    assert found["dense"] > 0.4  # of four packages
    assert found["fine-tuned"] > found["cut"]


def test_distillation() -> None:
    found = run("distill", "--epochs", "3")
    assert found["left"] <= 0.3
    assert found["cut"] < 0.5 < 0.9 < found["distilled"] <= found["teacher"]


def test_every_example_is_run_here() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__"}
    assert names == set(re.findall(r"run\(\"(\w+)\"", Path(__file__).read_text()))
