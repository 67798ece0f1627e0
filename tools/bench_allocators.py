"""Allocators side by side: what a model still knows at the same budget, shared out between Dims in different ways.

    python -m tools.bench_allocators --state allocators.jsonl --subjects resnet20 mobilenet photos
    python -m tools.bench_allocators --state allocators.jsonl --write docs/allocators.md

Scores are those of `obs` with real data, and the weights that stay make up by least squares: rows of a subject differ
in the counts and in nothing else. A row that is there is skipped, so that the table can be made in pieces. Seconds are
of the processor, for the allocation alone.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphprune.allocate import ALLOCATORS
from models.tasks import SUBJECTS
from tools.bench_quality import Bench, request

Row = tuple[str, str, str, int]
"""Subject, budget, allocator, seed."""
Found = dict[str, Any]
_PLACE = re.compile(r"(<!-- measured -->\n).*?(<!-- end -->)", re.DOTALL)


def read(path: Path) -> dict[Row, Found]:
    """What was found so far."""
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {(line["row"][0], line["row"][1], line["row"][2], line["row"][3]): line for line in lines}


def run(rows: Iterable[Row], state: Path, tries: int) -> None:
    """Every row that is missing; the scores of a subject are found once for a seed."""
    bench: Bench | None = None
    scored: Any = None
    for row in rows:
        name, budget, allocator, seed = row
        if row in read(state):
            continue
        if bench is None or (bench.subject, bench.seed) != (SUBJECTS[name], seed):
            bench = Bench(SUBJECTS[name], "real", seed)
            widest = request(bench.subject, bench.subject.budgets[-1])
            scored = bench.loaded.scores(widest, "obs", seed=seed, **bench.moments_of([]))
        found = measured(bench, scored, budget, allocator, tries)
        print(*row, found, flush=True)
        with state.open("a") as file:
            file.write(json.dumps({"row": row, **found}) + "\n")


def measured(bench: Bench, scored: Any, budget: str, allocator: str, tries: int) -> Found:
    """One cut: what it took to share out, how far the outputs move on data that were not fitted, and the metrics."""
    wanted = replace(request(bench.subject, budget), allocator=allocator, tries=tries)
    batches, moments = bench.data[0].batches, bench.moments[0]
    tried = bench.loaded.tried({"batches": batches, "moments": moments})
    start = time.process_time()
    plan = bench.loaded.plan(wanted, "obs", scores=scored, tried=tried, seed=bench.seed)
    seconds = time.process_time() - start
    result = bench.loaded.compensated(plan, moments).apply(plan, verify="none", timing=False)
    moved = tried(plan.chosen(bench.loaded.analysis)) if tried else None
    metrics = bench.subject.measure(result.model.SerializeToString())
    macs = result.report.pruned.macs / result.report.dense.macs
    return {"metrics": metrics, "moved": moved, "seconds": seconds, "macs": macs, "tries": tries}


def table(name: str, found: Mapping[Row, Found]) -> Iterator[str]:
    """Of one subject: a line an allocator; first what moves the outputs least at the first budget."""
    subject = SUBJECTS[name]
    budgets = [budget for budget in subject.budgets if any(row[:2] == (name, budget) for row in found)]
    metric = subject.metrics[0]
    yield f"| {subject.title} | {' | '.join(f'{metric.name}, {b} | moved, {b}' for b in budgets)} | seconds |"
    yield "|---" * (2 * len(budgets) + 2) + "|"
    names = {row[2] for row in found if row[0] == name}

    def cell(budget: str, allocator: str, key: str) -> list[float]:
        lines = [line for row, line in found.items() if row[:3] == (name, budget, allocator)]
        return [line["metrics"][metric.name] if key == "metric" else line[key] for line in lines]

    def rank(allocator: str) -> tuple[float, str]:
        return mean(cell(budgets[0], allocator, "moved")), allocator

    for allocator in sorted(names, key=rank):
        cells = [
            f"{shown(cell(b, allocator, 'metric'), metric.form)} | {shown(cell(b, allocator, 'moved'), '.3f')}"
            for b in budgets
        ]
        seconds = [value for b in budgets for value in cell(b, allocator, "seconds")]
        yield f"| `{allocator}` | {' | '.join(cells)} | {mean(seconds):.1f} |"


def mean(values: list[float]) -> float:
    """The mean, or 0 of none."""
    return sum(values) / len(values) if values else 0.0


def shown(values: list[float], form: str) -> str:
    """The mean over seeds, and how far the farthest is from it."""
    if not values:
        return ""
    spread = max(abs(value - mean(values)) for value in values)
    return f"{mean(values):{form}}" + (f" ± {spread:{form}}" if len(values) > 1 else "")


def write(page: Path, found: Mapping[Row, Found]) -> None:
    """The tables, between their comments on the page."""
    names = [name for name in SUBJECTS if any(row[0] == name for row in found)]
    text = "\n\n".join("\n".join(table(name, found)) for name in names)
    page.write_text(_PLACE.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page.read_text()))


def main() -> None:
    """Run what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--state", type=Path, required=True, help="file of finished rows")
    parser.add_argument("--subjects", nargs="+", default=["resnet20", "mobilenet", "photos"], choices=list(SUBJECTS))
    parser.add_argument("--allocators", nargs="+", default=list(ALLOCATORS), choices=list(ALLOCATORS))
    parser.add_argument("--budgets", nargs="+", help="those of the subject unless given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tries", type=int, default=80, help="candidates of the search")
    parser.add_argument("--write", type=Path, help="put the tables into this page, and run nothing")
    options = parser.parse_args()
    if options.write:
        write(options.write, read(options.state))
        return
    rows = (
        (name, budget, allocator, seed)
        for name in options.subjects
        for seed in options.seeds
        for budget in options.budgets or SUBJECTS[name].budgets
        for allocator in options.allocators
    )
    run(rows, options.state, options.tries)


if __name__ == "__main__":
    main()
