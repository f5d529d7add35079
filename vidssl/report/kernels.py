"""Temporal kernels of a network, or of two side by side, as violins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vidssl.report import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 5  # layers in a row
Side = Literal["both", "low", "high"]  # of a violin
CUT = 0.5  # percent of the weights beyond either end that are not drawn


class Layer(NamedTuple):
    weights: np.ndarray  # float [offsets, N], a row for each position in time
    variation: np.ndarray  # float [kernels] in [0, 1]


def kernels(networks: Mapping[str, Mapping[str, Layer]]) -> np.ndarray:
    """Above: the weights of each layer, by their position in time. Below: how much of each kernel varies over time.

    networks: name -> layer -> its kernels; two at most, of one kind -> uint8 [H, W, 3].
    """
    layers = list(next(iter(networks.values())))
    columns = min(COLUMNS, len(layers))
    rows = -(-len(layers) // columns)
    sheet = canvas.figure(canvas.PAGE, 192 * rows + 330, density=2, layout="constrained")
    halves: Any = sheet.subfigures(2, 1, height_ratios=[192 * rows + 50, 280])
    above, below = halves
    look = {"x": 0.01, "ha": "left", "size": 11}
    above.suptitle("weights by their position in time", weight="bold", **look)
    for number, name in enumerate(networks if len(networks) > 1 else ()):
        canvas.note(sheet, 360 + 380 * number, 11, f"\N{BLACK SQUARE} {name}", color=canvas.COLORS[number])
    plots = above.subplots(rows, columns, squeeze=False).flat
    for plot in plots[len(layers) :]:
        plot.set_visible(False)
    for plot, layer in zip(plots, layers, strict=False):
        _weights(canvas.styled(plot), [network[layer].weights for network in networks.values()])
        plot.set_title(_short(layer), size=9, loc="left")
    below.suptitle("share of each kernel that varies over time", weight="bold", **look)
    plot = canvas.styled(below.subplots())
    meaning = "0: constant in time, blind to the order of frames; 1: no part of it is constant in time"
    plot.set_title(meaning, size=9, loc="left", color=canvas.QUIET)
    _variation(plot, [[network[layer].variation for layer in layers] for network in networks.values()])
    plot.set_xticks(range(len(layers)), [_short(layer) for layer in layers], rotation=25, ha="right")
    return canvas.image(sheet)


def _weights(plot: Axes, parts: Sequence[np.ndarray]) -> None:
    """parts: float [offsets, N] of each network."""
    count = len(parts[0])
    reach = max(float(np.percentile(np.abs(part), 100 - CUT)) for part in parts) or 1.0
    for part, side, color in zip(parts, _sides(parts), canvas.COLORS, strict=False):
        _violins(plot, [weights[np.abs(weights) <= reach] for weights in part], side, color)
    plot.set_ylim(-1.05 * reach, 1.05 * reach)
    plot.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    plot.set_xticks(
        range(count), [f"{offset:+d}" if offset else "0" for offset in range(-(count // 2), count - count // 2)]
    )
    plot.ticklabel_format(axis="y", style="plain")
    plot.locator_params(axis="y", nbins=4)


def _variation(plot: Axes, parts: Sequence[list[np.ndarray]]) -> None:
    for part, side, color in zip(parts, _sides(parts), canvas.COLORS, strict=False):
        _violins(plot, part, side, color)
        medians = [float(np.median(values)) for values in part]
        x = np.arange(len(part)) + {"both": 0.0, "low": -0.12, "high": 0.12}[side]
        plot.plot(x, medians, "o", color="white", markeredgecolor=color, markersize=4)
    plot.set_ylim(0, 1.02)
    plot.set_xlim(-0.6, len(parts[0]) - 0.4)


def _sides(parts: Sequence) -> list[Side]:
    return ["both"] if len(parts) == 1 else ["low", "high"]


def _violins(plot: Axes, values: list[np.ndarray], side: Side, color: str) -> None:
    drawn: Any = plot.violinplot(values, range(len(values)), widths=0.85, side=side, showextrema=False)
    for body in drawn["bodies"]:
        body.set(facecolor=color, edgecolor=color, alpha=0.75, linewidth=0.5)


def _short(layer: str) -> str:
    return layer if len(layer) <= 22 else f"{layer[:10]}...{layer[-9:]}"
