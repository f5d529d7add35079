"""What was measured, where and with what: bench.json for programs, a table for people."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import torch
from rich.console import Console
from rich.table import Table

from vidssl.bench.timing import Row
from vidssl.engine.records import git, read_json, versions, write_json

SCHEMA = 1  # of bench.json; a new number where a key changes its meaning or goes
WIDE = 0.1  # spread above which a row should be measured again


def write(file: Path, rows: Sequence[Row], section: dict[str, Any]) -> None:
    """section: the configuration of task=bench."""
    content = {
        "schema": SCHEMA,
        "machine": machine(),
        "versions": versions() | libraries(),
        "threads": {"torch": torch.get_num_threads(), "torch_between": torch.get_num_interop_threads()}
        | {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ},
        "git": git(),
        "config": section,
        "config_hash": hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()[:16],
        "rows": [row._asdict() | {"figures": dict(row.figures), "met": row.is_met} for row in rows],
    }
    write_json(file, content)


def read(file: Path) -> list[Row]:
    """Raises ValueError for a file of another schema."""
    content = read_json(file)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{file}: schema {content.get('schema')}, this version reads {SCHEMA}; measure again")
    return [Row(**{key: value for key, value in row.items() if key in Row._fields}) for row in content["rows"]]


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


def has_bfloat16() -> bool:
    """Whether this processor has units for it; others compute it no faster than float32."""
    file = Path("/proc/cpuinfo")
    flags = set(file.read_text().split()) if file.exists() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def libraries() -> dict[str, str]:
    """FFmpeg's own version, and what is compared with, where it is installed."""
    found = {"ffmpeg": av.ffmpeg_version_info}
    for name in ("torchcodec", "decord", "opencv-python-headless", "opencv-python"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(rows: Sequence[Row], width: int = 180) -> str:
    """Ratios with their quartiles, what they should be at least, whether they are."""
    grid = Table(box=None, pad_edge=False)
    grid.add_column("what", no_wrap=True)
    grid.add_column("baseline", no_wrap=True)
    for name in ("times", "quartiles", "at least"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("", overflow="fold")
    before = None
    for row in rows:
        least = "" if row.least is None else f"{row.least:g}"
        met = "" if row.least is None else "met" if row.is_met else "NOT MET"
        remarks = [met, row.note, f"spread {row.spread:.0%}" if row.spread > WIDE else ""]
        what = f"{row.part}: {row.what}" if row.what != before else ""
        quartiles = f"{row.low:.2f} - {row.high:.2f}"
        grid.add_row(what, row.baseline, f"{row.ratio:.2f}", quartiles, least, "; ".join(filter(None, remarks)))
        before = row.what
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
