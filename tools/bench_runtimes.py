"""Graphs of models/zoo.py and half of each, in other runtimes than ONNX Runtime: docs/runtimes.md.

    python -m tools.bench_runtimes                        all of them, then the page
    python -m tools.bench_runtimes --only 'bert/*'        some of them, printed; no page

Half of every Dim is cut and the file written. ONNX Runtime and each other runtime then run both files on the same
random inputs. What a runtime makes of the dense file says what it can do; a cut file on which it does worse would be a
fault of the cut. Each graph, and each runtime on it, is a process of its own with a time limit: a crash is a cell of
the table. What was found is kept in a file of JSON lines (``--state``), and no graph in it is measured again unless
``--again``. Needs the runtimes: pip install 'graphprune[runtimes]'.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tools.child import run

PAGE = Path(__file__).parents[1] / "docs" / "runtimes.md"
LIMIT, MOST_OFF = 1e-3, 1e-2
"""Outputs are equal up to the first share of the largest: other kernels sum in another order. Up to the second they are
but for rounding, where it shows on the dense file or in ONNX Runtime itself.
"""

EQUAL, ROUNDED, SILENT = "equal", "equal but for rounding", "outputs hardly move"
DIFFERS, FAILS = "differs", "does not run cut"
UNLIKE, UNABLE = "differs dense", "does not run dense"
TOLD = 70
"""Letters of a reason."""

LITTLE = 1e-5
"""Rounding that shows no more than this needs no other inputs."""

MOST = 200
"""Megabytes of a file: larger ones are left out."""

DENSE, HALF = "dense.onnx", "half.onnx"
Arrays = dict[str, Any]
Found = dict[str, float | str]


def openvino(path: Path, feeds: Arrays) -> list[Any]:
    """All outputs in OpenVINO on the CPU, in float32 where the file says so."""
    module = importlib.import_module("openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    exact |= {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    loaded = module.Core().compile_model(str(path), "CPU", exact)
    known = {name for port in loaded.inputs for name in port.get_names()}
    found = loaded({name: value for name, value in feeds.items() if name in known})
    return [found[port] for port in loaded.outputs]


def tract(path: Path, feeds: Arrays) -> list[Any]:
    """All outputs in tract, which takes the sizes of the inputs, and none that the file gives names to."""
    module, onnx = (importlib.import_module(name) for name in ("tract", "onnx"))
    proto = onnx.load(path)
    inferred = list(proto.graph.value_info)
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(i for i in inferred if all(d.HasField("dim_value") for d in shape(i).dim))
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        onnx.save(proto, file.name)
        model = module.Onnx().load(file.name)
    names = [model.input_name(i) for i in range(model.input_count())]
    for i, name in enumerate(names):
        value = feeds[name]
        kind = "bool" if value.dtype.kind == "b" else f"{value.dtype.kind}{8 * value.dtype.itemsize}"
        model.set_input_fact(i, ",".join([*map(str, value.shape), kind]))
    for i in range(model.output_count()):
        model.set_output_fact(i, None)
    return [value.to_numpy() for value in model.into_model().into_runnable().run([feeds[name] for name in names])]


def shape(info: Any) -> Any:
    """The shape of a value as its file states it."""
    return info.type.tensor_type.shape


RUNTIMES: dict[str, Callable[[Path, Arrays], list[Any]]] = {"openvino": openvino, "tract": tract}
TITLES = {"openvino": "OpenVINO", "tract": "tract"}


@dataclass
class Row:
    """What became of a graph; for each runtime the difference of its outputs, or why there are none.

    ``rounding`` is how far the outputs of the halved file move in ONNX Runtime without its optimiser, ``moved`` how far
    they move on other inputs.
    """

    name: str
    error: str = ""
    nodes: int = 0
    before: int = 0
    after: int = 0
    rounding: float = 0.0
    moved: float = 0.0
    dense: Found = field(default_factory=dict)
    half: Found = field(default_factory=dict)
    seconds: float = 0.0


def prepare(source: Path, folder: Path) -> dict[str, float]:
    """Both files of a graph, inputs, and what ONNX Runtime makes of these, in ``folder``; figures of the graph."""
    import graphprune
    from graphprune.formats import onnx as format
    from graphprune.verify import difference

    everything: dict[str, Any] = {"multiple": 1, "floor": 0.0, "allow": ("all",)}
    made = graphprune.prune(str(source), keep=0.5, **everything, verify="none", timing=False)
    made.save(folder / HALF)
    model, half = format.read(source), format.read(folder / HALF)
    format.save(model, folder / DENSE)
    dense, cut = format.run(model), format.run(half)
    feeds, other = inputs(model, dense)
    found = cut(feeds)
    write(folder / "feeds.npz", feeds)
    write(folder / f"{DENSE}.npz", dense(feeds))
    write(folder / f"{HALF}.npz", found)
    return {
        "nodes": len(model.graph.nodes),
        "before": made.report.dense.params,
        "after": made.report.pruned.params,
        "rounding": difference(found, format.run(half, optimise=False)(feeds)),
        "moved": difference(found, cut(other)),
    }


def inputs(model: Any, dense: Any) -> tuple[Arrays, Arrays]:
    """Random inputs for a model, and others, of the style on which its rounding shows least."""
    from graphprune.formats import onnx as format
    from graphprune.verify import difference

    plain, least = format.run(model, optimise=False), float("inf")
    for style in range(4):
        feeds, other = (format.trials(model, dense, seed, style)[0][1] for seed in (0, 1))
        rounding = difference(dense(feeds), plain(feeds))
        if rounding < least:
            least, chosen = rounding, (feeds, other)
        if least < LITTLE:
            break
    return chosen


def attempt(runtime: str, folder: Path) -> None:
    """Outputs of a runtime for the dense file, then for the halved one, into ``folder``."""
    feeds = read_arrays(folder / "feeds.npz")
    for file in (DENSE, HALF):
        names = read_arrays(folder / f"{file}.npz")
        found = RUNTIMES[runtime](folder / file, feeds)
        write(folder / f"{file}-{runtime}.npz", dict(zip(names, found, strict=True)))


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Arrays and their names, in order."""
    np.savez(path, np.array(list(arrays)), *arrays.values())


def read_arrays(path: Path) -> Arrays:
    """What `write` wrote."""
    names, *values = np.load(path).values()
    return dict(zip(map(str, names), values, strict=True))


def read(state: Path) -> dict[str, Row]:
    """The rows so far; the last of a row's lines counts."""
    lines = state.read_text().splitlines() if state.exists() else []
    return {row["name"]: Row(**row) for row in map(json.loads, lines)}


def measure(name: str, runtimes: Sequence[str], limit: float) -> Row:
    """The row of one graph, each step in a process of its own."""
    from models import zoo

    start = time.perf_counter()
    try:
        source = zoo.graph(name)
    except Exception as error:  # exporters and tools raise whatever they like
        return Row(name, cause(error))
    if source.stat().st_size > MOST * 1_000_000:
        return Row(name, f"of more than {MOST} MB")
    with tempfile.TemporaryDirectory() as folder:
        made = run(command("prepare", source, folder), 4 * limit)
        if made.error:
            return Row(name, made.error)
        row = Row(name, **json.loads(made.text.splitlines()[-1]))
        for runtime in runtimes:
            ended = run(command(runtime, source, folder), limit).error
            for file, found in ((DENSE, row.dense), (HALF, row.half)):
                found[runtime] = compared(Path(folder), file, runtime, ended)
    row.seconds = time.perf_counter() - start
    return row


def compared(folder: Path, file: str, runtime: str, ended: str) -> float | str:
    """How far the outputs of a runtime are from those of ONNX Runtime; where there are none, why."""
    from graphprune.verify import difference

    found = folder / f"{file}-{runtime}.npz"
    return difference(read_arrays(folder / f"{file}.npz"), read_arrays(found)) if found.exists() else ended


def command(what: str, source: Path, folder: str) -> list[str]:
    """This module on one step of one graph."""
    return [sys.executable, "-m", "tools.bench_runtimes", "--child", what, str(source), folder]


def child(what: str, source: Path, folder: Path) -> None:
    """One step."""
    warnings.simplefilter("ignore")
    try:
        if what == "prepare":
            print(json.dumps(prepare(source, folder)))
        else:
            attempt(what, folder)
    except Exception as error:  # runtimes raise classes of their own
        sys.exit(cause(error))


def cause(error: Exception) -> str:
    """What a runtime says is wrong, in one line."""
    return " / ".join(line.strip() for line in str(error).partition("Stack backtrace")[0].splitlines() if line.strip())


def verdict(row: Row, runtime: str) -> str:
    """What a runtime makes of the cut file, beside what it makes of the dense one."""
    dense, half = (_number(found.get(runtime)) for found in (row.dense, row.half))
    if dense is None:
        return UNABLE
    if half is None:
        return FAILS
    if half <= LIMIT:
        return EQUAL if half < row.moved / 10 else SILENT
    if half <= min(max(dense, 10 * row.rounding), MOST_OFF):
        return ROUNDED
    return UNLIKE if dense > LIMIT else DIFFERS


def _number(found: float | str | None) -> float | None:
    """A difference; None where there is none, as the runtime fails or its outputs have other shapes."""
    return found if isinstance(found, float) and found < float("inf") else None


def reason(found: float | str | None) -> str:
    """Why there is no difference, in a few words: the last that a runtime says, without places in files."""
    if not isinstance(found, str):
        return "outputs of other shapes"
    words = found.partition(" / Stack backtrace")[0].removesuffix(" / ").split(" / ")[-1]
    words = re.sub(r"^(\d+:|--) ", "", words).replace("|", " ")
    return words if len(words) <= TOLD else words[: TOLD - 3] + "..."


def cells(row: Row, runtime: str) -> str:
    """Two cells: the dense file, and the cut one."""
    said, dense, half = verdict(row, runtime), row.dense.get(runtime), row.half.get(runtime)
    if said == UNABLE:
        return f"{UNABLE}: {reason(dense)} |"
    if said == FAILS:
        return f"{dense:.0e} | **{FAILS}: {reason(half)}**"
    return f"{dense:.0e} | " + (f"{half:.0e}" if said in (EQUAL, ROUNDED, SILENT) else f"**{half:.0e}**")


def page(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of docs/runtimes.md."""
    from models.zoo import ZOO

    made = [row for row in rows if not row.error]
    both = sum(all(verdict(row, runtime) == EQUAL for runtime in TITLES) for row in made)
    yield "# Other runtimes"
    yield ""
    versions = (f"{title} {version(name)}" for name, title in (("onnxruntime", "ONNX Runtime"), *TITLES.items()))
    yield f"Generated by `python -m tools.bench_runtimes` ({', '.join(versions)})."
    yield ""
    yield from OPENING.strip().splitlines()
    yield ""
    yield f"{len(made)} of the {len(ZOO)} files are measured; {both} are equal in all runtimes."
    yield ""
    yield from totals(made)
    yield ""
    if any(verdict(row, "openvino") == DIFFERS for row in made):
        yield from SCALE.strip().splitlines()
        yield ""
    yield "## All graphs"
    yield ""
    yield "| graph | nodes | parameters | left | " + " | ".join(f"{t}, dense | cut" for t in TITLES.values()) + " |"
    yield "|---|" + "---:|" * (3 + 2 * len(TITLES))
    for row in made:
        found = " | ".join(cells(row, runtime) for runtime in TITLES)
        yield f"| {row.name} | {row.nodes} | {row.before:,} | {row.after / max(row.before, 1):.1%} | {found} |"
    if left := [row for row in rows if row.error]:
        yield ""
        yield "Left out:"
        yield ""
        yield from (f"- {row.name}: {reason(row.error)}" for row in left)


OPENING = """
The files of `models/zoo.py` ([what they are](zoo.md)) and what is left of each with half of every Dim cut, of every
kind and to the position, by the score l2. Each runtime reads both files and runs them on the same random inputs. A
figure is the largest difference to the outputs of ONNX Runtime, relative to the largest output.

- *equal*: no further off than 1e-3, and less than a tenth of what other inputs would change (else *outputs hardly
  move*, which says little);
- *equal but for rounding*: no further off than 1e-2, and than on the dense file, or ten times what ONNX Runtime's own
  optimiser changes: a runtime computes in float16, or lands on the next integer;
- *differs dense*: it is off on the dense file already, by more than 1e-3. What is not equal is in bold.

A runtime that does not run the dense file says nothing about the cut. OpenVINO is asked for float32, and not to
quantise activations by itself. tract is told the sizes of the inputs; shapes inside the file that name a size are left
out of what it reads.
"""


SCALE = """
OpenVINO does not read the attribute `scale` of com.microsoft's Attention: given half of its scale, the *dense*
bert/fused is off by 0.2. Where the size of heads is cut, this attribute is what keeps the scale, so OpenVINO computes
another function. Cut by default (heads, and not their size), bert/fused, fused/bert and fused/gpt are off by 5e-07.
"""


def totals(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each runtime: how many graphs it made what of."""
    whats = (EQUAL, ROUNDED, SILENT, DIFFERS, FAILS, UNLIKE, UNABLE)
    yield f"| runtime | graphs | {' | '.join(whats)} |"
    yield "|---|" + "---:|" * (1 + len(whats))
    for runtime, title in TITLES.items():
        count = Counter(verdict(row, runtime) for row in rows)
        yield f"| {title} | {len(rows)} | {' | '.join(str(count[what]) for what in whats)} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run pruned files in other runtimes.")
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="only graphs with such names")
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--state", type=Path, metavar="FILE", help="where rows are kept")
    parser.add_argument("--again", action="store_true", help="also those that are in the state")
    parser.add_argument("--limit", type=float, default=120, help="seconds for each graph in each runtime")
    parser.add_argument("--page", action="store_true", help="write the page from what is in the state, and end")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "FILE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, *paths = options.child
        child(what, *map(Path, paths))
        return
    from rich.console import Console
    from rich.progress import Progress

    from models.packages import cache
    from models.zoo import ZOO

    state = options.state or cache() / "runtimes.jsonl"
    rows, names = read(state), [n for n in ZOO if any(fnmatchcase(n, p) for p in options.only)]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(names))
        for name in [] if options.page else names:
            progress.update(task, description=name)
            if name not in rows or options.again:
                rows[name] = measure(name, options.runtimes, options.limit)
                with state.open("a") as stream:
                    stream.write(json.dumps(asdict(rows[name])) + "\n")
                row = rows[name]
                said = row.error or ", ".join(f"{title}: {verdict(row, key)}" for key, title in TITLES.items())
                print(f"{name}: {said}", flush=True)
            progress.advance(task)
    found = [rows[name] for name in ZOO if name in rows]
    if options.page or options.only == ["*"]:
        PAGE.write_text("\n".join(page(found)) + "\n")
    print("\n".join(totals([row for row in found if not row.error])))


if __name__ == "__main__":
    main()
