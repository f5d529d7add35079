"""Tables of sweeps, from what their runs left."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tests.conftest import composed, launch, read_json
from tests.report.conftest import linear, make_run
from vidssl.run.check import check
from vidssl.run.command import DONE

SMOKE = (
    "task=[pretrain,linear]",
    "pretrain.epochs=1",
    "pretrain.batch_size=8",
    "linear.epochs=1",
    "linear.batch_size=8",
)


@pytest.mark.slow
def test_a_sweep_stands_beside_the_published_figures_and_is_done_once(small: list[str], tmp_path: Path) -> None:
    """sweeps=fame_background in its smallest size, from a folder that holds nothing else."""
    words = ["sweeps=fame_background", "output=sweep", "seed=0,1", *small, *SMOKE]
    answer = launch(words, tmp_path)
    assert answer.status == DONE, answer.err
    results = sorted((tmp_path / "sweep").glob("*/result.json"))
    assert [file.parent.name for file in results] == [
        f"{arm}-{seed}" for arm in ("background_inter", "background_intra", "baseline") for seed in (0, 1)
    ]
    report = (tmp_path / "sweep/report.md").read_text()
    ours = [read_json(tmp_path / f"sweep/background_inter-{seed}/result.json")["linear"]["top1"] for seed in (0, 1)]
    row = next(line for line in report.splitlines() if line.startswith("| background inter |") and "81.2" in line)
    assert row.startswith(f"| background inter | {sum(ours) / 2:.1f} +- ")
    assert row.endswith("| 81.2 | 52.6 |")
    assert "poster (CVPR 2022), table 3" in report
    with (tmp_path / "sweep/report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["linear.top1"]) for row in rows if row["setting"] == "background inter"] == ours
    before = {file: file.stat().st_mtime_ns for file in results}
    again = launch(words, tmp_path)
    assert again.out.count("this run is done") == 6
    assert {file: file.stat().st_mtime_ns for file in results} == before
    later = launch(["task=report", "report.runs=sweep", "output=later"], tmp_path)
    assert later.status == DONE, later.err
    assert (tmp_path / "sweep/report.md").read_text() == report


def test_a_published_row_that_was_not_run_is_shown_as_missing(small: list[str], tmp_path: Path) -> None:
    words = ["sweeps=fame_background", "+sweeps/fame=baseline", "output=sweep", *small, *SMOKE]
    assert launch(words, tmp_path).status == DONE
    report = (tmp_path / "sweep/report.md").read_text().splitlines()
    assert "| background intra | - | - | 77.4 | 47.6 |" in report


@pytest.mark.slow
def test_fames_table_runs_from_anywhere_and_is_computed_once(small: list[str], tmp_path: Path) -> None:
    """sweeps=fame_beta in its smallest size, into the folder that its file names."""
    words = ["sweeps=fame_beta", *small, *SMOKE]
    answer = launch(words, tmp_path)
    assert answer.status == DONE, answer.err
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs/fame_beta").glob("*/*") if file.is_file()}
    assert len({file.parent for file in files}) == 7
    report = (tmp_path / "runs/fame_beta/report.md").read_text()
    assert "| beta 0.3 both | " in report
    assert "| 81.1 | 53.1 |" in report
    again = launch(words, tmp_path)
    assert again.status == DONE
    assert again.out.count("this run is done") == 7
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_a_report_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"runs/{seed}", [f"seed={seed}"], linear(40.0 + seed), seed=seed)
    before = {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    words = ["task=report", "report.runs=runs", "output=there"]
    for _ in range(2):  # what it tells is new each time, so it is never "done"
        (tmp_path / "there/report.md").unlink(missing_ok=True)
        answer = launch(words, tmp_path)
        assert answer.status == DONE, answer.err
        assert "41" in (tmp_path / "there/report.md").read_text()
    assert (tmp_path / "there/report.html").exists()
    assert (tmp_path / "there/report.csv").exists()
    assert before == {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}


def test_a_folder_that_cannot_be_written_needs_another_for_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "runs/0", ["seed=0"], linear(40.0))
    config = composed("task=report", f"report.runs={tmp_path}/runs")
    assert check(config) == []
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != f"{tmp_path}/runs")  # read only
    assert check(config) == [
        f"report.runs={tmp_path}/runs: this folder cannot be written; task=report alone with output=FOLDER writes there"
    ]
    assert check({**config, "output": str(tmp_path / "there")}) == []
