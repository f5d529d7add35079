"""Clips of frame differences: what moves, without what stands still."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def frame_difference(clip: Tensor, *, first: Literal["roll", "zero", "drop"] = "roll") -> Tensor:
    """(frame - frame before + 1) / 2: a clip that is gray where nothing moves.

    clip [..., T, H, W] in [0, 1] -> same shape, in [0, 1]. The first frame has none before it: roll subtracts the last,
    as FIMA's release does (arXiv:2309.00297), zero itself, drop leaves it out, T - 1 frames.
    """
    before = clip.roll(1, dims=-3)
    if first == "zero":
        before[..., 0, :, :] = clip[..., 0, :, :]
    difference = (clip - before + 1) / 2
    return difference[..., 1:, :, :] if first == "drop" else difference
