"""What task=bias measured: a table of one run, a table of many, and one figure for both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from vidssl.reporting.axes import mark, picture, rule, stroke, tag, text
from vidssl.reporting.runs import Setting
from vidssl.reporting.tables import Sheet

Figures = dict[str, float]


class Row(NamedTuple):
    change: str  # as in the names of figures; "": the clips as they are
    title: str
    meaning: str


ROWS = (
    Row("", "as filmed", "the test clips as they are"),
    Row("other_background", "other background", "the foreground before the still background of another class's video"),
    Row("swap", "other background, rendered", "test videos rendered once more on other backgrounds"),
    Row("no_foreground", "no foreground", "all that the foreground ever covers painted over with one color"),
    Row("frozen", "frozen", "the middle frame, repeated"),
    Row("reversed", "reversed", "played backwards"),
    Row("shuffled", "shuffled", "frames in random order"),
)
PAIRS = (
    Row("same_motion", "pair: same motion, other background", "two videos put together by masks, with one foreground"),
    Row("same_background", "pair: same background, other motion", "the same, with one background"),
)
PREFERENCES = (
    Row(
        "motion_preference",
        "motion preference, rendered",
        "of videos, those nearer to the same motion on another background than to another motion on the same "
        "background; 0: the background alone counts, 100: the motion",
    ),
    Row(
        "masked_motion_preference",
        "motion preference, by masks",
        "the same of videos that are put together from clips by masks",
    ),
)
OTHERS = {
    "scene_top1": "the background's family, told by a linear probe",
    "chance": "accuracy of the most frequent class",
}
FIRST = "masked_motion_preference"  # every run of task=bias has it


def _top1(row: Row) -> str:
    return f"{row.change}_top1" if row.change else "top1"


def table(figures: Figures) -> Sheet:
    """One run: a row for each change, then the preferences; with confidence intervals."""
    rows = []
    for row in ROWS:
        name, left = _top1(row), figures.get(f"{row.change}_likeness")
        if name in figures or left is not None:
            drop = f"{figures[name] - figures['top1']:+.1f}" if name in figures and row.change else "-"
            rows.append([row.title, _between(figures, name), drop, "-" if left is None else f"{left:.2f}"])
    rows += [[row.title, "-", "-", f"{figures[f'{row.change}_likeness']:.2f}"] for row in PAIRS]
    rows += [[row.title, _between(figures, row.change), "-", "-"] for row in PREFERENCES if row.change in figures]
    rows += [[name.replace("_", " "), _between(figures, name), "-", "-"] for name in OTHERS if name in figures]
    rows.append(["follows the", follows(figures), "-", "-"])
    return Sheet("background or motion?", ["", "%", "change", "likeness"], rows)


def follows(figures: Figures) -> str:
    """What the preference says whose confidence interval stays on one side of 50; the rendered one, if there is."""
    name = next(row.change for row in PREFERENCES if row.change in figures)
    if figures[f"{name}_low"] > 50:
        return "motion"
    return "background" if figures[f"{name}_high"] < 50 else "undecided"


def _between(figures: Figures, name: str) -> str:
    if name not in figures:
        return "-"
    limits = f" ({figures[f'{name}_low']:.1f} to {figures[f'{name}_high']:.1f})" if f"{name}_low" in figures else ""
    return f"{figures[name]:.1f}{limits}"


def legend(figures: Figures) -> list[str]:
    """What the rows of the table mean."""
    told = [f"{row.title}: {row.meaning}" for row in ROWS if row.change and _measured(row, figures)]
    told += [f"{row.title}: {row.meaning}" for row in (*PAIRS, *PREFERENCES) if row.change in figures or row in PAIRS]
    told += [f"{name.replace('_', ' ')}: {meaning}" for name, meaning in OTHERS.items() if name in figures]
    told.append("%: accuracy (top-1) or share, in parentheses the 95 % confidence interval over the test videos")
    told.append("likeness: what the change leaves of the features; 1 all, 0 no more than another video has of them")
    return told


def _measured(row: Row, figures: Figures) -> bool:
    return _top1(row) in figures or f"{row.change}_likeness" in figures


# ---------------------------------------------------------------------------------------------------------------------
# Many runs


def measured(setting: Setting) -> list[Figures]:
    """Of each run of a setting what task=bias found, without the task's name."""
    runs = ({name.removeprefix("bias."): value for name, value in run.figures.items() if name.startswith("bias.")}
            for run in setting.runs)  # fmt: skip
    return [found for found in runs if FIRST in found]


def sheet(settings: list[Setting]) -> tuple[Sheet | None, list[str]]:
    """A row for each setting, means over its seeds, and what the columns mean; a run alone has a table of its own. None
    where nobody has run task=bias."""
    having = [(setting.label, found) for setting in settings if (found := measured(setting))]
    if not having:
        return None, []
    together = {name: value for _, found in having for each in found for name, value in each.items()}
    if len(settings) == 1 and len(having[0][1]) == 1:
        return table(together), legend(together)
    columns = [(row.title, _top1(row)) for row in ROWS] + [(row.title, row.change) for row in PREFERENCES]
    columns += [(name.replace("_", " "), name) for name in OTHERS]
    columns = [(title, name) for title, name in columns if name in together]
    rows = [[label, *(_mean(found, name) for _, name in columns)] for label, found in having]
    return Sheet("background or motion? (task=bias, %)", ["", *(title for title, _ in columns)], rows), legend(together)


def _mean(found: list[Figures], name: str) -> str:
    values = [each[name] for each in found if name in each]
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


# ---------------------------------------------------------------------------------------------------------------------
# The figure

MOST = 7  # settings in one figure

LEFT, PANEL, GAP, STEP = 214, 250, 40, 34  # pixels


def figure(settings: Sequence[tuple[str, list[Figures]]]) -> str:
    """SVG: accuracies and likenesses under each change, and below who prefers the motion.

    settings: label and what was found, a run each. Full marks are means over runs, pale ones the runs.
    """
    every = [each for _, found in settings for each in found]
    rows = [row for row in ROWS if any(_measured(row, each) for each in every)]
    thickness = max(STEP, 8 * len(settings) + 10)
    bottom = 30 + thickness * len(rows)
    parts = [text((LEFT - 12, 30 + thickness * (i + 0.5) + 4), row.title, "end", 13) for i, row in enumerate(rows)]
    scored = any("top1" in each for each in every)
    lows = [each[f"{row.change}_likeness"] for row in rows for each in every if f"{row.change}_likeness" in each]
    panels = [("accuracy, %", _top1, (0.0, 100.0))] if scored else []
    lowest = min(0.0, math.floor(2 * min(lows)) / 2)  # in whole halves
    panels.append(("likeness of the features", lambda row: f"{row.change}_likeness", (lowest, 1.0)))
    for place, (title, name_of, ends) in enumerate(panels):
        left = LEFT + place * (PANEL + GAP)
        parts += _frame(left, 24, bottom, title, ends)
        for i, row in enumerate(rows):
            parts += _marks(settings, name_of(row), left, 30 + thickness * (i + 0.5), ends)
    top = bottom + 44
    preferences = [row for row in PREFERENCES if any(row.change in each for each in every)]
    end = top + 6 + thickness * len(preferences)
    parts += _frame(LEFT, top, end, "0: the background alone counts; 100: the motion alone", (0.0, 100.0), wide=True)
    for i, row in enumerate(preferences):
        y = top + 6 + thickness * (i + 0.5)
        parts.append(
            text((LEFT - 12, y + 4), row.title.replace(", ", " ").replace("motion preference", "preference"), "end", 13)
        )
        parts += _marks(settings, row.change, LEFT, y, (0.0, 100.0), wide=True)
    whole = tag("g", "".join(parts), font_family="system-ui, sans-serif")
    return picture(LEFT + 2 * PANEL + GAP + 20, end + 24, [whole], "background or motion?")


def _frame(
    left: float, top: float, bottom: float, title: str, ends: tuple[float, float], *, wide: bool = False
) -> list[str]:
    width = 2 * PANEL + GAP if wide else PANEL
    parts = [text((left + width / 2, top - 8), title, "middle", 12)]
    step = 25.0 if ends[1] > 1 else 0.25 if ends[0] == 0 else 0.5
    for i in range(round((ends[1] - ends[0]) / step) + 1):
        value = ends[0] + i * step
        x = left + width * i * step / (ends[1] - ends[0])
        parts.append(rule((x, top), (x, bottom), "#bbb" if value in (0, 50) else "#e6e6e6"))
        parts.append(text((x, bottom + 15), f"{value:g}", "middle", 11))
    return parts


def _marks(
    settings: Sequence[tuple[str, list[Figures]]],
    name: str,
    left: float,
    y: float,
    ends: tuple[float, float],
    *,
    wide: bool = False,
) -> list[str]:
    """Of every setting, one below the other; the interval where there is one run."""
    width, parts = 2 * PANEL + GAP if wide else PANEL, []

    def across(value: float) -> float:
        return left + width * (value - ends[0]) / (ends[1] - ends[0])

    for number, (label, found) in enumerate(settings):
        values = [each[name] for each in found if name in each]
        if not values:
            continue
        color, at = stroke(number)[0], y + 8 * (number - (len(settings) - 1) / 2)
        if len(found) == 1 and f"{name}_low" in found[0]:
            low, high = (across(found[0][f"{name}_{end}"]) for end in ("low", "high"))
            parts.append(tag("line", x1=low, y1=at, x2=high, y2=at, stroke=color, stroke_width=2))
        for value in values if len(values) > 1 else ():
            parts.append(mark((across(value), at), "seed", color, f"{label}: {value:.2f}"))
        middle = statistics.mean(values)
        parts.append(mark((across(middle), at), "mean", color, f"{label}: {middle:.2f}".lstrip(": ")))
    return parts
