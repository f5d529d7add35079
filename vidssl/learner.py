"""What the training loop trains: a network that makes its own views and its own loss."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from vidssl.clips import Batch, ClipPlan


class StepOutput(NamedTuple):
    loss: Tensor  # float32 []
    scalars: dict[str, Tensor]  # for the log: float32 [], under the same names in every step
    update: bool = True  # False: leave the weights alone in this step, as while queues fill


class Learner(nn.Module):
    """A network with its two halves of a step: `views` makes the input, `forward` turns it into a loss.

    `views` runs without gradient and holds all randomness of the input; the loop runs it outside, and `forward` inside,
    of autocast and DistributedDataParallel. What a subclass must know:

    * The constructor takes (backbone, augment) and keyword-only options, which are the schema of its YAML file. The
      check of a configuration calls it on the meta device, where tensors have shapes but no values: compute with Python
      numbers there, not with `.item()`.
    * `views` returns a NamedTuple; tensors [N, 3, T, S, S] in it are clips, which `shown` makes visible.
    * The names of a step's scalars never change.
    """

    plan: ClipPlan  # which clips it wants of a video
    backbone: nn.Module  # what is worth keeping afterwards
    static_graph: ClassVar[bool] = True  # each step has a gradient for the same parameters, in the same order

    def views(self, batch: Batch) -> Any:
        """The network's input, made of a batch on its device."""
        raise NotImplementedError

    def forward(self, views: Any) -> StepOutput:
        raise NotImplementedError

    def problems(self, clip_frames: int, frame_stride: int, crop_size: int) -> list[str]:
        """Why clips of this size cannot work with this learner, a line each; asked before any work."""
        return []

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Clips to look at, each [B, 3, T, S, S] in [0, 1]: how this method changes its input, before color."""
        return {}

    def shown(self, clip: Tensor) -> Tensor:
        """A clip of `views` in about [0, 1]: without the normalization of `self.augment`, if that has mean and std,
        else between its lowest and highest value."""
        mean, std = (getattr(getattr(self, "augment", None), name, None) for name in ("mean", "std"))
        if isinstance(mean, Tensor) and isinstance(std, Tensor):
            return clip * std + mean
        low, high = clip.amin(), clip.amax()
        return (clip - low) / (high - low).clamp(min=1e-6)
