"""Metrics of task=bias, under changes of the test clips: a table of one run or of many, and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vidssl.report import canvas
from vidssl.report.canvas import Section
from vidssl.report.runs import Setting
from vidssl.report.tables import Table, mean_and_deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Metrics = dict[str, float]  # of task=bias, without the task's name
Runs = Sequence[tuple[str, list[Metrics]]]  # a setting's label and the metrics of each of its runs


class Condition(NamedTuple):
    name: str  # prefix of its metrics; "": the clips as they are
    title: str
    meaning: str

    @property
    def top1(self) -> str:
        return f"{self.name}_top1" if self.name else "top1"

    @property
    def likeness(self) -> str:
        return f"{self.name}_likeness"

    def is_in(self, metrics: Metrics) -> bool:
        return not metrics.keys().isdisjoint((self.name, self.top1, self.likeness))


CHANGES = (
    Condition("", "as filmed", "the test clips as they are"),
    Condition("other_background", "other background", "the foreground on another class's still background"),
    Condition("swap", "other background, rendered", "test videos rendered once more on other backgrounds"),
    Condition("no_foreground", "no foreground", "all that the foreground ever covers painted over with one color"),
    Condition("frozen", "frozen", "the middle frame, repeated"),
    Condition("reversed", "reversed", "played backwards"),
    Condition("shuffled", "shuffled", "frames in random order"),
)
PAIRS = (
    Condition("same_motion", "pair: same motion, other background", "two videos composed by masks, of one foreground"),
    Condition("same_background", "pair: same background, other motion", "the same, of one background"),
)
PREFERENCES = (
    Condition(
        "motion_preference", "motion preference, rendered",
        "share of videos that are nearer to the same motion on another background than to another motion on the same "
        "background; 0: the background alone counts, 100: the motion",
    ),
    Condition("masked_motion_preference", "motion preference, by masks", "the same with videos composed by masks"),
)  # fmt: skip
OTHERS = (
    Condition("scene_top1", "scene top1", "the background's family, predicted by a linear probe"),
    Condition("chance", "chance", "accuracy of the most frequent class"),
)
ALWAYS = "masked_motion_preference"  # every run of task=bias has it


def table(metrics: Metrics) -> Table:
    """One run: a row for each change, then the preferences, with confidence intervals."""
    rows = []
    for change in CHANGES:
        if change.is_in(metrics):
            drop = f"{metrics[change.top1] - metrics['top1']:+.1f}" if change.name and change.top1 in metrics else "-"
            likeness = f"{metrics[change.likeness]:.2f}" if change.likeness in metrics else "-"
            rows.append([change.title, _with_interval(metrics, change.top1), drop, likeness])
    rows += [[pair.title, "-", "-", f"{metrics[pair.likeness]:.2f}"] for pair in PAIRS]
    others = [each for each in (*PREFERENCES, *OTHERS) if each.name in metrics]
    rows += [[each.title, _with_interval(metrics, each.name), "-", "-"] for each in others]
    rows.append(["follows the", follows(metrics), "-", "-"])
    return Table("background or motion?", ["", "%", "change", "likeness"], rows)


def follows(metrics: Metrics) -> str:
    """`motion` or `background` if the interval of the preference, rendered if measured, is on one side of 50."""
    name = next(preference.name for preference in PREFERENCES if preference.name in metrics)
    if metrics[f"{name}_low"] > 50:
        return "motion"
    return "background" if metrics[f"{name}_high"] < 50 else "undecided"


def _with_interval(metrics: Metrics, name: str) -> str:
    if name not in metrics:
        return "-"
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return f"{metrics[name]:.1f}" + ("" if low is None else f" ({low:.1f} to {high:.1f})")


def legend(metrics: Metrics) -> list[str]:
    """What the rows of the table mean."""
    shown = [each for each in (*CHANGES[1:], *PAIRS, *PREFERENCES, *OTHERS) if each.is_in(metrics)]
    return [
        *(f"{each.title}: {each.meaning}" for each in shown),
        "%: accuracy (top-1) or share, in parentheses the 95 % confidence interval over the test videos",
        "likeness: what the change leaves of the features; 1 everything, 0 no more than another video shares with them",
    ]


def measured(settings: list[Setting]) -> Runs:
    """Settings that have run task=bias."""
    return [(setting.label, runs) for setting in settings if (runs := _metrics(setting))]


def _metrics(setting: Setting) -> list[Metrics]:
    runs = ({name.removeprefix("bias."): value for name, value in run.metrics.items() if name.startswith("bias.")}
            for run in setting.runs)  # fmt: skip
    return [metrics for metrics in runs if ALWAYS in metrics]


def summary(settings: list[Setting]) -> tuple[Table | None, list[str]]:
    """A row for each setting with means over its seeds, and the legend; a single run has the table of one run.

    No table if task=bias was never run.
    """
    rows = measured(settings)
    if not rows:
        return None, []
    together = {name: value for _, runs in rows for metrics in runs for name, value in metrics.items()}
    if len(settings) == 1 and len(rows[0][1]) == 1:
        return table(together), legend(together)
    columns = [(change.title, change.top1) for change in CHANGES]
    columns += [(each.title, each.name) for each in (*PREFERENCES, *OTHERS)]
    columns = [(title, name) for title, name in columns if name in together]
    cells = [
        [label, *(mean_and_deviation([run[name] for run in runs if name in run]) for _, name in columns)]
        for label, runs in rows
    ]
    head = ["", *(title for title, _ in columns)]
    return Table("background or motion? (task=bias, %)", head, cells), legend(together)


# ---------------------------------------------------------------------------------------------------------------------
# Plot

MOST = 7  # settings in one plot
PERCENT = range(0, 101, 25)


def section(settings: list[Setting]) -> Section | None:
    rows = measured(settings)
    if not 0 < len(rows) <= MOST:
        return None
    legend = canvas.line_entries([label for label, _ in rows]) if len(rows) > 1 else []
    return Section("Background or motion?", [("", draw(rows))], legend)


def draw(settings: Runs) -> str:
    """SVG: accuracies and likenesses under each change, below them the preferences.

    Full marks are means over runs, pale ones single runs, bars the intervals of one run.
    """
    runs = [metrics for _, each in settings for metrics in each]
    changes = [change for change in CHANGES if any(change.is_in(metrics) for metrics in runs)]
    preferences = [each for each in PREFERENCES if any(each.is_in(metrics) for metrics in runs)]
    lowest = min(metrics[change.likeness] for change in changes for metrics in runs if change.likeness in metrics)
    height = max(34, 8 * len(settings) + 10)  # of a row
    above, below, step = height * len(changes), height * len(preferences), 8 / height
    halves = range(math.floor(2 * lowest), 3)
    likeness = [0.5 * half for half in halves] if lowest < 0 else [0.25 * quarter for quarter in range(5)]
    sheet = canvas.figure(774, above + below + 130)
    plot = canvas.rows(sheet, 214, 30, (250, above), len(changes), PERCENT)
    _panel(plot, "accuracy, %", changes, [change.top1 for change in changes], settings, step)
    plot = canvas.rows(sheet, 504, 30, (250, above), len(changes), likeness)
    _panel(plot, "likeness of the features", [], [change.likeness for change in changes], settings, step)
    plot = canvas.rows(sheet, 214, above + 84, (540, below), len(preferences), PERCENT)
    title = "0: the background alone counts; 100: the motion alone"
    _panel(plot, title, preferences, [preference.name for preference in preferences], settings, step)
    return canvas.svg(sheet, "background or motion?")


def _panel(
    plot: Axes, title: str, labels: Sequence[Condition], names: Sequence[str], settings: Runs, step: float
) -> None:
    plot.set_title(title, size=9)
    plot.axvline(50 if plot.get_xlim()[1] > 1 else 0, color="#bbbbbb", linewidth=0.75, zorder=1)
    titles = [each.title.replace("motion preference,", "preference") for each in labels]
    plot.set_yticks(range(len(titles)), titles, size=10)
    for row, name in enumerate(names):
        _marks(plot, settings, name, row, step)


def _marks(plot: Axes, settings: Runs, name: str, row: int, step: float) -> None:
    """Marks of every setting, one below the other."""
    for number, (label, runs) in enumerate(settings):
        values = [metrics[name] for metrics in runs if name in metrics]
        if not values:
            continue
        color, y = canvas.line_style(number)[0], row + step * (number - (len(settings) - 1) / 2)
        if len(runs) == 1 and f"{name}_low" in runs[0]:
            plot.plot([runs[0][f"{name}_low"], runs[0][f"{name}_high"]], [y, y], color=color, linewidth=1.5)
        for value in values if len(values) > 1 else ():
            canvas.mark(plot, (value, y), "seed", color, f"{label}: {value:.2f}")
        middle = statistics.mean(values)
        canvas.mark(plot, (middle, y), "mean", color, f"{label}: {middle:.2f}".lstrip(": "))
