"""Figures of matplotlib as SVG text and as pixel arrays. Nothing here opens a window or changes what others draw.

Lengths are CSS pixels, of which an inch has 96; sizes of letters are points, of which it has 72.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Point = tuple[float, float]

INCH = 96
PAGE = 1120  # width of a page
INK, QUIET, GRID = "#222222", "#555555", "#e2e2e2"
# Okabe and Ito's colors that color-blind readers tell apart, without the yellow that is too pale for lines; then dashed
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("solid", "dashed", "dotted")
PUBLISHED = ("circle", "square", "diamond")  # hollow marks, one for each published column
MARKS: dict[str, dict[str, Any]] = {
    "seed": {"marker": "o", "markersize": 6, "alpha": 0.45, "markeredgewidth": 0},
    "mean": {"marker": "o", "markersize": 8.5, "markeredgewidth": 0},
    "cross": {"marker": "X", "markersize": 9, "markeredgecolor": "white"},
    "circle": {"marker": "o", "markersize": 7.5, "markerfacecolor": "white", "markeredgewidth": 1.4},
    "square": {"marker": "s", "markersize": 6.8, "markerfacecolor": "white", "markeredgewidth": 1.4},
    "diamond": {"marker": "D", "markersize": 6.2, "markerfacecolor": "white", "markeredgewidth": 1.4},
}
SYMBOLS = {"mean": "\u25cf", "cross": "\u2716", "circle": "\u25cb", "square": "\u25a1", "diamond": "\u25c7"}


class Entry(NamedTuple):
    """Line of a legend."""

    text: str
    symbol: str  # one of DASHES for a line, else a character
    color: str = QUIET


class Section(NamedTuple):
    """Plots under a heading of the page."""

    title: str
    plots: list[tuple[str, str]]  # caption, SVG
    legend: list[Entry] = []
    note: str = ""


def line_style(index: int) -> tuple[str, str]:
    """Color and dashes of a chart's line."""
    return COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]


def line_entries(names: Iterable[str]) -> list[Entry]:
    return [Entry(name, *reversed(line_style(index))) for index, name in enumerate(names)]


@cache
def _matplotlib() -> ModuleType:
    import matplotlib.figure  # half a second that runs that draw nothing do not wait

    return matplotlib


def figure(width: float, height: float, *, density: int = 1, layout: str | None = None) -> Figure:
    """density: pixels of a PNG for each CSS pixel."""
    size = (width / INCH, height / INCH)
    return _matplotlib().figure.Figure(size, dpi=INCH * density, facecolor="white", layout=layout)


def axes(sheet: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes whose frame, without names and ticks, has this position and size."""
    across, down = sheet.get_size_inches() * INCH
    return styled(sheet.add_axes((left / across, 1 - (top + height) / down, width / across, height / down)))


def chart(x_name: str, y_name: str) -> tuple[Figure, Axes]:
    """Figure of one plot with `ranged` axes."""
    sheet = figure(520, 300)
    plot = ranged(axes(sheet, 64, 12, 442, 242))
    plot.set_xlabel(x_name, size=9)
    plot.set_ylabel(y_name, size=9)
    return sheet, plot


def ranged(plot: Axes) -> Axes:
    """Axes that reach from a round number to a round number; limits that are set have to be set before the data."""
    plot.locator_params(nbins=5, steps=[1, 2, 5, 10])
    plot.margins(0, tight=False)
    plot.ticklabel_format(style="plain", useOffset=False)
    return plot


def styled(plot: Axes) -> Axes:
    """Small letters, a horizontal grid, open above and on the right."""
    plot.grid(axis="y", color=GRID, linewidth=0.75)
    plot.set_axisbelow(True)
    plot.tick_params(labelsize=8.5, color=QUIET, length=3, width=0.75)
    plot.spines[:].set(color=QUIET, linewidth=0.75)
    plot.spines[["top", "right"]].set_visible(False)
    return plot


def rows(sheet: Figure, left: float, top: float, size: tuple[float, float], count: int, ticks: Sequence[float]) -> Axes:
    """Horizontal scale from the first to the last tick for `count` rows, the first at the top."""
    plot = axes(sheet, left, top, *size)
    plot.set(xlim=(ticks[0], ticks[-1]), ylim=(count - 0.5, -0.5), yticks=[])
    plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    plot.grid(axis="y", visible=False)
    plot.grid(axis="x", color=GRID, linewidth=0.75)
    plot.spines[:].set_visible(False)
    plot.tick_params(length=0, pad=8)
    return plot


def mark(plot: Axes, point: Point, kind: str, color: str, tooltip: str = "") -> None:
    """kind: a key of MARKS. tooltip: what a browser shows for it."""
    (drawn,) = plot.plot(*point, color=color, linestyle="none", zorder=3, clip_on=False, **MARKS[kind])
    drawn.set_gid(f"tooltip:{tooltip}" if tooltip else None)


def note(sheet: Figure, left: float, middle: float, text: str, size: float = 10, **look: Any) -> Text:
    """Text of a figure; middle: of its height."""
    across, down = sheet.get_size_inches() * INCH
    return sheet.text(left / across, 1 - middle / down, text, size=size, va="center", parse_math=False, **look)


def paste(sheet: Figure, pixels: np.ndarray, left: int, top: int) -> None:
    """uint8 [H, W, 3] into a figure of density 1, pixel for pixel."""
    sheet.figimage(pixels, left, round(sheet.bbox.height) - top - len(pixels))


def heat_colors(values: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> [..., 3] in [0, 1]: from blue over green to red."""
    return _matplotlib().colormaps["turbo"](values)[..., :3]


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _save(sheet: Figure, form: str, tight: bool, **options: Any) -> bytes:
    """tight: cut to what is drawn, or grown to it."""
    file = io.BytesIO()
    settings = {"svg.hashsalt": "vidssl", "svg.fonttype": "none", "axes.autolimit_mode": "round_numbers"}
    with _matplotlib().rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names in other scripts
        for artist in sheet.findobj():
            artist.set_clip_on(False)  # nothing is outside of axes, and an SVG is shorter
            if hasattr(artist, "set_parse_math"):
                artist.set_parse_math(False)  # names are no formulas
        sheet.savefig(file, format=form, bbox_inches="tight" if tight else None, **options)
    return file.getvalue()


def svg(sheet: Figure, title: str, *, tight: bool = False) -> str:
    """The same text for the same figure, for a page or a file of its own; letters are text in the font of the page."""
    text = _save(sheet, "svg", tight, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))).decode()
    start = text.index(">", text.index("<svg"))
    root = text[text.index("<svg") : start].replace("<svg", '<svg role="img" font-family="system-ui, sans-serif"')
    text = f"{root}><title>{html.escape(title)}</title>{text[start + 1 :]}"
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)  # would style a whole page
    text = re.sub(r'<g id="tooltip:([^"]*)">', r"<g><title>\1</title>", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # other figures of the page have the same
    return re.sub(r'(<text style="[^"]*?)font-family: [^;"]*; ', r"\1", text)


def image(sheet: Figure, *, tight: bool = False) -> np.ndarray:
    """uint8 [H, W, 3]"""
    file = io.BytesIO(_save(sheet, "png", tight, pil_kwargs={"compress_level": 1}))
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 3] + "..."


def fitted(text: Text, width: float) -> None:
    """Shorten a text of a figure of density 1 to a width."""
    content = text.get_text()
    while content and text.get_window_extent().width > width:
        content = content[:-1]
        text.set_text(f"{content}...")
