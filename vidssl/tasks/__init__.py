"""What a run does: one readable program each.

A task is a dataclass of its options, which the configuration section of its name fills, and a call.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from vidssl.build import Run
from vidssl.registry import Registry
from vidssl.tasks.costs import Cost, Costs

TASKS = Registry("task", "vidssl.tasks")


class Task:
    splits: ClassVar[tuple[str, ...]] = ()  # of the data set that it reads
    labelled: ClassVar[bool] = False  # whether it needs classes
    starts_from: ClassVar[Literal["nothing", "backbone", "classifier"]] = "nothing"
    needs_rendered: ClassVar[bool] = False  # videos of which foreground and background are known
    reads_classifier: ClassVar[bool] = False  # the checkpoint's, where it has one
    trains_backbone: ClassVar[bool] = False
    leaves: ClassVar[Literal["nothing", "backbone", "classifier"]] = "nothing"  # for the next task of the chain

    @property
    def trains_on(self) -> tuple[str, ...]:
        """Splits on whose clips, or their features, parameters are trained."""
        return ("train",) if hasattr(self, "epochs") else ()

    @property
    def evaluates(self) -> tuple[str, ...]:
        """Splits that are read video by video, in evaluation or as a gallery."""
        return tuple(split for split in self.splits if split not in self.trains_on)

    def rehearse(self, run: Run) -> None:
        """Write one row of each file that the task will leave, and remove it."""

    def problems(self) -> list[str]:
        """What contradicts itself among the options, a line each."""
        return []

    def estimate(self, name: str, costs: Costs) -> Cost:
        """What the task that stands under `name` in the configuration will take; for check_only."""
        return Cost([name])

    def __call__(self, run: Run) -> dict[str, float]:
        """The task's final figures, the most telling first. Sets run.checkpoint to what it leaves."""
        raise NotImplementedError
