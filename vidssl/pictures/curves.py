"""How training went, a frame for each number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vidssl.pictures.canvas import PAGE, axes, figure, image, plain, points
from vidssl.reporting.axes import COLORS

COLUMNS, HIGH = 2, 240


def curves(found: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> np.ndarray:
    """found: (task, number) -> its values over the steps -> uint8 [H, W, 3]."""
    rows = -(-len(found) // COLUMNS)
    wide = (PAGE - 40) / COLUMNS - 70
    tasks = list(dict.fromkeys(task for task, _ in found))
    sheet = figure(PAGE, rows * (HIGH + 84))
    ordered = sorted(found, key=lambda name: tasks.index(name[0]))
    for place, (task, name) in enumerate(ordered):
        row, column = divmod(place, COLUMNS)
        plot = axes(sheet, 66 + column * (wide + 80), 34 + row * (HIGH + 84), wide, HIGH)
        steps, values = zip(*found[task, name], strict=True)
        plot.plot(steps, values, color=COLORS[tasks.index(task) % len(COLORS)], linewidth=2)
        plot.set_title(plain(f"{task}: {name}"), size=points(14), loc="left")
        plot.set_xlabel("step", size=points(12))
        plot.grid(color="#e2e2e2", linewidth=0.6)
        plot.set_xlim(0, max(steps))
        plot.xaxis.get_major_locator().set_params(integer=True)
    return image(sheet)
