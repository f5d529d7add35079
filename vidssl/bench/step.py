"""Duration of a training step on this machine, stage by stage.

A step is all that training does with a batch, from uint8 clips in the host's memory to the new weights. The clips are
random, so no data set is read. Times are those on the wall, of a device that has finished.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vidssl import build
from vidssl.build import Augmentation, Run, TrainOptions
from vidssl.clips import Batch
from vidssl.engine.device import HALF, ToDevice
from vidssl.engine.log import Log
from vidssl.engine.loop import Trainer
from vidssl.learner import Learner
from vidssl.methods.contrast import METHODS, MomentumEncoder, Queue
from vidssl.registry import ConfigError

STAGES = (  # in the order of a step
    "to_device", "views", "color", "queries", "keys", "ema", "queue", "loss", "backward", "optimizer", "rest"
)  # fmt: skip


class Options(Protocol):
    batch_size: int
    clip_frames: int
    crop_size: int
    augmentation: Augmentation
    optimizer: dict
    schedule: dict


class Setting(NamedTuple):
    """Everything a step depends on; can be sent to another process."""

    config: dict[str, Any]  # of a run
    method: dict[str, Any]
    augmentation: Augmentation | None  # None: no color
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    batch_size: int  # videos
    frames: int
    size: int
    device: torch.device

    @classmethod
    def of(cls, run: Run, options: Options, method: dict[str, Any]) -> Setting:
        return cls(
            run.config, method, options.augmentation, options.optimizer, options.schedule, options.batch_size,
            options.clip_frames, options.crop_size, run.device,
        )  # fmt: skip

    def run(self) -> Run:
        """A run that prints nothing and leaves nothing."""
        nowhere = Path(os.devnull)
        return Run(self.config, nowhere, Log(nowhere, rank=1), self.device)

    def __str__(self) -> str:
        shape = f"{self.batch_size}x{self.frames}x{self.size}"
        return f"{self.method['name']} {self.config['backbone']['name']} {shape} {self.run().precision}"


def without_filling(method: dict[str, Any]) -> dict[str, Any]:
    """A method's section without first steps that only fill the queue and train nothing."""
    contrast = method.get("contrast") or {}
    return {**method, "contrast": contrast | {"fill_steps": 0}} if "fill_steps" in contrast else method


def measure(setting: Setting, rounds: int) -> dict[str, float]:
    """Metrics of a step: seconds (median and quartiles), STAGE_seconds, clips_per_second, tflops, share_of_matmul, ...

    tflops counts convolutions and matrix products; share_of_matmul is its share of what one large product reaches here.
    """
    trainer = untrained(setting)
    step = stepping(trainer, ToDevice(repeat(_in_host_memory(setting, trainer)), trainer.device))
    clock = on_device(trainer.device)
    if not step():  # the first one also chooses algorithms and takes memory
        raise ConfigError(f"method={setting.method['name']}: its first steps do not train; make them 0 to measure one")
    seconds = [_seconds(step, clock) for _ in range(rounds)]
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive") if rounds > 1 else seconds * 3
    metrics = {"seconds": median, "seconds_low": low, "seconds_high": high}
    metrics |= stages(trainer, step, rounds)
    clips, rate = random_clips(setting, trainer.learner).count, matmul_tflops(setting.device, trainer.session.precision)
    reached = metrics["flop"] / median / 1e12
    metrics |= {"clips": float(clips), "clips_per_second": clips / median}
    return metrics | {"tflops": reached, "matmul_tflops": rate, "share_of_matmul": reached / rate}


def describe(setting: Setting, metrics: dict[str, float]) -> list[str]:
    """Lines for people."""
    spent = {name: metrics[f"{name}_seconds"] for name in STAGES if metrics.get(f"{name}_seconds", 0) > 0}
    whole = sum(spent.values())
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    memory = f", {metrics['peak_memory_gib']:.1f} GiB at most" if "peak_memory_gib" in metrics else ""
    return [
        f"step {setting}: {_time(metrics['seconds'])} (quartiles {_time(metrics['seconds_low'])} to "
        f"{_time(metrics['seconds_high'])}), {metrics['clips_per_second']:.3g} clips/s",
        "its stages: " + ", ".join(f"{name} {_time(each)} ({each / whole:.0%})" for name, each in ordered),
        f"{metrics['tflops']:.3g} TFLOP/s, {metrics['share_of_matmul']:.0%} of a large matrix product here{memory}",
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


# ---------------------------------------------------------------------------------------------------------------------
# One step


def untrained(setting: Setting) -> Trainer:
    run = setting.run()
    augment = nn.Identity() if setting.augmentation is None else build.color(run, setting.augmentation)
    learner = METHODS.build(setting.method, build.untrained_backbone(run), augment)
    options = TrainOptions(1, setting.batch_size, None, setting.optimizer, setting.schedule)
    return build.trainer(run, "bench", learner, options, file=None)


def stepping(trainer: Trainer, batches: Iterator[Batch]) -> Callable[[], bool]:
    """A function that does what training does with a batch; returns whether weights were updated."""
    model = trainer.prepare()
    trainer.steps_per_epoch = 1

    def step() -> bool:
        updated = trainer.step(model, batches)
        trainer.meters.pending.clear()
        return updated

    return step


def random_clips(setting: Setting, learner: Learner) -> Batch:
    count, views, size = setting.batch_size, len(learner.plan.views), setting.size
    pixels = torch.randint(0, 256, (count, views, 3, setting.frames, size, size), dtype=torch.uint8)
    boxes = torch.tensor([0.1, 0.1, 0.9, 0.9]).expand(count, views, 4).contiguous()
    return Batch(pixels, boxes, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def _in_host_memory(setting: Setting, trainer: Trainer) -> Batch:
    """A batch as a loader has it ready: pinned where a GPU takes it."""
    batch = random_clips(setting, trainer.learner)
    return Batch(*(part.pin_memory() for part in batch)) if trainer.device.type == "cuda" else batch


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    work()
    return clock() - begun


def on_device(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A clock that is read when the device has finished. clock: for CPUs."""
    if device.type != "cuda":
        return clock

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


# ---------------------------------------------------------------------------------------------------------------------
# Its stages


class Stopwatch:
    """Seconds by stage; a stage counts without the stages that it calls."""

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.spent, self.inner = clock, Counter(), []

    def watch(self, owner: object, method: str, stage: str) -> None:
        work = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.inner.append(0.0)
            begun = self.clock()
            try:
                return work(*args, **kwargs)
            finally:
                seconds = self.clock() - begun
                self.spent[stage] += seconds - self.inner.pop()
                if self.inner:
                    self.inner[-1] += seconds

        object.__setattr__(owner, method, watched)  # past torch's own, which looks for parameters


def stages(trainer: Trainer, step: Callable[[], object], rounds: int) -> dict[str, float]:
    """STAGE_seconds, medians over the rounds; flop of a step; on GPUs peak_memory_gib. The trainer stays watched."""
    device = trainer.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    flop = count_flops(step)
    watch = Stopwatch(on_device(device))
    watch_stages(watch, trainer)
    found: list[Counter] = []
    for _ in range(rounds):
        watch.spent.clear()
        step()
        found.append(watch.spent.copy())
    metrics = {f"{stage}_seconds": statistics.median(each[stage] for each in found) for stage in found[0]}
    metrics["flop"] = float(flop)
    if device.type == "cuda":
        metrics["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return metrics


def count_flops(work: Callable[[], object]) -> int:
    """Of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def watch_stages(watch: Stopwatch, trainer: Trainer) -> None:
    learner = trainer.learner
    watch.watch(trainer, "step", "rest")
    watch.watch(trainer, "_next_batch", "to_device")
    watch.watch(trainer, "_forward_backward", "backward")
    watch.watch(trainer.optimizer, "step", "optimizer")
    watch.watch(learner, "views", "views")  # such as masks, and mixing
    if isinstance(getattr(learner, "augment", None), nn.Module):
        watch.watch(learner.augment, "forward", "color")
    watch.watch(learner, "forward", "loss")  # heads, contrast, and everything without a name of its own
    slow = [module for module in learner.modules() if isinstance(module, MomentumEncoder)]
    inside = {id(module) for key_encoder in slow for module in key_encoder.modules()}
    for module in learner.modules():
        if type(module) is type(learner.backbone):
            watch.watch(module, "forward", "keys" if id(module) in inside else "queries")
        if isinstance(module, Queue):
            watch.watch(module, "push", "queue")
        if isinstance(module, MomentumEncoder):
            watch.watch(module, "update", "ema")


def matmul_tflops(device: torch.device, precision: str, *, times: int = 5) -> float:
    """TFLOP/s of a large square matrix product, the best of some."""
    side = 8192 if device.type == "cuda" else 1536
    left, right = (torch.rand(side, side, device=device, dtype=HALF.get(precision, torch.float32)) for _ in range(2))
    best = min(_seconds(lambda: left @ right, on_device(device)) for _ in range(times))
    return 2 * side**3 / best / 1e12
