"""Crops of uint8 pictures: a box is drawn once a view, cut from every frame, resized with the whole clip, mirrored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.registry import NonNegativeFloat, PositiveFloat, PositiveInt, Registry, UnitInterval

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
        """[H, W, 3] -> view [height, width, 3], not mirrored."""
        return picture[self.top : self.top + self.height, self.left : self.left + self.width]


@CROPS.register("random_resized")
class RandomResized:
    """A box of random area and shape, resized to a square; mirrored at random.

    area: range of its share of the frame; ratio: range of width over height, uniform in its logarithm. Ten tries to fit
    one into the frame, then the largest central one of a permitted shape. Without antialias the resize is the
    papers' plain bilinear one.
    """

    def __init__(
        self,
        *,
        area: tuple[PositiveFloat, UnitInterval],
        ratio: tuple[PositiveFloat, PositiveFloat],
        flip: UnitInterval,
        antialias: bool,
    ):
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


@CROPS.register("random_rotated")
class RandomRotated:
    """A square of full size from a frame that was turned a little; BE's release.

    degrees: largest turn to either side, nearest pixel, black where the frame does not reach. resize_short: as in
    center; the square is cut before the resize, which for the release comes first: its place is one of the stored
    pixels. Its box tells where it lies in the turned frame, not the turn.
    """

    def __init__(
        self, *, degrees: NonNegativeFloat, resize_short: Literal["auto", "native"] | PositiveInt, antialias: bool
    ):
        self.degrees, self.resize_short, self.antialias = degrees, resize_short, antialias

    def box(self, height: int, width: int, size: int, generator: np.random.Generator) -> TurnedBox:
        side = square_side(height, width, size, self.resize_short)
        degrees = generator.uniform(-self.degrees, self.degrees)
        top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
        return TurnedBox(Box(int(top), int(left), side, side), degrees, height, width)

    def resize(self, clip: Tensor, size: int) -> Tensor:
        return resize(clip, size, size, antialias=self.antialias)


@dataclass(frozen=True)
class TurnedBox:
    """A rectangle of a frame [frame_height, frame_width] that was turned counter-clockwise about its center."""

    box: Box
    degrees: float
    frame_height: int
    frame_width: int
    mirrored = False

    @property
    def height(self) -> int:
        return self.box.height

    @property
    def width(self) -> int:
        return self.box.width

    def shares(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Of the rectangle in the turned frame."""
        return self.box.shares(height, width)

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """[H, W, 3] -> [height, width, 3]."""
        places, outside = self.source
        part = np.take(picture.reshape(-1, 3), places, axis=0)
        part[outside] = 0
        return part

    @cached_property
    def source(self) -> tuple[np.ndarray, np.ndarray]:
        """Which pixel of the frame each pixel shows, int64 [height, width], and where there is none."""
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        y = np.arange(self.box.height)[:, None] + self.box.top + 0.5 - self.frame_height / 2
        x = np.arange(self.box.width) + self.box.left + 0.5 - self.frame_width / 2
        row = np.floor(cos * y + sin * x + self.frame_height / 2).astype(np.int64)
        column = np.floor(cos * x - sin * y + self.frame_width / 2).astype(np.int64)
        outside = (row < 0) | (row >= self.frame_height) | (column < 0) | (column >= self.frame_width)
        return np.where(outside, 0, row * self.frame_width + column), outside


@CROPS.register("center")
class Center:
    """The central square of evaluation.

    resize_short: length that the frame's short side gets first; auto is size * 8 / 7 (128 for 112, 256 for 224);
    native takes the square from the frame as it is stored, as FAME's release does.
    """

    def __init__(self, *, resize_short: Literal["auto", "native"] | PositiveInt, antialias: bool):
        self.resize_short, self.antialias = resize_short, antialias

    def box(self, height: int, width: int, size: int, generator: np.random.Generator) -> Box:
        side = square_side(height, width, size, self.resize_short)
        return Box(round((height - side) / 2), round((width - side) / 2), side, side)

    def resize(self, clip: Tensor, size: int) -> Tensor:
        return resize(clip, size, size, antialias=self.antialias)


@CROPS.register("center_square")
class CenterSquare:
    """The central square of `side` stored pixels, resized; FIMA's release.

    side: no longer than the frame's short side, where it is cut to that; the release does not look.
    """

    def __init__(self, *, side: PositiveInt, antialias: bool):
        self.side, self.antialias = side, antialias

    def box(self, height: int, width: int, size: int, generator: np.random.Generator) -> Box:
        side = min(self.side, height, width)
        return Box(round((height - side) / 2), round((width - side) / 2), side, side)

    def resize(self, clip: Tensor, size: int) -> Tensor:
        return resize(clip, size, size, antialias=self.antialias)


def square_side(height: int, width: int, size: int, resize_short: Literal["auto", "native"] | int) -> int:
    """Side of the square, in stored pixels, that gives size x size once the short side is as long as wanted."""
    if resize_short == "native":
        if min(height, width) < size:
            raise ValueError(f"a frame of {width} x {height} has no {size} x {size} square; set resize_short")
        return size
    short = size * 8 / 7 if resize_short == "auto" else resize_short
    return min(min(height, width), round(size * min(height, width) / short))


def as_shown(clip: Tensor, box: AnyBox) -> Tensor:
    """Mirror a clip [T, 3, S, S] where its box says so. After the resize, since that is the same, pixel by pixel, and
    mirroring the box's own pixels takes longer than all else that is done to them."""
    return clip.flip(-1) if box.mirrored else clip


def resize(clip: Tensor, height: int, width: int, *, antialias: bool) -> Tensor:
    """uint8 [T, 3, h, w] (channels last in memory is fast) -> uint8 [T, 3, height, width], bilinear."""
    if clip.shape[-2:] == (height, width):
        return clip
    return F.interpolate(clip, (height, width), mode="bilinear", antialias=antialias)


AnyBox = Box | TurnedBox


def empty_clip(frames: int, box: AnyBox) -> np.ndarray:
    return np.empty((frames, box.height, box.width, 3), np.uint8)


def as_tensor(clip: np.ndarray) -> Tensor:
    """[T, H, W, 3] -> view [T, 3, H, W]."""
    return torch.from_numpy(clip).permute(0, 3, 1, 2)
