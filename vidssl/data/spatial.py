"""Crops of uint8 pictures: the box is drawn once a view, cut from every frame, resized with the whole clip."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.registry import Count, Positive, Registry, Share

CROPS = Registry("crop", "vidssl.data.spatial")


class Box(NamedTuple):
    """A rectangle of the frame in pixels, to be shown from right to left where mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False

    def shares(self, height: int, width: int) -> tuple[float, float, float, float]:
        """First and last column and row, x0, y0, x1, y1, as shares of a frame whose own are 0 and 1; x0 > x1 where
        mirrored. FIMA's release places crops so."""
        across, down = max(1, width - 1), max(1, height - 1)
        x0, x1 = self.left / across, (self.left + self.width - 1) / across
        if self.mirrored:
            x0, x1 = x1, x0
        return x0, self.top / down, x1, (self.top + self.height - 1) / down

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """[H, W, 3] -> view [height, width, 3]."""
        part = picture[self.top : self.top + self.height, self.left : self.left + self.width]
        return part[:, ::-1] if self.mirrored else part


@CROPS.register("random_resized")
class RandomResized:
    """A box of random area and shape, resized to a square; mirrored at random.

    area: range of its share of the frame; ratio: range of width over height, uniform in its logarithm. Ten tries to fit
    one into the frame, then the largest central one of a permitted shape. Without antialias the resize is the
    papers' plain bilinear one.
    """

    def __init__(self, *, area: tuple[Positive, Share], ratio: tuple[Positive, Positive], flip: Share, antialias: bool):
        self.area, self.ratio, self.flip, self.antialias = area, ratio, flip, antialias

    def box(self, height: int, width: int, size: int, generator: np.random.Generator) -> Box:
        mirrored = bool(generator.random() < self.flip)
        for _ in range(10):
            area = height * width * generator.uniform(*self.area)
            ratio = math.exp(generator.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
                return Box(int(top), int(left), h, w, mirrored)
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
        return Box((height - h) // 2, (width - w) // 2, h, w, mirrored)

    def resize(self, clip: Tensor, size: int) -> Tensor:
        return resize(clip, size, size, antialias=self.antialias)


@CROPS.register("center")
class Center:
    """The central square of evaluation.

    resize_short: length that the frame's short side gets first; auto is size * 8 / 7 (128 for 112, 256 for 224);
    native takes the square from the frame as it is stored, as FAME's release does.
    """

    def __init__(self, *, resize_short: Literal["auto", "native"] | Count, antialias: bool):
        self.resize_short, self.antialias = resize_short, antialias

    def box(self, height: int, width: int, size: int, generator: np.random.Generator) -> Box:
        if self.resize_short == "native":
            if min(height, width) < size:
                raise ValueError(f"a frame of {width} x {height} has no {size} x {size} square; set resize_short")
            side = size
        else:
            short = size * 8 / 7 if self.resize_short == "auto" else self.resize_short
            side = min(min(height, width), round(size * min(height, width) / short))
        return Box(round((height - side) / 2), round((width - side) / 2), side, side)

    def resize(self, clip: Tensor, size: int) -> Tensor:
        return resize(clip, size, size, antialias=self.antialias)


def resize(clip: Tensor, height: int, width: int, *, antialias: bool) -> Tensor:
    """uint8 [T, 3, h, w] (channels last in memory is fast) -> uint8 [T, 3, height, width], bilinear."""
    if clip.shape[-2:] == (height, width):
        return clip
    return F.interpolate(clip, (height, width), mode="bilinear", antialias=antialias)


def empty_clip(frames: int, box: Box) -> np.ndarray:
    return np.empty((frames, box.height, box.width, 3), np.uint8)


def as_tensor(clip: np.ndarray) -> Tensor:
    """[T, H, W, 3] -> view [T, 3, H, W]."""
    return torch.from_numpy(clip).permute(0, 3, 1, 2)
