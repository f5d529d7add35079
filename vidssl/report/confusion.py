"""Confusion matrices with the most frequent mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vidssl.report import canvas

WRITTEN = 20  # up to so many classes each cell shows its percentage
CELL = 9.2  # pixels: the least at which names of 8 pixels do not touch
LIST, LINE = 340, 20  # pixels: width of a column of mistakes, height of a line


def confusion(shares: np.ndarray, names: Sequence[str], confused: Sequence[tuple[int, int, float]]) -> np.ndarray:
    """Rows are true classes, columns predicted ones; beside or below them the most frequent mistakes.

    shares float [classes, classes] in [0, 1]: of a row. confused: true class, other class, share. Up to 110 classes fit
    on a page; with more the picture grows. -> uint8 [H, W, 3].
    """
    count = len(names)
    cell = float(np.clip(560 / count, CELL, 56))
    side = cell * count
    sheet = canvas.figure(side, side, density=2)
    plot = canvas.axes(sheet, 0, 0, side, side)
    plot.spines[:].set_visible(True)
    plot.grid(False)
    letters = float(np.clip(cell * 0.64, 6, 9))  # size of the names
    shown = plot.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    plot.set_xticks(range(count), names, size=letters, rotation=90)
    plot.set_yticks(range(count), names, size=letters)
    plot.tick_params(length=2 if count <= 60 else 1, pad=2)
    plot.set_ylabel("true class", size=10)
    plot.set_title("predicted class of the videos of each class", size=10.5, loc="left")
    for row, column in np.ndindex(shares.shape) if count <= WRITTEN else ():
        if shares[row, column] >= 0.005:
            color = "white" if shares[row, column] > 0.55 else "#222222"
            look: dict[str, Any] = {"ha": "center", "va": "center", "size": min(10, 0.3 * cell), "color": color}
            plot.text(column, row, f"{100 * shares[row, column]:.0f}", **look)
    bar = sheet.colorbar(shown, cax=canvas.axes(sheet, side + 14, 0, 14, min(side, 240.0)), format="{x:.0%}")
    bar.outline.set_visible(False)
    is_beside = side <= 570
    columns = 1 if is_beside else int(side // LIST)
    lines = -(-len(confused) // columns)
    left, top = (side + 94, 8.0) if is_beside else (0.0, side + 0.83 * letters * max(map(len, names)) + 40)
    if confused:
        canvas.note(sheet, left, top, "most frequent mistakes", 10.5, weight="bold")
    for number, (true, other, share) in enumerate(confused):
        column, line = divmod(number, lines)
        text = canvas.shortened(f"{100 * share:.0f}%  {names[true]} taken for {names[other]}", 44)
        canvas.note(sheet, left + column * LIST, top + 28 + LINE * line, text, 9)
    return canvas.image(sheet, tight=True)
