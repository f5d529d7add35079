"""What a task will take: steps, operations, memory, files. For check_only: nothing of it is done.

Networks are built and run on the meta device, where tensors have shapes but no memory: seconds for a plan of any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidssl import build
from vidssl.backbones.blocks import BACKBONES
from vidssl.build import ClipOptions, TrainOptions
from vidssl.clips import Batch
from vidssl.data.manifest import Listing
from vidssl.engine.disk import human
from vidssl.engine.optim import OPTIMIZERS
from vidssl.learner import Learner
from vidssl.methods.contrast import MomentumEncoder, Queue

# Bytes of a file besides its values: torch.save's for a tensor, for what else a state says, safetensors' for a tensor
STATE_TENSOR, STATE_REST, WEIGHTS_TENSOR = 275, 5000, 80
SCORES_HEADER = 200  # of safetensors with three tensors


@dataclass
class Cost:
    """What one task takes."""

    lines: list[str]
    flops: int | None = 0  # of all ranks; None: not known
    files: dict[str, int] = field(default_factory=dict)  # large files that it leaves: name -> bytes


@dataclass
class Costs:
    """What the tasks of one run are asked with: its configuration and its listings, each read once.

    Broken and short videos, which a scan will find, are still among the listed ones.
    """

    config: dict[str, Any]
    listings: dict[str, Listing] = field(default_factory=dict)

    def listing(self, split: str) -> Listing:
        if split not in self.listings:
            self.listings[split] = build.read_listing(self.config["dataset"], split)
        return self.listings[split]

    def count(self, splits: Iterable[str]) -> int:
        """Videos of these splits."""
        return sum(len(self.listing(split).videos) for split in splits)

    @property
    def ranks(self) -> int:
        return self.config["devices"] * self.config["nodes"]

    def backbone(self) -> nn.Module:
        with torch.device("meta"):
            return BACKBONES.build(self.config["backbone"])

    def test_splits(self, *rendered: str) -> list[str]:
        """The test split, and of the given ones those that the data set renders."""
        return ["test", *(rendered if self.listing("test").recipes else ())]

    def scoring(self, task: ClipOptions, clips: int, splits: Sequence[str], times: int = 1) -> tuple[str, int]:
        """A line and the operations of scoring evenly spread clips; layers behind the backbone are next to nothing."""
        videos = self.count(splits) * times
        flops = videos * clips * clip_flops(self.backbone(), task.clip_frames, task.crop_size)
        seen = f"{pluralize(videos, 'video')} x {_clips(task, clips)}"
        return f"{' + '.join(splits)}{f', {times} times' if times > 1 else ''}: {seen}, {operations(flops)}", flops

    def training(self, name: str, task: Any, learner: Learner, filling: int = 0) -> tuple[Cost, Steps]:
        """On clips of the training split. filling: batches at the start that take no backward pass."""
        videos, accumulate = self.count(["train"]), self.config["trainer"]["accumulate"]
        steps = Steps.of(task, videos, task.batch_size)
        per_rank = pluralize(task.batch_size // accumulate // self.ranks, "video")
        seen = f"{pluralize(steps.count * task.batch_size, 'video')} x {_clips(task, len(learner.plan.views))}"
        batch = f"a batch: {pluralize(self.ranks, 'rank')} x {pluralize(accumulate, 'part')} x {per_rank}"
        line, flops = self._stepping(task, learner, steps, filling)
        optimizer = optimizer_state(learner, task.optimizer)
        lines = [f"{name}: {training_line(task, videos, steps)}", f"  {seen}; {batch}", f"  {line}"]
        files = self.state_files(name, state_bytes(learner, optimizer), steps, steps.has_best(task))
        return Cost(lines + memory_lines(learner, optimizer), flops, files), steps

    def _stepping(self, task: Any, learner: Learner, steps: Steps, filling: int) -> tuple[str, int | None]:
        """A line and the operations of all steps; None if they cannot be counted."""
        accumulate = self.config["trainer"]["accumulate"]
        try:
            forward, backward = step_flops(learner, task.batch_size // accumulate, task.clip_frames, task.crop_size)
        except (RuntimeError, TypeError) as error:  # of a method that has to see values
            return f"operations of a step are not known: {str(error).splitlines()[0]}", None
        batches = steps.count * accumulate
        flops = batches * forward + (batches - min(batches, filling)) * backward
        return f"{operations(accumulate * (forward + backward))} per step", flops

    def state_files(self, name: str, size: int, steps: Steps | None, has_best: bool) -> dict[str, int]:
        last, every = build.state_name(self.config, name), self.config["trainer"]["keep_every"]
        kept = steps.epochs // every if steps is not None and every else 0
        files = {last: size} | ({last.replace("last", "best"): size} if has_best else {})
        return files | ({f"{kept} x {last.replace('last', 'epoch-N')}": kept * size} if kept else {})

    def score_files(self, name: str) -> dict[str, int]:
        listing = self.listing("test")
        return {f"{name}-scores.safetensors": len(listing.videos) * (4 * len(listing.classes) + 16) + SCORES_HEADER}


class Steps(NamedTuple):
    """How far a training goes: steps per epoch, and steps in all."""

    per_epoch: int
    count: int

    @classmethod
    def of(cls, task: Any, videos: int, batch: int) -> Steps:
        count = videos // batch * task.epochs
        return cls(videos // batch, count if task.max_steps is None else min(count, task.max_steps))

    @property
    def epochs(self) -> int:
        """Number of completed epochs."""
        return self.count // max(1, self.per_epoch)

    def validations(self, task: Any) -> int:
        every = getattr(task, "validate_every", 0)
        return self.epochs // every if every else 0

    def scorings(self, task: Any) -> int:
        """How often the test split is scored: at validations, and at the end unless a validation was there."""
        validated = self.validations(task)
        is_last = validated > 0 and self.count == validated * task.validate_every * self.per_epoch
        return validated if is_last else validated + 1

    def has_best(self, task: Any) -> bool:
        return self.validations(task) > 0 if getattr(task, "validate_every", 0) else self.epochs > 0


def training_line(task: TrainOptions, videos: int, steps: Steps) -> str:
    return f"{videos} videos, batches of {task.batch_size}, {task.epochs} epochs, {steps.count} steps"


def _clips(task: ClipOptions, count: int) -> str:
    return f"{pluralize(count, 'clip')} of {task.clip_frames} x {task.crop_size} x {task.crop_size}"


# ---------------------------------------------------------------------------------------------------------------------
# Floating-point operations of convolutions and matrix products: a multiplication and an addition are two


def step_flops(learner: Learner, videos: int, frames: int, size: int) -> tuple[int, int]:
    """Forward, with the making of views, and backward. videos: of all ranks, whose work one process would do alone."""
    count = len(learner.plan.views)
    with torch.device("meta"):
        clips = torch.empty(videos, count, 3, frames, size, size, dtype=torch.uint8)
        number = torch.zeros(videos, dtype=torch.int64)
        batch = Batch(clips, torch.empty(videos, count, 4), number, number)
    learner.train()
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            views = learner.views(batch)
        output = learner(views)
        forward = counter.get_total_flops()
        if output.update:
            output.loss.backward()
    return forward, counter.get_total_flops() - forward


def clip_flops(backbone: nn.Module, frames: int, size: int) -> int:
    """Forward, of one clip."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.eval()(torch.empty(1, 3, frames, size, size, device="meta"))
    return counter.get_total_flops()


def operations(flops: float) -> str:
    for unit in ("", "K", "M", "G", "T", "P", "E"):
        if flops < 999.5:
            return f"{flops:.3g} {unit}FLOP"
        flops /= 1000
    return f"{flops:.3g} ZFLOP"


# ---------------------------------------------------------------------------------------------------------------------
# Memory and files


class Sizes(NamedTuple):
    tensors: int
    bytes: int


def sizes(tensors: Iterable[Tensor]) -> Sizes:
    each = [tensor.nbytes for tensor in tensors]
    return Sizes(len(each), sum(each))


def optimizer_state(learner: Learner, section: dict[str, Any]) -> Sizes:
    """What the optimizer keeps for each parameter: seen after a step on the meta device."""
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS.build(section, parameters)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return sizes(value for value in kept if isinstance(value, Tensor))


def state_bytes(learner: Learner, optimizer: Sizes) -> int:
    """Of a file that the trainer saves."""
    weights = sizes(learner.state_dict().values())
    return weights.bytes + optimizer.bytes + (weights.tensors + optimizer.tensors) * STATE_TENSOR + STATE_REST


def weights_bytes(backbone: nn.Module) -> int:
    """Of backbone.safetensors."""
    weights = sizes(backbone.state_dict().values())
    return weights.bytes + weights.tensors * WEIGHTS_TENSOR


def memory_lines(learner: Learner, optimizer: Sizes) -> list[str]:
    """Parameters, and memory per rank."""
    every = list(learner.parameters())
    gradients = [parameter for parameter in every if parameter.requires_grad]
    keys = [p for module in learner.modules() if isinstance(module, MomentumEncoder) for p in module.parameters()]
    queues = [buffer for module in learner.modules() if isinstance(module, Queue) for buffer in module.buffers()]
    numbers = {"backbone": learner.backbone.parameters(), "in all": every, "trained": gradients, "key encoder": keys}
    taken = {
        "weights": sizes([*every, *learner.buffers()]).bytes - sizes(queues).bytes,
        "gradients": sizes(gradients).bytes,
        "optimizer": optimizer.bytes,
        "queue": sizes(queues).bytes,
    }
    counted = ", ".join(f"{name} {sum(p.numel() for p in part):,}" for name, part in numbers.items() if part)
    listed = ", ".join(f"{name} {human(size)}" for name, size in taken.items() if size)
    return [f"  parameters: {counted}", f"  memory per rank: {listed}; activations are not counted"]


def pluralize(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
