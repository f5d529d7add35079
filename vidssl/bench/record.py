"""Measurements with the machine and the versions they were taken on: bench.json."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import av
import torch

from vidssl.engine.records import git, versions, write_json

SCHEMA = 2  # of bench.json; a new number where a key changes its meaning or goes


def write(file: Path, section: dict[str, Any], measured: dict[str, Any]) -> None:
    """section: the configuration of task=bench."""
    digest = hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()[:16]
    write_json(file, {"schema": SCHEMA, **surroundings(), "config": section, "config_hash": digest, **measured})


def surroundings() -> dict[str, Any]:
    """What times depend on besides the code: machine, versions, threads, commit."""
    set_outside = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ}
    return {
        "machine": machine(),
        "versions": versions() | {"ffmpeg": av.ffmpeg_version_info},
        "threads": {"torch": torch.get_num_threads(), "torch_between": torch.get_num_interop_threads()} | set_outside,
        "git": git(),
    }


def machine() -> dict[str, Any]:
    """Processor, how many of its cores this process may use, GPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }
