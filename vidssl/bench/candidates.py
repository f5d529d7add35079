"""What takes turns in the bench of reading clips. Each candidate is made in a process of its own, and then called again
and again; this module is imported there, so it imports little."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import av

from vidssl.bench.loaders import Job, whole_file
from vidssl.data.dataset import ClipDataset, collate
from vidssl.data.sampling import item_generator
from vidssl.data.video import decode, rgb_frames


def each(work: Callable, jobs: Sequence) -> Callable[[], None]:
    def candidate() -> None:
        for job in jobs:
            work(job)

    return candidate


def ours(dataset: ClipDataset, jobs: list[Job]) -> Callable[[], None]:
    """What a worker does for each item."""
    return each(lambda epoch: dataset.read(0, item_generator(dataset.seed, epoch, 0)), range(len(jobs)))


def opened(dataset: ClipDataset, jobs: list[Job]) -> Callable[[], None]:
    return each(lambda job: av.open(str(job.path), metadata_errors="ignore").close(), jobs)


def decoded(dataset: ClipDataset, jobs: list[Job]) -> Callable[[], None]:
    return each(lambda job: deque(decode(job.path, job.wanted, job.index), maxlen=0), jobs)


def converted(dataset: ClipDataset, jobs: list[Job]) -> Callable[[], None]:
    return each(lambda job: deque(rgb_frames(job.path, job.wanted, job.index), maxlen=0), jobs)


def collated(dataset: ClipDataset, jobs: list[Job]) -> Callable[[], object]:
    return lambda: collate([dataset[epoch, 0] for epoch in range(len(jobs))])


def moved(dataset: ClipDataset, jobs: list[Job]) -> Callable[[], object]:
    """Into memory that the training process reads, too."""

    def candidate() -> None:
        batch, _ = collate([dataset[epoch, 0] for epoch in range(len(jobs))])
        for part in batch:
            part.share_memory_()

    return candidate


# Our path up to each of its stages, so that differences tell what each takes
STAGES = {
    "open": opened,
    "decode": decoded,
    "convert": converted,
    "crop_resize": ours,
    "collate": collated,
    "transfer": moved,
}


def cropped(crop: Callable, jobs: list[Job]) -> Callable[[], None]:
    pairs = [pair for job in jobs for pair in zip(whole_file(job), job.boxes, strict=True)]
    return each(lambda pair: crop(*pair, jobs[0].size), pairs)


def scan_by_decoding(path: Path) -> list[int]:
    """The official style's index: presentation times of all pictures, in order."""
    with av.open(str(path)) as container:
        return sorted(frame.pts for frame in container.decode(video=0))
