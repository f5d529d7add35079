"""Moving pictures that every browser plays."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image


def write_gif(path: str | os.PathLike, frames: np.ndarray, rate: int) -> None:
    """uint8 [T, H, W, 3] -> a loop of `rate` frames per second, each with 256 colors of its own."""
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    pictures[0].save(
        path, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / rate), loop=0, disposal=1
    )


def even(frames: np.ndarray) -> np.ndarray:
    """With even height and width, as H.264 wants them; white where there was nothing. uint8 [T, H, W, 3]."""
    _, h, w, _ = frames.shape
    return np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=255)
