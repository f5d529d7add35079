"""Whichever disk is full, and whenever: a run ends soon with one line, and goes on when there is room."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import _launch, _server, launch, make_video, read_json, start
from tests.run.test_app import outcome
from vidssl.run.command import DONE, FAILED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="mounting file systems takes root on Linux"
    ),
]
WORDS = ("dataset=folder", "dataset.root=data", "recipe=demo", "method=moco", "backbone.width=4", "accelerator=cpu")
WORDS += ("task=[pretrain,linear]", "pretrain.batch_size=4", "pretrain.epochs=8", "linear.batch_size=4")
WORDS += ("linear.epochs=2", "linear.rates=null", "data.workers=1", "data.processes=2", "trainer.save_every=2")
WORDS += ("data.cache=mjpeg", "trainer.log_every=1")
PLACES = {"output": "output=full/run", "index": "data.index_folder=full/index", "cache": "data.cache_folder=full/cache"}
ELSEWHERE = {"output": "output=run", "index": "data.index_folder=index", "cache": "data.cache_folder=cache"}
ROUNDS, LIMIT = 3, 30  # seconds
NEW_MOUNTS = 0x20000  # CLONE_NEWNS of sched.h


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full_disks")
    for split, count in (("train", 6), ("test", 2)):
        for label in ("left", "right"):
            for number in range(count):
                make_video(folder / f"data/{split}/{label}/{number}.mp4", 20 + number, size=(48, 64))
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[float, tuple]:
    """How long the run takes, and what it leaves."""
    begun = time.monotonic()
    answer = launch([*WORDS, "output=undisturbed", "data.index_folder=i", "data.cache_folder=c"], folder)
    assert answer.status == DONE, answer.err
    return time.monotonic() - begun, outcome(folder / "undisturbed")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for block in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\1" * block)
    return filler


@pytest.mark.parametrize("place", PLACES)
def test_a_run_ends_when_a_disk_is_full_and_goes_on_when_it_is_not(
    place: str, folder: Path, undisturbed: tuple[float, tuple]
) -> None:
    """The first time the disk is full from the start, then from any moment on."""
    seconds, expected = undisturbed
    chance, words = random.Random(place), [*WORDS, *(ELSEWHERE | {place: PLACES[place]}).values()]
    for each in ("run", "index", "cache"):
        subprocess.run(["rm", "-rf", str(folder / each)], check=True)
    with small_disk(folder / "full") as disk:
        (disk / "run").mkdir()
        statuses = []
        for number in range(ROUNDS):
            process = start(words, folder, folder / ".launched")
            process.join(chance.uniform(0, seconds) if number else 0)
            filler = fill(disk)
            statuses.append(ended(process, folder))
            filler.unlink()
            check_leftovers(folder / ("full/run" if place == "output" else "run"), statuses[-1])
        assert statuses[0] == FAILED
        answer = launch(words, folder)
        assert answer.status == DONE, answer.err
        assert outcome(folder / ("full/run" if place == "output" else "run")) == expected


def ended(process, folder: Path) -> int:
    """The exit status of a run on a full disk; it has said why in one line."""
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
    assert process.exitcode in (DONE, FAILED), f"not within {LIMIT} s: {(folder / '.launched.out').read_text()}"
    told = (folder / ".launched.err").read_text()
    if process.exitcode == FAILED:
        assert told.startswith("error: "), told
        assert told.count("\n") == 1, told
        assert "no space left" in told or "/dev/shm is full" in told, told
    return process.exitcode


def check_leftovers(run: Path, status: int) -> None:
    left = [file.name for file in run.glob(".*") if file.suffix[1:].isdigit()]
    assert not left
    if (run / "run.json").exists():
        assert read_json(run / "run.json")["status"] == ("done" if status == DONE else "failed")


def in_small_memory(words: list[str], folder: str, log: str, environment: dict[str, str]) -> None:
    """launch.py where /dev/shm, for this process and its children alone, has 1 MiB."""
    if ctypes.CDLL(None).unshare(NEW_MOUNTS):
        os._exit(77)
    for command in ("mount --make-rprivate /", "mount -t tmpfs -o size=1m tmpfs /dev/shm"):
        if subprocess.run(command.split(), capture_output=True).returncode:
            os._exit(77)
    Path(log + ".mounted").touch()
    _launch(words, folder, log, environment)


def test_a_run_ends_when_shared_memory_is_full_and_goes_on_when_it_is_not(
    folder: Path, undisturbed: tuple[float, tuple]
) -> None:
    seconds, expected = undisturbed
    chance, words = random.Random(0), [*WORDS, *(ELSEWHERE | {"output": "output=in_memory"}).values()]
    log, statuses = folder / ".launched", []
    for number in range(ROUNDS + 1):
        (folder / ".launched.mounted").unlink(missing_ok=True)
        process = _server.Process(target=in_small_memory, args=(words, str(folder), str(log), dict(os.environ)))
        process.start()
        while process.is_alive() and not (folder / ".launched.mounted").exists():
            time.sleep(0.01)
        if process.exitcode == 77:
            pytest.skip("this machine lets nobody mount file systems")
        if number < ROUNDS:
            process.join(chance.uniform(0, seconds) if number else 0)
            if process.is_alive():
                fill(Path(f"/proc/{process.pid}/root/dev/shm"))
            statuses.append(ended(process, folder))
            check_leftovers(folder / "in_memory", statuses[-1])
    process.join(120)
    assert (statuses[0], process.exitcode) == (FAILED, DONE), (folder / ".launched.err").read_text()
    assert outcome(folder / "in_memory") == expected
