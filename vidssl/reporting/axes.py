"""Numbers to places in a drawing: scales with round ticks, a framed chart in SVG that lines and marks are put into."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

# Okabe and Ito's colors that color-blind readers tell apart, without the yellow that is too pale for lines; then dashed
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("", "7 4", "2 3")


def stroke(number: int) -> tuple[str, str]:
    """Color and dashes of the number-th line of a chart."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


@dataclass(frozen=True)
class Scale:
    """low and high are the ends of an axis."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def round_scale(values: Iterable[float], most: int = 6) -> Scale:
    """From a round number to a round number, about all values."""
    low, high = _apart(values)
    step = round_step((high - low) / (most - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(step * i for i in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def tight_scale(values: Iterable[float], most: int = 6) -> Scale:
    """From the least to the greatest value, with ticks at round numbers."""
    low, high = _apart(values)
    ticks = tuple(tick for tick in round_scale((low, high), most).ticks if low <= tick <= high)
    return Scale(low, high, ticks)


def _apart(values: Iterable[float]) -> Point:
    """The least and the greatest value; around them where these are one."""
    values = list(values)
    low, high = min(values), max(values)
    middle, reach = (low + high) / 2, max(abs(low), abs(high), 1e-6)
    return (low, high) if high - low > 1e-6 * reach else (middle - reach / 2, middle + reach / 2)


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... that is not below least."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def written(ticks: Sequence[float]) -> list[str]:
    """Ticks with as many digits as tell them apart."""
    for digits in range(12):
        texts = [f"{tick + 0.0:.{digits}f}" for tick in ticks]
        if all(math.isclose(float(text), tick, abs_tol=1e-12) for text, tick in zip(texts, ticks, strict=True)):
            return texts
    return [f"{tick:.3g}" for tick in ticks]


@dataclass
class Chart:
    """A frame with two axes, which grows and shrinks with the page."""

    x: Scale
    y: Scale
    x_name: str
    y_name: str
    x_texts: Sequence[str] | None = None  # beside the ticks, where their own numbers are not meant
    parts: list[str] = field(default_factory=list)

    width, height = 520, 300
    left, right, top, bottom = 64, 506, 12, 254  # edges of the frame

    def at(self, point: Point) -> Point:
        """A point's place in the picture, whose y goes downwards."""
        across, up = self.x.share(point[0]), self.y.share(point[1])
        return self.left + (self.right - self.left) * across, self.bottom - (self.bottom - self.top) * up

    def line(self, points: Sequence[Point], color: str, dash: str = "", width: float = 2.2, opacity: float = 1) -> None:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self.at, points))
        self.parts.append(
            tag(
                "polyline", points=places, fill="none", stroke=color, stroke_width=width, stroke_linejoin="round",
                stroke_dasharray=dash or None, stroke_opacity=None if opacity == 1 else opacity,
            )
        )  # fmt: skip

    def mark(self, point: Point, kind: str, color: str, title: str = "") -> None:
        self.parts.append(mark(self.at(point), kind, color, title))

    def svg(self, title: str) -> str:
        return picture(self.width, self.height, [*self._frame(), *self.parts], title)

    def _frame(self) -> list[str]:
        parts = []
        last = -math.inf
        for tick, label in zip(self.x.ticks, self.x_texts or written(self.x.ticks), strict=True):
            x, _ = self.at((tick, self.y.low))
            parts.append(rule((x, self.bottom), (x, self.bottom + 5), "#555"))
            if x - last > 4 + 7 * len(label):  # labels that would overlap are left out
                parts.append(text((x, self.bottom + 19), label, "middle"))
                last = x
        for tick, label in zip(self.y.ticks, written(self.y.ticks), strict=True):
            _, y = self.at((self.x.low, tick))
            parts.append(rule((self.left, y), (self.right, y), "#e2e2e2"))
            parts.append(text((self.left - 8, y + 4), label, "end"))
        parts.append(rule((self.left, self.top), (self.left, self.bottom), "#555"))
        parts.append(rule((self.left, self.bottom), (self.right, self.bottom), "#555"))
        middle = (self.top + self.bottom) / 2
        parts.append(text(((self.left + self.right) / 2, self.height - 6), self.x_name, "middle"))
        turned = text((14, middle), self.y_name, "middle", transform=f"rotate(-90 14 {middle:g})")
        return [*parts, turned]


# ---------------------------------------------------------------------------------------------------------------------
# Elements


def tag(name: str, content: str = "", **attributes: object) -> str:
    """content is markup; attributes are escaped, and left out where they are None."""
    told = (f' {key.rstrip("_").replace("_", "-")}="{html.escape(_short(value))}"'
            for key, value in attributes.items() if value is not None)  # fmt: skip
    return f"<{name}{''.join(told)}>{content}</{name}>"


def _short(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) and abs(value) >= 10 else str(value)


def picture(width: float, height: float, parts: Iterable[str], title: str) -> str:
    """SVG that fills the width it is given, up to its own."""
    inner = tag("title", html.escape(title)) + "".join(parts)
    return tag("svg", inner, viewBox=f"0 0 {width:g} {height:g}", width=width, role="img")


def rule(start: Point, end: Point, color: str) -> str:
    return tag("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], stroke=color)


def text(place: Point, content: str, anchor: str = "start", size: int = 12, **attributes: object) -> str:
    more = {"text_anchor": anchor, "font_size": size, **attributes}
    return tag("text", html.escape(content), x=place[0], y=place[1], **more)


MARKS = ("circle", "square", "diamond")


def mark(place: Point, kind: str, color: str, title: str = "") -> str:
    """seed: small and pale. mean: full. cross: an end that was not meant. circle, square, diamond: hollow."""
    x, y = place
    told = tag("title", html.escape(title)) if title else ""
    hollow = {"fill": "#fff", "stroke": color, "stroke_width": 1.8}
    match kind:
        case "seed":
            return tag("circle", told, cx=x, cy=y, r=4, fill=color, fill_opacity=0.45)
        case "mean":
            return tag("circle", told, cx=x, cy=y, r=5.5, fill=color)
        case "cross":
            cross = {"d": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", "fill": "none"}
            halo = tag("path", stroke="#fff", stroke_width=6, **cross)  # among lines of its color
            return tag("g", told + halo + tag("path", stroke=color, stroke_width=3, **cross))
        case "circle":
            return tag("circle", told, cx=x, cy=y, r=5, **hollow)
        case "square":
            return tag("rect", told, x=x - 4.5, y=y - 4.5, width=9, height=9, **hollow)
        case "diamond":
            return tag("path", told, d=f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z", **hollow)
        case _:
            raise AssertionError(kind)
