"""The words in which data and methods talk: which clips a method wants, and the batch it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class View:
    """One clip cut from a window of `clip_frames * frame_stride` raw frames.

    stride takes every frame_stride-th frame, head and tail the first and last clip_frames, still one frame repeated
    (the same one in all windows of a video). crop: a random one of its own, or that of the window's first view.
    """

    window: int
    frames: Literal["stride", "head", "tail", "still"] = "stride"
    crop: Literal["own", "window"] = "own"


@dataclass(frozen=True)
class ClipPlan:
    """The clips that one video gives: `windows` places in time, and the views cut from them.

    random: different places, drawn anew each epoch. uniform: evenly from the first place to the last. released: as BE's
    release draws them.
    """

    windows: int
    views: tuple[View, ...]
    placement: Literal["random", "uniform", "released"] = "random"

    @classmethod
    def uniform(cls, clips: int) -> ClipPlan:
        """Evenly spread clips, as evaluation takes them."""
        return cls(clips, tuple(View(window) for window in range(clips)), "uniform")


class Batch(NamedTuple):
    """B videos with V views each."""

    # uint8 [B, V, 3, T, S, S], as a loader makes them with color last in memory, which `to` changes; features float32
    # [B, C] where a task extracted these before
    clips: Tensor
    boxes: Tensor  # float32 [B, V, 4]: x0, y0, x1, y1 of the crop as shares of the frame; x0 > x1 where mirrored
    label: Tensor  # int64 [B]; -1 where the data set has none
    index: Tensor  # int64 [B]: place of the video in its manifest

    @property
    def count(self) -> int:
        """Clips in this batch."""
        return self.clips.shape[0] * self.clips.shape[1] if self.clips.ndim == 6 else len(self.clips)

    def to(self, device, non_blocking: bool = False) -> Batch:
        return Batch(*(part.to(device, non_blocking=non_blocking).contiguous() for part in self))
