"""Frames of clips as pixel arrays: at a size to look at, in rows, as an animation. Needs no matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LEAST, MOST = 96, 128  # pixels: side of a shown frame


def contact_sheet(clip: Tensor, frames: int = 6) -> np.ndarray:
    """A row for each video, its frames from left to right. [B, 3, T, S, S] in [0, 1] -> uint8 [H, W, 3]."""
    rows = [np.concatenate(_separated(frames_of(each, frames)), axis=1) for each in clip]
    return np.concatenate(rows, axis=0)


def _separated(frames: np.ndarray) -> np.ndarray:
    """With a white line right of and below each. uint8 [N, H, W, 3] -> [N, H + 1, W + 1, 3]."""
    return np.pad(frames, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)


def frames_of(clip: Tensor, count: int) -> np.ndarray:
    """Evenly spaced frames, enlarged. [3, T, S, S] in [0, 1] -> uint8 [min(count, T), side, side, 3]."""
    t = clip.shape[1]
    return enlarged(clip[:, torch.linspace(0, t - 1, min(count, t)).long()].transpose(0, 1))


def enlarged(frames: Tensor) -> np.ndarray:
    """[N, 3, S, S] in [0, 1] -> uint8 [N, side, side, 3]. Whole multiples keep the pixels as squares."""
    size = frames.shape[-1]
    side = side_of(size)
    mode = {"mode": "nearest"} if side % size == 0 else {"mode": "bicubic", "antialias": True}
    large = F.interpolate(frames.float(), (side, side), **mode).clamp(0, 1)
    return (large * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def side_of(size: int) -> int:
    """Side of a shown frame, for clips of that size."""
    return MOST if size >= MOST else size * -(-LEAST // size)


def stack(images: Sequence[np.ndarray], gap: int = 14) -> np.ndarray:
    """One below another on white. uint8 [H, W, 3] each."""
    width = max(image.shape[1] for image in images)
    gaps = [gap] * (len(images) - 1) + [0]
    return np.concatenate([
        np.pad(image, ((0, below), (0, width - image.shape[1]), (0, 0)), constant_values=255)
        for image, below in zip(images, gaps, strict=True)
    ])  # fmt: skip


def write_gif(path: str | os.PathLike, frames: np.ndarray, fps: int) -> None:
    """uint8 [T, H, W, 3] -> a loop in which each frame has 256 colors of its own."""
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, disposal=1
    )


def even(frames: np.ndarray) -> np.ndarray:
    """Padded with white to even height and width, which H.264 requires. uint8 [T, H, W, 3]."""
    _, h, w, _ = frames.shape
    return np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=255)
