"""Quantised files cut: what is proved of them, and whether to cut before or after quantising. Writes docs/quantised.md.

`python -m tools.bench_quantised` (about five minutes; MiniLM, Fashion-MNIST and the ResNet-20 are fetched or trained
first), or only some of its tables: `--only scales`.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import graphprune
from graphprune.analysis import analyse
from graphprune.cost import CostModel
from graphprune.dims import counts
from graphprune.formats import onnx as format_
from graphprune.loaded import Loaded, load
from graphprune.plan import Plan
from graphprune.verify import Proof, difference
from models import quantised
from models.tasks import SUBJECTS
from tools.prove_real import HALF

PAGE = Path("docs/quantised.md")
FORM: Any = format_
Made = Callable[[onnx.ModelProto, list[Any]], onnx.ModelProto]
WAYS: dict[str, Made] = {
    "pairs": quantised.static,
    "pairs, a scale a channel": lambda model, data: quantised.static(model, data, per_channel=True),
    "integer ops, a scale a channel": lambda model, data: quantised.static(model, data, in_ops=True, per_channel=True),
    "dynamic": lambda model, data: quantised.dynamic(model),
}
WEIGHTS: dict[str, Made] = {
    "4 bits in blocks of 32": lambda model, data: quantised.in_blocks(model, 4, symmetric=False),
    "8 bits in blocks of 32": lambda model, data: quantised.in_blocks(model, 8),
}
SHARES = {"1.5x": 1 / 1.5, "2x": 0.5, "3x": 1 / 3}


def main() -> None:
    """The tables, into the page."""
    parser = argparse.ArgumentParser(description="Cut quantised files.")
    parser.add_argument("--only", nargs="*", default=list(TABLES), choices=list(TABLES), metavar="TABLE")
    text = PAGE.read_text()
    for mark in parser.parse_args().only:
        before, _, rest = text.partition(f"<!-- {mark} -->\n")
        _, _, after = rest.partition("<!-- end -->")
        text = f"{before}<!-- {mark} -->\n" + "\n".join(TABLES[mark]()) + "\n<!-- end -->" + after
    PAGE.write_text(text)


def proofs() -> Iterator[str]:
    """A row a file: half of every Dim cut."""
    yield "| model | quantised to | Dims cut | permutation | zero == cut | kernels before and after | MACs left | s |"
    yield "|---|---|---|---|---|---|---|---|"
    for title, proto, data, ways in subjects():
        for way, make in ways.items():
            yield _proved(title, way, make(proto, data))


def subjects() -> Iterator[tuple[str, onnx.ModelProto, list[Any], dict[str, Made]]]:
    """Models in floats, and what to take scales from."""
    for name, title in (("resnet20", "ResNet-20"), ("minilm", "MiniLM (BERT)")):
        data = SUBJECTS[name].calibration(0).batches[:4]
        every = WAYS | WEIGHTS if name == "minilm" else WAYS
        yield title, quantised.prepared(SUBJECTS[name].path()), data, every
    images = [{"image": np.random.default_rng(seed).standard_normal((1, 3, 64, 64), np.float32)} for seed in range(4)]
    yield "ResNet-50", quantised.prepared(quantised.resnet50()), images, WAYS


def _proved(title: str, way: str, proto: onnx.ModelProto) -> str:
    model = format_.read(proto)
    start = time.perf_counter()
    analysis = analyse(model.graph)
    proof, chosen = Proof(FORM, model, analysis), {}
    for atom in analysis.prunable:
        count = max(atom.least, atom.multiple * (atom.size // 2 // atom.multiple), 1)
        chosen[atom.dim] = np.sort(np.random.default_rng(atom.index).permutation(atom.size)[:count])
    cut = format_.apply(model, analysis, chosen)
    checks = [proof.permutation(), proof.zero_equals_cut(chosen), proof.runs(cut, chosen)]
    spent = time.perf_counter() - start
    errors = [f"{check.error:.0e}" if check.passed else "FAILED" for check in checks[:2] if check.error is not None]
    kernels = [quantised.kernels(held.inline()) for held in (model, cut)]
    alike = "the same" if kernels[0] == kernels[1] else f"OTHERS: {kernels[1]}"
    names = ", ".join(f"{number} {kind}" for kind, number in kernels[0].items())
    cost = CostModel(analysis)
    left = cost.macs(counts(chosen)) / cost.macs({})
    row = f"| {title} | {way} | {len(chosen)} | {' | '.join(errors)} | {names}; {alike} | {left:.0%} | {spent:.0f} |"
    print(row, flush=True)
    return row


def scales() -> Iterator[str]:
    """A row a file: what a cut makes of it, beside the float model cut alike and quantised with the same scales."""
    yield "| model | scales of weights | Dims cut | outputs differ by | stored tensors that differ | kernels |"
    yield "|---|---|---|---|---|---|"
    for title, floats, data, _ in subjects():
        for per_channel in (False, True):
            whole = quantised.static(floats, data, per_channel=per_channel)
            after, first, cuts = both_orders(floats, whole, data, per_channel=per_channel)
            outputs = [[format_.run(format_.read(proto))(feeds) for feeds in data] for proto in (after, first)]
            error = max(difference(*pair) for pair in zip(*outputs, strict=True))
            kernels = [quantised.kernels(proto) for proto in (whole, after, first)]
            alike = "the same in all three" if kernels.count(kernels[0]) == 3 else f"OTHERS: {kernels[1:]}"
            names = ", ".join(f"{number} {kind}" for kind, number in kernels[0].items())
            count = f"{len(unlike(after, first))} of {len(after.graph.initializer)}"
            how = "a channel" if per_channel else "a tensor"
            row = f"| {title} | {how} | {cuts} | {error:.0e} | {count} | {names}; {alike} |"
            print(row, flush=True)
            yield row


def both_orders(
    floats: onnx.ModelProto, whole: onnx.ModelProto, data: Sequence[Any], *, per_channel: bool = False
) -> tuple[onnx.ModelProto, onnx.ModelProto, int]:
    """The quantised model cut in half, the float model cut by the same plan and then quantised with the scales that the
    first has left, and the number of cuts.
    """
    loaded = load(whole)
    plan = loaded.plan(HALF)
    after, smaller = (_applied(each, plan) for each in (loaded, load(floats)))
    numbers = quantised.numbers(after)
    return after, quantised.static(smaller, data, per_channel=per_channel, numbers=numbers), len(plan.cuts)


def unlike(a: onnx.ModelProto, b: onnx.ModelProto) -> list[str]:
    """Names of stored tensors that are not the same to the last bit in both."""
    x, y = ({t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer} for proto in (a, b))
    return [name for name in sorted({*x, *y}) if name not in x or name not in y or not np.array_equal(x[name], y[name])]


def _applied(loaded: Loaded, plan: Plan) -> onnx.ModelProto:
    made: onnx.ModelProto = loaded.apply(plan, verify="none", timing=False).model
    return made


def order() -> Iterator[str]:
    """A row a budget: accuracy of both orders, scales a channel, with and without least squares."""
    yield "| model | MACs | floats | cut, then quantised | quantised, then cut | the same, no data: first | after |"
    yield "|---|---|---|---|---|---|---|"
    for name in ("digits", "resnet20"):
        subject = SUBJECTS[name]
        floats, data = quantised.prepared(subject.path()), subject.calibration(0).batches
        whole = quantised.static(floats, data[:4], per_channel=True)
        dense = [f"{_accuracy(name, proto):.1%}" for proto in (floats, whole)]
        yield f"| {subject.title} | 1x | {dense[0]} | {dense[1]} | {dense[1]} | {dense[1]} | {dense[1]} |"
        for title, share in SHARES.items():
            shown = []
            for how in ({"score": "obs", "calib": data}, {"score": "l2"}):
                smaller = _cut(floats, share, how)
                again = quantised.static(smaller, data[:4], per_channel=True)
                after = _cut(whole, share, how)
                shown.append([f"{_accuracy(name, proto):.1%}" for proto in (smaller, again, after)])
            row = f"| {subject.title} | {title} | {' | '.join([*shown[0], *shown[1][1:]])} |"
            print(row, flush=True)
            yield row


def _cut(proto: onnx.ModelProto, share: float, how: dict[str, Any]) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    made: onnx.ModelProto = graphprune.prune(copy, macs=share, multiple=1, **how).model
    return made


def _accuracy(name: str, proto: onnx.ModelProto) -> float:
    return SUBJECTS[name].measure(proto.SerializeToString())["accuracy"]


TABLES: dict[str, Callable[[], Iterator[str]]] = {"proofs": proofs, "scales": scales, "order": order}

if __name__ == "__main__":
    main()
