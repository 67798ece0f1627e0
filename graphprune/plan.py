"""The Plan: which positions of which Dim stay. Data only, JSON there and back, reusable on a re-export of the model.

A plan knows its model by a hash of its structure (ops, attributes, wiring, sizes), not by its weights or names. In a
model of another structure, such as the ONNX export of a torch module, it finds its Dims again by the names of weights
and modules that are left.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.analysis import Analysis, Atom
from graphprune.dims import Dim, Positions
from graphprune.errors import PlanError
from graphprune.graph import Graph
from graphprune.places import places

VERSION = 1
_RUN = re.compile("[0-9]{1,9}(-[0-9]{1,9})?")
_SMALL = 64
MOST = 1 << 24
"""Positions that all Dims of a plan may have together: more than any model has, and few enough to hold in memory."""


@dataclass(frozen=True)
class Cut:
    """``keep`` positions of the dim number ``index``; name, kind and size are there for readers and checks.

    ``places`` say where the Dim is to be found in other exports of the model. With ``rows``, positions count through
    that many rows of ``size``, one for each position of the dim that this one lies under, and places are of both.
    """

    index: int
    name: str
    kind: str
    size: int
    keep: tuple[int, ...]
    places: tuple[str, ...] = ()
    rows: int = 1

    @property
    def positions(self) -> Positions:
        """The positions as a cut takes them: [k], or [rows, k]."""
        index = np.asarray(self.keep, np.int64)
        return index if self.rows == 1 else index.reshape(self.rows, -1) % self.size


@dataclass(frozen=True)
class Plan:
    """Cuts of one model. ``request`` and ``score`` say how they were chosen, ``notes`` what is to be said of it.

    ``predicted`` are seconds of the whole model and of the cut one, where there were measurements to tell them by.

    >>> plan = Plan("0" * 16, (Cut(0, "conv1", "channel", 4, (0, 2, 3)),))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    model: str
    cuts: tuple[Cut, ...]
    score: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    predicted: tuple[float, ...] = ()

    def to_json(self) -> str:
        """One cut a line, kept positions as ranges ("0-3,5"), so that two plans can be compared with diff."""
        cuts = [json.dumps(_record(cut)) for cut in self.cuts]
        head = {"graphprune_plan": VERSION, "model": self.model, "score": self.score, "request": self.request}
        head |= {name: value for name in ("notes", "predicted") if (value := getattr(self, name))}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        return "\n".join(["{", *lines, ' "cuts": [', *_joined(cuts), " ]", "}", ""])

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan; PlanError says where the text is not one."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _not_a_plan(f"it is not JSON ({error})") from error
        if not isinstance(data, dict) or "graphprune_plan" not in data:
            raise _not_a_plan("it does not say 'graphprune_plan'")
        if data["graphprune_plan"] != VERSION:
            found = f"the plan has version {data['graphprune_plan']}, this graphprune reads {VERSION}"
            raise PlanError(found, hint="make the plan again with graphprune plan MODEL -o plan.json")
        head = {"model": str, "cuts": list, "score": str, "request": dict, "notes": list, "predicted": list}
        data = {"score": "", "request": {}, "notes": [], "predicted": [], **data}
        wrong = [key for key, kind in head.items() if not isinstance(data.get(key), kind)]
        if not wrong and (len(data["predicted"]) not in (0, 2) or not all(type(s) is float for s in data["predicted"])):
            wrong = ["predicted"]
        if wrong:
            raise _not_a_plan(f"{wrong[0]!r} is missing or of the wrong type")
        notes = tuple(map(str, data["notes"]))
        told = notes, tuple(data["predicted"])
        return Plan(data["model"], _cuts(data["cuts"]), data["score"], data["request"], *told)

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read the plan in the file ``path``."""
        try:
            return Plan.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise PlanError(f"cannot read the plan {path}: {why}", hint="check the path") from error

    def chosen(self, analysis: Analysis) -> dict[Dim, Positions]:
        """Kept positions by Dim of ``analysis``; PlanError where the plan is for another model."""
        found = fingerprint(analysis.graph)
        if found == self.model:
            atoms = [analysis.atoms[cut.index : cut.index + 1] if cut.index >= 0 else [] for cut in self.cuts]
        elif any(cut.places for cut in self.cuts):
            atoms = _found_again(self.cuts, analysis)
        else:
            raise PlanError(
                f"the plan is for another model (structure {self.model}, this one is {found})",
                hint="make a new plan for this model with graphprune plan",
            )
        chosen: dict[Dim, Positions] = {}
        for cut, where in zip(self.cuts, atoms, strict=True):
            why = next(
                filter(None, (_misfit(cut, atom) for atom in where)),
                "" if where else f"there is no dim number {cut.index}",
            )
            if why or any(atom.dim in chosen for atom in where):
                raise PlanError(
                    f"the plan's cut of {cut.name!r} does not fit the model: {why or 'it is there twice'}",
                    hint="it was edited, or made by another version or for another model: make it with graphprune plan",
                )
            chosen |= {atom.dim: cut.positions for atom in where}
        return chosen


def _found_again(cuts: Iterable[Cut], analysis: Analysis) -> list[list[Atom]]:
    """The atoms of each cut in a model of another structure; PlanError names what is not there."""
    where = places(analysis)
    dims = [[_innermost(dim) for place in cut.places for dim in where.get(place, ())] for cut in cuts]
    atoms = [[analysis.by_dim[dim] for dim in dict.fromkeys(found)] for found in dims]
    lost = [
        f"{cut.name!r} (known there as {', '.join(cut.places[:3])})"
        for cut, found in zip(cuts, atoms, strict=True)
        if not found
    ]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise PlanError(
            f"the plan is for another model, or the exporter folded or renamed the weights that it knows: "
            f"there is no {'; no '.join(lost[:3])}{more}",
            hint="make a new plan for this model with graphprune plan",
        )
    return atoms


def _innermost(dim: Dim) -> Dim:
    """The atom that a place is of; of a pair, the one that lies under the other."""
    return dim.parts[-1] if dim.parts else dim


def _misfit(cut: Cut, atom: Atom) -> str:
    """Why ``cut`` cannot be made to ``atom``; "" where it can."""
    keep, under = np.asarray(cut.keep, np.int64), 1 if atom.dim.under is None else atom.dim.under.size
    count = len(keep) // max(1, cut.rows)
    if atom.reason is not None:
        return f"dim number {atom.index} is frozen: {atom.reason}"
    if atom.size != cut.size:
        return f"dim number {atom.index} has {atom.size} positions, not {cut.size}"
    if cut.rows not in (1, under):
        return f"it has {cut.rows} rows of positions, and dim number {atom.index} takes {under}"
    if count < atom.least:
        return f"it keeps {count} positions, fewer than the {atom.least} that must stay"
    if count % atom.multiple:
        return f"it keeps {count} positions, and the kernel takes a multiple of {atom.multiple}"
    if keep[0] < 0 or keep[-1] >= cut.size * cut.rows or (np.diff(keep) <= 0).any():
        return f"it keeps positions that do not ascend from 0 to {cut.size * cut.rows - 1}"
    if (np.bincount(keep // cut.size, minlength=cut.rows) * cut.rows != len(keep)).any():
        return f"it does not keep as many positions in each of {cut.rows} rows of {cut.size}"
    return ""


def _not_a_plan(why: str) -> PlanError:
    return PlanError(f"this is not a plan: {why}", hint="make one with graphprune plan MODEL -o plan.json")


def _record(cut: Cut) -> dict[str, Any]:
    record = {**asdict(cut), "keep": to_ranges(cut.keep)}
    return {key: value for key, value in record.items() if (key, value) not in (("places", ()), ("rows", 1))}


def _cuts(records: list[Any]) -> tuple[Cut, ...]:
    """Cuts as read, checked before their ranges are written out in memory."""
    kinds = {"index": int, "name": str, "kind": str, "size": int, "keep": str, "places": list, "rows": int}
    for number, record in enumerate(records):
        full = {"places": [], "rows": 1, **record} if isinstance(record, dict) else {}
        fits = full.keys() == kinds.keys() and all(type(place) is str for place in full["places"])
        if not fits or any(type(full[key]) is not kind for key, kind in kinds.items()):
            raise _not_a_plan(f"cut number {number} needs {', '.join(f'{k} ({v.__name__})' for k, v in kinds.items())}")
    if sum(abs(record["size"] * record.get("rows", 1)) for record in records) > MOST:
        raise _not_a_plan(f"its sizes add up to more than {MOST:,}")
    cuts = []
    for number, record in enumerate(records):
        try:
            keep = from_ranges(record["keep"], record["size"] * record.get("rows", 1))
        except ValueError as error:
            raise _not_a_plan(
                f"cut number {number} ({record['name']}) keeps {record['keep'][:40]!r}: {error}"
            ) from error
        cuts.append(Cut(**{**record, "keep": keep, "places": tuple(record.get("places", ()))}))
    return tuple(cuts)


def make_plan(analysis: Analysis, chosen: Mapping[Dim, Positions], score: str, request: Mapping[str, Any]) -> Plan:
    """The Plan that keeps ``chosen``."""
    found: dict[Dim, list[str]] = {}
    for place, owners in places(analysis).items():
        if len(owners) == 1:
            found.setdefault(owners[0], []).append(place)

    def cut(atom: Atom) -> Cut:
        index = chosen[atom.dim]
        rows = len(index) if index.ndim > 1 else 1
        keep = (index.reshape(rows, -1) + atom.size * np.arange(rows)[:, None]).ravel().tolist()
        where = found.get(atom.dim if rows == 1 else analysis.pairs[atom.dim], ())
        return Cut(atom.index, atom.name, atom.kind, atom.size, tuple(keep), tuple(where), rows)

    cuts = tuple(cut(atom) for atom in analysis.atoms if atom.dim in chosen)
    return Plan(fingerprint(analysis.graph), cuts, score, request)


def fingerprint(graph: Graph) -> str:
    """A hash of ops, attributes, wiring and sizes: equal for two exports that differ in names or weights only."""
    digest = hashlib.sha256()
    known = {name: f"input {i} {len(graph.shape(name) or ())}" for i, name in enumerate(graph.inputs)}
    for node in graph.nodes:
        sources = [known.get(name) or _constant(graph, name) for name in node.inputs]
        attrs = [f"{name}={_plain(value)}" for name, value in sorted(node.attrs.items())]
        digest.update(f"{node.op}({'; '.join([*sources, *attrs])})\n".encode())
        known.update({name: f"{node.index}.{i}" for i, name in enumerate(node.outputs)})
    digest.update("; ".join(known.get(name, "?") for name in graph.outputs).encode())
    return digest.hexdigest()[:16]


def _constant(graph: Graph, name: str) -> str:
    weight = graph.weights.get(name)
    if weight is None:
        return "-"
    numbers = weight.load().tolist() if weight.dtype == "int64" and weight.size <= _SMALL else ""
    return f"{weight.dtype}{list(weight.shape)}{numbers}"


def _plain(value: Any) -> str:
    """Numbers and words as they are; of tensors and graphs only that they are there."""
    items = value if isinstance(value, list) else [value]
    return repr(value) if all(isinstance(item, int | float | str) for item in items) else type(value).__name__


def to_ranges(positions: Iterable[int]) -> str:
    """Ascending positions as text.

    >>> to_ranges([0, 1, 2, 5])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def from_ranges(text: str, size: int = MOST) -> tuple[int, ...]:
    """The inverse of `to_ranges`; ValueError unless the positions ascend and lie below ``size``.

    >>> from_ranges("0-2,5")
    (0, 1, 2, 5)
    """
    positions: list[int] = []
    least = 0
    for run in filter(None, text.split(",")):
        if not _RUN.fullmatch(run):
            raise ValueError(f"{run[:40]!r} is no position and no range")
        first, _, last = run.partition("-")
        start, stop = int(first), int(last or first) + 1
        if not least <= start < stop <= size:
            raise ValueError(f"{run[:40]!r} is out of order, or not below {size}")
        positions += range(start, stop)
        least = stop
    return tuple(positions)


def _joined(lines: list[str]) -> list[str]:
    return [f"  {line}," for line in lines[:-1]] + [f"  {line}" for line in lines[-1:]]
