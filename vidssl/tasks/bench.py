"""How fast is it? Everything against a baseline that is measured in the same run, since machines are noisy."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch

from vidssl.backbones.blocks import BACKBONES
from vidssl.bench import aug, data, record, step
from vidssl.bench.timing import Row, on_device
from vidssl.build import Augmentation, ClipOptions, Run
from vidssl.engine.optim import OPTIMIZERS, SCHEDULES
from vidssl.methods.contrast import METHODS
from vidssl.registry import ConfigError, Count, FilePath, schema, unknown
from vidssl.tasks import TASKS, Task

Part = Literal["method", "data", "aug", "step"]
PARTS: dict[str, Callable[[Run, Bench], list[Row]]] = {  # of vidssl.bench
    "data": data.measure,
    "aug": aug.measure,
    "step": step.measure,
}


@TASKS.register("bench")
@dataclass(frozen=True)
class Bench(ClipOptions, Task):
    """parts: method, training steps of the method and of a baseline method, in turn: same backbone, batch, precision
    and optimizer; data, aug and step, see vidssl/bench.

    Of `method`: a step is all that the trainer does with a batch, from uint8 clips on the device to the new weights.
    The clips are random, so no data set is read. Figures: ratio (median over the rounds), its quartiles, seconds of
    both, and flop_ratio, the ratio of multiplications and additions in convolutions and matrix products. On a CPU,
    seconds are the process's own, of all its threads: what else the machine does counts little.
    """

    parts: Literal["all"] | tuple[Part, ...]
    batch_size: Count
    rounds: Count
    clip_pairs: Count
    files: list[FilePath] | None
    material: FilePath
    backbones: tuple[str, ...] | None
    step_batch_size: Count
    baseline: Annotated[dict, METHODS]
    augmentation: Augmentation
    optimizer: Annotated[dict, OPTIMIZERS]
    schedule: Annotated[dict, SCHEDULES]

    def problems(self) -> list[str]:
        missing = [path for path in self.files or () if not Path(path).exists()]
        told = [f"bench.files={path}: no such file or folder; null: files are rendered" for path in missing]
        if self.backbones == ():
            told.append("bench.backbones=[]: name one or more; null: the run's own")
        if "step" in self.chosen:
            told += [problem for name in self.backbones or () for problem in self._unfit(name)]
        return told

    @property
    def chosen(self) -> tuple[str, ...]:
        return get_args(Part) if self.parts == "all" else self.parts

    def _unfit(self, name: str) -> list[str]:
        """Why this backbone's step cannot be measured."""
        if name not in BACKBONES.names():
            return [unknown("bench.backbones", name, BACKBONES.names())]
        if schema(BACKBONES.get(name)):
            return [f"bench.backbones={name}: has options; set backbone={name} and bench.backbones=null"]
        frames, size = self.clip_frames, self.crop_size
        with torch.device("meta"), torch.no_grad():
            try:
                BACKBONES.build({"name": name}).eval()(torch.empty(1, 3, frames, size, size))
            except RuntimeError:
                return [
                    f"bench.backbones={name}: cannot take clips of bench.clip_frames={frames} and "
                    f"bench.crop_size={size}; 16 and 112 are usual"
                ]
        return []

    def __call__(self, run: Run) -> dict[str, float]:
        figures = self.method(run) if "method" in self.chosen else {}
        rows = [row for name, measure in PARTS.items() if name in self.chosen for row in measure(run, self)]
        if rows and run.log.is_main:
            run.log.say(record.table(rows))
            for line in verdicts(rows):
                run.log.say(line)
            record.write(run.output / "bench.json", rows, run.config["bench"])
            run.log.say(f"all figures: {run.output / 'bench.json'}")
        return figures | {f"{row.part}: {row.what} / {row.baseline}": row.ratio for row in rows}

    def method(self, run: Run) -> dict[str, float]:
        ours, theirs = self.step(run, run.config["method"]), self.step(run, self.baseline)
        flops = [step.count_flops(each) for each in (ours, theirs)]
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
        setting = step.Setting.of(run, self, method, self.batch_size)
        trainer = step.untrained(setting)
        work = step.stepping(trainer, repeat(step.clips(setting, trainer.learner).to(run.device)))
        clock = on_device(run.device)

        def once() -> float:
            begun = clock()
            updated = work()
            seconds = clock() - begun
            if not updated:
                raise ConfigError(f"method={method['name']}: its first steps do not train; make them 0 to measure one")
            return seconds

        once()  # memory, algorithms
        return once


def verdicts(rows: list[Row]) -> list[str]:
    """For each step that was measured, whether the loader that was measured keeps up with it."""
    loader = next((row for row in rows if "workers" in row.figures), None)
    if loader is None:
        return []
    given, workers = loader.figures["clips_per_second"], int(loader.figures["workers"])
    steps = [row for row in rows if row.part == "step"]
    taken = {row.what: row.figures["clips_per_second"] for row in steps if "clips_per_second" in row.figures}
    copies = data.copies_help(rows)
    return [f"{what} is {step.verdict(given, workers, clips, copies)}" for what, clips in taken.items()]
