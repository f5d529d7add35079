"""Residual networks over space and time: R3D and R(2+1)D.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018 (arXiv:1711.11248). Layers
and parameter names are those of torchvision's video models, so that weights in that layout load by name.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vidssl.backbones.blocks import BACKBONES, Size3, kaiming, split_conv, split_width

Conv = Callable[[int, int, int, Size3], nn.Module]  # in width, out width, middle width, stride


class ResNet3D(nn.Module):
    """clip [B, 3, T, H, W] -> map [B, 512, T / 8, H / 16, W / 16]"""

    out_channels = 512
    strides = (8, 16)

    def __init__(self, stem: nn.Sequential, conv: Conv, blocks: tuple[int, int, int, int]):
        super().__init__()
        self.stem = stem
        self.layer1 = stage(64, 64, conv, blocks[0], stride=1)
        self.layer2 = stage(64, 128, conv, blocks[1], stride=2)
        self.layer3 = stage(128, 256, conv, blocks[2], stride=2)
        self.layer4 = stage(256, 512, conv, blocks[3], stride=2)
        kaiming(self)

    def forward(self, clip: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(clip)))))


@BACKBONES.register("r3d18")
def r3d18() -> ResNet3D:
    """33,166,272 parameters."""
    return ResNet3D(whole_stem(), whole, (2, 2, 2, 2))


@BACKBONES.register("r2plus1d18")
def r2plus1d18() -> ResNet3D:
    """31,300,125 parameters. What FAME's release calls r2plus1d_18, and torchvision too."""
    return ResNet3D(split_stem(), split, (2, 2, 2, 2))


@BACKBONES.register("r2plus1d10")
def r2plus1d10() -> ResNet3D:
    """12,487,005 parameters. One block a stage: what DCLR's release pretrains under the name r2plus1d_18."""
    return ResNet3D(split_stem(), split, (1, 1, 1, 1))


def whole_stem() -> nn.Sequential:
    conv = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(64), nn.ReLU(inplace=True))


def split_stem() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
        nn.BatchNorm3d(45),
        nn.ReLU(inplace=True),
        nn.Conv3d(45, 64, (3, 1, 1), 1, (1, 0, 0), bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(inplace=True),
    )


def whole(in_width: int, out_width: int, middle: int, stride: Size3) -> nn.Module:
    return nn.Conv3d(in_width, out_width, 3, stride, 1, bias=False)


def split(in_width: int, out_width: int, middle: int, stride: Size3) -> nn.Module:
    return nn.Sequential(*split_conv(in_width, out_width, middle, stride))


def stage(in_width: int, out_width: int, conv: Conv, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_width, out_width, conv, stride)
    return nn.Sequential(first, *(BasicBlock(out_width, out_width, conv, 1) for _ in range(blocks - 1)))


class BasicBlock(nn.Module):
    def __init__(self, in_width: int, out_width: int, conv: Conv, stride: int):
        super().__init__()
        middle = split_width(in_width, out_width)  # from the block's widths, for both convolutions
        strides = (stride,) * 3
        self.conv1 = nn.Sequential(
            conv(in_width, out_width, middle, strides), nn.BatchNorm3d(out_width), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(conv(out_width, out_width, middle, (1, 1, 1)), nn.BatchNorm3d(out_width))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_width, out_width, 1, strides, bias=False), nn.BatchNorm3d(out_width)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)
