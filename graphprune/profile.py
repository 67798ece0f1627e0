"""Measuring a model for `graphprune.latency`: dense, and cut to random sizes, on the machine that it is to run on.

Sizes are drawn as plans choose them, multiples of 8 and 16 for the most part, and now and then at will, so that it
shows what that costs. Which positions stay is all one to a clock. What was measured is kept after each run, so that the
next call goes on with it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.analysis import Atom
from graphprune.budget import Request, candidates
from graphprune.data.inputs import inputs
from graphprune.errors import UsageError
from graphprune.formats import Feeds
from graphprune.latency import RUNTIME, STRUCTURE, Profile, Run, Timing
from graphprune.loaded import Loaded
from graphprune.plan import fingerprint

STEPS = (8, 16, 8, 1)
"""What the sizes of one run after the other are multiples of, where Dims are large enough."""
RUNS = 24
SECONDS = 1.5
"""For which each cut model and the dense one are run, by turns."""
ROUNDS = (3, 40)
Measure = Callable[..., list[Timing]]


def setting(loaded: Loaded, feeds: Feeds, threads: int, allow: Sequence[str]) -> dict[str, Any]:
    """All that times hang on."""
    runtime, _, version = loaded.format.version().rpartition(" ")
    return {
        STRUCTURE: fingerprint(loaded.analysis.graph),
        "processor": _processor(),
        RUNTIME: runtime,
        "version of the runtime": version,
        "number of threads": threads,
        "shape of inputs": {name: list(value.shape) for name, value in feeds.items()},
        "list of what else may be cut": sorted(allow),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def at_sizes(loaded: Loaded, sizes: Mapping[str, int]) -> Loaded:
    """``loaded``, run on inputs whose dynamic axes are of these ``sizes`` by name; UsageError where it has no such."""
    if not sizes:
        return loaded
    (now, feeds), *_ = loaded.format.trials(loaded.model, loaded.format.run(loaded.model))
    unknown = sorted(set(sizes) - set(now))
    if unknown:
        raise UsageError(
            f"no axis of an input is called {unknown[0]!r}",
            hint=f"choose from {', '.join(now)}" if now else "all axes of the inputs are of fixed sizes",
        )
    wanted, takes = {**now, **sizes}, inputs(loaded.analysis.graph)
    return loaded.at({name: np.resize(value, takes[name].sized(wanted)) for name, value in feeds.items()})


def take_profile(
    loaded: Loaded,
    *,
    runs: int = RUNS,
    threads: int = 1,
    allow: Sequence[str] = (),
    known: Profile | None = None,
    seconds: float = SECONDS,
    measure: Measure | None = None,
    keep: Callable[[Profile], None] = lambda made: None,
) -> Profile:
    """Time the model dense and cut to ``runs`` choices of sizes; ``keep`` is handed what there is after each.

    ``known`` is what an earlier call has measured: it is gone on with. ``allow`` as in `Request`. UsageError where it
    is of another model, machine or inputs, or where there is nothing to cut.
    """
    measure = measure or loaded.format.timings
    atoms = candidates(loaded.analysis, Request(keep=0.5, allow=tuple(allow)))
    if not atoms:
        raise UsageError(
            "no Dim of the model may be cut, so that its time cannot change", hint="see graphprune inspect"
        )
    feeds = loaded.format.trials(loaded.model, loaded.format.run(loaded.model))[0][1]
    here = setting(loaded, feeds, threads, allow)
    if known is None:
        (dense,) = measure([(loaded.model, feeds)], threads=threads, rounds=ROUNDS[1])
        known = Profile(here, _rounded(dense))
    known.require(here)
    turns = rounds(known.dense.whole, seconds)
    for number in range(len(known.runs), runs):
        sizes = drawn(atoms, number)
        chosen = {atom.dim: np.arange(sizes[atom.name]) for atom in atoms}
        cut = loaded.format.apply(loaded.model, loaded.analysis, chosen)
        both = [(loaded.model, feeds), (cut, loaded.analysis.fit(feeds, chosen))]
        known.runs.append(Run(sizes, _at_the_pace_of(known.dense, *measure(both, threads=threads, rounds=turns))))
        keep(known)
    return known


def rounds(dense: float, seconds: float = SECONDS) -> int:
    """How often models are run by turns that take ``dense`` seconds, and two of them about ``seconds`` in all."""
    return int(np.clip(seconds / 12 / max(dense, 1e-6), *ROUNDS))


def drawn(atoms: Sequence[Atom], number: int) -> dict[str, int]:
    """Sizes of run ``number``: from a tenth of each atom to all of it, in multiples if it is large enough."""
    random, step = np.random.default_rng(number), STEPS[number % len(STEPS)]
    found = {}
    for atom in atoms:
        wish = int(np.ceil(atom.size * random.uniform(0.1, 1.0)))
        unit = int(np.lcm(atom.multiple, step if atom.size >= 4 * step else 1))
        least = max(atom.least, min(unit, atom.size))
        found[atom.name] = int(min(atom.size, max(least, round(wish / unit) * unit)))
    return found


def _at_the_pace_of(dense: Timing, beside: Timing, cut: Timing) -> Timing:
    """``cut`` as if the dense model beside it had taken what ``dense`` says, without kernels that ran as they do there.

    Kernels that are not in the dense model count with the next one that is.
    """
    ratio = _sum(dense) / _sum(beside)
    found = {name: kernel._replace(seconds=0.0) for name, kernel in dense.kernels.items() if name not in cut.kernels}
    extra, last = 0.0, ""
    for name, kernel in cut.kernels.items():
        if name not in dense.kernels:
            extra += kernel.seconds * ratio
            continue
        if extra or kernel.shapes != dense.kernels[name].shapes:
            found[name] = kernel._replace(seconds=kernel.seconds * ratio + extra)
        extra, last = 0.0, name
    if extra:
        kernel = found.get(last, dense.kernels[last])
        found[last] = kernel._replace(seconds=kernel.seconds + extra)
    return _rounded(Timing(cut.whole * dense.whole / beside.whole, found))


def _sum(timing: Timing) -> float:
    return sum(kernel.seconds for kernel in timing.kernels.values())


def _rounded(timing: Timing) -> Timing:
    kernels = {name: kernel._replace(seconds=float(f"{kernel.seconds:.4g}")) for name, kernel in timing.kernels.items()}
    return Timing(float(f"{timing.whole:.4g}"), kernels)
