"""What is asked for, and what comes of it: a `Calibration` in, `Data` out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphprune.data import files
from graphprune.data.inputs import Feeds
from graphprune.errors import UsageError

WORDS = ("self", "noise", "none")
"""Sources that are no path."""


@dataclass(frozen=True)
class Calibration:
    """Where statistics come from, and how it is read.

    ``source`` is a path (an .npz or .npy file, a folder of such files or of images, a text), "self", "noise", "none",
    an iterable of batches (mappings from input names to arrays, or arrays for a model of one input), or None: the best
    that needs no data. A list with a path or a word in it is several sources, which are used together. At most
    ``samples`` of each are used, picked by the seed of the run, ``batch`` at a time. Text is cut into windows of
    ``length`` tokens of ``tokenizer``, a tokenizer.json. Pixels run from 0 to 1; ``mean`` is taken off and the rest
    divided by ``std``, one number or one a channel.
    """

    source: Any = None
    tokenizer: str | Path | None = None
    samples: int | None = None
    length: int = 256
    batch: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    cache: bool = True

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("batch", 1), ("length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} {value} makes no sense", hint=f"at least {least}")
        if 0 in self.std:
            raise UsageError("a std of 0 makes no sense", hint="leave it out, or give one number a channel")
        if len(self.sources) > 1 and any(isinstance(one, str) and one == "none" for one in self.sources):
            raise UsageError(
                "calib is 'none', which is no forward pass, and data as well", hint="give 'none' alone, or leave it out"
            )

    @property
    def sources(self) -> tuple[Any, ...]:
        """Every source alone; batches in a list are one."""
        several = isinstance(self.source, list | tuple) and any(isinstance(one, str | Path) for one in self.source)
        return tuple(self.source) if several else (self.source,)

    def files(self) -> list[Path]:
        """Every file that is read."""
        found = [file for one in self.sources if (path := path_of(one)) for file in files.files(path)]
        return [*found, *([Path(self.tokenizer)] if self.tokenizer else [])]


def path_of(source: Any) -> Path | None:
    """The file or folder that a source is read from, None where there is none."""
    return Path(source) if isinstance(source, str | Path) and source not in WORDS else None


@dataclass(frozen=True)
class Data:
    """``batches`` of inputs by name (none at all for "none"), and what they are: "40 samples from x.npz".

    ``shown`` is the first of them where they are the user's: what proof and latency are taken on. ``sample`` is a batch
    of each source, for what runs the model often.
    """

    batches: list[Feeds]
    what: str
    shown: Feeds | None = None
    notes: tuple[str, ...] = ()
    sample: list[Feeds] = field(default_factory=list)

    @property
    def words(self) -> str:
        """What statistics are from, for the report."""
        nothing = "no data: statistics follow from weights and normalisations alone"
        return f"statistics from {self.what}" if self.batches else nothing
