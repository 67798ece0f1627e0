"""Every architecture of models/transformers_zoo.py through torch.onnx.export and the ONNX format: docs/zoo-onnx.md.

    python -m tools.onnx_zoo                 all of them, each a process of its own with a time limit
    python -m tools.onnx_zoo --models gpt2   some of them, printed and not written

The proofs are those of tools/torch_zoo.py, on what ONNX Runtime computes: in float64 where it has every kernel, else in
float32. The Dims are then held against those that the torch format finds in the same module (tools/same_dims.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from tools.child import record
from tools.torch_zoo import SEEN

PAGE = Path(__file__).parents[1] / "docs" / "zoo-onnx.md"
LIMITS = {"float64": 1e-9, "float32": 1e-4}
"""Largest error that counts as equal: rounding alone stays a hundred times below it on every model here."""

BEYOND = 10
"""A broken coupling counts as seen where it moves the outputs by this many times the error of the permutation."""

ENOUGH = 1e-2
"""A move of the outputs after which no further weight of a Dim is tried."""


@dataclass
class Row:
    """What became of one architecture; ``error`` is the reason where something did not work."""

    name: str
    error: str = ""
    precision: str = "float64"
    plain: bool = False
    nodes: int = 0
    onnx: int = 0
    torch: int = 0
    both: int = 0
    kept: float = 1.0
    permuted: float = 0.0
    zeroed: float = 0.0
    broken: float = 0.0
    export: float = 0.0
    analysis: float = 0.0
    only_onnx: list[str] = field(default_factory=list)
    only_torch: list[str] = field(default_factory=list)


def measure(name: str) -> Row:
    """One architecture: export, analyse in both formats, compare, prove, cut half of every Dim, run."""
    from graphprune.analysis import analyse
    from graphprune.formats import of
    from models.transformers_zoo import build
    from tools.same_dims import compare

    row = Row(name)
    module, inputs = build(name)
    try:
        proto, inputs = exported(row, module, inputs)
    except Exception as error:  # the exporter raises classes of its own, most of them private
        row.error = cause(error)
        return row
    format = of(proto)
    model = format.read(proto)
    format.give(model, {info.name: inputs[info.name].numpy() for info in proto.graph.input})
    graph = model.graph
    start = time.perf_counter()
    analysis = analyse(graph)
    row.analysis = time.perf_counter() - start
    traced = analyse(of(module).read(module, example_inputs=inputs).graph)
    compared = compare(analysis, traced)
    row.nodes, row.onnx, row.torch = len(graph.nodes), len(analysis.prunable), len(traced.prunable)
    row.both, row.only_onnx, row.only_torch = compared.both, compared.first, compared.second
    prove(row, model, analysis)
    return row


def exported(row: Row, module: Any, inputs: dict[str, Any]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The file that torch's exporter makes, and its inputs: in float64 if ONNX Runtime loads that, else in float32."""
    from graphprune.errors import VerifyError
    from graphprune.formats import onnx as format
    from models.zoo import spell_out

    try:
        proto = widen(export(row, module, inputs))
    except Exception:  # again once attention and experts are written out
        row.plain = True
        spell_out(module)
        proto = widen(export(row, module, inputs))
    try:
        format.run(format.read(proto))
    except VerifyError:
        row.precision = "float32"
        module.float()
        inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
        proto = export(row, module, inputs)
    return proto, inputs


def export(row: Row, module: Any, inputs: dict[str, Any]) -> onnx.ModelProto:
    """What the exporter makes of the module, with fixed shapes."""
    import torch

    start = time.perf_counter()
    program = torch.onnx.export(module, kwargs=inputs, dynamo=True, verbose=False)
    row.export = time.perf_counter() - start
    assert program is not None
    return program.model_proto


def widen(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Compute in float64 throughout: casts to float32 inside the model, and what they meet, become float64."""
    from onnx import TensorProto, numpy_helper

    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float64"), tensor.name))
    for info in (*wide.graph.value_info, *wide.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    return wide


def prove(row: Row, model: Any, analysis: Any) -> None:
    """The three checks with half of every Dim cut at random, and that a broken coupling would be seen."""
    import numpy as np

    from graphprune.cost import CostModel
    from graphprune.dims import counts
    from graphprune.formats import of
    from graphprune.verify import Proof

    format = of(model.proto)
    proof = Proof(format, model, analysis)
    random = np.random.default_rng(0)
    half = {a.dim: np.sort(random.permutation(a.size)[: max(a.least, a.size // 2)]) for a in analysis.prunable}
    permutation, zero = proof.permutation(), proof.zero_equals_cut(half)
    runs = proof.runs(format.apply(model, analysis, half), half)
    row.permuted, row.zeroed = permutation.error or 0.0, zero.error or 0.0
    row.broken = broken(model, analysis, proof)
    cost = CostModel(analysis)
    row.kept = cost.params(counts(half)) / cost.params({})
    failed = [str(check) for check in (permutation, zero, runs) if not check.passed]
    failed += ["more than rounding"] if max(row.permuted, row.zeroed) > LIMITS[row.precision] else []
    idle = row.broken < max(SEEN, BEYOND * row.permuted)
    failed += ["a Dim is idle: breaking its coupling does not show"] if idle else []
    row.error = "; ".join(failed)


def broken(model: Any, analysis: Any, proof: Any) -> float:
    """The least, over Dims, that the outputs move when a Dim is permuted everywhere but in one of its weights."""
    import numpy as np

    from graphprune.formats.onnx.runtime import run
    from graphprune.verify import difference

    least = float("inf")
    (_, feeds), dense = proof.trials[0], proof.dense[0]
    for atom in analysis.prunable:
        moved = 0.0
        made = proof.format.apply(model, analysis, {atom.dim: np.roll(np.arange(atom.size), 1)})
        for name in (tensor.name for tensor in model.proto.graph.initializer if tensor.name in atom.weights):
            if moved < ENOUGH:
                wrong = made.copy()
                wrong.put({name: analysis.graph.weights[name].load()})
                moved = max(moved, difference(dense, run(wrong, optimise=False)(feeds)))
        least = min(least, moved)
    return least


def cause(error: BaseException) -> str:
    """The first line of what an error goes back to."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def attempt(name: str, limit: float) -> Row:
    """The row of one architecture, measured in a process of its own."""
    return Row(**record("tools.onnx_zoo", name, limit))


HEADER = (
    "architecture | precision | nodes | Dims in ONNX | in torch | in both | kept at half of every Dim | "
    "permutation error | zero == cut error | moved by a broken coupling | export, s | analysis, s"
)


def line(row: Row) -> str:
    """One row in Markdown."""
    name = f"{row.name} (1)" if row.plain else row.name
    return (
        f"| {name} | {row.precision} | {row.nodes} | {row.onnx} | {row.torch} | {row.both} | {row.kept:.3f} | "
        f"{row.permuted:.0e} | {row.zeroed:.0e} | {row.broken:.0e} | {row.export:.1f} | {row.analysis:.2f} |"
    )


def differences(row: Row) -> Iterator[str]:
    """A line for each Dim that one format alone finds."""
    for side, lines in (("ONNX", row.only_onnx), ("torch", row.only_torch)):
        yield from (f"- {row.name}, in {side} only: {text}" for text in lines)


def page(rows: list[Row]) -> Iterator[str]:
    """The lines of docs/zoo-onnx.md."""
    import onnxruntime
    import torch
    import transformers

    good, bad = [row for row in rows if not row.error], [row for row in rows if row.error]
    torch_version = torch.__version__.split("+")[0]
    yield "# Architectures proved through torch.onnx.export"
    yield ""
    yield "Generated by `python -m tools.onnx_zoo`"
    yield f"(torch {torch_version}, transformers {transformers.__version__}, ONNX Runtime {onnxruntime.__version__})."
    yield ""
    yield from OPENING.strip().splitlines()
    yield ""
    yield f"| {HEADER} |"
    yield "|---|---|" + "---:|" * (HEADER.count("|") - 1)
    yield from map(line, good)
    yield ""
    yield "(1) the exporter fails on the fused call of attention or of experts; both formats read the module with it"
    yield 'written out, as `set_attn_implementation("eager")` and `set_experts_implementation("batched_mm")` do.'
    yield ""
    if bad:
        yield "Not proved:"
        yield ""
        yield from (f"- {row.name}: {row.error}" for row in bad)
        yield ""
    yield "## Dims in one format only"
    yield ""
    yield from EXPLAINED.strip().splitlines()
    yield ""
    yield from (text for row in good for text in differences(row))
    yield ""
    yield total(rows)


OPENING = """
The modules of [the torch table](zoo-torch.md), exported with fixed shapes by torch's default exporter, read as ONNX,
and run in ONNX Runtime: in float64 where it has a kernel for every op, else in float32. Half of every Dim is cut at
random, of every kind. The errors are relative to the largest output. *Moved by a broken coupling*: each Dim is permuted
everywhere but in one of its weights; shown is how far the outputs move for the Dim where they move least.

The Dims are held against those that the torch format finds in the same module. Two are the same if they have the same
number of positions and live in the same weights. Weights are told by their names, or by their values where the exporter
renamed and transposed them. What it folded away has no counterpart, and is left out of the comparison.
"""

EXPLAINED = """
All of them are the exporter's doing, and true of the file:

- *A weight that the module uses twice is stored twice.* The weight of a linear layer is transposed for each call of it,
  and each result is stored. In albert all layers are one; in deberta_v2 one projection serves the keys and the
  positions. In the file these are tensors of their own, and their Dims may be cut apart.
- *What hangs on constants alone is computed while exporting.* deberta multiplies its table of relative positions by a
  projection, swinv2 takes a table of coordinates through a layer. The file holds the products; the Dims that were
  summed over are gone.
- *Equal tables are merged.* The rotary tables of the layers of gptj are one table in the file, so that the layers share
  one Dim. Vectors, indices and masks are told apart by who reads them; a table of numbers may be a weight that the
  layers are meant to share, and stays one.
"""


def total(rows: list[Row]) -> str:
    """The last line."""
    good = [row for row in rows if not row.error]
    share = statistics.median(row.kept for row in good) if good else 1.0
    counts = sum(row.onnx for row in good), sum(row.torch for row in good), sum(row.both for row in good)
    agreed = sum(row.onnx == row.torch == row.both for row in good)
    return (
        f"{len(good)} of {len(rows)} architectures proved, {agreed} of them with the same Dims in both formats: "
        f"{counts[0]} in ONNX, {counts[1]} in torch, {counts[2]} in both; median share of parameters kept with half of "
        f"every Dim: {share:.3f}."
    )


def main() -> None:
    """Command line."""
    from models.transformers_zoo import ZOO

    parser = argparse.ArgumentParser(description="Prove the ONNX format on the architectures of transformers.")
    parser.add_argument("--models", nargs="*", choices=list(ZOO), metavar="NAME", help="only these, printed")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each")
    parser.add_argument("--child", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("ignore")
        print(json.dumps(asdict(measure(options.child))))
        return
    rows = []
    for name in options.models or ZOO:
        rows.append(attempt(name, options.limit))
        print(f"{name}: {rows[-1].error}" if rows[-1].error else line(rows[-1]), flush=True)
        print("\n".join(differences(rows[-1])), end="\n" if list(differences(rows[-1])) else "", flush=True)
    print(total(rows))
    if not options.models:
        PAGE.write_text("\n".join(page(rows)) + "\n")


if __name__ == "__main__":
    main()
