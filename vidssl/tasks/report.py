"""Many runs in one table: read from their folders, whatever state they are in; nothing is known beforehand."""

from __future__ import annotations

import base64
import csv
import html
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from vidssl.build import Run
from vidssl.tasks import TASKS, Task


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
    "bench.ratio": Column("step, times", "seconds of a training step over those of the baseline", 2, False),
    "bench.flop_ratio": Column("FLOPs, times", "the same of floating-point operations", 2, False),
    "seconds_per_step": Column("s/step", "seconds of a pretraining step without waiting for data", 3, False),
    "cpu_seconds": Column("CPU s", "processor seconds of the run", 1, False),
}


@TASKS.register("report")
@dataclass(frozen=True)
class Report(Task):
    runs: str
    baseline: str | None

    def problems(self) -> list[str]:
        folder = Path(self.runs)
        if not folder.is_dir():
            return [f"report.runs={self.runs}: no such folder"]
        settings = read_settings(folder)
        if not settings:
            return [f"report.runs={self.runs}: no runs in there (folders with a run.json)"]
        labels = [setting.label for setting in settings]
        if self.baseline is not None and self.baseline not in labels:
            return [f"report.baseline={self.baseline}: no such row; there are {', '.join(labels)}"]
        return []

    def __call__(self, run: Run) -> dict[str, float]:
        settings = show_report(Path(self.runs), self.baseline)
        return {"settings": float(len(settings)), "runs": float(sum(len(setting.runs) for setting in settings))}


@dataclass(frozen=True)
class Finished:
    """What one run's folder says."""

    folder: Path
    seed: int
    status: str
    words: str  # its overrides
    figures: dict[str, float]


@dataclass
class Setting:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Finished] = field(default_factory=list)

    def by_seed(self, name: str) -> dict[int, float]:
        return {run.seed: run.figures[name] for run in self.runs if name in run.figures}


@dataclass(frozen=True)
class About:
    """What a sweep's file says of its report, in hydra.callbacks.report."""

    baseline: str | None = None  # a row of the table to which differences are shown, seed by seed
    note: str = ""  # what a reader has to know
    published: dict[str, Any] | None = None  # source, columns, and rows: label -> a figure for each column


def read_about(folder: Path) -> About:
    """Of the sweep whose folder this is, if it is one's."""
    file = folder / "multirun.yaml"
    if not file.exists():
        return About()
    section = OmegaConf.to_container(OmegaConf.load(file))["hydra"]["callbacks"]["report"]
    return About(**{key: value for key, value in section.items() if key != "_target_"})


def show_report(folder: Path, baseline: str | None = None) -> list[Setting]:
    """Print the table of all runs under a folder; write it to report.md, report.csv and report.html in there.

    baseline: in place of the one that the sweep names.
    """
    settings = read_settings(folder)
    if not settings:
        return []
    about = read_about(folder)
    note, baseline = about.note, baseline or about.baseline
    if baseline not in [setting.label for setting in settings]:
        baseline = None
    sheets = [by_run(settings)]
    if baseline is not None and len(settings) > 1:
        sheets.append(differences(settings, baseline))
    if about.published is not None:
        sheets.append(beside_published(settings, about.published))
    legend = [f"{column.title}: {column.meaning}" for column in (COLUMNS[name] for name in _names(settings))]
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    for sheet in sheets:
        printed = Table(*sheet.head, title=sheet.title, title_justify="left")
        for row in sheet.rows:
            printed.add_row(*row, end_section=row[1] == "mean")
        console.print(printed)
    for line in (*legend, *([note.strip()] if note else [])):
        console.print(line, markup=False, soft_wrap=True)
    (folder / "report.md").write_text(markdown(sheets, legend, note))
    write_csv(folder / "report.csv", settings)
    (folder / "report.html").write_text(page(folder, settings, sheets, legend, note))
    console.print(f"{folder / 'report.html'}", markup=False, soft_wrap=True)
    return settings


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def find_runs(folder: Path) -> list[Path]:
    """Run folders, at most three levels down."""
    return [file.parent for depth in range(4) for file in sorted(folder.glob("*/" * depth + "run.json"))]


def read_settings(folder: Path) -> list[Setting]:
    """The runs of a folder, oldest first, those together whose overrides are equal but for the seed."""
    records = [(run, json.loads((run / "run.json").read_text())) for run in find_runs(folder)]
    records = [(run, record) for run, record in records if "report" not in record["tasks"]]
    records.sort(key=lambda pair: (pair[1]["start"], str(pair[0])))
    overrides = [{word for word in record["overrides"] if not word.startswith("seed=")} for _, record in records]
    common = set.intersection(*overrides) if overrides else set()
    settings: dict[str, Setting] = {}
    for (run, record), words in zip(records, overrides, strict=True):
        config = OmegaConf.load(run / "config.yaml")
        label = _label(sorted(words - common), config)
        finished = Finished(run, config.seed, record["status"], " ".join(record["overrides"]), _figures(run, record))
        settings.setdefault(label, Setting(label)).runs.append(finished)
    for setting in settings.values():
        setting.runs.sort(key=lambda run: run.seed)
    return list(settings.values())


def _figures(run: Path, record: dict[str, Any]) -> dict[str, float]:
    file = run / "result.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    parts = {task: part for task, part in result.items() if isinstance(part, dict)}
    found = {f"{task}.{name}": value for task, part in parts.items() for name, value in part.items()}
    if record["status"] == "done":
        found["cpu_seconds"] = sum(part.get("cpu_seconds", 0.0) for part in record["tasks"].values())
        pretrain = record["tasks"].get("pretrain", {})
        if "seconds_per_step" in pretrain:
            found["seconds_per_step"] = pretrain["seconds_per_step"]
    return found


def _label(words: list[str], config: Any) -> str:
    """What sets these runs apart from the others: the value alone where it is one key."""
    if not words:
        return str(config.method.name)
    if len(words) == 1:
        return words[0].partition("=")[2].replace("_", " ")
    return " ".join(word.lstrip("+") for word in words)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


class Sheet(NamedTuple):
    title: str
    head: list[str]
    rows: list[list[str]]


def _names(settings: list[Setting]) -> list[str]:
    return [name for name in COLUMNS if any(setting.by_seed(name) for setting in settings)]


def by_run(settings: list[Setting]) -> Sheet:
    """A row for each run, then mean and standard deviation; runs that are not done say so."""
    names = _names(settings)
    rows = []
    for setting in settings:
        for place, run in enumerate(setting.runs):
            seed = str(run.seed) if run.status == "done" else f"{run.seed} ({run.status})"
            cells = [f"{run.figures[name]:.{COLUMNS[name].digits}f}" if name in run.figures else "-" for name in names]
            rows.append([setting.label if place == 0 else "", seed, *cells])
        if len(setting.runs) > 1:
            means = (_spread(list(setting.by_seed(name).values()), COLUMNS[name].digits) for name in names)
            rows.append(["", "mean", *means])
    return Sheet("", ["", "seed", *(COLUMNS[name].title for name in names)], rows)


def differences(settings: list[Setting], baseline: str) -> Sheet:
    """Each other setting against the baseline, the mean and seed by seed: percents by difference, times by ratio."""
    base = next(setting for setting in settings if setting.label == baseline)
    names = [name for name in _names(settings) if name != "cpu_seconds"]
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
            mean = form.format(statistics.mean(gaps)) if gaps else "-"
            cells.append(f"{mean} ({each})" if len(gaps) > 1 else mean)
        rows.append([f"{setting.label} - {baseline}", *cells])
    return Sheet("seed by seed", ["", *(COLUMNS[name].title for name in names)], rows)


def beside_published(settings: list[Setting], published: dict[str, Any]) -> Sheet:
    """A row for each setting, of ours or published: mean and spread over the seeds, and what was published."""
    names = [name for name in _names(settings) if COLUMNS[name].is_share]
    ours = {setting.label: setting for setting in settings}
    rows = []
    for label in [*published["rows"], *(label for label in ours if label not in published["rows"])]:
        values = [list(ours[label].by_seed(name).values()) if label in ours else [] for name in names]
        means = [_spread(column, COLUMNS[name].digits) for column, name in zip(values, names, strict=True)]
        theirs = published["rows"].get(label, ["-"] * len(published["columns"]))
        rows.append([label, *means, *map(str, theirs)])
    head = ["", *(COLUMNS[name].title for name in names), *(f"published, {name}" for name in published["columns"])]
    return Sheet(f"beside the published figures: {published['source']}", head, rows)


def write_csv(file: Path, settings: list[Setting]) -> None:
    """A row for each run, with every figure that any run has."""
    names = sorted({name for setting in settings for run in setting.runs for name in run.figures})
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["setting", "seed", "status", "folder", *names])
        for setting in settings:
            for run in setting.runs:
                figures = [run.figures.get(name, "") for name in names]
                writer.writerow([setting.label, run.seed, run.status, run.folder, *figures])


def _spread(values: list[float], digits: int) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "-"
    return f"{statistics.mean(values):.{digits}f} +- {statistics.stdev(values):.{digits}f}"


def markdown(sheets: Sequence[Sheet], legend: list[str], note: str) -> str:
    tables = []
    for sheet in sheets:
        rows = (sheet.head, ["---"] * len(sheet.head), *sheet.rows)
        tables += [f"**{sheet.title}**"] if sheet.title else []
        tables.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join([*tables, "\n".join(f"* {line}" for line in legend), note.strip()]).strip() + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# The page

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 14px; margin-bottom: 1.5em }
td, th { padding: .3em .9em; border-bottom: 1px solid #ddd; text-align: left }
figure { display: inline-block; margin: 0 1.5em 1.5em 0; vertical-align: top }
figcaption { font-size: 14px; color: #555 }
img { image-rendering: pixelated; display: block }
.small { font-size: 13px; color: #555 }
"""


def page(folder: Path, settings: list[Setting], sheets: Sequence[Sheet], legend: list[str], note: str) -> str:
    """A page of its own: tables, a dot for every run, the pictures that the runs left."""
    names = [name for name in _names(settings) if COLUMNS[name].is_share]
    title = html.escape(folder.name or "report")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>vidssl: {title}</title>',
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
        f"<p>{html.escape(note)}</p>" if note else "",
        *(_table(sheet) for sheet in sheets),
        '<p class="small">' + "<br>".join(map(html.escape, legend)) + "</p>",
        "<h2>Every run</h2>",
        *(_plot(settings, name) for name in names),
        "<h2>What the networks see</h2>",
        _pictures(settings),
        "<h2>Commands</h2>",
        '<p class="small">' + "<br>".join(_command(run) for setting in settings for run in setting.runs) + "</p>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(sheet: Sheet) -> str:
    def cells(tag: str, row: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    title = f"<h2>{html.escape(sheet.title[:1].upper() + sheet.title[1:])}</h2>" if sheet.title else ""
    rows = (cells("th" if row[1] == "mean" else "td", row) for row in sheet.rows)
    return f"{title}<table>{cells('th', sheet.head)}{''.join(rows)}</table>"


def _plot(settings: list[Setting], name: str) -> str:
    """A dot for each run on a scale from 0 to 100, a row for each setting."""
    left, width, step = 130, 300, 26
    height = step * len(settings) + 24
    parts = []
    for tick in (0, 25, 50, 75, 100):
        x = left + width * tick / 100
        parts.append(f'<line x1="{x}" y1="4" x2="{x}" y2="{height - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{height - 4}" text-anchor="middle" font-size="11">{tick}</text>')
    for row, setting in enumerate(settings):
        y = step * row + step / 2 + 4
        label = html.escape(setting.label[:18])
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end" font-size="13">{label}</text>')
        for seed, value in setting.by_seed(name).items():
            x = left + width * value / 100
            parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="#2563eb" fill-opacity=".6">')
            parts.append(f"<title>seed {seed}: {value:.1f}</title></circle>")
    picture = f'<svg width="{left + width + 20}" height="{height}" role="img">{"".join(parts)}</svg>'
    return f"<figure>{picture}<figcaption>{html.escape(COLUMNS[name].title)}, %</figcaption></figure>"


def _pictures(settings: list[Setting]) -> str:
    """Of the first run of each setting."""
    found = []
    for setting in settings:
        for file in sorted((setting.runs[0].folder / "pictures").glob("*.png")):
            data = base64.b64encode(file.read_bytes()).decode()
            caption = html.escape(f"{setting.label}: {file.stem.removeprefix('pretrain-').replace('-', ' ')}")
            found.append(
                f'<figure><img src="data:image/png;base64,{data}" width="320" alt="{caption}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return "".join(found) or "<p>These runs left no pictures.</p>"


def _command(run: Finished) -> str:
    return html.escape(f"{run.folder.name}, {run.status}: python launch.py {run.words}")
