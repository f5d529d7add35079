"""State of a run: what its run.json says, unless its process or its job in the queue is gone."""

from __future__ import annotations

import os
import platform
from collections import Counter
from typing import Any, NamedTuple

from vidssl.ranks import slurm


class State(NamedTuple):
    meaning: str
    remedy: str = ""
    color: str = "#4d4d4d"


RED, BLUE, GREEN = "#b3261e", "#0b62a4", "#0a7d55"

# In the order of counts; requeued, interrupted, lost and missing are inferred here, the others are in run.json
STATES = {
    "done": State("ended, all metrics are there", "", GREEN),
    "running": State("a process is working on it", "wait", BLUE),
    "submitted": State("waiting in the queue of a cluster", "wait"),
    "requeued": State("stopped by a signal, its state is saved, waiting in the queue of a cluster", "wait"),
    "preempted": State("stopped by a signal, its state is saved", "the same command continues it"),
    "interrupted": State(
        "recorded as running, but its process is gone", "the same command continues it from the last saved state", RED
    ),
    "lost": State("recorded as submitted, but not in the queue any more", "the same command submits it again", RED),
    "failed": State(
        "ended with an error",
        "fix the cause, then the same command; in a sweep with retry_failed=true",
        RED,
    ),
    "missing": State("planned, but there is no folder", "wait while the sweep is running, else the same command"),
}


def state(status: str) -> State:
    return STATES.get(status, State(status))


def in_order(counts: Counter[str]) -> dict[str, int]:
    """The states that occur, in the order of STATES, then others."""
    return {name: counts[name] for name in (*STATES, *sorted(counts.keys() - STATES.keys())) if counts[name]}


def find_states(records: list[dict[str, Any]]) -> list[str]:
    """States of runs, from the contents of their run.json. The queue is asked at most once."""
    queue = slurm.queue() if any(map(_is_waited_for, records)) else None
    return [find_state(record, queue) for record in records]


def find_state(record: dict[str, Any], queue: set[str] | None) -> str:
    """queue: ids of the jobs known to SLURM; None: it cannot be asked, so the record is believed."""
    status = record["status"]
    known = queue is not None and _is_waited_for(record) and str(record["job"]["id"]) in queue
    unknown = queue is not None and _is_waited_for(record) and not known
    if status == "preempted" and known:
        return "requeued"
    if status == "submitted" and unknown:
        return "lost"
    if status == "running" and (unknown or _is_dead(record)):
        return "interrupted"
    return status


def _is_waited_for(record: dict[str, Any]) -> bool:
    job = record.get("job") or {}
    return record["status"] in ("running", "submitted", "preempted") and job.get("cluster") == "slurm"


def _is_dead(record: dict[str, Any]) -> bool:
    """Whether the process ran on this machine and has ended."""
    if record.get("host") != platform.node() or "process" not in record:
        return False
    try:
        os.kill(record["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, alive
        pass
    return False
