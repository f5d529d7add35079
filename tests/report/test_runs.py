"""Settings from run folders and from the plan."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

from tests.report.conftest import linear, make_run
from vidssl.report.plan import write_plan
from vidssl.report.runs import Setting, read_settings


def shape(settings: list[Setting]) -> dict[str, list[tuple[int, str]]]:
    return {setting.label: [(run.seed, run.status) for run in setting.runs] for setting in settings}


def job(arm: str, seed: int) -> list[str]:
    return [f"seed={seed}", f"+sweeps/fame={arm}", "sweeps=fame_beta"]


def planned(folder: Path, *arms: str, seeds: tuple[int, ...] = (0, 1)) -> None:
    write_plan(folder, [job(arm, seed) for seed in seeds for arm in arms], {"seed", "+sweeps/fame"})


def test_planned_runs_without_a_folder_are_missing_at_their_setting(tmp_path: Path) -> None:
    planned(tmp_path, "baseline", "beta_0.7", "beta_0.3")
    make_run(tmp_path / "a", job("beta_0.3", 1), seed=1)
    make_run(tmp_path / "b", job("baseline", 0), status="failed", start="2026-11-20T11:00:00+00:00")
    assert shape(read_settings(tmp_path)) == {
        "baseline": [(0, "failed"), (1, "missing")],
        "beta 0.7": [(0, "missing"), (1, "missing")],
        "beta 0.3": [(0, "missing"), (1, "done")],
    }


def test_a_sweep_of_which_nothing_has_begun_is_all_missing(tmp_path: Path) -> None:
    planned(tmp_path, "a", "b", seeds=(5,))
    assert shape(read_settings(tmp_path)) == {"a": [(5, "missing")], "b": [(5, "missing")]}


def test_a_plan_of_one_setting_is_named_after_its_method(tmp_path: Path) -> None:
    planned(tmp_path, "a", seeds=(0, 1))
    make_run(tmp_path / "0", job("a", 0), method={"name": "dclr"})
    assert shape(read_settings(tmp_path)) == {"dclr": [(0, "done"), (1, "missing")]}


def test_a_run_that_was_tried_again_or_elsewhere_keeps_its_place(tmp_path: Path) -> None:
    planned(tmp_path, "a", "b", seeds=(0,))
    make_run(tmp_path / "a", [*job("a", 0), "retry_failed=true", "launcher=slurm", "output=x"])
    make_run(tmp_path / "b", job("b", 0))
    assert shape(read_settings(tmp_path)) == {"a": [(0, "done")], "b": [(0, "done")]}


def test_runs_that_differ_only_in_how_they_work_are_told_apart_by_that(tmp_path: Path) -> None:
    for workers in (0, 2):
        make_run(tmp_path / str(workers), ["task=bench", f"data.workers={workers}"])
    assert list(shape(read_settings(tmp_path))) == ["0", "2"]


def test_without_a_plan_settings_come_oldest_first_and_reports_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "deep/a/1", ["method=fame", "seed=1"], seed=1, start="2026-11-20T12:00:00+00:00")
    make_run(tmp_path / "deep/b", ["method=moco"], start="2026-11-20T11:00:00+00:00")
    make_run(tmp_path / "c", ["method=fame", "seed=0"], start="2026-11-20T13:00:00+00:00")
    make_run(tmp_path / "d", ["task=report"], tasks={"report": {}})
    assert shape(read_settings(tmp_path)) == {"moco": [(0, "done")], "fame": [(0, "done"), (1, "done")]}


def test_a_waiting_job_and_a_run_whose_process_is_gone_are_rows(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    make_run(tmp_path / "0", ["seed=0"], status="running", host=platform.node(), process=process.pid)
    make_run(tmp_path / "1", ["seed=1"], seed=1, status="submitted", job={"cluster": "other", "id": "3"})
    assert shape(read_settings(tmp_path)) == {"moco": [(0, "interrupted"), (1, "submitted")]}


def test_metrics_and_the_first_line_of_an_error_are_read(tmp_path: Path) -> None:
    spent = {"pretrain": {"cpu_seconds": 2.0, "seconds_per_step": 0.5}, "linear": {"cpu_seconds": 1.0}}
    make_run(tmp_path / "0", ["seed=0"], {**linear(50.0), "motion_preference": 3.0}, tasks=spent)
    make_run(
        tmp_path / "1", ["seed=1"], linear(10.0), seed=1, status="failed", error="NotFinite: nan\nmore", tasks=spent
    )
    done, failed = read_settings(tmp_path)[0].runs
    assert done.metrics == {"linear.top1": 50.0, "cpu_seconds": 3.0, "seconds_per_step": 0.5}
    assert failed.metrics == {"linear.top1": 10.0}, "what its finished tasks found"
    assert (done.error, failed.error) == ("", "NotFinite: nan")


def test_a_run_that_ends_while_it_is_looked_at_is_not_called_interrupted(tmp_path: Path, monkeypatch) -> None:
    folder = make_run(tmp_path / "0", ["seed=0"], status="running")

    def ends(records: list[dict]) -> list[str]:
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "status": "done"}))
        return ["interrupted" for _ in records]

    monkeypatch.setattr("vidssl.report.runs.find_states", ends)
    assert shape(read_settings(tmp_path)) == {"moco": [(0, "done")]}
