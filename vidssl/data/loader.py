"""Batches in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch.utils.data import DataLoader

from vidssl.clips import Batch
from vidssl.data.dataset import ClipDataset, collate
from vidssl.data.manifest import allowance
from vidssl.data.video import VideoError
from vidssl.engine import distributed
from vidssl.registry import FilePath, NonNegativeInt, PositiveInt, UnitInterval, Within


@dataclass(frozen=True)
class DataOptions:
    """How videos are read, whatever data set they come from."""

    workers: NonNegativeInt  # processes that decode, a rank
    prefetch: PositiveInt  # batches that each worker keeps ready
    rotate: bool  # turn pictures as the file asks a player to do
    short_video: Literal["skip", "loop"]  # in training; evaluation repeats short videos, so that all count
    drop: list[Literal["damaged", "variable_rate", "rotated"]]  # kinds of videos to leave out everywhere
    most_damaged: UnitInterval  # of the videos (or five) may turn out damaged before a run stops
    most_missing: UnitInterval  # of a test split's listed videos (or five) may be missing or unusable
    index_folder: FilePath | None  # where indices are kept; null: beside the videos, or in the user's cache folder
    processes: NonNegativeInt  # that scan, render or make copies; 0: one for each processor
    cache: Literal["mjpeg", "raw", "fastdecode"] | None  # read small copies in place of the videos
    cache_short: Annotated[int, Within("[16, inf)")]  # length of the copies' short side
    cache_folder: FilePath | None  # where they are kept; null: beside the index


class Order:
    """Batches of (epoch, index) for one rank.

    In training the ranks' slices make up each global batch, and what is left over is dropped. In evaluation the ranks
    take turns, so that each video is seen once.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, training: bool, rank: int = 0, world: int = 1):
        self.count, self.batch_size, self.seed, self.training = count, batch_size, seed, training
        self.rank, self.world = rank, world
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        if self.training:
            return self.count // (self.batch_size * self.world)
        return -(-len(range(self.rank, self.count, self.world)) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.batch_size
        order = self.permutation() if self.training else []
        for batch in range(self.skip, len(self)):
            if self.training:
                start = (batch * self.world + self.rank) * size
                own = order[start : start + size]
            else:
                own = range(self.rank, self.count, self.world)[batch * size : (batch + 1) * size]
            yield [(self.epoch, index) for index in own]

    def permutation(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.count, generator=generator).tolist()


class Told:
    """Batches of (epoch, index) as somebody chose them, in place of an Order."""

    def __init__(self, batches: Sequence[Sequence[int]]):
        self.batches = batches
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches[self.skip :]:
            yield [(self.epoch, index) for index in batch]


@contextmanager
def _as_many_workers_as_asked() -> Iterator[None]:
    """torch warns where there are more workers than processors; their number is the user's choice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


class ClipLoader:
    """Loads batches with worker processes; says how many videos could not be read and which.

    batch_size: of this rank; or the indices in each batch of all ranks, who take turns. most_damaged: share of the
    videos that may turn out damaged before a run is stopped; in small data sets see `allowance`.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int | Sequence[Sequence[int]],
        *,
        training: bool,
        workers: int,
        prefetch: int,
        pin: bool,
        most_damaged: float,
        report: Callable[[str], None],
        rank: int = 0,
        world: int = 1,
    ):
        self.dataset, self.most_damaged, self.report = dataset, most_damaged, report
        if isinstance(batch_size, int):
            self.order: Order | Told = Order(
                len(dataset), batch_size, seed=dataset.seed, training=training, rank=rank, world=world
            )
        else:
            self.order = Told(batch_size[rank::world])
        self.damaged: dict[int, str] = {}
        with _as_many_workers_as_asked():
            self.loader = DataLoader(
                dataset,
                batch_sampler=self.order,
                num_workers=workers,
                collate_fn=collate,
                pin_memory=pin,
                persistent_workers=workers > 0,
                multiprocessing_context="fork" if workers > 0 else None,
                worker_init_fn=_serve_one_run,
                prefetch_factor=prefetch if workers > 0 else None,
                generator=torch.Generator(),  # leaves the default one alone
            )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `skip` on. Raises VideoError if too many videos are damaged."""
        self.order.epoch, self.order.skip = epoch, skip
        with _as_many_workers_as_asked():
            batches = iter(self.loader)
        for batch, failures in batches:
            for video, reason in failures:
                self._count(video, reason)
            if batch is not None:
                yield batch

    def _count(self, video: int, reason: str) -> None:
        if video in self.damaged:
            return
        self.damaged[video] = reason
        action = "another video takes its place" if self.dataset.replace else "left out"
        self.report(f"damaged video, {len(self.damaged)} so far, {action}: {reason}")
        if len(self.damaged) > allowance(len(self.dataset), self.most_damaged):
            raise VideoError(
                f"{len(self.damaged)} of {len(self.dataset)} videos turned out damaged, more than "
                f"data.most_damaged={self.most_damaged} allows; the last: {reason}. The same command with a higher "
                "limit goes on"
            )


def _serve_one_run(worker: int) -> None:
    """A worker ends when its run says so or is killed; what others signal to all processes is for the run to answer."""
    if sys.platform != "linux":
        return
    distributed.end_with_parent()
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(run: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
