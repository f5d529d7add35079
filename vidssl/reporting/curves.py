"""How training went: the scalars of metrics.jsonl over the steps, a line for each setting."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from vidssl.reporting.axes import Chart, Point, round_scale, stroke, tight_scale
from vidssl.reporting.runs import Setting, Trial

MOST_POINTS = 200  # of a line
BROKEN = ("failed", "interrupted", "preempted")


class Curve(NamedTuple):
    run: Trial
    points: list[Point]  # step, value
    stopped: bool = False  # before its end


class Plot(NamedTuple):
    title: str
    svg: str


def plots(settings: list[Setting]) -> list[Plot]:
    """Of each training task its loss and its accuracies, as they were logged."""
    logged = [[(run, read_curves(run.folder)) for run in setting.runs if run.folder] for setting in settings]
    names = dict.fromkeys(name for runs in logged for _, curves in runs for name in curves)
    tasks = list(dict.fromkeys(task for task, _ in names))
    drawn = []
    for name in sorted(names, key=lambda name: tasks.index(name[0])):
        lines = [[_curve(run, curves, name) for run, curves in runs if name in curves] for runs in logged]
        drawn.append(Plot(": ".join(name), draw(lines, *name)))
    return drawn


def _curve(run: Trial, curves: dict[tuple[str, str], list[Point]], name: tuple[str, str]) -> Curve:
    last_task, _ = next(reversed(curves))
    return Curve(run, curves[name], run.status in BROKEN and name[0] == last_task)


def read_curves(run: Path) -> dict[tuple[str, str], list[Point]]:
    """(task, scalar) -> its values over the steps. The last line may be half written."""
    file = run / "metrics.jsonl"
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    curves: dict[tuple[str, str], list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            if (name == "loss" or name.endswith("top1")) and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault((row["task"], name), []).append((row["step"], value))
    trained = {task for task, name in curves if name == "loss"}
    return {(task, name): curve for (task, name), curve in curves.items() if task in trained and len(curve) > 1}


def draw(lines: list[list[Curve]], task: str, scalar: str) -> str:
    """lines: the curves of each setting, one for each seed; none where it has not begun."""
    shown = [[curve._replace(points=thinned(curve.points)) for curve in curves] for curves in lines]
    means = [thinned(mean_curve([curve.points for curve in curves])) for curves in lines]
    points = [point for curves in shown for curve in curves for point in curve.points]
    steps, values = [step for step, _ in points], [value for _, value in points]
    chart = Chart(tight_scale([0, *steps]), round_scale(values), "step", scalar)
    for number, (curves, mean) in enumerate(zip(shown, means, strict=True)):
        color, dash = stroke(number)
        for curve in curves if len(curves) > 1 else ():
            chart.line(curve.points, color, width=1, opacity=0.35)
        if mean:
            chart.line(mean, color, dash)
    for number, curves in enumerate(shown):
        for run, points, stopped in curves:
            if stopped:
                chart.mark(points[-1], "cross", stroke(number)[0], f"seed {run.seed}: {run.status}")
    return chart.svg(f"{task}: {scalar} over the steps")


def mean_curve(curves: Sequence[list[Point]]) -> list[Point]:
    """At each step over the seeds that have come so far."""
    by_step: dict[float, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    return [(step, statistics.fmean(values)) for step, values in sorted(by_step.items())]


def thinned(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most that many points: each the mean since the one before, at the step that it is the last of."""
    if len(points) <= most:
        return points
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    parts = [points[start:end] for start, end in pairwise(edges)]
    return [(part[-1][0], statistics.fmean(value for _, value in part)) for part in parts]
