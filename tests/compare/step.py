"""Part step: a training step of ours against MoCo's step as it was released, and its parts against theirs.

Candidates have processes of their own with one thread, as in data. On CPUs the step is measured in bfloat16 where the
processor has units for it, whatever the run's precision would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.apart import against
from tests.compare.released import Contrast, MoCoStep, follow
from tests.compare.timing import Row, compared, one_thread
from vidssl.backbones.blocks import BACKBONES
from vidssl.bench import step
from vidssl.bench.step import Options, Setting, random_clips, stepping, untrained
from vidssl.build import Run
from vidssl.engine.device import HALF
from vidssl.methods.contrast import ContrastOptions, Embedder, MomentumEncoder, Queue, contrast_loss, projector
from vidssl.registry import schema, unknown

# How many times as fast as the released form each should be at least
ON_CPU = {"i3d": 2.0, "r2plus1d18": 3.0}  # in bfloat16, clips of 16 x 112 x 112
ON_GPU = {"i3d": 2.0}  # clips of 16 x 224 x 224
CONTRAST, FOLLOW = 2.0, 3.0
DOES_AS_MUCH = ("moco", "fame")  # methods with as many passes through the network as MoCo's released form

RELEASED = ContrastOptions(
    dim=128, head="linear", hidden=None, head_std=None, queue=65536, momentum=0.999, temperature=0.07,
    shuffle_bn=True, symmetric=True, enqueue="after_both",
)  # fmt: skip


def measure(run: Run, options: Options, backbones: Sequence[str]) -> list[Row]:
    """backbones: names; empty: the run's own."""
    sections = [{"name": name} for name in backbones] or [run.config["backbone"]]
    setting = Setting.of(run, options, as_published(run.config["method"]))
    rows = []
    with one_thread():
        for section in sections:
            of_this = setting._replace(config=run.config | {"backbone": section} | half_if_it_pays(run))
            rows += [step_row(run, of_this, options.rounds), follow_row(of_this, options.rounds)]
        return [*rows, contrast_row(setting, options.rounds)]


def unfit(name: str, frames: int, size: int) -> list[str]:
    """Why this backbone's step cannot be measured."""
    if name not in BACKBONES.names():
        return [unknown("--backbones", name, BACKBONES.names())]
    if schema(BACKBONES.get(name)):
        return [f"--backbones {name}: has options; give backbone={name} and --backbones own"]
    with torch.device("meta"), torch.no_grad():
        try:
            BACKBONES.build({"name": name}).eval()(torch.empty(1, 3, frames, size, size))
        except RuntimeError:
            clips = f"clips of --clip-frames {frames} and --crop-size {size}"
            return [f"--backbones {name}: cannot take {clips}; 16 and 112 are usual"]
    return []


def as_published(method: dict[str, Any]) -> dict[str, Any]:
    """With a slow network and a queue, which the demo leaves out, and without steps that only fill the queue."""
    contrast = method.get("contrast")
    if contrast is None:
        return method  # learns without one
    usual = {"queue": RELEASED.queue, "momentum": RELEASED.momentum}
    changed = {key: value for key, value in usual.items() if contrast.get(key) == 0}
    return step.without_filling({**method, "contrast": contrast | changed})


def half_if_it_pays(run: Run) -> dict[str, Any]:
    """Of a configuration: precision and memory format on CPUs, where the run leaves them open; GPUs have chosen."""
    if run.config["precision"] != "auto" or run.device.type == "cuda" or not has_bfloat16():
        return {}
    return {"precision": "bf16", "trainer": run.config["trainer"] | {"channels_last": True}}


def has_bfloat16() -> bool:
    """Whether this processor has units for it; others compute it no faster than float32."""
    file = Path("/proc/cpuinfo")
    flags = set(file.read_text().split()) if file.exists() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16"})


# ---------------------------------------------------------------------------------------------------------------------
# A whole step


def step_row(run: Run, setting: Setting, rounds: int) -> Row:
    """The whole step on ready views; its stages with color and all, from clips in the host's memory."""
    ready = setting._replace(augmentation=None)
    seconds = against("released form", (ours, ready), (released, setting), rounds, setting.device)
    what = f"step {setting}"
    row = compared("step", what, seconds, "ours", "released form", least(setting, setting.run().precision))
    metrics = step.measure(setting, rounds)
    for line in step.describe(setting, metrics):
        run.log.say(line)
    return row._replace(figures=metrics)


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
    return stepping(trainer, repeat(random_clips(setting, trainer.learner).to(trainer.device)))


def released(setting: Setting) -> Callable[[], object]:
    device = setting.device
    step = MoCoStep(
        embedder(setting).to(device), F.normalize(torch.randn(RELEASED.queue, RELEASED.dim, device=device), dim=1),
        temperature=RELEASED.temperature, twin_momentum=RELEASED.momentum, lr=0.01, momentum=0.9, weight_decay=1e-4,
    )  # fmt: skip
    shape = (setting.batch_size, 3, setting.frames, setting.size, setting.size)
    left, right = torch.rand(shape, device=device), torch.rand(shape, device=device)
    return lambda: step(left, right)


def embedder(setting: Setting) -> Embedder:
    torch.manual_seed(0)
    backbone = BACKBONES.build(setting.config["backbone"])
    return Embedder(backbone, projector(backbone.out_channels, RELEASED))


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
    return often(lambda: key_encoder.update(network))


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
