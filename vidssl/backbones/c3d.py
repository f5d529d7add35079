"""C3D with batch norm, as BE's release has it: convolutions only, no fully connected layers.

Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015 (arXiv:1412.0767). Parameter
names are those of the release, so that its weights load by name.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.backbones.blocks import BACKBONES, xavier

STAGES = {"1": (3, 64), "2": (64, 128), "3a": (128, 256), "3b": (256, 256), "4a": (256, 512)}
STAGES |= dict.fromkeys(("4b", "5a", "5b"), (512, 512))
POOLS = {"1": (1, 2, 2), "2": (2, 2, 2), "3b": (2, 2, 2), "4b": (2, 2, 2)}  # behind these


@BACKBONES.register("c3d")
class C3D(nn.Module):
    """27,661,440 parameters. BE's initialization.

    clip [B, 3, T, H, W] -> map [B, 512, T / 8, H / 16, W / 16]
    """

    out_channels = 512
    strides = (8, 16)

    def __init__(self):
        super().__init__()
        for name, (in_width, out_width) in STAGES.items():
            self.add_module(f"conv{name}", nn.Conv3d(in_width, out_width, 3, padding=1))
            self.add_module(f"bn{name}", nn.BatchNorm3d(out_width))
        xavier(self)

    def forward(self, clip: Tensor) -> Tensor:
        x = clip
        for name in STAGES:
            conv, norm = getattr(self, f"conv{name}"), getattr(self, f"bn{name}")
            x = F.relu(norm(conv(x)), inplace=True)
            x = F.max_pool3d(x, POOLS[name]) if name in POOLS else x
        return x
