"""A model that was read and analysed, and each stage that it goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from graphprune import formats
from graphprune.analysis import Analysis, analyse
from graphprune.budget import Request, allocate, candidates, pairs
from graphprune.compensate import Changed, How, best_damping, compensate, together
from graphprune.consumers import Site, consumers, features
from graphprune.cost import latency as timed
from graphprune.data import Calibration, bring
from graphprune.data.cache import data_key, model_key
from graphprune.data.moments import guessed, measured, thin
from graphprune.dims import Chosen, Dim, Positions, atoms, counts
from graphprune.errors import UsageError
from graphprune.explain import describe, explain
from graphprune.formats import THREADS
from graphprune.graph import Array
from graphprune.helpful import HELD, LOOKED_AT, SLACK, helpful
from graphprune.latency import LatencyModel, Profile
from graphprune.memo import Memo
from graphprune.memory import give_back
from graphprune.plan import Plan, fingerprint, make_plan
from graphprune.propagate import propagate
from graphprune.report import Report, make_report
from graphprune.scores import SCORES, Across, Scores, Task, score_atoms
from graphprune.sensitivity import Sensitivity
from graphprune.sequential import in_order
from graphprune.smallest import Curve, Goal
from graphprune.stats import Batches, Moments
from graphprune.trace import TRACE, Trace
from graphprune.tried import LOOKS, Tried, distance
from graphprune.verify import Check, Proof, moved, require, structure

VERIFY = ("full", "structure", "none")
COMPENSATE = ("best", "least-squares", "sequential", "bias", "none")
_DONE: dict[How, str] = {
    "least-squares": "the weights that stay make up for what went, by least squares",
    "sequential": "the weights that stay make up for what went, by least squares, layer after layer",
    "bias": "biases make up for the mean of what went",
}
Progress = Callable[[str, float], None]


class Scored(dict[Dim, npt.NDArray[np.float64]]):
    """`Scores`, and ``notes`` for the report."""

    def __init__(self, found: Scores, notes: Iterable[str]) -> None:
        super().__init__(found)
        self.notes = tuple(notes)


@dataclass
class Loaded:
    """A model that was read and analysed, ready to be planned for, cut and looked at.

    ``origin`` is the model as it was read, where weights were changed since; ``notes`` go into reports. ``data`` says
    what it was last run on, ``sensitivity`` what Dims were measured to be worth, if they were.
    """

    format: formats.Format
    model: Any
    analysis: Analysis
    origin: Any = None
    notes: tuple[str, ...] = ()
    data: str = ""
    sensitivity: Sensitivity | None = None

    def dims(self) -> list[dict[str, Any]]:
        """One record a Dim: name, kind, size, prunable, exact, reason, worth in parameters and MACs, weights."""
        return describe(self.analysis)

    def explain(self, name: str) -> str:
        """How the weights of the Dim ``name`` came to be coupled, or what froze it."""
        return explain(self.analysis, name)

    def at(self, inputs: Mapping[str, Any]) -> Loaded:
        """This model, run on ``inputs`` wherever it is proved and timed; they set the sizes that MACs count at."""
        self.format.give(self.model, inputs)
        return replace(self, analysis=analyse(self.model.graph))

    def using(self, sensitivity: Sensitivity | str | Path | None) -> Loaded:
        """This model, budgets of which go by what Dims were measured to be worth (or a file that says so)."""
        if sensitivity is None:
            return self
        found = sensitivity if isinstance(sensitivity, Sensitivity) else Sensitivity.load(sensitivity)
        found.require(self.analysis)
        return replace(self, sensitivity=found)

    def learned(
        self,
        calib: Calibration | None,
        wanted: Request | Plan,
        *,
        moments: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> tuple[Loaded, dict[str, Any]]:
        """This model, proved on ``calib`` if that is the user's data, and what `plan` takes of it; {} without."""
        if calib is None:
            return self, {}
        data = bring(calib, self.format, self.model, seed=seed, progress=progress)
        loaded = replace(self.at(data.shown) if data.shown and self.model.given is None else self, data=data.what)
        seen = {"sample": data.sample or None, "batches": data.batches or None}
        if not moments:
            return loaded, seen
        watch = stage(progress, "statistics")
        found, remarks = loaded._measured(data.batches or None, wanted, watch, calib.cache)
        notes = (*loaded.notes, data.words, *data.notes, *remarks)
        return replace(loaded, notes=notes), {**seen, "moments": found}

    def measure(
        self,
        batches: Batches | None,
        wanted: Request | Plan | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        cached: bool = False,
    ) -> dict[Site, Moments]:
        """Moments of the activations that weights multiply, over ``batches`` of inputs by name.

        With ``wanted`` only where Dims are that a request lets be cut, or that a plan cuts. None for ``batches`` is no
        forward pass at all: what weights and normalisations say.
        """
        return self._measured(batches, wanted, progress or (lambda done: None), cached)[0]

    def _measured(
        self, batches: Batches | None, wanted: Request | Plan | None, progress: Callable[[float], None], cached: bool
    ) -> tuple[dict[Site, Moments], tuple[str, ...]]:
        """Moments as of `measure`, and remarks on what they can bear."""
        dims = self._wanted(wanted)
        found = [c for c in consumers(self.analysis) if dims is None or not dims.isdisjoint(atoms(c.dim))]
        sites = dict.fromkeys(site for consumer in found for site in consumer.sites)
        graph = self.analysis.graph
        if batches is None:
            moments, remarks = propagate(graph, sites)
            return moments, (*remarks, *guessed(graph))
        sizes = {site: features(graph, site) for site in sites}
        gather = partial(self.format.moments, self.model)
        moments = measured(graph, sizes, batches, gather, progress, cached)
        return moments, thin(moments)

    def _wanted(self, wanted: Request | Plan | None) -> set[Dim] | None:
        if isinstance(wanted, Plan):
            return set(wanted.chosen(self.analysis))
        return None if wanted is None else {atom.dim for atom in candidates(self.analysis, wanted)}

    def compensated(
        self,
        plan: Plan,
        moments: Mapping[Site, Moments],
        damping: float | None = None,
        how: How | Literal["best"] = "best",
        batches: Sequence[Mapping[str, Any]] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Loaded:
        """This model with the weights that stay changed so that they make up for what ``plan`` removes.

        ``damping`` is chosen by the error on data that were not fitted, unless given. With ``how`` "bias" only biases
        change, and layers of an ONNX file that have none get one. "sequential" goes over the layers once more, in
        order, and fits each on ``batches`` to what the dense model makes of them (see `graphprune.sequential`); "best"
        does so where there are batches and the model can be walked through. Where there are batches, what makes outputs
        on them worse than no compensation is left out (see `graphprune.helpful`).
        """
        chosen = plan.chosen(self.analysis)
        if how == "sequential" and not batches:
            raise UsageError(
                "compensation in order runs the model, and there are no data to run it on",
                hint="give data (--calib FILE, or self), or compensate by least-squares",
            )
        if damping is None and how != "bias":
            damping = best_damping(self.analysis, chosen, moments)
        done: How = "bias" if how == "bias" else "least-squares"
        notes: list[str] = []
        parts = compensate(self.analysis, chosen, moments, damping or 0.0, done)
        _require_finite(together(parts))
        lost = self._lost(plan, batches) if batches and parts and not self.model.large else None
        changed, left_out = helpful(parts, lost) if lost else (together(parts), 0)
        if left_out:
            notes.append(f"{left_out} of {len(parts)} layers were not made up for at once: outputs moved more")
        if batches and parts and how in ("best", "sequential"):
            try:
                further = Changed(
                    self._in_order(chosen, changed, batches, progress or (lambda done: None)), changed.add
                )
                if lost is None or lost(further) <= SLACK * lost(changed):
                    changed, done = further, "sequential"
                else:
                    notes.append("weights were not fitted layer after layer: outputs moved more")
            except UsageError as error:
                if how == "sequential":
                    raise
                notes.append(f"weights were not fitted layer after layer: {error.what}")
        _require_finite(changed)
        model = self.format.replaced(self.model, changed.values, changed.add)
        notes = [*self.notes, *([_DONE[done]] if changed.values or changed.add else []), *notes]
        return replace(self, model=model, analysis=analyse(model.graph), origin=self.model, notes=tuple(notes))

    def _lost(self, plan: Plan, batches: Sequence[Mapping[str, Any]]) -> Callable[[Changed], float]:
        """How far outputs on some of ``batches`` move when weights change and what ``plan`` cuts goes."""
        run, dense = self.format.run(self.model, threads=THREADS), list[dict[str, Array]]()
        some = batches[:: -(-len(batches) // LOOKED_AT)]
        for batch in some:
            dense.append(run(batch))
            if sum(value.nbytes for outputs in dense for value in outputs.values()) > HELD:
                break
        some = some[: len(dense)]

        def lost(changed: Changed) -> float:
            model = self.format.replaced(self.model, changed.values, changed.add)
            analysis = analyse(model.graph)
            chosen = plan.chosen(analysis)
            run = self.format.run(self.format.apply(model, analysis, chosen), threads=THREADS)
            found = distance(analysis.graph, dense, [run(analysis.fit(batch, chosen)) for batch in some])
            return found if np.isfinite(found) else float("inf")

        return lost

    def _in_order(
        self, chosen: Chosen, changed: Changed, batches: Sequence[Mapping[str, Any]], progress: Callable[[float], None]
    ) -> dict[str, Array]:
        """The values of ``changed``, fitted layer after layer."""
        model = self.format.replaced(self.model, changed.values, changed.add)
        walks = self.format.walk(self.model, batches), self.format.walk(model, batches)
        return in_order(self.analysis, chosen, changed.values, *walks, progress)

    def proved(self, calib: Calibration | None = None, seed: int = 0) -> list[Check]:
        """The permutation proof, on the first batch of ``calib`` if there is one, and a run."""
        data = bring(calib, self.format, self.model, seed=seed) if calib else None
        loaded = self.at(data.shown or data.batches[0]) if data and data.batches else self
        proof = Proof(loaded.format, loaded.model, loaded.analysis, seed=seed)
        return [proof.permutation(), proof.runs(loaded.model)]

    def scores(
        self,
        request: Request,
        score: str = "l2",
        *,
        loss: Any = None,
        batches: Any = None,
        moments: Mapping[Site, Moments] | None = None,
        sample: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Scored:
        """What each position is worth of every Dim that ``request`` lets be cut, [size]; larger is dearer.

        So also of each pair of positions where one Dim lies under another (`Analysis.pairs`), for a finer choice.

        Scores that need gradients take ``batches``, and a ``loss`` of module and batch, a scalar tensor (without one,
        the model's own: labels are drawn from its outputs, and a batch is inputs by name). Those that need data take
        ``moments`` (see `measure`), and ``sample``, inputs (one batch or several) to see how far the outputs move. What
        is to be said of the scores is in their ``notes``.
        """
        gradients = self.format.gradients(self.model, loss, batches, seed)
        signals = None if batches is None else self.format.signals(self.model, loss, batches, seed)
        seen = None if moments is None else lambda sites: moments
        drift = None if sample is None else self._drift([sample] if isinstance(sample, Mapping) else sample)
        watch = stage(progress, f"scoring by {score}")
        wanted = candidates(self.analysis, request)
        atoms = [*wanted, *pairs(self.analysis, wanted, request)]
        task = Task(self.analysis, atoms, seed, watch, gradients, seen, drift, signals)
        return Scored(score_atoms(task, score), task.notes)

    def plan(
        self,
        request: Request,
        score: str = "l2",
        *,
        scores: Scores | None = None,
        latency: LatencyModel | None = None,
        tried: Callable[[Chosen], float] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        **data: Any,
    ) -> Plan:
        """Score, allocate, and write down which positions stay. Nothing is changed.

        ``scores`` are those that `scores` found by ``score``, where several plans are made of them; else they are found
        now, with ``data`` as it takes them. ``latency`` says what sizes take, where the request limits it or the plan
        is to tell it; ``tried`` is how allocators that look at outputs try what they would keep (see `tried`).
        """
        found = self.scores(request, score, seed=seed, progress=progress, **data) if scores is None else scores
        wanted = candidates(self.analysis, request)
        losses = None if self.sensitivity is None else self.sensitivity.losses(wanted, request)
        chosen: dict[Dim, Positions] = {}
        if self.analysis.prunable:
            costs = {} if latency is None else {"latency": latency.nanoseconds}
            how: Any = {"costs": costs, "tried": tried, "seed": seed, "progress": stage(progress, "allocating")}
            how |= {"losses": losses}
            chosen = allocate(self.analysis, wanted, found, request, self.across(score), **how)
        made = make_plan(self.analysis, chosen, score, _asked(request, seed))
        notes = found.notes if isinstance(found, Scored) else ()
        notes = (*notes, *([self.sensitivity.words] if self.sensitivity else []))
        if latency is None:
            return replace(made, notes=notes)
        words = f"latency is predicted by measurements ({latency.about})"
        return replace(made, notes=(*notes, words), predicted=(latency({}), latency(counts(chosen))))

    def across(self, score: str) -> Across:
        """How Dims compare when a budget is shared out: as the score says, or as they were measured."""
        return SCORES[score].across if self.sensitivity is None else "error"

    def maker(
        self,
        request: Request,
        score: str = "l2",
        seen: Mapping[str, Any] | None = None,
        *,
        how: How | Literal["best"] | None = None,
        damping: float | None = None,
        latency: LatencyModel | None = None,
        memo: Memo | None = None,
        fitness: Goal | str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        **data: Any,
    ) -> Callable[[Request], tuple[Loaded, Plan]]:
        """What plans requests that differ from this one in targets: the model, made up for what goes, and its plan.

        Scores are found once, by what was ``seen`` (see `learned`) and ``data``, as `scores` takes them; the same data
        make up for what goes as ``how`` says (see `compensated`), and are what allocators try candidates on, unless
        there is a ``fitness``.
        """
        seen = seen or {}
        found = self.scores(request, score, seed=seed, progress=progress, **{**seen, **data})
        looks: Any = {"damping": damping, "memo": memo, "fitness": fitness}
        tried = self.tried(seen if how else {**seen, "moments": None}, **looks)

        def make(request: Request) -> tuple[Loaded, Plan]:
            given: Any = {"scores": found, "latency": latency, "tried": tried, "seed": seed, "progress": progress}
            plan = self.plan(request, score, **given)
            if not seen or how is None:
                return self, plan
            watch = stage(progress, "compensating")
            return self.compensated(plan, seen["moments"], damping, how, seen["batches"], watch), plan

        return make

    def seconds(self, profile: Profile | None) -> LatencyModel | None:
        """What sizes take by ``profile``, if there is one."""
        return None if profile is None else LatencyModel(self.analysis, profile)

    def tried(
        self,
        seen: Mapping[str, Any],
        *,
        damping: float | None = None,
        memo: Memo | None = None,
        fitness: Goal | str | None = None,
    ) -> Tried | None:
        """How allocators try what they would keep, on what was `learned`, or by a ``fitness``, the higher the better.

        None where there are no data to run on, and nothing else to go by. A ``fitness`` that is a text is `TRACE`.
        """
        batches = seen.get("batches") or seen.get("sample") or []
        judged: tuple[str, Callable[[Any, Chosen], float]] | None = None
        if isinstance(fitness, Goal):
            judged = fitness.name, lambda pruned, chosen: fitness.measured(Cut(self, pruned))
        elif not batches:
            return None
        elif fitness:
            judged = TRACE, Trace(self.format, self.model, self.analysis, batches[:LOOKS])
        return Tried(self.format, self.model, self.analysis, batches, seen.get("moments"), damping, memo, judged)

    def memo(
        self, state: str | Path | None, seen: Mapping[str, Any], how: str | None = "best", damping: float | None = None
    ) -> Memo:
        """What was found of this model, by what was ``seen`` and made up for so, in the file ``state`` if any."""
        if state is None:
            return Memo()
        keys = model_key(self.analysis.graph), data_key(seen.get("batches") or ()), how, damping
        return Memo(Path(state), " ".join(map(str, keys)))

    def _drift(self, samples: Sequence[Mapping[str, Any]]) -> Callable[[Chosen], float]:
        """How far the outputs on ``samples`` move when all positions but those kept are zeroed."""
        dense = cache(lambda: list(map(self.format.run(self.model), samples)))

        def drift(kept: Chosen) -> float:
            masked = self.format.run(self.format.mask(self.model, self.analysis, kept))
            return moved(dense(), list(map(masked, samples)))

        return drift

    def apply(
        self,
        plan: Plan,
        *,
        verify: str = "full",
        seed: int = 0,
        timing: bool = True,
        progress: Progress | None = None,
    ) -> Result:
        """Cut as ``plan`` says and prove it; VerifyError, and no result, where a check fails.

        ``verify`` is "full", "structure" (checker and shape inference only; forced for models too large to run
        twice) or "none"; with ``timing``, "full" also times both models.
        """
        if verify not in VERIFY:
            raise UsageError(f"there is no verification {verify!r}", hint=f"choose one of {', '.join(VERIFY)}")
        chosen = plan.chosen(self.analysis)
        pruned = self.format.apply(self.model, self.analysis, chosen)
        report = replace(make_report(self.analysis, plan, chosen), sensitivity=self.sensitivity)
        report.notes += [*self.notes, *plan.notes, *self.format.remarks(self.model, pruned)]
        if self.origin is None and fingerprint(self.analysis.graph) != plan.model:
            report.notes.append(
                "the plan was made on another export: Dims were found by the names of weights and modules"
            )
        if verify == "full" and self.model.large:
            verify = "structure"
            report.notes.append("too large to run beside its own copy: verified by structure only")
        if verify == "full":
            give_back(report.dense.bytes)
            proof = Proof(self.format, self.model, self.analysis, seed=seed)
            _prove(proof, report, pruned, chosen, stage(progress, "verifying"))
            _measure(proof, report, pruned, chosen, self.origin, timing=timing)
        elif verify == "structure":
            report.checks.append(structure(self.format, pruned))
        require(report.checks)
        return Result(self, pruned, plan, report)


@dataclass
class Cut:
    """A model that was ``loaded``, and what it was cut to."""

    loaded: Loaded
    pruned: Any

    @property
    def model(self) -> Any:
        """The pruned model itself: an onnx.ModelProto, or for torch a GraphModule that trains and exports again."""
        return self.loaded.format.native(self.pruned)

    def save(self, path: str | Path, progress: Callable[[float], None] | None = None) -> Path:
        """Write the pruned model to ``path`` (beside it first, then renamed): .onnx, for torch models .pt2 or .onnx."""
        return self.loaded.format.save(self.pruned, path, progress)


@dataclass
class Result(Cut):
    """A pruned model with its plan and report; ``curve``: the models that were measured on the way, if any were."""

    plan: Plan
    report: Report
    curve: Curve | None = None

    def exported(self) -> Any:
        """The pruned torch model as a torch.export.ExportedProgram, with the dynamic shapes it was traced with."""
        return self.loaded.format.exported(self.pruned)

    def in_place(self) -> Any:
        """Cut the torch module itself that was given, and return it.

        VerifyError, with the module as it was, where the cut module does not compute what ``model`` computes.
        """
        chosen = self.plan.chosen(self.loaded.analysis)
        source = self.loaded.model if self.loaded.origin is None else self.loaded.origin
        return self.loaded.format.cut_in_place(source, self.pruned, self.loaded.analysis, chosen)


def load(
    source: Any, *, inputs: Mapping[str, Any] | None = None, example_inputs: Any = None, dynamic_shapes: Any = None
) -> Loaded:
    """Read and analyse ``source``: a path, an onnx.ModelProto, or a torch module, ExportedProgram or .pt2 file.

    A torch module is traced by torch.export with ``example_inputs`` (and ``dynamic_shapes``, as torch.export takes
    them).

    ``inputs`` (arrays by input name) replace random ones wherever the model is run, and set the sizes MACs count at.

    >>> import graphprune
    >>> model = graphprune.load("models/digits.onnx")
    >>> sum(dim["prunable"] for dim in model.dims())
    4
    """
    format = formats.of(source)
    traced = {"example_inputs": example_inputs, "dynamic_shapes": dynamic_shapes}
    model = format.read(source, **{name: value for name, value in traced.items() if value is not None})
    if inputs is not None:
        format.give(model, inputs)
    return Loaded(format, model, analyse(model.graph))


def _prove(proof: Proof, report: Report, pruned: Any, chosen: Chosen, progress: Callable[[float], None]) -> None:
    steps: list[Callable[[], Check]] = [
        proof.permutation,
        lambda: proof.zero_equals_cut(chosen),
        lambda: proof.runs(pruned, chosen),
    ]
    for done, check in enumerate(steps if chosen else steps[2:]):
        report.checks.append(check())
        give_back(report.dense.bytes)
        progress((done + 1) / len(steps))


def _measure(proof: Proof, report: Report, pruned: Any, chosen: Chosen, origin: Any, timing: bool) -> None:
    """Drift, and latency of both models measured alternately."""
    if not report.verified or not report.dims:
        return
    before = proof.outputs(proof.runner if origin is None else proof.format.run(origin))
    give_back(report.dense.bytes)
    after = proof.format.run(pruned)
    report.drift = proof.drift(before, after, chosen)
    if timing:
        feeds = proof.trials[0][1]
        report.latency = timed([(proof.runner, feeds), (after, proof.analysis.fit(feeds, chosen))])


def _require_finite(changed: Changed) -> None:
    """UsageError where a weight became what its type does not hold."""
    for name, value in {**changed.values, **changed.add}.items():
        if not np.isfinite(value.astype(np.float64)).all():
            raise UsageError(
                f"what the weight {name!r} becomes to make up for the cut does not fit into {value.dtype}",
                hint="give more calibration data, more --damping, or --no-compensate",
            )


def _asked(request: Request, seed: int) -> dict[str, Any]:
    given = {name: value for name, value in asdict(request).items() if value is not None}
    return {**{name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}, "seed": seed}


def stage(progress: Progress | None, name: str) -> Callable[[float], None]:
    """Progress of the stage ``name`` alone."""
    return (lambda done: progress(name, done)) if progress else (lambda done: None)
