"""What SLURM told this process, and what it answers about jobs and nodes: None where it is not there or says no."""

from __future__ import annotations

import os
import subprocess
from typing import Any

PATIENCE = 30.0  # seconds for an answer


def tasks() -> int:
    """How many tasks srun started as this process was started; 1 without srun."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def idle_gpus(config: dict[str, Any]) -> list[str]:
    """Problems with SLURM having given this node's part of the run more GPUs than it has ranks."""
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
    """Ids of all waiting and running jobs, each job of an array by itself, such as 12_0."""
    answer = _ask("squeue", "--noheader", "--array", "--format=%i")
    return None if answer is None else set(answer.split())


def is_evicting(job: str) -> bool:
    """Whether SLURM ends this job in favor of another, rather than because a person wants it."""
    answer = _ask("scontrol", "show", "job", job, "--oneliner")
    return answer is not None and "PreemptTime=" in answer and "PreemptTime=None" not in answer


def hostnames(nodes: str) -> list[str] | None:
    """n[1-3] -> n1, n2, n3"""
    answer = _ask("scontrol", "show", "hostnames", nodes)
    return None if answer is None else answer.split()


def _ask(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
