"""The Report: what happened, what it cost, what could not be cut and why. Text, JSON, Markdown or HTML."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphprune.analysis import DEFAULTS, Analysis
from graphprune.cost import Cost, CostModel
from graphprune.dims import Chosen, counts, size_after, touched
from graphprune.errors import UsageError, printable
from graphprune.pictures import bars, items, page, section, table
from graphprune.plan import Plan
from graphprune.sensitivity import Sensitivity
from graphprune.verify import Check

Section = tuple[str, Sequence[str], Sequence[Sequence[Any]]]


@dataclass
class Report:
    """All figures of one run: latency in median seconds, measured alternately; drift relative to the outputs' norm.

    ``predicted`` is the latency that the plan was made by, in seconds, before and after, and ``fullest`` where
    activations are most.
    """

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
    kept: list[dict[str, Any]] = field(default_factory=list)
    predicted: Sequence[float] = ()
    fullest: Sequence[str] = ()
    sensitivity: Sensitivity | None = None

    @property
    def verified(self) -> bool:
        """Whether any check was made and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> str:
        """The report as JSON; a figure that is not a finite number is null there."""
        return json.dumps(_finite({**asdict(self), "verified": self.verified}), indent=1, default=str)

    def __rich__(self) -> RenderableType:
        tables = [_table(*section) for section in self._sections()]
        lines = [Text(printable(str(check)), style="green" if check.passed else "bold red") for check in self.checks]
        return Group(*tables, *lines, *(Text(printable(note), style="yellow") for note in self._remarks()))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=110)
        console.print(self)
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    def figures(self) -> list[tuple[str, str, str, str]]:
        """Rows of the main table: name, before, after, share left."""
        rows = [
            _row("parameters", self.dense.params, self.pruned.params),
            _row("MACs", self.dense.macs, self.pruned.macs),
            _row("bytes of weights", self.dense.bytes, self.pruned.bytes),
            _row("bytes of activations", self.dense.activations, self.pruned.activations),
        ]
        if self.file_bytes:
            rows.append(_row("file size", *self.file_bytes))
        for name, seconds in (("latency, predicted", self.predicted), ("latency", self.latency)):
            if seconds:
                before, after = seconds
                rows.append((name, f"{before * 1e3:.2f} ms", f"{after * 1e3:.2f} ms", f"{after / before:.1%}"))
        if self.drift is not None:
            rows.append(("output drift", "", f"{self.drift:.1%}", ""))
        return rows

    def _sections(self) -> list[Section]:
        """Title, column names and rows of every table, the same in all formats."""
        found: list[Section] = [("graphprune report", ("", "before", "after", "left"), self.figures())]
        if self.dims:
            rows = [(d["name"], d["kind"], d["before"], d["after"], _exact(d)) for d in self.dims]
            title = f"{len(self.dims)} dims cut (score {self.score})"
            found.append((title, ("dim", "kind", "before", "after", "exact"), rows))
        if self.kept:
            kinds = Counter(d["kind"] for d in self.kept)
            kept = [(kind, count, ", ".join(_names(self.kept, kind))) for kind, count in kinds.items()]
            found.append(("prunable, but not cut", ("kind", "dims", "which"), kept))
        if self.frozen:
            reasons = Counter(d["reason"] for d in self.frozen)
            sizes = Counter({r: sum(d["size"] for d in self.frozen if d["reason"] == r) for r in reasons})
            whole = [(reasons[reason], size, reason) for reason, size in sizes.most_common()]
            found.append(("left whole", ("dims", "positions", "why"), whole))
        return found

    def _remarks(self) -> list[str]:
        asked = ", ".join(f"{name}={value}" for name, value in self.request.items() if value not in ([], None))
        lines = [f"asked: {asked}"] if asked else []
        if self.sizes:
            shown = ", ".join(f"{name}={size}" for name, size in self.sizes.items() if not name.startswith("("))
            lines.append(f"MACs and activations at {shown}")
        if self.fullest:
            lines.append("activations are most at {}, and once cut at {}".format(*self.fullest))
        return lines + self.notes

    def render(self, suffix: str) -> str:
        """The report as text in the format that a file name ending in ``suffix`` asks for."""
        check_suffix(suffix)
        return _WRITERS[suffix](self)

    def to_html(self) -> str:
        """One page that needs nothing else."""
        parts = [section(title, table(head, rows)) for title, head, rows in self._sections()]
        if self.dims:
            parts.insert(2, section("share of each dim that stays", bars(self._shares())))
        if self.sensitivity:
            parts.append(section(self.sensitivity.title, self.sensitivity.to_svg()))
        checks = items(map(str, self.checks), ["passed" if check.passed else "failed" for check in self.checks])
        return page("graphprune report", *parts, section("checks", checks), section("notes", items(self._remarks())))

    def _shares(self) -> Iterator[tuple[str, float, str]]:
        """Name, share and words of each Dim that was cut, and then of those of their kinds that were not."""
        kinds = {dim["kind"] for dim in self.dims}
        for dim in self.dims:
            yield dim["name"], dim["after"] / dim["before"], f"{dim['after']} of {dim['before']}"
        for dim in self.kept:
            if dim["kind"] in kinds:
                yield dim["name"], 1.0, f"{dim['size']} of {dim['size']}"

    def to_markdown(self) -> str:
        """Every table, the checks and the notes."""
        lines: list[str] = []
        for level, (title, head, rows) in enumerate(self._sections()):
            lines += [f"{'#' if level == 0 else '##'} {title}", "", *_markdown(head, rows), ""]
        lines += ["## Checks", "", *(f"- {_cell(line)}" for line in (*self.checks, *self._remarks())), ""]
        return "\n".join(lines)


def _exact(dim: Mapping[str, Any]) -> str:
    return "yes" if dim["exact"] else "normalised"


def _names(dims: Iterable[Mapping[str, Any]], kind: str, most: int = 3) -> list[str]:
    names = [str(dim["name"]) for dim in dims if dim["kind"] == kind]
    return names[:most] + (["..."] if len(names) > most else [])


def _table(title: str, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    table = Table(title=title)
    for column in head:
        right = column in ("before", "after", "left", "dims", "positions")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    return table


_WRITERS: dict[str, Callable[[Report], str]] = {
    ".json": Report.to_json,
    ".html": Report.to_html,
    ".md": Report.to_markdown,
    ".txt": Report.__str__,
}


def check_suffix(suffix: str, known: Sequence[str] = tuple(_WRITERS), what: str = "report") -> None:
    """UsageError unless a report, or ``what`` else, can be written to a file whose name ends in ``suffix``."""
    if suffix not in known:
        raise UsageError(f"there is no {what} format {suffix!r}", hint=f"end the name in {', '.join(known)}")


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
    return printable(" ".join(str(value).split())).replace("|", "\\|")


def _resized(analysis: Analysis, chosen: Chosen) -> Iterator[str]:
    """Inputs and outputs of the model that are smaller than they were, with their new shapes."""
    graph, sizes = analysis.graph, counts(chosen)
    for name in (*graph.inputs, *sorted(graph.defaults), *graph.outputs):
        layout = analysis.facts.layouts.get(name, ())
        if any(touched(dim, chosen) for dim in layout):
            shape = graph.shape(name) or ()
            new = [size_after(dim, sizes) if dim.size else size for dim, size in zip(layout, shape, strict=True)]
            yield f"{name!r} [{', '.join(map(str, new))}]"


def make_report(analysis: Analysis, plan: Plan, chosen: Chosen) -> Report:
    """What ``plan`` changes in sizes and costs; checks and measurements are added as they are made."""
    cost, sizes = CostModel(analysis, list(chosen)), counts(chosen)
    cut = [
        {
            "name": atom.name,
            "kind": atom.kind,
            "before": atom.size,
            "after": sizes[atom.dim],
            "exact": atom.inexact is None,
        }
        for atom in analysis.atoms
        if atom.dim in chosen
    ]
    left = [atom for atom in analysis.prunable if atom.dim not in chosen]
    kept = [{"name": a.name, "kind": a.kind, "size": a.size} for a in left]
    frozen = [{"name": a.name, "kind": a.kind, "size": a.size, "reason": str(a.reason)} for a in analysis.frozen]
    after = cost(sizes)
    report = Report(cost({}), after, cut, frozen, plan.score, plan.request, kept=kept, predicted=plan.predicted)
    report.sizes, report.fullest = analysis.graph.example, (cost.fullest({}), cost.fullest(sizes))
    finer = [atom.name for atom in analysis.atoms if atom.dim in chosen and chosen[atom.dim].ndim > 1]
    if finer:
        report.notes.append(f"what stays differs from group to group (--no-finer: the same in all): {', '.join(finer)}")
    ends = list(_resized(analysis, chosen))
    if ends:
        report.notes.append(f"inputs and outputs that changed shape: {', '.join(ends)}")
    held = [atom.name for atom in left if not analysis.graph.defaults.isdisjoint(atom.weights)]
    if held and DEFAULTS not in plan.request.get("allow", ()):
        report.notes.append(
            f"{len(held)} dims are in weights that are inputs of the model, too, so that callers may give others:"
            " --allow defaults cuts them and the inputs"
        )
    if not chosen:
        report.notes.append("nothing was cut: no Dim is prunable, or none may be cut by this request")
    return report
