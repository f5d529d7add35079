"""Every run at a glance: a dot for each on a scale from 0 to 100, a row for each setting."""

from __future__ import annotations

import html

from vidssl.reporting.axes import COLORS, mark, picture, rule, tag, text
from vidssl.reporting.runs import Setting, count_states
from vidssl.reporting.states import state

WIDTH = 300  # of the scale
LONGEST = 34  # letters of a label


def draw(settings: list[Setting], name: str, title: str) -> str:
    """title: of the figure. Below a setting's label stands how many of its runs are not done."""
    left = 24 + max(90, *(7.2 * len(shortened(setting.label)) for setting in settings))
    left = max(left, *(24 + 6.8 * len(", ".join(_undone(setting))) for setting in settings))
    heights = [42 if _undone(setting) else 28 for setting in settings]
    bottom = 6 + sum(heights)
    parts = []
    for tick in (0, 25, 50, 75, 100):
        x = left + WIDTH * tick / 100
        parts.append(rule((x, 4), (x, bottom), "#ddd"))
        parts.append(text((x, bottom + 16), str(tick), "middle", 11))
    top = 4
    for setting, height in zip(settings, heights, strict=True):
        parts += _row(setting, name, left, top + height / 2)
        top += height
    return picture(left + WIDTH + 20, bottom + 22, parts, title)


def _row(setting: Setting, name: str, left: float, y: float) -> list[str]:
    undone = _undone(setting)
    label = text((left - 12, y + (-3 if undone else 4)), shortened(setting.label), "end", 13)
    parts = [tag("g", tag("title", html.escape(setting.label)) + label)]
    if undone:
        each = ", ".join(tag("tspan", told, fill=state(name).color) for told, name in undone.items())
        parts.append(tag("text", each, x=left - 12, y=y + 13, text_anchor="end", font_size=11, font_weight=600))
    for seed, value in setting.by_seed(name).items():
        parts.append(mark((left + WIDTH * value / 100, y), "seed", COLORS[0], f"seed {seed}: {value:.1f}"))
    return parts


def _undone(setting: Setting) -> dict[str, str]:
    """`1 failed`, `2 missing`: each with its state."""
    return {f"{count} {name}": name for name, count in count_states([setting]).items() if name != "done"}


def shortened(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 3] + "..."
