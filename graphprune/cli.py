"""The command line: ``graphprune inspect | profile | sensitivity | pareto | plan | apply | prune | verify | ops ...``.

Nothing is written before verification has passed; what is printed and how errors look is in terminal.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from graphprune import catalogue, formats, terminal
from graphprune.budget import TARGETS
from graphprune.data import Calibration
from graphprune.errors import UsageError, VerifyError
from graphprune.explain import network, to_dot
from graphprune.latency import Profile, held_out
from graphprune.loaded import VERIFY, Loaded, Progress, load, stage
from graphprune.options import (
    Allow,
    AsJson,
    Compensating,
    Exclude,
    Force,
    Holding,
    Include,
    Judging,
    ModelPath,
    Output,
    Pictures,
    Repair,
    ReportPath,
    ScoreName,
    Seed,
    Source,
    State,
    Target,
    VerifyMode,
    grouped,
    numbers,
)
from graphprune.pipeline import calibration, how_to, measurements, needs_data, reached, sought_by
from graphprune.plan import Plan
from graphprune.profile import RUNS, at_sizes, take_profile
from graphprune.report import check_suffix
from graphprune.sensitivity import FORMATS, RATIOS
from graphprune.survey import ALONE, BUDGETS
from graphprune.survey import pareto as take_front
from graphprune.survey import sensitivity as take_sensitivity
from graphprune.verify import Check

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Shrink exported neural networks by structured pruning, with a proof that the surgery is right.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)

_FORCE = "choose another name (--force replaces the model itself)"


def _say_version(wanted: bool) -> None:
    if wanted:
        terminal.print_line(f"graphprune {import_module('graphprune').__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before any command."""


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
def profile(
    model: ModelPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the measurements go; if there are some: on.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads that the model is to run on.")] = 1,
    sizes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SIZE", help="The size of a dynamic axis of inputs, such as batch=8."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="How many choices of sizes are timed.")] = RUNS,
    allow: Annotated[list[str] | None, typer.Option(help="What else is to be cut, as in prune.")] = None,
) -> None:
    """Time a model on this machine, dense and cut to many sizes, so that plans can be made for a latency elsewhere."""
    loaded = _load(model)
    terminal.guard(_sources(loaded, model), [output])
    known = Profile.load(output) if output.exists() else None
    loaded = at_sizes(loaded, dict(map(_size, sizes or ())))
    with terminal.progress_bars() as progress:

        def keep(made: Profile) -> None:
            terminal.write(output, made.to_json())
            progress("measuring", len(made.runs) / runs)

        made = take_profile(loaded, runs=runs, threads=threads, allow=allow or (), known=known, keep=keep)
    terminal.print_line(
        f"{made.dense.whole * 1e3:.3g} ms dense, and {len(made.runs)} runs cut, on {made.setting['processor']}"
    )
    errors = np.abs(held_out(loaded.analysis, made))
    if len(errors):
        terminal.print_line(
            f"runs are predicted by the others to {np.median(errors):.1%} (median; worst {max(errors):.1%})"
        )
    terminal.print_line(f"wrote {output}")


@app.command()
@grouped
def sensitivity(
    model: ModelPath,
    source: Source,
    judging: Judging,
    output: Pictures = None,
    ratios: Annotated[str, typer.Option(help="Shares of a Dim that are kept.")] = ",".join(map(str, RATIOS)),
    score: ScoreName = "l2",
    compensate: Annotated[
        bool, typer.Option("--compensate", help="Once the weights that stay make up for what goes.")
    ] = False,
    include: Include = None,
    exclude: Exclude = None,
    allow: Allow = None,
    state: State = None,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Cut each Dim alone to several shares, and see how far the outputs move or what a metric comes to."""
    _check_pictures(output)
    names, others, kinds = (tuple(given or ()) for given in (include, exclude, allow))
    request, loaded = replace(ALONE, include=names, exclude=others, allow=kinds), _load(model)
    calib = source.calibration
    terminal.guard(_sources(loaded, model, calib), [*(output or ()), state])
    with terminal.progress_bars() as progress:
        given: dict[str, Any] = {"score": score, "calib": calib, "compensate": compensate, "state": state}
        given |= {"seed": seed, "progress": progress, **judging.options(model.suffix)}
        found = take_sensitivity(loaded, request, ratios=numbers("ratios", ratios), **given)
    _show(found, found.table(), found.title, output, as_json)


@app.command(cls=Compensating)
@grouped
def pareto(
    model: ModelPath,
    target: Target,
    source: Source,
    repair: Repair,
    judging: Judging,
    output: Pictures = None,
    budgets: Annotated[str, typer.Option(help="Shares of the cost that are tried.")] = ",".join(map(str, BUDGETS)),
    cost: Annotated[str, typer.Option(metavar="|".join(TARGETS), help="What budgets are of.")] = "macs",
    score: ScoreName = "l2",
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Try several budgets, and several allocators (--allocator global,search), and see which none other beats."""
    _check_pictures(output)
    names = target.allocator.split(",") if target.allocator else [None]
    request, loaded = replace(target, allocator=None).towards(cost), _load(model).using(target.sensitivity)
    calib = source.calibration
    terminal.guard([*_sources(loaded, model, calib), *target.files()], [*(output or ()), target.state])
    with terminal.progress_bars() as progress:
        given: dict[str, Any] = {
            "score": score,
            "calib": calib,
            "state": target.state,
            "cost": cost,
            "profile": target.profile,
            "fitness": target.fitness,
        }
        given |= {**vars(repair), "seed": seed, "progress": progress, **judging.options(model.suffix)}
        found = take_front(loaded, request, budgets=numbers("budgets", budgets), allocators=names, **given)
    _show(found, found.table(), found.title, output, as_json)


@app.command()
@grouped
def plan(
    model: ModelPath,
    target: Target,
    source: Source,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the plan (default: print it).")
    ] = None,
    score: ScoreName = "l2",
    seed: Seed = 0,
) -> None:
    """Choose what to cut, and write it down as JSON without cutting anything."""
    request, loaded = target.request, _load(model).using(target.sensitivity)
    measured = measurements(loaded, request, target.profile)
    fitness = sought_by(target.fitness, request.allocator, model.suffix)
    calib = calibration(source.calibration, score, allocator=request.allocator, fitness=fitness)
    terminal.guard([*_sources(loaded, model, calib), *target.files()], [output, target.state])
    with terminal.progress_bars() as progress:
        needed = needs_data(score, request.allocator)
        loaded, seen = loaded.learned(calib, request, moments=needed, seed=seed, progress=progress)
        tried = loaded.tried(seen, memo=loaded.memo(target.state, seen), fitness=fitness)
        seen |= {"tried": tried, "latency": loaded.seconds(measured)}
        made = loaded.plan(request, score, seed=seed, progress=progress, **seen)
    if output:
        terminal.write(output, made.to_json())
    else:
        sys.stdout.write(made.to_json())


@app.command(cls=Compensating)
@grouped
def apply(
    model: ModelPath,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", readable=False, help="A plan made by graphprune plan.")],
    output: Output,
    source: Source,
    repair: Repair,
    verify: VerifyMode = "full",
    report: ReportPath = None,
    as_json: AsJson = False,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Cut a model as a plan says, prove it, and write it."""
    _check_modes(verify, report)
    chosen, loaded = Plan.load(plan_file), _load(model)
    calib = calibration(source.calibration, compensate=repair.compensate)
    terminal.guard([plan_file, *_sources(loaded, model, calib, force=force)], [output, report], hint=_FORCE)
    with terminal.progress_bars() as progress:
        needed = how_to(repair.compensate) is not None
        loaded, seen = loaded.learned(calib, chosen, moments=needed, seed=seed, progress=progress)
        loaded = _repaired(loaded, chosen, seen, repair, progress)
    _finish(loaded, chosen, model, output, None, verify, report, as_json, seed, force)


@app.command(cls=Compensating)
@grouped
def prune(
    model: ModelPath,
    output: Output,
    target: Target,
    source: Source,
    repair: Repair,
    judging: Judging,
    holding: Holding,
    score: ScoreName = "l2",
    plan_out: Annotated[Path | None, typer.Option("--plan-out", help="Also write the plan.")] = None,
    report: ReportPath = None,
    as_json: AsJson = False,
    verify: VerifyMode = "full",
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Shrink a model: plan, cut, prove, report."""
    _check_modes(verify, report)
    goal = judging.goal(output.suffix, drop=holding.drop, shrink=holding.shrink)
    request, loaded = target.towards(holding.shrink if goal else None), _load(model).using(target.sensitivity)
    measured = measurements(loaded, request, target.profile)
    fitness = sought_by(target.fitness, request.allocator, output.suffix)
    calib = calibration(source.calibration, score, repair.compensate, request.allocator, fitness)
    written = [output, plan_out, report, target.state, holding.curve]
    terminal.guard([*_sources(loaded, model, calib, force=force), *target.files()], written, hint=_FORCE)
    with terminal.progress_bars() as progress:
        how, damping = how_to(repair.compensate), repair.damping
        needed = how is not None or needs_data(score)
        loaded, seen = loaded.learned(calib, request, moments=needed, seed=seed, progress=progress)
        memo = loaded.memo(target.state, seen, how, damping)
        given: Any = {"latency": loaded.seconds(measured), "memo": memo, "fitness": fitness}
        given |= {"seed": seed, "progress": progress}
        make = loaded.maker(request, score, seen, how=how, damping=damping, **given)
        (loaded, made), curve = reached(make, request, goal, memo, progress)
    if holding.curve and curve:
        terminal.write(holding.curve, curve.render(holding.curve.suffix))
    _finish(loaded, made, model, output, plan_out, verify, report, as_json, seed, force)


@app.command(cls=Compensating)
@grouped
def verify(
    model: ModelPath,
    source: Source,
    repair: Repair,
    pruned: Annotated[Path | None, typer.Argument(help="A model that was cut from MODEL by --plan.")] = None,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="The plan that PRUNED was cut by.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Prove that the Dims of a model are coupled as analysed, or that a cut model is what its plan asked for."""
    loaded, calib = _load(model), calibration(source.calibration, compensate=repair.compensate)
    if pruned is None:
        checks = loaded.proved(calib, seed=seed)
    else:
        if plan_file is None:
            raise UsageError("a pruned model needs the plan it was cut by", hint="give --plan plan.json")
        chosen = Plan.load(plan_file)
        needed = how_to(repair.compensate) is not None
        loaded, seen = loaded.learned(calib, chosen, moments=needed, seed=seed)
        result = _repaired(loaded, chosen, seen, repair).apply(chosen, seed=seed, timing=False)
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


@app.command()
def allocators(as_json: AsJson = False) -> None:
    """List the allocators: what each needs, and the paper it comes from."""
    _print_catalogue(catalogue.allocators(), as_json)


def _check_pictures(output: list[Path] | None) -> None:
    for path in output or ():
        check_suffix(path.suffix, FORMATS, "output")


def _show(found: Any, rows: list[dict[str, Any]], title: str, output: list[Path] | None, as_json: bool) -> None:
    """A table or JSON, and the files that were asked for."""
    for path in output or ():
        terminal.write(path, found.render(path.suffix))
    if as_json:
        sys.stdout.write(found.to_json())
        return
    terminal.print_rows(rows, right=rows[0].keys() - {"dim", "kind", "allocator", "front"}, title=title)
    for line in (*found.notes, *(f"wrote {path}" for path in output or ())):
        terminal.print_line(line)


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


def _repaired(
    loaded: Loaded, plan: Plan, seen: dict[str, Any], repair: Repair, progress: Progress | None = None
) -> Loaded:
    """The model with the weights that stay changed by what was ``seen``, if anything was and that is wanted."""
    how = how_to(repair.compensate)
    if not seen or how is None:
        return loaded
    watch = stage(progress, "compensating")
    return loaded.compensated(plan, seen["moments"], repair.damping, how, seen["batches"], watch)


def _load(model: Path) -> Loaded:
    _import_format(model)
    return load(model)


def _import_format(model: Path) -> None:
    """Extension modules crash where Ctrl-C falls into their import."""
    with terminal.uninterrupted():
        formats.of(model)


def _size(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name or not size.isdecimal() or not int(size):
        raise UsageError(f"--sizes {text} is no name and size", hint="such as --sizes batch=8")
    return name, int(size)


def _check_modes(verify: str, report: Path | None) -> None:
    if verify not in VERIFY:
        raise UsageError(f"there is no verification {verify!r}", hint=f"choose one of {', '.join(VERIFY)}")
    if report:
        check_suffix(report.suffix)


def _sources(loaded: Loaded, model: Path, calib: Calibration | None = None, *, force: bool = False) -> list[Path]:
    """Files that the run reads: no output may be one of them (with ``force``, the model alone may be replaced)."""
    return [*([] if force else [model]), *loaded.model.data_files(), *(calib.files() if calib else [])]


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
