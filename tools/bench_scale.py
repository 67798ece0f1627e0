"""How time and memory of OBS grow with the depth and the width of a model.

    python -m tools.bench_scale --write docs/bench-scale.md

The model is SmolLM2's graph with random weights (models/real.py): as many layers as asked for, all widths scaled
together, the same vocabulary. It is made in a temporary folder; each row is a process of its own, on one thread. Time
is the processor's, so that a busy machine shows what a quiet one would.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import graphprune
from models import real
from models.tasks import table_share
from tools.bench_quality import Watch
from tools.child import record, run

DEPTHS, WIDTHS = (6, 12, 24), (144, 288, 576)
DEPTH, WIDTH = 6, 288  # of the rows in which the other grows
WINDOWS, LENGTH = 8, 256
CUT = 0.2  # of the parameters outside the embedding table
LIMIT = 7200.0  # seconds for a row
GB = 1e9
Row = dict[str, Any]


def model(name: str) -> Path:
    """The file of ``name``, which is "layers x width"; made if it is not there."""
    layers, width = map(int, name.split("x"))
    return real.smollm2_repeated(layers, width)


def measure(name: str) -> Row:
    """Seconds and peak bytes of each stage."""
    path = model(name)
    tokens = np.random.default_rng(0).integers(0, 49152, (WINDOWS, 1, LENGTH))
    batches = [{"input_ids": window, "attention_mask": np.ones_like(window)} for window in tokens]
    request, row = graphprune.Request(params=1 - CUT * (1 - table_share(path))), dict[str, Any](name=name)
    row["bytes"] = path.stat().st_size
    with stage(row, "read"):
        loaded = graphprune.load(path, inputs=batches[0])
    with stage(row, "moments"):
        moments = loaded.measure(batches, request)
    with stage(row, "score"):
        scores = loaded.scores(request, "obs", moments=moments, batches=batches, sample=batches[0])
    with stage(row, "cut"):
        plan = loaded.plan(request, "obs", scores=scores)
        loaded.compensated(plan, moments).apply(plan, verify="none").save(path.with_suffix(".cut.onnx"))
    return row


@contextmanager
def stage(row: Row, name: str) -> Iterator[None]:
    """Write into ``row`` what happens inside took."""
    start = time.process_time()
    with Watch() as watch:
        yield
    row[name] = {"seconds": time.process_time() - start, "peak": watch.peak}


STAGES = ("read", "moments", "score", "cut")


def page(rows: list[Row]) -> str:
    """The page in docs."""
    lines = [
        "# Time and memory",
        "",
        "How OBS grows with a model: SmolLM2's graph with random weights, 9 + 3 heads, an MLP of 8/3 widths and a",
        f"vocabulary of 49,152, calibrated on {WINDOWS * LENGTH:,} tokens, and least squares at once; one process",
        "a row, one thread. Written by",
        "",
        "<!-- not run: it takes minutes -->",
        "```sh",
        "python -m tools.bench_scale --write docs/bench-scale.md",
        "```",
        "",
        "Seconds are the processor's. Memory is the most that the process held in the stage, all of Python and what",
        "earlier stages keep included.",
        "",
        "| layers | width | file, GB | " + " | ".join(f"{name}, s" for name in STAGES) + " | peak, GB, in turn |",
        "|---|---|---|" + "---|" * (len(STAGES) + 1),
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    sizes = row["name"].replace("x", " | ")
    if "error" in row:
        return f"| {sizes} | {row['error']} |" + " |" * len(STAGES)
    seconds = " | ".join(f"{row[name]['seconds']:.1f}" for name in STAGES)
    peaks = " · ".join(f"{row[name]['peak'] / GB:.2f}" for name in STAGES)
    return f"| {sizes} | {row['bytes'] / GB:.2f} | {seconds} | {peaks} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure how OBS grows with a model.")
    parser.add_argument("--write", type=Path, help="write this page")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        model(options.make)
        return
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    names = dict.fromkeys([*(f"{n}x{WIDTH}" for n in DEPTHS), *(f"{DEPTH}x{n}" for n in WIDTHS)])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GRAPHPRUNE_CACHE": folder, "OMP_NUM_THREADS": "1"}
        for name in names:
            run([sys.executable, "-m", "tools.bench_scale", "--make", name])  # torch stays in memory once it is there
            rows.append(record("tools.bench_scale", name, LIMIT))
            print(_line(rows[-1]), flush=True)
    if options.write:
        options.write.write_text(page(rows))


if __name__ == "__main__":
    main()
