"""Every graph of models/zoo.py: what of it may be cut, the proofs, and half of every Dim gone: docs/zoo.md.

    python -m tools.zoo                        all of them, then the page
    python -m tools.zoo --only 'bert/*'        some of them, printed; no page

Each graph is made and measured in a process of its own, with limits of time and memory. What was found is kept in a
file of JSON lines (``--state``), and no graph in it is measured again unless ``--again``; exported files are in the
cache.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tools.child import record
from tools.onnx_zoo import cause

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
OPERATORS = "onnx/operators"
"""The name of the row in which all tests of single ops are added up."""

PROVED, FROZEN, WRONG, INVALID, FAILED, UNMADE = "proved", "frozen", "wrong", "invalid", "failed", "not made"
BAD = (WRONG, INVALID, FAILED)
NOTED = 0.02
"""A reason that keeps less of a graph whole is not told in its row."""
GIGABYTE = 1 << 30


@dataclass
class Row:
    """What became of a graph, or of ``graphs`` together; ``error`` says what went wrong where something did.

    ``params`` are counted at full size, ``prunable`` those that some choice of positions removes, ``left`` those left
    with half of every Dim; ``reasons`` are pairs of why an axis stays whole, and its share of the parameters.
    """

    name: str
    error: str = ""
    outcome: str = ""
    graphs: int = 1
    opset: int = 0
    nodes: int = 0
    params: int = 0
    prunable: int = 0
    left: int = 0
    dims: int = 0
    permuted: float = 0.0
    zeroed: float = 0.0
    analysis: float = 0.0
    seconds: float = 0.0
    reasons: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outcome = self.outcome or (FAILED if self.error else "")

    @property
    def share(self) -> float:
        """The share of parameters that is prunable."""
        return self.prunable / self.params if self.params else 0.0


def measure(name: str) -> Row:
    """The row of one graph of the zoo, or of all operators."""
    from models import operators, zoo

    start = time.perf_counter()
    if name == OPERATORS:
        row = together(operators.operators())
    else:
        try:
            path = zoo.graph(name)
        except Exception as error:  # exporters and tools raise whatever they like
            return Row(name, cause(error), UNMADE)
        row = prove(name, path)
    row.seconds = time.perf_counter() - start
    return row


def prove(name: str, source: Any) -> Row:
    """A file or model read, analysed, cut to half of every Dim, proved, written, and run from what was written."""
    from graphprune.analysis import analyse
    from graphprune.cost import CostModel
    from graphprune.dims import counts
    from graphprune.errors import GraphpruneError
    from graphprune.formats import of
    from graphprune.loaded import Loaded
    from graphprune.verify import Proof
    from tools.bench_analysis import measure as clocked
    from tools.prove_real import HALF

    row = Row(name)
    format = of(source)
    try:
        model = format.read(source)
        graph = model.graph
        analysis = analyse(graph)
        row.analysis = clocked(graph, 3)[0] / 1000
        row.opset, row.nodes, row.dims = graph.opset, len(graph.nodes), len(analysis.prunable)
        row.params, row.prunable, row.reasons = shares(analysis)
        chosen = Loaded(format, model, analysis).plan(HALF).chosen(analysis)
        cost = CostModel(analysis)
        row.left = cost.params(counts(chosen))
        proof = Proof(format, model, analysis)
        with tempfile.TemporaryDirectory() as folder:
            path = format.save(format.apply(model, analysis, chosen), Path(folder) / "half.onnx")
            runs = proof.runs(format.read(path), chosen)
        checks = [proof.permutation(), proof.zero_equals_cut(chosen)] if chosen else []
        row.permuted, row.zeroed = ([check.error or 0.0 for check in checks] + [0.0, 0.0])[:2]
    except GraphpruneError as error:
        row.error, row.outcome = error.what, FAILED
        return row
    wrong = [str(check) for check in checks if not check.passed]
    row.error = "; ".join(wrong + [str(runs)] * (not runs.passed))
    row.outcome = INVALID if not runs.passed else WRONG if wrong else PROVED if chosen else FROZEN
    return row


def shares(analysis: Any) -> tuple[int, int, list[tuple[str, float]]]:
    """How many parameters there are, how many of them are prunable, and what each reason keeps whole, in parameters.

    A parameter is prunable where the positions on one of its axes are. An axis that stays whole stands for its share of
    a weight: half of a matrix.
    """
    from graphprune.cost import COUNTS
    from graphprune.dims import atoms, size_after

    gone = {atom.dim: 0 for atom in analysis.prunable if atom.size > atom.least}
    kinds = {node.label: node.kind for node in analysis.graph.nodes}
    params, kept = 0, dict[str, int]()
    told: list[tuple[str, float]] = []
    for name, _, _, stored in analysis.uses:
        weight, own = analysis.meant(name)
        layout, weight = own or stored, weight or analysis.graph.weights[name]
        if weight.dtype in COUNTS or name in kept or name in analysis.facts.scales:
            continue
        params += weight.size
        axes = [dim for dim in layout if dim.size != 1]
        axes = [dim for dim in axes if any(atom in analysis.by_dim for atom in atoms(dim))] or axes
        kept[name] = weight.size
        for dim in layout:
            kept[name] = kept[name] // max(dim.extent, 1) * size_after(dim, gone)
        for dim in axes:
            reasons = {why(atom.reason, kinds) for atom in atoms(dim) if atom not in gone and atom.size != 1}
            held = weight.size / len(axes) * size_after(dim, gone) / max(dim.extent, 1)
            told += [(reason, held / len(reasons)) for reason in reasons]
        told += [] if axes else [("it is a single number", weight.size)]
    return params, params - sum(kept.values()), added(told)


def added(pairs: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """The sum for each name, the largest first."""
    total: dict[str, float] = defaultdict(float)
    for name, value in pairs:
        total[name] += value
    return sorted(total.items(), key=lambda pair: -pair[1])


def why(reason: Any, kinds: Mapping[str, str]) -> str:
    """Why a Dim stays whole, in words that are the same for all graphs, and the kind of node that says so."""
    if reason is None:
        return "it has no position to spare"
    said = re.sub(r"\d+", "n", re.sub(r",? '[^']*'", "", reason.why))
    kind = kinds.get(reason.node, "")
    return f"{said} ({kind})" if kind and kind not in said else said


def together(graphs: Iterator[tuple[str, Any]]) -> Row:
    """Many graphs as one row."""
    total = Row(OPERATORS, graphs=0)
    outcomes: Counter[str] = Counter()
    errors = []
    for name, made in graphs:
        row = prove(name, made)
        outcomes[row.outcome] += 1
        errors += [f"{name}: {row.error}"] if row.error else []
        total.reasons = added((*total.reasons, *row.reasons))
        for what in ("graphs", "nodes", "params", "prunable", "left", "dims", "analysis"):
            setattr(total, what, getattr(total, what) + getattr(row, what))
        total.opset = max(total.opset, row.opset)
        if row.outcome == PROVED:
            total.permuted, total.zeroed = max(total.permuted, row.permuted), max(total.zeroed, row.zeroed)
    total.error = "; ".join(errors)
    total.outcome = next((bad for bad in BAD if outcomes[bad]), PROVED)
    return total


def read(state: Path) -> dict[str, Row]:
    """The rows so far; the last of a row's lines counts."""
    lines = state.read_text().splitlines() if state.exists() else []
    return {row["name"]: Row(**row) for row in map(json.loads, lines)}


def names(patterns: Sequence[str] = ()) -> list[str]:
    """The graphs that one of the patterns fits; without patterns, all."""
    from models.zoo import ZOO

    return [n for n in (*ZOO, OPERATORS) if not patterns or any(fnmatchcase(n, pattern) for pattern in patterns)]


HEADER = (
    "graph | opset | nodes | analysis, ms | parameters | prunable | left at half of every Dim | permutation error | "
    "zero == cut error | what keeps most parameters whole"
)


def line(row: Row) -> str:
    """One row in Markdown."""
    told = [(text, count / row.params) for text, count in row.reasons[: 2 if row.share < 0.5 else 1] if row.params]
    reasons = "; ".join(f"{text}: {part:.0%}" for text, part in told if part > NOTED)
    errors = f"{row.permuted:.0e} | {row.zeroed:.0e}" if row.outcome == PROVED else f"{row.outcome} |"
    left = row.left / row.params if row.params else 1.0
    return (
        f"| {row.name} | {row.opset} | {row.nodes} | {1000 * row.analysis:.0f} | {row.params:,} | {row.share:.1%} | "
        f"{left:.1%} | {errors} | {reasons} |"
    )


def page(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of docs/zoo.md."""
    import onnx
    import onnxruntime
    import torch
    import transformers

    found = [row for row in rows if row.outcome in (PROVED, FROZEN)]
    yield "# Graphs as tools write them"
    yield ""
    yield "Generated by `python -m tools.zoo`"
    yield f"(torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, onnx {onnx.__version__},"
    yield f"ONNX Runtime {onnxruntime.__version__})."
    yield ""
    yield from OPENING.strip().splitlines()
    yield ""
    yield from (f"- {text}" for text in totals(rows))
    yield ""
    yield "## What keeps most parameters whole"
    yield ""
    yield from SHARED.strip().splitlines()
    yield ""
    yield "| reason | graphs' worth of parameters | graphs |"
    yield "|---|---:|---:|"
    yield from (f"| {text} | {worth:.2f} | {count} |" for text, worth, count in reasons(found))
    yield ""
    if bad := [row for row in rows if row.outcome in BAD]:
        yield "## Wrong, invalid or failed"
        yield ""
        yield from (f"- {row.name}, {row.outcome}: {row.error}" for row in bad)
        yield ""
    yield "## All graphs"
    yield ""
    yield f"| {HEADER} |"
    yield "|---|" + "---:|" * (HEADER.count("|") - 1) + "---|"
    yield from (line(row) for row in rows if row.outcome != UNMADE)
    if unmade := [row for row in rows if row.outcome == UNMADE]:
        yield ""
        yield "Not made, because the tool that writes the file fails:"
        yield ""
        yield from (f"- {row.name}: {row.error}" for row in unmade)


OPENING = """
The files of `models/zoo.py`: architectures of transformers (two layers, random weights) through both exporters of
torch, with fixed and dynamic shapes, at opsets from 13 on, in float32 and float16; what ONNX Runtime's optimisers make
of them; what its quantisers make of them; trained models out of packages; the graphs that come with onnx. Half of
every Dim is cut, of every kind and to the position, by the score l2. *Prunable* is the share of parameters that some
choice of positions would remove. The errors of the permutation and of zero == cut are relative to the largest output.
The cut file is written, read again, checked, and run.

`onnx/operators` are onnx's own tests of single ops in one row. Each op stands between products with random weights
along every axis, and takes all inputs but the first as weights.
"""


SHARED = """
Shares of the parameters of each graph, added up over all graphs, so that each graph counts alike. An axis that stays
whole stands for its share of a weight: half of a matrix, even where positions of the other axis are prunable.
"""


def totals(rows: Sequence[Row]) -> Iterator[str]:
    """What to know of all rows together."""
    made = [row for row in rows if row.outcome != UNMADE]
    found = Counter(row.outcome for row in made)
    single = [row for row in made if row.graphs == 1 and row.outcome in (PROVED, FROZEN)]
    operators = sum(row.graphs for row in made if row.graphs > 1)
    yield f"{len(made)} graphs" + (f", one of them for {operators} tests of single ops" if operators else "")
    yield ", ".join(f"{found[what]} {what}" for what in (PROVED, FROZEN, *BAD))
    half = sum(row.share > 0.5 for row in single)
    yield f"more than half of the parameters are prunable in {half} of {len(single)}; the others list why not"
    nodes, seconds = sum(row.nodes for row in single), sum(row.analysis for row in single)
    yield f"{1e6 * seconds / max(nodes, 1):.0f} ms of analysis for each thousand nodes, of {nodes:,}"


def reasons(rows: Sequence[Row], most: int = 20) -> list[tuple[str, float, int]]:
    """The reasons that keep most parameters whole: each with the sum of its shares, and how many graphs have it."""
    worth = added((text, kept / max(row.params, 1)) for row in rows for text, kept in row.reasons)
    count = Counter(text for row in rows for text, _ in row.reasons)
    return [(text, share, count[text]) for text, share in worth[:most]]


def main() -> None:
    """Command line."""
    from models.packages import cache

    parser = argparse.ArgumentParser(description="Prove graphprune on ONNX graphs of all kinds.")
    parser.add_argument("--only", nargs="*", default=[], metavar="PATTERN", help="only graphs with such names")
    parser.add_argument("--state", type=Path, default=cache() / "zoo.jsonl", help="where rows are kept")
    parser.add_argument("--again", action="store_true", help="also those that are in the state")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each")
    parser.add_argument("--memory", type=float, default=16, help="gigabytes of addresses for each")
    parser.add_argument("--page", action="store_true", help="write the page from what is in the state, and end")
    parser.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("ignore")
        print(json.dumps(asdict(measure(options.child))))
        return
    done = read(options.state)
    for name in [] if options.page else names(options.only):
        if name not in done or options.again:
            row = Row(**record("tools.zoo", name, options.limit, int(options.memory * GIGABYTE)))
            with options.state.open("a") as stream:
                stream.write(json.dumps(asdict(row)) + "\n")
            done[name] = row
            print(f"{name}: {row.outcome}: {row.error}" if row.error else line(row), flush=True)
    rows = [done[name] for name in names() if name in done]
    if options.page or not options.only:
        PAGE.write_text("\n".join(page(rows)) + "\n")
    print("\n".join(totals(rows)))


if __name__ == "__main__":
    main()
