"""Taking a clip apart in time: what changes from frame to frame, and what a single frame shows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

First = Literal["wrap", "zero", "repeat", "drop"]


def frame_difference(clip: Tensor, first: First) -> Tensor:
    """Each frame minus the one before it, signed. [..., T, H, W] -> same shape.

    first: frame 0 has none before it. wrap takes the last frame of the clip, as the releases of DCLR and FIMA do, zero
    leaves it empty, repeat gives it the difference of frame 1, drop leaves it out: T - 1 frames.
    """
    difference = clip - clip.roll(1, dims=-3)
    if first == "zero":
        difference[..., 0, :, :] = 0
    elif first == "repeat":
        difference[..., 0, :, :] = difference[..., 1, :, :]
    return difference[..., 1:, :, :] if first == "drop" else difference


def motion_clip(clip: Tensor, first: First) -> Tensor:
    """Frame differences to look at: gray where nothing moves. [..., T, H, W] in [0, 1] -> the same, FIMA's."""
    return (frame_difference(clip, first) + 1) / 2


def still_frame(clip: Tensor, frame: Tensor) -> Tensor:
    """One frame of each clip; `.expand_as(clip)` makes it a clip that stands still.

    clip [B, 3, T, H, W], frame int64 [B] -> [B, 3, 1, H, W].
    """
    return clip[torch.arange(len(clip), device=clip.device), :, frame][:, :, None]
