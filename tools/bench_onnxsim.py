"""Side by side with the pruner inside onnxsim (onnxsim.pruning, 0.8.1): the same files, half of whatever each finds.

    python -m tools.bench_onnxsim --models resnet50 ocr_rec

For each file: the share of its parameters that is gone, whether ONNX Runtime loads and runs what was written with
outputs of the same shapes, and the seconds from reading to written. graphprune keeps half of every Dim; onnxsim removes
half of the channels, then half of the attention heads, once from the file as it is and once after its own simplifier,
which its pruner is made to follow (it folds batch normalisations, so their share counts for it). Neither tool verifies
here. Each attempt is a process of its own with a time limit; a crash is a cell of the table. Needs onnxsim.
"""

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tools.child import run

Prune = Callable[[Path, Path], None]


def graphprune(source: Path, target: Path) -> None:
    """Half of every Dim, in a file of this project's making."""
    import graphprune as pruner

    optional = ("hidden", "head-size")
    pruned = pruner.prune(str(source), keep=0.5, multiple=1, floor=0.0, allow=optional, verify="none", timing=False)
    pruned.save(target)


def onnxsim(source: Path, target: Path) -> None:
    """Half of the channels and heads that onnxsim.pruning finds in the file as it is."""
    _onnxsim(source, target, simplify=False)


def onnxsim_simplified(source: Path, target: Path) -> None:
    """The same after onnxsim's simplifier."""
    _onnxsim(source, target, simplify=True)


TOOLS: dict[str, Prune] = {"graphprune": graphprune, "onnxsim": onnxsim, "simplify, then onnxsim": onnxsim_simplified}
MODULES = {
    name: ("onnxsim.pruning",) if "onnxsim" in name else ("graphprune.formats.onnx",) for name in (*TOOLS, "check")
}
"""What each child imports before its time starts."""


def files() -> dict[str, Callable[[], Path]]:
    """The models, by name: each a function that makes or fetches the file and returns its path."""
    from models import light, real

    found: dict[str, Callable[[], Path]] = {name: partial(light.light, name) for name in light.LIGHT}
    shipped = (real.ocr_rec, real.ocr_det, real.ocr_cls, real.silero_vad)
    exported = (real.mobilenet_v2, real.llama_tiny, real.minilm)
    return found | {loader.__name__: loader for loader in (*shipped, *exported)}


def parameters(path: Path) -> int:
    """Elements of all floating-point tensors stored in an ONNX file, wherever they are."""
    import onnx

    return sum(_size(tensor) for tensor in _tensors(onnx.load(path).graph))


def check(source: Path, target: Path) -> None:
    """Run both files in ONNX Runtime on inputs that the first one runs on; ValueError where the outputs do not fit."""
    from graphprune.formats import onnx as onnx_format

    model = onnx_format.read(source)
    before, after = onnx_format.run(model), _session(target)
    for sizes, feeds in onnx_format.trials(model, before):
        for name, dense in before(feeds).items():
            (value,) = after.run([name], dict(feeds))
            if value.shape != dense.shape:
                raise ValueError(f"output {name} is {value.shape} instead of {dense.shape} at {sizes}")


def attempt(tool: str, source: Path, limit: float) -> tuple[str, str]:
    """One cell of the table, and what went wrong if anything did."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pruned.onnx"
        done = run(_command(tool, source, target), limit)
        if done.error:
            return "fails", done.error
        gone = 1 - parameters(target) / parameters(source)
        cell = f"{100 * gone:.1f} %, {float(done.text.splitlines()[-1]):.1f} s"
        checked = run(_command("check", source, target), limit)
        return (f"{cell}, broken", checked.error) if checked.error else (cell, "")


def table(names: list[str], limit: float) -> Iterator[str]:
    """The lines of the table in Markdown, each as soon as it is known, then the errors."""
    from rich.console import Console
    from rich.progress import Progress

    yield "| model | parameters | " + " | ".join(TOOLS) + " |"
    yield "|---" * (2 + len(TOOLS)) + "|"
    errors = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(names) * len(TOOLS))
        for name in names:
            progress.update(task, description=f"{name}: making the file")
            source = files()[name]()
            cells = []
            for tool in TOOLS:
                progress.update(task, description=f"{name}: {tool}")
                cell, error = attempt(tool, source, limit)
                cells.append(cell)
                errors += [f"- {name}, {tool}: {error}"] if error else []
                progress.advance(task)
            yield f"| {name} | {parameters(source) / 1e6:.2f} M | {' | '.join(cells)} |"
    yield from ["", *errors] if errors else []


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare graphprune with onnxsim.pruning.")
    parser.add_argument("--models", nargs="*", default=list(files()), choices=list(files()), metavar="NAME")
    parser.add_argument("--limit", type=float, default=120, help="seconds for each attempt")
    parser.add_argument("--child", nargs=3, metavar=("TOOL", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        tool, source, target = options.child
        for module in MODULES[tool]:
            importlib.import_module(module)
        start = time.perf_counter()
        {**TOOLS, "check": check}[tool](Path(source), Path(target))
        print(time.perf_counter() - start)
        return
    for line in table(options.models, options.limit):
        print(line, flush=True)


def _onnxsim(source: Path, target: Path, simplify: bool) -> None:
    import onnx
    import onnxsim as simplifier
    from onnxsim import pruning

    model = onnx.load(source)
    if simplify:
        made = simplifier.simplify(model)
        model = made[0] if isinstance(made, tuple) else made
    model = pruning.apply_structured_pruning(model, sparsity=0.5)
    model = pruning.apply_attention_head_pruning(model, sparsity=0.5)
    onnx.save(model, target)


def _command(tool: str, source: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "tools.bench_onnxsim", "--child", tool, str(source), str(target)]


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for body in (attribute.g, *attribute.graphs):
                yield from _tensors(body)


def _size(tensor: Any) -> int:
    import numpy as np
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return int(np.prod(tensor.dims, dtype=np.int64)) if tensor.data_type in floats else 0


if __name__ == "__main__":
    main()
