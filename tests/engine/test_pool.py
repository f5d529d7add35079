from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidssl.engine.pool import each_in_pool
from vidssl.registry import RunError

WAITING = """
import os, signal, sys, time
from vidssl.engine.pool import each_in_pool

def stop(*_):
    raise SystemExit(75)

if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, stop)
    for _ in each_in_pool(time.sleep, [0.1] * 1000, 2, fewest=1, chunk=1):
        print("waits", flush=True)
"""


def test_a_signal_to_all_processes_ends_a_pool_silently_and_soon(tmp_path: Path) -> None:
    """Those that Python starts on its own account among them."""
    (tmp_path / "waiting.py").write_text(WAITING)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "waiting.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert process.stdout.readline() == "waits\n"
    os.killpg(process.pid, signal.SIGUSR2)
    begun = time.monotonic()
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (75, "")
    assert time.monotonic() - begun < 5


def kill_oneself(job: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return job


def test_a_killed_process_of_a_pool_ends_the_wait_with_a_line() -> None:
    with pytest.raises(RunError, match=r"was killed.* data.processes \(now 2\)"):
        list(each_in_pool(kill_oneself, range(4), 2, fewest=1, chunk=1))
