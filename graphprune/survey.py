"""A model looked at before it is cut: each Dim alone, and several budgets and allocators beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.budget import Request, candidates, cost_functions, known_cost
from graphprune.cost import CostModel
from graphprune.data import Calibration
from graphprune.dims import Chosen, counts
from graphprune.errors import UsageError
from graphprune.latency import Profile
from graphprune.loaded import Loaded, Progress, load, stage
from graphprune.pareto import WHOLE, Candidate, Front, marked
from graphprune.pipeline import calibration, differentiated, how_to, measurements, needs_data, sought_by
from graphprune.plan import fingerprint, make_plan
from graphprune.profile import rounds
from graphprune.sensitivity import RATIOS, Sensitivity, measure
from graphprune.smallest import Goal
from graphprune.tried import Tried, unit

BUDGETS = (0.8, 0.6, 0.4)
ALONE = Request(keep=1.0, multiple=1, floor=0.0)
"""What may be cut, and to which sizes, where one Dim is cut alone."""


@dataclass(frozen=True)
class _Look:
    """A model ready to be tried: what was ``seen`` of it, how allocators try it, and what candidates come to.

    ``value`` is how far outputs move, or the metric; it gets worse as it grows, or with a ``sign`` of -1 as it falls.
    """

    loaded: Loaded
    seen: Mapping[str, Any]
    tried: Tried | None
    unit: str
    sign: int
    value: Callable[[Chosen], float]
    notes: tuple[str, ...]


def sensitivity(
    source: Any,
    request: Request = ALONE,
    *,
    ratios: Sequence[float] = RATIOS,
    score: str = "l2",
    calib: Any = None,
    compensate: bool = False,
    metric: Callable[[Any], float] | str | None = None,
    lower_is_better: bool = False,
    suffix: str = ".onnx",
    loss: Any = None,
    batches: Any = None,
    state: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """What is lost when each Dim alone keeps ``ratios`` of its positions, those that ``score`` ranks highest.

    ``source`` is a model, as `load` takes it, or what that returned. Lost is how far the outputs on ``calib`` move (in
    nats where they choose between classes), or how much worse a ``metric`` gets, as `prune` takes it; with
    ``compensate`` once the weights that stay make up for what goes. ``request`` says which Dims and which of their
    sizes; its target means nothing. Scores from gradients take ``loss`` and ``batches``. By the file ``state`` a killed
    run goes on.

    >>> import graphprune
    >>> found = graphprune.sensitivity("models/digits.onnx", ratios=(0.5,))
    >>> [(row.name, row.kept) for row in found.rows][:2]
    [('conv', (12,)), ('block1.conv1', (16,))]
    """
    goal = None if metric is None else Goal(metric, lower_is_better=lower_is_better, suffix=suffix)
    asked: dict[str, Any] = {"calib": calib, "compensate": compensate, "state": state, "seed": seed}
    look = _look(source, request, score, goal, asked, progress)
    data = {**look.seen, **differentiated(loss, batches)}
    scores = look.loaded.scores(request, score, seed=seed, progress=progress, **data)
    whole = look.value({}) if goal else 0.0
    analysis = look.loaded.analysis
    watch = stage(progress, "cutting one by one")

    def lost(chosen: Chosen) -> float:
        return look.sign * (look.value(chosen) - whole)

    rows = measure(analysis, candidates(analysis, request), scores, request, lost, ratios=ratios, progress=watch)
    return Sensitivity(fingerprint(analysis.graph), score, look.unit, tuple(ratios), rows, (*look.notes, *scores.notes))


def pareto(
    source: Any,
    request: Request | None = None,
    *,
    budgets: Sequence[float] = BUDGETS,
    allocators: Sequence[str | None] = (None,),
    cost: str = "macs",
    profile: Profile | str | Path | None = None,
    fitness: Callable[[Any], float] | str | None = None,
    score: str = "l2",
    calib: Any = None,
    compensate: bool | str | None = None,
    damping: float | None = None,
    metric: Callable[[Any], float] | str | None = None,
    lower_is_better: bool = False,
    suffix: str = ".onnx",
    loss: Any = None,
    batches: Any = None,
    state: str | Path | None = None,
    seed: int = 0,
    timing: bool = True,
    progress: Progress | None = None,
) -> Front:
    """The models that ``allocators`` make of ``budgets`` of a ``cost``: what each costs, and how far its outputs move.

    With a ``metric``, as `prune` takes it, what that is in place of how far outputs move. ``request`` holds beside the
    budgets; of a latency there must be a ``profile``. With one, latencies are predicted, and with ``timing`` those on
    the front are measured, too. An allocator of None is the one that `Request` has for the cost. The rest is as in
    `sensitivity` and in `prune`.

    >>> import graphprune
    >>> found = graphprune.pareto("models/digits.onnx", budgets=(0.5,), allocators=("global", "uniform"))
    >>> sorted((one.allocator, one.share <= one.budget) for one in found.candidates)
    [('global', True), ('uniform', True), ('whole model', True)]
    """
    if not budgets or not allocators:
        raise UsageError("there is no budget, or no allocator, to try", hint="such as --budgets 0.8,0.6,0.4")
    shares: list[Any] = sorted(budgets)  # what cannot be met is found out before much is spent
    first: Any = {**({} if request is None else vars(request)), known_cost(cost): shares[0]}
    each = [Request(**{**first, cost: share, "allocator": name}) for share in shares for name in allocators]
    goal = None if metric is None else Goal(metric, lower_is_better=lower_is_better, suffix=suffix)
    asked: dict[str, Any] = {"calib": calib, "compensate": compensate, "damping": damping, "state": state, "seed": seed}
    asked["allocator"] = next((name for name in allocators if needs_data("", name)), None)
    asked["fitness"] = sought_by(fitness, asked["allocator"], suffix)
    source = source if isinstance(source, Loaded) else load(source)
    measured = measurements(source, each[0], profile)
    look = _look(source, each[0], score, goal, asked, progress)
    loaded, data = look.loaded, {**look.seen, **differentiated(loss, batches)}
    scores = loaded.scores(each[0], score, seed=seed, progress=progress, **data)
    wanted, watch = candidates(loaded.analysis, each[0]), stage(progress, "trying budgets")
    latency = loaded.seconds(measured)
    costs = {} if latency is None else {"latency": latency.nanoseconds}
    costing = cost_functions(CostModel(loaded.analysis, [atom.dim for atom in wanted]), costs)[cost]
    given: Any = {"scores": scores, "latency": latency, "tried": look.tried, "seed": seed, "progress": progress}
    plans = [loaded.plan(one, score, **given).chosen(loaded.analysis) for one in each]
    whole = None if latency is None else 1.0
    found = [Candidate(WHOLE, 1.0, costing({}), 1.0, look.value({}) if goal else 0.0, True, (), whole, whole)]
    for done, (one, chosen) in enumerate(zip(each, plans, strict=True), 1):
        sizes = counts(chosen)
        price, dims = costing(sizes), tuple((a.name, a.size, sizes.get(a.dim, a.size)) for a in wanted)
        share = price / found[0].cost
        predicted = None if latency is None else latency(sizes) / latency({})
        asked_for = one.shared_out_by(loaded.across(score)), one.targets[cost]
        found.append(Candidate(*asked_for, price, share, look.value(chosen), True, dims, predicted))
        watch(done / len(each))
    made = Front(cost, look.unit, marked(found, look.sign), (*look.notes, *scores.notes))
    return _timed(loaded, made, measured, stage(progress, "timing the front")) if measured and timing else made


def _timed(loaded: Loaded, made: Front, profile: Profile, progress: Callable[[float], None]) -> Front:
    """``made`` with the latency of each model on the front, cut (any positions will do) and run beside the whole.

    Inputs have the shapes, and there are as many threads, as where ``profile`` was measured.
    """
    if loaded.model.large:
        return replace(made, notes=(*made.notes, "too large to run beside its own copy: no latency was measured"))
    shapes, dims = profile.setting["shape of inputs"], {atom.name: atom.dim for atom in loaded.analysis.atoms}
    trial = loaded.format.trials(loaded.model, loaded.format.run(loaded.model))[0][1]
    feeds = {name: np.resize(value, shapes[name]) for name, value in trial.items()}
    how: Any = {"threads": profile.setting["number of threads"], "rounds": rounds(profile.dense.whole)}

    def measured(one: Candidate) -> float:
        chosen = {dims[name]: np.arange(after) for name, before, after in one.dims if after < before}
        cut = loaded.format.apply(loaded.model, loaded.analysis, chosen)
        both = [(loaded.model, feeds), (cut, loaded.analysis.fit(feeds, chosen))]
        before, after = loaded.format.timings(both, **how)
        return after.whole / before.whole

    found = []
    for done, one in enumerate(made.candidates, 1):
        found.append(replace(one, measured=measured(one)) if one.best and one.dims else one)
        progress(done / len(made.candidates))
    return replace(made, candidates=tuple(found))


def _look(
    source: Any, request: Request, score: str, goal: Goal | None, asked: dict[str, Any], progress: Progress | None
) -> _Look:
    """``source`` on the data that were ``asked`` for; where outputs are looked at and none were, on what stands in.

    The weights that stay make up for what goes where they would in `prune`.
    """
    loaded, seed = source if isinstance(source, Loaded) else load(source), asked["seed"]
    compensate, damping = asked["compensate"], asked.get("damping")
    data = calibration(asked["calib"], score, compensate, asked.get("allocator"), asked.get("fitness"))
    how = how_to(compensate) if data else None
    if data is None and goal is None:
        data = asked["calib"] if isinstance(asked["calib"], Calibration) else Calibration()
    needed = how is not None or needs_data(score)
    loaded, seen = loaded.learned(data, request, moments=needed, seed=seed, progress=progress)
    memo = loaded.memo(asked["state"], seen, how, damping)
    fitted, fitness = seen if how else {**seen, "moments": None}, asked.get("fitness")
    drift = loaded.tried(fitted, damping=damping, memo=memo)
    tried = loaded.tried(fitted, damping=damping, memo=memo, fitness=fitness) if fitness else drift
    if goal is None:
        if drift is None:
            raise UsageError(
                "there are no data to run the model on, so that nobody sees how far its outputs move",
                hint="give data (--calib FILE, or self, or noise), or a metric",
            )
        words = f"drift is that on {len(drift.batches)} batches of {loaded.data}"
        return _Look(loaded, seen, tried, unit(loaded.analysis.graph), 1, drift, (*loaded.notes, words))

    def measured(chosen: Chosen) -> float:
        plan = make_plan(loaded.analysis, chosen, score, {})
        made = loaded
        if seen and how and chosen:
            made = loaded.compensated(plan, seen["moments"], damping, how, seen["batches"])
        return goal.remembered(made.apply(plan, verify="none", timing=False), memo)

    sign, label = (1 if goal.lower_is_better else -1), "metric" if isinstance(goal.metric, str) else goal.name
    words = f"{label}: {'lower' if sign > 0 else 'higher'} is better; {goal.name}"
    return _Look(loaded, seen, tried, label, sign, measured, (*loaded.notes, words))
