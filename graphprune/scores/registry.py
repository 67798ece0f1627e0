"""What a score is: a named function from an analysed model to one number a position of each atom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis, Atom
from graphprune.dims import Dim
from graphprune.errors import UsageError

Floats = npt.NDArray[np.float64]
Scores = Mapping[Dim, Floats]
Progress = Callable[[float], None]
Function = Callable[[Analysis, "list[Atom]", int, Progress], dict[Dim, Floats]]


@dataclass(frozen=True)
class Score:
    """A criterion: ``needs`` says what it takes beside the model (nothing, data, gradients, labels)."""

    name: str
    needs: str
    doc: str
    function: Function


SCORES: dict[str, Score] = {}


def score(name: str, needs: str = "nothing") -> Callable[[Function], Function]:
    """Register a score under ``name``; its docstring is what users read."""

    def register(function: Function) -> Function:
        SCORES[name] = Score(name, needs, (function.__doc__ or "").strip(), function)
        return function

    return register


def score_atoms(
    analysis: Analysis, atoms: list[Atom], name: str = "l2", *, seed: int = 0, progress: Progress | None = None
) -> Scores:
    """Scores of ``atoms`` by the criterion ``name``: for each atom a float64 array of its size, larger is dearer.

    Raises UsageError for a name that is not registered, or weights that are not finite.
    """
    if name not in SCORES:
        raise UsageError(f"there is no score {name!r}", hint=f"choose one of {', '.join(sorted(SCORES))}")
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are spoken of below
        found = SCORES[name].function(analysis, atoms, seed, progress or (lambda done: None))
    for atom in atoms:
        if not np.isfinite(found[atom.dim]).all():
            raise UsageError(
                f"the score {name!r} of {atom.name!r} is not finite: {_culprit(analysis, atom)}",
                hint="repair the model, or leave the dim out with --exclude",
            )
    return found


def _culprit(analysis: Analysis, atom: Atom) -> str:
    for name in atom.weights:
        if not np.isfinite(analysis.graph.weights[name].load().astype(np.float64)).all():
            return f"the weight {name!r} holds NaN or infinity"
    return "its weights are too large to be squared and added up"
