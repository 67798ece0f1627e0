"""Torch models written to files: .pt2 and .onnx, from Python and from the command line, and files that are spoilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch

import graphprune
from graphprune.errors import UsageError, VerifyError, WriteError
from models import digits
from tests.command import command
from tests.test_torch import ANY, IDS, MODULES, READ, WRITE, Tiny, called, close, generic, half, noise, shapes

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A .pt2 file of a module with dynamic batch."""
    program = torch.export.export(generic(Tiny()), (noise(2, 4),), dynamic_shapes=({0: ANY},))
    torch.export.save(program, str(tmp_path / "m.pt2"))
    return tmp_path / "m.pt2"


def test_command_line(file: Path) -> None:
    """inspect and prune of a .pt2 file; what was written is smaller, runs, and takes other batch sizes."""
    assert "up" in command("inspect", file).done().out
    dims = command("inspect", file, "--json").done().json
    assert [dim["size"] for dim in dims if dim["prunable"]] == [8]
    out = file.with_name("small.pt2")
    command("prune", file, "-o", out, "--keep", 0.5, "--multiple", 1).done()
    small = torch.export.load(str(out)).module()
    assert shapes(small)["up.weight"] == (4, 4)
    again = half(str(file), None)
    close(called(small, (noise(5, 4),)), called(again.model, (noise(5, 4),)))


@pytest.mark.parametrize("name", ["x.pth", "x"])
def test_command_line_writes_nothing_else(file: Path, name: str) -> None:
    """Other endings are refused, and nothing is left behind."""
    before = sorted(file.parent.iterdir())
    run = command("prune", file, "-o", file.with_name(name), "--keep", 0.5, "--multiple", 1)
    run.refused(WRITE, ".pt2", ".onnx", name)
    assert sorted(file.parent.iterdir()) == before


def test_command_line_writes_onnx(file: Path) -> None:
    """A .pt2 file in, an ONNX file out: it takes other batch sizes and computes what the .pt2 file does."""
    out, twin = file.with_name("small.onnx"), file.with_name("small.pt2")
    for path in (out, twin):
        command("prune", file, "-o", path, "--keep", 0.5, "--multiple", 1).done()
    session = onnxruntime.InferenceSession(str(out))
    (given,) = session.get_inputs()
    x = noise(5, 4)
    found = session.run(None, {given.name: x.numpy()})
    close([torch.as_tensor(value) for value in found], called(torch.export.load(str(twin)).module(), (x,)))


def test_every_number_that_is_no_tensor_is_left_out(tmp_path: Path) -> None:
    """Flags among the arguments are no inputs of the file, and its outputs are those of the module in their order."""
    make, inputs = MODULES["llama"]
    result = half(generic(make()), inputs, verify="none")
    session = onnxruntime.InferenceSession(str(result.save(tmp_path / "m.onnx")))
    found = session.run(None, {value.name: IDS.numpy() for value in session.get_inputs()})
    close([torch.as_tensor(value) for value in found], called(result.model, inputs))


def test_exported(file: Path) -> None:
    """A program that can be exported, run and pruned again, with its dynamic batch."""
    program = half(str(file), None).exported()
    assert isinstance(program, torch.export.ExportedProgram)
    assert called(program.module(), (noise(7, 4),))[0].shape == (7, 3)
    assert half(program, None).report.dense.params < 50
    with pytest.raises(UsageError, match="exported already"):
        graphprune.prune(digits.PATH, keep=0.5).exported()


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter is not trusted: its file is run beside the module."""
    result = half(generic(Tiny()), (noise(2, 4),), verify="none")
    true = torch.onnx.export

    def wrong(program: Any, **how: Any) -> Any:
        made: Any = true(program, **how)
        made.model.graph.initializers["up.bias"].const_value = onnx_ir.tensor(np.ones(4, np.float32))
        return made

    monkeypatch.setattr(torch.onnx, "export", wrong)
    with pytest.raises(VerifyError, match="computes something else"):
        result.save(tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_the_exporter_stumbles_on_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost cause, on one line; nothing is left behind."""

    def broken(*_: Any, **how: Any) -> None:
        try:
            raise ValueError("the cause\nand more")
        except ValueError as error:
            raise RuntimeError("step 2/3") from error

    result = half(generic(Tiny()), (noise(2, 4),), verify="none")
    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(WriteError, match=r"fails: the cause\n") as found:
        result.save(tmp_path / "m.onnx")
    assert "and more" not in str(found.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a zip file"])
def test_spoilt_file(tmp_path: Path, content: bytes) -> None:
    """A file that torch does not read is a ReadError."""
    path = tmp_path / "bad.pt2"
    path.write_bytes(content)
    command("inspect", path).refused(READ, "bad.pt2")


def test_missing_file(tmp_path: Path) -> None:
    """So is one that is not there."""
    command("inspect", tmp_path / "none.pt2").refused(READ, "none.pt2")


def test_save_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A folder that is not there: WriteError."""
    result = half(generic(Tiny()), (noise(2, 4),), verify="none")
    with pytest.raises(WriteError):
        result.save(tmp_path / "none" / "m.pt2")
    assert list(tmp_path.iterdir()) == []
