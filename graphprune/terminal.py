"""What the command line prints, draws and writes: tables, JSON, progress bars, text files, and one message an error.

Results go to standard output, everything else to standard error; progress bars show only on a terminal. A file that a
run reads is never a file that it writes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from graphprune.errors import GraphpruneError, UsageError, WriteError, printable

INTERRUPTED = 130
err = Console(stderr=True, soft_wrap=True)
out = Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=150)
page = Console() if sys.stdout.isatty() else Console(width=150)


class Stopped(BaseException):
    """Ctrl-C, under a name of its own: what command-line libraries make of KeyboardInterrupt differs by version."""


@contextmanager
def messages() -> Iterator[None]:
    """Every error of ours, a failing disk and Ctrl-C become one message and an exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except GraphpruneError as error:
        _exit(str(error), error.exit_code)
    except (Stopped, KeyboardInterrupt):
        _exit("stopped; no partial file is left", INTERRUPTED)
    except MemoryError:
        _exit("out of memory\nWhat to do: close other programs, or use a machine with more memory", 1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  what waits in the old one can go nowhere
        message = f"reading or writing failed: {error.strerror or error}{where}"
        _exit(f"{message}\nWhat to do: check the disk and its free space", WriteError.exit_code)
    finally:
        _pressed.clear()
        signal.signal(signal.SIGINT, before)


_pressed: list[bool] = []


def _stop(number: int, frame: object) -> NoReturn:
    _pressed.append(True)
    raise Stopped


def listen() -> None:
    """Stop here if Ctrl-C was pressed and went unheard: Python drops what is raised in a callback of its own."""
    if _pressed:
        raise Stopped


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of this."""
    before = signal.signal(signal.SIGINT, lambda number, frame: _pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    listen()


def _exit(message: str, code: int) -> NoReturn:
    err.print(Text(f"graphprune: {printable(message)}"))
    sys.exit(code)


def guard(sources: Sequence[Path], targets: Sequence[Path | None], hint: str = "choose another name") -> None:
    """Refuse, before any work is done, targets that cannot be written, are read by the run, or are named twice."""
    wanted = [target for target in targets if target is not None]
    for i, target in enumerate(wanted):
        if target.is_dir():
            raise WriteError(f"{target} is a folder", hint="name the file to write")
        if not target.parent.is_dir():
            raise WriteError(f"there is no folder {target.parent}", hint="make it first")
        if any(_same(source, target) for source in sources):
            raise UsageError(f"the output {target} is the input itself, or a file that this run reads", hint=hint)
        if any(_same(other, target) for other in wanted[:i]):
            raise UsageError(f"two outputs are to be written to {target}", hint="give each a name of its own")
        if not os.access(target.parent, os.W_OK):
            raise WriteError(f"cannot write {target}: permission denied", hint="choose another folder")


def _same(a: Path, b: Path) -> bool:
    return a.samefile(b) if a.exists() and b.exists() else a.resolve() == b.resolve()


def write(path: Path, text: str) -> None:
    """Write beside and rename, as models are written; into pipes and devices straight."""
    half = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            half.write_text(text, encoding="utf-8")
            os.replace(half, path)
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {error.strerror}", hint="check the folder, its permissions and the free space"
        ) from error
    finally:
        with suppress(OSError):
            half.unlink()


def print_page(content: RenderableType) -> None:
    """A table or a report, as wide as the terminal."""
    page.print(content)


def print_line(text: str, style: str = "") -> None:
    """A line as it stands, however long."""
    out.print(Text(printable(text), style=style))


def print_json(data: Any) -> None:
    """``data`` as JSON."""
    sys.stdout.write(json.dumps(data, indent=1) + "\n")


def print_rows(rows: Sequence[Mapping[str, Any]], right: Iterable[str] = (), title: str | None = None) -> None:
    """A table with a column a key; the columns in ``right`` hold numbers."""
    table = Table(title=title)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else printable(str(cell))) for cell in row.values()))
    print_page(table)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, float], None]]:
    """A bar a stage on standard error, on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=done)

        yield update
