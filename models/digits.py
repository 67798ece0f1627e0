"""A small residual network trained on scikit-learn's 8 x 8 digits: real accuracy in seconds, small enough to commit.

`python -m models.digits` trains it (a few seconds, fixed seed, needs torch) and writes digits.onnx beside this file.
Batch normalisations stay nodes of their own, so that a pruner meets them. Scoring needs onnxruntime and scikit-learn.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.run import classes

if TYPE_CHECKING:
    from torch import nn

PATH = Path(__file__).with_name("digits.onnx")
"""The trained model: "image" [batch, 1, 8, 8] between 0 and 1 -> "logits" [batch, 10]."""

EPOCHS = 20
BATCH = 64

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def split() -> tuple[Images, Labels, Images, Labels]:
    """Training images, their labels, held-out images, their labels: 1,347 and 450, images [n, 1, 8, 8] from 0 to 1.

    >>> [part.shape for part in split()]
    [(1347, 1, 8, 8), (1347,), (450, 1, 8, 8), (450,)]
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels.astype(np.int64), test_size=450, stratify=labels, random_state=0)
    x_train, x_test, y_train, y_test = parts
    return x_train, y_train, x_test, y_test


def accuracy(model: str | Path | bytes) -> float:
    """The share of held-out digits that an ONNX file (or its bytes) names rightly."""
    _, _, images, labels = split()
    return float(np.mean(classes(model, images) == labels))


def network() -> "nn.Module":
    """The untrained network, 39 K parameters: a stem, two residual blocks of different widths, pooling, linear."""
    from torch import Tensor, nn

    def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        conv, bn = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
        # Two biases that are added would otherwise train in step, and the exporter would merge them into one.
        nn.init.normal_(bn.bias, std=0.1)
        return conv, bn

    class Block(nn.Module):
        def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv_bn(inputs, hidden, 3, stride)
            self.conv2, self.bn2 = conv_bn(hidden, outputs, 3)
            same = inputs == outputs and stride == 1
            self.shortcut = nn.Sequential(*(() if same else conv_bn(inputs, outputs, 1, stride)))
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            inner = self.relu(self.bn1(self.conv1(x)))
            out: Tensor = self.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))
            return out

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv_bn(1, 24, 3)
            self.relu = nn.ReLU()
            self.block1 = Block(24, 32, 24, stride=1)
            self.block2 = Block(24, 40, 40, stride=2)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(40, 10)

        def forward(self, image: Tensor) -> Tensor:
            features = self.block2(self.block1(self.relu(self.bn(self.conv(image)))))
            logits: Tensor = self.fc(self.pool(features).flatten(1))
            return logits

    return Network()


def train() -> "nn.Module":
    """The trained network, in eval mode; the same on each run of one torch version."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = network()
    images, labels = (torch.from_numpy(part) for part in split()[:2])
    used = len(images) // BATCH * BATCH  # the rest sits out an epoch
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.01, total_steps=EPOCHS * used // BATCH)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images))[:used].reshape(-1, BATCH):
            optimiser.zero_grad()
            loss = cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.05)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    return model.eval()


if __name__ == "__main__":
    from models.export import export_as_is

    export_as_is(train(), (1, 8, 8), PATH)
    print(f"{PATH.name}: {PATH.stat().st_size:,} bytes, held-out accuracy {accuracy(PATH):.4f}")
