"""The command line: ``graphprune inspect | plan | apply | prune | verify | ops | scores``.

Errors are one message on standard error and a non-zero exit code; results go to standard output; progress bars show
only on a terminal. Nothing is written before verification has passed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from graphprune import catalogue
from graphprune.budget import Request
from graphprune.errors import GraphpruneError, UsageError, WriteError
from graphprune.explain import network
from graphprune.pipeline import VERIFY, Loaded, Result, load
from graphprune.pipeline import verify as verify_model
from graphprune.plan import Plan
from graphprune.verify import Check

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Shrink exported neural networks by structured pruning, with a proof that the surgery is right.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
err = Console(stderr=True, soft_wrap=True)
out = Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=150)
page = Console() if sys.stdout.isatty() else Console(width=150)

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file to read.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the smaller model.")]
Keep = Annotated[float | None, typer.Option(help="Share of every Dim that stays, such as 0.5.")]
Params = Annotated[float | None, typer.Option(help="Parameters that stay: a share up to 1, or a count.")]
Macs = Annotated[float | None, typer.Option(help="Multiply-accumulates that stay: a share up to 1, or a count.")]
ScoreName = Annotated[str, typer.Option("--score", help="How positions are ranked; see graphprune scores.")]
Multiple = Annotated[int, typer.Option(help="Round the sizes of large Dims to this multiple (1: exact).")]
Floor = Annotated[float, typer.Option(help="Least share of a Dim that stays.")]
Include = Annotated[list[str] | None, typer.Option(help="Cut only Dims whose dim, weight or node name matches.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Leave Dims alone whose dim, weight or node name matches.")]
Allow = Annotated[list[str] | None, typer.Option(help="Also cut: hidden (residual stream), head-size, or all.")]
Seed = Annotated[int, typer.Option(help="Seed of random scores, inputs and permutations.")]
Calib = Annotated[Path | None, typer.Option(help="Inputs for proof and drift: an .npz with one array an input.")]
VerifyMode = Annotated[str, typer.Option("--verify", help="full, structure (nothing is run) or none.")]
Force = Annotated[bool, typer.Option(help="Write even if nothing was cut, or over the input.")]
ReportPath = Annotated[Path | None, typer.Option("--report", help="Also write the report: .json, .html, .md or .txt.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def inspect(
    model: ModelPath,
    explain: Annotated[str | None, typer.Option(help="Why these tensors share a Dim, or what froze it.")] = None,
    as_json: AsJson = False,
    graphml: Annotated[Path | None, typer.Option(help="Write dims and weights as GraphML.")] = None,
    dot: Annotated[Path | None, typer.Option(help="Write dims and weights as DOT.")] = None,
) -> None:
    """List every Dim of a model: what it is, where it lives, what it is worth, and why it is frozen if it is."""
    loaded = load(model)
    if graphml or dot:
        _write_network(loaded, graphml, dot)
    elif explain:
        out.print(Text(loaded.explain(explain)))
    elif as_json:
        _json(loaded.dims())
    else:
        _print_dims(loaded)


@app.command()
def plan(
    model: ModelPath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the plan (default: print it).")
    ] = None,
    keep: Keep = None,
    params: Params = None,
    macs: Macs = None,
    score: ScoreName = "l2",
    multiple: Multiple = 8,
    floor: Floor = 0.1,
    include: Include = None,
    exclude: Exclude = None,
    allow: Allow = None,
    seed: Seed = 0,
) -> None:
    """Choose what to cut, and write it down as JSON without cutting anything."""
    request = _request(keep, params, macs, multiple, floor, include, exclude, allow)
    with _progress() as progress:
        made = load(model).plan(request, score, seed=seed, progress=progress)
    if output:
        _write(output, made.to_json())
    else:
        sys.stdout.write(made.to_json())


@app.command()
def apply(
    model: ModelPath,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan made by graphprune plan.")],
    output: Output,
    verify: VerifyMode = "full",
    calib: Calib = None,
    report: ReportPath = None,
    as_json: AsJson = False,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Cut a model as a plan says, prove it, and write it."""
    _check_output(model, output, force)
    chosen, loaded = Plan.load(plan_file), load(model, inputs=_inputs(calib))
    _finish(loaded, chosen, model, output, verify, report, as_json, seed, force)


@app.command()
def prune(
    model: ModelPath,
    output: Output,
    keep: Keep = None,
    params: Params = None,
    macs: Macs = None,
    score: ScoreName = "l2",
    multiple: Multiple = 8,
    floor: Floor = 0.1,
    include: Include = None,
    exclude: Exclude = None,
    allow: Allow = None,
    calib: Calib = None,
    plan_out: Annotated[Path | None, typer.Option("--plan-out", help="Also write the plan.")] = None,
    report: ReportPath = None,
    as_json: AsJson = False,
    verify: VerifyMode = "full",
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Shrink a model: plan, cut, prove, report."""
    _check_output(model, output, force)
    request = _request(keep, params, macs, multiple, floor, include, exclude, allow)
    loaded = load(model, inputs=_inputs(calib))
    with _progress() as progress:
        made = loaded.plan(request, score, seed=seed, progress=progress)
    if plan_out:
        _write(plan_out, made.to_json())
    _finish(loaded, made, model, output, verify, report, as_json, seed, force)


@app.command()
def verify(
    model: ModelPath,
    pruned: Annotated[Path | None, typer.Argument(help="A model that was cut from MODEL by --plan.")] = None,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="The plan that PRUNED was cut by.")] = None,
    calib: Calib = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Prove that the Dims of a model are coupled as analysed, or that a cut model is what its plan asked for."""
    inputs = _inputs(calib)
    if pruned is None:
        checks = verify_model(model, inputs=inputs, seed=seed)
    else:
        if plan_file is None:
            raise UsageError("a pruned model needs the plan it was cut by", hint="give --plan plan.json")
        loaded = load(model, inputs=inputs)
        result = loaded.apply(Plan.load(plan_file), seed=seed, latency=False)
        same = loaded.format.same(result.pruned, loaded.format.read(pruned))
        detail = f"{pruned} is {'' if same else 'not '}what the plan makes of {model}"
        checks = [*result.report.checks, Check("same file", same, detail)]
    _print_checks(checks, as_json)
    if not all(check.passed for check in checks):
        raise typer.Exit(6)


@app.command()
def ops(as_json: AsJson = False) -> None:
    """List every op of the ONNX standard: its rule as an axis text, or why it is frozen."""
    _print_catalogue(catalogue.ops(), as_json)


@app.command()
def scores(as_json: AsJson = False) -> None:
    """List the scores: what each needs, and the paper it comes from."""
    _print_catalogue(catalogue.scores(), as_json)


def _finish(
    loaded: Loaded,
    plan: Plan,
    model: Path,
    output: Path,
    verify: str,
    report: Path | None,
    as_json: bool,
    seed: int,
    force: bool,
) -> None:
    if verify not in VERIFY:
        raise UsageError(f"there is no verification {verify!r}", hint=f"choose one of {', '.join(VERIFY)}")
    with _progress() as progress:
        result = loaded.apply(plan, verify=verify, seed=seed, progress=progress)
        if plan.cuts or force:
            result.save(output, lambda done: progress("writing", done))
            _measure_files(loaded, result, model, output)
    if report:
        _write(report, result.report.render(report.suffix))
    if as_json:
        print(result.report.to_json())
    else:
        page.print(result.report)
        done = (
            f"wrote {output}"
            if plan.cuts or force
            else "nothing was cut, so nothing was written (--force writes anyway)"
        )
        out.print(Text(done))


def _measure_files(loaded: Loaded, result: Result, model: Path, output: Path) -> None:
    result.report.file_bytes = loaded.format.disk_bytes(model), loaded.format.disk_bytes(output)


def _request(
    keep: float | None,
    params: float | None,
    macs: float | None,
    multiple: int,
    floor: float,
    include: list[str] | None,
    exclude: list[str] | None,
    allow: list[str] | None,
) -> Request:
    return Request(keep, params, macs, multiple, floor, tuple(include or ()), tuple(exclude or ()), tuple(allow or ()))


def _check_output(model: Path, output: Path, force: bool) -> None:
    if output.exists() and model.exists() and model.samefile(output) and not force:
        raise UsageError(f"the output {output} is the input itself", hint="choose another name, or say --force")
    if output.is_dir():
        raise WriteError(f"{output} is a folder", hint="name the file to write")
    if not output.parent.is_dir():
        raise WriteError(f"there is no folder {output.parent}", hint="make it first")


def _inputs(calib: Path | None) -> dict[str, Any] | None:
    if calib is None:
        return None
    import numpy as np

    try:
        with np.load(calib) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"cannot read inputs from {calib}: {error}", hint="an .npz file with one array an input"
        ) from error


def _write(path: Path, text: str) -> None:
    """Write beside and rename, as models are written."""
    half = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        half.write_text(text)
        os.replace(half, path)
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {error.strerror}", hint="check the folder and its permissions"
        ) from error
    finally:
        half.unlink(missing_ok=True)


def _write_network(loaded: Loaded, graphml: Path | None, dot: Path | None) -> None:
    import networkx as nx

    graph = network(loaded.analysis)
    if graphml:
        _write(graphml, "\n".join(nx.generate_graphml(graph)) + "\n")
    if dot:
        _write(dot, nx.nx_pydot.to_pydot(graph).to_string())


def _print_dims(loaded: Loaded) -> None:
    table = Table(title=str(loaded.analysis).splitlines()[0])
    for column in ("dim", "kind", "size", "params each", "MACs each", "weights", "state"):
        table.add_column(
            column, justify="right" if column in ("size", "params each", "MACs each") else "left", overflow="fold"
        )
    for dim in loaded.dims():
        state = (
            ("exact" if dim["exact"] else f"normalised: {dim['reason']}")
            if dim["prunable"]
            else f"frozen: {dim['reason']}"
        )
        places = dict.fromkeys(use["weight"] for use in dim["weights"])
        shown = ", ".join(list(places)[:2]) + (f" and {len(places) - 2} more" if len(places) > 2 else "")
        figures = (dim["size"], dim["params_per_position"], dim["macs_per_position"])
        table.add_row(dim["name"], dim["kind"], *(f"{n:,}" for n in figures), shown, Text(state))
    page.print(table)


def _print_checks(checks: list[Check], as_json: bool) -> None:
    if as_json:
        _json([vars(check) for check in checks])
        return
    for check in checks:
        out.print(Text(str(check), style="green" if check.passed else "bold red"))


def _print_catalogue(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        _json(rows)
        return
    table = Table()
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    page.print(table)


def _json(data: Any) -> None:
    print(json.dumps(data, indent=1))


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar a stage on standard error, on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=done)

        yield update


def main() -> None:
    """Entry point: every error of ours is one message, Ctrl-C is exit code 130."""
    try:
        app(standalone_mode=True)
    except GraphpruneError as error:
        err.print(Text(f"graphprune: {error}"))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        err.print("graphprune: stopped; nothing was written")
        sys.exit(130)
    except MemoryError:
        err.print("graphprune: out of memory")
        sys.exit(1)
