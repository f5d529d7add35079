"""How fast this machine reads the videos and takes a training step, and which of the two waits for the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from vidssl.bench import reading, record, step
from vidssl.build import Augmentation, ClipOptions, Run
from vidssl.engine import distributed
from vidssl.engine.optim import OPTIMIZERS, SCHEDULES
from vidssl.registry import ConfigError, FilePath, PositiveInt, unknown
from vidssl.tasks import TASKS, Task

PARTS = ("data", "step")
TOLD = [  # of all metrics, most telling first
    ("step", "seconds"),
    ("step", "clips_per_second"),
    ("step", "tflops"),
    ("step", "share_of_matmul"),
    ("data", "clips_per_second"),
    ("data", "workers"),
    ("data", "seconds_per_video"),
]
COMPARE = "make compare measures ours against other people's code"


@TASKS.register("bench")
@dataclass(frozen=True)
class Bench(ClipOptions, Task):
    """parts: data, reading clips as training reads them; step, a training step of the run's method and backbone."""

    parts: tuple[str, ...]
    files: tuple[FilePath, ...] | None
    videos: PositiveInt
    batch_size: PositiveInt
    rounds: PositiveInt
    augmentation: Augmentation
    optimizer: Annotated[dict, OPTIMIZERS]
    schedule: Annotated[dict, SCHEDULES]

    removed: ClassVar[dict[str, str]] = {
        "backbones": "choose one with backbone=NAME, or several with -m backbone=i3d,r2plus1d18",
        "step_batch_size": "set bench.batch_size",
        "clip_pairs": "set bench.videos, how many videos are read in a round",
        "material": f"{COMPARE}: make compare ARGS='data --material FOLDER'",
        "baseline": f"{COMPARE}: make compare ARGS='methods method=fame'",
    }

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",) if "data" in self.parts and self.files is None else ()

    def problems(self) -> list[str]:
        problems = [] if self.parts else ["bench.parts=[]: name one or more of data, step"]
        for part in self.parts:
            if part in ("aug", "method"):
                words = "aug" if part == "aug" else "methods method=..."
                problems.append(f"bench.parts=[{part}]: {COMPARE}: make compare ARGS='{words}'")
            elif part not in PARTS:
                problems.append(unknown("bench.parts", part, PARTS))
        missing = [path for path in self.files or () if not Path(path).exists()]
        told = "no such file or folder; null: videos of the run's training split"
        return problems + [f"bench.files={path}: {told}" for path in missing]

    def __call__(self, run: Run) -> dict[str, float]:
        if distributed.world() > 1:
            raise ConfigError(f"devices={distributed.world()}: task=bench measures one rank; devices=1")
        setting = step.Setting.of(run, self, step.without_filling(run.config["method"]))
        measured, lines = {}, []
        if "data" in self.parts:
            plan = step.untrained(setting).learner.plan
            measured["data"] = reading.measure(run, self, plan)
            lines += reading.describe(measured["data"])
        if "step" in self.parts:
            measured["step"] = step.measure(setting, self.rounds)
            lines += step.describe(setting, measured["step"])
        if len(measured) == 2:
            measured["verdict"] = verdict(**measured)
            lines.append(measured["verdict"])
        for line in lines:
            run.log.say(line)
        record.write(run.output / "bench.json", run.config["bench"], measured)
        run.log.say(f"all metrics: {run.output / 'bench.json'}")
        return {f"{part}_{name}": measured[part][name] for part, name in TOLD if part in measured}


def verdict(data: dict[str, float], step: dict[str, float]) -> str:
    """Whether training waits for data, and how many workers it takes that it does not."""
    given, taken, workers = data["clips_per_second"], step["clips_per_second"], max(1, int(data["workers"]))
    told = f"the loader gives {given:.3g} clips/s with {_workers(workers)}, the step takes {taken:.3g}"
    needed = workers * taken / given
    if given >= taken:
        return f"compute-bound: {told}; {_workers(math.ceil(needed))} would do"
    copies = ""
    if faster := next((value for name, value in data.items() if name.startswith("mjpeg") and value > 1), None):
        copies = f"; with data.cache=mjpeg, read {faster:.1f} times as fast, {_workers(math.ceil(needed / faster))}"
    return f"data-bound: {told}; it needs {_workers(math.ceil(needed))}, each with a core, for each device{copies}"


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"
