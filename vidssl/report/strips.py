"""Frames with words: rows of a clip's frames, videos beside their neighbors, activation maps over frames."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vidssl.report import canvas

GAP, CAPTION = 4, 136  # pixels: between frames, the column left of them
SAME, OTHER, UNKNOWN = "#009E73", "#D55E00", "#9a9a9a"  # distinct for color-blind readers, too
EDGE, TILE_GAP, TEXT = 6, 10, 40  # pixels: border, between tiles, below them


class Row(NamedTuple):
    caption: str
    frames: np.ndarray  # uint8 [N, side, side, 3]


def strip(rows: Sequence[Row], title: str = "") -> np.ndarray:
    """Captions on the left, frames on the right, the title above -> uint8 [H, W, 3]."""
    side, top = rows[0].frames.shape[1], 30 if title else 0
    width = CAPTION + max(len(row.frames) for row in rows) * (side + GAP)
    sheet = canvas.figure(width, top + len(rows) * (side + GAP))
    canvas.note(sheet, 0, 13, title, 12, color=canvas.INK)
    for row in rows:
        caption = "\n".join(textwrap.wrap(row.caption, 17))
        canvas.note(sheet, 0, top + side / 2, caption, 10.5, color=canvas.QUIET)
        for number, frame in enumerate(row.frames):
            canvas.paste(sheet, frame, CAPTION + number * (side + GAP), top)
        top += side + GAP
    return canvas.image(sheet)


def overlay(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Half the frame, half colors from blue, where heat is 0, to red, where it is 1.

    frames uint8 [N, H, W, 3], heat float [N, H, W] in [0, 1].
    """
    return ((frames + 255 * canvas.heat_colors(heat)) / 2).round().astype(np.uint8)


class Tile(NamedTuple):
    frame: np.ndarray  # uint8 [side, side, 3]
    caption: str
    below: str = ""
    color: str = "#ffffff"  # of its border


def neighbors(rows: Sequence[tuple[Tile, Sequence[Tile]]]) -> np.ndarray:
    """Each query on the left, the nearest videos on its right, most similar first -> uint8 [H, W, 3]."""
    side = rows[0][0].frame.shape[0] + 2 * EDGE
    columns, top = 1 + max(len(nearest) for _, nearest in rows), 30
    sheet = canvas.figure(columns * (side + TILE_GAP) + 3 * TILE_GAP, top + len(rows) * (side + TEXT))
    canvas.note(sheet, 0, 12, "query", 12, color=canvas.INK)
    canvas.note(sheet, side + 4 * TILE_GAP, 12, "nearest, most similar first", 12, color=canvas.INK)
    for query, nearest in rows:
        for column, tile in enumerate((query, *nearest)):
            left = column * (side + TILE_GAP) + (3 * TILE_GAP if column else 0)
            border = np.full((side, side, 3), [int(tile.color[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
            border[EDGE:-EDGE, EDGE:-EDGE] = tile.frame
            canvas.paste(sheet, border, left, top)
            for text, y, size, color in ((tile.caption, 9, 10, canvas.INK), (tile.below, 25, 9, canvas.QUIET)):
                canvas.fitted(canvas.note(sheet, left + EDGE, top + side + y, text, size, color=color), side - EDGE)
        top += side + TEXT
    return canvas.image(sheet)
