"""What a run says: console and train.log, metrics.jsonl, TensorBoard.

metrics.jsonl holds nothing that depends on the clock, so that an interrupted run leaves the same lines as an
uninterrupted one; TensorBoard's scalars are written from the same lines.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidssl.engine import disk
from vidssl.engine.text import printable

PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Log:
    """One a run. Ranks other than the first say nothing but errors, into a file of their own."""

    def __init__(self, folder: Path, *, rank: int = 0):
        self.folder, self.rank = folder, rank
        self.console = Console(highlight=False, soft_wrap=True)
        self.metrics = folder / "metrics.jsonl"
        self.latest: dict[str, dict[str, Any]] = {}  # last row of each task
        self._writers: dict[str, Any] = {}
        self._is_full = False  # train.log's disk, as the console was told

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """A line for people."""
        if not self.is_main:
            return
        text = printable(text)
        self.console.print(text, markup=False)
        self._note("train.log", text)

    def error(self, text: str) -> None:
        text = printable(text)
        if self.is_main:
            self.console.print(text, style="red", markup=False)
        self.note(text)

    def note(self, text: str) -> None:
        """A line for train.log alone, of what the command itself will say."""
        self._note("train.log" if self.is_main else f"rank{self.rank}.log", text)

    def _note(self, name: str, text: str) -> None:
        """A run does not end for a line that it cannot keep: no figure comes from here."""
        if not self.folder.is_dir():
            return
        try:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')} {text}\n")
        except OSError as error:
            if not self._is_full:
                self.console.print(f"warning: {name} cannot be written ({error.strerror})", markup=False)
            self._is_full = True

    # -- numbers

    def scalars(self, task: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        if not self.is_main:
            return
        row = {"task": task, "step": step, "epoch": round(epoch, 6), **values}
        with disk.writing(self.metrics):
            with self.metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.latest[task] = row
            self._to_tensorboard(row)

    def figures(self, task: str, values: Mapping[str, float], remark: str = "") -> None:
        """A task's final figures, unless they are its last line already. remark: printed after them."""
        last = self.latest.get(task, {"step": 0, "epoch": 0.0})
        if any(last.get(name) != value for name, value in values.items()):
            self.scalars(task, last["step"], last["epoch"], values)
        told = [f"{name} {value:.4g}" for name, value in values.items()]
        self.say(f"{task}: {'  '.join(told[:8])}{'  ...' if len(told) > 8 else ''}{remark and f'  ({remark})'}")

    def position(self) -> int:
        """Bytes of metrics.jsonl so far: what a saved state belongs to."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def rewind(self, position: int) -> None:
        """Forget the lines after a saved state, in metrics.jsonl and in TensorBoard."""
        if not self.is_main:
            return
        if self.position() > position:
            with self.metrics.open("r+b") as file:
                file.truncate(position)
        self.close()
        board = self.folder / "tensorboard"
        for file in board.glob("events.*scalars") if board.is_dir() else ():
            file.unlink()
        self.latest = {}
        if self.metrics.exists():
            with disk.writing(self.metrics):
                for line in self.metrics.read_text().splitlines():
                    row = json.loads(line)
                    self.latest[row["task"]] = row
                    self._to_tensorboard(row)

    def _to_tensorboard(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("task", "step", "epoch"):
                self._writer("scalars").add_scalar(f"{row['task']}/{name}", value, row["step"])

    def picture(self, task: str, name: str, step: int, image: np.ndarray) -> None:
        """uint8 [H, W, 3] -> pictures/TASK-NAME.png and TensorBoard."""
        if not self.is_main:
            return
        from PIL import Image

        from vidssl.engine.checkpoint import write_atomically

        folder = self.folder / "pictures"
        picture = Image.fromarray(image)
        with disk.writing(folder):
            folder.mkdir(exist_ok=True)
            write_atomically(
                folder / f"{task}-{name}.png", lambda file: picture.save(file, format="PNG", optimize=True)
            )
            self._writer("pictures").add_image(f"{task}/{name}", image, step, dataformats="HWC")

    def _writer(self, kind: str) -> Any:
        """TensorBoard files are of one kind, so that those of scalars can be written anew."""
        if kind not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            threading.excepthook = _silent_on_full_disks
            folder = str(self.folder / "tensorboard")
            self._writers[kind] = SummaryWriter(folder, filename_suffix=f".{kind}")
        return self._writers[kind]

    def flush(self) -> None:
        with disk.writing(self.folder / "tensorboard"):
            for writer in self._writers.values():
                writer.flush()

    def close(self) -> None:
        """What the disk does not take any more is written anew from metrics.jsonl when the run goes on."""
        for writer in self._writers.values():
            with suppress(OSError):
                writer.close()
        self._writers = {}

    # -- progress

    def track(self, items: Iterable, total: int, what: str) -> Iterator:
        """Show the progress of a loop over items."""
        bar = self.bar(what, total)
        with bar:
            for item in items:
                yield item
                bar.advance(1)

    def bar(self, what: str, total: int, done: int = 0) -> Bar:
        return Bar(self, what, total, done)


def _silent_on_full_disks(told: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread fails with a traceback, and then once more where somebody writes, where it counts."""
    if disk.errno_of(told.exc_value) is None:
        threading.__excepthook__(told)


class Bar:
    """A progress bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, log: Log, what: str, total: int, done: int):
        self.log, self.what, self.total, self.done = log, what, total, done
        self.started, self.start_done, self.last_line = time.monotonic(), done, time.monotonic()
        self.rich = None
        if log.is_main and log.console.is_terminal:
            columns = (BarColumn(16), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
            self.rich = Progress(
                TextColumn("{task.description}"), *columns, TextColumn("{task.fields[note]}"),
                console=log.console, transient=True,
            )  # fmt: skip
            self.task = self.rich.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        if self.rich:
            self.rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.rich:
            self.rich.stop()

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        if self.rich:
            self.rich.update(self.task, completed=self.done, note=note)
        elif self.log.is_main and time.monotonic() - self.last_line > PLAIN_EVERY:
            self.last_line = time.monotonic()
            rate = (self.done - self.start_done) / (self.last_line - self.started)
            left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
            self.log.say(f"{self.what}: {self.done} of {self.total}{left} {note}".rstrip())
