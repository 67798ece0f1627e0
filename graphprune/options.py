"""The options of the command line that several commands share, and groups of them that are read as one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from inspect import Parameter, Signature, signature
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from graphprune.budget import TARGETS, Request, known_cost
from graphprune.data import Calibration
from graphprune.errors import UsageError
from graphprune.smallest import Goal

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", readable=False, help="The ONNX file to read.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the smaller model.")]
ScoreName = Annotated[str, typer.Option("--score", help="How positions are ranked; see graphprune scores.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of random scores, inputs and permutations, and of samples.")]
VerifyMode = Annotated[str, typer.Option("--verify", help="full, structure (nothing is run) or none.")]
Force = Annotated[bool, typer.Option("--force", help="Write even if nothing was cut, or over the input.")]
ReportPath = Annotated[Path | None, typer.Option("--report", help="Also write the report: .json, .html, .md or .txt.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Pictures = Annotated[
    list[Path] | None,
    typer.Option("--output", "-o", help="Also write what was found: .json, .csv, .html or .svg. May be given again."),
]
Include = Annotated[list[str] | None, typer.Option(help="Cut only Dims whose dim, weight or node name matches.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Leave Dims alone whose dim, weight or node name matches.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(help="Also cut: hidden (residual stream), head-size, all (both); cache, defaults (change inputs)."),
]
State = Annotated[
    Path | None, typer.Option(help="A file for what candidates came to: a run that was killed goes on where it was.")
]


@dataclass(frozen=True)
class Target:
    """What is to be left, and of what."""

    keep: Annotated[float | None, typer.Option(help="Share of every Dim that stays, such as 0.5.")] = None
    params: Annotated[
        str | None, typer.Option(metavar="SHARE|COUNT", help="Parameters that stay at the most: 0.5, or 60M.")
    ] = None
    macs: Annotated[
        str | None, typer.Option(metavar="SHARE|COUNT", help="Multiply-accumulates that stay at the most: 0.5, or 5G.")
    ] = None
    bytes: Annotated[
        str | None, typer.Option(metavar="SHARE|COUNT", help="Bytes of weights that stay at the most: 0.5, or 50MB.")
    ] = None
    activations: Annotated[
        str | None,
        typer.Option(metavar="SHARE|COUNT", help="Bytes of activations at once, at the most: 0.5, or 256KiB."),
    ] = None
    latency: Annotated[
        str | None, typer.Option(metavar="SHARE|TIME", help="Time that stays at the most: 0.7, or 5ms; with --profile.")
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option(help="What the model takes, measured by graphprune profile; also for the report."),
    ] = None
    allocator: Annotated[
        str | None,
        typer.Option(
            help="How these are shared out between Dims (default: global; dynamic with --latency and --score obs); "
            "see graphprune allocators."
        ),
    ] = None
    sensitivity: Annotated[
        Path | None, typer.Option(help="Share out by what graphprune sensitivity measured, in this file.")
    ] = None
    tries: Annotated[int | None, typer.Option(help="Candidates that --allocator search tries (default: 80).")] = None
    fitness: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND|trace",
            help="It is given the path of a model, and prints what --allocator search makes as high as it can; trace: "
            "how alike gradients stay.",
        ),
    ] = None
    state: State = None
    multiple: Annotated[int, typer.Option(help="Round the sizes of large Dims to this multiple (1: exact).")] = 8
    floor: Annotated[float, typer.Option(help="Least share of a Dim that stays.")] = 0.1
    include: Include = None
    exclude: Exclude = None
    allow: Allow = None
    finer: Annotated[
        bool, typer.Option(help="Let each group keep its own channels, each key head its own query heads.")
    ] = True

    def towards(self, cost: str | None) -> Request:
        """As the budget takes it; a ``cost`` that is brought down may be all there is."""
        free = cost is not None and getattr(self, known_cost(cost)) is None
        whole: Any = {cost: "100%"} if free else {}
        return replace(self, **whole).request

    def files(self) -> list[Path]:
        """Every file that is read."""
        return [path for path in (self.profile, self.sensitivity) if path]

    @property
    def request(self) -> Request:
        """As the budget takes it."""
        names, others, kinds = (tuple(given or ()) for given in (self.include, self.exclude, self.allow))
        limits = self.keep, self.params, self.macs, self.bytes, self.activations, self.latency
        return Request(*limits, self.multiple, self.floor, names, others, kinds, self.finer, self.allocator, self.tries)


@dataclass(frozen=True)
class Judging:
    """What says how good a model is."""

    metric: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="It is given the path of a model, and prints a number: prune finds the smallest."
        ),
    ] = None
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="The metric is an error.")] = False

    def options(self, suffix: str) -> dict[str, Any]:
        """As the library takes it, for models in files that end in ``suffix``."""
        return {**vars(self), "suffix": suffix}

    def goal(self, suffix: str, **more: Any) -> Goal | None:
        """The same as one object, and ``more`` of it."""
        return None if self.metric is None else Goal(**self.options(suffix), **more)


@dataclass(frozen=True)
class Holding:
    """What the smallest model is to hold."""

    drop: Annotated[float, typer.Option(help="How much worse the metric may get, as a share of it.")] = 0.01
    shrink: Annotated[str, typer.Option(metavar="|".join(TARGETS), help="The cost that is brought down.")] = "macs"
    curve: Annotated[Path | None, typer.Option(help="Also write all models on the way: .csv or .svg.")] = None


@dataclass(frozen=True)
class Source:
    """Where calibration data comes from, and how it is read."""

    calib: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH|self|noise|none",
            help="Data to calibrate and prove on: .npz, .npy, a folder of arrays or images, a text; or what stands in. "
            "Given several times: all together.",
        ),
    ] = None
    tokenizer: Annotated[Path | None, typer.Option(help="The tokenizer.json that text is read with.")] = None
    samples: Annotated[int | None, typer.Option(help="Use at most this many of each source, picked by --seed.")] = None
    length: Annotated[int, typer.Option(help="Tokens in a window of text.")] = 256
    batch: Annotated[int | None, typer.Option(help="Samples that are run at once (default: 8, or what fits).")] = None
    mean: Annotated[
        str, typer.Option(help="Taken off pixels from 0 to 1: a number, or one a channel: 0.5,0.5,0.5.")
    ] = "0"
    std: Annotated[str, typer.Option(help="What pixels are then divided by, in the same way.")] = "1"
    cache: Annotated[bool, typer.Option(help="Keep statistics on disk for the next run.")] = True

    @property
    def calibration(self) -> Calibration:
        """As the library takes it."""
        size = self.tokenizer, self.samples, self.length, self.batch
        pixels = numbers("mean", self.mean), numbers("std", self.std)
        return Calibration(self.calib or None, *size, *pixels, self.cache)


@dataclass(frozen=True)
class Repair:
    """Whether and how the weights that stay are changed."""

    compensate: Annotated[
        str | None,
        typer.Option(
            metavar="best|least-squares|sequential|bias|none",
            help="Change the weights that stay to make up for what goes, by least squares: layer after layer if that "
            "works (best, the default with data, and without a word), or all at once; or biases alone.",
        ),
    ] = None
    damping: Annotated[
        float | None,
        typer.Option(min=0.0, help="How strongly they are held to what they were (default: by held-out error)."),
    ] = None


class Compensating(TyperCommand):
    """A command whose ``--compensate`` may come without a value, or as ``--no-compensate``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``args`` with the value written out."""
        return super().parse_args(ctx, list(_written_out(args)))


def _written_out(args: Sequence[str]) -> Iterator[str]:
    for word, after in zip_longest(args, args[1:]):
        yield {"--no-compensate": "--compensate=none"}.get(word, word)
        if word == "--compensate" and (not after or after[0] == "-" or Path(after).suffix or Path(after).exists()):
            yield "best"


def numbers(name: str, text: str) -> tuple[float, ...]:
    """The numbers that the option ``name`` lists."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--{name} {text} holds no numbers", hint="such as 0.5, or 0.485,0.456,0.406") from error


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` as a command: each field of its dataclass parameters is an option of its own."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    flat: list[Parameter] = []
    for name, parameter in signature(function).parameters.items():
        if name not in groups:
            flat.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        kinds = get_type_hints(groups[name], include_extras=True)
        made = ((f.name, f.default, kinds[f.name]) for f in fields(groups[name]))
        flat += [Parameter(n, Parameter.KEYWORD_ONLY, default=d, annotation=kind) for n, d, kind in made]

    def command(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        function(**given, **made)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__annotations__ = {p.name: p.annotation for p in flat}
    command.__signature__ = Signature(flat)  # type: ignore[attr-defined]
    return command
