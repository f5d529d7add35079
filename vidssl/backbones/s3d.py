"""S3D and S3D-G: the layers of I3D with each convolution split into space and time, and a gate behind the pair.

Xie et al., "Rethinking Spatiotemporal Feature Learning: Speed-Accuracy Trade-offs in Video Classification", ECCV 2018
(arXiv:1712.04851), as BE's release has it for pretraining: the gate has a layer of its own, and the first convolution
strides over time in its spatial half. Parameter names are those of the release, without "feature." in front.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.backbones.blocks import BACKBONES, Size3, xavier
from vidssl.backbones.i3d import MIXED


class S3D(nn.Module):
    """clip [B, 3, T, H, W] -> map [B, 1024, T / 8, H / 32, W / 32]

    Batch norm has eps 1e-3 and momentum 0.001: its running statistics need some thousand steps.
    """

    out_channels = 1024
    strides = (8, 32)

    def __init__(self, *, gate: bool):
        super().__init__()
        # the spatial half strides over time as well, so that it drops every second frame
        self.add_module("sepConv1", SplitUnit(3, 64, 7, (2, 2, 2), gate))
        self.add_module("basicConv3d", Unit(64, 64, (1, 1, 1)))
        self.sep_conv2 = SplitUnit(64, 192, 3, (1, 1, 1), gate)
        for name, (width, branches) in MIXED.items():
            self.add_module(name.replace("mixed_", "sepInc_"), SplitMixed(width, branches, gate))
        xavier(self)

    def forward(self, clip: Tensor) -> Tensor:
        part = self._modules
        x = F.max_pool3d(part["sepConv1"](clip), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        x = F.max_pool3d(self.sep_conv2(part["basicConv3d"](x)), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for name in MIXED:
            if name == "mixed_4b":
                x = F.max_pool3d(x, 3, 2, 1)
            if name == "mixed_5b":
                x = F.max_pool3d(x, 2, 2)
            x = part[name.replace("mixed_", "sepInc_")](x)
        return x


@BACKBONES.register("s3dg")
def s3dg() -> S3D:
    """8,675,744 parameters. 1024 channels, T / 8, H / 32. BE's initialization. What BE's release pretrains as s3d."""
    return S3D(gate=True)


@BACKBONES.register("s3d")
def s3d() -> S3D:
    """7,910,048 parameters. 1024 channels, T / 8, H / 32. BE's initialization. S3D-G without its gates."""
    return S3D(gate=False)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_width: int, out_width: int, kernel: Size3, stride: Size3 = (1, 1, 1)):
        super().__init__()
        self.conv3d = nn.Conv3d(in_width, out_width, kernel, stride, tuple(k // 2 for k in kernel), bias=False)
        self.bn = nn.BatchNorm3d(out_width, eps=1e-3, momentum=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(x)), inplace=True)


class SplitUnit(nn.Module):
    """A unit over space, one over time, and the gate: a weight in (0, 1) for each channel, from its mean."""

    def __init__(self, in_width: int, out_width: int, kernel: int, stride: Size3, gate: bool):
        super().__init__()
        space = Unit(in_width, out_width, (1, kernel, kernel), stride)
        self.sep_conv = nn.Sequential(space, Unit(out_width, out_width, (kernel, 1, 1)))
        self.excitation = nn.Conv3d(out_width, out_width, 1) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.sep_conv(x)
        if self.excitation is None:
            return x
        return x * self.excitation(x.mean(dim=(2, 3, 4), keepdim=True)).sigmoid()


class SplitMixed(nn.Module):
    """The inception block: four branches, concatenated."""

    def __init__(self, width: int, branches: tuple[int, int, int, int, int, int], gate: bool):
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3 = branches
        point, one = (1, 1, 1), (1, 1, 1)
        self.branch0 = Unit(width, b0, point)
        self.branch1 = nn.Sequential(Unit(width, b1a, point), SplitUnit(b1a, b1b, 3, one, gate))
        self.branch2 = nn.Sequential(Unit(width, b2a, point), SplitUnit(b2a, b2b, 3, one, gate))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), Unit(width, b3, point))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)
