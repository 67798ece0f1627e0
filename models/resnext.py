"""A small ResNeXt (Xie et al., arXiv 1611.05431): residual blocks around a convolution in groups.

Three stages of one block each, in 8 groups: what a group keeps of its channels is no other group's business.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def network(width: int = 64, groups: int = 8, classes: int = 10, channels: int = 1) -> "nn.Module":
    """The untrained network: images [batch, channels, height, width] -> logits [batch, classes].

    >>> sum(parameter.numel() for parameter in network().parameters())
    75578
    """
    from torch import Tensor, nn

    def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    class Block(nn.Module):
        def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.narrow = conv_bn(inputs, inner, 1)
            self.grouped = conv_bn(inner, inner, 3, stride, groups)
            self.wide = conv_bn(inner, outputs, 1)
            self.shortcut = conv_bn(inputs, outputs, 1, stride)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            inner = self.relu(self.grouped(self.relu(self.narrow(x))))
            out: Tensor = self.relu(self.wide(inner) + self.shortcut(x))
            return out

    return nn.Sequential(
        conv_bn(channels, width // 4, 3, 2),
        nn.ReLU(),
        Block(width // 4, width, width // 2, 1),
        Block(width // 2, width, width, 2),
        Block(width, 2 * width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )
