"""SLURM's environment variables of this process, and queries of its jobs and nodes (None if SLURM does not answer)."""

from __future__ import annotations

import os
import subprocess
from typing import Any

TIMEOUT_SECONDS = 30.0  # of a query


def tasks() -> int:
    """Number of tasks in the srun step of this process; 1 without srun."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def idle_gpus(config: dict[str, Any]) -> list[str]:
    """Problem if SLURM gave this node more GPUs than the run has ranks on it."""
    in_step = "SLURM_STEP_ID" in os.environ or "SUBMITIT_EXECUTOR" in os.environ
    visible, devices = os.environ.get("CUDA_VISIBLE_DEVICES", ""), config["devices"]
    count = len(visible.split(","))
    if not in_step or config["accelerator"] == "cpu" or count <= devices:
        return []
    return [
        f"devices={devices}: SLURM gave {count} GPUs (CUDA_VISIBLE_DEVICES={visible}), and each rank computes on one; "
        f"devices={count}, or srun --ntasks-per-node={count}, or CUDA_VISIBLE_DEVICES={visible.split(',')[0]} to leave "
        "the others idle on purpose"
    ]


def queue() -> set[str] | None:
    """Ids of all pending and running jobs; jobs of an array one by one, such as 12_0."""
    output = _query("squeue", "--noheader", "--array", "--format=%i")
    return None if output is None else set(output.split())


def is_evicting(job: str) -> bool:
    """Whether SLURM preempts this job for another one, rather than a user canceling it."""
    output = _query("scontrol", "show", "job", job, "--oneliner")
    return output is not None and "PreemptTime=" in output and "PreemptTime=None" not in output


def hostnames(nodes: str) -> list[str] | None:
    """Host names of a node list: n[1-3] -> n1, n2, n3."""
    output = _query("scontrol", "show", "hostnames", nodes)
    return None if output is None else output.split()


def _query(*command: str) -> str | None:
    """Output of a command; None if it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
