"""The Report: what happened, what it cost, what could not be cut and why. Text, JSON, Markdown or HTML."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphprune.analysis import Analysis
from graphprune.cost import Cost, CostModel
from graphprune.dims import Chosen
from graphprune.errors import UsageError
from graphprune.plan import Plan
from graphprune.verify import Check


@dataclass
class Report:
    """All figures of one run: latency in median seconds, measured alternately; drift relative to the outputs' norm."""

    dense: Cost
    pruned: Cost
    dims: list[dict[str, Any]]
    frozen: list[dict[str, Any]]
    score: str
    request: Mapping[str, Any]
    checks: list[Check] = field(default_factory=list)
    latency: list[float] | None = None
    drift: float | None = None
    file_bytes: tuple[int, int] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        """Whether any check was made and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> str:
        """The report as JSON; a figure that is not a finite number is null there."""
        return json.dumps(_finite({**asdict(self), "verified": self.verified}), indent=1, default=str)

    def __rich__(self) -> RenderableType:
        return Group(self._figures(), *self._dims(), *self._frozen(), *self._lines())

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=110)
        console.print(self)
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    def _figures(self) -> Table:
        table = Table(title="graphprune report")
        for column in ("", "before", "after", "left"):
            table.add_column(column, justify="left" if not column else "right")
        for row in self.figures():
            table.add_row(*row)
        return table

    def figures(self) -> list[tuple[str, str, str, str]]:
        """Rows of the main table: name, before, after, share left."""
        rows = [
            _row("parameters", self.dense.params, self.pruned.params),
            _row("MACs", self.dense.macs, self.pruned.macs),
            _row("bytes of weights", self.dense.bytes, self.pruned.bytes),
        ]
        if self.file_bytes:
            rows.append(_row("file size", *self.file_bytes))
        if self.latency:
            before, after = self.latency
            rows.append(("latency", f"{before * 1e3:.2f} ms", f"{after * 1e3:.2f} ms", f"{after / before:.1%}"))
        if self.drift is not None:
            rows.append(("output drift", "", f"{self.drift:.1%}", ""))
        return rows

    def _dims(self) -> list[Table]:
        table = Table(title=f"{len(self.dims)} dims cut (score {self.score})")
        for column in ("dim", "kind", "before", "after", "exact"):
            table.add_column(column, justify="right" if column in ("before", "after") else "left", overflow="fold")
        for dim in self.dims:
            cells = (dim["name"], dim["kind"], dim["before"], dim["after"], "yes" if dim["exact"] else "normalised")
            table.add_row(*(Text(str(cell)) for cell in cells))
        return [table] if self.dims else []

    def _frozen(self) -> list[Table]:
        if not self.frozen:
            return []
        table = Table(title="left whole")
        for column in ("dims", "positions", "why"):
            table.add_column(column, justify="left" if column == "why" else "right", overflow="fold")
        count: Counter[str] = Counter()
        positions: Counter[str] = Counter()
        for dim in self.frozen:
            count[dim["reason"]] += 1
            positions[dim["reason"]] += dim["size"]
        for reason, size in positions.most_common():
            table.add_row(str(count[reason]), str(size), Text(reason))
        return [table]

    def _lines(self) -> list[Text]:
        lines = [Text(str(check), style="green" if check.passed else "bold red") for check in self.checks]
        if self.sizes:
            shown = ", ".join(f"{name}={size}" for name, size in self.sizes.items() if not name.startswith("("))
            lines.append(Text(f"MACs at {shown}", style="dim"))
        return lines + [Text(note, style="yellow") for note in self.notes]

    def render(self, suffix: str) -> str:
        """The report as text in the format that a file name ending in ``suffix`` asks for."""
        check_suffix(suffix)
        return _WRITERS[suffix](self)

    def to_html(self) -> str:
        """One page that needs nothing else."""
        console = Console(file=io.StringIO(), width=120, record=True)
        console.print(self)
        return console.export_html(inline_styles=True)

    def to_markdown(self) -> str:
        """The main table, the cut dims and the checks."""
        lines = ["# graphprune report", "", *_markdown(("", "before", "after", "left"), self.figures()), ""]
        dims = [
            (d["name"], d["kind"], d["before"], d["after"], "yes" if d["exact"] else "normalised") for d in self.dims
        ]
        lines += ["## Dims cut", "", *_markdown(("dim", "kind", "before", "after", "exact"), dims), ""]
        frozen = [(d["name"], d["size"], d["reason"]) for d in self.frozen]
        lines += ["## Left whole", "", *_markdown(("dim", "size", "why"), frozen), ""]
        lines += ["## Checks", "", *(f"- {check}" for check in self.checks), *(f"- {note}" for note in self.notes), ""]
        return "\n".join(lines)


_WRITERS: dict[str, Callable[[Report], str]] = {
    ".json": Report.to_json,
    ".html": Report.to_html,
    ".md": Report.to_markdown,
    ".txt": Report.__str__,
}


def check_suffix(suffix: str) -> None:
    """UsageError unless a report can be written to a file whose name ends in ``suffix``."""
    if suffix not in _WRITERS:
        raise UsageError(f"there is no report format {suffix!r}", hint=f"end the name in {', '.join(_WRITERS)}")


def _finite(data: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(item) for item in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _row(name: str, before: int, after: int) -> tuple[str, str, str, str]:
    return name, f"{before:,}", f"{after:,}", f"{after / before:.1%}" if before else ""


def _markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    names = list(head)
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return lines + ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def make_report(analysis: Analysis, plan: Plan, chosen: Chosen) -> Report:
    """What ``plan`` changes in sizes and costs; checks and measurements are added as they are made."""
    cost = CostModel(analysis, list(chosen))
    cut = [
        {
            "name": atom.name,
            "kind": atom.kind,
            "before": atom.size,
            "after": len(chosen[atom.dim]),
            "exact": atom.inexact is None,
        }
        for atom in analysis.atoms
        if atom.dim in chosen
    ]
    frozen = [{"name": a.name, "kind": a.kind, "size": a.size, "reason": str(a.reason)} for a in analysis.frozen]
    after = cost({dim: len(index) for dim, index in chosen.items()})
    report = Report(cost({}), after, cut, frozen, plan.score, plan.request, sizes=analysis.graph.example)
    if not chosen:
        report.notes.append("nothing was cut: no Dim is prunable, or none may be cut by this request")
    return report
