"""Training curves: losses and accuracies over the steps, a line for each setting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vidssl.report import canvas
from vidssl.report.canvas import Entry, Point, Section
from vidssl.report.runs import Curves, Setting, Trial, read_curves

MOST_POINTS = 200  # of a line
BROKEN = ("failed", "interrupted", "preempted")


class Curve(NamedTuple):
    run: Trial
    points: list[Point]  # step, value
    is_broken: bool = False  # whether the run stopped in it


def section(settings: list[Setting]) -> Section | None:
    """Loss and accuracies of each training task."""
    logged = [[(run, read_curves(run.folder)) for run in setting.runs if run.folder] for setting in settings]
    names = in_order_of_tasks([name for runs in logged for _, curves in runs for name in curves])
    plots = []
    for name in names:
        lines = [[_curve(run, curves, name) for run, curves in runs if name in curves] for runs in logged]
        plots.append((": ".join(name), draw(lines, *name)))
    legend = canvas.line_entries(setting.label for setting in settings)
    if any(run.status in BROKEN for setting in settings for run in setting.runs):
        legend.append(Entry("a run that stopped before its end", canvas.SYMBOLS["cross"]))
    note = "Thick: the mean over the seeds so far. Thin: each seed."
    return Section("Training", plots, legend, note) if plots else None


def in_order_of_tasks(names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(task, scalar) each once, those of a task together."""
    tasks = list(dict.fromkeys(task for task, _ in names))
    return sorted(dict.fromkeys(names), key=lambda name: tasks.index(name[0]))


def _curve(run: Trial, curves: Curves, name: tuple[str, str]) -> Curve:
    last_task, _ = next(reversed(curves))
    return Curve(run, curves[name], run.status in BROKEN and name[0] == last_task)


def draw(lines: list[list[Curve]], task: str, scalar: str) -> str:
    """SVG. lines: the curves of each setting, one for each seed; empty before its first logged steps."""
    sheet, plot = canvas.chart("step", scalar)
    plot.set_xlim(0, max(curve.points[-1][0] for curves in lines for curve in curves))
    shown = [[curve._replace(points=thinned(curve.points)) for curve in curves] for curves in lines]
    for number, curves in enumerate(shown):
        color, dash = canvas.line_style(number)
        for curve in curves if len(curves) > 1 else ():
            plot.plot(*zip(*curve.points, strict=True), color=color, linewidth=0.75, alpha=0.35)
        if curves:
            mean = thinned(mean_curve([curve.points for curve in lines[number]]))
            plot.plot(*zip(*mean, strict=True), color=color, linestyle=dash, linewidth=1.65)
        for run, line, is_broken in curves:
            if is_broken:
                canvas.mark(plot, line[-1], "cross", color, f"seed {run.seed}: {run.status}")
    return canvas.svg(sheet, f"{task}: {scalar} over the steps")


def mean_curve(curves: Sequence[list[Point]]) -> list[Point]:
    """Mean at each step over the seeds that have reached it."""
    by_step: dict[float, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    return [(step, statistics.fmean(values)) for step, values in sorted(by_step.items())]


def thinned(line: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most that many points: each the mean since the one before, at its last step."""
    parts = np.array_split(np.array(line), min(most, len(line)))
    return [(part[-1, 0], part[:, 1].mean()) for part in parts]


def overview(curves: Curves) -> np.ndarray:
    """Curves of one run, a plot for each, colored by task -> uint8 [H, W, 3]."""
    names = in_order_of_tasks(list(curves))
    tasks = list(dict.fromkeys(task for task, _ in names))
    rows = -(-len(names) // 2)
    sheet = canvas.figure(canvas.PAGE, 324 * rows, density=2, layout="constrained")
    plots = sheet.subplots(rows, 2, squeeze=False).flat
    for plot in plots[len(names) :]:
        plot.set_visible(False)
    for plot, (task, scalar) in zip(plots, names, strict=False):
        color, _ = canvas.line_style(tasks.index(task))
        canvas.ranged(canvas.styled(plot)).set_xlim(0, curves[task, scalar][-1][0])
        plot.plot(*zip(*curves[task, scalar], strict=True), color=color, linewidth=1.65)
        plot.set_title(f"{task}: {scalar}", size=10.5, loc="left")
        plot.set_xlabel("step", size=9)
    return canvas.image(sheet)
