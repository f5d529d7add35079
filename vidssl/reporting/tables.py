"""Tables of settings: seed by seed, against a baseline, beside published figures; what is not done; files."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from vidssl.reporting.runs import Folds, Setting, Trial, count_states
from vidssl.reporting.states import STATES, state


class Column(NamedTuple):
    title: str
    meaning: str
    digits: int = 1
    is_share: bool = True  # percent; others are compared by ratio and not drawn


# Shown in this order where runs have them; all other figures are in each run's result.json
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


class Sheet(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]


def column_names(settings: list[Setting]) -> list[str]:
    return [name for name in COLUMNS if any(setting.by_seed(name) for setting in settings)]


def by_run(settings: list[Setting]) -> Sheet:
    """A row for each run, then mean and standard deviation; runs that are not done say so."""
    names = column_names(settings)
    rows = []
    for setting in settings:
        for place, run in enumerate(setting.runs):
            seed = str(run.seed) if run.status == "done" else f"{run.seed} ({run.status})"
            cells = [f"{run.figures[name]:.{COLUMNS[name].digits}f}" if name in run.figures else "-" for name in names]
            rows.append([setting.label if place == 0 else "", seed, *cells])
        if len(setting.runs) > 1:
            rows.append(["", "mean", *(mean(setting, name) for name in names)])
    return Sheet("", ["", "seed", *(COLUMNS[name].title for name in names)], rows)


def every_figure(run: Trial) -> Sheet:
    """A row for each task: all of its figures."""
    of_task: dict[str, list[str]] = {}
    for name, value in run.figures.items():
        task, _, figure = name.partition(".")
        if figure:
            of_task.setdefault(task, []).append(f"{figure} {value:.4g}")
    return Sheet("all figures", ["task", ""], [[task, ",  ".join(told)] for task, told in of_task.items()])


def mean(setting: Setting, name: str) -> str:
    """Mean and standard deviation over the seeds, and over how many if not over all."""
    return _mean_and_spread(list(setting.by_seed(name).values()), COLUMNS[name].digits, len(setting.seeds))


def _mean_and_spread(values: list[float], digits: int, wanted: int) -> str:
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    some = f" ({len(values)} of {wanted})" if len(values) < wanted else ""
    return f"{statistics.mean(values):.{digits}f}{spread}{some}"


def differences(settings: list[Setting], baseline: str) -> Sheet:
    """Each other setting against the baseline, the mean and seed by seed: percents by difference, times by ratio."""
    base = next(setting for setting in settings if setting.label == baseline)
    names = [name for name in column_names(settings) if name != "cpu_seconds"]
    rows = []
    for setting in settings:
        if setting is base:
            continue
        cells = []
        for name in names:
            ours, theirs = setting.by_seed(name), base.by_seed(name)
            seeds = [seed for seed in ours if seed in theirs]
            if COLUMNS[name].is_share:
                gaps, form = [ours[seed] - theirs[seed] for seed in seeds], "{:+.1f}"
            else:
                gaps, form = [ours[seed] / theirs[seed] for seed in seeds], "x {:.2f}"
            each = ", ".join(form.format(gap) for gap in gaps)
            middle = form.format(statistics.mean(gaps)) if gaps else "-"
            cells.append(f"{middle} ({each})" if len(gaps) > 1 else middle)
        rows.append([f"{setting.label} - {baseline}", *cells])
    return Sheet("seed by seed", ["", *(COLUMNS[name].title for name in names)], rows)


def over_folds(folds: list[Folds]) -> Sheet:
    """A row for each group: mean and spread over the folds, of each fold's mean over its seeds."""
    every = [setting for group in folds for setting in group.settings.values()]
    names = [name for name in column_names(every) if name != "cpu_seconds"]
    rows = []
    for group in folds:
        cells = []
        for name in names:
            each = [setting.by_seed(name).values() for setting in group.settings.values()]
            means = [statistics.mean(values) for values in each if values]
            cells.append(_mean_and_spread(means, COLUMNS[name].digits, len(each)))
        rows.append([group.label, ", ".join(group.settings), *cells])
    return Sheet("mean over folds", ["", "folds", *(COLUMNS[name].title for name in names)], rows)


def beside_published(settings: list[Setting], published: dict[str, Any]) -> Sheet:
    """A row for each setting, of ours or published: mean and spread over the seeds, and what was published."""
    names = [name for name in column_names(settings) if COLUMNS[name].is_share]
    ours = {setting.label: setting for setting in settings}
    rows = []
    for label in [*published["rows"], *(label for label in ours if label not in published["rows"])]:
        means = [mean(ours[label], name) if label in ours else "-" for name in names]
        theirs = published["rows"].get(label, ["-"] * len(published["columns"]))
        rows.append([label, *means, *map(str, theirs)])
    head = ["", *(COLUMNS[name].title for name in names), *(f"published, {name}" for name in published["columns"])]
    return Sheet(f"beside the published figures: {published['source']}", head, rows)


def not_of_all_videos(settings: list[Setting]) -> Sheet:
    """A row for each task of each run whose metrics are not of all listed videos."""
    rows = [
        [setting.label, str(run.seed), task, text]
        for setting in settings for run in setting.runs for task, text in run.incomplete.items()
    ]  # fmt: skip
    return Sheet("not of all listed videos", ["", "seed", "task", ""], rows)


def not_done(settings: list[Setting]) -> Sheet:
    """A row for each run that has not ended well: how it is, and what to do."""
    rows = [
        [setting.label, str(run.seed), run.status, run.folder.name if run.folder else "-", run.error or "-",
         state(run.status).remedy or "-"]
        for setting in settings for run in setting.runs if run.status != "done"
    ]  # fmt: skip
    return Sheet("not done", ["", "seed", "status", "folder", "error", "what to do"], rows)


def summary(settings: list[Setting]) -> str:
    """9 of 12 runs are done, 1 running, 2 missing."""
    counts = count_states(settings)
    others = [name for name in (*STATES, *sorted(counts.keys() - STATES.keys())) if counts[name] and name != "done"]
    told = f"{counts['done']} of {counts.total()} runs {'is' if counts['done'] == 1 else 'are'} done"
    return ", ".join([told, *(f"{counts[name]} {name}" for name in others)])


# ---------------------------------------------------------------------------------------------------------------------
# Files


def every_run(settings: list[Setting]) -> str:
    """As CSV: a row for each run, with every figure that any run has."""
    names = sorted({name for setting in settings for run in setting.runs for name in run.figures})
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["setting", "seed", "status", "folder", *names])
    for setting in settings:
        for run in setting.runs:
            figures = [run.figures.get(name, "") for name in names]
            writer.writerow([setting.label, run.seed, run.status, run.folder or "", *figures])
    return out.getvalue()


def markdown(sheets: Sequence[Sheet], legend: list[str], note: str) -> str:
    tables = []
    for sheet in sheets:
        rows = (sheet.head, ["---"] * len(sheet.head), *sheet.rows)
        tables += [f"**{sheet.title}**"] if sheet.title else []
        tables.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows))
    return "\n\n".join([*tables, "\n".join(f"* {line}" for line in legend), note.strip()]).strip() + "\n"
