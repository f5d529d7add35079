"""Many runs in one table: read from their folders, whatever state they are in; nothing is known beforehand."""

from __future__ import annotations

import base64
import html
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from vidssl.build import Run
from vidssl.registry import ConfigError
from vidssl.tasks import TASKS, Task

# Shown in this order, if there; all others are in each run's result.json
COLUMNS = {
    "linear.top1": "linear top-1",
    "linear.swap_top1": "linear top-1, swapped background",
    "finetune.top1": "fine-tuned top-1",
    "test.top1": "test top-1",
    "knn.top1": "kNN top-1",
    "retrieve.R@1": "retrieval R@1",
    "retrieve.R@5": "retrieval R@5",
    "retrieve.motion_preference": "motion preference",
    "cpu_seconds": "CPU seconds",
}


@TASKS.register("report")
@dataclass(frozen=True)
class Report(Task):
    runs: str
    baseline: str | None

    def problems(self) -> list[str]:
        if not Path(self.runs).is_dir():
            return [f"report.runs={self.runs}: no such folder"]
        if not list(find_runs(Path(self.runs))):
            return [f"report.runs={self.runs}: no runs in there (folders with a run.json)"]
        return []

    def __call__(self, run: Run) -> dict[str, float]:
        settings = show_report(Path(self.runs), self.baseline)
        return {"settings": float(len(settings)), "runs": float(sum(len(setting.runs) for setting in settings))}


@dataclass(frozen=True)
class Finished:
    """One run's folder."""

    folder: Path
    seed: int
    status: str
    label: str
    figures: dict[str, float]


@dataclass
class Setting:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Finished] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        return [run.figures[name] for run in self.runs if name in run.figures]

    def by_seed(self, name: str) -> dict[int, float]:
        return {run.seed: run.figures[name] for run in self.runs if name in run.figures}


def show_report(folder: Path, baseline: str | None = None) -> list[Setting]:
    """Print the table of all runs under a folder; write it to report.md and report.html in there."""
    settings = read_settings(folder)
    if not settings:
        return []
    if baseline is not None and baseline not in {setting.label for setting in settings}:
        labels = ", ".join(setting.label for setting in settings)
        raise ConfigError(f"report.baseline={baseline}: no such setting; there are {labels}")
    head, rows = table(settings)
    differences = paired(settings, baseline)
    console = Console(highlight=False)
    printed = Table(*head, title=None)
    for row in rows:
        printed.add_row(*row)
    console.print(printed)
    for line in differences:
        console.print(line, markup=False, soft_wrap=True)
    (folder / "report.md").write_text(markdown(head, rows, differences))
    (folder / "report.html").write_text(page(folder, settings, head, rows, differences))
    console.print(f"{folder / 'report.html'}", markup=False, soft_wrap=True)
    return settings


def find_runs(folder: Path) -> Sequence[Path]:
    """Run folders, at most three levels down."""
    return sorted(
        (file.parent for depth in range(4) for file in folder.glob("*/" * depth + "run.json")),
        key=lambda run: [int(part) if part.isdigit() else part for part in run.relative_to(folder).parts or ("",)],
    )


def read_settings(folder: Path) -> list[Setting]:
    """The runs of a folder, those with equal overrides but for the seed together, in the order of the folders."""
    records = [(run, json.loads((run / "run.json").read_text())) for run in find_runs(folder)]
    overrides = [{word for word in record["overrides"] if not word.startswith("seed=")} for _, record in records]
    common = set.intersection(*overrides) if overrides else set()
    settings: dict[str, Setting] = {}
    for (run, record), words in zip(records, overrides, strict=True):
        config = OmegaConf.load(run / "config.yaml")
        label = _label(sorted(words - common), config)
        result = json.loads((run / "result.json").read_text()) if (run / "result.json").exists() else {}
        figures = {
            f"{task}.{name}": value
            for task, part in result.items() if isinstance(part, dict)
            for name, value in part.items()
        }  # fmt: skip
        if record["status"] == "done":
            figures["cpu_seconds"] = sum(part.get("cpu_seconds", 0.0) for part in record["tasks"].values())
        finished = Finished(run, config.seed, record["status"], label, figures)
        settings.setdefault(label, Setting(label)).runs.append(finished)
    return list(settings.values())


def _label(words: list[str], config: Any) -> str:
    """What sets these runs apart from the others: the value alone where it is one key."""
    if not words:
        return str(config.method.name)
    if len(words) == 1:
        return words[0].partition("=")[2].replace("_", " ")
    return " ".join(word.lstrip("+") for word in words)


def table(settings: list[Setting]) -> tuple[list[str], list[list[str]]]:
    """Mean, spread and the values by seed; runs that are not done are named, not hidden."""
    names = [name for name in COLUMNS if any(setting.values(name) for setting in settings)]
    head = ["", "seeds", *(COLUMNS[name] for name in names)]
    rows = []
    for setting in settings:
        seeds = ", ".join(
            str(run.seed) if run.status == "done" else f"{run.seed} ({run.status})" for run in setting.runs
        )
        rows.append([setting.label, seeds, *(_cell(setting.values(name)) for name in names)])
    return head, rows


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    each = ", ".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} +- {statistics.stdev(values):.1f} ({each})"


def paired(settings: list[Setting], baseline: str | None) -> list[str]:
    """Each setting minus the baseline, seed by seed."""
    if baseline is None:
        return []
    base = next(setting for setting in settings if setting.label == baseline)
    lines = []
    for setting in settings:
        if setting is base:
            continue
        for name, title in COLUMNS.items():
            if name == "cpu_seconds":
                continue
            ours, theirs = setting.by_seed(name), base.by_seed(name)
            gaps = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            if gaps:
                each = ", ".join(f"{gap:+.1f}" for gap in gaps)
                lines.append(f"{setting.label} minus {baseline}, {title}: {statistics.mean(gaps):+.1f} ({each})")
    return lines


def markdown(head: list[str], rows: list[list[str]], differences: list[str]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([*lines, "", *(f"* {line}" for line in differences)]) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# The page


def page(folder: Path, settings: list[Setting], head: list[str], rows: list[list[str]], differences: list[str]) -> str:
    """A self-contained page: the table, a plot of every run, the pictures that the runs left."""
    escape: Callable[[str], str] = html.escape
    names = [name for name in COLUMNS if name != "cpu_seconds" and any(setting.values(name) for setting in settings)]
    plots = "".join(_plot(settings, name) for name in names)
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    gaps = "".join(f"<li>{escape(line)}</li>" for line in differences)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vidssl: {escape(folder.name)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; font-size: 14px }} td, th {{ padding: .35em .8em; border-bottom: 1px solid #ccc }}
th {{ text-align: left }} figure {{ display: inline-block; margin: 0 1.5em 1em 0; vertical-align: top }}
figcaption {{ font-size: 14px; color: #555 }} img {{ max-width: 100%; image-rendering: pixelated }}
.runs {{ font-size: 13px; color: #555 }}
</style></head><body>
<h1>{escape(folder.name)}</h1>
<p>{sum(len(setting.runs) for setting in settings)} runs, percent; mean, standard deviation and each seed's value.</p>
<table><tr>{"".join(f"<th>{escape(cell)}</th>" for cell in head)}</tr>{cells}</table>
<ul>{gaps}</ul>
<h2>Every run</h2>{plots}
<h2>What the networks see</h2>{_pictures(settings)}
<h2>Commands</h2><p class="runs">{"<br>".join(_command(run) for setting in settings for run in setting.runs)}</p>
</body></html>
"""


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
            parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="#2563eb" fill-opacity=".6"><title>seed {seed}: ')
            parts.append(f"{value:.1f}</title></circle>")
    picture = f'<svg width="{left + width + 20}" height="{height}" role="img">{"".join(parts)}</svg>'
    return f"<figure>{picture}<figcaption>{html.escape(COLUMNS[name])}, %</figcaption></figure>"


def _pictures(settings: list[Setting]) -> str:
    """Of the first run of each setting."""
    found = []
    for setting in settings:
        for file in sorted((setting.runs[0].folder / "pictures").glob("*.png")):
            data = base64.b64encode(file.read_bytes()).decode()
            caption = html.escape(f"{setting.label}: {file.stem.removeprefix('pretrain-').replace('-', ' ')}")
            found.append(
                f'<figure><img src="data:image/png;base64,{data}" width="384" alt="{caption}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return "".join(found) or "<p>These runs left no pictures.</p>"


def _command(run: Finished) -> str:
    record = json.loads((run.folder / "run.json").read_text())
    words = " ".join(record["overrides"])
    return html.escape(f"{run.folder.name}: {run.status}; python launch.py {words}")
