"""Tables and one page of many runs, read from their folders in whatever state they are."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as ConsoleTable

from vidssl.build import Run
from vidssl.engine.checkpoint import write_text
from vidssl.registry import FilePath
from vidssl.report import conditions, tables
from vidssl.report.page import page
from vidssl.report.plan import read_about
from vidssl.report.runs import Setting, by_folds, count_states, is_single, read_settings
from vidssl.report.tables import COLUMNS, Table, column_names
from vidssl.tasks import TASKS, Context, Task
from vidssl.tasks.costs import Cost, Costs


@TASKS.register("report")
@dataclass(frozen=True)
class Report(Task):
    runs: FilePath | None  # null: the folder of this run, after other tasks
    baseline: str | None

    def problems(self) -> list[str]:
        if self.runs is None:
            return []
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

    def estimate(self, name: str, costs: Costs) -> Cost:
        folder = self.runs if self.runs and not self.writes_into_output(costs.config) else "the folder of this run"
        return Cost([f"{name}: report.md, report.csv and report.html in {folder}"])

    def writes_into_output(self, config: dict[str, Any]) -> bool:
        """Whether the report's files are for the folder that the user gave; else they are for that of the runs."""
        return config["output"] is not None and not set(TASKS.names()) & config.keys() - {"report"}

    def conflicts(self, context: Context) -> list[str]:
        if self.runs is None and list(context.tasks) == ["report"]:
            return [
                "report.runs=null: means the run's own folder, in which task=report alone leaves nothing to report; "
                "give a folder that holds runs, or put tasks before it, as in task=[pretrain,linear,report]"
            ]
        if self.runs is None or self.writes_into_output(context.config) or os.access(self.runs, os.W_OK):
            return []
        return [
            f"report.runs={self.runs}: this folder cannot be written; task=report alone with output=FOLDER writes there"
        ]

    def __call__(self, run: Run) -> dict[str, float]:
        if not run.log.is_main:
            return {}
        folder = run.output if self.runs is None else Path(self.runs)
        target = run.output if self.writes_into_output(run.config) else folder
        settings = show_report(folder, self.baseline, current=run.output, target=target)
        counts = count_states(settings)
        return {"settings": len(settings), "runs": counts.total() - counts["missing"], "done": counts["done"]}


def show_report(
    folder: Path, baseline: str | None = None, current: Path | None = None, target: Path | None = None
) -> list[Setting]:
    """Print the table of all runs under a folder; write it to report.md, report.csv and report.html.

    baseline: in place of the one named by the sweep. current: folder of the run that writes the report. target: folder
    of the three files; None: that of the runs.
    """
    target = target or folder
    settings = read_settings(folder, current)
    if not settings:
        return []
    about = read_about(folder)
    about = replace(about, baseline=baseline or about.baseline, note=about.note.strip())
    if about.baseline not in [setting.label for setting in settings]:
        about = replace(about, baseline=None)

    shown = [tables.by_run(settings)]
    if is_single(settings) and (whole := tables.every_metric(settings[0].runs[0])).rows:
        shown.append(whole)
    if about.baseline is not None and len(settings) > 1:
        shown.append(tables.differences(settings, about.baseline))
    folds = by_folds(settings)
    if folds:
        shown.append(tables.over_folds(folds))
    changed, meanings = conditions.summary(settings)
    if changed is not None:
        shown.append(changed)
    if about.published is not None:
        shown.append(tables.beside_published(settings, about.published))
    partial = tables.not_of_all_videos(settings)
    if partial.rows:
        shown.append(partial)
    undone = tables.not_done(settings)
    if undone.rows:
        shown.append(undone)
    legend = [f"{COLUMNS[name].title}: {COLUMNS[name].meaning}" for name in column_names(settings)]
    legend += meanings

    notes = [tables.summary(settings), about.note] if undone.rows else [about.note]
    write_text(target / "report.md", tables.markdown(shown, legend, "\n\n".join(filter(None, notes))))
    write_text(target / "report.csv", tables.every_run(settings))
    write_text(target / "report.html", page(folder, settings, shown, legend, about))
    _print(shown, [*legend, *filter(None, notes), str(target / "report.html")])
    return settings


def _print(shown: list[Table], lines: list[str]) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    for table in shown:
        printed = ConsoleTable(title=escape(table.title), title_justify="left")
        for title in table.head:
            printed.add_column(escape(title), overflow="fold", no_wrap=title in ("seed", "status"))
        for row in table.rows:
            printed.add_row(*map(escape, row), end_section=row[1] == "mean")
        console.print(printed)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
