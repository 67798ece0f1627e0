"""The stages on one screen: read -> analyse -> score -> allocate -> plan -> apply -> verify -> report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphprune.allocate import ALLOCATORS
from graphprune.budget import COSTS, TARGETS, Request, require_costs
from graphprune.data import Calibration
from graphprune.errors import UsageError
from graphprune.latency import RUNTIME, STRUCTURE, Profile
from graphprune.loaded import COMPENSATE, Loaded, Progress, Result, load, stage
from graphprune.memo import Memo
from graphprune.plan import Plan, fingerprint
from graphprune.scores import SCORES
from graphprune.sensitivity import Sensitivity
from graphprune.smallest import Curve, Goal, smallest
from graphprune.trace import TRACE
from graphprune.verify import Check


def prune(
    source: Any,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    keep: float | None = None,
    params: float | str | None = None,
    macs: float | str | None = None,
    bytes: float | str | None = None,
    activations: float | str | None = None,
    latency: float | str | None = None,
    profile: Profile | str | Path | None = None,
    allocator: str | None = None,
    tries: int | None = None,
    fitness: Callable[[Any], float] | str | None = None,
    sensitivity: Sensitivity | str | Path | None = None,
    score: str = "l2",
    multiple: int = 8,
    floor: float = 0.1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow: Sequence[str] = (),
    finer: bool = True,
    loss: Any = None,
    batches: Any = None,
    calib: Any = None,
    compensate: bool | str | None = None,
    damping: float | None = None,
    metric: Callable[[Any], float] | str | None = None,
    drop: float = 0.01,
    shrink: str = "macs",
    lower_is_better: bool = False,
    state: str | Path | None = None,
    verify: str = "full",
    inputs: Mapping[str, Any] | None = None,
    seed: int = 0,
    timing: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Shrink a model: plan, cut, prove, report. Options as in `Request` and `Loaded.apply`.

    ``calib`` is a `Calibration`, or its source: a path, "self", "noise", "none", batches of inputs by name, or several
    in a list. Scores that need data look at it, and the weights that stay are changed to make up for what goes: as
    ``compensate`` says (see `Loaded.compensated`; false or "none" for nothing), else as is "best". Where no data are
    given, a score that needs them and ``compensate=True`` take the best source that needs none.

    ``profile``, the file that ``graphprune profile`` wrote or what is in it, says what ``latency`` sizes have.

    With ``metric`` (a function of a model, or a command that is given the path of one and prints a number) the result
    is the smallest model for which it is at most ``drop`` worse, as a share of what the whole model gets; ``shrink`` is
    the cost that is brought down, below its own target if it has one. By the file ``state`` a killed run goes on.

    ``fitness``, a function or command like ``metric``, is what the allocator "search" makes as high as it can, in place
    of moving the outputs little; "trace" is how alike gradients stay (see `graphprune.trace`).

    ``sensitivity``, or a file that holds it (see `graphprune.sensitivity`), says what Dims are worth beside each other.

    >>> import graphprune
    >>> result = graphprune.prune("models/digits.onnx", macs=0.5)
    >>> result.report.verified, result.report.pruned.macs <= 0.5 * result.report.dense.macs
    (True, True)
    """
    names, others, kinds = map(_patterns, (include, exclude, allow))
    goal = None if metric is None else Goal(metric, drop, shrink, lower_is_better)
    limits: dict[str, Any] = {"keep": keep, "params": params, "macs": macs, "bytes": bytes}
    limits |= {"activations": activations, "latency": latency}
    if goal and limits[shrink] is None:
        limits[shrink] = 1.0
    sizes: dict[str, Any] = {
        "multiple": multiple,
        "floor": floor,
        "finer": finer,
        "allocator": allocator,
        "tries": tries,
    }
    request = Request(**limits, **sizes, include=names, exclude=others, allow=kinds)
    loaded = load(source, inputs=inputs, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    loaded = loaded.using(sensitivity)
    measured = measurements(loaded, request, profile)
    sought = sought_by(fitness, allocator)
    asked, by = calibration(calib, score, compensate, allocator, sought), how_to(compensate)
    needed = by is not None or needs_data(score)
    loaded, seen = loaded.learned(asked, request, moments=needed, seed=seed, progress=progress)
    own = differentiated(loss, batches)
    memo = loaded.memo(state, seen, by, damping)
    own |= {"latency": loaded.seconds(measured), "memo": memo, "fitness": sought, "seed": seed, "progress": progress}
    make = loaded.maker(request, score, seen, how=by, damping=damping, **own)
    (loaded, plan), curve = reached(make, request, goal, memo, progress)
    del make, seen, own  # statistics and scores take as much as the model: the proof needs none of them
    result = loaded.apply(plan, verify=verify, seed=seed, timing=timing, progress=progress)
    return replace(result, curve=curve)


def reached(
    make: Callable[[Request], tuple[Loaded, Plan]],
    request: Request,
    goal: Goal | None,
    memo: Memo | None = None,
    progress: Progress | None = None,
) -> tuple[tuple[Loaded, Plan], Curve | None]:
    """What ``make`` makes of ``request``; with a ``goal`` the smallest that holds, and the curve on the way there."""
    if goal is None:
        return make(request), None
    return smallest(make, request, goal, memo=memo, progress=stage(progress, "bisecting"))


def measurements(loaded: Loaded, request: Request, profile: Profile | str | Path | None) -> Profile | None:
    """Those in ``profile``, often a file; UsageError where of another model or runtime, or where needed and not given.

    Another machine or version may have made them: they are brought from the device that the model is to run on.
    """
    require_costs(request, COSTS if profile is None else TARGETS)
    if profile is None:
        return None
    found = profile if isinstance(profile, Profile) else Profile.load(profile)
    found.require({STRUCTURE: fingerprint(loaded.analysis.graph), RUNTIME: loaded.format.version().rpartition(" ")[0]})
    return found


def sought_by(
    fitness: Callable[[Any], float] | str | None, allocator: str | None, suffix: str = ".onnx"
) -> Goal | str | None:
    """What an allocator goes by in place of outputs; UsageError where ``allocator`` tries no candidates."""
    if fitness is None:
        return None
    if not needs_data("", allocator):
        raise UsageError(
            "a fitness is given, and the allocator tries no candidates that it could be of",
            hint="choose --allocator search; a metric that is to hold is --metric",
        )
    return fitness if fitness == TRACE else Goal(fitness, suffix=suffix)


def differentiated(loss: Any, batches: Any) -> dict[str, Any]:
    """What scores from gradients take of the user's: ``batches`` of one's own come before those that were seen."""
    return {"loss": loss} if batches is None else {"loss": loss, "batches": batches}


def calibration(
    calib: Any,
    score: str = "",
    compensate: bool | str | None = None,
    allocator: str | None = None,
    fitness: Goal | str | None = None,
) -> Calibration | None:
    """What ``calib`` asks for; the best that needs no data where none is given and something needs it; else None."""
    asked = calib if isinstance(calib, Calibration) else Calibration(calib)
    changed = compensate is not None and how_to(compensate) is not None
    needed = changed or needs_data(score, None if isinstance(fitness, Goal) else allocator)
    return asked if needed or asked.source is not None else None


def how_to(compensate: bool | str | None) -> Any:
    """How the weights that stay are changed where there are data: as is best unless said otherwise; None: not."""
    if isinstance(compensate, str) and compensate not in COMPENSATE:
        raise UsageError(f"there is no compensation {compensate!r}", hint=f"choose one of {', '.join(COMPENSATE)}")
    if compensate is False or compensate == "none":
        return None
    return "best" if compensate is None or compensate is True else compensate


def needs_data(score: str, allocator: str | None = None) -> bool:
    """Whether ``score`` looks at activations, or ``allocator`` at outputs."""
    scores = score in SCORES and "data" in SCORES[score].needs
    return scores or (allocator in ALLOCATORS and ALLOCATORS[allocator].needs == "data")


def verify(source: Any, *, inputs: Mapping[str, Any] | None = None, seed: int = 0) -> list[Check]:
    """The permutation proof on one model: are its Dims coupled as the analysis says?"""
    return load(source, inputs=inputs).proved(seed=seed)


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern, or several."""
    return (given,) if isinstance(given, str) else tuple(given)
