"""FAME's foreground: where a clip moves, refined by color; and pasting it on another background.

Ding et al., "Motion-Aware Contrastive Video Representation Learning via Foreground-Background Merging", CVPR 2022
(arXiv:2109.15130), section 3. Numbers, constants and quirks follow the authors' released code; ties, which it leaves
to chance, go to the lower pixel index.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from vidssl.augment.blur import blur_matrix, kernel_size

FOREGROUND_SAMPLE, BACKGROUND_SAMPLE = 0.5, 0.1  # shares of the frame that color statistics are taken from
BINS = 10  # per color axis
EPS = 1e-8


def foreground_mask(
    clip: Tensor,
    *,
    beta: float,
    kind: Literal["fame", "seed", "grid", "gauss"] = "fame",
    hue: Literal["code", "fixed"] = "code",
) -> Tensor:
    """Which pixels belong to what moves, the same for all frames of a clip.

    clip [B, 3, T, H, W] float32 in [0, 1] -> mask [B, H, W], true on the foreground: exactly int(beta * H * W) pixels
    for fame and seed, round(16 * beta) of 4 x 4 cells for grid, all for beta = 1. gauss alone is soft: float32 in
    [0, 1], whatever beta.
    """
    b, _, _, h, w = clip.shape
    if kind == "gauss":
        return gauss_mask(h, w, device=clip.device).expand(b, h, w)
    if beta >= 1:
        return clip.new_ones(b, h, w, dtype=torch.bool)
    seed = seed_region(clip)
    ones = int(beta * h * w)
    if kind == "grid":
        return grid_mask(seed, round(16 * beta))
    if kind == "seed":
        return top_mask(seed.flatten(1), ones).view(b, h, w)
    probability = normalize(blur(color_posterior(seed, color_bins(clip, hue=hue))))
    return top_mask(probability.flatten(1), ones).view(b, h, w)  # M tilde of eq. 4


def merge(clip: Tensor, background: Tensor, mask: Tensor) -> Tensor:
    """Paste the clip's foreground on a background. Eq. 5.

    clip, background [B, 3, T, H, W]; mask [B, H, W], bool or the foreground's share -> new tensor like clip.
    """
    mask = mask[:, None, None]
    if mask.dtype is torch.bool:
        return torch.where(mask, clip, background)
    return clip * mask + background * (1 - mask)


def swap(clip: Tensor, donor_index: Tensor, mask: Tensor) -> Tensor:
    """Paste each clip's foreground on another clip of the batch: merge(clip, clip[donors], mask).

    donors int64 [B], on the CPU. There, clips are pasted one by one, so that none is copied first.
    """
    if clip.device.type != "cpu" or mask.dtype is not torch.bool:
        return merge(clip, clip[donor_index.to(clip.device)], mask)
    swapped = torch.empty_like(clip, memory_format=torch.contiguous_format)
    for own, donor, foreground, into in zip(clip, donor_index.tolist(), mask, swapped, strict=True):
        torch.where(foreground, own, clip[donor], out=into)
    return swapped


def motion(clip: Tensor) -> Tensor:
    """Mean absolute difference of adjacent frames, summed over color. [B, 3, T, H, W] -> [B, H, W]. Eq. 2."""
    return torch.stack([(frames[:, 1:] - frames[:, :-1]).abs().sum(0).mean(0) for frames in clip])


def seed_region(clip: Tensor) -> Tensor:
    """Blurred motion in [0, 1]. [B, 3, T, H, W] -> [B, H, W]."""
    return normalize(blur(motion(clip)))


def color_bins(clip: Tensor, *, hue: Literal["code", "fixed"] = "code") -> Tensor:
    """Color of each pixel's mean over time, as one of 10 x 10 x 10 bins in HSV. [B, 3, T, H, W] -> int64 [B, H, W].

    hue=code multiplies the angle, which is in radians already, by 2 pi once more, as the released code does.
    """
    u, w, value = hsv_coordinates(clip.mean(dim=2), hue=hue)
    scale = BINS - 1  # order of operations as released: values that end in .5 depend on it
    a, e, v = (torch.round(scale * axis + 1).long() for axis in (u, w, value))  # half to even
    return a + BINS * (e - 1) + BINS * BINS * (v - 1)  # 1 .. 1000


def hsv_coordinates(image: Tensor, *, hue: Literal["code", "fixed"]) -> tuple[Tensor, Tensor, Tensor]:
    """The hue circle scaled by saturation and shifted to [0, 1]^2, and value. [B, 3, H, W] -> 3 x [B, H, W]."""
    value, largest = image.max(dim=1)
    span = value - image.min(dim=1).values
    saturation = span / (value + EPS)
    red, green, blue = image.unbind(dim=1)
    divisor = torch.where(span == 0, torch.ones_like(span), span)
    sectors = torch.stack([(green - blue), (blue - red) + 2 * divisor, (red - green) + 4 * divisor]) / divisor
    sector = sectors.gather(0, largest[None])[0]
    angle = 2 * torch.pi * ((sector / 6) % 1)  # radians
    if hue == "code":
        angle = 2 * torch.pi * angle
    return (saturation * angle.cos() + 1) / 2, (saturation * angle.sin() + 1) / 2, value


def color_posterior(seed: Tensor, bins: Tensor) -> Tensor:
    """How much more often a pixel's color occurs where most moves than where least does. Eq. 3.

    seed [B, H, W], bins int64 [B, H, W] -> [B, H, W] in [0, 1].
    """
    foreground, background = color_histograms(seed, bins)
    foreground = foreground / (foreground.sum(1, keepdim=True) + EPS)
    background = background + 1  # smoothing on the background only, as released
    background = background / (background.sum(1, keepdim=True) + EPS)
    share = foreground / (background + foreground)
    return share.gather(1, bins.flatten(1)).view_as(seed)


def color_histograms(seed: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Colors of the pixels with the largest and with the smallest seed, counted -> 2 x float32 [B, 1000]."""
    b, h, w = seed.shape
    flat_seed, flat_bins = seed.flatten(1), bins.flatten(1)
    counts = []
    for ranked, share in ((flat_seed, FOREGROUND_SAMPLE), (-flat_seed, BACKGROUND_SAMPLE)):
        sample = top_mask(ranked, int(share * h * w)).to(seed.dtype)
        counts.append(seed.new_zeros(b, BINS**3).scatter_add_(1, flat_bins, sample))
    return counts[0], counts[1]


def grid_mask(seed: Tensor, cells: int) -> Tensor:
    """The most moving cells of a 4 x 4 grid. [B, H, W] -> bool [B, H, W]."""
    b, h, w = seed.shape
    chosen = top_mask(grid_activation(seed), cells).view(b, 4, 4)
    rows, columns = _cell_of(h, seed.device), _cell_of(w, seed.device)
    return chosen[:, rows][:, :, columns]


def grid_activation(seed: Tensor) -> Tensor:
    """Seed summed over each cell of a 4 x 4 grid, row by row. [B, H, W] -> [B, 16]."""
    b, h, w = seed.shape
    rows, columns = _cell_of(h, seed.device), _cell_of(w, seed.device)
    by_row = seed.new_zeros(b, 4, w).index_add_(1, rows, seed)
    return seed.new_zeros(b, 4, 4).index_add_(2, columns, by_row).flatten(1)


def _cell_of(size: int, device: torch.device) -> Tensor:
    borders = torch.tensor([int(size / 4 * i) for i in (1, 2, 3)])
    return torch.bucketize(torch.arange(size), borders, right=True).to(device)


def gauss_mask(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """A soft center prior that looks at no content. -> [H, W], 1 at its peak."""
    axes = [torch.exp(-((torch.arange(n) - (n - 1) / 2) ** 2) / (2 * (n / 3) ** 2)) for n in (h, w)]
    mask = axes[0][:, None] * axes[1]
    return (mask / mask.max()).to(device)


def top_mask(values: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, lower index first among equals. [B, N] -> bool [B, N]."""
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    cut = values.kthvalue(values.shape[1] - count + 1, dim=1, keepdim=True).values
    above, tied = values > cut, values == cut
    wanted = count - above.sum(1, keepdim=True)
    return above | (tied & (tied.cumsum(1) <= wanted))


def normalize(image: Tensor) -> Tensor:
    """Each image of [B, H, W] stretched to [0, 1]."""
    image = image - image.amin(dim=(1, 2), keepdim=True)
    return image / (image.amax(dim=(1, 2), keepdim=True) + EPS)


def blur(image: Tensor) -> Tensor:
    """Gaussian blur of [B, H, W] by a tenth of the frame, reflected at the border.

    The kernel follows the height; the released code takes the crop size, which equals both sides.
    """
    h, w = image.shape[-2:]
    size = kernel_size(h)
    rows, columns = (_blur_matrix(n, size, size / 3).to(image.device) for n in (h, w))
    return rows @ image @ columns.T


_blur_matrix = cache(blur_matrix)  # two of them a crop size
