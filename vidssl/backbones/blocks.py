"""Pieces that backbones share, and their registry.

A backbone is a module with `out_channels`, `strides` (time, space: input size over map size) and
forward: clip float32 [B, 3, T, H, W] -> map [B, out_channels, T / time, H / space, W / space], nothing behind it.
"""

from __future__ import annotations

from torch import nn

from vidssl.registry import Registry

BACKBONES = Registry("backbone", "vidssl.backbones")

Size3 = tuple[int, int, int]


def split_conv(in_width: int, out_width: int, middle: int, stride: Size3) -> list[nn.Module]:
    """3 x 3 x 3 convolution as one over space and one over time, batch norm and ReLU between. Tran et al.,
    "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018."""
    time, *space = stride
    return [
        nn.Conv3d(in_width, middle, (1, 3, 3), (1, *space), (0, 1, 1), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, out_width, (3, 1, 1), (time, 1, 1), (1, 0, 0), bias=False),
    ]


def split_width(in_width: int, out_width: int) -> int:
    """Channels between the two, such that the pair has the parameters of the whole."""
    return (27 * in_width * out_width) // (9 * in_width + 3 * out_width)


def kaiming(network: nn.Module) -> None:
    """Kaiming normal, fan out, for all convolutions; batch norm starts as 1 and 0 anyway."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
