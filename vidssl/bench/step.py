"""Part step of task=bench: what a training step takes, stage by stage, against MoCo's step as it was released.

Candidates have processes of their own with one thread, as in data. On CPUs the step is measured in bfloat16 where the
processor has units for it, whatever a run's precision would be.
"""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidssl import build
from vidssl.backbones.blocks import BACKBONES
from vidssl.bench import record
from vidssl.bench.apart import against
from vidssl.bench.released import Contrast, MoCoStep, follow
from vidssl.bench.timing import Row, compared, on_device, one_thread
from vidssl.build import Augmentation, Run, TrainOptions
from vidssl.clips import Batch
from vidssl.engine import distributed
from vidssl.engine.device import HALF, ToDevice
from vidssl.engine.log import Log
from vidssl.engine.loop import Trainer
from vidssl.learner import Learner
from vidssl.methods.contrast import METHODS, ContrastOptions, Embedder, MomentumEncoder, Queue, contrast_loss, projector
from vidssl.registry import ConfigError

# How many times as fast as the released form each should be at least
ON_CPU = {"i3d": 2.0, "r2plus1d18": 3.0}  # in bfloat16, clips of 16 x 112 x 112
ON_GPU = {"i3d": 2.0}  # clips of 16 x 224 x 224
CONTRAST, FOLLOW = 2.0, 3.0
DOES_AS_MUCH = ("moco", "fame")  # methods with as many passes through the network as MoCo's released form

RELEASED = ContrastOptions(
    dim=128, head="linear", hidden=None, head_std=None, queue=65536, momentum=0.999, temperature=0.07,
    shuffle_bn=True, symmetric=True, enqueue="after_both",
)  # fmt: skip


class Options(Protocol):
    backbones: tuple[str, ...] | None
    step_batch_size: int
    rounds: int
    clip_frames: int
    crop_size: int
    augmentation: Augmentation
    optimizer: dict
    schedule: dict


class Setting(NamedTuple):
    """All that a process of its own needs to know."""

    config: dict[str, Any]  # of a run
    method: dict[str, Any]
    augmentation: Augmentation | None  # None: no color, so that views are ready, as the released form gets them
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    batch_size: int
    frames: int
    size: int
    device: torch.device

    @classmethod
    def of(cls, run: Run, options: Options, method: dict[str, Any], batch_size: int) -> Setting:
        return cls(
            run.config, method, options.augmentation, options.optimizer, options.schedule, batch_size,
            options.clip_frames, options.crop_size, run.device,
        )  # fmt: skip

    def run(self) -> Run:
        """One that says nothing and leaves nothing."""
        nowhere = Path(os.devnull)
        return Run(self.config, nowhere, Log(nowhere, rank=1), self.device)


def measure(run: Run, options: Options) -> list[Row]:
    if distributed.world() > 1:
        raise ConfigError(f"devices={distributed.world()}: bench.parts=[step] measures the step of one rank; devices=1")
    rows = []
    sections = [run.config["backbone"]] if options.backbones is None else [{"name": n} for n in options.backbones]
    setting = Setting.of(run, options, as_published(run.config["method"]), options.step_batch_size)
    with one_thread():
        for section in sections:
            of_this = setting._replace(config=run.config | {"backbone": section} | half_if_it_pays(run))
            rows += [step_row(run, of_this, options.rounds), follow_row(of_this, options.rounds)]
        return [*rows, contrast_row(setting, options.rounds)]


def as_published(method: dict[str, Any]) -> dict[str, Any]:
    """With a twin and a queue, which the demo's recipe leaves out, and without steps that only fill the queue."""
    contrast = method.get("contrast")
    if contrast is None:
        return method  # learns without one
    usual = {"queue": RELEASED.queue, "momentum": RELEASED.momentum}
    changed = {key: value for key, value in usual.items() if contrast.get(key) == 0}
    return {**method, "contrast": contrast | changed | ({"fill_steps": 0} if "fill_steps" in contrast else {})}


def half_if_it_pays(run: Run) -> dict[str, Any]:
    """Of a configuration: precision and memory format on CPUs, where the run leaves them open; GPUs have chosen."""
    if run.config["precision"] != "auto" or run.device.type == "cuda" or not record.has_bfloat16():
        return {}
    return {"precision": "bf16", "trainer": run.config["trainer"] | {"channels_last": True}}


def verdict(loader: float, workers: int, step: float, cached: float | None) -> str:
    """Whether training waits for data. loader, step: clips a second; cached: how many times as fast copies are read."""
    told = f"the loader gives {loader:.0f} clips/s with {pluralize(workers)}, a step takes {step:.3g}"
    if loader >= step:
        return f"compute-bound: {told}; {pluralize(math.ceil(workers * step / loader))} would do"
    needed = workers * step / loader
    copies = ""
    if cached is not None:
        copies = f"; with data.cache=mjpeg, read {cached:.1f} times as fast, {pluralize(math.ceil(needed / cached))}"
    return f"data-bound: {told}; it needs {pluralize(math.ceil(needed))}, each with a core, for each GPU{copies}"


def pluralize(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}"


# ---------------------------------------------------------------------------------------------------------------------
# A whole step


def step_row(run: Run, setting: Setting, rounds: int) -> Row:
    """The whole step on ready views; its stages with color and all, from clips in the host's memory."""
    name = setting.config["backbone"]["name"]
    ready = setting._replace(augmentation=None)
    seconds = against("released form", (ours, ready), (released, setting), rounds, setting.device)
    shape = f"{setting.batch_size}x{setting.frames}x{setting.size}"
    precision = setting.run().precision
    what = f"step {setting.method['name']} {name} {shape} {precision}"
    row = compared("step", what, seconds, "ours", "released form", least(setting, precision))
    figures = stages(setting, rounds)
    rate = multiplications(setting.device, precision)
    reached = figures["flop"] / row.seconds / 1e12
    figures |= {"tflops": reached, "matmul_tflops": rate, "share_of_matmul": reached / rate}
    figures["clips_per_second"] = figures["clips"] / row.seconds
    run.log.say(f"step: {what}: {told(figures)}")
    return row._replace(figures=figures)


def least(setting: Setting, precision: str) -> float | None:
    name = setting.config["backbone"]["name"]
    if setting.method["name"] not in DOES_AS_MUCH or precision not in HALF or setting.frames != 16:
        return None
    if setting.device.type == "cpu":
        return ON_CPU.get(name) if setting.size == 112 else None
    return ON_GPU.get(name) if setting.size == 224 else None


def ours(setting: Setting) -> Callable[[], object]:
    """A step of the trainer on clips that lie on the device."""
    trainer = untrained(setting)
    return stepping(trainer, repeat(clips(setting, trainer.learner).to(trainer.device)))


def released(setting: Setting) -> Callable[[], object]:
    device = setting.device
    step = MoCoStep(
        embedder(setting).to(device), F.normalize(torch.randn(RELEASED.queue, RELEASED.dim, device=device), dim=1),
        temperature=RELEASED.temperature, twin_momentum=RELEASED.momentum, lr=0.01, momentum=0.9, weight_decay=1e-4,
    )  # fmt: skip
    shape = (setting.batch_size, 3, setting.frames, setting.size, setting.size)
    left, right = torch.rand(shape, device=device), torch.rand(shape, device=device)
    return lambda: step(left, right)


def untrained(setting: Setting) -> Trainer:
    run = setting.run()
    augment = nn.Identity() if setting.augmentation is None else build.color(run, setting.augmentation)
    learner = METHODS.build(setting.method, build.untrained_backbone(run), augment)
    options = TrainOptions(1, setting.batch_size, None, setting.optimizer, setting.schedule)
    return build.trainer(run, "bench", learner, options, file=None)


def stepping(trainer: Trainer, batches: Any) -> Callable[[], bool]:
    """Each call does what training does with a batch, to the new weights; whether there were any."""
    model = trainer.prepare()
    trainer.steps_per_epoch = 1

    def step() -> bool:
        updated = trainer.step(model, batches)
        trainer.meters.pending.clear()
        return updated

    return step


def clips(setting: Setting, learner: Learner) -> Batch:
    count, views, size = setting.batch_size, len(learner.plan.views), setting.size
    pictures = torch.randint(0, 256, (count, views, 3, setting.frames, size, size), dtype=torch.uint8)
    boxes = torch.tensor([0.1, 0.1, 0.9, 0.9]).expand(count, views, 4).contiguous()
    return Batch(pictures, boxes, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def embedder(setting: Setting) -> Embedder:
    torch.manual_seed(0)
    backbone = BACKBONES.build(setting.config["backbone"])
    return Embedder(backbone, projector(backbone.out_channels, RELEASED))


# ---------------------------------------------------------------------------------------------------------------------
# Its stages


class Stopwatch:
    """Seconds by stage; what a stage calls that has a name of its own counts there alone."""

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


def stages(setting: Setting, rounds: int) -> dict[str, float]:
    """STAGE_seconds, medians over the rounds; flop and clips of a step; on GPUs peak_memory_gib."""
    trainer = untrained(setting)
    device, learner = trainer.device, trainer.learner
    batch = clips(setting, learner)
    if device.type == "cuda":
        batch = Batch(*(part.pin_memory() for part in batch))
        torch.cuda.reset_peak_memory_stats(device)
    step = stepping(trainer, ToDevice(repeat(batch), device))
    step()
    flop = count_flops(step)
    watch = Stopwatch(on_device(device))
    found: list[Counter] = []
    name_stages(watch, trainer)
    for _ in range(rounds):
        watch.spent.clear()
        step()
        found.append(watch.spent.copy())
    figures = {f"{stage}_seconds": statistics.median(each[stage] for each in found) for stage in found[0]}
    figures |= {"flop": float(flop), "clips": float(batch.count)}
    if device.type == "cuda":
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return figures


def count_flops(work: Callable[[], object]) -> int:
    """Of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def name_stages(watch: Stopwatch, trainer: Trainer) -> None:
    learner = trainer.learner
    watch.watch(trainer, "step", "rest")
    watch.watch(trainer, "_next_batch", "to_device")
    watch.watch(trainer, "_forward_backward", "backward")
    watch.watch(trainer.optimizer, "step", "optimizer")
    watch.watch(learner, "views", "views")  # such as masks, and mixing
    watch.watch(learner.augment, "forward", "color")
    watch.watch(learner, "forward", "loss")  # heads, contrast, and what else is none of the following
    slow = [module for module in learner.modules() if isinstance(module, MomentumEncoder)]
    inside = {id(module) for key_encoder in slow for module in key_encoder.modules()}
    for module in learner.modules():
        if type(module) is type(learner.backbone):
            watch.watch(module, "forward", "keys" if id(module) in inside else "queries")
        if isinstance(module, Queue):
            watch.watch(module, "push", "queue")
        if isinstance(module, MomentumEncoder):
            watch.watch(module, "follow", "ema")


def told(figures: dict[str, float]) -> str:
    spent = {name.removesuffix("_seconds"): value for name, value in figures.items() if name.endswith("_seconds")}
    whole = sum(spent.values())
    parts = sorted(spent.items(), key=lambda item: -item[1])
    words = ", ".join(f"{name} {1e3 * value:.3g} ms ({value / whole:.0%})" for name, value in parts if value > 0)
    memory = f"; {figures['peak_memory_gib']:.1f} GiB at most" if "peak_memory_gib" in figures else ""
    return (
        f"{figures['tflops']:.3g} TFLOP/s, {figures['share_of_matmul']:.0%} of a large matrix product here; "
        f"stages {words}{memory}"
    )


def multiplications(device: torch.device, precision: str, *, times: int = 5) -> float:
    """TFLOP/s of a large square matrix product, the best of some."""
    side = 8192 if device.type == "cuda" else 1536
    clock = on_device(device)
    left, right = (torch.rand(side, side, device=device, dtype=HALF.get(precision, torch.float32)) for _ in range(2))
    best = float("inf")
    for _ in range(times):
        begun = clock()
        left @ right
        best = min(best, clock() - begun)
    return 2 * side**3 / best / 1e12


# ---------------------------------------------------------------------------------------------------------------------
# What a step does besides the network


def follow_row(setting: Setting, rounds: int) -> Row:
    seconds = against("released form", (following, setting), (following_as_released, setting), rounds, setting.device)
    return small_row(f"EMA {setting.config['backbone']['name']}", seconds, setting, FOLLOW)


def contrast_row(setting: Setting, rounds: int) -> Row:
    """Loss, gradient and the queue's new keys."""
    given = setting.batch_size, setting.device
    seconds = against("released form", (contrasting, *given), (contrasting_as_released, *given), rounds, setting.device)
    return small_row(f"contrast {setting.batch_size} x {RELEASED.queue}", seconds, setting, CONTRAST)


CALLS = 20  # of what takes milliseconds, in each round


def small_row(what: str, seconds: dict[str, list[float]], setting: Setting, least: float) -> Row:
    """Of one call, with what is promised on CPUs."""
    promised = least if setting.device.type == "cpu" else None
    row = compared("step", what, seconds, "ours", "released form", promised)
    return row._replace(seconds=row.seconds / CALLS)


def often(work: Callable[[], object]) -> Callable[[], None]:
    def candidate() -> None:
        for _ in range(CALLS):
            work()

    return candidate


def following(setting: Setting) -> Callable[[], None]:
    network = embedder(setting).to(setting.device)
    key_encoder = MomentumEncoder(network, RELEASED.momentum)
    return often(lambda: key_encoder.follow(network))


def following_as_released(setting: Setting) -> Callable[[], None]:
    network = embedder(setting).to(setting.device)
    slow = MomentumEncoder(network, RELEASED.momentum).network
    return often(lambda: follow(slow, network, RELEASED.momentum))


def contrasting(batch_size: int, device: torch.device) -> Callable[[], None]:
    query, key = units(batch_size, device)
    queue = Queue(RELEASED.dim, RELEASED.queue).to(device)

    def once() -> None:
        loss, _, _ = contrast_loss(query, key, queue, RELEASED.temperature)
        queue.push(key)
        loss.backward()

    return often(once)


def contrasting_as_released(batch_size: int, device: torch.device) -> Callable[[], None]:
    query, key = units(batch_size, device)
    contrast = Contrast(F.normalize(torch.randn(RELEASED.queue, RELEASED.dim, device=device), dim=1), 0.07)
    return often(lambda: contrast.loss(query, key).backward())


def units(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    query, key = F.normalize(torch.randn(2, count, RELEASED.dim, device=device), dim=-1)
    return query.requires_grad_(), key
