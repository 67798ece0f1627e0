"""Fashion-MNIST (Xiao et al., arXiv 1708.07747), out of a Debian package: photographs of clothes in ten classes.

70,000 labelled images of 28 x 28 pixels, MIT licence. Needs apt-get on the first use; nothing is installed. The
networks are trained on first use too, which takes torch and some minutes.
"""

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.export import export_as_is
from models.packages import fetch_debian, make

if TYPE_CHECKING:
    from torch import nn

VERSION = 1  # of the trained networks, part of the cached files' names: raise it when they change
EPOCHS = 3
BATCH = 128
RATE = 0.1

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_PACKAGE = ("dataset-fashion-mnist", "0.0~git20200523.55506a9-1")
_SHA256 = {
    "train-images-idx3": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
_MEAN, _STD = 0.2860, 0.3530  # of the training images


def split() -> tuple[Images, Labels, Images, Labels]:
    """Training images, their labels, test images, their labels: 60,000 and 10,000, as the data set has them.

    Images are [n, 1, 28, 28], shifted and scaled to mean 0 and deviation 1 over the training images.
    """
    x_train, y_train, x_test, y_test = (_read(name) for name in _SHA256)
    return _scaled(x_train), y_train.astype(np.int64), _scaled(x_test), y_test.astype(np.int64)


def _read(name: str) -> npt.NDArray[np.uint8]:
    """An IDX file: two zeros, the type, the number of axes, a big-endian size for each axis, then the bytes."""
    path = fetch_debian(*_PACKAGE, f"usr/share/datasets/fashion-mnist/{name}-ubyte.gz", _SHA256[name])
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = [int(size) for size in np.frombuffer(content, ">u4", axes, offset=4)]
    return np.frombuffer(content, np.uint8, math.prod(shape), offset=4 + 4 * axes).reshape(shape)


def _scaled(pixels: npt.NDArray[np.uint8]) -> Images:
    images = (pixels[:, None].astype(np.float32) / 255 - np.float32(_MEAN)) / np.float32(_STD)
    return images.astype(np.float32)


def resnet20() -> Path:
    """ResNet-20 of width 16, trained here: "image" [batch, 1, 28, 28], as in `split`, -> "logits" [batch, 10].

    Its batch normalisations are nodes of their own.
    """
    from models import resnet

    return make(f"fashion-resnet20-{VERSION}.onnx", lambda path: _trained(resnet.network, path))


def mobilenet() -> Path:
    """A small MobileNetV2 (depthwise convolutions, inverted residuals), trained here; as `resnet20` in all else."""

    def network() -> "nn.Module":
        from models.mobilenet import small

        return small()

    return make(f"fashion-mobilenet-{VERSION}.onnx", lambda path: _trained(network, path))


def resnext() -> Path:
    """A small ResNeXt (convolutions in groups), trained here; as `resnet20` in all else."""

    def network() -> "nn.Module":
        from models.resnext import network

        return network()

    return make(f"fashion-resnext-{VERSION}.onnx", lambda path: _trained(network, path))


def train(model: "nn.Module", epochs: int = EPOCHS, seed: int = 0) -> "nn.Module":
    """Train in place: one cycle of SGD (Smith & Topin, arXiv 1708.07120), no augmentation; in eval mode at the end."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(1)
    images, labels = (torch.from_numpy(part) for part in split()[:2])
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(images), generator=generator), BATCH):
            optimiser.zero_grad()
            torch.autograd.backward(cross_entropy(model(images[chosen]), labels[chosen]))
            optimiser.step()
            schedule.step()
    return model.eval()


def _trained(network: Callable[[], "nn.Module"], path: Path) -> None:
    import torch

    torch.manual_seed(0)
    export_as_is(train(network()), (1, 28, 28), path)
