"""What a score is: a named function from an analysed model to one number a position of each atom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis, Atom
from graphprune.consumers import Site, consumers
from graphprune.dims import Chosen, Dim, atoms
from graphprune.errors import UsageError
from graphprune.graph import Array
from graphprune.stats import Moments

Floats = npt.NDArray[np.float64]
Scores = Mapping[Dim, Floats]
Progress = Callable[[float], None]
Gradients = Iterable[Mapping[str, Array]]
Signals = Iterable[Mapping[str, tuple[Array, Array]]]
Across = Literal["mean", "error", "same"]
"""How scores of different Dims compare under one budget for the whole model.

"mean": each relative to the mean of its Dim. "error": what is lost by a removal, for each parameter or MAC that it
frees. "same": as they are.
"""


def _no_progress(done: float) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Task:
    """What a score is given: the ``atoms`` to score, and where numbers come from.

    An atom that lies under another may also be asked for as the product of both: a number for each pair of positions.

    ``gradients(kind)`` yields, a batch at a time, numbers by weight name: the "gradient" of the loss, the "hessian"
    times it, those of "synflow", or of the distance to "disturbed" outputs; None where the model has no gradients.
    ``signals(values)`` yields, a batch at a time, activations by name, each with the gradient of the loss by it, in two
    arrays of its shape; None likewise. ``moments(sites)`` are those of activations,
    ``drift(kept)`` is how far the outputs move, relative to their size, when all positions but those kept are zeroed;
    None where there is no data. ``notes`` is for what a score wants to be in the report.
    """

    analysis: Analysis
    atoms: list[Atom]
    seed: int = 0
    progress: Progress = _no_progress
    gradients: Callable[[str], Gradients] | None = None
    moments: Callable[[Iterable[Site]], Mapping[Site, Moments]] | None = None
    drift: Callable[[Chosen], float] | None = None
    signals: Callable[[Iterable[str]], Signals] | None = None
    notes: list[str] = field(default_factory=list)


Function = Callable[[Task], dict[Dim, Floats]]


@dataclass(frozen=True)
class Score:
    """A criterion: ``needs`` says what it takes beside the model (nothing, data, gradients, labels), ``across`` how it
    compares Dims.
    """

    name: str
    needs: str
    doc: str
    function: Function
    across: Across = "mean"


SCORES: dict[str, Score] = {}


def score(name: str, needs: str = "nothing", *, across: Across = "mean") -> Callable[[Function], Function]:
    """Register a score under ``name``; its docstring is what users read."""

    def register(function: Function) -> Function:
        SCORES[name] = Score(name, needs, (function.__doc__ or "").strip(), function, across)
        return function

    return register


def score_atoms(task: Task, name: str = "l2") -> Scores:
    """Scores of the atoms of ``task`` by the criterion ``name``: a float64 array of its size each, larger is dearer.

    Raises UsageError for a name that is not registered, gradients that are not there, or weights that are not finite.
    """
    if name not in SCORES:
        raise UsageError(f"there is no score {name!r}", hint=f"choose one of {', '.join(sorted(SCORES))}")
    if SCORES[name].needs.startswith("gradients") and task.gradients is None:
        raise UsageError(
            f"the score {name!r} needs gradients",
            hint="prune a torch module, and give loss=... and batches=...; files have scores such as l2",
        )
    if SCORES[name].needs == "data" and task.moments is None:
        raise UsageError(
            f"the score {name!r} needs data", hint="use graphprune.prune, or give plan the moments of Loaded.measure"
        )
    if SCORES[name].needs == "data" and task.analysis.facts.integers and not consumers(task.analysis):
        raise UsageError(
            f"the score {name!r} looks at what weights multiply, and the layers of this file multiply integers",
            hint="quantise to pairs of QuantizeLinear and DequantizeLinear (QuantFormat.QDQ), or choose l2",
        )
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are spoken of below
        found = SCORES[name].function(task)
    for atom in task.atoms:
        if not np.isfinite(found[atom.dim]).all():
            raise UsageError(
                f"the score {name!r} of {atom.name!r} is not finite: {_culprit(task.analysis, atom)}",
                hint="repair the model, or leave the dim out with --exclude",
            )
    return found


def upper(dim: Dim, values: Floats) -> Chosen:
    """The half of ``dim`` that scores best, the middle with it; of pairs that of each row."""
    grid = values.reshape([part.extent for part in dim.parts] or -1)
    order = np.argsort(grid, kind="stable")
    return {[*atoms(dim)][-1]: np.sort(order[..., grid.shape[-1] // 2 :])}


def _culprit(analysis: Analysis, atom: Atom) -> str:
    for name in atom.weights:
        if not np.isfinite(analysis.graph.weights[name].load().astype(np.float64)).all():
            return f"the weight {name!r} holds NaN or infinity"
    return "its weights are finite, so the score itself made the number (or squares overflowed)"
