"""Tables of settings: seed by seed, against a baseline, beside published metrics; what is not done; files."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from vidssl.report.runs import Folds, Setting, Trial, count_states
from vidssl.report.states import in_order, state


class Column(NamedTuple):
    title: str
    meaning: str
    digits: int = 1
    is_percent: bool = True  # others are compared by ratio and not drawn


# Shown in this order where runs have them; all other metrics are in each run's result.json
COLUMNS = {
    "linear.top1": Column("linear", "linear probe on the frozen backbone, top-1 on the test split"),
    "linear.swap_top1": Column("linear, swapped", "the same on test videos whose background was replaced"),
    "finetune.top1": Column("fine-tuned", "top-1 on the test split after training all layers"),
    "test.top1": Column("test", "top-1 on the test split"),
    "knn.top1": Column("kNN", "vote of the nearest training videos, top-1 on the test split"),
    "retrieve.R@1": Column("R@1", "test videos whose nearest training video is of their class"),
    "retrieve.motion_preference": Column(
        "motion preference", "0: only the background counts for the features, 100: only the motion"
    ),
    "bench.step_seconds": Column("step, s", "seconds of a training step, measured alone", 3, False),
    "bench.data_clips_per_second": Column("clips/s", "clips that the loader reads in a second", 1, False),
    "seconds_per_step": Column("s/step", "seconds of a pretraining step without waiting for data", 3, False),
    "cpu_seconds": Column("CPU s", "processor seconds of the run", 1, False),
}


class Table(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]


def column_names(settings: list[Setting]) -> list[str]:
    return [name for name in COLUMNS if any(setting.by_seed(name) for setting in settings)]


def percent_names(settings: list[Setting]) -> list[str]:
    return [name for name in column_names(settings) if COLUMNS[name].is_percent]


def by_run(settings: list[Setting]) -> Table:
    """A row for each run, then mean and standard deviation; runs that are not done are marked with their status."""
    names = column_names(settings)
    rows = []
    for setting in settings:
        for index, run in enumerate(setting.runs):
            seed = str(run.seed) if run.status == "done" else f"{run.seed} ({run.status})"
            cells = [f"{run.metrics[name]:.{COLUMNS[name].digits}f}" if name in run.metrics else "-" for name in names]
            rows.append([setting.label if index == 0 else "", seed, *cells])
        if len(setting.runs) > 1:
            rows.append(["", "mean", *(mean(setting, name) for name in names)])
    return Table("", ["", "seed", *(COLUMNS[name].title for name in names)], rows)


def every_metric(run: Trial) -> Table:
    """A row for each task with all of its metrics."""
    tasks: dict[str, list[str]] = {}
    for name, value in run.metrics.items():
        task, _, metric = name.partition(".")
        if metric:
            tasks.setdefault(task, []).append(f"{metric} {value:.4g}")
    return Table("all metrics", ["task", ""], [[task, ",  ".join(metrics)] for task, metrics in tasks.items()])


def mean(setting: Setting, name: str) -> str:
    return mean_and_deviation(setting.by_seed(name).values(), COLUMNS[name].digits, len(setting.seeds))


def mean_and_deviation(values: Collection[float], digits: int = 1, expected: int = 0) -> str:
    """`71.2 +- 1.0 (2 of 3)`, with the last part where fewer values than expected exist; `-` without any."""
    if not values:
        return "-"
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    lacking = f" ({len(values)} of {expected})" if len(values) < expected else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}{lacking}"


def differences(settings: list[Setting], baseline: str) -> Table:
    """Every other setting against the baseline, mean and seed by seed: percentages by difference, times by ratio."""
    base = next(setting for setting in settings if setting.label == baseline)
    names = [name for name in column_names(settings) if name != "cpu_seconds"]
    rows = []
    for setting in settings:
        if setting is not base:
            cells = [_difference(setting.by_seed(name), base.by_seed(name), name) for name in names]
            rows.append([f"{setting.label} - {baseline}", *cells])
    return Table("seed by seed", ["", *(COLUMNS[name].title for name in names)], rows)


def _difference(values: dict[int, float], baseline: dict[int, float], name: str) -> str:
    pairs = [(value, baseline[seed]) for seed, value in values.items() if seed in baseline]
    if COLUMNS[name].is_percent:
        changes, form = [one - other for one, other in pairs], "{:+.1f}"
    else:
        changes, form = [one / other for one, other in pairs], "x {:.2f}"
    if not changes:
        return "-"
    each = f" ({', '.join(map(form.format, changes))})" if len(changes) > 1 else ""
    return form.format(statistics.mean(changes)) + each


def over_folds(folds: list[Folds]) -> Table:
    """A row for each group: mean and standard deviation over the folds, of each fold's mean over its seeds."""
    names = [name for name in column_names([each for group in folds for each in group.settings.values()])
             if name != "cpu_seconds"]  # fmt: skip
    rows = []
    for group in folds:
        cells = []
        for name in names:
            by_fold = [setting.by_seed(name).values() for setting in group.settings.values()]
            means = [statistics.mean(values) for values in by_fold if values]
            cells.append(mean_and_deviation(means, COLUMNS[name].digits, len(by_fold)))
        rows.append([group.label, ", ".join(group.settings), *cells])
    return Table("mean over folds", ["", "folds", *(COLUMNS[name].title for name in names)], rows)


def beside_published(settings: list[Setting], published: dict[str, Any]) -> Table:
    """A row for each setting, measured or published: mean and standard deviation over seeds, published metrics."""
    names = percent_names(settings)
    measured = {setting.label: setting for setting in settings}
    rows = []
    for label in dict.fromkeys([*published["rows"], *measured]):
        means = [mean(measured[label], name) if label in measured else "-" for name in names]
        rows.append([label, *means, *map(str, published["rows"].get(label, ["-"] * len(published["columns"])))])
    head = ["", *(COLUMNS[name].title for name in names), *(f"published, {name}" for name in published["columns"])]
    return Table(f"beside the published metrics: {published['source']}", head, rows)


def not_of_all_videos(settings: list[Setting]) -> Table:
    """A row for each task of each run whose metrics are not of all listed videos."""
    rows = [
        [setting.label, str(run.seed), task, text]
        for setting in settings for run in setting.runs for task, text in run.incomplete.items()
    ]  # fmt: skip
    return Table("not of all listed videos", ["", "seed", "task", ""], rows)


def not_done(settings: list[Setting]) -> Table:
    """A row for each run that has not ended well: its status, its error, and what to do."""
    rows = [
        [setting.label, str(run.seed), run.status, run.folder.name if run.folder else "-", run.error or "-",
         state(run.status).remedy or "-"]
        for setting in settings for run in setting.runs if run.status != "done"
    ]  # fmt: skip
    return Table("not done", ["", "seed", "status", "folder", "error", "what to do"], rows)


def summary(settings: list[Setting]) -> str:
    """`9 of 12 runs are done, 1 running, 2 missing`"""
    counts = count_states(settings)
    done = f"{counts['done']} of {counts.total()} runs {'is' if counts['done'] == 1 else 'are'} done"
    return ", ".join([done, *(f"{count} {name}" for name, count in in_order(counts).items() if name != "done")])


# ---------------------------------------------------------------------------------------------------------------------
# Files


def every_run(settings: list[Setting]) -> str:
    """CSV: a row for each run, with every metric of any run."""
    names = sorted({name for setting in settings for run in setting.runs for name in run.metrics})
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["setting", "seed", "status", "folder", *names])
    for setting in settings:
        for run in setting.runs:
            metrics = [run.metrics.get(name, "") for name in names]
            writer.writerow([setting.label, run.seed, run.status, run.folder or "", *metrics])
    return file.getvalue()


def markdown(tables: Sequence[Table], legend: list[str], note: str) -> str:
    parts = []
    for table in tables:
        rows = (table.head, ["---"] * len(table.head), *table.rows)
        parts += [f"**{table.title}**"] if table.title else []
        parts.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows))
    return "\n\n".join([*parts, "\n".join(f"* {line}" for line in legend), note.strip()]).strip() + "\n"
