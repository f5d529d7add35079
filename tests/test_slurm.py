"""Runs on a real SLURM, which slurm/cluster.sh starts for these tests: two pretend nodes with two pretend GPUs each."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.conftest import DATA, HOME, LINEAR, PRETRAIN, launch, read_json
from tests.ranks.test_processes import lines, wait_for
from tests.run.test_app import outcome
from vidssl.report.states import find_states
from vidssl.run.command import DONE, FAILED, WRONG

pytestmark = pytest.mark.slow
SCRIPT = HOME / "tests/slurm/cluster.sh"
RUN = (*DATA, *PRETRAIN, "task=pretrain", "method=moco", "pretrain.epochs=30", "trainer.save_every=1000", "output=run")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its folder. Without the packages these tests are skipped, unless VIDSSL_TEST_SLURM=1 insists."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch")
    missing = [name for name in programs if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") is None]
    if missing or os.geteuid() != 0:
        reason = f"{', '.join(missing)} missing; {SCRIPT} install" if missing else "only root can start a SLURM"
        (pytest.fail if os.environ.get("VIDSSL_TEST_SLURM") == "1" else pytest.skip)(reason)
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("OMP_NUM_THREADS", "1")
        try:
            subprocess.run([SCRIPT, "start", folder], check=True)
            yield folder
        finally:
            subprocess.run([SCRIPT, "stop", folder], check=True)


@pytest.fixture(scope="module")
def words(rendered: str) -> list[str]:
    return [*RUN, f"dataset.root={rendered}"]


@pytest.fixture(scope="module")
def undisturbed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a run whose ranks, so many, are started here."""

    @cache
    def run(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed")
        answer = launch([*words, f"devices={ranks}", "accelerator=cpu"], folder)
        assert answer.status == DONE, answer.err
        return folder / "run"

    return run


def ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def submit(words: list[str], folder: Path) -> str:
    """The id of the job, or of the array of jobs."""
    answer = launch([*words, "launcher=slurm"], folder)
    assert answer.status == DONE, answer.err
    return re.search(r"submitted as job (\d+)", answer.out)[1]


def end_of(job: str, seconds: float = 100) -> str:
    """The state in which a job ends. One that is back in the queue need not wait for its two minutes there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = ask("scontrol", "show", "job", job)
        state = re.search(r"JobState=(\w+)", found)[1]
        if state == "PENDING" and "Restarts=0" not in found:
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)
        elif state not in ("PENDING", "RUNNING", "COMPLETING"):
            return state
        time.sleep(0.3)
    raise TimeoutError(found)


def printed(run: Path) -> str:
    """By all tasks of its jobs."""
    return "".join(file.read_text() for file in sorted(run.glob("submitit/*_log.out")))


# -- runs


def test_a_run_on_two_nodes_is_that_of_as_many_ranks_here(
    words: list[str], undisturbed: Callable, tmp_path: Path
) -> None:
    """One task for each GPU, be it a pretend one."""
    gpus = "cpu" if torch.cuda.is_available() else "auto"
    answer = launch([*words, "devices=2", "nodes=2", f"accelerator={gpus}", "launcher=slurm"], tmp_path)
    assert answer.status == DONE, answer.err
    job = re.search(r"submitted as job (\d+): ", answer.out)[1]
    assert f"state: squeue -j {job}   cancel: scancel {job}" in answer.out
    assert end_of(job) == "COMPLETED", printed(tmp_path / "run")
    record = read_json(tmp_path / "run/run.json")
    assert record["status"] == "done"
    assert record["job"] == {"cluster": "slurm", "id": job, "restarts": 0}
    assert outcome(tmp_path / "run") == outcome(undisturbed(4))
    assert len(list((tmp_path / "run/submitit").glob("code-*/vidssl/run/app.py"))) == 1
    assert len(list((tmp_path / "run/submitit").glob(f"{job}_?_log.out"))) == 4


def srun(options: list[str], words: list[str], folder: Path) -> subprocess.CompletedProcess:
    command = ["srun", *options, sys.executable, str(HOME / "launch.py"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def test_under_srun_a_run_is_the_same(words: list[str], undisturbed: Callable, tmp_path: Path) -> None:
    done = srun(["--nodes=2", "--ntasks-per-node=2"], [*words, "accelerator=cpu"], tmp_path)
    assert done.returncode == DONE, done.stderr
    assert outcome(tmp_path / "run") == outcome(undisturbed(4))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ntasks=1", "--gpus-per-node=2"], "devices=1: SLURM gave 2 GPUs (CUDA_VISIBLE_DEVICES=0,1)"),
        (["--nodes=2", "--ntasks=3"], "srun started different numbers of ranks on the nodes"),
    ],
)
def test_under_srun_a_run_that_would_waste_or_hang_is_refused(
    options: list[str], told: str, words: list[str], tmp_path: Path
) -> None:
    done = srun(options, words, tmp_path)
    assert done.returncode == WRONG
    assert told in done.stderr
    assert not list(tmp_path.rglob("run.json"))


def test_a_refused_job_leaves_no_run(words: list[str], tmp_path: Path) -> None:
    answer = launch([*words, "accelerator=cpu", "launcher=slurm", "launcher.partition=nope"], tmp_path)
    assert answer.status == WRONG
    assert "launcher=slurm: sbatch refused the job: sbatch: error: invalid partition specified: nope" in answer.err
    assert not list(tmp_path.rglob("run.json"))


# -- sweeps


def test_a_sweep_is_one_array_whose_jobs_are_never_there_twice(rendered: str, tmp_path: Path) -> None:
    words = ["-m", "method=moco,fame", "seed=0,1", "task=[pretrain,linear]", "pretrain.max_steps=1", "output=sweep"]
    words += [*DATA, *PRETRAIN, *LINEAR, f"dataset.root={rendered}", "accelerator=cpu", "launcher=slurm"]
    words += ["launcher.sbatch.hold=true"]
    answer = launch(words, tmp_path)
    assert answer.status == DONE, answer.err
    array, *others = sorted(set(re.findall(r"submitted as job (\d+)_[0-3]: ", answer.out)))
    assert not others
    again = launch(words, tmp_path)
    assert again.status == DONE, again.err
    assert again.out.count("of this run is in the cluster's queue") == 4
    assert "submitted as" not in again.out
    ask("scontrol", "release", array)
    assert [end_of(f"{array}_{job}") for job in range(4)] == ["COMPLETED"] * 4

    records = sorted((tmp_path / "sweep").glob("*/run.json"))
    assert [read_json(record)["status"] for record in records] == ["done"] * 4
    before = [record.stat().st_mtime_ns for record in records]
    assert launch(words, tmp_path).out.count("this run is done") == 4
    assert [record.stat().st_mtime_ns for record in records] == before
    report = launch(["task=report", "report.runs=sweep", "output=report"], tmp_path)
    assert report.status == DONE, report.err
    assert "runs 4  done 4" in report.out
    rows = re.findall(r"│ (moco|fame|    ) │ ([01]) +│ ([0-9.]+) +│", report.out)
    figures = [read_json(record.with_name("result.json"))["linear"]["top1"] for record in records]
    assert [float(figure) for *_, figure in rows] == pytest.approx(figures, abs=0.06)
    assert [(name.strip(), seed) for name, seed, _ in rows] == [("moco", "0"), ("", "1"), ("fame", "0"), ("", "1")]


def test_a_job_that_raises_has_failed_and_the_report_says_why(words: list[str], tmp_path: Path) -> None:
    words = [*words, "-m", "pretrain.optimizer.lr=0.001,1e30", "pretrain.max_steps=8", "devices=2", "accelerator=cpu"]
    array = submit(words, tmp_path)
    assert [end_of(f"{array}_{job}") for job in range(2)] == ["COMPLETED", "FAILED"]
    good, bad = (read_json(tmp_path / f"run/{job}/run.json") for job in range(2))
    assert good["status"] == "done"
    assert bad["status"] == "failed"
    assert bad["error"].startswith("pretrain: not finite at step")
    report = launch(["task=report", "report.runs=run", "output=report"], tmp_path)
    assert report.status == DONE, report.err
    assert "runs 2  done 1" in report.out
    assert "1 failed" in report.out
    assert "pretrain: not finite" in (tmp_path / "report/report.md").read_text()

    again = launch([*words, "launcher=slurm"], tmp_path)
    assert again.status == FAILED
    assert "retry_failed=true" in again.err
    assert "submitted as" not in again.out
    job = submit([*words, "retry_failed=true"], tmp_path)
    assert len(ask("squeue", "--noheader", f"--job={job}").splitlines()) == 1
    ask("scancel", job)


# -- interruptions


@contextmanager
def evictions_by(name: str, cluster: Path) -> Iterator[None]:
    """A cluster tells a job that it is evicted by the job's own --signal, as this one does, or by SIGTERM."""
    file = cluster / "slurm.conf"
    usual = file.read_text()
    if name == "SIGTERM":
        file.write_text(re.sub(".*send_user_signal\n", "", usual))
        ask("scontrol", "reconfigure")
        assert "send_user_signal" not in ask("scontrol", "show", "config")
    try:
        yield
    finally:
        if name == "SIGTERM":
            file.write_text(usual)
            ask("scontrol", "reconfigure")


@pytest.mark.parametrize(("name", "devices"), [("SIGUSR2", 2), ("SIGTERM", 1)])
def test_an_evicted_job_saves_and_goes_on_as_if_nothing_had_happened(
    name: str, devices: int, words: list[str], undisturbed: Callable, cluster: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with evictions_by(name, cluster):
        job = submit([*words, f"devices={devices}", "nodes=2", "accelerator=cpu", "launcher.partition=low"], tmp_path)
        wait_for(lambda: lines(run / "metrics.jsonl") >= 3)
        ask("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        wait_for(lambda: read_json(run / "run.json")["status"] == "preempted")
        assert find_states([read_json(run / "run.json")]) == ["requeued"]
        assert end_of(job) == "COMPLETED", printed(run)
    record = read_json(run / "run.json")
    assert record["status"] == "done"
    assert record["job"]["restarts"] == 1
    assert len(record["starts"]) == 2
    assert "continues at step" in (run / "train.log").read_text()
    assert outcome(run) == outcome(undisturbed(2 * devices))


def test_a_job_whose_time_is_over_goes_on_as_if_nothing_had_happened(
    words: list[str], undisturbed: Callable, tmp_path: Path
) -> None:
    run, minutes = tmp_path / "run", read_json(undisturbed(2) / "run.json")["tasks"]["pretrain"]["seconds"] / 60
    job = submit([*words, "nodes=2", "accelerator=cpu", f"stop_after_minutes={0.6 * minutes}"], tmp_path)
    assert end_of(job) == "COMPLETED", printed(run)
    assert len(read_json(run / "run.json")["starts"]) > 1
    assert outcome(run) == outcome(undisturbed(2))


def test_a_cancelled_job_saves_and_stays_cancelled(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit([*words, "nodes=2", "accelerator=cpu"], tmp_path)
    wait_for(lambda: lines(run / "metrics.jsonl") >= 3)
    ask("scancel", job)
    assert end_of(job) == "CANCELLED"
    assert find_states([read_json(run / "run.json")]) == ["preempted"]
    step = torch.load(run / "last.pt", weights_only=True)["progress"]["step"]
    assert step == lines(run / "metrics.jsonl") >= 3


def process_of(job: str, rank: int) -> int:
    wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}"}
    (found,) = (
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if (process / "comm").read_text().startswith("python")
        and wanted <= set((process / "environ").read_text().split("\0"))
    )
    return found


@pytest.mark.parametrize(("rank", "state"), [(0, "interrupted"), (1, "failed")])
def test_a_killed_task_ends_its_job(rank: int, state: str, words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit([*words, "nodes=2", "accelerator=cpu"], tmp_path)
    wait_for(lambda: lines(run / "metrics.jsonl") >= 3)
    os.kill(process_of(job, rank), signal.SIGKILL)
    assert end_of(job, seconds=30) == "FAILED"
    assert f"task {rank}: Killed" in printed(run)
    assert find_states([read_json(run / "run.json")]) == [state]
