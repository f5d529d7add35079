"""What a sweep's folder says of the whole: which runs it consists of, and what a reader of the report has to know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vidssl.engine.records import NEUTRAL, read_json, write_json


def write_plan(folder: Path, jobs: list[list[str]], varied: set[str]) -> None:
    """Add jobs, the overrides of each, to sweep.json, so that a report can name those that have no folder yet.

    Jobs of another sweep that was begun in the folder are dropped.
    varied: keys as they are typed, in which the jobs of one sweep may differ.
    """

    def identity(job: list[str]) -> frozenset[str]:
        return telling(job) | {word for word in job if key_of(word) in varied}

    def fixed(job: list[str]) -> set[str]:
        return {word for word in telling(job) if key_of(word) not in varied}

    before = [job for job in read_plan(folder) if fixed(job) == fixed(jobs[0])]
    merged = {identity(job): job for job in (*before, *jobs)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "sweep.json", {"jobs": list(merged.values())})


def read_plan(folder: Path) -> list[list[str]]:
    return read_json(folder / "sweep.json").get("jobs", [])


def telling(words: Iterable[str]) -> frozenset[str]:
    """The overrides that set a run apart."""
    return frozenset(word for word in words if not word.lstrip("+").startswith(NEUTRAL))


def key_of(word: str) -> str:
    return word.partition("=")[0]


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
    config: Any = OmegaConf.to_container(OmegaConf.load(file))
    section = config["hydra"]["callbacks"]["report"]
    return About(**{key: value for key, value in section.items() if key != "_target_"})
