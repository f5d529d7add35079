"""Figures of matplotlib as arrays. Nothing here opens a window or changes what others draw.

All lengths are pixels of a page, of which an inch has 96; a figure has twice as many, so that it stays sharp.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCH, DENSITY = 96, 2
PAGE = 1120  # width of a page
MARKERS = ("o", "^", "s", "D", "v", "P", "X")


def figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # slow, and in an extra

    return Figure((width / INCH, height / INCH), dpi=INCH * DENSITY, facecolor="white")


def axes(sheet: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Room for one plot, its frame alone: names and ticks stand around it."""
    across, down = sheet.get_size_inches() * INCH
    found = sheet.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    found.tick_params(labelsize=points(11), length=3, color="#888888")
    for side in found.spines.values():
        side.set_color("#888888")
    return found


def note(sheet: Figure, left: float, top: float, text: str, size: float = 13, **more: object) -> None:
    across, down = sheet.get_size_inches() * INCH
    sheet.text(left / across, 1 - top / down, text, size=points(size), va="top", **more)


def points(pixels: float) -> float:
    """A size of letters as matplotlib wants it."""
    return pixels * 72 / INCH


def letters(names: list[str], size: float) -> float:
    """About the width of the longest name in letters of that size."""
    return 0.62 * size * max(map(len, names), default=0)


def plain(name: str) -> str:
    """A name that matplotlib does not read as a formula."""
    return name.replace("$", r"\$")


def image(sheet: Figure) -> np.ndarray:
    """uint8 [H, W, 3]"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(sheet)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names in other scripts
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
