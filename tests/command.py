"""The command line as tests drive it, in this process through ``main`` or in one of its own; what a folder holds."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from graphprune.cli import main

SCREEN = 2000
"""Characters that fit on one screen of a terminal."""


@dataclass(frozen=True)
class Run:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)

    def done(self) -> Run:
        """This run, which must have gone well and kept standard error empty."""
        assert (self.code, self.err) == (0, ""), self
        return self

    def refused(self, code: int, *words: str) -> Run:
        """This run, which must have ended with ``code`` and one message that says each of ``words``."""
        assert self.code == code, self
        assert self.out == "", self
        assert "Traceback" not in self.err, self
        assert 0 < len(self.err) < SCREEN, self
        assert self.err.startswith(("graphprune: ", "Usage: ")), self
        assert self.err.count("graphprune: ") <= 1, self
        for word in words:
            assert word in self.err, (word, self)
        return self


def command(*args: object) -> Run:
    """``graphprune ARGS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with mock.patch.object(sys, "argv", ["graphprune", *map(str, args)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert code is None or isinstance(code, int)
    return Run(code or 0, out.getvalue(), err.getvalue())


def process(*args: object, **options: Any) -> Run:
    """``python -m graphprune ARGS`` in a process of its own."""
    line = [sys.executable, "-m", "graphprune", *map(str, args)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, **options)
    return Run(ended.returncode, ended.stdout, ended.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Nothing below ``folder`` is made, changed or removed meanwhile."""
    before = contents(folder)
    yield
    after = contents(folder)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == []
