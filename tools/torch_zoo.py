"""Every architecture of models/transformers_zoo.py through the torch format: docs/zoo-torch.md.

    python -m tools.torch_zoo                 all of them, each a process of its own with a time limit
    python -m tools.torch_zoo --models gpt2   some of them, printed and not written

Each is exported and analysed; every unfrozen Dim is permuted in every weight at once, in float64, and the outputs must
stay; half of each Dim is cut at random and compared with zeros in its place; the cut model runs. To show that the first
check would see a wrong coupling, each Dim is also permuted everywhere but in one of its weights, and the outputs must
move. Casts to float32 inside a model are widened, so that the errors are those of float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.child import record

PAGE = Path(__file__).parents[1] / "docs" / "zoo-torch.md"
LIMIT = 1e-9
"""Largest error that counts as equal: rounding in float64 stays below 1e-12 on every model here."""

SEEN = 1e-6
"""Least move of the outputs at which a broken coupling counts as seen."""


PLACED = {"default": (), "hidden": ("hidden",), "all": ("all",)}
"""What is cut in place: the default kinds, these and the residual stream, all kinds."""

PLACED_LIMIT = 1e-5
CONFIG, CUT, NOTHING = "with config", "cut", "nothing to cut"


@dataclass
class Row:
    """What became of one architecture; ``error`` is the reason where something did not work."""

    name: str
    error: str = ""
    nodes: int = 0
    dims: int = 0
    params: int = 0
    kept: float = 1.0
    permuted: float = 0.0
    zeroed: float = 0.0
    broken: float = 0.0
    export: float = 0.0
    analysis: float = 0.0
    frozen: list[str] = field(default_factory=list)
    placed: dict[str, str] = field(default_factory=dict)

    @property
    def proved(self) -> bool:
        """Whether all checks held."""
        return not self.error


def measure(name: str) -> Row:
    """One architecture: export, analyse, prove, cut half of every Dim, run."""
    import numpy as np

    from graphprune.analysis import analyse
    from graphprune.cost import CostModel
    from graphprune.dims import counts
    from graphprune.errors import ReadError
    from graphprune.formats import of
    from graphprune.verify import Proof
    from models.transformers_zoo import build

    row = Row(name)
    module, inputs = build(name)
    format = of(module)
    start = time.perf_counter()
    try:
        model = format.read(module, example_inputs=inputs)
    except ReadError as error:
        row.error = error.what
        return row
    row.export = time.perf_counter() - start
    widen(model.traced)
    start = time.perf_counter()
    analysis = analyse(model.graph)
    row.analysis = time.perf_counter() - start
    row.nodes, row.dims = len(model.graph.nodes), len(analysis.prunable)
    row.frozen = reasons(analysis)
    proof = Proof(format, model, analysis)
    random = np.random.default_rng(0)
    half = {a.dim: np.sort(random.permutation(a.size)[: max(a.least, a.size // 2)]) for a in analysis.prunable}
    permutation, zero = proof.permutation(), proof.zero_equals_cut(half)
    runs = proof.runs(format.apply(model, analysis, half), half)
    row.permuted, row.zeroed = permutation.error or 0.0, zero.error or 0.0
    row.broken = broken(model, analysis, proof)
    cost = CostModel(analysis)
    row.params = cost.params({})
    row.kept = cost.params(counts(half)) / row.params
    failed = [str(check) for check in (permutation, zero, runs) if not check.passed]
    failed += ["more than rounding"] if max(row.permuted, row.zeroed) > LIMIT else []
    failed += ["a Dim is idle: breaking its coupling does not show"] if row.broken < SEEN else []
    row.error = "; ".join(failed)
    return row


def in_place(name: str, allow: tuple[str, ...]) -> str:
    """What becomes of the module itself, in float32, with half of every Dim of some kinds cut in place.

    CONFIG where its config was updated, so that from_pretrained loads what save_pretrained wrote and it computes the
    same; CUT where it was only cut; else why it was refused.
    """
    import graphprune
    from graphprune.errors import VerifyError
    from models.transformers_zoo import build

    module, inputs = build(name)
    module.float()
    inputs = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
    result = graphprune.prune(module, example_inputs=inputs, keep=0.5, allow=allow, verify="none", timing=False)
    if not result.plan.cuts:
        return NOTHING
    try:
        result.in_place()
    except VerifyError as error:
        return error.what.partition(": ")[2].removesuffix("; the module was left as it was")
    if moved(module, result.model, inputs) > PLACED_LIMIT:
        return "WRONG"
    return CONFIG if loads_again(module, inputs) else CUT


def moved(module: Any, other: Any, inputs: dict[str, Any]) -> float:
    """How far the outputs of two modules are apart, relative to the largest."""
    import torch

    with torch.no_grad():
        flat = [torch.utils._pytree.tree_flatten(each(**inputs))[0] for each in (module, other)]
    left, right = ([value for value in values if isinstance(value, torch.Tensor)] for values in flat)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(left, right, strict=True))


def loads_again(module: Any, inputs: dict[str, Any]) -> bool:
    """Whether what save_pretrained writes is loaded by from_pretrained and computes the same."""
    import copy

    found = next(part for part in module.modules() if hasattr(part, "save_pretrained"))
    with tempfile.TemporaryDirectory() as folder:
        found.save_pretrained(folder)
        try:
            again = type(found).from_pretrained(folder).eval()
        except RuntimeError:  # sizes do not match
            return False
    twin = copy.copy(module)
    twin._modules = {name: again if part is found else part for name, part in module._modules.items()}
    return moved(module, again if found is module else twin, inputs) <= PLACED_LIMIT


def widen(traced: Any) -> None:
    """Compute in float64 throughout: casts to float32 inside the model become casts to float64."""
    import torch

    def wide(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    for node in list(traced.graph.nodes):
        if "_assert_tensor_metadata" in str(node.target):
            traced.graph.erase_node(node)
            continue
        node.args = torch.fx.node.map_aggregate(node.args, wide)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, wide)
    traced.recompile()


def broken(model: Any, analysis: Any, proof: Any) -> float:
    """The least, over Dims, that the outputs move when a Dim is permuted everywhere but in one of its weights."""
    import numpy as np

    from graphprune.formats.torch.model import set_tensor, stored
    from graphprune.verify import difference

    tensors, least = stored(model.traced), float("inf")
    (_, feeds), dense = proof.trials[0], proof.dense[0]
    for atom in analysis.prunable:
        moved = 0.0
        made = proof.format.apply(model, analysis, {atom.dim: np.roll(np.arange(atom.size), 1)})
        right = dict(stored(made.traced))
        for name in sorted(set(atom.weights) & right.keys()):
            set_tensor(made.traced, name, tensors[name].detach().clone())
            moved = max(moved, difference(dense, proof.format.run(made)(feeds)))
            set_tensor(made.traced, name, right[name].detach())
            if moved > 1e-3:
                break
        least = min(least, moved)
    return least


def reasons(analysis: Any, most: int = 3) -> list[str]:
    """Why Dims are frozen, those with the most weight entries first, each with the sizes that it concerns."""
    entries: Counter[str] = Counter()
    sizes: dict[str, set[int]] = {}
    for atom in analysis.frozen:
        why = atom.reason.why if atom.reason else ""
        why = "it is the shape of an input or output" if why.startswith("it is the shape of an") else why
        shapes = (analysis.graph.weights[use.weight].size for use in atom.uses)
        entries[why] += sum(shapes)
        sizes.setdefault(why, set()).add(atom.size)
    return [f"{why} ({', '.join(map(str, sorted(sizes[why])))})" for why, _ in entries.most_common(most)]


def attempt(name: str, limit: float) -> Row:
    """The row of one architecture, measured in a process of its own."""
    return Row(**record("tools.torch_zoo", name, limit))


HEADER = (
    "architecture | nodes | Dims prunable | parameters | removed | permutation error | zero == cut error | "
    "moved by a broken coupling | export, s | analysis, s | in place: default | hidden | all | "
    "largest frozen reasons (sizes)"
)


def line(row: Row) -> str:
    """One row in Markdown."""
    figures = (
        f"{row.nodes} | {row.dims} | {row.params:,} | {100 * (1 - row.kept):.1f} % | {row.permuted:.0e} | "
        f"{row.zeroed:.0e} | {row.broken:.0e} | {row.export:.1f} | {row.analysis:.2f}"
    )
    placed = (row.placed.get(kinds, "") for kinds in PLACED)
    short = " | ".join(text if text in ("", CONFIG, CUT, NOTHING) else "refused" for text in placed)
    return f"| {row.name} | {figures} | {short} | {'; '.join(row.frozen)} |"


def page(rows: list[Row]) -> Iterator[str]:
    """The lines of docs/zoo-torch.md."""
    import torch
    import transformers

    from models.transformers_zoo import SIZES

    good, bad = [row for row in rows if row.proved], [row for row in rows if not row.proved]
    yield "# Architectures proved through torch.export"
    yield ""
    yield "Generated by `python -m tools.torch_zoo`"
    yield f"(torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__})."
    yield ""
    yield "Built from configurations with random weights made generic, in float64, and exported with fixed shapes."
    yield f"Sizes where the architecture has them: {SIZES}; see `models/transformers_zoo.py`."
    yield "Half of every Dim is cut at random, of every kind, residual stream and head size included. No model needed a"
    yield "hint. The errors are relative to the largest output. *Moved by a broken coupling*: each Dim is permuted"
    yield "everywhere but in one of its weights; shown is how far the outputs move for the Dim where they move least."
    yield "*In place*: the user's own module, in float32, with `keep=0.5` and the default kinds, with `allow='hidden'`,"
    yield "or with `allow='all'`. *With config*: `save_pretrained` and `from_pretrained` give the same model again;"
    yield "*cut*: it computes what the traced module computes, and no config was found that says what was cut."
    yield ""
    yield f"| {HEADER} |"
    yield "|---|" + "---:|" * (HEADER.count("|") - 1) + "---|"
    yield from map(line, good)
    yield ""
    if bad:
        yield "Not proved:"
        yield ""
        yield from (f"- {row.name}: {row.error}" for row in bad)
        yield ""
    yield "Refused in place, with the module left as it was (the traced module is there all the same):"
    yield ""
    yield from refusals(rows)
    yield ""
    yield total(rows)


def refusals(rows: list[Row]) -> Iterator[str]:
    """Why modules were not cut in place."""
    for row in rows:
        for kinds, text in row.placed.items():
            if text not in (CONFIG, CUT, NOTHING):
                yield f"- {row.name}, {kinds}: {text}"


def total(rows: list[Row]) -> str:
    """The last line."""
    good = [row for row in rows if row.proved]
    share = statistics.median(row.kept for row in good) if good else 1.0
    seconds = sum(row.export for row in good), sum(row.analysis for row in good)
    return (
        f"{len(good)} of {len(rows)} architectures proved, 0 hints; median share of parameters kept with half of every "
        f"Dim: {share:.3f}; {seconds[0]:.0f} s of export and {seconds[1]:.1f} s of analysis in all. {placed(rows)}"
    )


def placed(rows: list[Row]) -> str:
    """How many were cut in place, and with how many configs."""
    parts = []
    for kinds in PLACED:
        found = Counter(row.placed.get(kinds) for row in rows)
        done = found[CUT] + found[CONFIG] + found[NOTHING]
        parts.append(f"{done} with {kinds} kinds ({found[CONFIG]} configs updated)")
    return f"In place: {', '.join(parts)}."


def main() -> None:
    """Command line."""
    from models.transformers_zoo import ZOO

    parser = argparse.ArgumentParser(description="Prove the torch format on the architectures of transformers.")
    parser.add_argument("--models", nargs="*", choices=list(ZOO), metavar="NAME", help="only these, printed")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each")
    parser.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("ignore")
        row = measure(options.child)
        row.placed = {kinds: in_place(options.child, allow) for kinds, allow in PLACED.items()}
        print(json.dumps(asdict(row)))
        return
    rows = []
    for name in options.models or ZOO:
        rows.append(attempt(name, options.limit))
        print(line(rows[-1]) if rows[-1].proved else f"{name}: {rows[-1].error}", flush=True)
    print(total(rows))
    if not options.models:
        PAGE.write_text("\n".join(page(rows)) + "\n")


if __name__ == "__main__":
    main()
