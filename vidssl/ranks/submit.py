"""Cluster jobs: submitted through submitit, one task per GPU, requeued when they are preempted or out of time.

The command that submits does not wait. A job's results are in its run's folder, from which reports are made.
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
DERIVED = {  # option of sbatch -> keys that determine it
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
    """Run in this process, or in `devices` processes that it starts."""

    def problems(self, config: dict[str, Any]) -> list[str]:
        if config["nodes"] > 1 and "RANK" not in os.environ:  # not started by torchrun or srun
            return [f"nodes={config['nodes']}: launcher=local starts processes on this machine only; nodes=1"]
        return []

    def plan(self, config: dict[str, Any]) -> list[str]:
        return []


@dataclass(frozen=True)
class Submitted:
    """Options of every launcher that submits jobs through submitit."""

    timeout_minutes: PositiveInt
    signal_seconds: PositiveInt
    restarts: NonNegativeInt
    setup: list[str]
    snapshot: bool

    def problems(self, config: dict[str, Any]) -> list[str]:
        limit = 60 * self.timeout_minutes
        if self.signal_seconds >= limit:
            return [
                f"launcher.signal_seconds={self.signal_seconds}: a job must run before it is signaled to save; it has "
                f"launcher.timeout_minutes={self.timeout_minutes}, {limit} s"
            ]
        return []

    def minutes(self) -> float:
        """Time after which a job stops by itself if the signal does not come."""
        return self.timeout_minutes - self.signal_seconds / 120


@LAUNCHERS.register("slurm")
@dataclass(frozen=True)
class Slurm(Submitted):
    """Submit to SLURM."""

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
            source = DERIVED.get(option) or ("devices" if option == "gres" and "gpu" in str(value) else None)
            if source is not None:
                problems.append(
                    f"launcher.sbatch.{name}={value}: follows from {source}; a run has one task for each GPU, "
                    "devices=N of them on each node, launcher.gpu=KIND says which"
                )
        return problems

    def plan(self, config: dict[str, Any]) -> list[str]:
        """Line of check_only about the job."""
        parameters = self.parameters(config)
        parameters |= parameters.pop("additional_parameters")
        return ["submits a SLURM job: " + " ".join(f"{name}={value}" for name, value in parameters.items())]

    def submit(self, jobs: list[Job], logs: Path, setup: list[str]) -> Iterator[str]:
        """Submit jobs and yield their ids. Raises ConfigError if SLURM refuses them."""
        import submitit  # here and below: only runs that are submitted need it

        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=self.restarts)
        executor.update_parameters(**self.parameters(jobs[0].config), setup=setup)
        try:
            with executor.batch():
                handles = [executor.submit(job) for job in jobs]
        except submitit.core.utils.FailedJobError as error:
            raise ConfigError(f"launcher=slurm: sbatch refused the job: {_reason(error)}") from None
        yield from (handle.job_id for handle in handles)

    def parameters(self, config: dict[str, Any]) -> dict[str, Any]:
        """Parameters of submitit's sbatch script."""
        devices, uses_gpus = config["devices"], config["accelerator"] != "cpu"
        options = {name.replace("_", "-").lstrip("-"): value for name, value in self.sbatch.items()}
        parameters = {
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
        return {name: value for name, value in parameters.items() if value is not None}

    def commands(self, job: str) -> str:
        """Commands that a user may want for a job."""
        return f"state: squeue -j {job}   cancel: scancel {job}"


@LAUNCHERS.register("submitit_local")
@dataclass(frozen=True)
class SubmititLocal(Submitted):
    """Run a cluster's job on this machine, to try it without a cluster."""

    def problems(self, config: dict[str, Any]) -> list[str]:
        problems = super().problems(config)
        if config["nodes"] > 1:
            problems.append(f"nodes={config['nodes']}: launcher=submitit_local has this machine only; nodes=1")
        return problems

    def plan(self, config: dict[str, Any]) -> list[str]:
        return [f"submits a job to this machine, {self.timeout_minutes} minutes at a time"]

    def submit(self, jobs: list[Job], logs: Path, setup: list[str]) -> Iterator[str]:
        """Submit jobs and yield their ids; each starts when the previous one has ended."""
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
            records.end_if_lost(Path(job.output), f"the job died without reporting an error; see {handle.paths.stdout}")

    def commands(self, job: str) -> str:
        return f"cancel: kill {job}"


# ---------------------------------------------------------------------------------------------------------------------
# Jobs


@dataclass(frozen=True)
class Job:
    """Work of one task of a job; submitit pickles and calls it."""

    work: Callable[..., Any]  # a module's function, so that the pickle only holds its name
    config: dict[str, Any]
    output: str
    command: list[str]
    overrides: list[str]

    def __call__(self) -> Any:
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        os.environ["MASTER_PORT"] = distributed.meeting_port(JobEnvironment().job_id)
        environment = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            problems = slurm.idle_gpus(self.config)
            if problems:
                raise ConfigError(problems)
            with distributed.process_group(self.config["accelerator"]) if environment.world_size > 1 else nullcontext():
                try:
                    return self.work(self.config, self.output, self.command, self.overrides)
                except Stopped as error:
                    stopped = error
                    is_requeued = distributed.broadcast_object(environment.rank == 0 and _should_requeue(error))
        except BaseException as error:
            self._fail(error)
        return self._stop(stopped, environment.rank, is_requeued)

    def _fail(self, error: BaseException) -> None:
        """Record and print an error, and end the process with its status; submitit would end it with 0."""
        if isinstance(error, (ConfigError, RunError)):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exception(error)
        output = Path(self.output)
        if records.read_json(output / "run.json").get("status") == "submitted":  # the work has not begun
            records.end(output, "failed", str(error) or type(error).__name__)
        _leave(WRONG if isinstance(error, ConfigError) else FAILED)

    def _stop(self, stopped: Stopped, rank: int, is_requeued: bool) -> None:
        """End a job whose state is saved, requeueing it first if it should continue."""
        print(stopped, flush=True)
        if not is_requeued:
            _leave(STOPPED)
        if rank > 0:
            if os.environ["SUBMITIT_EXECUTOR"] == "slurm":
                time.sleep(600)  # the first rank's requeueing ends all ranks; one that leaves earlier ends the job
            _leave(STOPPED)
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's handler: pickles the job and requeues it
        try:
            requeue(signal.SIGUSR2, None)
        except subprocess.CalledProcessError as error:
            if error.returncode != -signal.SIGTERM:  # scontrol is ended by the requeueing, as its caller is
                self._fail(error)
            time.sleep(600)
        except Exception as error:  # too many timeouts
            records.end(Path(self.output), "failed", str(error))
            self._fail(error)

    def checkpoint(self) -> Any:
        """Resubmit this job unchanged; it resumes from the run's folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _should_requeue(stopped: Stopped) -> bool:
    """Whether a job was preempted or out of time, rather than canceled by a user."""
    if stopped.reason == signal.SIGTERM:
        return os.environ["SUBMITIT_EXECUTOR"] == "slurm" and slurm.is_evicting(os.environ["SLURM_JOB_ID"])
    return stopped.reason != signal.SIGINT


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def queued(record: dict[str, Any]) -> str | None:
    """Id of a run's job if SLURM still has it, pending or running."""
    job = record.get("job") or {}
    if job.get("cluster") != "slurm" or record["status"] == "done":
        return None
    return job["id"] if job["id"] in (slurm.queue() or ()) else None


# ---------------------------------------------------------------------------------------------------------------------
# Submission

_waiting: list[Job] = []  # of this command; jobs with equal resources become one array


def submit_later(
    work: Callable[..., Any], config: dict[str, Any], output: str, command: list[str], overrides: list[str]
) -> None:
    """Collect a job until all of the command's jobs are known."""
    limits = [LAUNCHERS.build(config["launcher"]).minutes(), config["stop_after_minutes"] or float("inf")]
    _waiting.append(Job(work, {**config, "stop_after_minutes": min(limits)}, output, command, overrides))


def submit_waiting() -> None:
    """Submit the collected jobs and print how to follow and to cancel them.

    Raises ConfigError if they are refused, FailedJobs if some have failed already, as jobs on this machine may.
    """
    jobs, _waiting[:] = list(_waiting), []
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        resources = {key: job.config[key] for key in ("launcher", "devices", "nodes", "accelerator")}
        groups.setdefault(json.dumps([resources, job.config["data"]["workers"]]), []).append(job)
    for group in groups.values():
        _submit(group)
    if len(jobs) > 1:
        print(f"when they are done: python launch.py task=report report.runs={_common_folder(jobs)}")
    ended = [(job.output, records.read_json(Path(job.output) / "run.json")) for job in jobs]
    failed = [f"{output}: {record['error']}" for output, record in ended if record["status"] == "failed"]
    if failed:
        raise FailedJobs("\n".join(failed))


class FailedJobs(Exception):
    """Submitted jobs have failed; one line for each."""


def _submit(jobs: list[Job]) -> None:
    launcher = LAUNCHERS.build(jobs[0].config["launcher"])
    logs = _common_folder(jobs) / "submitit"
    logs.mkdir(parents=True, exist_ok=True)
    setup = [*launcher.setup, *(_run_copied_code(logs) if launcher.snapshot else [])]
    undo = [records.submit(Path(job.output), job.config, job.command, job.overrides) for job in jobs]
    try:
        for job, name in zip(jobs, launcher.submit(jobs, logs, setup), strict=True):
            records.note_job(Path(job.output), {"cluster": job.config["launcher"]["name"], "id": name})
            print(f"submitted as job {name}: {job.output}")
            print(f"  follow: tail -F {shlex.quote(job.output + '/train.log')}   {launcher.commands(name)}", flush=True)
    except ConfigError:
        for restore in undo:
            restore()
        raise


def _common_folder(jobs: list[Job]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(job.output) for job in jobs]))


def _run_copied_code(logs: Path) -> list[str]:
    """Copy the code, which may change while a job is pending. Returns the shell lines that make Python use the copy."""
    package = Path(__file__).resolve().parents[1]
    copy = logs / f"code-{datetime.now():%Y%m%d-%H%M%S-%f}"
    shutil.copytree(package, copy / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return [f'export PYTHONPATH={shlex.quote(str(copy))}"${{PYTHONPATH:+:$PYTHONPATH}}"', "export PYTHONSAFEPATH=1"]


def _reason(error: Exception) -> str:
    """Error message of sbatch in submitit's exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("sbatch: error:")), lines[-1])
