"""MobileNetV2, as torch modules whose names match the published ImageNet weights, so that they load strictly.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, arXiv:1801.04381, table 2.
"""

from itertools import pairwise

from torch import Tensor, nn

# expansion, channels, repeats, stride of the first repeat
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


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
    """Image [batch, 3, height, width] -> 1000 logits, width multiplier 1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu(3, 32, 3, 2)]
        blocks = [(t, c, s if i == 0 else 1) for t, c, n, s in STAGES for i in range(n)]
        widths = [32, *(channels for _, channels, _ in blocks)]
        for (inputs, outputs), (expansion, _, stride) in zip(pairwise(widths), blocks, strict=True):
            layers.append(Block(inputs, outputs, expansion, stride))
        self.features = nn.Sequential(*layers, conv_bn_relu(320, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out
