"""Proof that a cut is the surgery that was asked for. Three checks, none of which knows an architecture.

1. *permutation*: every prunable atom is permuted at random in every weight; the outputs must not change. A Dim is
   coupled rightly exactly when it is a permutation symmetry of the model. An atom that lies under another is permuted
   under each position of that one by itself.
2. *zero equals cut*: with zeros at the removed positions wherever they are summed over, the model at full size computes
   what the cut model computes.
3. *loads and runs*: checker, strict shape inference, and a run with the declared inputs at two dynamic sizes.

Errors are relative to the largest output. The limit is 1e-4 or ten times the model's own rounding noise (its outputs'
change when every weight moves by one unit in the last place), whichever is larger. Where that noise is large, other
inputs are tried and those with the least noise are kept; a model that drowns every proof in noise fails, with a hint.
A quantised model jumps from integer to integer: where that shows, both checks are made without that rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis
from graphprune.dims import Chosen, Dim, Positions
from graphprune.errors import VerifyError
from graphprune.formats import Format, Runner
from graphprune.graph import Array

TOLERANCE = 1e-4
NOISE_FACTOR = 10
NOISE_LIMIT = 1e-3
STYLES = 4
FADED = 1e-2
_BLOCK = 1 << 20
"""Elements of outputs that are compared at a time."""
Floats = npt.NDArray[np.float64]
Outputs = list[dict[str, Array]]
"""By name, of each trial."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check: ``error`` against ``limit`` (both relative), and what was looked at."""

    name: str
    passed: bool
    detail: str
    error: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        figures = "" if self.error is None else f" (error {self.error:.1e}, limit {self.limit:.1e})"
        return f"{'passed' if self.passed else 'FAILED'} {self.name}: {self.detail}{figures}"


def difference(a: dict[str, Array], b: dict[str, Array]) -> float:
    """The largest relative difference over all outputs; for integers and booleans the share of entries that differ."""
    return max((_relative(a[name], b[name]) for name in a), default=0.0)


def _relative(a: Array, b: Array) -> float:
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    if a.dtype.kind not in "fV":
        return float(np.mean(a != b))
    seen, scale, worst = False, 0.0, 0.0
    for x, y in _blocks(a, b):
        finite = np.isfinite(x)
        if (finite != np.isfinite(y)).any():
            return float("inf")
        seen = seen or bool(finite.any())
        scale = max(scale, float(np.abs(x[finite]).max(initial=0)))
        worst = max(worst, float(np.abs(x[finite] - y[finite]).max(initial=0)))
    if not seen:
        return float("inf")
    return worst / scale if scale else 0.0


def _blocks(a: Array, b: Array) -> Iterator[tuple[Floats, Floats]]:
    """Two arrays of one shape in float64, some of their elements at a time: logits are large."""
    a, b = a.reshape(-1), b.reshape(-1)
    for at in range(0, a.size, _BLOCK):
        yield a[at : at + _BLOCK].astype(np.float64), b[at : at + _BLOCK].astype(np.float64)


class Proof:
    """The checks on one model; the dense model is loaded and run once for all of them.

    Inputs are those given to the model, else random ones. ``way`` is what the model is made to do, where it may do
    other things than it does by itself: take the first branch of every If.
    """

    def __init__(self, format: Format, model: Any, analysis: Analysis, *, seed: int = 0, way: str = "") -> None:
        self.format = format
        self.model = model
        self.analysis = analysis
        self.seed = seed
        self.way = way
        self._rounds = True
        self.runner = self.run(model)
        self.trials = format.trials(model, self.runner, seed)
        self.dense = self.outputs(self.runner)
        self.others = [] if way else list(self._others())
        self._noise: float | None = None
        self._faded = False

    def _others(self) -> Iterator[Proof]:
        """Proofs on the other ways that the model can be made to go, where it runs and computes anything there."""
        for way in self.format.forced(self.model, self.analysis.graph):
            with suppress(VerifyError):
                other = Proof(self.format, self.model, self.analysis, seed=self.seed, way=way)
                if not other._constant():
                    yield other

    def run(self, model: Any, *, as_is: bool = False) -> Runner:
        """The dense ``model``, or one made of it, on the way of this proof, rounded or not."""
        made = self.format.forced(model, self.analysis.graph)[self.way] if self.way else model
        return self.format.run(made if self._rounds or as_is else self.format.unrounded(made))

    @property
    def sizes(self) -> str:
        """The dynamic sizes run at, for messages."""
        shown = [", ".join(f"{name}={size}" for name, size in sizes.items()) for sizes, _ in self.trials]
        return " and ".join(filter(None, shown)) or "its fixed size"

    def noise(self) -> float:
        """How much the outputs move when every weight moves by one unit in the last place.

        Where that is much, livelier inputs are looked for: other sizes, other amplitudes; the steadiest are kept.
        """
        if self._noise is None:
            nudged = self.run(self._nudged)
            self._noise = self._against(nudged)
            for style in range(1, STYLES):
                if self._noise * NOISE_FACTOR <= TOLERANCE or self.model.given:
                    break
                before = self.trials, self.dense
                self._look(style)
                noise = self._against(nudged)
                if 0 < noise < self._noise:
                    self._noise = noise
                else:
                    self.trials, self.dense = before
        return self._noise

    def _constant(self) -> bool:
        """Whether no output takes two different values anywhere."""
        seen: dict[str, list[Array]] = {}
        for outputs in self.dense:
            for name, value in outputs.items():
                seen.setdefault(name, []).append(value.reshape(-1))
        return all(map(_same, seen.values()))

    @cached_property
    def _nudged(self) -> Any:
        return self.format.nudge(self.model, self.analysis, self.seed)

    def _stops_rounding(self) -> bool:
        """Go over to the model without the rounding of activations, if it has any, and is not yet without."""
        whole = self.format.unrounded(self.model) if self._rounds and not self.way else None
        if whole is None:
            return False
        try:
            runner = self.format.run(whole)
            dense = self.outputs(runner)
        except VerifyError:
            return False
        self._rounds, self.runner, self.dense, self._noise = False, runner, dense, None
        return True

    def _look(self, style: int) -> None:
        self.trials = self.format.trials(self.model, self.runner, self.seed, style)
        self.dense = self.outputs(self.runner)

    def outputs(self, runner: Runner) -> Outputs:
        """What ``runner`` makes of the inputs of every trial."""
        return [runner(inputs) for _, inputs in self.trials]

    def _against(self, runner: Runner, reference: Outputs | None = None, chosen: Chosen | None = None) -> float:
        """The largest difference between ``runner`` and the dense model's outputs (or ``reference``) over all trials.

        ``chosen`` are the positions that ``runner`` was cut to.
        """
        worst, kept = 0.0, chosen or {}
        for expected, (_, inputs) in zip(reference or self.dense, self.trials, strict=True):
            worst = max(worst, difference(self.analysis.fit(expected, kept), runner(self.analysis.fit(inputs, kept))))
        return worst

    def _judge(self, name: str, detail: str, error: float, noise: float) -> Check:
        limit = max(TOLERANCE, NOISE_FACTOR * min(noise, NOISE_LIMIT))
        if error > limit and noise > NOISE_LIMIT:
            detail += f"; rounding alone moves the outputs by {noise:.0e}, which proves little: give real inputs"
        detail += "" if self._rounds else ", without the rounding of quantised activations"
        return Check(name, error <= limit, f"{detail}, run at {self.sizes}", error, limit)

    def _everywhere(self, check: Callable[[Proof], Check]) -> Check:
        """``check`` here and on every other way: the worst outcome, and all that was looked at."""
        ways = [self, *self.others]
        found = [check(proof) for proof in ways]
        worst = max(range(len(ways)), key=lambda i: (not found[i].passed, found[i].error or 0.0))
        if not found[worst].passed:
            return replace(found[worst], detail="; ".join(filter(None, (ways[worst].way, found[worst].detail))))
        looked = [found[0].detail, *(f"{proof.way}, run at {proof.sizes}" for proof in self.others)]
        return replace(found[worst], detail="; ".join(looked))

    def permutation(self, dims: Sequence[Dim] | None = None) -> Check:
        """Permute every prunable atom (or ``dims``) at once; outputs must stay."""
        return self._everywhere(lambda proof: proof._permutation(dims))

    def _permutation(self, dims: Sequence[Dim] | None) -> Check:
        random = np.random.default_rng(self.seed)
        chosen = {dim: _shuffled(dim, random) for dim in dims or [a.dim for a in self.analysis.prunable]}
        if self._constant():
            detail = "the outputs are constant on the inputs tried, which proves nothing: give inputs that move them"
            return Check("permutation", False, detail)
        permuted = self.run(self.format.apply(self.model, self.analysis, chosen))
        error, noise = self._against(permuted, chosen=chosen), 0.0
        if error > TOLERANCE and self._stops_rounding():
            return self._permutation(dims)
        if error > TOLERANCE:
            noise = self.noise()
            error = self._against(permuted, chosen=chosen)
        return self._judge("permutation", f"{len(chosen)} dims permuted", error, noise)

    def zero_equals_cut(self, chosen: Chosen) -> Check:
        """Zero the removed positions in the dense model and compare with the cut one, over all dims that are exact."""
        return self._everywhere(lambda proof: proof._zero_equals_cut(chosen))

    def _zero_equals_cut(self, chosen: Chosen) -> Check:
        able = self.format.maskable(self.analysis)
        exact = {dim: index for dim, index in chosen.items() if dim in able}
        if not exact:
            return Check("zero equals cut", True, f"none of the {len(chosen)} cut dims is exact; nothing to compare")
        detail = f"{len(exact)} of {len(chosen)} cut dims are exact and were compared"
        check = self._zeroed(exact, detail)
        if self._faded:
            detail += ", one position of each: the outputs of the whole cut fade to nothing"
            check = self._zeroed({dim: _all_but_one(dim, index) for dim, index in exact.items()}, detail)
        return check

    def _zeroed(self, exact: Chosen, detail: str) -> Check:
        zeroed = self.outputs(self.run(self.format.mask(self.model, self.analysis, exact)))
        cut = self.run(self.format.apply(self.model, self.analysis, exact))
        error, noise = self._against(cut, zeroed, exact), 0.0
        if error > TOLERANCE and self._stops_rounding():
            return self._zeroed(exact, detail)
        if error > TOLERANCE:
            noise = self._against(self.run(self.format.mask(self._nudged, self.analysis, exact)), zeroed)
        largest = [max(map(_largest, outputs.values())) for outputs in (self.dense[0], zeroed[0])]
        self._faded = largest[1] < FADED * largest[0]
        return self._judge("zero equals cut", detail, error, noise)

    def runs(self, pruned: Any, chosen: Chosen | None = None) -> Check:
        """The pruned model is valid, loads, and gives outputs of the same shapes at both sizes (``chosen`` aside)."""
        return self._everywhere(lambda proof: proof._runs(pruned, chosen))

    def _runs(self, pruned: Any, chosen: Chosen | None) -> Check:
        try:
            self._check(pruned)
            runner = self.run(pruned, as_is=True)
            for expected, (_, inputs) in zip(self.dense, self.trials, strict=True):
                found = runner(self.analysis.fit(inputs, chosen or {}))
                for name, value in self.analysis.fit(expected, chosen or {}).items():
                    if name not in found or value.shape != found[name].shape:
                        raise VerifyError(f"output {name!r} is missing, or no longer of shape {list(value.shape)}")
        except VerifyError as error:
            return Check("loads and runs", False, error.what)
        return Check("loads and runs", True, f"valid, run at {self.sizes}")

    def _check(self, pruned: Any) -> None:
        """The pruned model passes the checks of its format; what the model itself does not pass is not asked of it."""
        try:
            self.format.check(pruned)
        except VerifyError:
            try:
                self.format.check(self.model)
            except VerifyError:
                return
            raise

    def drift(self, before: Outputs, runner: Runner, chosen: Chosen) -> float:
        """How far the outputs move from those ``before``, of every trial, to a model cut to ``chosen``."""
        fitted = (self.analysis.fit(outputs, chosen) for outputs in before)
        return moved(fitted, (runner(self.analysis.fit(feeds, chosen)) for _, feeds in self.trials))


def moved(before: Iterable[Mapping[str, Array]], after: Iterable[Mapping[str, Array]]) -> float:
    """Norm of the change of the floating-point outputs over the norm of the outputs ``before``."""
    change = norm = 0.0
    for old, new in zip(before, after, strict=True):
        for name, value in old.items():
            if value.dtype.kind == "f":
                for x, y in _blocks(value, new[name]):
                    change += float(np.square(x - y).sum())
                    norm += float(np.square(x).sum())
    return float(np.sqrt(change / norm)) if norm else 0.0


def _largest(value: Array) -> float:
    if value.dtype.kind != "f":
        return 1.0
    return float(np.maximum(value.max(initial=0), -value.min(initial=0)))


def _same(parts: Sequence[Array]) -> bool:
    """Whether arrays hold one value again and again; a lone one, whether it is zero."""
    first = next((part[:1] for part in parts if part.size), np.empty(0))
    again = all((part == first).all() for part in parts)
    return again and (sum(part.size for part in parts) != 1 or not first.any())


def _shuffled(dim: Dim, random: np.random.Generator) -> Positions:
    """An order of the positions of ``dim``: another one under each position of the atom that it lies under."""
    order = np.arange(dim.size or 0)
    return random.permuted(order if dim.under is None else np.tile(order, (dim.under.extent, 1)), axis=-1)


def _all_but_one(dim: Dim, kept: Positions) -> Positions:
    if kept.ndim > 1:
        return np.stack([_all_but_one(dim, row) for row in kept])
    everything = np.arange(dim.size or 0)
    removed = np.setdiff1d(everything, kept)[:1]
    return np.setdiff1d(everything, removed)


def structure(format: Format, pruned: Any) -> Check:
    """The third check without a run, for models too large to load beside everything else."""
    try:
        format.check(pruned)
    except VerifyError as error:
        return Check("structure", False, error.what)
    return Check("structure", True, "checker and strict shape inference passed; not run")


def require(checks: Iterable[Check]) -> None:
    """VerifyError unless all passed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        raise VerifyError(
            "; ".join(str(check) for check in failed),
            hint="nothing was written; please report the model, or leave out the dims concerned with --exclude",
        )
