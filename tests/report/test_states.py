"""Runs whose record says less than the truth."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vidssl.ranks import slurm
from vidssl.report.states import find_states


@pytest.fixture
def gone() -> int:
    """Id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a squeue with this body on the path; it notes each call."""

    def put(body: str) -> Path:
        script = tmp_path / "bin/squeue"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{body}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:/bin:/usr/bin")
        return tmp_path / "calls"

    return put


def record(status: str, job: str | None = None, **more: object) -> dict:
    return {"status": status, **({"job": {"cluster": "slurm", "id": job}} if job else {}), **more}


def test_a_run_is_interrupted_when_its_process_on_this_machine_is_gone(gone: int) -> None:
    here = {"host": platform.node()}
    assert find_states(
        [
            record("running", process=gone, **here),
            record("running", process=os.getpid(), **here),
            record("running", process=1, **here),
            record("running", process=gone, host="elsewhere"),
            record("failed", process=gone, **here),
            record("done", process=gone, **here),
            record("running"),
        ]
    ) == ["interrupted", "running", "running", "running", "failed", "done", "running"]


def test_jobs_that_the_queue_does_not_list_are_lost_or_interrupted(squeue) -> None:
    calls = squeue("printf '12_0\\n12_1\\n7\\n'")
    records = [record("submitted", "12_0"), record("submitted", "12_2"), record("submitted", "7")]
    records += [record("running", "12_1"), record("running", "8"), record("preempted", "9"), record("done", "10")]
    records.append(record("preempted", "7"))
    expected = ["submitted", "lost", "submitted", "running", "interrupted", "preempted", "done", "requeued"]
    assert find_states(records) == expected
    assert len(calls.read_text().splitlines()) == 1, "one call for all"
    assert "--array" in calls.read_text()


def test_nobody_is_asked_when_no_job_is_waited_for(squeue) -> None:
    calls = squeue("echo 1")
    assert find_states([record("done", "12_0"), record("running")]) == ["done", "running"]
    assert not calls.exists()


@pytest.mark.parametrize("body", ["echo 7; exit 1", "exec sleep 30"])
def test_records_are_believed_when_the_queue_cannot_be_asked(squeue, body: str, monkeypatch) -> None:
    squeue(body)
    monkeypatch.setattr("vidssl.ranks.slurm.TIMEOUT_SECONDS", 0.3)
    assert slurm.queue() is None
    assert find_states([record("submitted", "12_0"), record("running", "8")]) == ["submitted", "running"]


def test_records_are_believed_where_there_is_no_queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_states([record("submitted", "12_0")]) == ["submitted"]
