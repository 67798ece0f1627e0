"""The Plan: which positions of which Dim stay. Data only, JSON there and back, reusable on a re-export of the model.

A plan knows its model by a hash of its structure (ops, attributes, wiring, sizes), not by its weights or names.
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

from graphprune.analysis import Analysis
from graphprune.dims import Dim, Positions
from graphprune.errors import PlanError
from graphprune.graph import Graph

VERSION = 1
_RUN = re.compile("[0-9]{1,9}(-[0-9]{1,9})?")
_SMALL = 64
MOST = 1 << 24
"""Positions that all Dims of a plan may have together: more than any model has, and few enough to hold in memory."""


@dataclass(frozen=True)
class Cut:
    """``keep`` positions of the dim number ``index``; name, kind and size are there for readers and checks."""

    index: int
    name: str
    kind: str
    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Cuts of one model. ``request`` and ``score`` say how they were chosen.

    >>> plan = Plan("0" * 16, (Cut(0, "conv1", "channel", 4, (0, 2, 3)),))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    model: str
    cuts: tuple[Cut, ...]
    score: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One cut a line, kept positions as ranges ("0-3,5"), so that two plans can be compared with diff."""
        cuts = [json.dumps({**asdict(cut), "keep": to_ranges(cut.keep)}) for cut in self.cuts]
        head = {"graphprune_plan": VERSION, "model": self.model, "score": self.score, "request": self.request}
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
        head = {"model": str, "cuts": list, "score": str, "request": dict}
        data = {"score": "", "request": {}, **data}
        wrong = [key for key, kind in head.items() if not isinstance(data.get(key), kind)]
        if wrong:
            raise _not_a_plan(f"{wrong[0]!r} is missing or of the wrong type")
        return Plan(data["model"], _cuts(data["cuts"]), data["score"], data["request"])

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
        if found != self.model:
            raise PlanError(
                f"the plan is for another model (structure {self.model}, this one is {found})",
                hint="make a new plan for this model with graphprune plan",
            )
        chosen: dict[Dim, Positions] = {}
        for cut in self.cuts:
            why = _misfit(cut, analysis)
            if why or analysis.atoms[cut.index].dim in chosen:
                raise PlanError(
                    f"the plan's cut of {cut.name!r} does not fit the model: {why or 'it is there twice'}",
                    hint="the plan was edited or made by another version: make it again with graphprune plan",
                )
            chosen[analysis.atoms[cut.index].dim] = np.asarray(cut.keep, np.int64)
        return chosen


def _misfit(cut: Cut, analysis: Analysis) -> str:
    """Why ``cut`` cannot be made; "" where it can."""
    if not 0 <= cut.index < len(analysis.atoms):
        return f"there is no dim number {cut.index}"
    atom, keep = analysis.atoms[cut.index], np.asarray(cut.keep, np.int64)
    if atom.reason is not None:
        return f"dim number {cut.index} is frozen: {atom.reason}"
    if atom.size != cut.size:
        return f"dim number {cut.index} has {atom.size} positions, not {cut.size}"
    if len(keep) < atom.least:
        return f"it keeps {len(keep)} positions, fewer than the {atom.least} that must stay"
    if keep[0] < 0 or keep[-1] >= cut.size or (np.diff(keep) <= 0).any():
        return f"it keeps positions that do not ascend from 0 to {cut.size - 1}"
    return ""


def _not_a_plan(why: str) -> PlanError:
    return PlanError(f"this is not a plan: {why}", hint="make one with graphprune plan MODEL -o plan.json")


def _cuts(records: list[Any]) -> tuple[Cut, ...]:
    """Cuts as read, checked before their ranges are written out in memory."""
    kinds = {"index": int, "name": str, "kind": str, "size": int, "keep": str}
    for number, record in enumerate(records):
        fits = isinstance(record, dict) and record.keys() == kinds.keys()
        if not fits or any(type(record[key]) is not kind for key, kind in kinds.items()):
            raise _not_a_plan(f"cut number {number} needs {', '.join(f'{k} ({v.__name__})' for k, v in kinds.items())}")
    if sum(abs(record["size"]) for record in records) > MOST:
        raise _not_a_plan(f"its sizes add up to more than {MOST:,}")
    cuts = []
    for number, record in enumerate(records):
        try:
            cuts.append(Cut(**{**record, "keep": from_ranges(record["keep"], record["size"])}))
        except ValueError as error:
            raise _not_a_plan(
                f"cut number {number} ({record['name']}) keeps {record['keep'][:40]!r}: {error}"
            ) from error
    return tuple(cuts)


def make_plan(analysis: Analysis, chosen: Mapping[Dim, Positions], score: str, request: Mapping[str, Any]) -> Plan:
    """The Plan that keeps ``chosen``."""
    cuts = tuple(
        Cut(atom.index, atom.name, atom.kind, atom.size, tuple(int(i) for i in chosen[atom.dim]))
        for atom in analysis.atoms
        if atom.dim in chosen
    )
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
