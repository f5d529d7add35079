"""Clips that mislead about their background, and clips that are turned.

Wang et al., "Removing the Background by Adding the Background", CVPR 2021 (arXiv:2009.05769); numbers follow the
authors' released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
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

    def frame(self, clip: Tensor) -> Tensor:
        """A frame for each clip. [B, 3, T, H, W] -> [B, 3, H, W]."""
        b, c, t, h, w = clip.shape
        if self.source == "noise":
            return torch.randn(b, c, h, w).to(clip)
        video = torch.arange(b) if self.source == "clip" else others(b)
        return clip[video.to(clip.device), :, torch.randint(t, (b,)).to(clip.device)]


def others(count: int) -> Tensor:
    """A random partner for each of `count` videos, never itself unless it is alone. int64 [count]."""
    order = torch.randperm(count)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


# ---------------------------------------------------------------------------------------------------------------------
# Turned and flipped clips, for pretext tasks

Turn = Callable[[Tensor], Tensor]  # of clips [B, 3, T, S, S], H pointing down


def flip(*axes: int) -> Turn:
    return lambda clip: clip.flip(axes)


def chain(*turns: Turn) -> Turn:
    """One after the other, the first first."""
    return lambda clip: reduce(lambda turned, turn: turn(turned), turns, clip)


def left(clip: Tensor) -> Tensor:
    """A quarter turn counter-clockwise."""
    return clip.transpose(3, 4).flip(3)


def right(clip: Tensor) -> Tensor:
    return clip.transpose(3, 4).flip(4)


SAME, TIME, UPSIDE_DOWN, MIRROR, HALF = flip(), flip(2), flip(3), flip(4), flip(3, 4)
ROTATIONS = (SAME, left, HALF, right)
TURNS: dict[str, tuple[Turn, ...]] = {
    "rotation4": ROTATIONS,
    "flip8": (UPSIDE_DOWN, MIRROR, left, HALF, right, chain(UPSIDE_DOWN, left), chain(MIRROR, left), SAME),
    "temporal16": tuple(chain(f, r) for f in (SAME, MIRROR, TIME, chain(MIRROR, TIME)) for r in ROTATIONS),
    "temporal16_released": 4 * ROTATIONS,  # the published code loses the flip: four turns under sixteen names
}


def turned(clip: Tensor, turns: Sequence[Turn]) -> Tensor:
    """Every clip in every turn, turn by turn. [B, 3, T, S, S] -> [turns * B, 3, T, S, S]."""
    return torch.cat([turn(clip) for turn in turns])
