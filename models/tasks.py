"""Trained models with what they are for: data to calibrate on, a score on other data, and how bad the score can get.

A `Subject` is all that a benchmark needs to ask what a smaller model still knows. The data to calibrate on are drawn by
a seed, the data that are scored are the same each time, and no sample is in both.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import digits, fashion, ocr, photos, real, speech, text
from models.run import classes

Model = str | Path | bytes
Feeds = dict[str, npt.NDArray[Any]]
Metrics = dict[str, float]

FASHION = 5_000  # test images that are scored
LINES = 200  # drawn lines that are scored


@dataclass(frozen=True)
class Metric:
    """One score: which way is better, what a model that knows nothing gets (None: no bound), and how it is printed."""

    name: str
    higher: bool
    chance: float | None
    form: str = ".1%"


@dataclass(frozen=True)
class Calibration:
    """Batches of inputs by name, and for each, where there are any, what is right: its "labels".

    ``sample`` is for what runs the model often: the first batch, or one of each source.
    """

    batches: list[Feeds]
    labels: list[Feeds] | None = None
    sample: list[Feeds] | None = None


@dataclass(frozen=True)
class Subject:
    """A model on its task; the first of ``metrics`` is the one that counts.

    ``budgets`` are "2x" (times fewer MACs) and "20%" (of the parameters outside embedding tables, fewer); ``options``
    are further ones of a request. ``samples`` are made to calibrate on, if not as many as is usual. ``loss`` (of a
    model that maps a batch to its outputs, and of a batch with "labels") is for scores from gradients.
    """

    title: str
    path: Callable[[], Path]
    calibration: Callable[[int], Calibration]
    measure: Callable[[Model], Metrics]
    metrics: tuple[Metric, ...]
    budgets: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=lambda: {"multiple": 1})
    samples: int | None = None
    loss: Callable[[Any, Any], Any] | None = None


ACCURACY = Metric("accuracy", True, 0.1)
AGREEMENT = Metric("agreement", True, None)
FEWER_MACS = ("1.5x", "2x", "3x")


@cache
def table_share(path: Path) -> float:
    """The share of a file's parameters that are in tables: matrices whose rows are picked by an index."""
    import onnx

    graph = onnx.load(path).graph
    picked = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    held = {tensor.name: tensor for tensor in graph.initializer}
    held |= {node.output[0]: a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute}
    sizes = {name: int(np.prod(tensor.dims)) for name, tensor in held.items() if tensor.data_type == 1}
    tables = sum(size for name, size in sizes.items() if name in picked)
    return tables / sum(sizes.values())


def _batches(images: npt.NDArray[np.float32], name: str, batch: int) -> list[Feeds]:
    return [{name: images[at : at + batch]} for at in range(0, len(images), batch)]


def _images(split: Callable[[], tuple[Any, ...]], n: int, seed: int, batch: int = 64) -> Calibration:
    """``n`` training images and their labels."""
    images, labels, *_ = split()
    chosen = np.random.default_rng(seed).permutation(len(images))[:n]
    parts = [chosen[at : at + batch] for at in range(0, n, batch)]
    return Calibration([{"image": images[part]} for part in parts], [{"labels": labels[part]} for part in parts])


def _cross_entropy(model: Any, batch: Any) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(model(batch)["logits"], torch.as_tensor(batch["labels"]))


@cache
def _held_out(split: Callable[[], tuple[Any, ...]], n: int) -> tuple[Any, Any]:
    return split()[2][:n], split()[3][:n]


@cache
def _dense_classes(path: Callable[[], Path], split: Callable[[], tuple[Any, ...]], n: int) -> npt.NDArray[np.int64]:
    return classes(path(), _held_out(split, n)[0])


def _named(path: Callable[[], Path], split: Callable[[], tuple[Any, ...]], n: int, model: Model) -> Metrics:
    """The share of held-out images that are named rightly, and as the dense model names them."""
    images, labels = _held_out(split, n)
    found = classes(model, images)
    return {
        "accuracy": float(np.mean(found == labels)),
        "agreement": float(np.mean(found == _dense_classes(path, split, n))),
    }


def _classifier(title: str, path: Callable[[], Path], split: Callable[[], tuple[Any, ...]], **sizes: int) -> Subject:
    return Subject(
        title,
        path,
        lambda seed: _images(split, sizes["calibration"], seed),
        partial(_named, path, split, sizes["held_out"]),
        (ACCURACY, AGREEMENT),
        FEWER_MACS,
        samples=sizes["calibration"],
        loss=_cross_entropy,
    )


def _digits_path() -> Path:
    return digits.PATH


@cache
def _dense_photos() -> npt.NDArray[np.int64]:
    return classes(real.mobilenet_v2_as_is(), photos.labelled()[0], 16)


def _photos(model: Model) -> Metrics:
    images, labels = photos.labelled()
    found = classes(model, images, 16)
    right = [int(name) in of for name, of in zip(found, labels, strict=True)]
    return {"accuracy": float(np.mean(right)), "agreement": float(np.mean(found == _dense_photos()))}


@cache
def _dense_lines() -> list[str]:
    return ocr.recognise(real.ocr_rec(), [image for image, _ in ocr.text_lines(LINES)])


def _lines(model: Model) -> Metrics:
    lines = ocr.text_lines(LINES)
    read = ocr.recognise(model, [image for image, _ in lines])
    wrong = sum(ocr.edit_distance(text, guess) for (_, text), guess in zip(lines, read, strict=True))
    same = [guess == dense for guess, dense in zip(read, _dense_lines(), strict=True)]
    return {"character error": wrong / sum(len(text) for _, text in lines), "agreement": float(np.mean(same))}


def _drawn(seed: int) -> Calibration:
    """Other lines than those that are scored, one a batch: each has its own width."""
    return Calibration([{"x": ocr.batch([image])} for image, _ in ocr.text_lines(64, 1000 + seed)])


def _next_token(model: Any, batch: Any) -> Any:
    import torch

    logits, ids = model(batch)["logits"], torch.as_tensor(batch["input_ids"])
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


SUBJECTS: dict[str, Subject] = {
    "digits": _classifier(
        "residual CNN on 8 x 8 digits, 39 K", _digits_path, digits.split, calibration=512, held_out=450
    ),
    "resnet20": _classifier(
        "ResNet-20 on Fashion-MNIST, 272 K", fashion.resnet20, fashion.split, calibration=1024, held_out=FASHION
    ),
    "mobilenet": _classifier(
        "small MobileNetV2 on Fashion-MNIST, 97 K", fashion.mobilenet, fashion.split, calibration=1024, held_out=FASHION
    ),
    "ocr": Subject(
        "PP-OCRv4 text recogniser, 2.7 M",
        real.ocr_rec,
        _drawn,
        _lines,
        (Metric("character error", False, 1.0), AGREEMENT),
        FEWER_MACS,
        samples=64,
    ),
    "photos": Subject(
        "MobileNetV2 on photographs, 3.5 M",
        real.mobilenet_v2_as_is,
        lambda seed: Calibration(_batches(photos.others(96, seed), "image", 16)),
        _photos,
        (Metric("accuracy", True, 0.001), AGREEMENT),
        FEWER_MACS,
        samples=96,
    ),
    "minilm": Subject(
        "MiniLM (BERT) sentence vectors, 22.6 M",
        real.minilm,
        lambda seed: Calibration(text.sentences(128, seed)),
        text.similarity,
        (Metric("pearson", True, 0.0, ".3f"), Metric("spearman", True, 0.0, ".3f"), Metric("cosine", True, 0.0, ".3f")),
        ("20%", "40%"),
        samples=128,
    ),
    "vad": Subject(
        "Silero VAD on speech in noise, 310 K",
        real.silero_vad,
        lambda seed: Calibration(speech.calibration(12, seed)),
        lambda model: {"auc": speech.detection(model)},
        (Metric("auc", True, 0.5, ".3f"),),
        ("20%", "40%"),
    ),
    "smollm2": Subject(
        "SmolLM2-135M, next tokens of news",
        real.smollm2,
        lambda seed: Calibration(text.windows(text.wikipedia(), text.DRAWN, seed)),
        text.causal,
        (Metric("perplexity", False, None, ".1f"), AGREEMENT, Metric("kl", False, None, ".3f")),
        ("10%", "20%", "30%"),
        options={"multiple": 1, "floor": 0.05},
        loss=_next_token,
    ),
}
"""Every subject by name, the quick ones first."""
