"""Residual networks over space and time: R3D, MC3 and R(2+1)D.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018 (arXiv:1711.11248). Layers
and parameter names are those of torchvision's video models, so that weights in that layout load by name. BE's release
has networks of its own: R3D with a pool behind the stem, as in Hara et al., "Can Spatiotemporal 3D CNNs Retrace the
History of 2D CNNs and ImageNet?", CVPR 2018 (arXiv:1711.09577), and another R(2+1)D; engine/official.py has its names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from vidssl.backbones.blocks import BACKBONES, Size3, kaiming, split_conv, split_width, xavier

Conv = Callable[[int, int, int, Size3], nn.Module]  # in width, out width, middle width of the block, stride
Block = Callable[[int, int, Size3], nn.Module]  # in width, width, stride; it knows its out_width


class ResNet3D(nn.Module):
    """clip [B, 3, T, H, W] -> map [B, out_channels, T / time, H / space, W / space]

    later: the block of stages 2 to 4, where it differs from that of stage 1. Every stage but the first halves its
    input; `keeps_time`: only in space.
    """

    def __init__(
        self,
        stem: nn.Sequential,
        block: Block,
        blocks: tuple[int, int, int, int],
        strides: tuple[int, int],
        *,
        later: Block | None = None,
        keeps_time: bool = False,
        init: Callable[[nn.Module], None] = kaiming,
    ):
        super().__init__()
        self.stem, self.strides = stem, strides
        later, half = later or block, (1 if keeps_time else 2, 2, 2)
        self.layer1 = stage(64, 64, block, blocks[0], (1, 1, 1))
        self.layer2 = stage(self.layer1[-1].out_width, 128, later, blocks[1], half)
        self.layer3 = stage(self.layer2[-1].out_width, 256, later, blocks[2], half)
        self.layer4 = stage(self.layer3[-1].out_width, 512, later, blocks[3], half)
        self.out_channels = self.layer4[-1].out_width
        init(self)

    def forward(self, clip: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(clip)))))


@BACKBONES.register("r3d18")
def r3d18() -> ResNet3D:
    """33,166,272 parameters. 512 channels, T / 8, H / 16. Kaiming initialization."""
    return ResNet3D(whole_stem(), basic(whole), (2, 2, 2, 2), (8, 16))


@BACKBONES.register("mc3_18")
def mc3_18() -> ResNet3D:
    """11,490,240 parameters. 512 channels, T, H / 16: from the second stage on, convolutions see one frame each, and no
    stage strides over time. Kaiming initialization."""
    return ResNet3D(whole_stem(), basic(whole), (2, 2, 2, 2), (1, 16), later=basic(flat), keeps_time=True)


@BACKBONES.register("r2plus1d18")
def r2plus1d18() -> ResNet3D:
    """31,300,125 parameters. 512 channels, T / 8, H / 16. Kaiming initialization. What FAME's release calls
    r2plus1d_18, and torchvision too."""
    return ResNet3D(split_stem(45), basic(split), (2, 2, 2, 2), (8, 16))


@BACKBONES.register("r2plus1d10")
def r2plus1d10() -> ResNet3D:
    """12,487,005 parameters. 512 channels, T / 8, H / 16. Kaiming initialization. One block a stage: what DCLR's
    release pretrains under the name r2plus1d_18."""
    return ResNet3D(split_stem(45), basic(split), (1, 1, 1, 1), (8, 16))


@BACKBONES.register("r2plus1d10_be")
def r2plus1d10_be() -> ResNet3D:
    """14,365,303 parameters. 512 channels, T / 8, H / 16. BE's initialization. What BE's release calls r2p1d: one block
    a stage, every convolution split by its own widths, those of the shortcuts, too."""
    stem = split_stem(split_width(3, 64, (3, 7, 7)))
    return ResNet3D(stem, basic(split_alone, split_point), (1, 1, 1, 1), (8, 16), init=xavier)


@BACKBONES.register("r3d18_be")
def r3d18_be() -> ResNet3D:
    """33,203,904 parameters. 512 channels, T / 16, H / 32. BE's initialization. What BE's release calls r3d18."""
    return pooled(basic(whole), (2, 2, 2, 2))


@BACKBONES.register("r3d34")
def r3d34() -> ResNet3D:
    """63,513,536 parameters. 512 channels, T / 16, H / 32. BE's initialization, and its release's network."""
    return pooled(basic(whole), (3, 4, 6, 3))


@BACKBONES.register("r3d50")
def r3d50() -> ResNet3D:
    """46,198,976 parameters. 2048 channels, T / 16, H / 32. BE's initialization, and its release's network."""
    return pooled(Bottleneck, (3, 4, 6, 3))


def pooled(block: Block, blocks: tuple[int, int, int, int]) -> ResNet3D:
    """BE's R3D: a stem that sees seven frames, and a pool behind it."""
    stem = whole_stem(frames=7).append(nn.MaxPool3d(3, stride=2, padding=1))
    return ResNet3D(stem, block, blocks, (16, 32), init=xavier)


def whole_stem(frames: int = 3) -> nn.Sequential:
    conv = nn.Conv3d(3, 64, (frames, 7, 7), (1, 2, 2), (frames // 2, 3, 3), bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(64), nn.ReLU(inplace=True))


def split_stem(middle: int) -> nn.Sequential:
    conv = split_conv(3, 64, middle, (1, 2, 2), (3, 7, 7))
    return nn.Sequential(*conv, nn.BatchNorm3d(64), nn.ReLU(inplace=True))


def whole(in_width: int, out_width: int, middle: int, stride: Size3) -> nn.Module:
    return nn.Conv3d(in_width, out_width, 3, stride, 1, bias=False)


def flat(in_width: int, out_width: int, middle: int, stride: Size3) -> nn.Module:
    return nn.Conv3d(in_width, out_width, (1, 3, 3), stride, (0, 1, 1), bias=False)


def split(in_width: int, out_width: int, middle: int, stride: Size3) -> nn.Module:
    return nn.Sequential(*split_conv(in_width, out_width, middle, stride))


def split_alone(in_width: int, out_width: int, middle: int, stride: Size3) -> nn.Module:
    return nn.Sequential(*split_conv(in_width, out_width, split_width(in_width, out_width), stride))


def point(in_width: int, out_width: int, stride: Size3) -> nn.Module:
    return nn.Conv3d(in_width, out_width, 1, stride, bias=False)


def split_point(in_width: int, out_width: int, stride: Size3) -> nn.Module:
    kernel = (1, 1, 1)
    return nn.Sequential(*split_conv(in_width, out_width, split_width(in_width, out_width, kernel), stride, kernel))


def stage(in_width: int, width: int, block: Block, blocks: int, stride: Size3) -> nn.Sequential:
    layers = [block(in_width, width, stride)]
    for _ in range(blocks - 1):
        layers.append(block(layers[-1].out_width, width, (1, 1, 1)))
    return nn.Sequential(*layers)


def basic(conv: Conv, shortcut: Callable[[int, int, Size3], nn.Module] = point) -> Block:
    return partial(BasicBlock, conv=conv, shortcut=shortcut)


class BasicBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions and a shortcut."""

    def __init__(self, in_width: int, width: int, stride: Size3, *, conv: Conv, shortcut: Callable[..., nn.Module]):
        super().__init__()
        self.out_width = width
        middle = split_width(in_width, width)  # from the block's widths, for both convolutions
        self.conv1 = nn.Sequential(conv(in_width, width, middle, stride), nn.BatchNorm3d(width), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(conv(width, width, middle, (1, 1, 1)), nn.BatchNorm3d(width))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != (1, 1, 1):
            self.downsample = nn.Sequential(shortcut(in_width, width, stride), nn.BatchNorm3d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class Bottleneck(nn.Module):
    """1 x 1 x 1 to `width`, 3 x 3 x 3 with the stride, 1 x 1 x 1 to four times `width`, and a shortcut."""

    def __init__(self, in_width: int, width: int, stride: Size3):
        super().__init__()
        self.out_width = 4 * width
        conv = nn.Conv3d(width, width, 3, stride, 1, bias=False)
        self.conv1 = nn.Sequential(point(in_width, width, (1, 1, 1)), nn.BatchNorm3d(width), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(conv, nn.BatchNorm3d(width), nn.ReLU(inplace=True))
        self.conv3 = nn.Sequential(point(width, self.out_width, (1, 1, 1)), nn.BatchNorm3d(self.out_width))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != (1, 1, 1) or in_width != self.out_width:
            self.downsample = nn.Sequential(point(in_width, self.out_width, stride), nn.BatchNorm3d(self.out_width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)
