"""What a model takes in seconds as a function of the sizes of its Dims, learnt from runs of it at various sizes.

A `Profile` holds measurements and nothing else: the whole model and kernel by kernel, once dense and then cut to random
sizes, each time beside the dense model, so that what slows the machine down slows both. `LatencyModel` reads from them
how the time of each kernel follows from sizes. Kernels are the runtime's own, after it fused nodes and chose layouts:
which Dims one depends on is seen from its shapes, which change from run to run as the sizes of these Dims do.

Kernels of the same op and shapes share their measurements. Their time is a polynomial of second degree in the sizes,
with coefficients that are not negative. To which multiple a kernel rounds sizes up, and for which sizes it goes another
way, is what explains its measurements best. The sum is then held to what whole models took.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis
from graphprune.cost import Sum
from graphprune.dims import Dim, resolve, size_after, touched
from graphprune.errors import ReadError, UsageError
from graphprune.plan import fingerprint

VERSION = 1
Floats = npt.NDArray[np.float64]
Sizes = Mapping[Dim, int]
Shapes = tuple[tuple[int, ...], ...]
ROUNDED = (1, 4, 8, 16, 32, 64)
"""Multiples that kernels may pad sizes to."""
OTHER = (4, 8, 16)
"""Multiples off which a kernel may go another way."""
FOLDS = 4
WARM, MEASURED = 1, 2
"""Runs of one model in a row: the first of them finds the caches full of another model."""
STRUCTURE, RUNTIME = "structure of a model", "runtime"
"""By these a profile knows its model, whatever the weights, and what ran it."""
_AGAIN = "measure it on the device with graphprune profile MODEL -o cost.json"


class Kernel(NamedTuple):
    """What the runtime ran as one: its op, the shapes of what it read and wrote, the seconds it took."""

    op: str
    shapes: Shapes
    seconds: float


class Timing(NamedTuple):
    """One model: seconds of a run that nobody watched, and the kernels of those that were, in order, by name."""

    whole: float
    kernels: dict[str, Kernel]


class Run(NamedTuple):
    """A cut model: the atoms' sizes by name, and what it took; kernels that ran as in the dense model are left out."""

    sizes: dict[str, int]
    timing: Timing


@dataclass
class Profile:
    """Measurements: ``setting`` says of which model and where; ``dense`` is what it takes whole, ``runs`` cut."""

    setting: dict[str, Any]
    dense: Timing
    runs: list[Run] = field(default_factory=list)

    def to_json(self) -> str:
        """One run a line."""
        head = {"graphprune_profile": VERSION, **asdict(self)}
        runs = ",\n  ".join(json.dumps(run) for run in head.pop("runs"))
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        return "\n".join(["{", *lines, ' "runs": [', f"  {runs}", " ]", "}", ""])

    @staticmethod
    def load(path: str | Path) -> Profile:
        """Read the measurements in the file ``path``; ReadError where it holds none."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data.pop("graphprune_profile") != VERSION:
                raise ReadError(f"the measurements in {path} are of another version of graphprune", hint=_AGAIN)
            runs = [Run(sizes, _timing(timing)) for sizes, timing in data.pop("runs")]
            return Profile(dict(data.pop("setting")), _timing(data.pop("dense")), runs, **data)
        except OSError as error:
            raise ReadError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ReadError(f"{path} holds no measurements of graphprune profile", hint=_AGAIN) from error

    def require(self, setting: Mapping[str, Any]) -> None:
        """UsageError where the measurements were made in another ``setting``: those of two do not mix."""
        for name, value in setting.items():
            if self.setting.get(name) != value:
                raise UsageError(
                    f"the measurements are of another {name}: {self.setting.get(name)}, and this is {value}",
                    hint=f"use those of this {name}, or make them: graphprune profile MODEL -o another.json",
                )


def _timing(data: Any) -> Timing:
    whole, kernels = data
    return Timing(
        float(whole), {name: Kernel(op, tuple(map(tuple, shapes)), t) for name, (op, shapes, t) in kernels.items()}
    )


def low(times: Sequence[float]) -> float:
    """The mean of the lower half: what others take of the machine only ever adds."""
    return float(np.mean(np.sort(times)[: (len(times) + 1) // 2]))


def clock(threads: int) -> Callable[[], float]:
    """Seconds of the processor, where one thread does all the work; else of the wall."""
    return time.thread_time if threads == 1 else time.perf_counter


def in_a_row(call: Callable[[], Any], threads: int) -> list[float]:
    """Seconds of calls one after the other, once the caches are warm."""
    now, found = clock(threads), list[float]()
    for _ in range(WARM + MEASURED):
        start = now()
        call()
        found.append(now() - start)
    return found[WARM:]


class LatencyModel:
    """Seconds of an analysed model at any sizes of the atoms that ``profile`` varied; ``about``: measured on what."""

    def __init__(self, analysis: Analysis, profile: Profile) -> None:
        profile.require({STRUCTURE: fingerprint(analysis.graph)})
        if not profile.runs:
            raise UsageError("the measurements hold no run of a cut model", hint=_AGAIN)
        names = {atom.name for atom in analysis.atoms}
        unknown = next((name for run in profile.runs for name in run.sizes if name not in names), None)
        if unknown is not None:
            raise UsageError(f"the measurements cut a Dim {unknown!r} that this model does not have", hint=_AGAIN)
        self.about = ", ".join(f"{name}: {value}" for name, value in profile.setting.items() if name != STRUCTURE)
        self._names = {atom.dim: atom.name for atom in analysis.atoms}
        named = {name: dim for dim, name in self._names.items()}
        self._free = {named[name]: name for run in profile.runs for name in run.sizes}
        tried: list[dict[Dim, int]] = [{}, *({named[name]: n for name, n in run.sizes.items()} for run in profile.runs)]
        self._sum = Sum(list(_learn(profile, _Watched(_axes(analysis, self._free), tried))), self._free)
        self._dense, self._slope = (profile.dense.whole, self._sum({})), 1.0
        sums = np.array([self._sum(sizes) - self._dense[1] for sizes in tried[1:]])
        wholes = np.array([run.timing.whole - self._dense[0] for run in profile.runs])
        if sums.any():
            self._slope = float(sums @ wholes / (sums @ sums))

    def __call__(self, sizes: Sizes) -> float:
        """Seconds of one run; UsageError where an atom is cut that no measured run cut."""
        for dim, size in sizes.items():
            if resolve(dim) not in self._free and size != dim.extent:
                raise UsageError(
                    f"the Dim {self._names[resolve(dim)]!r} is cut, and no measured run cut it",
                    hint="measure again with what is to be cut: graphprune profile MODEL -o cost.json --allow ...",
                )
        whole, total = self._dense
        return whole + self._slope * (self._sum(sizes) - total)

    def nanoseconds(self, sizes: Sizes) -> float:
        """The same as a count, which budgets take."""
        return 1e9 * self(sizes)


def held_out(analysis: Analysis, profile: Profile) -> list[float]:
    """How far each run is from what the others predict of it, relative to what it took."""
    named = {atom.name: atom.dim for atom in analysis.atoms}
    found = []
    for fold in range(FOLDS):
        others = [run for i, run in enumerate(profile.runs) if i // FOLDS % FOLDS != fold]
        model = LatencyModel(analysis, replace(profile, runs=others)) if others else None
        for i, run in enumerate(profile.runs):
            if i // FOLDS % FOLDS == fold and model:
                found.append(model({named[name]: size for name, size in run.sizes.items()}) / run.timing.whole - 1)
    return found


def _axes(analysis: Analysis, free: Mapping[Dim, object]) -> list[Dim]:
    """Every axis in the model whose size may change, each once."""
    layouts = [*analysis.facts.layouts.values(), *(layout for *_, layout in analysis.uses)]
    each = dict.fromkeys(resolve(dim) for layout in layouts for dim in layout)
    return [dim for dim in each if touched(dim, free)]


class _Watched:
    """The sizes of axes over all runs (the dense one first), and which axis a changing size in a kernel belongs to."""

    def __init__(self, axes: Iterable[Dim], tried: Sequence[Sizes]) -> None:
        self.axes: dict[tuple[int, ...], Dim] = {}
        for dim in axes:
            self.axes.setdefault(tuple(size_after(dim, sizes) for sizes in tried), dim)
        self._table = np.array([*self.axes], np.int64).reshape(len(self.axes), len(tried))
        self._dims = list(self.axes.values())
        self._exact = {_up(row, step).tobytes(): row for step in reversed(ROUNDED) for row in self._table}

    def of(self, seen: npt.NDArray[np.int64], where: npt.NDArray[np.bool_]) -> tuple[int, ...] | None:
        """The sizes of the axis whose sizes ``seen`` is, at the runs ``where``: as they are, padded, or a multiple."""
        if where.all() and seen.tobytes() in self._exact:
            return tuple(self._exact[seen.tobytes()].tolist())
        table, seen = self._table[:, where], seen[where]
        padded = np.any([_up(table, step) == seen for step in ROUNDED], axis=0).all(1)
        able = np.flatnonzero(padded if padded.any() else (table * seen[0] == table[:, :1] * seen).all(1))
        closest = able[np.argmin(np.abs(seen - table[able]).sum(1))] if len(able) else None
        return None if closest is None else tuple(self._table[closest].tolist())


def _up(sizes: npt.NDArray[np.int64], step: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return -(-sizes // step) * step


@dataclass(frozen=True)
class _Alike:
    """Kernels of one class and the same axes: their ``curve``, times the dense seconds of all."""

    curve: Callable[[tuple[int, ...]], float]
    dims: tuple[Dim, ...]
    seconds: float

    def __call__(self, sizes: Sizes) -> float:
        return self.seconds * self.curve(tuple(size_after(dim, sizes) for dim in self.dims))


def _learn(profile: Profile, watched: _Watched) -> Iterator[_Alike]:
    """Kernels that sizes change, by op, dense shapes, and where in these the sizes are."""
    classes: dict[Any, list[tuple[str, tuple[tuple[int, ...], ...]]]] = {}
    for name, dense in profile.dense.kernels.items():
        pattern, axes = _variables(name, dense, profile, watched)
        if axes:
            classes.setdefault((dense.op, dense.shapes, pattern), []).append((name, axes))
    for members in classes.values():
        points = [point for _, axes in members for point in zip(*axes, strict=True)]
        shares = np.concatenate([times / times[0] for name, _ in members for times in [_times(profile, name)]])
        curve, alike = cache(_curve(np.array(points), shares)), dict[tuple[Dim, ...], float]()
        for name, axes in members:
            dims = tuple(watched.axes[axis] for axis in axes)
            alike[dims] = alike.get(dims, 0.0) + profile.dense.kernels[name].seconds
        yield from (_Alike(curve, dims, seconds) for dims, seconds in alike.items())


def _times(profile: Profile, name: str) -> Floats:
    """Seconds of a kernel in all runs, the dense one first."""
    dense = profile.dense.kernels[name]
    found = [dense.seconds, *(run.timing.kernels.get(name, dense).seconds for run in profile.runs)]
    return np.array([max(seconds, 1e-9) for seconds in found])  # a clock may see nothing pass


def _variables(
    name: str, dense: Kernel, profile: Profile, watched: _Watched
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Of each changing size in the shapes of a kernel the number of its axis (-1: not known); the axes, each once."""
    runs = [dense.shapes, *(run.timing.kernels.get(name, dense).shapes for run in profile.runs)]
    form = [len(shape) for shape in dense.shapes]
    ran = [True, *(run.timing.kernels.get(name, dense) != dense._replace(seconds=0.0) for run in profile.runs)]
    where = np.array([[len(shape) for shape in shapes] == form for shapes in runs]) & ran
    known = [shapes if ok else dense.shapes for shapes, ok in zip(runs, where, strict=True)]
    flat = [[size for shape in shapes for size in shape] for shapes in known]
    found: dict[tuple[int, ...], int] = {}
    pattern = []
    for seen in np.array(flat, np.int64).reshape(len(runs), -1).T:
        axis = watched.of(np.ascontiguousarray(seen), where) if (seen[where] != seen[0]).any() else ()
        pattern.append(found.setdefault(axis, len(found)) if axis else -1)
    return tuple(pattern), tuple(found)


def _curve(points: npt.NDArray[np.int64], shares: Floats) -> Callable[[tuple[int, ...]], float]:
    """The share of the dense time at any sizes, from ``shares`` measured at ``points``, the dense one first.

    To what each size is rounded up, and off which multiple of which sizes there is another way, is found one after the
    other.
    """
    dense, weights = points[0], 1 / (shares + 0.1)
    every = tuple(range(len(dense)))
    axes = dict.fromkeys([every, *((axis,) for axis in every)])
    others = [_Off(), *(_Off(step, some) for step in OTHER for some in axes)]

    def fitted(steps: tuple[int, ...], off: _Off) -> tuple[float, Floats]:
        """How badly measurements are explained with these multiples, by how many terms; the coefficients."""
        table = _terms(points, dense, steps, off)
        found = _nonnegative(table * weights[:, None], shares * weights)
        error = float(np.sum(((table @ found - shares) * weights) ** 2)) / len(shares) + 1e-12
        return len(shares) * np.log(error) + np.log(len(shares)) * np.count_nonzero(found), found

    steps, off = tuple(1 for _ in dense), _Off()
    for again in (False, True):
        for i in every:
            ways = [(*steps[:i], step, *steps[i + 1 :]) for step in ROUNDED]
            steps = min(ways, key=lambda way: fitted(way, off)[0])
        if not again:
            off = min(others, key=lambda other: fitted(steps, other)[0])
    found = fitted(steps, off)[1]
    at_dense = float(_terms(points[:1], dense, steps, off)[0] @ found) or 1.0
    return lambda sizes: float(_terms(np.array([sizes]), dense, steps, off)[0] @ found) / at_dense


class _Off(NamedTuple):
    """Where a kernel goes another way: one of ``axes`` is no multiple of ``step`` (0: nowhere)."""

    step: int = 0
    axes: tuple[int, ...] = ()


def _terms(points: npt.NDArray[np.int64], dense: npt.NDArray[np.int64], steps: tuple[int, ...], off: _Off) -> Floats:
    """One, each size, and each product of two; for each of two ways on its own where a kernel has two."""
    each = np.array(steps)
    x = _up(points, each) / _up(dense, each)
    pairs = combinations_with_replacement(range(x.shape[1]), 2) if x.shape[1] <= 3 else ()
    plain = np.column_stack([np.ones(len(x)), x, *(x[:, i] * x[:, j] for i, j in pairs)])
    if not off.step:
        return plain
    other = np.any(points[:, off.axes] % off.step != 0, axis=1)[:, None]
    return np.hstack([plain * ~other, plain * other])


def _nonnegative(table: Floats, wanted: Floats) -> Floats:
    """Least squares without negative coefficients (Lawson and Hanson)."""
    found, able = np.zeros(table.shape[1]), np.zeros(table.shape[1], bool)
    for _ in range(3 * table.shape[1]):
        pull = np.where(able, 0.0, table.T @ (wanted - table @ found))
        if pull.max() <= 1e-9 * len(wanted):
            break
        able[np.argmax(pull)] = True
        while True:
            tried = np.zeros_like(found)
            tried[able] = np.linalg.lstsq(table[:, able], wanted, rcond=None)[0]
            low = able & (tried <= 0)
            if not low.any():
                break
            step = np.min(found[low] / np.maximum(found[low] - tried[low], 1e-300))
            found = found + step * (tried - found)
            able &= found > 1e-12
        found = tried
    return found
