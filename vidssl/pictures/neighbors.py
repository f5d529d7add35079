"""Videos and those nearest to them, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from vidssl.pictures.strips import INK, QUIET, font

SAME, OTHER, UNKNOWN = "#009E73", "#D55E00", "#9a9a9a"  # told apart by color-blind readers, too
EDGE, GAP, TEXT = 6, 10, 40  # pixels


class Tile(NamedTuple):
    picture: np.ndarray  # uint8 [side, side, 3]
    caption: str
    below: str = ""
    color: str | None = None  # of its frame


def neighbors(rows: Sequence[tuple[Tile, Sequence[Tile]]]) -> np.ndarray:
    """Each query on the left, the nearest videos to its right, most similar first -> uint8 [H, W, 3]."""
    side = rows[0][0].picture.shape[0] + 2 * EDGE
    columns, head = 1 + max(len(found) for _, found in rows), 30
    width, height = columns * (side + GAP) + 3 * GAP, head + len(rows) * (side + TEXT)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((0, 12), "query", INK, font(16), anchor="lm")
    draw.text((side + 4 * GAP, 12), "nearest, most similar first", INK, font(16), anchor="lm")
    for number, (query, found) in enumerate(rows):
        top = head + number * (side + TEXT)
        for place, tile in enumerate((query, *found)):
            left = place * (side + GAP) + (3 * GAP if place else 0)
            if tile.color:
                draw.rectangle((left, top, left + side - 1, top + side - 1), tile.color)
            sheet.paste(Image.fromarray(tile.picture), (left + EDGE, top + EDGE))
            draw.text((left + EDGE, top + side + 9), fitted(draw, tile.caption, side), INK, font(13), anchor="lm")
            draw.text((left + EDGE, top + side + 25), fitted(draw, tile.below, side), QUIET, font(12), anchor="lm")
    return np.asarray(sheet)


def fitted(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """As much of the text as there is room for."""
    shown = text
    while shown and draw.textlength(shown, font(13)) > width - EDGE:
        shown = shown.removesuffix("...")[:-1] + "..." if len(shown) > 4 else ""
    return shown
