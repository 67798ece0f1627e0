"""What a score is: a named function from an analysed model to one number a position of each atom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis, Atom
from graphprune.consumers import Site
from graphprune.dims import Chosen, Dim
from graphprune.errors import UsageError
from graphprune.graph import Array
from graphprune.stats import Moments

Floats = npt.NDArray[np.float64]
Scores = Mapping[Dim, Floats]
Progress = Callable[[float], None]
Gradients = Iterable[Mapping[str, Array]]


def _no_progress(done: float) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Task:
    """What a score is given: the ``atoms`` to score, and where numbers come from.

    ``gradients(kind)`` yields, a batch at a time, numbers by weight name: the "gradient" of the loss, the "hessian"
    times it, or those of "synflow"; None where the model has no gradients. ``moments(sites)`` are those of activations,
    ``drift(kept)`` is how far the outputs move, relative to their size, when all positions but those kept are zeroed;
    None where there is no data.
    """

    analysis: Analysis
    atoms: list[Atom]
    seed: int = 0
    progress: Progress = _no_progress
    gradients: Callable[[str], Gradients] | None = None
    moments: Callable[[Iterable[Site]], Mapping[Site, Moments]] | None = None
    drift: Callable[[Chosen], float] | None = None


Function = Callable[[Task], dict[Dim, Floats]]


@dataclass(frozen=True)
class Score:
    """A criterion: ``needs`` says what it takes beside the model (nothing, data, gradients, labels).

    Scores that are ``errors`` mean the same in every Dim; of others only the ranking within a Dim counts.
    """

    name: str
    needs: str
    doc: str
    function: Function
    errors: bool = False


SCORES: dict[str, Score] = {}


def score(name: str, needs: str = "nothing", *, errors: bool = False) -> Callable[[Function], Function]:
    """Register a score under ``name``; its docstring is what users read."""

    def register(function: Function) -> Function:
        SCORES[name] = Score(name, needs, (function.__doc__ or "").strip(), function, errors)
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
            f"the score {name!r} needs data", hint="prune from Python, and give calib=..., batches of inputs by name"
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


def _culprit(analysis: Analysis, atom: Atom) -> str:
    for name in atom.weights:
        if not np.isfinite(analysis.graph.weights[name].load().astype(np.float64)).all():
            return f"the weight {name!r} holds NaN or infinity"
    return "its weights are finite, so the score itself made the number (or squares overflowed)"
