"""The rows of the quality benchmark: what one is, which there are, and the file that keeps what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from graphprune.scores import SCORES
from models.tasks import SUBJECTS

COMPENSATIONS = ("none", "bias", "least-squares", "sequential")
SOURCES = ("real", "self", "noise", "none")
MIXED = ("real+self",)
"""Sources that are run where they are asked for."""
NORMS = ("kept", "re-estimated")
NO_DATA = "-"

Found = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One cut to measure; ``score`` "dense" is the model as it is."""

    subject: str
    score: str
    budget: str = ""
    compensation: str = "none"
    source: str = NO_DATA
    norms: str = "kept"
    seed: int = 0

    @property
    def group(self) -> str:
        """Rows with the same share a process. What differentiates is apart: torch stays in memory once it is there."""
        torch = self.score in SCORES and "gradients" in SCORES[self.score].needs
        return f"{self.subject}/{self.source}/{self.seed}{'/gradients' if torch else ''}"


@dataclass
class State:
    """The rows so far, in a file of JSON lines: the last of a row's lines counts."""

    path: Path

    def read(self) -> dict[Row, Found]:
        """What was found, by row."""
        if not self.path.exists():
            return {}
        lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.strip()]
        return {Row(**line["row"]): line for line in lines}

    def add(self, row: Row, found: Found) -> None:
        """One more line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(json.dumps({"row": asdict(row), **found}) + "\n")


@dataclass(frozen=True)
class Wanted:
    """Which rows: names along each axis; an empty tuple is all there are."""

    subjects: Sequence[str] = ()
    scores: Sequence[str] = ()
    compensations: Sequence[str] = ()
    sources: Sequence[str] = ()
    norms: Sequence[str] = ()
    budgets: Sequence[str] = ()
    seeds: Sequence[int] = (0,)

    def rows(self) -> Iterator[Row]:
        """Every row that means something, the dense models first; each once."""
        for subject in self.subjects or SUBJECTS:
            yield Row(subject, "dense")
            every = dict.fromkeys(row for seed in self.seeds for row in self._of(subject, seed))
            yield from sorted(every, key=lambda row: (row.seed, row.source, COMPENSATIONS.index(row.compensation)))

    def _of(self, subject: str, seed: int) -> Iterator[Row]:
        norms = NORMS if has_batch_norms(SUBJECTS[subject].path()) else NORMS[:1]
        for budget in self.budgets or SUBJECTS[subject].budgets:
            for score in self.scores or SCORES:
                for compensation in self.compensations or COMPENSATIONS:
                    for source in self.sources or SOURCES:
                        for how in self.norms or norms:
                            row = Row(subject, score, budget, compensation, source, how, seed)
                            yield from [row] if how in norms and sound(row) else []
                        if not uses_data(Row(subject, score, budget, compensation)) and "kept" in (self.norms or NORMS):
                            yield Row(subject, score, budget, compensation, seed=seed)


def uses_data(row: Row) -> bool:
    """Whether the source makes a difference."""
    return SCORES[row.score].needs != "nothing" or row.compensation != "none" or row.norms != "kept"


def sound(row: Row) -> bool:
    """Whether the row can be: batch norms, gradients and compensation in order need a forward pass."""
    forward = row.norms != "kept" or row.compensation == "sequential" or "gradients" in SCORES[row.score].needs
    return uses_data(row) and not (forward and row.source == "none")


@cache
def has_batch_norms(path: Path) -> bool:
    """Whether there is anything to re-estimate."""
    return any(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
