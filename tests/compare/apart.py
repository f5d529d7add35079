"""Candidates in processes of their own, as a loader has its workers: what one does to its memory, threads and libraries
changes nothing for the others."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from tests.compare.timing import interleaved, on_device
from vidssl.engine import distributed
from vidssl.engine.pool import end_with

CPU = torch.device("cpu")


class Apart:
    """Starts candidates; `spent` is what all their calls took so far, a clock for `interleaved`.

    Processor time on CPUs, time on the wall where they work on a GPU.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self.device, self.spent, self.started = device, 0.0, []

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self.started:
            connection.close()  # ends its loop
            process.join()
            process.close()

    def clock(self) -> float:
        return self.spent

    def start(self, make: Callable[..., Callable[[], object]], *arguments: Any, keeps_memory: bool = False) -> Callable:
        """A function that has `make(*arguments)` called in a process of its own, which makes it only once.

        keeps_memory: as runs of ours do, see distributed.keep_freed_memory.
        """
        here, there = _forks().Pipe()
        process = _forks().Process(target=_serve, args=(there, make, arguments, keeps_memory, self.device), daemon=True)
        process.start()
        there.close()
        self.started.append((process, here))

        def call() -> None:
            here.send(None)
            seconds = here.recv()
            if isinstance(seconds, str):
                raise RuntimeError(seconds)
            self.spent += seconds

        return call


def against(
    baseline: str, ours: tuple, theirs: tuple, rounds: int, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Seconds of "ours", which keeps its memory as runs of ours do, and of a baseline, in turn.

    Both: the function that makes the candidate, and its arguments.
    """
    with Apart(device) as apart:
        candidates = {"ours": apart.start(*ours, keeps_memory=True), baseline: apart.start(*theirs)}
        return interleaved(candidates, rounds, clock=apart.clock)


def _forks() -> Any:
    """Processes that have imported the large libraries, and have done nothing else yet."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "av", "vidssl.bench.reading"])
    return context


def _serve(
    connection: Connection,
    make: Callable[..., Callable[[], object]],
    arguments: tuple,
    keeps: bool,
    device: torch.device,
) -> None:
    end_with(os.getppid())
    torch.set_num_threads(1)
    if keeps:
        distributed.keep_freed_memory()
    candidate, clock = None, on_device(device)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        try:
            candidate = candidate or make(*arguments)
            begun = clock()
            candidate()
            connection.send(clock() - begun)
        except Exception:
            connection.send(traceback.format_exc())
