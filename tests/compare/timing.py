"""Ratios on a machine that others use, too: candidates take turns in random order, medians count, spread is told."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch

from vidssl.bench import step


class Row(NamedTuple):
    """One comparison: how many times faster ours is than a baseline of the same run."""

    part: str  # data | aug | step | methods
    what: str  # such as decode ucf_packed_b.avi
    baseline: str  # such as official style
    ratio: float  # median over the rounds
    low: float  # quartiles
    high: float
    least: float | None = None  # what it should be at least; None: told for orientation
    seconds: float | None = None  # of ours, median
    note: str = ""  # what a reader should know, such as that the baseline delivers wrong frames
    figures: Mapping[str, float] = MappingProxyType({})  # what else was measured

    @property
    def is_met(self) -> bool:
        return self.least is None or self.ratio >= self.least

    @property
    def spread(self) -> float:
        """Between the quartiles, as a share of the ratio; above a tenth, look at another run."""
        return (self.high - self.low) / self.ratio


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    seed: int = 0,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one round that does not count; a new order in every round.

    clock: the process's own time on all its threads by default, which what else the machine does changes little.
    """
    clock = clock or time.process_time
    order, found = list(candidates), {name: [] for name in candidates}
    shuffle = random.Random(seed)
    for number in range(rounds + 1):
        shuffle.shuffle(order)
        for name in order:
            begun = clock()
            candidates[name]()
            if number:
                found[name].append(clock() - begun)
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_device(device: torch.device) -> Callable[[], float]:
    """A clock for work on a device: processor time on CPUs, time on the wall for a GPU that has finished."""
    return step.on_device(device, time.process_time)


def compared(
    part: str, what: str, seconds: Mapping[str, list[float]], ours: str, baseline: str, least: float | None = None
) -> Row:
    """Ours against the baseline, round by round."""
    ratios = [theirs / mine for mine, theirs in zip(seconds[ours], seconds[baseline], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Row(part, what, baseline, middle, low, high, least, statistics.median(seconds[ours]))
