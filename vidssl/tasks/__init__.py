"""What a run does: one readable program each.

A task is a dataclass of its options, which the configuration section of its name fills, and a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from vidssl.build import ClipOptions, Run, TrainOptions
from vidssl.data.manifest import Listing
from vidssl.learner import Learner
from vidssl.registry import Registry
from vidssl.tasks.costs import Cost, Costs

TASKS = Registry("task", "vidssl.tasks")


@dataclass(frozen=True)
class Context:
    """The rest of a run, as seen by the check of one of its tasks."""

    config: dict[str, Any]
    tasks: Mapping[str, Task]  # all of the run, in order
    listing: Callable[[str], Listing | None]  # of a split; None if it cannot be read, which the check reports
    backbone: nn.Module  # on the meta device
    strides: tuple[int, int]  # of the backbone, over time and space
    method: Learner | None  # on the meta device; None if it cannot be built, which the check reports

    @property
    def ranks(self) -> int:
        return self.config["devices"] * self.config["nodes"]

    @property
    def parts(self) -> int:
        """Batches of the loaders per step of the optimizer, over all ranks."""
        return self.ranks * self.config["trainer"]["accumulate"]

    def before(self, name: str) -> list[Task]:
        """The tasks that run before the named one."""
        return [self.tasks[other] for other in takewhile(lambda other: other != name, self.tasks)]

    def fits_backbone(self, clip: ClipOptions) -> bool:
        """Whether the clip's length and size are multiples of the backbone's strides."""
        return clip.clip_frames % self.strides[0] == clip.crop_size % self.strides[1] == 0

    def method_problems(self, clip: ClipOptions) -> list[str]:
        """Problems of the method with clips of this shape; none where the backbone refuses them."""
        if self.method is None or not self.fits_backbone(clip):
            return []
        return self.method.problems(clip.clip_frames, clip.frame_stride, clip.crop_size)

    def is_single_value(self, clip: ClipOptions) -> bool:
        """Whether a layer of batch norm gets one value per channel from a single video, which PyTorch refuses."""
        norm = self.config["trainer"]["batch_norm"]
        if norm == "frozen" or (norm == "sync" and self.ranks > 1) or not self.fits_backbone(clip):
            return False
        try:
            self.backbone.train()(torch.empty(1, 3, clip.clip_frames, clip.crop_size, clip.crop_size, device="meta"))
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                return True
            raise
        return False


class Task:
    splits: ClassVar[tuple[str, ...]] = ()  # of the data set that it reads
    labelled: ClassVar[bool] = False  # whether it needs classes
    starts_from: ClassVar[Literal["nothing", "backbone", "classifier"]] = "nothing"
    reads_classifier: ClassVar[bool] = False  # the checkpoint's, where it has one
    without_classifier: ClassVar[str] = ""  # which option runs it without the checkpoint's classifier
    leaves: ClassVar[Literal["nothing", "backbone", "classifier"]] = "nothing"  # for the next task of the chain

    @property
    def trains_on(self) -> tuple[str, ...]:
        """Splits on whose clips, or their features, parameters are trained."""
        return ("train",) if isinstance(self, TrainOptions) else ()

    @property
    def evaluates(self) -> tuple[str, ...]:
        """Splits that are read video by video, in evaluation or as a gallery."""
        return tuple(split for split in self.splits if split not in self.trains_on)

    def rehearse(self, run: Run) -> None:
        """Write one row of each file that the task will leave, and remove it."""

    def problems(self) -> list[str]:
        """Contradictions among the task's own options, one line each."""
        return []

    def conflicts(self, context: Context) -> list[str]:
        """Contradictions between the task and the rest of the run, one line each."""
        return []

    def estimate(self, name: str, costs: Costs) -> Cost:
        """What the task that stands under `name` in the configuration will take; for check_only."""
        return Cost([name])

    def __call__(self, run: Run) -> dict[str, float]:
        """The task's final figures, the most telling first. Sets run.checkpoint to what it leaves."""
        raise NotImplementedError
