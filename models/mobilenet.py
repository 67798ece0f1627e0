"""MobileNetV2, as torch modules whose names match the published ImageNet weights, so that they load strictly.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, arXiv:1801.04381, table 2. `small` has
the same blocks for images of 28 x 28 pixels in grey.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

Stage = tuple[int, int, int, int]  # expansion, channels, repeats, stride of the first repeat
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
SMALL = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 3, 2), (4, 64, 2, 1))


def conv_bn_relu(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class Block(nn.Module):
    """Inverted residual: widen by 1x1, filter each channel by 3x3, narrow by 1x1; add the input when shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [conv_bn_relu(inputs, hidden, 1)] if expansion > 1 else []
        depthwise = conv_bn_relu(hidden, hidden, 3, stride, groups=hidden)
        self.conv = nn.Sequential(*widen, depthwise, nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Image [batch, channels, height, width] -> logits; ``widths`` of the first and the last convolution."""

    def __init__(
        self,
        stages: Sequence[Stage] = STAGES,
        channels: int = 3,
        classes: int = 1000,
        stride: int = 2,
        widths: tuple[int, int] = (32, 1280),
    ) -> None:
        super().__init__()
        first, last = widths
        layers: list[nn.Module] = [conv_bn_relu(channels, first, 3, stride)]
        blocks = [(t, c, s if i == 0 else 1) for t, c, n, s in stages for i in range(n)]
        sizes = [first, *(outputs for _, outputs, _ in blocks)]
        for (inputs, outputs), (expansion, _, step) in zip(pairwise(sizes), blocks, strict=True):
            layers.append(Block(inputs, outputs, expansion, step))
        self.features = nn.Sequential(*layers, conv_bn_relu(sizes[-1], last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def small() -> MobileNetV2:
    """For 28 x 28 pixels, one channel and ten classes; untrained.

    >>> sum(parameter.numel() for parameter in small().parameters())
    90890
    """
    return MobileNetV2(SMALL, channels=1, classes=10, stride=1, widths=(16, 128))
