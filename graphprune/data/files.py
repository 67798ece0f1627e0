"""Calibration data in files: arrays, images, text. Everything leaves here as arrays by input name, samples first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from graphprune.data.inputs import Input, companion, ids
from graphprune.errors import UsageError
from graphprune.graph import Array

Arrays = dict[str, Any]
ARRAYS = (".npz", ".npy")
IMAGES = (".png", ".jpg", ".jpeg")
_NPZ = "give an .npz file with one array an input: numpy.savez(path, name=array); or a text with --tokenizer"
_STRIDE = 32
"""Sizes that the model leaves open are rounded to this for images: what most networks halve to nothing."""


def files(path: Path) -> list[Path]:
    """The files that data in ``path`` are read from: itself, or the arrays and images in a folder, in their order."""
    if not path.is_dir():
        return [path]
    with _reading(path, "give a folder that can be read"):
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in (*ARRAYS, *IMAGES))
    if not found:
        raise UsageError(
            f"there are no arrays or images in the folder {path}", hint=f"put {', '.join((*ARRAYS, *IMAGES))} files in"
        )
    return found


def arrays(path: Path, takes: Mapping[str, Input]) -> Arrays:
    """The arrays in an .npz file, or the one in an .npy file for a model of one input."""
    with _reading(path, _NPZ), path.open("rb") as file:
        held = np.load(file)
        if isinstance(held, np.lib.npyio.NpzFile):
            return {name: held[name] for name in held.files}
    return named(held, takes, f"{path} holds")


def named(array: Any, takes: Mapping[str, Input], where: str) -> Arrays:
    """A single array under the name of the only input."""
    if len(takes) != 1:
        raise UsageError(
            f"{where} a single array without a name, and the model has {len(takes)} inputs: {', '.join(takes)}",
            hint=_NPZ,
        )
    return {next(iter(takes)): array}


def folder(paths: Sequence[Path], takes: Mapping[str, Input], pixels: Callable[[Array], Array]) -> Iterator[Arrays]:
    """What each of some files holds; a single sample gets an axis in front. ``pixels`` brings images to a range."""
    for file in paths:
        if file.suffix.lower() in ARRAYS:
            found = arrays(file, takes)
            yield {
                name: x[None] if name in takes and np.ndim(x) == len(takes[name].shape) - 1 else x
                for name, x in found.items()
            }
        else:
            one = _image_input(file, takes)
            yield {one.name: image(file, one, pixels)}


def _image_input(file: Path, takes: Mapping[str, Input]) -> Input:
    one = next(iter(takes.values()))
    if len(takes) > 1 or one.pixels is None:
        shown = "; ".join(f"{name} {list(other.shape)}" for name, other in takes.items())
        raise UsageError(f"{file} is an image, and the model takes {shown}", hint=_NPZ)
    return one


def image(path: Path, one: Input, pixels: Callable[[Array], Array]) -> Array:
    """An image as a batch of one, in the size, the channels and the layout of the input ``one``."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise UsageError("images need Pillow", hint='pip install pillow, or "graphprune[data]"') from error
    assert one.pixels is not None
    channels, space = one.pixels
    mode = {"1": "L", "4": "RGBA"}.get(str(one.shape[channels]), "RGB")
    with _reading(path, "leave it out, or save it again as PNG"), Image.open(path) as file:
        held = file.convert(mode)
        height, width = _size([one.shape[axis] for axis in space], held.height, held.width)
        data = np.asarray(held.resize((width, height), Image.Resampling.BILINEAR))
    data = data.reshape(height, width, -1)
    if one.dtype != np.uint8:
        data = pixels(data.astype(np.float32) / 255)
    return (data if channels == 3 else data.transpose(2, 0, 1))[None]


def _size(wanted: Sequence[int | str], height: int, width: int) -> tuple[int, int]:
    """Fixed sizes as they are; an open one keeps the image's proportion, rounded."""
    tall, wide = wanted
    scale = tall / height if isinstance(tall, int) else wide / width if isinstance(wide, int) else 1.0
    rounded = [max(1, round(size * scale / _STRIDE)) * _STRIDE for size in (height, width)]
    return tall if isinstance(tall, int) else rounded[0], wide if isinstance(wide, int) else rounded[1]


def text(path: Path, tokenizer: Path | None, takes: Mapping[str, Input], length: int) -> tuple[Arrays, tuple[str, ...]]:
    """Windows of ``length`` tokens of a text and what goes beside them; remarks on the tokenizer."""
    one = ids(takes)
    if one is None:
        raise UsageError(f"{path} is text, and no input of the model picks rows of a table", hint=_NPZ)
    if tokenizer is None:
        raise UsageError(f"{path} is text, which needs a tokenizer", hint="give --tokenizer tokenizer.json")
    with _reading(path, "give text in UTF-8, an .npz or .npy file, or a folder"):
        words = path.read_text(encoding="utf-8")
    tokens, known = _encode(tokenizer, words, one)
    found = np.asarray(tokens, np.int64)
    size = one.shape[1] if isinstance(one.shape[1], int) else length
    if len(found) < size:
        raise UsageError(
            f"{path} has {len(found)} tokens, fewer than one window of {size}", hint="give more text, or --length"
        )
    remark = f"the tokenizer knows {known:,} tokens, the table of {one.name!r} has {one.rows:,} rows: is it its own?"
    windows = found[: len(found) // size * size].reshape(-1, size)
    return beside(takes, windows), () if known == one.rows else (remark,)


def beside(takes: Mapping[str, Input], windows: Array) -> Arrays:
    """``windows`` of ids, and for every other input what goes beside them."""
    one = ids(takes)
    assert one is not None
    made: Arrays = {one.name: windows}
    for name, other in takes.items():
        if name != one.name:
            if other.dtype.kind == "f" or not 0 < len(other.shape) < 3:
                raise UsageError(f"text does not say what the input {name!r} is to be", hint=_NPZ)
            made[name] = companion(other, windows.shape[-len(other.shape) :])
    return made


def _encode(tokenizer: Path, words: str, one: Input) -> tuple[list[int], int]:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        hint = 'pip install tokenizers, or "graphprune[data]"; or give token ids as an .npz file'
        raise UsageError("text needs the package tokenizers", hint=hint) from error
    try:
        encoder = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the package raises nothing more special
        raise UsageError(
            f"cannot read the tokenizer {tokenizer}: {str(error)[:200]}", hint="give the model's tokenizer.json"
        ) from error
    encoder.no_truncation()
    encoder.no_padding()
    known = encoder.get_vocab_size()
    if known > one.rows:
        raise UsageError(
            f"the tokenizer {tokenizer} knows {known:,} tokens, and the table of {one.name!r} has {one.rows:,} rows",
            hint="give the tokenizer.json that the model was made with",
        )
    return list(encoder.encode(words, add_special_tokens=False).ids), known


@contextmanager
def _reading(path: Path, hint: str) -> Iterator[None]:
    """Whatever goes wrong with the file ``path`` becomes one message."""
    try:
        yield
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        why = getattr(error, "strerror", None) or (str(error) or "it is empty").partition(". ")[0]
        raise UsageError(f"cannot read inputs from {path}: {why}", hint=hint) from error
