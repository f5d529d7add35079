"""Runs on a cluster: submitted through submitit, one task for each GPU, put back into the queue when they are evicted.

The command that submits does not wait. What a job leaves is in its run's folder; tables are made from there.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vidssl.engine import distributed, records
from vidssl.engine.distributed import Stopped
from vidssl.engine.records import FAILED, STOPPED, WRONG
from vidssl.ranks import slurm
from vidssl.registry import ConfigError, NonNegativeInt, PositiveInt, Registry, RunError

LAUNCHERS = Registry("launcher", "vidssl.ranks.submit")
OURS = {  # options of sbatch that follow from other keys
    "nodes": "nodes", "ntasks": "devices and nodes", "ntasks-per-node": "devices", "gpus": "devices and nodes",
    "gpus-per-node": "devices", "gpus-per-task": "devices", "ntasks-per-gpu": "devices",
    "time": "launcher.timeout_minutes", "signal": "launcher.signal_seconds", "partition": "launcher.partition",
    "account": "launcher.account", "qos": "launcher.qos", "constraint": "launcher.constraint",
    "mem": "launcher.memory_gb", "cpus-per-task": "launcher.cpus_per_task", "array": "the sweep",
    "output": "the run's folder", "error": "the run's folder", "job-name": "the run",
}  # fmt: skip


@LAUNCHERS.register("local")
@dataclass(frozen=True)
class Local:
    """In this process, or in `devices` processes that it starts."""

    def problems(self, config: dict[str, Any]) -> list[str]:
        if config["nodes"] > 1 and "RANK" not in os.environ:  # which torchrun or srun started
            return [f"nodes={config['nodes']}: launcher=local starts processes on this machine only; nodes=1"]
        return []

    def plan(self, config: dict[str, Any]) -> list[str]:
        return []


@dataclass(frozen=True)
class Submitted:
    """What every launcher through submitit says of its jobs."""

    timeout_minutes: PositiveInt
    signal_seconds: PositiveInt
    restarts: NonNegativeInt
    setup: list[str]
    snapshot: bool

    def problems(self, config: dict[str, Any]) -> list[str]:
        limit = 60 * self.timeout_minutes
        if self.signal_seconds >= limit:
            return [
                f"launcher.signal_seconds={self.signal_seconds}: a job must run before it is told to save; it has "
                f"launcher.timeout_minutes={self.timeout_minutes}, {limit} s"
            ]
        return []

    def minutes(self) -> float:
        """After so long a job stops by itself, should the signal not have come."""
        return self.timeout_minutes - self.signal_seconds / 120


@LAUNCHERS.register("slurm")
@dataclass(frozen=True)
class Slurm(Submitted):
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    gpu: str | None
    cpus_per_task: PositiveInt | None
    memory_gb: PositiveInt | None
    parallel: PositiveInt
    sbatch: dict

    def problems(self, config: dict[str, Any]) -> list[str]:
        problems = super().problems(config)
        if shutil.which("sbatch") is None and not config["check_only"]:
            problems.append(
                "launcher=slurm: there is no sbatch here; allowed without it: local, submitit_local, or check_only=true"
            )
        for name, value in self.sbatch.items():
            option = name.replace("_", "-").lstrip("-")
            whose = OURS.get(option) or ("devices" if option == "gres" and "gpu" in str(value) else None)
            if whose is not None:
                problems.append(
                    f"launcher.sbatch.{name}={value}: follows from {whose}; a run has one task for each GPU, "
                    "devices=N of them on each node, launcher.gpu=KIND says which"
                )
        return problems

    def plan(self, config: dict[str, Any]) -> list[str]:
        """For check_only."""
        asked = self.parameters(config)
        more = asked.pop("additional_parameters")
        told = {**asked, **more}
        return ["submits a SLURM job: " + " ".join(f"{name}={value}" for name, value in told.items())]

    def submit(self, jobs: list[Job], logs: Path, setup: list[str]) -> Iterator[str]:
        """Their ids. Raises ConfigError if SLURM does not take them."""
        import submitit

        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=self.restarts)
        executor.update_parameters(**self.parameters(jobs[0].config), setup=setup)
        try:
            with executor.batch():
                handles = [executor.submit(job) for job in jobs]
        except submitit.core.utils.FailedJobError as error:
            raise ConfigError(f"launcher=slurm: sbatch refused the job: {_reason(error)}") from None
        yield from (handle.job_id for handle in handles)

    def parameters(self, config: dict[str, Any]) -> dict[str, Any]:
        """What submitit writes at the head of the sbatch script."""
        devices, uses_gpus = config["devices"], config["accelerator"] != "cpu"
        options = {name.replace("_", "-").lstrip("-"): value for name, value in self.sbatch.items()}
        chosen = {
            "job_name": f"vidssl-{config['method']['name']}-{config['backbone']['name']}",
            "time": self.timeout_minutes,
            "nodes": config["nodes"],
            "ntasks_per_node": devices,
            "gpus_per_node": (f"{self.gpu}:{devices}" if self.gpu else devices) if uses_gpus else None,
            "cpus_per_task": self.cpus_per_task or config["data"]["workers"] + 1,
            "mem": f"{self.memory_gb}GB" if self.memory_gb else None,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "signal_delay_s": self.signal_seconds,
            "array_parallelism": self.parallel,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **options},
            "srun_args": ["--kill-on-bad-exit=1"],  # one lost rank ends the job
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def told(self, job: str) -> str:
        return f"state: squeue -j {job}   cancel: scancel {job}"


@LAUNCHERS.register("submitit_local")
@dataclass(frozen=True)
class SubmititLocal(Submitted):
    """The way of a cluster's job, on this machine: to try it without a cluster."""

    def problems(self, config: dict[str, Any]) -> list[str]:
        problems = super().problems(config)
        if config["nodes"] > 1:
            problems.append(f"nodes={config['nodes']}: launcher=submitit_local has this machine only; nodes=1")
        return problems

    def plan(self, config: dict[str, Any]) -> list[str]:
        return [f"submits a job to this machine, {self.timeout_minutes} minutes at a time"]

    def submit(self, jobs: list[Job], logs: Path, setup: list[str]) -> Iterator[str]:
        """Their ids, one after the other: the next starts when the one before has ended."""
        import submitit

        executor = submitit.LocalExecutor(folder=logs, max_num_timeout=self.restarts)
        config = jobs[0].config
        executor.update_parameters(
            timeout_min=self.timeout_minutes,
            tasks_per_node=config["devices"],
            gpus_per_node=0 if config["accelerator"] == "cpu" else config["devices"],
            signal_delay_s=self.signal_seconds,
            stderr_to_stdout=True,
            setup=setup,
        )
        for job in jobs:
            handle = executor.submit(job)
            yield handle.job_id
            while not handle.done():
                time.sleep(0.2)
            records.end_if_lost(Path(job.output), f"the job ended without a word; see {handle.paths.stdout}")

    def told(self, job: str) -> str:
        return f"cancel: kill {job}"


# ---------------------------------------------------------------------------------------------------------------------
# In the queue


@dataclass(frozen=True)
class Job:
    """What a task of a job does; submitit keeps it in a file and calls it."""

    work: Callable[..., Any]  # of a module, so that the file holds its name only
    config: dict[str, Any]
    output: str
    command: list[str]
    overrides: list[str]

    def __call__(self) -> Any:
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        os.environ["MASTER_PORT"] = distributed.meeting_port(JobEnvironment().job_id)
        place = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            problems = slurm.idle_gpus(self.config)
            if problems:
                raise ConfigError(problems)
            with distributed.process_group(self.config["accelerator"]) if place.world_size > 1 else nullcontext():
                try:
                    return self.work(self.config, self.output, self.command, self.overrides)
                except Stopped as error:
                    stopped, goes_on = error, distributed.broadcast_object(place.rank == 0 and _goes_on(error))
        except BaseException as error:
            self._fail(error)
        return self._stop(stopped, place.rank, goes_on)

    def _fail(self, error: BaseException) -> None:
        """Submitit would end the process as if all were well."""
        if isinstance(error, (ConfigError, RunError)):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exception(error)
        output = Path(self.output)
        if records.read_json(output / "run.json").get("status") == "submitted":  # the work has not begun, so is silent
            records.end(output, "failed", str(error) or type(error).__name__)
        _leave(WRONG if isinstance(error, ConfigError) else FAILED)

    def _stop(self, stopped: Stopped, rank: int, goes_on: bool) -> None:
        """Its state is saved; it goes back into the queue if it goes on."""
        print(stopped, flush=True)
        if not goes_on:
            _leave(STOPPED)
        if rank > 0:
            if os.environ["SUBMITIT_EXECUTOR"] == "slurm":
                time.sleep(600)  # the first rank's requeueing ends all; leaving earlier would end it
            _leave(STOPPED)
        try:
            signal.getsignal(signal.SIGUSR2)(signal.SIGUSR2, None)  # submitit's own: keeps the job and requeues it
        except subprocess.CalledProcessError as error:
            if error.returncode != -signal.SIGTERM:  # of scontrol, which the requeueing ended together with its caller
                self._fail(error)
            time.sleep(600)
        except Exception as error:  # too many time-outs
            records.end(Path(self.output), "failed", str(error))
            self._fail(error)

    def checkpoint(self) -> Any:
        """The same again: everything to go on with lies in the run's folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _goes_on(stopped: Stopped) -> bool:
    """An evicted job, and one whose time is over, unless somebody wanted it to end."""
    if stopped.reason == signal.SIGTERM:
        return os.environ["SUBMITIT_EXECUTOR"] == "slurm" and slurm.is_evicting(os.environ["SLURM_JOB_ID"])
    return stopped.reason != signal.SIGINT


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def queued(record: dict[str, Any]) -> str | None:
    """The id of a run's job if SLURM still has it, waiting or running."""
    job = record.get("job") or {}
    if job.get("cluster") != "slurm" or record["status"] == "done":
        return None
    return job["id"] if job["id"] in (slurm.queue() or ()) else None


# ---------------------------------------------------------------------------------------------------------------------
# Into the queue

_waiting: list[Job] = []  # of this command; equal ones become one array


def submit_later(
    work: Callable[..., Any], config: dict[str, Any], output: str, command: list[str], overrides: list[str]
) -> None:
    """Remember a job until all of the command's jobs are known."""
    limits = [LAUNCHERS.build(config["launcher"]).minutes(), config["stop_after_minutes"] or float("inf")]
    _waiting.append(Job(work, {**config, "stop_after_minutes": min(limits)}, output, command, overrides))


def submit_waiting() -> None:
    """Submit the remembered jobs and say how to follow and to cancel them.

    Raises ConfigError if they are refused, FailedJobs if some have failed already, as those on this machine may.
    """
    jobs, _waiting[:] = list(_waiting), []
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        asked = {key: job.config[key] for key in ("launcher", "devices", "nodes", "accelerator")}
        alike.setdefault(json.dumps([asked, job.config["data"]["workers"]]), []).append(job)
    for group in alike.values():
        _submit(group)
    if len(jobs) > 1:
        print(f"when they are done: python launch.py task=report report.runs={_common_folder(jobs)}")
    ended = [(job.output, records.read_json(Path(job.output) / "run.json")) for job in jobs]
    failed = [f"{output}: {record['error']}" for output, record in ended if record["status"] == "failed"]
    if failed:
        raise FailedJobs("\n".join(failed))


class FailedJobs(Exception):
    """Jobs that were submitted have failed; what is said of each."""


def _submit(jobs: list[Job]) -> None:
    launcher = LAUNCHERS.build(jobs[0].config["launcher"])
    logs = _common_folder(jobs) / "submitit"
    logs.mkdir(parents=True, exist_ok=True)
    setup = [*launcher.setup, *(_run_copied_code(logs) if launcher.snapshot else [])]
    before = [records.submit(Path(job.output), job.config, job.command, job.overrides) for job in jobs]
    try:
        for job, name in zip(jobs, launcher.submit(jobs, logs, setup), strict=True):
            records.note_job(Path(job.output), {"cluster": job.config["launcher"]["name"], "id": name})
            print(f"submitted as job {name}: {job.output}")
            print(f"  follow: tail -F {shlex.quote(job.output + '/train.log')}   {launcher.told(name)}", flush=True)
    except ConfigError:
        for restore in before:
            restore()
        raise


def _common_folder(jobs: list[Job]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(job.output) for job in jobs]))


def _run_copied_code(logs: Path) -> list[str]:
    """Copy the code, which may change while a job waits; the shell lines that make Python take the copy."""
    package = Path(__file__).resolve().parent
    copy = logs / f"code-{datetime.now():%Y%m%d-%H%M%S-%f}"
    shutil.copytree(package, copy / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return [f'export PYTHONPATH={shlex.quote(str(copy))}"${{PYTHONPATH:+:$PYTHONPATH}}"', "export PYTHONSAFEPATH=1"]


def _reason(error: Exception) -> str:
    """What sbatch said, out of submitit's account of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("sbatch: error:")), lines[-1])
