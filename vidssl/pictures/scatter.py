"""Points in the plane, colored by class, each class with its name in its middle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidssl.pictures.canvas import DENSITY, MARKERS, axes, figure, image, letters, plain, points
from vidssl.reporting.axes import COLORS

SIDE, LETTERS = 760, 17  # pixels


def scatter(places: np.ndarray, label: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """places float [N, 2], label int [N] with -1 where there is no class -> uint8 [H, W, 3]."""
    from matplotlib.patheffects import withStroke  # slow, and in an extra

    sheet = figure(SIDE, SIDE)
    plot = axes(sheet, 10, 10, SIDE - 20, SIDE - 20)
    plot.axis("off")
    present = sorted(set(label.tolist()))
    size = float(np.clip(14000 / len(places), 14, 90))
    for number, each in enumerate(present):
        part = places[label == each]
        look = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number // len(COLORS) % len(MARKERS)]}
        plot.scatter(*part.T, s=size, alpha=0.75, linewidths=0, **look)
    plot.margins(0.08)
    named = [each for each in present if each >= 0]
    middles = plot.transData.transform([np.median(places[label == each], axis=0) for each in named]) if named else ()
    boxes = [(letters([names[each]], LETTERS) * DENSITY, 1.2 * LETTERS * DENSITY) for each in named]
    for each, place in zip(named, apart(np.array(middles), np.array(boxes)), strict=True):
        outline = [withStroke(linewidth=3.5, foreground="white")]
        look = {"color": COLORS[present.index(each) % len(COLORS)], "size": points(LETTERS), "weight": "bold"}
        x, y = plot.transData.inverted().transform(place)
        plot.text(x, y, plain(names[each]), ha="center", va="center", path_effects=outline, **look)
    return image(sheet)


def apart(middles: np.ndarray, boxes: np.ndarray, rounds: int = 300) -> np.ndarray:
    """Centers of boxes, moved up and down until no two overlap. middles [N, 2], boxes [N, 2]: width and height."""
    middles = middles.astype(float)
    for _ in range(rounds):
        moved = False
        for one in range(len(middles)):
            for other in range(one):
                reach = (boxes[one] + boxes[other]) / 2
                gap = middles[one] - middles[other]
                if (np.abs(gap) < reach - 0.01).all():
                    push = (reach[1] - abs(gap[1])) / 2 * (1 if gap[1] >= 0 else -1)
                    middles[one, 1] += push
                    middles[other, 1] -= push
                    moved = True
        if not moved:
            break
    return middles
