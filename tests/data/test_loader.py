from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from tests.conftest import make_video
from vidssl.clips import Batch, ClipPlan, View
from vidssl.data.dataset import ClipDataset
from vidssl.data.loader import SHM_FULL, ClipLoader, Order, worker_lost
from vidssl.data.manifest import Listing, Video, read_manifest
from vidssl.data.spatial import RandomResized
from vidssl.data.video import VideoError, read_frames
from vidssl.engine import distributed
from vidssl.engine.distributed import Stopped


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i in range(10):
        make_video(root / f"{i}.mp4", 20 + i, size=(48, 64))
    return root


def dataset(root: Path, count: int = 10, **changes: object) -> ClipDataset:
    files = Listing(root, [Video(f"{i}.mp4", i) for i in range(count)], [str(i) for i in range(count)])
    crop = RandomResized(area=(0.3, 1.0), ratio=(0.75, 4 / 3), flip=0.5, antialias=True)
    plan = ClipPlan(2, (View(0), View(1)))
    return ClipDataset(read_manifest(files, window=16, drop=()), plan, crop, 8, 2, 32, 0, **changes)


def loader(data: ClipDataset, **changes: object) -> ClipLoader:
    options = {
        "training": True, "workers": 0, "prefetch": 2, "pin": False, "most_damaged": 0.5,
        "report": lambda line: None,
    }  # fmt: skip
    return ClipLoader(data, 4, **{**options, **changes})


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_have_the_promised_shapes(folder: Path) -> None:
    batch = next(loader(dataset(folder)).epoch(0))
    assert batch.clips.shape == (4, 2, 3, 8, 32, 32)
    assert batch.clips.dtype == torch.uint8
    assert batch.boxes.shape == (4, 2, 4)
    assert batch.boxes.dtype == torch.float32
    assert batch.label.dtype == batch.index.dtype == torch.int64
    assert torch.equal(batch.label, batch.index)


@pytest.mark.parametrize("workers", [0, 1])
def test_color_lies_last_until_the_batch_is_on_its_device(workers: int, folder: Path) -> None:
    batch = next(iter(loader(dataset(folder), workers=workers).epoch(0)))
    assert batch.clips.shape[2] == 3
    assert batch.clips.stride(2) == 1
    moved = batch.to("cpu")
    assert moved.clips.is_contiguous()
    assert torch.equal(moved.clips, batch.clips)


def test_neither_workers_nor_a_restart_change_a_clip(folder: Path) -> None:
    plain = loader(dataset(folder))
    two_epochs = [*plain.epoch(3), *plain.epoch(4)]
    with_workers = loader(dataset(folder), workers=3)
    assert_equal([*with_workers.epoch(3), *with_workers.epoch(4)], two_epochs)
    fresh = loader(dataset(folder))
    assert_equal([*fresh.epoch(3, skip=1), *fresh.epoch(4)], two_epochs[1:])


def test_epochs_and_seeds_differ(folder: Path) -> None:
    plain = loader(dataset(folder))
    first, second = next(plain.epoch(0)), next(plain.epoch(1))
    assert not torch.equal(first.index, second.index) or not torch.equal(first.clips, second.clips)


def test_a_crop_shows_the_pixels_of_its_box(folder: Path) -> None:
    data = dataset(folder)
    crop = RandomResized(area=(1.0, 1.0), ratio=(0.75, 4 / 3), flip=1.0, antialias=True)
    whole = ClipDataset(data.manifest, ClipPlan.uniform(1), crop, 8, 2, 48, 0)
    item = whole[0, 2]
    x0, y0, x1, y1 = item.boxes[0].tolist()
    assert x0 > x1, "mirrored"
    box = read_frames(folder / "2.mp4", range(0, 16, 2))[:, :, round(x1 * 64) : round(x0 * 64), :][:, :, ::-1]
    assert (y0, y1) == (0.0, 1.0)
    assert box.shape[2] == 64 or box.shape[1] == 48
    found = item.clips[0].permute(1, 2, 3, 0).float()
    shrunk = torch.nn.functional.interpolate(
        torch.from_numpy(box.copy()).permute(0, 3, 1, 2).float(), (48, 48), mode="bilinear", antialias=True
    ).permute(0, 2, 3, 1)
    assert (found - shrunk).abs().max() <= 1.0


def test_a_view_can_take_the_crop_of_its_windows_first(folder: Path) -> None:
    own = dataset(folder)
    views = tuple(
        View(window, frames, crop) for window in (0, 1) for frames, crop in (("stride", "own"), ("tail", "window"))
    )
    shared = ClipDataset(own.manifest, ClipPlan(2, views), own.crop, 8, 2, 32, 0)
    boxes = shared[0, 3].boxes
    assert torch.equal(boxes[0], boxes[1])
    assert torch.equal(boxes[2], boxes[3])
    assert not torch.equal(boxes[0], boxes[2])


@pytest.mark.parametrize(("count", "world"), [(10, 2), (24, 3), (9, 2)])
def test_ranks_share_each_global_batch(count: int, world: int) -> None:
    def order(rank: int, ranks: int, size: int) -> list:
        return list(Order(count, size, seed=1, training=True, rank=rank, world=ranks))

    parts = [order(rank, world, 2) for rank in range(world)]
    whole = order(0, 1, 2 * world)
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == whole
    assert len(whole) == count // (2 * world)


def test_evaluation_sees_every_video_once_whatever_the_ranks() -> None:
    for world in (1, 2, 3):
        seen = []
        for rank in range(world):
            for batch in Order(11, 2, seed=0, training=False, rank=rank, world=world):
                seen += [index for _, index in batch]
        assert sorted(seen) == list(range(11))


def damage(root: Path, names: list[int]) -> None:
    """Break files after they were scanned, as time and disks do, without their stamps changing."""
    for name in names:
        path = root / f"{name}.mp4"
        content = bytearray(path.read_bytes())
        start = content.find(b"mdat") + 4
        content[start : start + 1500] = b"\xff" * 1500
        path.write_bytes(content)


def test_a_damaged_video_is_named_once_and_replaced_by_a_fixed_other(tmp_path: Path) -> None:
    for i in range(8):
        make_video(tmp_path / f"{i}.mp4", 24, size=(48, 64))
    data = dataset(tmp_path, 8)
    damage(tmp_path, [3])
    told: list[str] = []
    plain = loader(data, report=told.append)
    epochs = [list(plain.epoch(e)) for e in range(3)]
    assert len(told) == 1
    assert "3.mp4" in told[0]
    assert "another video takes its place" in told[0]
    assert list(plain.damaged) == [3]
    assert all(3 not in batch.index.tolist() for epoch in epochs for batch in epoch)
    again = loader(data, workers=2)
    for e, epoch in enumerate(epochs):
        assert_equal(list(again.epoch(e)), epoch)


def test_evaluation_leaves_a_damaged_video_out(tmp_path: Path) -> None:
    for i in range(6):
        make_video(tmp_path / f"{i}.mp4", 24, size=(48, 64))
    data = dataset(tmp_path, 6, replace=False)
    damage(tmp_path, [0, 1, 2, 3])
    batches = list(loader(data, training=False, most_damaged=0.9).epoch(0))
    assert torch.cat([batch.index for batch in batches]).tolist() == [4, 5]


def test_too_many_damaged_videos_end_the_run(tmp_path: Path) -> None:
    for i in range(8):
        make_video(tmp_path / f"{i}.mp4", 24, size=(48, 64))
    data = dataset(tmp_path, 8, replace=False)
    damage(tmp_path, [0, 1, 2, 3])
    loading = loader(data, training=False, most_damaged=0.01)
    assert sum(len(batch.index) for batch in loading.epoch(0)) == 4, "half of a small split, up to five, may be damaged"
    damage(tmp_path, [4])
    with pytest.raises(VideoError, match=r"5 of 8 videos turned out damaged, more than data.most_damaged=0.2"):
        list(loader(data, training=False, most_damaged=0.2).epoch(0))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of other processes")
def test_workers_keep_their_memory_over_ten_thousand_clips(folder: Path) -> None:
    """Containers, decoders and pictures are freed: a leak of one picture of 9 kB in a clip would be 90 MB."""
    data = dataset(folder)
    many = replace(data.manifest, videos=data.manifest.videos * 100, rows=list(data.manifest.rows) * 100)
    loading = loader(replace(data, manifest=many), workers=2, training=True)
    others, resident = set(multiprocessing.active_children()), []
    for epoch in range(5):
        clips = sum(batch.count for batch in loading.epoch(epoch))
        assert clips == 2000
        workers = set(multiprocessing.active_children()) - others
        assert len(workers) == 2
        resident.append(sum(resident_bytes(worker.pid) for worker in workers))
    assert resident[-1] - resident[0] < 8 << 20, [size >> 20 for size in resident]


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- waits


class Stuck(ClipDataset):
    """A file system that does not answer: each video takes longer than anybody waits."""

    def __getitem__(self, key: tuple[int, int]) -> object:
        time.sleep(100 if not self.replace else 0.6)
        return super().__getitem__(key)


class Deadly(ClipDataset):
    """A worker that ends at its first video, with the status or by the signal that the seed says."""

    def __getitem__(self, key: tuple[int, int]) -> object:
        if self.seed > 0:
            os._exit(self.seed)
        os.kill(os.getpid(), -self.seed)
        return super().__getitem__(key)


class Unreadable(ClipDataset):
    def __getitem__(self, key: tuple[int, int]) -> object:
        raise VideoError("a.mp4: nothing of it can be read")


def other(kind: type[ClipDataset], data: ClipDataset, **changes: object) -> ClipDataset:
    return kind(**{**vars(data), **changes})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_is_answered_while_a_batch_is_waited_for(workers: int, folder: Path) -> None:
    data = other(Stuck, dataset(folder, replace=workers == 0))
    batches = loader(data, workers=workers, training=False).epoch(0)
    timer, begun = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)), time.monotonic()
    with pytest.raises(Stopped) as stopped, distributed.stopping_on_signals(), distributed.noting_signals():
        timer.start()
        for _ in batches:
            pass
    assert time.monotonic() - begun < 5
    assert stopped.value.reason == signal.SIGUSR2


def test_a_batch_that_is_late_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidssl.data.loader.WAKE_UP", 0.1)
    data = dataset(folder)
    slow_ones = loader(other(Stuck, data), workers=2, training=False)
    assert_equal(list(slow_ones.epoch(0)), list(loader(data, training=False).epoch(0)))


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (-signal.SIGKILL, "a process that reads videos was killed (SIGKILL|Killed), as the system does"),
        (-signal.SIGBUS, "/dev/shm is full"),
        (SHM_FULL, "/dev/shm is full .* data.workers=1 x data.prefetch=2 .*--shm-size.*data.workers=0"),
        (7, "a process that reads videos has ended; fewer data.workers"),
    ],
)
def test_no_batch_of_a_lost_worker_is_waited_for(end: int, told: str, folder: Path) -> None:
    lost = loader(other(Deadly, dataset(folder), seed=end), workers=1)
    with pytest.raises(RuntimeError) as error:
        next(lost.epoch(0))
    line = str(worker_lost(error.value, {"workers": 1, "prefetch": 2}))
    assert re.match(told, line.replace("(", "").replace(")", "") if "killed" in told else line), line
    assert "\n" not in line


def test_a_batch_that_cannot_be_handed_over_ends_its_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where shared memory is full: torch would print a traceback and wait for that batch forever."""

    def full(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left on device (28)")

    monkeypatch.setattr("torch.multiprocessing.reductions.reduce_storage", full)
    monkeypatch.setitem(multiprocessing.reduction.ForkingPickler._extra_reducers, torch.UntypedStorage, full)
    with pytest.raises(RuntimeError) as error:
        next(loader(dataset(folder), workers=1).epoch(0))
    assert str(worker_lost(error.value, {"workers": 1, "prefetch": 2})).startswith("/dev/shm is full")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_says_of_videos_is_one_line(workers: int, folder: Path) -> None:
    with pytest.raises(VideoError) as error:
        next(loader(other(Unreadable, dataset(folder)), workers=workers).epoch(0))
    assert str(error.value) == "a.mp4: nothing of it can be read"


@pytest.mark.parametrize(("room", "warns"), [(10**9, False), (4 * 2 * 3 * 8 * 32 * 32 * 5 - 1, True)])
def test_too_small_a_shared_memory_is_told_at_the_start(
    room: int, warns: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 4 videos x 2 views; 2 x 2 of them are ready, one is in use."""
    monkeypatch.setattr("vidssl.data.loader.free", lambda path: room)
    told = []
    loader(dataset(folder), workers=2, report=told.append)
    assert [line.startswith("warning: /dev/shm has 960 KiB free") for line in told] == [True] * warns
    loader(dataset(folder), workers=0, report=told.append)
    assert len(told) == warns, "without workers none is needed"
