"""Submission: parameters of a cluster job, its end and requeueing, and jobs on this machine."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.conftest import HOME, launch, read_json, read_lines, start
from tests.ranks.test_processes import lines as count_lines
from tests.ranks.test_processes import wait_for
from vidssl.engine.distributed import Stopped
from vidssl.ranks import submit
from vidssl.ranks.submit import LAUNCHERS, Job
from vidssl.run.command import DONE, FAILED, STOPPED, WRONG

SLURM = {
    "name": "slurm", "partition": None, "account": None, "qos": None, "constraint": None, "gpu": None,
    "cpus_per_task": None, "memory_gb": None, "timeout_minutes": 60, "signal_seconds": 120, "restarts": 3,
    "parallel": 4, "setup": [], "snapshot": True, "sbatch": {},
}  # fmt: skip
CONFIG = {
    "devices": 8, "nodes": 2, "accelerator": "auto", "check_only": True, "data": {"workers": 5},
    "method": {"name": "fame"}, "backbone": {"name": "i3d"},
}  # fmt: skip
SHORT = ("task=pretrain", "pretrain.epochs=2", "pretrain.batch_size=8", "accelerator=cpu", "launcher=submitit_local")


def script(launcher: dict, config: dict) -> str:
    """Head of the sbatch script that submitit writes."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string("run", "logs", **LAUNCHERS.build({**SLURM, **launcher}).parameters({**CONFIG, **config}))


def test_a_job_has_one_task_for_each_gpu() -> None:
    head = script({}, {})
    for option in ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=6", "time=60", "signal=USR2@120"):
        assert f"#SBATCH --{option}\n" in head
    assert "#SBATCH --requeue\n" in head
    assert "--kill-on-bad-exit=1" in head
    assert "partition" not in head
    assert "gpus" not in script({}, {"accelerator": "cpu"})
    assert "gpus-per-node=a100:8" in script({"gpu": "a100"}, {})


def test_every_option_of_a_cluster_can_be_given() -> None:
    options = {"partition": "p", "account": "a", "qos": "q", "constraint": "c", "memory_gb": 64, "cpus_per_task": 3}
    head = script({**options, "sbatch": {"mail_type": "END", "exclude": "n7"}}, {})
    lines = ("partition=p", "account=a", "qos=q", "constraint=c", "mem=64GB", "cpus-per-task=3", "mail-type=END")
    for line in (*lines, "exclude=n7"):
        assert f"#SBATCH --{line}\n" in head


@pytest.mark.parametrize("option", sorted({"ntasks": 4, "gpus_per_task": 2, "--gres": "gpu:2", "time": 5}.items()))
def test_options_that_follow_from_other_keys_are_refused(option: tuple) -> None:
    (problem,) = LAUNCHERS.build({**SLURM, "sbatch": dict([option])}).problems(CONFIG)
    assert problem.startswith(f"launcher.sbatch.{option[0]}={option[1]}: follows from ")


def test_other_kinds_of_resources_may_be_asked_for() -> None:
    assert LAUNCHERS.build({**SLURM, "sbatch": {"gres": "lustre"}}).problems(CONFIG) == []


def test_a_job_must_run_before_it_is_signaled_to_save() -> None:
    (problem,) = LAUNCHERS.build({**SLURM, "timeout_minutes": 2}).problems(CONFIG)
    assert "launcher.signal_seconds=120" in problem
    assert LAUNCHERS.build(SLURM).minutes() == 59, "the job's own clock comes between the signal and the limit"


@pytest.mark.parametrize(
    ("reason", "is_preempted", "is_requeued"),
    [
        (signal.SIGUSR2, False, True),
        (1, False, True),  # out of time
        (signal.SIGTERM, True, True),
        (signal.SIGTERM, False, False),  # scancel
        (signal.SIGINT, True, False),
    ],
)
def test_preempted_jobs_are_requeued_and_cancelled_ones_are_not(
    reason: int, is_preempted: bool, is_requeued: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requeued = []
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(submit.slurm, "is_evicting", lambda job: is_preempted)
    monkeypatch.setattr(submit, "_leave", lambda status: sys.exit(status))
    before = signal.signal(signal.SIGUSR2, lambda *_: requeued.append(True))  # instead of submitit's
    stopped = Stopped("saved", reason)
    try:
        with pytest.raises(SystemExit, match=str(STOPPED)) if not is_requeued else nullcontext():
            Job(print, {}, "", [], [])._stop(stopped, 0, submit._should_requeue(stopped))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert bool(requeued) == is_requeued


@pytest.mark.slow
def test_a_run_as_a_job_leaves_the_same_as_a_local_one(small: list[str], tmp_path: Path) -> None:
    words = [*small, *SHORT, "devices=2"]
    answer = launch([*words, "output=run"], tmp_path)
    assert answer.status == DONE, answer.err
    job = re.search(r"submitted as job (\d+): ", answer.out)[1]
    assert f"tail -F {tmp_path}/run/train.log" in answer.out
    record = read_json(tmp_path / "run/run.json")
    assert record["status"] == "done"
    assert record["job"] == {"cluster": "local", "id": job, "restarts": 0}
    assert len(list((tmp_path / "run/submitit").glob("code-*/vidssl/run/app.py"))) == 1
    assert launch([*words, "output=own", "launcher=local"], tmp_path).status == DONE
    assert read_lines(tmp_path / "run/metrics.jsonl") == read_lines(tmp_path / "own/metrics.jsonl")
    again = launch([*words, "output=run"], tmp_path)
    assert "this run is done" in again.out


def test_a_job_that_would_leave_gpus_idle_fails_before_its_work_and_says_so(small: list[str], tmp_path: Path) -> None:
    words = [*small, *SHORT, "accelerator=auto", "output=run", "launcher.setup=['export CUDA_VISIBLE_DEVICES=0,1']"]
    answer = launch(words, tmp_path)
    assert answer.status == FAILED
    record = read_json(tmp_path / "run/run.json")
    assert record["status"] == "failed"
    assert record["error"].startswith("devices=1: SLURM gave 2 GPUs")


def test_several_nodes_need_ranks_that_were_started_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    local = LAUNCHERS.build({"name": "local"})
    assert local.problems({"nodes": 2})
    monkeypatch.setenv("RANK", "3")
    assert not local.problems({"nodes": 2})


@pytest.mark.slow
def test_a_failed_job_of_a_sweep_is_reported_and_tried_again_on_request(small: list[str], tmp_path: Path) -> None:
    """The second job has a learning rate that breaks it."""
    rates = "pretrain.optimizer.lr=0.001,1e30"
    words = ["-m", rates, *small, *SHORT, "output=sweep"]
    answer = launch(words, tmp_path)
    assert answer.status == FAILED
    assert "sweep/1: pretrain: not finite at step" in answer.err
    assert [read_json(tmp_path / f"sweep/{job}/run.json")["status"] for job in (0, 1)] == ["done", "failed"]
    again = launch(words, tmp_path)
    assert again.status == FAILED
    assert "sweep/0: this run is done" in again.out
    assert "sweep/1: failed before (pretrain: not finite" in again.err
    assert "retry_failed=true" in again.err
    starts = len(read_json(tmp_path / "sweep/1/run.json")["starts"])
    asked = launch([*words, "retry_failed=true", "launcher=local"], tmp_path)
    assert asked.status == FAILED
    assert len(read_json(tmp_path / "sweep/1/run.json")["starts"]) == starts + 1


@pytest.mark.slow
def test_a_job_that_is_signaled_to_save_continues_by_itself(small: list[str], tmp_path: Path) -> None:
    words = [*small, *SHORT, "pretrain.epochs=100", "output=run", "trainer.log_every=1"]
    process = start(words, tmp_path, tmp_path / ".launched")
    wait_for(lambda: count_lines(tmp_path / "run/metrics.jsonl") > 3)
    os.kill(read_json(tmp_path / "run/run.json")["process"], signal.SIGUSR2)
    process.join(120)
    assert process.exitcode == DONE, (tmp_path / ".launched.err").read_text()
    record = read_json(tmp_path / "run/run.json")
    assert len(record["starts"]) == 2
    assert record["status"] == "done"
    assert [row["step"] for row in read_lines(tmp_path / "run/metrics.jsonl")] == list(range(1, 201))
    assert "continues at step" in (tmp_path / "run/train.log").read_text()


def test_the_copied_code_is_the_whole_package(tmp_path: Path) -> None:
    pythonpath, _ = submit._run_copied_code(tmp_path)
    (copy,) = tmp_path.glob("code-*")
    assert str(copy) in pythonpath
    modules = {file.relative_to(HOME) for file in (HOME / "vidssl").rglob("*.py")}
    assert modules <= {file.relative_to(copy) for file in copy.rglob("*.py")}


def test_without_slurm_nothing_is_submitted(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit.shutil, "which", lambda name: None)
    config = {**CONFIG, "check_only": False}
    (problem,) = LAUNCHERS.build(SLURM).problems(config)
    assert problem.startswith("launcher=slurm: there is no sbatch here")
    answer = launch([*small, *SHORT, "launcher=slurm", "launcher.partitoin=x", "output=run"], tmp_path)
    assert answer.status == WRONG
    assert "Did you mean launcher.partition?" in answer.err
