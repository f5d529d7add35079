"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vidssl.pictures.canvas import PAGE, axes, figure, image, letters, note, plain, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITTEN = 20  # up to so many classes each cell says its percentage
CELL = 9.2  # pixels: the least at which names of 8 pixels do not touch
TOP, LIST, LINE = 36, 340, 20  # pixels: above the matrix, width of a column of mistakes, height of one


def confusion(shares: np.ndarray, names: Sequence[str], confused: Sequence[tuple[int, int, float]]) -> np.ndarray:
    """Rows are true classes, columns what they are taken for; beside or below it the worst mistakes.

    shares float [classes, classes] in [0, 1]: of a row. confused: true class, other class, share. Up to 110 classes fit
    on a page; with more the picture grows. -> uint8 [H, W, 3].
    """
    count, names = len(names), [plain(name) for name in names]
    cell = float(np.clip(560 / count, CELL, 56))
    size = float(np.clip(cell * 0.85, 8, 12))  # of the names
    margin = letters(names, size) + 14
    side = cell * count
    right, below = margin + 22 + side + 80, TOP + side + margin + 26
    is_beside = right + 20 + LIST <= PAGE
    width = PAGE if is_beside else max(right, PAGE)
    columns = 1 if is_beside else int(width // LIST)
    lines = -(-len(confused) // columns)
    foot = 0 if is_beside or not confused else 34 + LINE * lines
    sheet = figure(width, max(below + foot, TOP + 40 + LINE * lines))
    plot = axes(sheet, margin + 22, TOP, side, side)
    shown = plot.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    look = {"labels": names, "fontsize": points(size)}
    plot.set_xticks(range(count), rotation=90, **look)
    plot.set_yticks(range(count), **look)
    plot.tick_params(length=2 if count <= 60 else 1, pad=2)
    plot.set_ylabel("true class", size=points(13))
    note(sheet, margin + 22, 10, "what the videos of each class are taken for", 14)
    for row, column in np.ndindex(shares.shape) if count <= WRITTEN else ():
        if shares[row, column] >= 0.005:
            color = "white" if shares[row, column] > 0.55 else "#222222"
            look = {"ha": "center", "va": "center", "size": points(min(13, 0.4 * cell)), "color": color}
            plot.text(column, row, f"{100 * shares[row, column]:.0f}", **look)
    bar = sheet.colorbar(shown, cax=axes(sheet, right - 66, TOP, 14, min(side, 240.0)), format="{x:.0%}")
    bar.outline.set_visible(False)
    place = (right + 20, TOP) if is_beside else (22, below)
    _write_confused(sheet, names, confused, place, columns)
    return image(sheet)


def _write_confused(
    sheet: Figure,
    names: list[str],
    confused: Sequence[tuple[int, int, float]],
    place: tuple[float, float],
    columns: int,
) -> None:
    if not confused:
        return
    lines = -(-len(confused) // columns)
    note(sheet, *place, "most often confused", 14, weight="bold")
    for number, (true, other, share) in enumerate(confused):
        column, line = divmod(number, lines)
        told = f"{100 * share:.0f}%  {names[true]} taken for {names[other]}"
        told = told if len(told) <= 44 else told[:42] + "..."
        note(sheet, place[0] + column * LIST, place[1] + 28 + LINE * line, told, 12)
