"""Every real model: its Dims, the permutation proof, and a cut to half of each Dim, as one table.

    python -m tools.prove_real
    python -m tools.prove_real smollm2 resnet50

The table is Markdown. The exit code is 1 where a check fails, where less can be removed than expected, or where the
Dims of a model are not those it is known to have. Needs torch for the models that are exported, and 6 GB of memory for
SmolLM2; the tests do the same on all models but that one.
"""

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import graphprune
from graphprune.analysis import Analysis
from graphprune.budget import Request
from graphprune.cost import CostModel
from graphprune.dims import counts
from graphprune.verify import Proof
from models import light, real
from tools.bench_analysis import measure

HALF = Request(keep=0.5, multiple=1, floor=0, allow=("all",))
"""Half of every Dim that may be cut at all, to the position."""

Kinds = Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Subject:
    """A model, the share of its parameters that half of every Dim removes, (kind, size) -> count of its Dims."""

    path: Callable[[], Path]
    removed: float
    kinds: Kinds = field(default_factory=dict)


LLAMA_TINY: Kinds = {
    ("hidden", 64): 1,
    ("kv-group", 2): 2,
    ("head", 4): 2,  # query heads in a group
    ("head-size", 8): 1,  # rotary pairs, one for all layers: they share the table of frequencies
    ("head-size", 16): 2,  # of the values
    ("mlp", 160): 2,
}
SMOLLM2: Kinds = {
    ("hidden", 576): 1,
    ("kv-group", 3): 30,
    ("head", 3): 30,
    ("head-size", 32): 1,
    ("head-size", 64): 30,
    ("mlp", 1536): 30,
}

SUBJECTS: Mapping[str, Subject] = {
    "bvlc_alexnet": Subject(partial(light.light, "bvlc_alexnet"), 0.78),
    "densenet121": Subject(partial(light.light, "densenet121"), 0.68),
    "inception_v1": Subject(partial(light.light, "inception_v1"), 0.68),
    "inception_v2": Subject(partial(light.light, "inception_v2"), 0.70),
    "resnet50": Subject(partial(light.light, "resnet50"), 0.70),
    "shufflenet": Subject(partial(light.light, "shufflenet"), 0.45),
    "squeezenet": Subject(partial(light.light, "squeezenet"), 0.62),
    "vgg19": Subject(partial(light.light, "vgg19"), 0.72),
    "zfnet512": Subject(partial(light.light, "zfnet512"), 0.72),
    "ocr_rec": Subject(real.ocr_rec, 0.65),
    "ocr_det": Subject(real.ocr_det, 0.70),
    "ocr_cls": Subject(real.ocr_cls, 0.67),
    "silero_vad": Subject(real.silero_vad, 0.45),  # the state of its LSTM is an input of the model
    "mobilenet_v2": Subject(real.mobilenet_v2, 0.63),
    "minilm": Subject(real.minilm, 0.25),  # its residual stream is the output
    "minilm_int8": Subject(real.minilm_int8, 0.25),
    "llama_tiny": Subject(real.llama_tiny, 0.60, LLAMA_TINY),
    "smollm2": Subject(real.smollm2, 0.60, SMOLLM2),
}


def kinds(analysis: Analysis) -> dict[tuple[str, int], int]:
    """How many prunable Dims there are of each kind and size."""
    return dict(Counter((atom.kind, atom.size) for atom in analysis.prunable))


def prove(name: str) -> tuple[str, list[str]]:
    """The row of the table for one model, and what is wrong with it."""
    subject, start = SUBJECTS[name], time.perf_counter()
    loaded = graphprune.load(subject.path())
    analysis, form = loaded.analysis, loaded.format
    found = kinds(analysis)
    chosen = loaded.plan(HALF).chosen(analysis)
    proof = Proof(form, loaded.model, analysis)
    permutation = proof.permutation()
    noise = proof.noise()
    checks = [
        permutation,
        proof.zero_equals_cut(chosen),
        proof.runs(form.apply(loaded.model, analysis, chosen), chosen),
    ]
    cost = CostModel(analysis)
    removed = 1 - cost.params(counts(chosen)) / cost.params({})
    seconds = time.perf_counter() - start
    wrong = [f"{name}: {check}" for check in checks if not check.passed]
    if removed < subject.removed:
        wrong.append(f"{name}: {removed:.1%} of the parameters removed, not {subject.removed:.0%}")
    if subject.kinds and found != subject.kinds:
        wrong.append(f"{name}: the Dims are {found}, not {dict(subject.kinds)}")
    cells = (
        name,
        str(len(analysis.graph.nodes)),
        f"{measure(analysis.graph, 5)[0]:.0f}",
        ", ".join(f"{count} {kind}" for kind, count in Counter(atom.kind for atom in analysis.prunable).items()),
        f"{permutation.error:.0e}",
        f"{noise:.0e}",
        f"{removed:.1%}",
        f"{seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |", wrong


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Prove and halve real models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)} (default: all)")
    names = parser.parse_args().names or list(SUBJECTS)
    if unknown := set(names) - set(SUBJECTS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}")
    print(
        "| model | nodes | analysis ms | dims prunable | proof error | noise | parameters removed at half | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    failures: list[str] = []
    for name in names:
        row, wrong = prove(name)
        print(row, flush=True)
        failures += wrong
        gc.collect()  # models are large, and some of what holds them are cycles
    print("\n".join(failures), end="\n" if failures else "", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
