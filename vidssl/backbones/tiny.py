"""A small (2+1)D network that learns motion on two CPU cores; for the demo and the tests."""

from __future__ import annotations

from torch import Tensor, nn

from vidssl.backbones.blocks import BACKBONES, Size3, split_conv, split_width
from vidssl.registry import PositiveInt


@BACKBONES.register("tiny")
class Tiny(nn.Module):
    """Four split convolutions. 292,273 parameters at width 16.

    clip [B, 3, T, H, W] -> map [B, 8 * width, T / 4, H / 8, W / 8]
    """

    strides = (4, 8)

    def __init__(self, *, width: PositiveInt):
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 8 * width)
        strides: tuple[Size3, ...] = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 1, 1))
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            middle = max(8, split_width(widths[i], widths[i + 1]))
            layers += split_conv(widths[i], widths[i + 1], middle, stride)
            layers += [nn.BatchNorm3d(widths[i + 1]), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.out_channels = widths[-1]

    def forward(self, clip: Tensor) -> Tensor:
        return self.layers(clip)
