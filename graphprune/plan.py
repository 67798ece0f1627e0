"""The Plan: which positions of which Dim stay. Data only, JSON there and back, reusable on a re-export of the model.

A plan knows its model by a hash of its structure (ops, wiring, sizes), not by its weights or names.
"""

from __future__ import annotations

import hashlib
import json
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
        """Read a plan; PlanError where the text is not one."""
        try:
            data = json.loads(text)
            if data["graphprune_plan"] != VERSION:
                raise PlanError(f"the plan has version {data['graphprune_plan']}, this graphprune reads {VERSION}")
            cuts = tuple(Cut(**{**cut, "keep": from_ranges(cut["keep"])}) for cut in data["cuts"])
            return Plan(data["model"], cuts, data.get("score", ""), data.get("request", {}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(
                f"this is not a plan: {error!r}", hint="make one with graphprune plan MODEL -o plan.json"
            ) from error

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read the plan in the file ``path``."""
        try:
            return Plan.from_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read the plan {path}: {error}", hint="check the path") from error

    def chosen(self, analysis: Analysis) -> dict[Dim, Positions]:
        """Kept positions by Dim of ``analysis``; PlanError where the plan is for another model."""
        found = fingerprint(analysis.graph)
        if found != self.model:
            raise PlanError(
                f"the plan is for another model (structure {self.model}, this one is {found})",
                hint="make a new plan for this model with graphprune plan",
            )
        chosen = {}
        for cut in self.cuts:
            atom = analysis.atoms[cut.index] if 0 <= cut.index < len(analysis.atoms) else None
            keep = np.asarray(cut.keep, np.int64)
            fits = atom is not None and atom.size == cut.size and atom.reason is None
            if (
                atom is None
                or not fits
                or not keep.size
                or keep[0] < 0
                or keep[-1] >= cut.size
                or (np.diff(keep) <= 0).any()
            ):
                raise PlanError(
                    f"the plan's cut of {cut.name!r} ({len(cut.keep)} of {cut.size}) does not fit the model",
                    hint="the plan was edited or made by another version: make it again",
                )
            chosen[atom.dim] = keep
        return chosen


def make_plan(analysis: Analysis, chosen: Mapping[Dim, Positions], score: str, request: Mapping[str, Any]) -> Plan:
    """The Plan that keeps ``chosen``."""
    cuts = tuple(
        Cut(atom.index, atom.name, atom.kind, atom.size, tuple(int(i) for i in chosen[atom.dim]))
        for atom in analysis.atoms
        if atom.dim in chosen
    )
    return Plan(fingerprint(analysis.graph), cuts, score, request)


def fingerprint(graph: Graph) -> str:
    """A hash of ops, wiring and sizes: equal for two exports of one model that differ in names or weights only."""
    digest = hashlib.sha256()
    known = {name: f"input {i} {len(graph.shape(name) or ())}" for i, name in enumerate(graph.inputs)}
    for node in graph.nodes:
        sources = [known.get(name) or _constant(graph, name) for name in node.inputs]
        digest.update(f"{node.op}({'; '.join(sources)})\n".encode())
        known.update({name: f"{node.index}.{i}" for i, name in enumerate(node.outputs)})
    digest.update("; ".join(known.get(name, "?") for name in graph.outputs).encode())
    return digest.hexdigest()[:16]


def _constant(graph: Graph, name: str) -> str:
    weight = graph.weights.get(name)
    return f"{weight.dtype}{list(weight.shape)}" if weight else "-"


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


def from_ranges(text: str) -> tuple[int, ...]:
    """The inverse of `to_ranges`.

    >>> from_ranges("0-2,5")
    (0, 1, 2, 5)
    """
    positions: list[int] = []
    for run in filter(None, text.split(",")):
        first, _, last = run.partition("-")
        positions += range(int(first), int(last or first) + 1)
    return tuple(positions)


def _joined(lines: list[str]) -> list[str]:
    return [f"  {line}," for line in lines[:-1]] + [f"  {line}" for line in lines[-1:]]
