"""A residual network for small images (He et al., arXiv 1512.03385, section 4.2): three stages of n blocks each.

Depth 20 and width 16 is the ResNet-20 of that paper for one input channel, 272 K parameters. Where a stage changes
size its shortcut is a 1 x 1 convolution. Weights start as torch starts them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def network(depth: int = 20, width: int = 16, classes: int = 10, channels: int = 1) -> "nn.Module":
    """The untrained network: images [batch, channels, height, width] -> logits [batch, classes].

    >>> sum(parameter.numel() for parameter in network().parameters())
    272186
    """
    from torch import Tensor, nn

    def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv_bn(inputs, outputs, 3, stride)
            self.conv2, self.bn2 = conv_bn(outputs, outputs, 3)
            same = inputs == outputs and stride == 1
            self.shortcut = nn.Sequential(*(() if same else conv_bn(inputs, outputs, 1, stride)))
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            inner = self.relu(self.bn1(self.conv1(x)))
            out: Tensor = self.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))
            return out

    def stage(inputs: int, outputs: int, stride: int) -> list[Block]:
        blocks = (depth - 2) // 6
        return [Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1))]

    return nn.Sequential(
        *conv_bn(channels, width, 3),
        nn.ReLU(),
        *stage(width, width, 1),
        *stage(width, 2 * width, 2),
        *stage(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )
