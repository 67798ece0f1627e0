"""From a `Calibration` to `Data`: a method a source; several sources interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.data import cache, files, inversion, language, synthetic
from graphprune.data.inputs import Feeds, Input, checked, cut, fitting, ids, inputs
from graphprune.data.wanted import WORDS, Calibration, Data, path_of
from graphprune.errors import UsageError, VerifyError
from graphprune.formats import Format
from graphprune.graph import Array
from graphprune.memory import give_back

WINDOWS = 32
"""Windows of tokens that are used where no number of samples is given: 8,192 tokens."""
WRITTEN = 64
"""Windows that a model writes itself: text that costs nothing to find, and of which more helps."""
IMAGES = 256
"""Other samples that are made, or read from a folder, where no number is given."""
SIDE = 320
"""The most pixels along a side that a model leaves open, of images that are made."""
Progress = Callable[[str, float], None]


def bring(calib: Calibration, format: Format, model: Any, *, seed: int = 0, progress: Progress | None = None) -> Data:
    """Batches for ``model`` from where ``calib`` says; of several sources those of each, whatever their order.

    UsageError, saying what and where, for data that are not there, do not fit, or cannot be made for this model.
    """
    run = _Run(calib, format, model, inputs(model.graph), seed, progress or (lambda stage, done: None))
    if not run.takes:
        raise UsageError("the model has no inputs that data could go into", hint="use a score that needs nothing")
    parts = [run.of(source) for source in calib.sources]
    return run.together(parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class _Run:
    """One call of `bring`: a method a source."""

    calib: Calibration
    format: Format
    model: Any
    takes: dict[str, Input]
    seed: int
    progress: Progress

    def of(self, source: Any) -> Data:
        """What one source gives."""
        if path := path_of(source):
            return self.read(path)
        if not isinstance(source, str | None):
            return self.iterated(source)
        return {"self": self.itself, "noise": self.noise, "none": self.nothing, None: self.best}[source]()

    def together(self, parts: Sequence[Data]) -> Data:
        """Several sources as one: batches and what is shown do not depend on their order, words keep it."""
        keyed = {cache.data_key(part.batches): part for part in parts}
        if len(keyed) < len(parts):
            raise UsageError(
                f"two sources of calib are the same data: {' and '.join(part.what for part in parts)}",
                hint="give each once; --samples says how many of each are used",
            )
        sorted_ = [part for _, part in sorted(keyed.items())]
        return Data(
            interleaved([self._halved(part.batches) for part in sorted_], self.seed),
            " and ".join(part.what for part in parts),
            next((part.shown for part in sorted_ if part.shown), None),
            tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            [part.batches[0] for part in sorted_],
        )

    def _halved(self, batches: list[Feeds]) -> list[Feeds]:
        """At least two batches, if there are two samples that the model takes one by one."""
        count = _samples(batches[0], self.takes)
        return batches if len(batches) > 1 else self._cut(batches[0], None, -(-count // 2))

    def read(self, path: Path) -> Data:
        """What a file or a folder holds."""
        name = path.name
        if path.is_dir() or path.suffix.lower() in files.IMAGES:
            return self._data(self._folder(path), f"samples from {name}")
        if path.suffix.lower() not in files.ARRAYS and (self.calib.tokenizer or path.suffix == ".txt"):
            tokenizer = Path(self.calib.tokenizer) if self.calib.tokenizer else None
            arrays, notes = files.text(path, tokenizer, self.takes, self.calib.length)
            samples = self.calib.samples or WINDOWS
            return self._data(self._cut(arrays, samples), f"windows of {self._length(arrays)} tokens of {name}", notes)
        return self._data(self._cut(files.arrays(path, self.takes), self.calib.samples), f"samples from {name}")

    def iterated(self, source: Any) -> Data:
        """What the caller's batches hold, each as it is unless a batch size is asked for; or one set of arrays."""
        if isinstance(source, Mapping) or hasattr(source, "__array__"):
            return self._data(self._cut(self._named(source, 0), self.calib.samples), "samples given")
        if not isinstance(source, Iterable):
            raise UsageError(
                f"calib is a {type(source).__name__}", hint=f"give a path, batches, or one of {', '.join(WORDS)}"
            )
        found = (self._cut(self._named(batch, i), None, self.calib.batch or -1) for i, batch in enumerate(source))
        return self._data(_first(chain.from_iterable(found), self.takes, self.calib.samples), "samples given")

    def itself(self) -> Data:
        """Text that a causal language model writes, or images that suit the batch norms."""
        if language.logits_of(self.model.graph, self.takes) is not None:
            if not self._causal():
                raise UsageError(
                    "the model writes no text: what comes later changes its earlier logits, so it is not causal",
                    hint="give text with --calib FILE --tokenizer tokenizer.json, or --calib noise, or --calib none",
                )
            return self._written()
        if self._matchable():
            return self._matched()
        raise UsageError(
            "the model cannot make data itself: it is no language model (ids in, a number for each row of the table "
            "out), and has no batch norm behind an image",
            hint="give --calib FILE, --calib noise, or --calib none",
        )

    def noise(self) -> Data:
        """Random ids, smooth images, normal numbers."""
        shapes = self._shapes()
        random = np.random.default_rng(self.seed)
        arrays = {name: synthetic.noise(one, shapes[name], random) for name, one in self.takes.items()}
        return self._made(arrays, "samples of noise")

    def nothing(self) -> Data:
        """No data: no forward pass."""
        return Data([], "no data")

    def best(self) -> Data:
        """What needs no data and suits the model best."""
        writes = language.logits_of(self.model.graph, self.takes) is not None and self._causal()
        return self.itself() if writes or self._matchable() else self.noise()

    def _causal(self) -> bool:
        number = language.logits_of(self.model.graph, self.takes)
        assert number is not None
        return language.causal(self.format.run(self.model), number, self.takes, self.calib.length, self.seed)

    def _written(self) -> Data:
        graph, takes = self.model.graph, self.takes
        one, number = ids(takes), language.logits_of(graph, takes)
        assert one is not None
        assert number is not None
        windows = self.calib.samples or WRITTEN
        length = one.shape[1] if isinstance(one.shape[1], int) else self.calib.length
        watch = partial(self.progress, "writing text")
        tokens = self._kept(
            language.write,
            lambda: language.write(self.format, self.model, takes, number, windows, length, self.seed, watch),
            windows,
            length,
        )
        give_back()
        arrays = language.beside_as(takes, tokens)
        what = f"windows of {length} tokens that the model wrote itself"
        return self._data(self._cut(arrays, None), what, given=False)

    def _kept(self, maker: Callable[..., Array], make: Callable[[], Array], *sizes: object) -> Array:
        """What ``make`` makes of the model by the code of ``maker``, found on disk where it was made before."""
        if not self.calib.cache:
            return make()
        made_from = (cache.code_key(maker), cache.model_key(self.model.graph), self.seed, *sizes)
        return cache.remembered(made_from, lambda: {"made": make()})["made"]

    def _matchable(self) -> bool:
        first, *others = self.takes.values()
        return not others and first.pixels is not None and bool(synthetic.norms(self.model.graph))

    def _matched(self) -> Data:
        (name,) = self.takes
        one, shape = self.takes[name], self._shapes()[name]

        def make() -> Array:
            watch = partial(self.progress, "matching batch norms")
            return synthetic.matched(self.format, self.model, one, shape, self._images, self.seed, watch)

        drawn = self._kept(synthetic.matched, make, shape)

        def move() -> Array:
            watch = partial(self.progress, "following batch norms")
            runs = partial(self._images, batch=-1)
            return inversion.inverted(self.format, self.model, one, drawn, runs, self.seed, watch)

        code = cache.code_key(synthetic.matched, self.format.pull)
        try:
            made = self._kept(inversion.inverted, move, shape, code)
        except UsageError as error:
            why = f"images suit the first batch norms only, as there are no gradients to follow: {error.what}"
            return self._made({name: drawn}, "smooth images made to suit the model's batch norms", (why,))
        return self._made({name: made}, "images made to suit the model's batch norms")

    def _images(self, images: Array, batch: int | None = None) -> list[Feeds]:
        return self._cut(dict.fromkeys(self.takes, images), None, batch)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of arrays for as many samples as are wanted, at sizes that the model was seen to run at."""
        one = ids(self.takes)
        samples = self.calib.samples or (WINDOWS if one else IMAGES)
        runner = self.format.run(self.model)
        trials = self.format.trials(self.model, runner, self.seed)
        sizes = {**self.model.graph.example, **trials[-1][0]}
        if self.model.given is None:
            sizes |= self._roomy(runner, sizes)
        if one:
            sizes[str(one.shape[1])] = self.calib.length
        firsts = [other.shape[0] for other in self.takes.values() if other.shape]
        sizes |= {first: samples for first in firsts if isinstance(first, str)}
        shapes = {name: other.sized(sizes) for name, other in self.takes.items()}
        if any(isinstance(first, str) for first in firsts):
            return shapes
        runs = -(-samples // max((shape[0] for shape in shapes.values() if shape), default=1))
        return {name: (runs * shape[0], *shape[1:]) if shape else () for name, shape in shapes.items()}

    def _roomy(self, runner: Callable[[Feeds], Any], sizes: Mapping[str, int]) -> dict[str, int]:
        """``sizes`` with open sides of images doubled as long as the model takes them: of small ones all is border."""
        found, random = dict(sizes), np.random.default_rng(self.seed)
        sides = [one.shape[axis] for one in self.takes.values() if one.pixels for axis in one.pixels[1]]
        for side in dict.fromkeys(side for side in sides if isinstance(side, str)):
            while 2 * found[side] <= SIDE:
                larger = {**found, side: 2 * found[side]}
                try:
                    runner({name: synthetic.noise(one, one.sized(larger), random) for name, one in self.takes.items()})
                except VerifyError:
                    break
                found = larger
        return found

    def _made(self, arrays: Feeds, what: str, notes: tuple[str, ...] = ()) -> Data:
        """Arrays that nobody gave, if the model makes numbers of them."""
        batches = self._cut(arrays, None)
        for name, value in self.format.run(self.model)(batches[0]).items():
            if value.dtype.kind == "f" and np.isnan(value).any():
                raise UsageError(
                    f"the output {name!r} is NaN on noise", hint="give data that the model is made for: --calib FILE"
                )
        return self._data(batches, what, notes, given=False)

    def _folder(self, path: Path) -> list[Feeds]:
        """Batches from the files in ``path``, those of one shape together."""
        paths = files.files(path)
        most = self.calib.samples or IMAGES
        order = np.sort(np.random.default_rng(self.seed).permutation(len(paths))[:most])
        groups: dict[object, list[Feeds]] = {}
        for found in files.folder([paths[i] for i in order], self.takes, self._pixels):
            part = checked(self.takes, found)
            groups.setdefault(tuple(x.shape[1:] for x in part.values()), []).append(part)
        batches = chain.from_iterable(self._together(parts) for parts in groups.values())
        return _first(batches, self.takes, most)

    def _together(self, parts: list[Feeds]) -> list[Feeds]:
        fixed = {isinstance(one.shape[0], int) for one in self.takes.values() if one.shape}
        if len(fixed) > 1:
            return [batch for part in parts for batch in self._cut(part, None)]
        return self._cut({name: np.concatenate([part[name] for part in parts]) for name in self.takes}, None)

    def _pixels(self, data: Array) -> Array:
        for numbers in (self.calib.mean, self.calib.std):
            if len(numbers) not in (1, data.shape[-1]):
                raise UsageError(
                    f"mean and std have {len(numbers)} numbers, and the images {data.shape[-1]} channels",
                    hint="give one number, or one a channel",
                )
        return np.asarray((data - np.array(self.calib.mean)) / np.array(self.calib.std), np.float32)

    def _named(self, batch: Any, number: int) -> Mapping[str, Any]:
        if isinstance(batch, Mapping):
            return batch
        try:
            array = np.asarray(batch)
        except (ValueError, TypeError, RuntimeError) as error:
            raise UsageError(
                f"batch number {number} of calib is a {type(batch).__name__}",
                hint="give mappings from input names to arrays, or arrays for a model of one input",
            ) from error
        return files.named(array, self.takes, f"batch number {number} of calib is")

    def _cut(self, arrays: Mapping[str, Any], samples: int | None, batch: int | None = None) -> list[Feeds]:
        found = checked(self.takes, arrays)
        size = batch or self.calib.batch or fitting(self.model.graph, self.takes, found)
        return cut(self.takes, found, size, samples, self.seed)

    def _length(self, arrays: Mapping[str, Array]) -> int:
        one = ids(self.takes)
        return int(arrays[one.name].shape[1]) if one else 0

    def _data(self, batches: list[Feeds], what: str, notes: tuple[str, ...] = (), given: bool = True) -> Data:
        if not batches:
            raise UsageError("there is no calibration data", hint="give at least one batch of inputs")
        count = sum(_samples(batch, self.takes) for batch in batches)
        shown = self._cut(batches[0], None)[0] if given else None
        return Data(batches, f"{count:,} {what}", shown, notes, batches[:1])


def interleaved(parts: Sequence[list[Feeds]], seed: int) -> list[Feeds]:
    """The batches of all ``parts``, each spread evenly from its own start, which the seed picks.

    Two of a part stay neighbours, the first at an even place: every other batch (`Moments.halves`) holds half of each
    part. So whoever looks at the first batches only sees all parts, by their shares.
    """
    starts = np.random.default_rng(seed).random(len(parts))
    pairs: list[tuple[float, list[Feeds]]] = []
    for part, start in zip(parts, starts, strict=True):
        firsts = range(0, len(part) - 1, 2)
        pairs += [((i + start) / len(firsts), part[at : at + 2]) for i, at in enumerate(firsts)]
    pairs.sort(key=lambda pair: pair[0])
    return [batch for _, pair in pairs for batch in pair] + [part[-1] for part in parts if len(part) % 2]


def _samples(batch: Feeds, takes: Mapping[str, Input]) -> int:
    """How many samples a batch holds: the length of the first axis, of one that is not fixed if any."""
    able = [name for name, one in takes.items() if one.shape]
    name = next((name for name in able if isinstance(takes[name].shape[0], str)), able[0] if able else "")
    return len(batch[name]) if name else 1


def _first(batches: Iterable[Feeds], takes: Mapping[str, Input], samples: int | None) -> list[Feeds]:
    """Batches until there are ``samples``; the last is not divided."""
    found: list[Feeds] = []
    left = samples
    for batch in batches:
        found.append(batch)
        if left is not None and (left := left - _samples(batch, takes)) <= 0:
            break
    return found
