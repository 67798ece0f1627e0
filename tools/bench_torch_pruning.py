"""Side by side with Torch-Pruning (PyPI torch-pruning 1.6.1) on the same torch modules: docs/bench-torch-pruning.md.

    python -m tools.bench_torch_pruning                         all of them, each a process of its own with a time limit
    python -m tools.bench_torch_pruning --models bert digits    some of them, printed and not written

graphprune gets a module, its example inputs and no hint. Torch-Pruning is tried without a hint and then in each of the
ways of tools/torch_pruning_hints.py, which are those of its own examples for transformers. After the cut, the sizes
that attention modules remember are set, as its examples do. The way that works and leaves the fewest parameters counts.

Both are judged by one check that belongs to neither, that of tools/zeroed.py.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import zeroed
from tools.child import run
from tools.torch_pruning_hints import HINTS, SAME, common, projections, remember, tie, width

if TYPE_CHECKING:
    from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "bench-torch-pruning.md"
SINGLE = ("mixtral", "qwen2_moe")
"""Modules that run in float32 only: torch has no grouped matrix product of doubles."""
DEPTHS = (8, 16, 32, 64)
PATIENCE = 20
"""Seconds of processor for each way with a small module, of which most take less than one."""
DEEP = 3
"""How many times longer a decoder of full width may take."""
LIMIT = 1e-5
"""Largest error that counts as equal: some models compute their norms in float32."""

Inputs = dict[str, Any]


@dataclass
class Row:
    """What one tool did to one module in one way. ``zeros`` is the error of the common check, None where not made."""

    way: str
    error: str = ""
    dense: int = 0
    kept: float = 1.0
    zeros: float | None = None
    hints: int = 0
    edits: int = 0
    export: float = 0.0
    analysis: float = 0.0

    @property
    def works(self) -> bool:
        """It is smaller and runs with outputs of the old shapes, and it was not shown to compute something else."""
        return not self.error and self.kept < 1 and (self.zeros is None or self.zeros <= LIMIT)

    @property
    def why(self) -> str:
        """What is wrong with it."""
        if not self.error and self.kept == 1:
            return "it removes nothing"
        return self.error or f"it runs, but computes something else (error {self.zeros:.0e})"


# The modules


def names() -> list[str]:
    """A residual CNN, the architectures of transformers, and a Llama-style decoder of growing depth."""
    from models.transformers_zoo import ZOO

    return ["digits", *ZOO, *(f"llama-{depth}" for depth in DEPTHS)]


def build(name: str) -> tuple[nn.Module, Inputs]:
    """A module in evaluation mode with generic weights, and example inputs by keyword."""
    import torch

    from models import digits, llama, transformers_zoo

    torch.manual_seed(0)
    torch.set_num_threads(1)
    if name == "digits":
        return transformers_zoo.generic(digits.network().eval()), {"image": torch.rand(2, 1, 8, 8).double()}
    if deep(name):
        ids = torch.randint(3, 49152, (1, 16))
        config = llama.smollm2_config(int(name.removeprefix("llama-")))
        return llama.random(config).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    module, inputs = transformers_zoo.build(name)
    return (module.float() if name in SINGLE else module), inputs


def deep(name: str) -> bool:
    """Whether this is one of the decoders that are there for the growth of the time, in float32."""
    return name.startswith("llama-")


# graphprune


def graphprune(name: str, runs: int) -> Iterator[Row]:
    """Half of every Dim; a cut that it cannot prove is an error."""
    from graphprune.analysis import analyse
    from graphprune.budget import Request
    from graphprune.formats import of
    from graphprune.loaded import Loaded

    module, inputs = build(name)
    dense, format = copy.deepcopy(module), of(module)
    row = Row("graphprune")
    row.export, model = timed(lambda: format.read(module, example_inputs=inputs), runs)
    row.analysis, analysis = timed(lambda: analyse(replace(model.graph)), runs)
    loaded = Loaded(format, model, analysis)
    plan = loaded.plan(Request(keep=0.5, multiple=1, floor=0.0, allow=("all",)))
    judge(row, dense, loaded.apply(plan, timing=False).model, inputs, compare=not deep(name))
    yield row


# Torch-Pruning


def torch_pruning(name: str, runs: int) -> Iterator[Row]:
    """Half of every group with no hint, then in each of the ways; what it raises is the row's error."""
    signal.signal(signal.SIGPROF, _late)
    late = False
    for way in ["no hints", *HINTS]:
        row = Row(way)
        if late and way in SAME:
            continue
        signal.setitimer(signal.ITIMER_PROF, PATIENCE * (DEEP if deep(name) else 1))
        try:
            _torch_pruning(row, name, runs)
        except Exception as error:  # of any kind: it edits modules
            lines = str(error).strip().splitlines()
            row.error = f"{type(error).__name__}: {lines[0] if lines else ''}"[:150]
            late |= isinstance(error, TimeoutError)
        signal.setitimer(signal.ITIMER_PROF, 0)
        yield row


def _late(*_: Any) -> None:
    raise TimeoutError("its analysis was not done in time")


def _torch_pruning(row: Row, name: str, runs: int) -> None:
    import torch_pruning as tp

    module, inputs = build(name)
    dense, attention = copy.deepcopy(module), list(projections(module))
    hints = {} if row.way == "no hints" else common(module) | HINTS[row.way](module, attention)
    row.hints = sum(len(value) if isinstance(value, dict | list) else 1 for value in hints.values())

    def pruner() -> Any:
        given = {key: copy.copy(value) for key, value in hints.items()}
        for groups in ("num_heads", "out_channel_groups", "in_channel_groups"):
            given.setdefault(groups, {})  # its defaults are shared between pruners
        anything = tp.importance.RandomImportance()  # the others do not know all layers
        return tp.pruner.BasePruner(module, inputs, anything, pruning_ratio=0.5, **given)

    row.analysis, made = timed(pruner, runs)
    before = [width(layer) for _, layer, _ in attention]
    made.step()
    if row.way != "no hints":
        row.edits = tie(dense, module)
        done: dict[int, int] = {}
        for (owner, layer, heads), size in zip(attention, before, strict=True):
            if not done.get(id(owner)):
                done[id(owner)] = remember(owner, layer, heads, made.num_heads.get(layer, heads), size)
        row.edits += sum(done.values())
    judge(row, dense, module, inputs, compare=not deep(name))


# The judge


def judge(row: Row, dense: nn.Module, module: nn.Module, inputs: Inputs, *, compare: bool) -> None:
    """Fill in what a cut module is worth: parameters, shapes of the outputs, and the common check."""
    row.dense = sum(parameter.numel() for parameter in dense.parameters())
    left = sum(parameter.numel() for parameter in module.parameters())
    there = zeroed.named(dense, module)  # a traced module has no parameter that is not used
    left += sum(parameter.numel() for name, parameter in dense.named_parameters() if name not in there)
    row.kept = left / row.dense
    wanted, found = (zeroed.outputs(each, inputs) for each in (dense, module))
    shapes = [[tuple(value.shape) for value in each] for each in (wanted, found)]
    if shapes[0] != shapes[1]:
        row.error = f"its outputs are {shapes[1]} instead of {shapes[0]}"
    elif compare:
        row.zeros = zeroed.error(dense, module, inputs)


def timed(make: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """The median of the seconds of processor that ``make`` takes, and what it made last; there is one thread."""
    taken = []
    for _ in range(runs):
        start = time.process_time()
        made = make()
        taken.append(time.process_time() - start)
    return statistics.median(taken), made


# The page

TOOLS: dict[str, Callable[[str, int], Iterator[Row]]] = {"graphprune": graphprune, "torch_pruning": torch_pruning}
HEADER = (
    "module | parameters | kept | check | export + analysis, s | Torch-Pruning, no hints | kept with hints | check | "
    "way | hints + sizes set | analysis, s"
)
GROWTH = (
    "layers | parameters | kept | export, s | analysis, s | Torch-Pruning, no hints | kept with hints | way | "
    "analysis, s"
)
Found = dict[str, tuple[Row, list[Row]]]
"""For each module the row of graphprune, and all rows of Torch-Pruning."""


def best(rows: Iterable[Row]) -> Row | None:
    """The way that works and leaves the fewest parameters; the one with fewer hints where that is equal."""
    return min(filter(lambda row: row.works, rows), key=lambda row: (row.kept, row.hints + row.edits), default=None)


def line(name: str, ours: Row, theirs: list[Row]) -> str:
    """One module in Markdown."""
    found, bare = best(theirs), theirs[0]
    given = f"{ours.kept:.3f} | {check(ours)} | {ours.export:.2f} + {ours.analysis:.3f}" if ours.works else "fails | |"
    hinted = (
        f"{found.kept:.3f} | {check(found)} | {found.way} | {found.hints} + {found.edits}"
        if found
        else "none works | | |"
    )
    seconds = f"{found.analysis:.3f}" if found else ""
    return f"| {name} | {ours.dense:,} | {given} | {verdict(bare)} | {hinted} | {seconds} |"


def check(row: Row) -> str:
    """The error of the common check."""
    return "not made" if row.zeros is None else f"{row.zeros:.0e}"


def verdict(row: Row) -> str:
    """How a try without hints ended, in few words."""
    if row.works:
        return f"{row.kept:.3f}"
    return "cuts its output" if row.error.startswith("its outputs") else "not done" if late(row) else "fails"


def late(row: Row) -> bool:
    """Whether it was stopped."""
    return "in time" in row.error


def page(found: Found) -> Iterator[str]:
    """The lines of docs/bench-torch-pruning.md."""
    import torch
    import transformers

    small = {name: rows for name, rows in found.items() if not deep(name)}
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    versions = f"torch-pruning {version('torch-pruning')}, {versions}"
    yield "# Side by side with Torch-Pruning"
    yield ""
    yield "Generated by `python -m tools.bench_torch_pruning`"
    yield f"({versions}; seconds of processor on one thread, medians of three)."
    yield ""
    yield TEXT
    yield "## Half of every dimension"
    yield ""
    yield from summary(small)
    yield ""
    yield from _table(HEADER, (line(name, *rows) for name, rows in small.items()))
    yield ""
    yield "## Growth with depth"
    yield ""
    yield from growth({name: rows for name, rows in found.items() if deep(name)})
    yield ""
    yield "## What went wrong"
    yield ""
    yield from failures(found)


TEXT = f"""Both tools get the same module with the same weights and example inputs, and are asked for half of every
dimension that they find, residual stream and size of heads included. The modules are the residual network of
`models/digits.py` and the architectures of `models/transformers_zoo.py` at its small sizes, with random weights in
float64 where torch can.

- *Kept* is the share of the parameters that is left, tied ones counted once: less is more removed at the same ratio.
- *Check* is the same for both and belongs to neither. What is left is looked up by value in the dense module, all other
  weights are zeroed there, norms count the kept positions only, and the outputs must be equal, to {LIMIT:.0e} of the
  largest. It was not made for the deep decoders. Whatever graphprune returns has passed its own proof as well.
- *Works*: the cut module is smaller and runs, its outputs have their old shapes, and the check does not fail.
- Torch-Pruning is tried with no hint, and in {len(HINTS)} ways, those of its own examples for transformers and what a
  user would fall back to. The way that works and keeps the fewest parameters is shown. *Hints* are the values given:
  layers to ignore, heads of each projection, pruners for layers it does not know, flags. *Sizes set* are attributes
  of attention modules that have to be set by hand after the cut, and weights that have to be tied again.
  All of them were written from the names that layers have in transformers. More work by hand on one model can find
  more: what fails here is not shown to be impossible.
- The seconds of Torch-Pruning are those that its pruner takes to be made: one run of the module, the graph, all groups.
  Those of graphprune are `torch.export`, and then the analysis. The cut, the proof and the check are in neither.
- *Not done* means that its analysis was stopped after {PATIENCE} seconds ({PATIENCE * DEEP} for the deep decoders).
- Which positions go is not compared, so neither is how good the smaller model is. Torch-Pruning has more there: scores
  from activations and second derivatives, sparse training, ranking by isomorphic groups.
"""


def summary(found: Found) -> Iterator[str]:
    """The counts and medians."""
    ours = {name: row for name, (row, _) in found.items() if row.works}
    hinted = {name: row for name, (_, rows) in found.items() if (row := best(rows))}
    bare = [name for name, (_, rows) in found.items() if rows[0].works]
    both = sorted(ours.keys() & hinted.keys())
    own, hints = ours.values(), hinted.values()
    shared = [f"{_median([rows[name] for name in both], 'kept')}" for rows in (ours, hinted)]
    by_hand = statistics.median(row.hints + row.edits for row in hints)
    yield from _table(
        " | graphprune | Torch-Pruning, no hints | Torch-Pruning, with hints",
        [
            f"| works, of {len(found)} | {len(ours)} | {len(bare)} | {len(hinted)} |",
            f"| median kept, where it works | {_median(own, 'kept')} | | {_median(hints, 'kept')} |",
            f"| median kept, where both work ({len(both)}) | {shared[0]} | | {shared[1]} |",
            f"| median hints and sizes set | 0 | | {by_hand:.0f} |",
            f"| median seconds of analysis | {_median(own, 'analysis')} | | {_median(hints, 'analysis')} |",
            f"| median seconds of export | {_median(own, 'export')} | | |",
        ],
    )
    less = sum(ours[name].kept < hinted[name].kept - 1e-3 for name in both)
    more = sum(ours[name].kept > hinted[name].kept + 1e-3 for name in both)
    yield ""
    same = len(both) - less - more
    yield f"Where both work, graphprune keeps fewer parameters on {less}, as many on {same}, more on {more}."


def _median(rows: Iterable[Row], field: str) -> str:
    return f"{statistics.median(getattr(row, field) for row in rows):.3f}"


def growth(found: Found) -> Iterator[str]:
    """The decoder at each depth, and how the last compares with the first."""
    yield "A Llama-style decoder with the sizes of SmolLM2-135M: width 576, 9 heads on 3, vocabulary 49,152, float32."
    yield ""
    lines, taken = [], []
    for name, (ours, theirs) in found.items():
        with_hints = best(theirs)
        layers = int(name.removeprefix("llama-"))
        taken.append((layers, ours.export, ours.analysis, with_hints.analysis if with_hints else 0.0))
        given = (
            f"{with_hints.kept:.3f} | {with_hints.way} | {with_hints.analysis:.2f}" if with_hints else "none works | |"
        )
        own = f"{ours.kept:.3f} | {ours.export:.2f} | {ours.analysis:.3f}" if ours.works else "fails | |"
        lines.append(f"| {layers} | {ours.dense / 1e6:.1f} M | {own} | {verdict(theirs[0])} | {given} |")
    if len(taken) > 1:
        first, last = taken[0], taken[-1]
        times = [f"{b / a:.1f} times" if a and b else "" for a, b in zip(first, last, strict=True)]
        lines.append(f"| {times[0]} | | | {times[1]} | {times[2]} | | | | {times[3]} |")
    yield from _table(GROWTH, lines)


def failures(found: Found) -> Iterator[str]:
    """Every error of graphprune, and those of Torch-Pruning by what it raised."""
    for name, (ours, theirs) in found.items():
        if not ours.works:
            yield f"- {name}, graphprune: {ours.why}"
        reasons: dict[str, list[str]] = {}
        for row in theirs:
            if not row.works:
                reasons.setdefault(row.why, []).append(row.way)
        yield from (f"- {name}, Torch-Pruning ({', '.join(ways)}): {why}" for why, ways in reasons.items())


def _table(header: str, lines: Iterable[str]) -> Iterator[str]:
    yield f"| {header} |"
    yield "|---" * (header.count("|") + 1) + "|"
    yield from lines


def attempt(tool: str, name: str, runs: int, limit: float) -> list[Row]:
    """All rows of one tool on one module, measured in a process of its own."""
    done = run([sys.executable, "-m", "tools.bench_torch_pruning", "--child", tool, name, "--runs", str(runs)], limit)
    rows = [Row(**json.loads(line)) for line in done.text.splitlines() if line.startswith("{")]
    return rows if not done.error else [*rows, Row("all others" if rows else tool, error=done.error)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare graphprune with Torch-Pruning.")
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these, printed")
    parser.add_argument("--runs", type=int, default=3, help="times are medians of so many")
    parser.add_argument("--limit", type=float, default=1500, help="seconds for each tool on each module")
    parser.add_argument("--child", nargs=2, metavar=("TOOL", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("ignore")
        tool, name = options.child
        for row in TOOLS[tool](name, options.runs):
            print(json.dumps(asdict(row)), flush=True)
        return
    found: Found = {}
    for name in options.models or names():
        (ours, *_), theirs = (attempt(tool, name, options.runs, options.limit) for tool in TOOLS)
        found[name] = ours, theirs
        print(
            line(name, ours, theirs), *(f"  {row.way}: {row.why}" for row in (ours, *theirs) if not row.works), sep="\n"
        )
        sys.stdout.flush()
    lines = list(page(found))
    if options.models:
        print("\n".join(lines))
    else:
        PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
