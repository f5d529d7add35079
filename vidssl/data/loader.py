"""Batches in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import errno
import multiprocessing.queues
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from vidssl.clips import Batch
from vidssl.data.dataset import ClipDataset, Item, collate
from vidssl.data.manifest import allowance
from vidssl.data.video import VideoError
from vidssl.engine import distributed
from vidssl.engine.disk import SHARED_MEMORY, DiskError, disk_error, errno_of, free, human, size
from vidssl.engine.pool import end_with
from vidssl.registry import FilePath, NonNegativeInt, PositiveInt, RunError, UnitInterval, Within

WAKE_UP = 1.0  # seconds after which a wait for a batch looks around


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
        largest = batch_size if isinstance(batch_size, int) else max(map(len, batch_size), default=0)
        warning = shared_memory(largest * dataset.item_bytes, workers, prefetch, distributed.world_here())
        if warning:
            report(warning)
        if isinstance(batch_size, int):
            self.order: Order | Told = Order(
                len(dataset), batch_size, seed=dataset.seed, training=training, rank=rank, world=world
            )
        else:
            self.order = Told(batch_size[rank::world])
        self.damaged: dict[int, str] = {}
        with _as_many_workers_as_asked():
            self.loader = DataLoader(
                dataset if workers > 0 else Stoppable(dataset),
                batch_sampler=self.order,
                num_workers=workers,
                collate_fn=collate,
                pin_memory=pin,
                persistent_workers=workers > 0,
                multiprocessing_context="fork" if workers > 0 else None,
                worker_init_fn=_serve_one_run,
                prefetch_factor=prefetch if workers > 0 else None,
                timeout=WAKE_UP if workers > 0 else 0,
                generator=torch.Generator(),  # leaves the default one alone
            )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `skip` on. Raises VideoError if too many videos are damaged."""
        self.order.epoch, self.order.skip = epoch, skip
        with _as_many_workers_as_asked():
            batches = iter(self.loader)
        while (answer := self._next(batches)) is not None:
            batch, failures = answer
            for video, reason in failures:
                self._count(video, reason)
            if batch is not None:
                yield batch

    def _next(self, batches: Iterator) -> tuple[Batch | None, tuple[tuple[int, str], ...]] | None:
        """What comes next, None at the end. A wait ends with its workers, and soon after a signal."""
        while True:
            try:
                return next(batches, None)
            except VideoError as error:  # torch puts the worker's traceback in front
                raise VideoError(str(error).strip().splitlines()[-1].rpartition("VideoError: ")[2]) from None
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise RuntimeError(f"{error}{_ends(batches)}") from error
            distributed.stop_waiting()

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


@dataclass(frozen=True)
class Stoppable(Dataset):
    """The videos where no worker reads them: between two of them a signal is answered."""

    dataset: ClipDataset

    def __getitem__(self, key: tuple[int, int]) -> Item:
        distributed.stop_waiting()
        return self.dataset[key]


# ---------------------------------------------------------------------------------------------------------------------
# Workers


class WorkerLost(RunError):
    """A process that reads videos has ended before its work."""


SHM_FULL, DISK_FULL, OTHER = 101, 102, 103  # exit status of a worker that cannot hand over a batch


def shared_memory(batch: int, workers: int, prefetch: int, ranks: int) -> str | None:
    """A warning if the batches of this machine's workers may not fit into shared memory. batch: bytes of one."""
    if not workers or not Path(SHARED_MEMORY).is_dir():
        return None
    needed = ranks * (workers * prefetch + 1) * batch  # the trainer holds one
    if needed <= free(Path(SHARED_MEMORY)):
        return None
    many = f"{ranks} ranks with " if ranks > 1 else ""
    return (
        f"warning: {SHARED_MEMORY} has {human(free(Path(SHARED_MEMORY)))} free of {human(size(Path(SHARED_MEMORY)))}, "
        f"but {many}data.workers={workers} x data.prefetch={prefetch} batches of {human(batch)} may need "
        f"{human(needed)} there; {LARGER_SHM}"
    )


LARGER_SHM = (
    "a larger one helps (docker run --shm-size=8g or --ipc=host), fewer data.workers, data.prefetch=1, or "
    "data.workers=0, which needs none"
)


def _ends(batches: Iterator) -> str:
    """How the workers ended that have, in torch's words, which has them or not as it comes."""
    codes = [worker.exitcode for worker in getattr(batches, "_workers", ())]
    signals = [f" killed by signal: {signal.Signals(-code).name}" for code in codes if code and code < 0]
    return "".join(signals + [f" exit code {code}" for code in codes if code and code > 0])


def worker_lost(error: BaseException, data: dict[str, Any]) -> RunError | None:
    """What torch means by a worker that exited, which it may say at any time; None for other errors.

    data: the configuration's section.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or not text.startswith("DataLoader worker"):
        return None
    status = re.search(r"exit code (\d+)", text)
    if re.search("signal: (Bus error|SIGBUS)", text) or (status and int(status[1]) == SHM_FULL):
        shm = Path(SHARED_MEMORY)
        return DiskError(
            f"{shm} is full ({human(size(shm))} large, {human(free(shm))} free without this run's workers): "
            f"data.workers={data['workers']} x data.prefetch={data['prefetch']} batches wait there; {LARGER_SHM}"
        )
    if status and int(status[1]) == DISK_FULL:
        return disk_error(Path(tempfile.gettempdir()), errno.ENOSPC)
    killed = re.search(r"killed by signal: ([\w ]+)", text)
    how = f"was killed ({killed[1].strip()}), as the system does where memory runs out" if killed else "has ended"
    return WorkerLost(
        f"a process that reads videos {how}; fewer data.workers (now {data['workers']}) or a smaller data.prefetch "
        f"(now {data['prefetch']}) take less memory. The same command continues from the last saved state"
    )


def _serve_one_run(worker: int) -> None:
    """A worker ends when its run says so or is killed; what others signal to all processes is for the run to answer."""
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_with_reason)
    if sys.platform != "linux":
        return
    end_with(os.getppid())
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_with_reason(error: Exception, batch: object) -> None:
    """A batch that cannot be handed over would be waited for forever; the worker's end is noticed at once."""
    if errno_of(error) is None:
        traceback.print_exception(error)
        os._exit(OTHER)
    os._exit(SHM_FULL if "shared memory" in str(error) else DISK_FULL)


def _end_when_told(run: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
