"""Pieces that backbones share, and their registry.

A backbone is a module with `out_channels`, `strides` (time, space: input size over map size) and
forward: clip float32 [B, 3, T, H, W] -> map [B, out_channels, T / time, H / space, W / space], nothing behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from vidssl.registry import Registry

BACKBONES = Registry("backbone", "vidssl.backbones")

Size3 = tuple[int, int, int]


def split_conv(in_width: int, out_width: int, middle: int, stride: Size3, kernel: Size3 = (3, 3, 3)) -> list[nn.Module]:
    """A convolution as one over space and one over time, batch norm and ReLU between. Tran et al., "A Closer Look at
    Spatiotemporal Convolutions for Action Recognition", CVPR 2018."""
    (t, h, w), (time, *space) = kernel, stride
    return [
        nn.Conv3d(in_width, middle, (1, h, w), (1, *space), (0, h // 2, w // 2), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, out_width, (t, 1, 1), (time, 1, 1), (t // 2, 0, 0), bias=False),
    ]


def split_width(in_width: int, out_width: int, kernel: Size3 = (3, 3, 3)) -> int:
    """Channels between the two, such that the pair has the parameters of the whole."""
    t, h, w = kernel
    return (t * h * w * in_width * out_width) // (h * w * in_width + t * out_width)


def kaiming(network: nn.Module) -> None:
    """Kaiming normal, fan out, for all convolutions; batch norm starts as 1 and 0 anyway."""
    for module in _drawn(network):
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def xavier(network: nn.Module) -> None:
    """How BE's release starts: convolutions Xavier uniform with gain sqrt(2), biases as PyTorch has them; scales of
    batch norm around 1 with spread 0.02."""
    for module in _drawn(network):
        if isinstance(module, nn.Conv3d):
            nn.init.xavier_uniform_(module.weight, gain=2**0.5)
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight, 1.0, 0.02)


def _drawn(network: nn.Module) -> Iterator[nn.Module]:
    """The modules whose weights exist: on the meta device nothing is drawn, and trying imports half of torch."""
    return (module for module in network.modules() if not any(p.is_meta for p in module.parameters(recurse=False)))
