"""How much is lost when one Dim alone is cut, at several shares: measured, written down, and used to share budgets out.

Scores say which positions of a Dim matter least; what Dims are worth beside each other is a guess of theirs, and here a
measurement. Between the shares that were measured, the square root of the loss is taken to be straight (outputs that
move a little move by the square, in nats), and what is then not convex is made so from below: an allocator takes
positions one by one, the cheapest first, and would never stop half way along a curve that flattens.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.analysis import Analysis, Atom
from graphprune.budget import Request, allocate
from graphprune.dims import Chosen, Dim, counts
from graphprune.errors import ReadError, UsageError
from graphprune.pictures import heat_map, items, page, section, table
from graphprune.plan import fingerprint
from graphprune.scores import Scores

VERSION = 1
RATIOS = (0.75, 0.5, 0.25)
"""Shares of a Dim that are kept."""
MOST = 1e6
"""What it counts as where outputs are no numbers any more."""
FORMATS = (".json", ".csv", ".html", ".svg")
_AGAIN = "measure them: graphprune sensitivity MODEL -o sensitivity.json"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One Dim: its number, name, kind and size, and by share that was asked for how many stayed and what was lost."""

    index: int
    name: str
    kind: str
    size: int
    kept: tuple[int, ...]
    lost: tuple[float, ...]

    def curve(self) -> Floats:
        """What is lost when 0, 1, ... size positions stay: through what was measured, falling and convex."""
        gone = self.size - np.array((self.size, *self.kept))
        gone, first = np.unique(gone, return_index=True)
        roots = np.sqrt(np.maximum.accumulate(np.maximum(np.array((0.0, *self.lost))[first], 0.0)))
        every = np.arange(self.size + 1)
        found = np.interp(every, gone, roots)
        if len(gone) > 1:  # further on as it went last
            slope = (roots[-1] - roots[-2]) / (gone[-1] - gone[-2])
            found += slope * np.maximum(every - gone[-1], 0)
        return _from_below(np.square(found))[::-1]


def _from_below(values: Floats) -> Floats:
    """The largest convex curve that is nowhere above ``values``."""
    hull: list[int] = []
    for at in range(len(values)):
        while len(hull) > 1 and _rise(values, hull[-2], hull[-1]) >= _rise(values, hull[-1], at):
            hull.pop()
        hull.append(at)
    return np.interp(np.arange(len(values)), hull, values[hull])


def _rise(values: Floats, start: int, end: int) -> float:
    return float(values[end] - values[start]) / (end - start)


@dataclass(frozen=True)
class Sensitivity:
    """What was measured of a model: ``unit`` is what losses are in, ``notes`` say on what they were seen.

    >>> rows = (Row(0, "conv1", "channel", 4, (2, 1), (0.01, 0.09)),)
    >>> made = Sensitivity("0" * 16, "l2", "nats", (0.5, 0.25), rows)
    >>> Sensitivity.from_json(made.to_json()) == made
    True
    """

    model: str
    score: str
    unit: str
    ratios: tuple[float, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One Dim a line."""
        data = {"graphprune_sensitivity": VERSION, **asdict(self)}
        rows = ",\n  ".join(json.dumps(row) for row in data.pop("rows"))
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in data.items()]
        return "\n".join(["{", *lines, ' "rows": [', f"  {rows}", " ]", "}", ""])

    @staticmethod
    def from_json(text: str, name: str = "this") -> Sensitivity:
        """Read what was measured; ReadError where the text, of the file ``name``, does not hold it."""
        try:
            data = json.loads(text)
            if data.pop("graphprune_sensitivity") != VERSION:
                raise ReadError(f"the sensitivities in {name} are of another version of graphprune", hint=_AGAIN)
            rows = tuple(_row(**row) for row in data.pop("rows"))
            return Sensitivity(**{**data, "ratios": tuple(data["ratios"]), "notes": tuple(data["notes"])}, rows=rows)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ReadError(f"{name} holds no sensitivities", hint=_AGAIN) from error

    @staticmethod
    def load(path: str | Path) -> Sensitivity:
        """Read the file ``path``."""
        try:
            return Sensitivity.from_json(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise ReadError(f"cannot read {path}: {why}", hint="check the path") from error

    def require(self, analysis: Analysis) -> None:
        """UsageError where another model was measured."""
        found = fingerprint(analysis.graph)
        fits = all(row.index < len(analysis.atoms) and analysis.atoms[row.index].size == row.size for row in self.rows)
        if found != self.model or not fits:
            raise UsageError(
                f"the sensitivities are of another model (structure {self.model}, this one is {found})", hint=_AGAIN
            )

    def losses(self, atoms: Sequence[Atom], request: Request) -> dict[Dim, Floats]:
        """What each position of ``atoms`` is a loss of, the dearest first; UsageError where one was not measured."""
        if request.keep is not None:
            raise UsageError(
                "keep cuts every Dim alike, so sensitivities have nothing to say",
                hint="give a target in its place, such as --macs 0.5",
            )
        curves = {row.index: row.curve() for row in self.rows}
        missing = [atom.name for atom in atoms if atom.index not in curves]
        if missing:
            raise UsageError(
                f"the dim {missing[0]!r} may be cut, and its sensitivity was not measured",
                hint="measure it with the same --allow and --include, or leave it alone with --exclude",
            )
        return {atom.dim: -np.diff(curves[atom.index]) for atom in atoms}

    def table(self) -> list[dict[str, Any]]:
        """A record a Dim: name, kind and size, and what was lost by each share that stayed."""
        return [
            {"dim": row.name, "kind": row.kind, "size": row.size}
            | {name: f"{lost:.3g}" for name, lost in zip(self.columns, row.lost, strict=True)}
            for row in self.rows
        ]

    @property
    def columns(self) -> list[str]:
        """Shares in words."""
        return [f"{ratio:.4g}" for ratio in self.ratios]

    @property
    def words(self) -> str:
        """For the report."""
        return f"dims compare by what was measured: {self.title}; {'; '.join(self.notes)}"

    @property
    def title(self) -> str:
        """What the numbers are."""
        return f"lost when one dim alone keeps a share: {self.unit}, positions by {self.score}"

    def render(self, suffix: str) -> str:
        """As a file name ending in ``suffix``, one of FORMATS, asks for."""
        made = {".json": self.to_json, ".csv": self.to_csv, ".html": self.to_html, ".svg": self.to_svg}
        return made[suffix]()

    def to_csv(self) -> str:
        """A line a Dim and share."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(("dim", "kind", "size", "ratio", "kept", "lost"))
        for row in self.rows:
            for ratio, kept, lost in zip(self.ratios, row.kept, row.lost, strict=True):
                lines.writerow((row.name, row.kind, row.size, ratio, kept, lost))
        return text.getvalue()

    def to_svg(self) -> str:
        """A heat map, Dims by shares; what keeps all positions says nothing."""
        cells = {
            row.name: [lost if kept < row.size else None for kept, lost in zip(row.kept, row.lost, strict=True)]
            for row in self.rows
        }
        return heat_map(cells, [f"{ratio:.4g} kept" for ratio in self.ratios])

    def to_html(self) -> str:
        """The heat map, and how many positions stayed."""
        rows = [(row.name, row.kind, row.size, *row.kept) for row in self.rows]
        head = ("dim", "kind", "positions", *(f"{ratio} kept" for ratio in self.columns))
        parts = section(self.title, self.to_svg()), section("positions that stayed", table(head, rows))
        return page("graphprune sensitivity", *parts, section("notes", items(self.notes)))


def _row(kept: Sequence[int], lost: Sequence[float], **rest: Any) -> Row:
    return Row(kept=tuple(map(int, kept)), lost=tuple(map(float, lost)), **rest)


def measure(
    analysis: Analysis,
    atoms: Sequence[Atom],
    scores: Scores,
    request: Request,
    lost: Callable[[Chosen], float],
    *,
    ratios: Sequence[float] = RATIOS,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Row, ...]:
    """Each of ``atoms`` cut alone to each of ``ratios``, positions by ``scores``; ``lost`` says what that loses."""
    wrong = [ratio for ratio in ratios if not 0 < ratio < 1]
    if wrong or not ratios:
        raise UsageError(
            f"ratios of {wrong or 'nothing'} make no sense", hint="shares that stay, such as 0.75,0.5,0.25"
        )
    rows = []
    for number, atom in enumerate(atoms):
        chosen = [allocate(analysis, [atom], scores, replace(request, keep=ratio)) for ratio in ratios]
        kept = [counts(own).get(atom.dim, atom.size) for own in chosen]
        found = []
        for done, own in enumerate(chosen, 1):
            found.append(min(lost(own), MOST) if own else 0.0)
            progress((number + done / len(ratios)) / len(atoms))
        rows.append(Row(atom.index, atom.name, atom.kind, atom.size, tuple(kept), tuple(found)))
    return tuple(rows)
