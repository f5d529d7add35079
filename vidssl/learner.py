"""What the trainer trains: a network that makes its own views and its own loss."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from vidssl.clips import Batch, ClipPlan


class StepOutput(NamedTuple):
    loss: Tensor  # float32 []
    scalars: dict[str, Tensor]  # for the log: detached float32 []
    update: bool = True  # False: leave the weights alone in this step, as while queues fill


class Learner(nn.Module):
    """`views` makes the network's inputs (no gradient, all randomness of the input), `forward` turns them into a loss.

    The trainer runs `views` outside and `forward` inside of autocast and DistributedDataParallel.
    """

    plan: ClipPlan  # what data it wants
    backbone: nn.Module  # what is worth keeping afterwards
    static_graph: ClassVar[bool] = True  # each step has a gradient for the same parameters, in the same order

    def views(self, batch: Batch) -> Any:
        """A NamedTuple of tensors, made from clips on their device."""
        raise NotImplementedError

    def forward(self, views: Any) -> StepOutput:
        raise NotImplementedError

    def problems(self, clip_frames: int, frame_stride: int, crop_size: int) -> list[str]:
        """What about these clips cannot work with this learner, a line each; asked before any work."""
        return []

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Clips to look at, each [B, 3, T, S, S] in [0, 1]: how this method changes its input, before color."""
        return {}
