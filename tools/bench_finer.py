"""What finer choice inside products keeps: as many positions under each outer one, the same everywhere or each its own.

    python -m tools.bench_finer

Prints a markdown table. Only Dims that lie under another are cut (channels of a convolution in groups, query heads of a
key head), and there is no training after: the two rows of a score differ in the choice of positions and in nothing
else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import graphprune
from models import fashion, real, text
from models.run import classes, session

Feeds = Mapping[str, Any]


class Subject(NamedTuple):
    """A model, data to score it by, and what of it is measured of a file."""

    title: str
    path: Callable[[], Path]
    calibration: Callable[[], Sequence[Feeds]]
    keeps: tuple[float, ...]
    measure: Callable[[str | Path | bytes], str]


def _images() -> list[Feeds]:
    images = fashion.split()[0]
    chosen = np.random.default_rng(0).permutation(len(images))[:1024]
    return [{"image": part} for part in np.split(images[chosen], 16)]


def _right(model: str | Path | bytes) -> str:
    images, labels = fashion.split()[2:]
    return f"{(classes(model, images) == labels).mean():.1%}"


def _perplexity(model: str | Path | bytes, windows: int = 16) -> str:
    """Of the first windows that `models.text.causal` takes all of."""
    loaded, losses = session(model), []
    for feeds in islice(text.held_out(), windows // 4):
        (logits,) = loaded.run(["logits"], dict(feeds))
        for ids, row in zip(feeds["input_ids"], logits, strict=True):
            above = row[:-1] - row[:-1].max(1, keepdims=True)
            told = np.take_along_axis(above, ids[1:, None], 1)[:, 0]
            losses.append(np.log(np.exp(above).sum(1, dtype=np.float64)) - told)
    return f"{np.exp(np.mean(losses)):.2f}"


SUBJECTS = (
    Subject("ResNeXt on Fashion-MNIST, 76 K, accuracy", fashion.resnext, _images, (0.75, 0.5, 0.25), _right),
    Subject(
        "SmolLM2-135M, perplexity of 4 k tokens",
        real.smollm2,
        lambda: text.windows(text.wikipedia(), 16, seed=0),
        (0.67,),
        _perplexity,
    ),
)


def rows(subject: Subject, scores: Iterable[str], how: str) -> Iterator[str]:
    """Lines of the table."""
    loaded = graphprune.load(subject.path())
    yield f"| {subject.title} | dense | | | {subject.measure(subject.path())} |"
    names = tuple(atom.name for atom in loaded.analysis.prunable if atom.dim.under and atom.kind in ("channel", "head"))
    first = graphprune.Request(keep=subject.keeps[0], include=names, multiple=1)
    batches = subject.calibration()
    moments = loaded.measure(batches, first)
    for score in scores:
        for finer in (False, True):
            found = []
            for keep in subject.keeps:
                request = graphprune.Request(keep=keep, include=names, multiple=1, finer=finer)
                plan = loaded.plan(request, score, moments=moments, batches=batches)
                made = loaded.compensated(plan, moments) if how == "least-squares" else loaded
                model = made.apply(plan, verify="none", timing=False).model
                if how == "batch norms":
                    graphprune.reestimate_batch_norm(model, batches)
                found.append(f"{subject.measure(model.SerializeToString())} at {keep:.0%}")
            choice = "each its own" if finer else "one for all"
            yield f"| {subject.title} | `{score}` | {how} | {choice} | {', '.join(found)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scores", nargs="+", default=["l1", "l2", "flap", "wanda-sp"])
    parser.add_argument("--subject", nargs="+", type=int, default=range(len(SUBJECTS)))
    parser.add_argument("--repair", nargs="+", default=["none", "batch norms", "least-squares"])
    options = parser.parse_args()
    print("| model | score | repair | choice | left of each Dim under another |")
    print("|---|---|---|---|---|")
    for number in options.subject:
        for how in options.repair:
            for line in rows(SUBJECTS[number], options.scores, how):
                print(line, flush=True)


if __name__ == "__main__":
    main()
