"""Clips that mislead about their background: a still frame is added to all frames.

Wang et al., "Removing the Background by Adding the Background", CVPR 2021 (arXiv:2009.05769); numbers follow the
authors' released code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def add_frame(clip: Tensor, frame: Tensor, share: Tensor) -> Tensor:
    """The distracting clip: one still frame shines through all frames, the motion stays.

    clip [B, 3, T, H, W], frame [B, 3, H, W], share [B] in [0, 1] (lambda) -> (1 - share) * clip + share * frame, new.
    Convex, so that it makes no difference whether the two are normalized before or after.
    """
    return torch.lerp(clip, frame[:, :, None], share.to(clip).view(-1, 1, 1, 1, 1))


class StaticMix:
    """Adds a still frame to clips; draws anew at each call, on the CPU.

    gamma: largest share of the frame, drawn uniformly below it for the whole batch or for each sample. source: the
    frame is one of the clip's own, one of another video of the batch, or normal noise. p: probability that a clip is
    mixed at all.
    """

    def __init__(
        self,
        gamma: float,
        scope: Literal["batch", "sample"],
        source: Literal["clip", "other_video", "noise"],
        p: float,
    ):
        self.gamma, self.scope, self.source, self.p = gamma, scope, source, p

    def __call__(self, clip: Tensor) -> Tensor:
        count = len(clip)
        share = self.gamma * torch.rand(1 if self.scope == "batch" else count).expand(count)
        share = torch.where(torch.rand(count) < self.p, share, 0.0)
        return add_frame(clip, self.frame(clip), share)

    def pictures(self, clip: Tensor) -> dict[str, Tensor]:
        """To look at: clips [B, 3, T, H, W] in [0, 1] before and after."""
        return {"clip": clip, "distracting": self(clip).clamp(0, 1)}

    def frame(self, clip: Tensor) -> Tensor:
        """A frame for each clip. [B, 3, T, H, W] -> [B, 3, H, W]."""
        b, c, t, h, w = clip.shape
        if self.source == "noise":
            return torch.randn(b, c, h, w).to(clip)
        video = torch.arange(b) if self.source == "clip" else derangement(b)
        return clip[video.to(clip.device), :, torch.randint(t, (b,)).to(clip.device)]


def derangement(count: int) -> Tensor:
    """A random partner for each of `count` videos, never itself unless it is alone. int64 [count]."""
    order = torch.randperm(count)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner
