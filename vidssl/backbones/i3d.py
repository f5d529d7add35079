"""I3D: Inception-v1 inflated over time, as FAME's release has it.

Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017 (arXiv:1705.07750). Differs from DeepMind's network
in batch norm (eps 1e-5, learned scale) and in padding that depends on kernel and stride only; parameter names are those
of the release, so that its weights load by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.backbones.blocks import BACKBONES, Size3

MIXED = {  # in, [1x1x1 | 1x1x1, 3x3x3 | 1x1x1, 3x3x3 | pool, 1x1x1]
    "mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


@BACKBONES.register("i3d")
class I3D(nn.Module):
    """12,287,264 parameters.

    clip [B, 3, T, H, W] -> map [B, 1024, T / 8, H / 32, W / 32]
    """

    out_channels = 1024
    strides = (8, 32)

    def __init__(self):
        super().__init__()
        self.conv3d_1a_7x7 = Unit(3, 64, (7, 7, 7), (2, 2, 2))
        self.conv3d_2b_1x1 = Unit(64, 64, (1, 1, 1))
        self.conv3d_2c_3x3 = Unit(64, 192, (3, 3, 3))
        for name, (width, branches) in MIXED.items():
            self.add_module(name, Mixed(width, branches))
        self.pool_2a = Pool((1, 3, 3), (1, 2, 2))
        self.pool_3a = Pool((1, 3, 3), (1, 2, 2))
        self.pool_4a = Pool((3, 3, 3), (2, 2, 2))
        self.pool_5a = Pool((2, 2, 2), (2, 2, 2))

    def forward(self, clip: Tensor) -> Tensor:
        x = self.pool_2a(self.conv3d_1a_7x7(clip))
        x = self.pool_3a(self.conv3d_2c_3x3(self.conv3d_2b_1x1(x)))
        x = self.pool_4a(self.mixed_3c(self.mixed_3b(x)))
        x = self.mixed_4f(self.mixed_4e(self.mixed_4d(self.mixed_4c(self.mixed_4b(x)))))
        return self.mixed_5c(self.mixed_5b(self.pool_5a(x)))


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_width: int, out_width: int, kernel: Size3, stride: Size3 = (1, 1, 1)):
        super().__init__()
        self.pad = same_padding(kernel, stride)
        self.conv3d = nn.Conv3d(in_width, out_width, kernel, stride, bias=False)
        self.batch3d = nn.BatchNorm3d(out_width)
        if self.pad[::2] == self.pad[1::2]:  # the same on both sides: the convolution can do it
            self.conv3d.padding, self.pad = self.pad[::-2], ()

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.pad) if self.pad else x
        return F.relu(self.batch3d(self.conv3d(x)), inplace=True)


class Pool(nn.Module):
    """Max pooling over space, then over time: the same as at once, but faster. Zeros around it do no harm behind a
    ReLU."""

    def __init__(self, kernel: Size3, stride: Size3):
        super().__init__()
        self.kernel, self.stride, self.pad = kernel, stride, same_padding(kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        (t, *space), (time, *step) = self.kernel, self.stride
        x = F.max_pool3d(F.pad(x, self.pad), (1, *space), (1, *step), ceil_mode=True)
        return F.max_pool3d(x, (t, 1, 1), (time, 1, 1), ceil_mode=True) if t > 1 else x


class Mixed(nn.Module):
    """The inception block: four branches, concatenated."""

    def __init__(self, width: int, branches: tuple[int, int, int, int, int, int]):
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3 = branches
        self.branch_0 = Unit(width, b0, (1, 1, 1))
        self.branch_1 = nn.Sequential(Unit(width, b1a, (1, 1, 1)), Unit(b1a, b1b, (3, 3, 3)))
        self.branch_2 = nn.Sequential(Unit(width, b2a, (1, 1, 1)), Unit(b2a, b2b, (3, 3, 3)))
        self.branch_3 = nn.Sequential(Pool((3, 3, 3), (1, 1, 1)), Unit(width, b3, (1, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], dim=1)


def same_padding(kernel: Size3, stride: Size3) -> tuple[int, ...]:
    """Zeros before and after each axis, last axis first as F.pad wants them; the odd one goes behind."""
    pads: list[int] = []
    for k, s in zip(reversed(kernel), reversed(stride), strict=True):
        total = max(k - s, 0)
        pads += [total // 2, total - total // 2]
    return tuple(pads)
