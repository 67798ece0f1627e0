"""Prune a file too large for memory: seconds for each gigabyte, and the most memory held.

    python -m tools.bench_large --gb 6

The file is written first (tools/make_large.py), beside it the pruned one, both in a temporary folder: 6 GB need 10 GB
of free disk. Half of the parameters go, by l2; the result is verified by its structure. With --run, ONNX Runtime also
loads and runs the result, for which it needs several times the size of the file as memory.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools.child import Outcome, run

GB = 1e9


def bench(folder: Path, source: Path | None, kept: float, runs: bool, rest: list[str]) -> str:
    """Write, prune, and print a line for each step; returns the first error, else ""."""
    target = folder / "pruned.onnx"
    if source is None:
        source = folder / "large.onnx"
        written = _python("tools.make_large", str(source), *rest)
        _show("write", written, source)
        if written.error:
            return written.error
    asked = ["--params", str(kept), "--score", "l2", "--verify", "structure", "--json"]
    pruned = _python("graphprune", "prune", str(source), "-o", str(target), *asked)
    _show("prune", pruned, source)
    if pruned.error:
        return pruned.error
    _show_report(json.loads(pruned.text))
    if not runs:
        return ""
    done = _python("tools.bench_large", "--only-run", str(target))
    _show("run", done, target)
    return done.error


def only_run(path: Path) -> None:
    """Load the file into ONNX Runtime, run it on sixteen tokens, and see that the logits are numbers."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits = session.run(None, {"input_ids": np.arange(16, dtype=np.int64)[None]})[0]
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")


def main() -> None:
    """Command line; exit code 1 where a step failed."""
    parser = argparse.ArgumentParser(description="Prune a large ONNX file; other options go to tools.make_large.")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    parser.add_argument("--params", type=float, default=0.5, help="share of the parameters that stays")
    parser.add_argument("--model", type=Path, help="a file made before, instead of a new one")
    parser.add_argument("--run", action="store_true", help="also load and run the pruned file")
    parser.add_argument("--only-run", type=Path, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.only_run:
        only_run(options.only_run)
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        sys.exit(1 if bench(Path(folder), options.model, options.params, options.run, rest) else 0)


def _python(module: str, *arguments: str) -> Outcome:
    return run([sys.executable, "-m", module, *arguments])


def _show(what: str, done: Outcome, file: Path) -> None:
    data = file.with_name(file.name + ".data")
    size = sum(part.stat().st_size for part in (file, data) if part.exists()) / GB
    cost = f"{size:.2f} GB in {done.seconds:.1f} s, {done.seconds / size:.1f} s/GB" if size else ""
    print(f"{what}: {done.error or cost}; peak memory {done.peak / GB:.2f} GB", flush=True)


def _show_report(report: dict[str, Any]) -> None:
    dense, pruned = (report[side]["params"] for side in ("dense", "pruned"))
    print(f"  {dense / 1e6:,.1f} M -> {pruned / 1e6:,.1f} M parameters, {pruned / dense:.1%} left")
    for check in report["checks"]:
        print(f"  {check['name']}: {'passed' if check['passed'] else 'FAILED'}, {check['detail']}")


if __name__ == "__main__":
    main()
