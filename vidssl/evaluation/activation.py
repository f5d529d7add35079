"""Where a network responds, whatever the class."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def activation_map(feature_map: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Mean over channels of the absolute values, each clip from 0 to 1, enlarged trilinearly.

    feature_map [B, C, t, h, w], size (T, H, W) -> float32 [B, T, H, W] in [0, 1]; 0 where all places answer alike. The
    maps of BE's figures (arXiv:2009.05769) look like this; how they were made was not published.
    """
    heat = feature_map.float().abs().mean(dim=1, keepdim=True)
    low, high = heat.amin(dim=(2, 3, 4), keepdim=True), heat.amax(dim=(2, 3, 4), keepdim=True)
    spread = high - low
    heat = (heat - low) / spread.where(spread > 0, 1)
    return F.interpolate(heat, size, mode="trilinear", align_corners=False)[:, 0]
