"""docs/runtimes.md: how a cut file is judged in another runtime, and one that is run there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from models import digits
from tools.bench_runtimes import (
    DIFFERS,
    EQUAL,
    FAILS,
    ROUNDED,
    RUNTIMES,
    SILENT,
    UNABLE,
    UNLIKE,
    Row,
    attempt,
    cells,
    compared,
    page,
    prepare,
    read,
    totals,
    verdict,
)

INFINITE = float("inf")


@pytest.mark.parametrize(
    ("dense", "half", "expected"),
    [
        (1e-6, 2e-6, EQUAL),
        (5e-3, 4e-3, ROUNDED),
        (1e-6, 2e-3, DIFFERS),
        (1e-6, INFINITE, FAILS),
        (1e-6, "killed by SIGSEGV", FAILS),
        (2e-3, 5e-3, UNLIKE),
        (2e-1, 1e-1, UNLIKE),
        ("no kernel", "no kernel", UNABLE),
        (INFINITE, 1e-6, UNABLE),
    ],
)
def test_a_cut_file_is_held_against_the_dense_one(dense: float | str, half: float | str, expected: str) -> None:
    row = Row("some", moved=1.0, dense={"tract": dense}, half={"tract": half})
    assert verdict(row, "tract") == expected
    assert cells(row, "tract").count(" |") == 1
    assert ("**" in cells(row, "tract")) == (expected in (DIFFERS, FAILS, UNLIKE))


def test_outputs_that_hardly_move_are_not_equal() -> None:
    """A difference is small only beside what other inputs change."""
    assert verdict(Row("some", moved=1e-4, dense={"tract": 1e-6}, half={"tract": 9e-5}), "tract") == SILENT


def test_rounding_in_onnx_runtime_itself_counts() -> None:
    row = Row("some", moved=1.0, rounding=1e-3, dense={"tract": 1e-6}, half={"tract": 5e-3})
    assert verdict(row, "tract") == ROUNDED


def test_rows_are_kept(tmp_path: Path) -> None:
    """The last line of a graph counts, and every graph has its line in the page."""
    row = Row("b", nodes=3, before=10, after=5, moved=1.0, dense={"tract": 0.0}, half={"tract": 0.0})
    lines = [Row("a", "of more than 200 MB"), Row("b", "not yet"), row]
    (tmp_path / "state").write_text("".join(json.dumps(asdict(each)) + "\n" for each in lines))
    found = [*read(tmp_path / "state").values()]
    assert found == [lines[0], row]
    assert [*totals([row])][-1].startswith("| tract | 1 | 1 | 0 | 0 |")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_runtime(runtime: str, tmp_path: Path) -> None:
    """Half of the digits CNN computes there what it does in ONNX Runtime."""
    pytest.importorskip(runtime)
    row = Row("digits", **prepare(digits.PATH, tmp_path))  # type: ignore[arg-type]
    attempt(runtime, tmp_path)
    assert row.after < row.before / 2
    for file, found in (("dense.onnx", row.dense), ("half.onnx", row.half)):
        found[runtime] = compared(tmp_path, file, runtime, "")
    assert verdict(row, runtime) == EQUAL
    assert "| digits |" in "\n".join(page([row]))
