"""Temporal kernels of a network, or of two side by side, as violins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vidssl.pictures.canvas import PAGE, axes, figure, image, note, plain, points
from vidssl.reporting.axes import COLORS

COLUMNS = 5  # layers in a row
HIGH, MARGIN = 130, 62  # pixels: of a layer's frame, and left of it
CUT = 0.5  # percent of the weights beyond either end that are not drawn


class Layer(NamedTuple):
    weights: np.ndarray  # float [offsets, N], a row for each place in time
    variation: np.ndarray  # float [kernels] in [0, 1]


def kernels(networks: Mapping[str, Mapping[str, Layer]]) -> np.ndarray:
    """Above: the weights of each layer, by their place in time. Below: how much of each kernel varies over time.

    networks: name -> layer -> its kernels; two at most, of one kind -> uint8 [H, W, 3].
    """
    layers = list(next(iter(networks.values())))
    columns = min(COLUMNS, len(layers))
    rows, wide = -(-len(layers) // columns), (PAGE - 10) / columns - MARGIN
    top, step = 64, HIGH + 62
    low = top + rows * step + 40
    sheet = figure(PAGE, low + 245)
    note(sheet, 12, 8, "weights by their place in time", 15, weight="bold")
    for number, name in enumerate(networks if len(networks) > 1 else ()):
        note(sheet, 320 + 380 * number, 10, f"\N{BLACK SQUARE} {plain(name)}", 13, color=COLORS[number])
    for place, layer in enumerate(layers):
        row, column = divmod(place, columns)
        plot = axes(sheet, MARGIN + column * (wide + MARGIN), top + row * step, wide, HIGH)
        _weights(plot, [network[layer].weights for network in networks.values()])
        plot.set_title(_short(layer), size=points(12), loc="left")
    note(sheet, 12, low - 56, "share of each kernel that varies over time", 15, weight="bold")
    told = "0: the same at all times, blind to the order of frames; 1: no part of it is the same at all times"
    note(sheet, 12, low - 32, told, 12, color="#555555")
    plot = axes(sheet, MARGIN, low, PAGE - MARGIN - 20, 150)
    _variation(plot, [[network[layer].variation for layer in layers] for network in networks.values()])
    plot.set_xticks(range(len(layers)), [_short(layer) for layer in layers], rotation=25, ha="right")
    return image(sheet)


def _weights(plot, parts: list[np.ndarray]) -> None:
    """parts: of each network, float [offsets, N]."""
    count = len(parts[0])
    reach = max(float(np.percentile(np.abs(part), 100 - CUT)) for part in parts) or 1.0
    for part, side, color in zip(parts, _sides(parts), COLORS, strict=False):
        inside = [weights[np.abs(weights) <= reach] for weights in part]
        _violins(plot, inside, range(count), side, color)
    plot.set_ylim(-1.05 * reach, 1.05 * reach)
    plot.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    plot.set_xticks(
        range(count), [f"{place - count // 2:+d}" if place != count // 2 else "0" for place in range(count)]
    )
    plot.ticklabel_format(axis="y", style="plain")
    plot.locator_params(axis="y", nbins=4)


def _variation(plot, parts: list[list[np.ndarray]]) -> None:
    for part, side, color in zip(parts, _sides(parts), COLORS, strict=False):
        _violins(plot, part, range(len(part)), side, color)
        offset = {"both": 0.0, "low": -0.12, "high": 0.12}[side]
        middle = [float(np.median(values)) for values in part]
        plot.plot(np.arange(len(part)) + offset, middle, "o", color="white", markeredgecolor=color, markersize=4)
    plot.set_ylim(0, 1.02)
    plot.set_xlim(-0.6, len(parts[0]) - 0.4)
    plot.grid(axis="y", color="#e2e2e2", linewidth=0.6)
    plot.set_axisbelow(True)


def _sides(parts: list) -> list[str]:
    return ["both"] if len(parts) == 1 else ["low", "high"]


def _violins(plot, values: list[np.ndarray], places, side: str, color: str) -> None:
    drawn = plot.violinplot(values, list(places), widths=0.85, side=side, showextrema=False)
    for body in drawn["bodies"]:
        body.set(facecolor=color, edgecolor=color, alpha=0.75, linewidth=0.5)


def _short(layer: str) -> str:
    return plain(layer if len(layer) <= 22 else "..." + layer[-19:])
