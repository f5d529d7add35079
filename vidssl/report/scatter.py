"""Points in the plane, colored by class, each class with its name in its middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vidssl.report import canvas

SIDE, LETTERS, DENSITY = 760, 17, 2
MARKERS = ("o", "^", "s", "D", "v", "P", "X")


def scatter(positions: np.ndarray, label: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """positions float [N, 2], label int [N], -1 without a class -> uint8 [H, W, 3]."""
    sheet = canvas.figure(SIDE, SIDE, density=DENSITY)
    plot = canvas.axes(sheet, 10, 10, SIDE - 20, SIDE - 20)
    plot.axis("off")
    size = float(np.clip(14000 / len(positions), 14, 90))
    present = sorted(set(label.tolist()))
    colors = {each: canvas.COLORS[number % len(canvas.COLORS)] for number, each in enumerate(present)}
    for number, each in enumerate(present):
        marker = MARKERS[number // len(canvas.COLORS) % len(MARKERS)]
        x, y = positions[label == each].T
        plot.scatter(x, y, s=size, alpha=0.75, linewidths=0, color=colors[each], marker=marker)
    plot.margins(0.08)
    plot.autoscale_view()  # now, so that names can be measured
    box = {"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "boxstyle": "round,pad=0.1"}
    look: dict[str, Any] = {"ha": "center", "va": "center", "size": LETTERS, "weight": "bold", "bbox": box}
    texts = []
    for each in present:
        if each >= 0:
            x, y = np.median(positions[label == each], axis=0)
            texts.append(plot.text(x, y, names[each], color=colors[each], parse_math=False, **look))
    boxes = np.array([text.get_window_extent().bounds for text in texts]).reshape(-1, 4)
    middles = separated(boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:])
    for text, position in zip(texts, plot.transData.inverted().transform(middles), strict=True):
        text.set_position(position)
    return canvas.image(sheet)


def separated(middles: np.ndarray, sizes: np.ndarray, rounds: int = 300) -> np.ndarray:
    """Middles of boxes, moved up and down until no two boxes overlap. middles [N, 2], sizes [N, 2]: width, height."""
    middles = middles.astype(float)
    for _ in range(rounds):
        moved = False
        for one in range(len(middles)):
            for other in range(one):
                reach = (sizes[one] + sizes[other]) / 2
                gap = middles[one] - middles[other]
                if (np.abs(gap) < reach - 0.01).all():
                    push = (reach[1] - abs(gap[1])) / 2 * (1 if gap[1] >= 0 else -1)
                    middles[one, 1] += push
                    middles[other, 1] -= push
                    moved = True
        if not moved:
            break
    return middles
