"""A small network of joint 3D convolutions, for videos in which form matters beside motion; for study and tests."""

from __future__ import annotations

from torch import Tensor, nn

from vidssl.backbones.blocks import BACKBONES, Size3
from vidssl.registry import PositiveInt


class Block(nn.Module):
    """Two 3 x 3 x 3 convolutions beside a shortcut."""

    def __init__(self, in_width: int, out_width: int, stride: Size3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(in_width, out_width, 3, stride, 1, bias=False),
            nn.BatchNorm3d(out_width),
            nn.ReLU(inplace=True),
            nn.Conv3d(out_width, out_width, 3, 1, 1, bias=False),
            nn.BatchNorm3d(out_width),
        )
        self.shortcut = nn.Sequential()
        if in_width != out_width:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_width, out_width, 1, stride, bias=False), nn.BatchNorm3d(out_width)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, feature: Tensor) -> Tensor:
        return self.relu(self.layers(feature) + self.shortcut(feature))


@BACKBONES.register("tiny_r3d")
class TinyR3D(nn.Module):
    """A joint stem and three residual blocks. 208,840 parameters at width 8.

    clip [B, 3, T, H, W] -> map [B, 8 * width, T / 4, H / 8, W / 8]
    """

    strides = (4, 8)

    def __init__(self, *, width: PositiveInt):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.Conv3d(width, width, (3, 1, 1), 1, (1, 0, 0), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.Sequential(
            Block(width, width, (1, 1, 1)),
            Block(width, 4 * width, (2, 2, 2)),
            Block(4 * width, 8 * width, (2, 2, 2)),
        )
        self.out_channels = 8 * width

    def forward(self, clip: Tensor) -> Tensor:
        return self.blocks(self.stem(clip))
