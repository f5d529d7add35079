"""Runs as read from their folders, in whatever state, and planned runs of a sweep that have no folder yet."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vidssl.engine.records import incomplete, read_json
from vidssl.report.plan import read_plan, telling
from vidssl.report.states import find_states

FOLD = "dataset.fold="
Curves = dict[tuple[str, str], list[tuple[float, float]]]  # (task, scalar) -> (step, value) of each logged step


@dataclass(frozen=True)
class Trial:
    """One run: done, running, broken, or only planned."""

    seed: int
    status: str
    overrides: list[str]
    folder: Path | None = None  # None: missing
    metrics: dict[str, float] = field(default_factory=dict)  # TASK.METRIC, and seconds
    error: str = ""  # first line
    config: dict[str, Any] = field(default_factory=dict)
    incomplete: dict[str, str] = field(default_factory=dict)  # task -> of how many of its listed videos it is


@dataclass
class Setting:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Trial] = field(default_factory=list)

    def by_seed(self, name: str) -> dict[int, float]:
        return {run.seed: run.metrics[name] for run in self.runs if name in run.metrics}

    @property
    def seeds(self) -> set[int]:
        return {run.seed for run in self.runs}

    @property
    def config(self) -> dict[str, Any]:
        return next((run.config for run in self.runs if run.config), {})


def is_single(settings: list[Setting]) -> bool:
    """Whether there is a single run, with a folder."""
    return len(settings) == 1 and len(settings[0].runs) == 1 and settings[0].runs[0].folder is not None


def count_states(settings: list[Setting]) -> Counter[str]:
    return Counter(run.status for setting in settings for run in setting.runs)


def read_settings(folder: Path, current: Path | None = None) -> list[Setting]:
    """The runs of a folder, grouped by their overrides without the seed.

    In the order of the plan, then oldest first. current: folder of the run that reports; it counts as done.
    """
    runs = read_runs(folder, current)
    jobs = [job for file in _find(folder, "sweep.json") for job in read_plan(file.parent)]
    identity = frozenset if _clash([run.overrides for run in runs]) or _clash(jobs) else telling
    there = {identity(run.overrides) for run in runs}
    seed = runs[0].seed if runs else 0  # where a plan does not say
    runs += [Trial(_seed(job, seed), "missing", job) for job in jobs if identity(job) not in there]

    words = [_without_seed(identity(run.overrides)) for run in runs]
    common = frozenset.intersection(*words) if words else frozenset()
    order = list(dict.fromkeys([*(_without_seed(identity(job)) for job in jobs), *words]))
    settings: dict[str, Setting] = {}
    for chosen in order:
        mine = [run for run, its in zip(runs, words, strict=True) if its == chosen]
        label = _label(sorted(chosen - common)) or _method(mine) or _method(runs) or folder.name
        settings.setdefault(label, Setting(label)).runs.extend(mine)
    for setting in settings.values():
        setting.runs.sort(key=lambda run: run.seed)
    return list(settings.values())


@dataclass
class Folds:
    """Settings that differ in dataset.fold only."""

    label: str
    settings: dict[str, Setting]  # by fold


def by_folds(settings: list[Setting]) -> list[Folds]:
    """Those with more than one fold."""
    groups: dict[frozenset[str], dict[str, Setting]] = {}
    for setting in settings:
        words = frozenset(setting.runs[0].overrides) if setting.runs else frozenset()
        folds = [word.partition("=")[2] for word in words if word.startswith(FOLD)]
        if folds:
            rest = frozenset(word for word in _without_seed(words) if not word.startswith(FOLD))
            groups.setdefault(rest, {})[folds[0]] = setting
    common = frozenset.intersection(*groups) if groups else frozenset()
    labels = {
        rest: _label(sorted(rest - common)) or _method(next(iter(mine.values())).runs) for rest, mine in groups.items()
    }
    return [Folds(labels[rest], dict(sorted(mine.items()))) for rest, mine in groups.items() if len(mine) > 1]


def read_runs(folder: Path, current: Path | None = None) -> list[Trial]:
    """Oldest first, without runs of task=report alone. current: folder of the run that reports; it counts as done."""
    found = [(file.parent, read_json(file)) for file in _find(folder, "run.json")]
    found = [(run, record) for run, record in found if list(record["tasks"]) != ["report"]]
    for run, record in found:
        if current is not None and run.resolve() == current.resolve():
            record["status"] = "done"
    found.sort(key=lambda pair: (pair[1]["start"], str(pair[0])))
    trials = []
    for (run, record), status in zip(found, find_states([record for _, record in found]), strict=True):
        now = read_json(run / "run.json") if status != record["status"] else record
        if now["status"] != record["status"]:  # it ended while we looked
            record, status = now, now["status"]
        config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
        error = next(iter((record.get("error") or "").splitlines()), "")
        metrics = _metrics(run, record)
        used = {task: incomplete(part.get("splits", {})) for task, part in record["tasks"].items()}
        used = {task: text for task, text in used.items() if text}
        trials.append(Trial(config["seed"], status, record["overrides"], run, metrics, error, config, used))
    return trials


def _find(folder: Path, name: str) -> list[Path]:
    """Files of that name, at most three levels down."""
    return [file for depth in range(4) for file in sorted(folder.glob("*/" * depth + name))]


def _metrics(run: Path, record: dict[str, Any]) -> dict[str, float]:
    tasks = {task: metrics for task, metrics in read_json(run / "result.json").items() if isinstance(metrics, dict)}
    found = {f"{task}.{name}": value for task, metrics in tasks.items() for name, value in metrics.items()}
    if record["status"] == "done":
        found["cpu_seconds"] = sum(task.get("cpu_seconds", 0.0) for task in record["tasks"].values())
        pretrain = record["tasks"].get("pretrain", {})
        if "seconds_per_step" in pretrain:
            found["seconds_per_step"] = pretrain["seconds_per_step"]
    return found


def read_curves(run: Path) -> Curves:
    """Losses and accuracies of the training tasks of a run, from metrics.jsonl, whose last line may be half written."""
    file = run / "metrics.jsonl"
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    curves: Curves = {}
    for row in rows:
        for name, value in row.items():
            if (name == "loss" or name.endswith("top1")) and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault((row["task"], name), []).append((row["step"], value))
    trained = {task for task, name in curves if name == "loss"}
    return {(task, name): curve for (task, name), curve in curves.items() if task in trained and len(curve) > 1}


# ---------------------------------------------------------------------------------------------------------------------
# What sets runs apart


def _clash(runs: list[list[str]]) -> bool:
    """Whether runs differ in nothing that tells: then all their words count, such as data.workers=0 and 2."""
    return len({telling(words) for words in runs}) < len(runs)


def _without_seed(words: frozenset[str]) -> frozenset[str]:
    return frozenset(word for word in words if not word.startswith("seed="))


def _seed(words: list[str], otherwise: int) -> int:
    return next((int(word.removeprefix("seed=")) for word in words if word.startswith("seed=")), otherwise)


def _label(words: list[str]) -> str:
    """The value alone where it is one key."""
    if len(words) == 1:
        return words[0].partition("=")[2].strip("'\"").replace("_", " ")
    return " ".join(word.lstrip("+") for word in words)


def _method(runs: list[Trial]) -> str:
    return next((str(run.config["method"]["name"]) for run in runs if run.config), "")
