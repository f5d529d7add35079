"""How fast is it? Everything against a baseline that is measured in the same run, since machines are noisy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from vidssl import build
from vidssl.bench import aug, data, record
from vidssl.bench.timing import Row
from vidssl.build import Augmentation, ClipOptions, Run, TrainOptions
from vidssl.clips import Batch
from vidssl.engine.optim import OPTIMIZERS, SCHEDULES
from vidssl.learner import Learner
from vidssl.methods.contrast import METHODS
from vidssl.registry import ConfigError, Count
from vidssl.tasks import TASKS, Task

Part = Literal["method", "data", "aug"]
PARTS: dict[str, Callable[[Run, Bench], list[Row]]] = {"data": data.measure, "aug": aug.measure}  # of vidssl.bench


@TASKS.register("bench")
@dataclass(frozen=True)
class Bench(ClipOptions, Task):
    """parts: method, training steps of the method and of a baseline method, in turn: same backbone, batch, precision
    and optimizer; data and aug, see vidssl/bench.

    Of `method`: a step is all that the trainer does with a batch, from uint8 clips on the device to the new weights.
    The clips are random, so no data set is read. Figures: ratio (median over the rounds), its quartiles, seconds of
    both, and flop_ratio, the ratio of multiplications and additions in convolutions and matrix products. On a CPU,
    seconds are the process's own, of all its threads: what else the machine does counts little.
    """

    parts: Literal["all"] | tuple[Part, ...]
    batch_size: Count
    rounds: Count
    clip_pairs: Count
    files: list[str] | None
    material: str
    baseline: Annotated[dict, METHODS]
    augmentation: Augmentation
    optimizer: Annotated[dict, OPTIMIZERS]
    schedule: Annotated[dict, SCHEDULES]

    def problems(self) -> list[str]:
        missing = [path for path in self.files or () if not Path(path).exists()]
        return [f"bench.files={path}: no such file or folder; null: files are rendered" for path in missing]

    def __call__(self, run: Run) -> dict[str, float]:
        chosen = get_args(Part) if self.parts == "all" else self.parts
        figures = self.method(run) if "method" in chosen else {}
        rows = [row for name, measure in PARTS.items() if name in chosen for row in measure(run, self)]
        if rows and run.log.is_main:
            run.log.say(record.table(rows))
            record.write(run.output / "bench.json", rows, run.config["bench"])
            run.log.say(f"all figures: {run.output / 'bench.json'}")
        return figures | {f"{row.part}: {row.what} / {row.baseline}": row.ratio for row in rows}

    def method(self, run: Run) -> dict[str, float]:
        ours, theirs = self.step(run, run.config["method"]), self.step(run, self.baseline)
        flops = [count_flops(step) for step in (ours, theirs)]
        pairs = [(ours(), theirs()) for _ in run.log.track(range(self.rounds), self.rounds, "bench")]
        ratios = [mine / base for mine, base in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        seconds = [statistics.median(column) for column in zip(*pairs, strict=True)]
        name, other = run.config["method"]["name"], self.baseline["name"]
        run.log.say(
            f"a step of {name} takes {seconds[0]:.3g} s, of {other} {seconds[1]:.3g} s: {middle:.2f} times "
            f"(quartiles {low:.2f}, {high:.2f}; {flops[0] / flops[1]:.2f} times the floating-point operations)"
        )
        return {
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
            "flop_ratio": flops[0] / flops[1],
            "seconds": seconds[0],
            "baseline_seconds": seconds[1],
        }

    def step(self, run: Run, method: dict) -> Callable[[], float]:
        """A function that does one training step and says how many seconds it took."""
        learner = METHODS.build(method, build.untrained_backbone(run), build.color(run, self.augmentation))
        options = TrainOptions(1, self.batch_size, None, self.optimizer, self.schedule)
        trainer = build.trainer(run, "bench", learner, options, file=None)
        model = trainer.prepare()
        batches = repeat(self.clips(learner, run.device))

        def once() -> float:
            clock = time.perf_counter if run.device.type == "cuda" else time.process_time
            begun = clock()
            updated = trainer.step(model, batches, 1)
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = clock() - begun
            trainer.on_device.clear()
            if not updated:
                raise ConfigError(f"method={method['name']}: its first steps do not train; make them 0 to measure one")
            return seconds

        once()  # memory, algorithms
        return once

    def clips(self, learner: Learner, device: torch.device) -> Batch:
        count, views, size = self.batch_size, len(learner.plan.views), self.crop_size
        clips = torch.randint(0, 256, (count, views, 3, self.clip_frames, size, size), dtype=torch.uint8)
        boxes = torch.tensor([0.1, 0.1, 0.9, 0.9]).expand(count, views, 4)
        return Batch(clips, boxes, torch.zeros(count, dtype=torch.int64), torch.arange(count)).to(device)


def count_flops(step: Callable[[], float]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()
