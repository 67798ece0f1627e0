"""What a model still knows after a cut: each score, with and without compensation, from each source of data.

`python -m tools.bench_quality --subjects digits --scores l1 obs` adds rows to a file of JSON lines; rows that are there
are skipped, so that the table can be made in pieces. `--write docs/bench-quality.md` makes the page. The file of the
page is docs/bench-quality.jsonl; `--state` names another.

A row is a subject (models/tasks.py), a budget, a score, a compensation, a source of data, and a seed. Rows of one
subject, source and seed share a process: the model is read and the data are gone through once, and a score's choice
serves every compensation of it. What is shared counts in full in the time and the memory of each row; the memory is
that of a process which holds what its rows share. A row that fails is kept with the error; a process that dies costs
the row it died in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

import graphprune
from graphprune import data
from graphprune.loaded import Loaded, Result
from graphprune.plan import Plan
from graphprune.scores import SCORES, Scores
from models.tasks import SUBJECTS, Calibration, Subject, table_share
from tools import child
from tools.quality_page import page
from tools.quality_rows import COMPENSATIONS, MIXED, NORMS, SOURCES, Found, Row, State, Wanted

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "bench-quality.jsonl"
"""The rows of the page."""
PACKAGES = ("numpy", "onnx", "onnxruntime")


def request(subject: Subject, budget: str) -> graphprune.Request:
    """``budget`` as graphprune takes it: "2x" times fewer MACs, "20%" fewer of the parameters outside tables."""
    if budget.endswith("x"):
        return graphprune.Request(macs=1 / float(budget[:-1]), **subject.options)
    blocks = 1 - table_share(subject.path())
    return graphprune.Request(params=1 - float(budget[:-1]) / 100 * blocks, **subject.options)


class Watch:
    """Processor time and peak memory of what runs inside it."""

    def __enter__(self) -> Watch:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        self.start = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self.start
        self.peak = peak()


def peak() -> int:
    """The most memory this process held, in bytes, since it was last forgotten."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass
class Bench:
    """What rows of one group share: the model, the data, moments, and scores; with what each of them took."""

    subject: Subject
    source: str
    seed: int
    scores: dict[str, tuple[Scores, Watch]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = self.subject.calibration(0).batches[0]  # MACs are counted at the same sizes for every source
        with Watch() as self.reading:
            self.loaded: Loaded = graphprune.load(self.subject.path(), inputs=sizes)

    @cached_property
    def data(self) -> tuple[Calibration, Watch]:
        """Batches of the source, and what they took to make: real ones are at hand."""
        real = self.subject.calibration(self.seed) if self.source == "real" else None
        with Watch() as watch:
            return real or self.made(), watch

    def made(self) -> Calibration:
        """Batches that the model itself or noise makes, as many as the subject says, or as is usual; or none.

        With "real+self" the real ones as well.
        """
        named = self.source.removeprefix("real+")
        source = named if named == self.source else [named, self.subject.calibration(self.seed).batches]
        wanted = data.Calibration(source, samples=self.subject.samples, cache=False)
        found = data.bring(wanted, self.loaded.format, self.loaded.model, seed=self.seed)
        return Calibration(found.batches, sample=found.sample)

    @cached_property
    def moments(self) -> tuple[Any, Watch]:
        """Moments of everything that any budget may cut, and what they took."""
        widest, batches = request(self.subject, self.subject.budgets[-1]), self.data[0].batches
        with Watch() as watch:
            found = self.loaded.measure(batches or None, widest)
        return found, watch

    def plan(self, row: Row) -> tuple[Plan, list[Watch]]:
        """What stays, and all that was needed to say so."""
        how: dict[str, Any] = {"seed": self.seed}
        watches = [self.reading]
        needs = SCORES[row.score].needs
        if needs != "nothing":
            how |= self.moments_of(watches) if needs == "data" else self.gradients_of(needs, watches)
        wanted = request(self.subject, row.budget)
        if row.score not in self.scores:
            with Watch() as watch:
                self.scores[row.score] = self.loaded.scores(wanted, row.score, **how), watch
        scores, watch = self.scores[row.score]
        return self.loaded.plan(wanted, row.score, scores=scores, seed=self.seed), [*watches, watch]

    def moments_of(self, watches: list[Watch]) -> dict[str, Any]:
        """Moments, and a batch to run the model on."""
        moments, watch = self.moments
        found = self.data[0]
        watches += [self.data[1], watch]
        if not found.batches:
            return {"moments": moments}
        return {"moments": moments, "batches": found.batches, "sample": found.sample or found.batches[:1]}

    def gradients_of(self, needs: str, watches: list[Watch]) -> dict[str, Any]:
        """Batches, and where a score wants them moments or what is right; without that the loss is the model's own."""
        calibration, watch = self.data
        watches.append(watch)
        how = self.moments_of(watches) if "data" in needs else {}
        if "labels" not in needs or self.source != "real" or self.subject.loss is None:
            return how | {"batches": calibration.batches}
        labels = calibration.labels or [{}] * len(calibration.batches)
        batches = [batch | right for batch, right in zip(calibration.batches, labels, strict=True)]
        return how | {"batches": batches, "loss": self.subject.loss}

    def cut(self, row: Row, path: Path) -> Found:
        """Write the smaller model to ``path``; what is left of it, and what it took."""
        plan, watches = self.plan(row)
        how: dict[str, Any] = {} if row.compensation == "none" else {"how": row.compensation}
        moments = self.moments_of(watches)["moments"] if how else {}
        with Watch() as watch:
            start = self.loaded
            if how:
                start = start.compensated(plan, moments, batches=self.data[0].batches, **how)
            result = start.apply(plan, verify="none", timing=False)
            model = result.model
            if row.norms == "re-estimated":
                watches.append(self.data[1])
                graphprune.reestimate_batch_norm(model, self.data[0].batches)
            onnx.save(model, path)
        return _left(result) | _took([*watches, watch])


def _left(result: Result) -> Found:
    dense, small = result.report.dense, result.report.pruned
    kept = repr([(cut.name, list(cut.keep)) for cut in result.plan.cuts])
    return {
        "params": small.params / dense.params,
        "macs": small.macs / dense.macs,
        "kept": hashlib.sha256(kept.encode()).hexdigest()[:16],
    }


def _took(watches: Iterable[Watch]) -> Found:
    each = list({id(watch): watch for watch in watches}.values())
    return {"seconds": sum(watch.seconds for watch in each), "peak": max(watch.peak for watch in each)}


def measured(row: Row, bench: Callable[[], Bench], twin: Callable[[Found], Found | None]) -> Found:
    """The row: what is left, what it took, and how good it is."""
    subject = SUBJECTS[row.subject]
    if row.score == "dense":
        return {"metrics": subject.measure(subject.path())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        found = bench().cut(row, path)
        same = twin(found)
        return found | {"metrics": same["metrics"] if same else subject.measure(path)}


def run_group(group: str, rows: Sequence[Row], state: State) -> None:
    """Every row of ``group`` that is not in ``state``; what fails is kept with its words."""
    held: list[Bench] = []
    known = state.read()

    def bench(row: Row) -> Bench:
        if not held:
            held.append(Bench(SUBJECTS[row.subject], row.source, row.seed))
        return held[0]

    def twin(row: Row, found: Found) -> Found | None:
        """A row whose model is the same: the same positions, and nothing else done."""
        plain = row.compensation == "none" and row.norms == "kept"
        same = (
            other
            for at, other in known.items()
            if plain
            and (at.subject, at.compensation, at.norms) == (row.subject, "none", "kept")
            and other.get("kept") == found["kept"]
            and "metrics" in other
        )
        return next(same, None)

    for row in rows:
        if row.group != group or row in known:
            continue
        try:
            found = measured(row, lambda row=row: bench(row), lambda found, row=row: twin(row, found))  # type: ignore[misc]
        except Exception as error:  # a row that fails is a result
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        known[row] = found = found | {"versions": versions()}
        state.add(row, found)


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {"graphprune": graphprune.__version__} | {name: version(name) for name in PACKAGES} | revision()


@cache
def revision() -> dict[str, str]:
    """The commit that this runs from, with a "+" where code was changed since; nothing outside a checkout."""
    head, changed = _git("rev-parse", "--short=7", "HEAD"), _git("status", "--porcelain", "--", "*.py")
    return {"revision": head + "+" * bool(changed)} if head else {}


def _git(*words: str) -> str:
    with suppress(OSError):
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return ""


def run(rows: Sequence[Row], state: State, arguments: Sequence[str], limit: float) -> None:
    """All rows that are missing, each group in a process of its own, started again without the row it died in."""
    for group in dict.fromkeys(row.group for row in rows):
        while missing := _missing(group, rows, state):
            start = time.perf_counter()
            done = child.run([sys.executable, "-m", "tools.bench_quality", *arguments, "--child", group], limit)
            left = _missing(group, rows, state)
            if left:
                state.add(left[0], {"error": done.error or "the process ended early", "versions": versions()})
            took = time.perf_counter() - start
            print(f"{group}: {len(missing) - len(left)} rows in {took:.0f} s {done.error}", flush=True)


def _missing(group: str, rows: Sequence[Row], state: State) -> list[Row]:
    known = state.read()
    return [row for row in rows if row.group == group and row not in known]


def main() -> None:
    """Run what is missing; write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--state", type=Path, default=PAGE, help="file of finished rows")
    axes: dict[str, Iterable[str]] = {"subjects": SUBJECTS, "scores": SCORES}
    axes |= {"compensations": COMPENSATIONS, "sources": (*SOURCES, *MIXED), "norms": NORMS}
    for name, choices in axes.items():
        parser.add_argument(f"--{name}", nargs="+", default=(), choices=list(choices), metavar="NAME")
    parser.add_argument("--budgets", nargs="+", default=(), help='such as 2x or "20%%"')
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,))
    parser.add_argument("--limit", type=float, default=7200, help="seconds for a process")
    parser.add_argument("--again", action="store_true", help="forget the rows that failed")
    parser.add_argument("--write", type=Path, help="write this page from the state, and run nothing")
    parser.add_argument("--note", default="", help="what to say of how the rows were made")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    state = State(options.state)
    wanted = Wanted(**{name: getattr(options, name) for name in Wanted.__dataclass_fields__})
    if options.write:
        options.write.write_text(page(state.read(), options.note))
    elif options.child:
        run_group(options.child, list(wanted.rows()), state)
    else:
        if options.again:
            kept = {row: line for row, line in state.read().items() if "error" not in line}
            state.path.write_text("".join(json.dumps(line) + "\n" for line in kept.values()))
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes of rows
        run(list(wanted.rows()), state, [word for word in sys.argv[1:] if word != "--again"], options.limit)


if __name__ == "__main__":
    main()
