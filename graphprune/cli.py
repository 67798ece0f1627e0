"""The command line: ``graphprune inspect | plan | apply | prune | verify | ops | scores``.

Nothing is written before verification has passed; what is printed and how errors look is in terminal.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from graphprune import catalogue, formats, terminal
from graphprune.budget import Request
from graphprune.errors import UsageError, VerifyError
from graphprune.explain import network, to_dot
from graphprune.pipeline import VERIFY, Loaded, load
from graphprune.pipeline import verify as verify_model
from graphprune.plan import Plan
from graphprune.report import check_suffix
from graphprune.verify import Check

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Shrink exported neural networks by structured pruning, with a proof that the surgery is right.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", readable=False, help="The ONNX file to read.")]
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
Seed = Annotated[int, typer.Option(min=0, help="Seed of random scores, inputs and permutations.")]
Calib = Annotated[Path | None, typer.Option(help="Inputs for proof and drift: an .npz with one array an input.")]
VerifyMode = Annotated[str, typer.Option("--verify", help="full, structure (nothing is run) or none.")]
Force = Annotated[bool, typer.Option("--force", help="Write even if nothing was cut, or over the input.")]
ReportPath = Annotated[Path | None, typer.Option("--report", help="Also write the report: .json, .html, .md or .txt.")]
_FORCE = "choose another name (--force replaces the model itself)"
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
    loaded = _load(model)
    terminal.guard(_sources(loaded, model), [graphml, dot])
    _write_network(loaded, graphml, dot)
    if explain:
        terminal.print_line(loaded.explain(explain))
    elif as_json:
        terminal.print_json(loaded.dims())
    elif not (graphml or dot):
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
    loaded = _load(model)
    terminal.guard(_sources(loaded, model), [output])
    with terminal.progress_bars() as progress:
        made = loaded.plan(request, score, seed=seed, progress=progress)
    if output:
        terminal.write(output, made.to_json())
    else:
        sys.stdout.write(made.to_json())


@app.command()
def apply(
    model: ModelPath,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", readable=False, help="A plan made by graphprune plan.")],
    output: Output,
    verify: VerifyMode = "full",
    calib: Calib = None,
    report: ReportPath = None,
    as_json: AsJson = False,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Cut a model as a plan says, prove it, and write it."""
    _check_modes(verify, report)
    chosen, loaded = Plan.load(plan_file), _load(model, calib)
    terminal.guard([plan_file, *_sources(loaded, model, calib, force=force)], [output, report], hint=_FORCE)
    _finish(loaded, chosen, model, output, None, verify, report, as_json, seed, force)


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
    _check_modes(verify, report)
    request = _request(keep, params, macs, multiple, floor, include, exclude, allow)
    loaded = _load(model, calib)
    terminal.guard(_sources(loaded, model, calib, force=force), [output, plan_out, report], hint=_FORCE)
    with terminal.progress_bars() as progress:
        made = loaded.plan(request, score, seed=seed, progress=progress)
    _finish(loaded, made, model, output, plan_out, verify, report, as_json, seed, force)


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
    if pruned is None:
        _import_format(model)
        checks = verify_model(model, inputs=_inputs(calib), seed=seed)
    else:
        if plan_file is None:
            raise UsageError("a pruned model needs the plan it was cut by", hint="give --plan plan.json")
        loaded = _load(model, calib)
        result = loaded.apply(Plan.load(plan_file), seed=seed, latency=False)
        same = loaded.format.same(result.pruned, loaded.format.read(pruned))
        detail = f"{pruned} is {'' if same else 'not '}what the plan makes of {model}"
        checks = [*result.report.checks, Check("same file", same, detail)]
    _print_checks(checks, as_json)
    if not all(check.passed for check in checks):
        raise typer.Exit(VerifyError.exit_code)


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
    plan_out: Path | None,
    verify: str,
    report: Path | None,
    as_json: bool,
    seed: int,
    force: bool,
) -> None:
    wanted = bool(plan.cuts) or force
    with terminal.progress_bars() as progress:
        result = loaded.apply(plan, verify=verify, seed=seed, progress=progress)
        before = loaded.format.disk_bytes(model)
        terminal.listen()
        if wanted:
            result.save(output, lambda done: progress("writing", done))
            result.report.file_bytes = before, loaded.format.disk_bytes(output)
    if plan_out:
        terminal.write(plan_out, plan.to_json())
    if report:
        terminal.write(report, result.report.render(report.suffix))
    if as_json:
        sys.stdout.write(result.report.to_json() + "\n")
    else:
        terminal.print_page(result.report)
        nothing = "nothing was cut, so nothing was written (--force writes anyway)"
        terminal.print_line(f"wrote {output}" if wanted else nothing)


def _load(model: Path, calib: Path | None = None) -> Loaded:
    _import_format(model)
    return load(model, inputs=_inputs(calib))


def _import_format(model: Path) -> None:
    """Extension modules crash where Ctrl-C falls into their import."""
    with terminal.uninterrupted():
        formats.of(model)


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


def _check_modes(verify: str, report: Path | None) -> None:
    if verify not in VERIFY:
        raise UsageError(f"there is no verification {verify!r}", hint=f"choose one of {', '.join(VERIFY)}")
    if report:
        check_suffix(report.suffix)


def _sources(loaded: Loaded, model: Path, calib: Path | None = None, *, force: bool = False) -> list[Path]:
    """Files that the run reads: no output may be one of them (with ``force``, the model alone may be replaced)."""
    return [*([] if force else [model]), *loaded.model.data_files(), *([calib] if calib else [])]


def _inputs(calib: Path | None) -> dict[str, Any] | None:
    if calib is None:
        return None
    from zipfile import BadZipFile

    import numpy as np

    try:
        with calib.open("rb") as file:
            arrays = np.load(file)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array without a name")
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        why = getattr(error, "strerror", None) or (str(error) or "it is empty").partition(". ")[0]
        raise UsageError(
            f"cannot read inputs from {calib}: {why}",
            hint="give an .npz file with one array an input: numpy.savez(path, name=array)",
        ) from error


def _write_network(loaded: Loaded, graphml: Path | None, dot: Path | None) -> None:
    if not (graphml or dot):
        return
    import networkx as nx

    graph = network(loaded.analysis)
    if graphml:
        terminal.write(graphml, "\n".join(nx.generate_graphml(graph)) + "\n")
    if dot:
        terminal.write(dot, to_dot(graph))


def _print_dims(loaded: Loaded) -> None:
    rows = [
        {
            "dim": dim["name"],
            "kind": dim["kind"],
            "size": dim["size"],
            "params each": dim["params_per_position"],
            "MACs each": dim["macs_per_position"],
            "weights": _listed(list(dict.fromkeys(use["weight"] for use in dim["weights"]))),
            "state": _state(dim),
        }
        for dim in loaded.dims()
    ]
    title = str(loaded.analysis).splitlines()[0]
    terminal.print_rows(rows, right=("size", "params each", "MACs each"), title=title)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _state(dim: dict[str, Any]) -> str:
    if dim["exact"]:
        return "exact"
    return f"{'normalised' if dim['prunable'] else 'frozen'}: {dim['reason']}"


def _print_checks(checks: list[Check], as_json: bool) -> None:
    if as_json:
        terminal.print_json([vars(check) for check in checks])
        return
    for check in checks:
        terminal.print_line(str(check), style="green" if check.passed else "bold red")


def _print_catalogue(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        terminal.print_json(rows)
    else:
        terminal.print_rows(rows)


def main() -> None:
    """Entry point: every error of ours is one message, Ctrl-C is exit code 130."""
    with terminal.messages():
        app()
