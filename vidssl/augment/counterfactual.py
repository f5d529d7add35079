"""Clips that differ from what was filmed in one thing: another background, no foreground, no motion, another order.

Masks are bool, [B, 1, T, H, W] or [B, 1, 1, H, W] where all frames share one; true on the foreground.
"""

from __future__ import annotations

import torch
from torch import Tensor


def still_background(clip: Tensor, mask: Tensor) -> Tensor:
    """What stands behind the foreground, by the median over the frames in which a pixel is not covered.

    Where it always is, by the median over all frames. clip [B, 3, T, H, W] in [0, 1] -> [B, 3, 1, H, W].
    """
    seen = clip.masked_fill(mask, torch.nan).nanmedian(dim=2, keepdim=True).values
    return torch.where(seen.isnan(), clip.median(dim=2, keepdim=True).values, seen)


def composite(clip: Tensor, mask: Tensor, background: Tensor) -> Tensor:
    """The clip's foreground before a still background [B, 3, 1, H, W]. -> [B, 3, T, H, W]."""
    return torch.where(mask, clip, background)


def without_foreground(clip: Tensor, mask: Tensor) -> Tensor:
    """Every pixel that is foreground in any frame gets the mean color of the others. -> new tensor like clip.

    The same pixels in all frames, so that the hole does not move.
    """
    covered = mask.any(dim=2, keepdim=True).expand(-1, 3, clip.shape[2], -1, -1)
    rest = clip.masked_fill(covered, torch.nan).nanmean(dim=(2, 3, 4), keepdim=True)
    return torch.where(covered, rest.nan_to_num(0.5), clip)


def frozen(clip: Tensor) -> Tensor:
    """The middle frame, repeated. [B, 3, T, H, W] -> the same, expanded."""
    middle = clip.shape[2] // 2
    return clip[:, :, middle : middle + 1].expand_as(clip)


def backwards(clip: Tensor) -> Tensor:
    return clip.flip(2)


def reordered(clip: Tensor, order: Tensor) -> Tensor:
    """Frames in another order. order int64 [B, T] -> new tensor like clip [B, 3, T, H, W]."""
    return clip.gather(2, order[:, None, :, None, None].expand_as(clip))


def frame_order(frames: int, seed: int, number: int) -> Tensor:
    """A random order of a clip's frames that is not their own, a function of these numbers. int64 [frames]."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    order = torch.randperm(frames, generator=generator)
    while frames > 1 and bool((order.diff() == 1).all()):
        order = torch.randperm(frames, generator=generator)
    return order
