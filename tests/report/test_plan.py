"""sweep.json: the jobs of a sweep before they have run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import launch, read_json
from vidssl.report.plan import read_plan, telling, write_plan
from vidssl.run.command import DONE

ONE_STEP = ("task=pretrain", "pretrain.max_steps=1", "pretrain.batch_size=8")


@pytest.mark.slow
def test_the_plan_holds_the_overrides_of_every_job_as_the_runs_record_them(small: list[str], tmp_path: Path) -> None:
    """Hydra words some of them anew: spaces go, ranges become numbers."""
    words = ["method=moco,fame", "-m", "seed=range(1,3)", "output=sweep", "data.drop=[ damaged, rotated ]", *small]
    answer = launch([*words, *ONE_STEP], tmp_path)
    assert answer.status == DONE, answer.err
    jobs = read_plan(tmp_path / "sweep")
    records = [read_json(file)["overrides"] for file in (tmp_path / "sweep").glob("*/run.json")]
    assert sorted(map(sorted, jobs)) == sorted(map(sorted, records))
    assert len(jobs) == 4
    assert {"seed=1", "method=fame", "data.drop=[damaged,rotated]"} <= set(jobs[2])
    assert [path.name for path in (tmp_path / "sweep").glob(".sweep*")] == []


@pytest.mark.slow
def test_a_sweep_that_is_only_checked_leaves_no_plan(tmp_path: Path) -> None:
    answer = launch(["sweeps=be_gamma", "output=sweep", "check_only=true", "seed=0"], tmp_path)
    assert answer.status == DONE, answer.err
    assert not (tmp_path / "sweep/sweep.json").exists()


def test_other_seeds_of_the_same_sweep_join_the_plan_and_repeated_jobs_do_not(tmp_path: Path) -> None:
    varied = {"seed", "+sweeps/fame"}
    jobs = [[f"seed={seed}", f"+sweeps/fame={arm}", "epochs=3"] for seed in (0, 1) for arm in ("a", "b")]
    write_plan(tmp_path, jobs[:2], varied)
    write_plan(tmp_path, jobs, varied)
    assert read_plan(tmp_path) == jobs
    write_plan(tmp_path, [["seed=2", "+sweeps/fame=b", "epochs=3"]], varied)  # one arm alone
    assert read_plan(tmp_path) == [*jobs, ["seed=2", "+sweeps/fame=b", "epochs=3"]]


def test_jobs_of_a_sweep_with_other_settings_are_not_waited_for(tmp_path: Path) -> None:
    write_plan(tmp_path, [["seed=0", "method=a", "epochs=3"], ["seed=0", "method=b", "epochs=3"]], {"seed", "method"})
    again = [["seed=0", "method=a", "epochs=5"], ["seed=0", "method=b", "epochs=5"]]
    write_plan(tmp_path, again, {"seed", "method"})
    assert read_plan(tmp_path) == again


def test_where_and_how_a_job_is_run_makes_no_other_job_of_it_unless_the_sweep_is_about_that(tmp_path: Path) -> None:
    write_plan(tmp_path / "a", [["seed=0", "launcher=local"]], {"seed"})
    write_plan(tmp_path / "a", [["seed=0", "launcher=slurm", "retry_failed=true"]], {"seed"})
    assert read_plan(tmp_path / "a") == [["seed=0", "launcher=slurm", "retry_failed=true"]]
    jobs = [["seed=0", "data.workers=0"], ["seed=0", "data.workers=2"]]
    write_plan(tmp_path / "b", jobs, {"seed", "data.workers"})
    assert read_plan(tmp_path / "b") == jobs


@pytest.mark.parametrize(("word", "tells"), [("output=a", False), ("+launcher.partition=x", False), ("seed=0", True)])
def test_words_that_change_no_figure_do_not_tell_runs_apart(word: str, tells: bool) -> None:
    assert telling([word, "method=moco"]) == ({word, "method=moco"} if tells else {"method=moco"})
