"""Pruning before, after and without training, against training the small network from scratch.

    python -m tools.bench_anytime --state FOLDER --out docs/bench-anytime.md

A ResNet-20 on Fashion-MNIST is cut to half of its MACs, as it starts or once it is trained; what is left is trained,
fine-tuned or left alone. The control is that of "Rethinking the Value of Network Pruning" (Liu et al., arXiv
1810.05270): the same small architecture, started at random. Each run is written to FOLDER as soon as it is done, so
that a killed study goes on where it was. About an hour on one thread; --seeds 0 is a third of it.
"""

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import graphprune
from models import fashion, resnet

SCORES = ("l2", "taylor", "snip")
SCORED = 10  # batches for gradients and for batch-norm statistics
MACS = 0.5

Run = dict[str, Any]


@dataclass
class Study:
    """The data, the schedule, and the results so far by name: seed/stage/score."""

    folder: Path
    steps: int
    tune: int
    batch: int
    data: tuple[Tensor, ...]
    results: dict[str, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "results.json"
        self.settings = {"steps": self.steps, "tune": self.tune, "batch": self.batch}
        if self.file.exists():
            found = json.loads(self.file.read_text())
            if found["settings"] != self.settings:
                raise SystemExit(f"{self.file} holds runs of {found['settings']}: give another --state")
            self.results = found["runs"]

    def once(self, name: str, work: Callable[[], float], **about: Any) -> None:
        """The accuracy that ``work`` returns, kept under ``name``, unless it is known.

        A run of the same seed and stage on the same kept positions is the same run, and is not made again.
        """
        if name in self.results:
            return
        start = time.process_time()
        twin = next((run for other, run in self.results.items() if _same(name, about, other, run)), None)
        accuracy = twin["accuracy"] if twin else work()
        self.results[name] = {"accuracy": accuracy, "seconds": time.process_time() - start, **about}
        beside = self.file.with_suffix(".part")
        beside.write_text(json.dumps({"settings": self.settings, "runs": self.results}, indent=1))
        beside.replace(self.file)
        print(f"{name}: {accuracy:.4f}, {self.results[name]['seconds']:.0f} s", flush=True)

    def train(self, model: nn.Module, steps: int, rate: float, seed: int) -> float:
        """One cycle of SGD (Smith & Topin, arXiv 1708.07120) in place; the accuracy on the test images after it."""
        images, labels = self.data[:2]
        model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
        for chosen in self.draws(steps, seed):
            optimiser.zero_grad()
            torch.autograd.backward(cross_entropy(model(images[chosen]), labels[chosen]))
            optimiser.step()
            schedule.step()
        return self.accuracy(model)

    def draws(self, steps: int, seed: int) -> Iterator[Tensor]:
        """``steps`` batches of indices, epoch after epoch, each epoch shuffled anew."""
        generator = torch.Generator().manual_seed(seed)
        done = 0
        while done < steps:
            for chosen in torch.split(torch.randperm(len(self.data[1]), generator=generator), self.batch)[
                : steps - done
            ]:
                yield chosen
                done += 1

    def accuracy(self, model: nn.Module) -> float:
        """The share of test images that are named rightly."""
        images, labels = self.data[2:]
        model.eval()
        with torch.no_grad():
            parts = [
                model(part.contiguous(memory_format=torch.channels_last)).argmax(1) for part in torch.split(images, 500)
            ]
        return float((torch.cat(parts) == labels).double().mean())

    def batches(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Training images for scores and statistics: the same for every score."""
        return [(self.data[0][chosen], self.data[1][chosen]) for chosen in self.draws(SCORED, seed + 1000)]


def _same(name: str, about: Run, other: str, run: Run) -> bool:
    return name.split("/")[:2] == other.split("/")[:2] and about.get("kept") == run.get("kept")


def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy."""
    return cross_entropy(model(batch[0]), batch[1])


def started(seed: int) -> nn.Module:
    """A network that was not trained."""
    torch.manual_seed(seed)
    return resnet.network()


def restarted(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with all weights at random and all statistics forgotten."""
    torch.manual_seed(seed)
    made = copy.deepcopy(model)
    for part in made.modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            part.reset_parameters()
    return made


def cut(study: Study, model: nn.Module, score: str, seed: int) -> tuple[nn.Module, Run]:
    """A copy of ``model`` with half of its MACs, and what is left of it."""
    module = copy.deepcopy(model).eval()
    batches = study.batches(seed)
    result = graphprune.prune(
        module,
        example_inputs=(batches[0][0][:2],),
        macs=MACS,
        score=score,
        multiple=1,
        loss=loss,
        batches=batches,
        timing=False,
    )
    kept = [(entry.name, entry.keep) for entry in result.plan.cuts]
    dense, small = result.report.dense, result.report.pruned
    about = {
        "kept": hashlib.sha256(repr(kept).encode()).hexdigest()[:16],
        "params": small.params / dense.params,
        "macs": small.macs / dense.macs,
    }
    made: nn.Module = result.in_place()
    return made, about


def before(study: Study, score: str, seed: int) -> None:
    """Cut where it starts, then trained. Its batch norms know the data first: scores run in evaluation mode."""
    name = f"{seed}/before/{score}"
    if name in study.results:
        return
    model = started(seed)
    graphprune.reestimate_batch_norm(model, study.batches(seed), loss)
    small, about = cut(study, model, score, seed)
    study.once(name, lambda: study.train(small, study.steps, 0.1, seed), **about)


def after(study: Study, dense: nn.Module, score: str, seed: int) -> None:
    """Cut once it is trained: as it is, with statistics mended, fine-tuned; and its architecture from scratch."""
    if all(f"{seed}/{stage}/{score}" in study.results for stage in STAGES):
        return

    def mended(model: nn.Module) -> float:
        graphprune.reestimate_batch_norm(model, study.batches(seed), loss)
        return study.accuracy(model)

    small, about = cut(study, dense, score, seed)
    long = study.steps + study.tune
    stages: dict[str, Callable[[], float]] = {
        "cut": lambda: study.accuracy(small),
        "mended": lambda: mended(copy.deepcopy(small)),
        "tuned": lambda: study.train(copy.deepcopy(small), study.tune, 0.05, seed + 100),
        "scratch": lambda: study.train(restarted(small, seed + 200), study.steps, 0.1, seed),
        "scratch-long": lambda: study.train(restarted(small, seed + 200), long, 0.1, seed),
    }
    for stage, work in stages.items():
        study.once(f"{seed}/{stage}/{score}", work, **about)


def trained(study: Study, seed: int) -> nn.Module:
    """The dense network, trained or read back."""
    path = study.folder / f"dense-{seed}.pt"
    model = started(seed)

    def work() -> float:
        accuracy = study.train(model, study.steps, 0.1, seed)
        torch.save(model.state_dict(), path)
        return accuracy

    study.once(f"{seed}/dense/", work)
    model.load_state_dict(torch.load(path))
    return model.eval()


STAGES = {
    "before": ("cut before training, then trained", "{steps}"),
    "cut": ("cut after training, nothing else", "{steps} + 0"),
    "mended": ("cut after training, batch norms re-estimated", "{steps} + 0"),
    "tuned": ("cut after training, then fine-tuned", "{steps} + {tune}"),
    "scratch": ("control: that architecture from scratch", "{steps}"),
    "scratch-long": ("control: the same, as many steps in all", "{long}"),
}
COMPARED = {
    ("tuned", "scratch-long"): "cut after training and fine-tuned, less the control of as many steps",
    ("before", "scratch"): "cut before training, less the control of as many steps",
}

Values = Callable[..., list[float]]


def page(study: Study, seeds: list[int]) -> str:
    """The page: what was done, the tables, and what they say."""
    sizes = {**study.settings, "long": study.steps + study.tune, "seeds": len(seeds), "scored": SCORED}

    def values(stage: str, score: str, what: str = "accuracy") -> list[float]:
        return [study.results[f"{seed}/{stage}/{score}"][what] for seed in seeds]

    return _INTRO.format(
        **sizes,
        epochs=study.steps * study.batch / len(study.data[1]),
        minutes=sum(run["seconds"] for run in study.results.values()) / 60,
        accuracy="\n".join(_accuracy(values, sizes)),
        left="\n".join(_left(values)),
        compared="\n".join(_compared(values)),
        spread=100
        * max(max(found) - min(found) for pair in COMPARED for stage in pair for found in _all(values, stage)),
    )


def _all(values: Values, stage: str) -> list[list[float]]:
    return [values(stage, score) for score in SCORES]


def _cell(found: list[float], form: str = ".1f") -> str:
    return f"{100 * mean(found):{form}} ({', '.join(f'{100 * value:{form}}' for value in found)})"


def _table(head: str, rows: dict[str, list[list[float]]], form: str = ".1f") -> Iterator[str]:
    """A row for each name, a column for each score."""
    yield f"| {head} | {' | '.join(f'`{score}`' for score in SCORES)} |"
    yield "|---" * (len(SCORES) + 1 + head.count("|")) + "|"
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(_cell(found, form) for found in cells)} |"


def _accuracy(values: Values, sizes: dict[str, int]) -> Iterator[str]:
    rows = {f"{what} | {steps}".format(**sizes): _all(values, stage) for stage, (what, steps) in STAGES.items()}
    dense = [values("dense", "")] * len(SCORES)
    yield from _table("test accuracy, % | steps", {f"dense | {sizes['steps']}": dense, **rows})


def _left(values: Values) -> Iterator[str]:
    stages = {"before": "before", "cut": "after"}
    rows = {
        f"{what}, cut {when} training": [values(stage, score, key) for score in SCORES]
        for key, what in (("macs", "MACs"), ("params", "parameters"))
        for stage, when in stages.items()
    }
    yield from _table("left, %", rows)


def _compared(values: Values) -> Iterator[str]:
    rows = {
        what: [[a - b for a, b in zip(values(ours, s), values(control, s), strict=True)] for s in SCORES]
        for (ours, control), what in COMPARED.items()
    }
    yield from _table("difference, points", rows, "+.1f")
    yield ""
    for what, cells in rows.items():
        said = (f"`{score}` {_verdict(cell)}" for score, cell in zip(SCORES, cells, strict=True))
        yield f"- {what.capitalize()}: {', '.join(said)}."
    if all(values(stage, "taylor") == values(stage, "snip") for stage in STAGES):
        yield "- `taylor` and `snip` differ by a constant factor: they keep the same positions, and are one run here."


def _verdict(differences: list[float]) -> str:
    if min(differences) > 0:
        return "beats the control in every seed"
    return "does not beat the control in any seed" if max(differences) < 0 else "changes its sign from seed to seed"


_INTRO = """# Pruning at any time

Is it worth training a large network to cut it, or does the small one learn as well from scratch? A ResNet-20 of width
16 (272 K parameters) on Fashion-MNIST (60,000 training and 10,000 test images) is cut to half of its MACs, by three
scores, at three times. Written by

<!-- not run: it takes more than an hour -->
```sh
python -m tools.bench_anytime --state STATE --out docs/bench-anytime.md
```

All runs are short, so that {seeds} seeds fit into {minutes:.0f} CPU minutes: {steps} steps of {batch} images are
{epochs:.2f} epochs. No network is trained to the end, so this says what a short training is best spent on, and not
where a long one would lead. SGD with Nesterov momentum 0.9 and weight decay 5e-4; one cycle of the learning rate, up
to 0.1, or 0.05 for fine-tuning ({tune} steps). None of these was tuned, and there is no augmentation.
`multiple=1`, other options as they are by default. Scores and batch-norm statistics see {scored} training batches.
A network that is cut before training is given the batch-norm statistics of these batches first, because scores run it
in evaluation mode.

Each cell is the mean test accuracy, and that of each seed. *Steps* are all that the weights have seen, those of the
dense network included. The control is the architecture that the cut after training found, with new random weights.
A step of the dense network costs more than one of a small network.

{accuracy}

{left}

## Against the control

Above 0, pruning did better; below, starting from scratch did. From seed to seed one and the same recipe differs by up
to {spread:.1f} points: differences that are smaller, or that change their sign from seed to seed, say little.

{compared}
"""


def main() -> None:
    """Run what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--state", type=Path, required=True, help="folder for finished runs")
    parser.add_argument("--out", type=Path, help="the page to write; else it is printed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=470, help="training steps; one epoch")
    parser.add_argument("--tune", type=int, default=235, help="fine-tuning steps")
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = tuple(torch.from_numpy(part) for part in fashion.split())
    study = Study(options.state, options.steps, options.tune, options.batch, data)
    for seed in options.seeds:
        dense = trained(study, seed)
        for score in SCORES:
            before(study, score, seed)
            after(study, dense, score, seed)
    text = page(study, options.seeds)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
