"""The page of the quality benchmark: a table a subject, the best way first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import mean

from models.tasks import SUBJECTS, Metric, Subject
from tools.quality_rows import Found, Row


def page(found: Mapping[Row, Found], note: str = "") -> str:
    """All subjects that have rows; ``note`` says more on how they were made."""
    parts = [section(name, found) for name in SUBJECTS if any(row.subject == name for row in found)]
    seeds = sorted({row.seed for row in found if row.score != "dense"})
    used: dict[str, str] = next((line["versions"] for line in [*found.values()][::-1] if "versions" in line), {})
    return _INTRO.format(
        note=f" {note}" if note else "",
        seeds=", ".join(map(str, seeds)),
        versions=", ".join(f"{name} {number}" for name, number in used.items() if name != "revision"),
        subjects="\n".join(parts),
    )


def section(name: str, found: Mapping[Row, Found]) -> str:
    """The table of one subject, the best at its middle budget first."""
    subject = SUBJECTS[name]
    rows = {row: line for row, line in found.items() if row.subject == name}
    dense = rows.pop(Row(name, "dense"), {}).get("metrics", {})
    ways: dict[tuple[str, ...], dict[str, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for row, line in rows.items():
        if "metrics" in line:
            ways[row.score, row.compensation, row.norms, row.source][row.budget].append(line)
    first = subject.metrics[0]
    shown = [
        f"{metric.name} {_number(dense[metric.name], metric)}" for metric in subject.metrics if metric.name in dense
    ]
    chance = "" if first.chance is None else f" A model that knows nothing gets {_number(first.chance, first)}."
    lines = [f"## {subject.title}", "", f"Dense: {', '.join(shown) or 'not measured'}.{chance}", "", *_head(subject)]
    lines += [_line(way, cells, subject) for way, cells in sorted(ways.items(), key=lambda item: _rank(item, subject))]
    return "\n".join([*lines, "", *_failures(rows)])


def _head(subject: Subject) -> Iterator[str]:
    first, *others = subject.metrics
    columns = ["score", "compensation", "batch norms", "data"]
    columns += [f"{first.name}, {budget}" for budget in subject.budgets]
    columns += [f"{metric.name}, {_middle(subject)}" for metric in others] + ["seconds", "GB", "revision"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _line(way: tuple[str, ...], cells: Mapping[str, list[Found]], subject: Subject) -> str:
    first, *others = subject.metrics
    every = [line for lines in cells.values() for line in lines]
    parts = [f"`{way[0]}`", *way[1:]]
    parts += [_cell(cells.get(budget, []), first) for budget in subject.budgets]
    parts += [_cell(cells.get(_middle(subject), []), metric) for metric in others]
    parts += [f"{mean(line['seconds'] for line in every):.1f}", f"{max(line['peak'] for line in every) / 1e9:.2f}"]
    parts += [", ".join(sorted({line.get("versions", {}).get("revision", "older") for line in every}))]
    return f"| {' | '.join(parts)} |"


def _middle(subject: Subject) -> str:
    return subject.budgets[len(subject.budgets) // 2]


def _cell(lines: list[Found], metric: Metric) -> str:
    """The mean over seeds, and where there are several the least and the most."""
    values = [line["metrics"][metric.name] for line in lines]
    if not values:
        return ""
    span = f" ({_number(min(values), metric)} to {_number(max(values), metric)})" if len(values) > 1 else ""
    return _number(mean(values), metric) + span


def _number(value: float, metric: Metric) -> str:
    return f"{value:.1e}" if abs(value) >= 1e5 else f"{value:{metric.form}}"


def _rank(item: tuple[tuple[str, ...], Mapping[str, list[Found]]], subject: Subject) -> tuple[float, tuple[str, ...]]:
    """The better comes first; those without the middle budget last."""
    way, cells = item
    first = subject.metrics[0]
    values = [line["metrics"][first.name] for line in cells.get(_middle(subject), [])]
    if not values:
        return float("inf"), way
    return (-1 if first.higher else 1) * mean(values), way


def _failures(rows: Mapping[Row, Found]) -> Iterator[str]:
    """Each error once, with the rows it befell."""
    befell: dict[str, list[Row]] = defaultdict(list)
    for row, line in rows.items():
        if "error" in line:
            befell[line["error"]].append(row)
    for error, those in befell.items():
        names = ", ".join(f"`{score}`" for score in dict.fromkeys(row.score for row in those))
        yield f"- Failed, {len(those)} rows of {names}: {error.replace('|', '/')}"
    if befell:
        yield ""


_INTRO = """# What is left to know

Trained models on their tasks, cut without any training afterwards: by every score, with and without compensation, from
every source of data. Written by

<!-- not run: it takes hours -->
```sh
python -m tools.bench_quality
python -m tools.bench_quality --write docs/bench-quality.md
```

from [every row that was measured](bench-quality.jsonl): what is there already is not run again.

- *score*: which positions go. *compensation*: what is done with what stays: nothing; the mean of what went is added to
  biases; least squares on the data; or least squares layer after layer, on what the layers before leave (sequential).
  *batch norms*: their statistics as they were, or taken anew on the data.
- *data*: real samples of the task that are not scored; made by the model itself (self), as many, or of text twice as
  many; both (real+self); noise; no forward pass at all (none); or a row that looks at nothing but the weights (-).
- A budget such as 2x is so many times fewer MACs; one such as 20% so many fewer parameters, of those outside embedding
  tables. Every way is brought to the same budget by the exact cost of the whole model.
- Each cell is the mean over the seeds {seeds}, which choose the calibration data, and the range where there are
  several. Held-out data are the same in all rows. *agreement* is the share of equal answers of the dense model.
- *seconds* of the processor and *GB* are for a cut on one thread, from the file to the file, reading and calibrating
  included, scoring on held-out data not: the mean over the row's seeds and budgets, and the largest peak of memory.
- *revision*: the commits that made the row; *older* rows are as an earlier page showed them.

With {versions}.{note}

{subjects}
"""
