"""Frames in rows, with captions: what a clip looks like on one sheet. Needs Pillow alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LEAST, MOST = 96, 128  # pixels: side of a frame on a sheet
GAP = 4
CAPTION = 136  # pixels: the column left of the frames
INK, QUIET = (34, 34, 34), (85, 85, 85)


class Row(NamedTuple):
    caption: str
    frames: np.ndarray  # uint8 [N, side, side, 3]


def contact_sheet(clip: Tensor, frames: int = 6) -> np.ndarray:
    """A row for each video, its frames from left to right. [B, 3, T, S, S] in [0, 1] -> uint8 [H, W, 3]."""
    rows = [np.concatenate(padded(frames_of(each, frames)), axis=1) for each in clip]
    return np.concatenate(rows, axis=0)


def padded(pictures: np.ndarray) -> np.ndarray:
    """A white line right of and below each. uint8 [N, H, W, 3] -> [N, H + 1, W + 1, 3]."""
    return np.pad(pictures, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)


def frames_of(clip: Tensor, count: int) -> np.ndarray:
    """Evenly spread frames at a size to look at. [3, T, S, S] in [0, 1] -> uint8 [min(count, T), side, side, 3]."""
    t = clip.shape[1]
    return enlarged(clip[:, torch.linspace(0, t - 1, min(count, t)).long()].transpose(0, 1))


def enlarged(pictures: Tensor) -> np.ndarray:
    """[N, 3, S, S] in [0, 1] -> uint8 [N, side, side, 3]. Whole multiples keep the pixels as squares."""
    size = pictures.shape[-1]
    side = side_of(size)
    mode = {"mode": "nearest"} if side % size == 0 else {"mode": "bicubic", "antialias": True}
    large = F.interpolate(pictures.float(), (side, side), **mode).clamp(0, 1)
    return (large * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def side_of(size: int) -> int:
    """Of a frame on a sheet, for clips of that size."""
    return MOST if size >= MOST else size * -(-LEAST // size)


def strip(rows: Sequence[Row], title: str = "") -> np.ndarray:
    """Captions on the left, frames on the right, the title above -> uint8 [H, W, 3]."""
    head = 30 if title else 0
    tops, height = [], head
    for row in rows:
        tops.append(height)
        height += row.frames.shape[1] + GAP
    width = CAPTION + max(len(row.frames) * (row.frames.shape[2] + GAP) for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((0, head / 2 - 2), title, INK, font(16), anchor="lm")
    for row, top in zip(rows, tops, strict=True):
        side = row.frames.shape[2]
        write(draw, (0, top + row.frames.shape[1] / 2), row.caption, letters=17)
        for number, frame in enumerate(row.frames):
            sheet.paste(Image.fromarray(frame), (CAPTION + number * (side + GAP), top))
    return np.asarray(sheet)


def write(draw: ImageDraw.ImageDraw, middle_left: tuple[float, float], text: str, letters: int) -> None:
    """Text in lines of so many letters at most, about a height."""
    told = "\n".join(textwrap.wrap(text, letters))
    draw.multiline_text(middle_left, told, QUIET, font(14), anchor="lm", spacing=3)


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def stack(pictures: Sequence[np.ndarray], gap: int = 14) -> np.ndarray:
    """One below the other on white. uint8 [H, W, 3] each."""
    width = max(picture.shape[1] for picture in pictures)
    parts = [
        np.pad(p, ((0, gap if p is not pictures[-1] else 0), (0, width - p.shape[1]), (0, 0)), constant_values=255)
        for p in pictures
    ]
    return np.concatenate(parts)
