"""Pruning in steps: cut a little, let the user train, cut again. A schedule says how much is left after each step.

State is written after every step (beside and renamed), so that a killed run goes on where it was: at most one step is
lost. Torch models only: between two steps somebody has to train.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphprune.budget import COSTS, amount
from graphprune.cost import CostModel
from graphprune.errors import UsageError
from graphprune.loaded import Result, load
from graphprune.pipeline import prune

Callback = Callable[[Any, int], None]

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda final, done: 1 - (1 - final) * done,
    "cubic": lambda final, done: final + (1 - final) * (1 - done) ** 3,
    "exponential": lambda final, done: final**done,
}
"""The share that is left when a share ``done`` of the steps is done; cubic is AGP (Zhu & Gupta, arXiv 1710.01878)."""


def prune_in_steps(
    module: Any,
    *,
    example_inputs: Any,
    steps: int,
    callback: Callback,
    schedule: str = "cubic",
    state: str | Path | None = None,
    **request: Any,
) -> Result:
    """Prune ``module`` in ``steps`` steps, calling ``callback(model, step)`` after each (train there).

    ``request`` is that of `graphprune.prune`: the target (``keep``, ``params``, ``macs``, ``bytes`` or ``activations``,
    a share) is what is left at the end. With ``state`` a folder, every step is saved there and a later call with the
    same arguments goes on.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"there is no schedule {schedule!r}", hint=f"choose one of {', '.join(SCHEDULES)}")
    if steps < 1:
        raise UsageError(f"{steps} steps make no sense", hint="at least 1")
    given = {name: amount(request.pop(name)) for name in ("keep", *COSTS) if request.get(name) is not None}
    target, final = next(iter(given.items()), ("", 0.0))
    if len(given) != 1 or not 0 < final <= 1:
        raise UsageError(
            f"give one of keep, {', '.join(COSTS)} as a share of the dense model", hint="for example macs=0.5"
        )
    request = {**request, "example_inputs": example_inputs}
    left = [SCHEDULES[schedule](final, step / steps) for step in range(steps + 1)]
    asked = {target: final, "steps": steps, "schedule": schedule, **_plain(request)}
    store = _Store(Path(state), asked) if state is not None else None
    model, first = (store.latest() if store else None) or (module, 0)
    dense = _dense(module, target, example_inputs) if target != "keep" else 0
    result = None
    for step in range(first, steps):
        goal = left[step + 1] * dense if dense else left[step + 1] / left[step]
        result = prune(model, **{**request, target: goal})
        model = result.model
        callback(model, step)
        if store:
            store.save(result, step + 1)
    return result or prune(model, **{**request, "keep": 1.0})


def _plain(request: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``request`` can be written down: numbers, names and patterns, but no data."""
    patterns = {name: list(request[name]) for name in ("include", "exclude", "allow") if name in request}
    return {**{name: value for name, value in request.items() if isinstance(value, int | float | str)}, **patterns}


def _dense(module: Any, target: str, example_inputs: Any) -> int:
    """The cost before the first step, so that what rounding left over in one step is made up in the next."""
    cost = CostModel(load(module, example_inputs=example_inputs).analysis)({})
    return int(getattr(cost, target))


class _Store:
    """Models by step, in a folder, and what was asked for when the first was made."""

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "asked.json"
        before = json.loads(note.read_text()) if note.is_file() else asked
        changed = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
        if changed:
            listed = ", ".join(f"{name} was {before.get(name)} and is {asked.get(name)}" for name in changed)
            raise UsageError(
                f"the steps in {folder} were made for another request: {listed}",
                hint="give the same request to go on, or another folder to begin anew",
            )
        half = note.with_suffix(f".{os.getpid()}.partial")
        half.write_text(json.dumps(asked))
        half.replace(note)

    def latest(self) -> tuple[Path, int] | None:
        """The newest whole step, and how many steps it took."""
        steps = [int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*[0-9].pt2")]
        return (self.folder / f"step-{max(steps)}.pt2", max(steps)) if steps else None

    def save(self, result: Result, step: int) -> None:
        """Write one step; the one before it goes once this one is whole."""
        result.save(self.folder / f"step-{step}.pt2")
        (self.folder / f"step-{step - 1}.pt2").unlink(missing_ok=True)
