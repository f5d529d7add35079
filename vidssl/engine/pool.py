"""Work on many videos in processes of their own, which end with whoever waits for them.

Nothing here imports torch: these processes start fast.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from vidssl.registry import RunError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
Job, Row = TypeVar("Job"), TypeVar("Row")


def each_in_pool(
    function: Callable[[Job], Row], jobs: Sequence[Job], processes: int, *, fewest: int, chunk: int
) -> Iterator[Row]:
    """What `function` gives for each job, in their order; in this process if there are fewer jobs than `fewest`.

    Where this is left early, by an error or a signal, the processes are ended at once. Raises RunError if one of them
    was killed.
    """
    if processes <= 1 or len(jobs) < fewest:
        yield from map(function, jobs)
        return
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    with _blocked_signals():
        pool = ProcessPoolExecutor(processes, mp_context=spawn, initializer=_serve, initargs=(os.getpid(),))
    try:
        with _blocked_signals():
            rows = pool.map(function, jobs, chunksize=chunk)
        yield from rows
    except BrokenProcessPool:
        raise RunError(
            "a process that reads or writes videos was killed, as the system does where memory runs out; fewer "
            f"data.processes (now {processes}) take less. The same command goes on with what is done"
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """What is started within ignores the run's signals: these processes until they say so themselves, and Python's
    process that keeps account of semaphores, which SIGUSR2 would end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(parent: int) -> None:
    """Signals to a whole group of processes are for the run to answer; this one ends when the run does."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with(parent)


def end_with(parent: int) -> None:
    """The system kills this process when `parent`, which started it, is gone, however that ended. On Linux only."""
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
