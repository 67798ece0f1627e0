"""The stages on one screen: read -> analyse -> score -> allocate -> plan -> apply -> verify -> report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from graphprune import formats
from graphprune.analysis import Analysis, analyse
from graphprune.budget import Request, allocate, candidates
from graphprune.compensate import DAMPING, compensate
from graphprune.consumers import Site, consumers
from graphprune.cost import latency as measured
from graphprune.dims import Chosen, atoms
from graphprune.errors import UsageError
from graphprune.explain import describe, explain
from graphprune.plan import Plan, fingerprint, make_plan
from graphprune.report import Report, make_report
from graphprune.scores import SCORES, Task, score_atoms
from graphprune.stats import Batches, Moments, collect
from graphprune.verify import Check, Proof, moved, require, structure

VERIFY = ("full", "structure", "none")
Progress = Callable[[str, float], None]


@dataclass
class Loaded:
    """A model that was read and analysed, ready to be planned for, cut and looked at.

    ``origin`` is the model as it was read, where weights were changed since.
    """

    format: formats.Format
    model: Any
    analysis: Analysis
    origin: Any = None

    def dims(self) -> list[dict[str, Any]]:
        """One record a Dim: name, kind, size, prunable, exact, reason, worth in parameters and MACs, weights."""
        return describe(self.analysis)

    def explain(self, name: str) -> str:
        """How the weights of the Dim ``name`` came to be coupled, or what froze it."""
        return explain(self.analysis, name)

    def measure(self, batches: Batches, request: Request | None = None) -> dict[Site, Moments]:
        """Moments of the activations that weights multiply, over ``batches`` of inputs by name.

        With ``request`` only where Dims are that it lets be cut.
        """
        wanted = {atom.dim for atom in candidates(self.analysis, request)} if request else None
        found = [c for c in consumers(self.analysis) if wanted is None or not wanted.isdisjoint(atoms(c.dim))]
        sites = dict.fromkeys(site for consumer in found for site in consumer.sites)
        graph = self.analysis.graph
        sizes = {site: graph.extent((graph.shape(site.value) or ())[site.axis]) for site in sites}
        return collect(sites, sizes, batches, lambda some, data: self.format.moments(self.model, some, data))

    def compensated(self, plan: Plan, moments: Mapping[Site, Moments], damping: float = DAMPING) -> Loaded:
        """This model with the weights that stay changed so that they make up for what ``plan`` removes."""
        values = compensate(self.analysis, plan.chosen(self.analysis), moments, damping)
        model = self.format.replaced(self.model, values)
        return Loaded(self.format, model, analyse(model.graph), self.model)

    def plan(
        self,
        request: Request,
        score: str = "l2",
        *,
        loss: Any = None,
        batches: Any = None,
        moments: Mapping[Site, Moments] | None = None,
        sample: Mapping[str, Any] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Plan:
        """Score, allocate, and write down which positions stay. Nothing is changed.

        Scores that need gradients take ``loss`` (of module and batch, a scalar tensor) and ``batches``; those that need
        data take ``moments`` (see `measure`), and ``sample``, inputs to see how far the outputs move.
        """
        wanted = candidates(self.analysis, request)
        gradients = self.format.gradients(self.model, loss, batches)
        seen = None if moments is None else lambda sites: moments
        drift = None if sample is None else partial(self._drift, self.format.run(self.model)(sample), sample)
        task = Task(self.analysis, wanted, seed, _stage(progress, f"scoring by {score}"), gradients, seen, drift)
        scores = score_atoms(task, score)
        errors = SCORES[score].errors
        chosen = allocate(self.analysis, wanted, scores, request, errors=errors) if self.analysis.prunable else {}
        return make_plan(self.analysis, chosen, score, _asked(request, seed))

    def _drift(self, dense: Mapping[str, Any], sample: Mapping[str, Any], kept: Chosen) -> float:
        """How far the outputs on ``sample`` move from ``dense`` when all positions but those ``kept`` are zeroed."""
        masked = self.format.run(self.format.mask(self.model, self.analysis, kept))
        return moved([dense], [masked(sample)])

    def apply(
        self,
        plan: Plan,
        *,
        verify: str = "full",
        seed: int = 0,
        latency: bool = True,
        progress: Progress | None = None,
    ) -> Result:
        """Cut as ``plan`` says and prove it; VerifyError, and no result, where a check fails.

        ``verify`` is "full", "structure" (checker and shape inference only; forced for models too large to run
        twice) or "none".
        """
        if verify not in VERIFY:
            raise UsageError(f"there is no verification {verify!r}", hint=f"choose one of {', '.join(VERIFY)}")
        chosen = plan.chosen(self.analysis)
        pruned = self.format.apply(self.model, self.analysis, chosen)
        report = make_report(self.analysis, plan, chosen)
        if fingerprint(self.analysis.graph) != plan.model:
            report.notes.append(
                "the plan was made on another export: Dims were found by the names of weights and modules"
            )
        if self.origin is not None:
            report.notes.append("the weights that stay make up for what went, by least squares on the calibration data")
        if verify == "full" and self.model.large:
            verify = "structure"
            report.notes.append("too large to run beside its own copy: verified by structure only")
        if verify == "full":
            proof = Proof(self.format, self.model, self.analysis, seed=seed)
            _prove(proof, report, pruned, chosen, _stage(progress, "verifying"))
            _measure(proof, report, pruned, self.origin, latency=latency)
        elif verify == "structure":
            report.checks.append(structure(self.format, pruned))
        require(report.checks)
        return Result(self, pruned, plan, report)


@dataclass
class Result:
    """A pruned model with its plan and report."""

    loaded: Loaded
    pruned: Any
    plan: Plan
    report: Report

    @property
    def model(self) -> Any:
        """The pruned model itself: an onnx.ModelProto, or for torch a GraphModule that trains and exports again."""
        return self.loaded.format.native(self.pruned)

    def save(self, path: str | Path, progress: Callable[[float], None] | None = None) -> Path:
        """Write the pruned model to ``path`` (beside it first, then renamed): .onnx, for torch models .pt2 or .onnx."""
        return self.loaded.format.save(self.pruned, path, progress)

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


def prune(
    source: Any,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    keep: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    score: str = "l2",
    multiple: int = 8,
    floor: float = 0.1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow: Sequence[str] = (),
    loss: Any = None,
    batches: Any = None,
    calib: Batches | None = None,
    compensate: bool = True,
    verify: str = "full",
    inputs: Mapping[str, Any] | None = None,
    seed: int = 0,
    latency: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Shrink a model: plan, cut, prove, report. Options as in `Request` and `Loaded.apply`.

    ``calib``, batches of inputs by name, serve scores that need data, and the weights that stay are changed to make up
    for what goes on them (unless ``compensate`` is false).

    >>> import graphprune
    >>> result = graphprune.prune("models/digits.onnx", macs=0.5)
    >>> result.report.verified, result.report.pruned.macs <= 0.5 * result.report.dense.macs
    (True, True)
    """
    request = Request(keep, params, macs, multiple, floor, *map(_patterns, (include, exclude, allow)))
    loaded = load(source, inputs=inputs, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    data = None if calib is None else list(calib)
    moments = None if data is None else loaded.measure(data, request)
    sample = data[0] if data else None
    how = {"loss": loss, "batches": batches, "seed": seed, "progress": progress}
    plan = loaded.plan(request, score, moments=moments, sample=sample, **how)
    if moments is not None and compensate:
        loaded = loaded.compensated(plan, moments)
    return loaded.apply(plan, verify=verify, seed=seed, latency=latency, progress=progress)


def verify(source: Any, *, inputs: Mapping[str, Any] | None = None, seed: int = 0) -> list[Check]:
    """The permutation proof on one model: are its Dims coupled as the analysis says?"""
    loaded = load(source, inputs=inputs)
    proof = Proof(loaded.format, loaded.model, loaded.analysis, seed=seed)
    return [proof.permutation(), proof.runs(loaded.model)]


def _prove(proof: Proof, report: Report, pruned: Any, chosen: Chosen, progress: Callable[[float], None]) -> None:
    steps: list[Callable[[], Check]] = [
        proof.permutation,
        lambda: proof.zero_equals_cut(chosen),
        lambda: proof.runs(pruned),
    ]
    for done, check in enumerate(steps if chosen else steps[2:]):
        report.checks.append(check())
        progress((done + 1) / len(steps))


def _measure(proof: Proof, report: Report, pruned: Any, origin: Any, latency: bool) -> None:
    """Drift, and latency of both models measured alternately."""
    if not report.verified or not report.dims:
        return
    after = proof.format.run(pruned)
    report.drift = proof.drift(after, proof.format.run(origin) if origin is not None else proof.runner)
    if latency:
        report.latency = measured([proof.runner, after], proof.trials[0][1])


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern, or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def _asked(request: Request, seed: int) -> dict[str, Any]:
    given = {name: value for name, value in asdict(request).items() if value is not None}
    return {**{name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}, "seed": seed}


def _stage(progress: Progress | None, name: str) -> Callable[[float], None]:
    return (lambda done: progress(name, done)) if progress else (lambda done: None)
