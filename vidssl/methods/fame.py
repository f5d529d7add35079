"""FAME: MoCo that may not look at the background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from vidssl.augment.background import derangement
from vidssl.augment.foreground import foreground_mask, merge, swap
from vidssl.clips import Batch
from vidssl.methods.contrast import METHODS, ContrastOptions
from vidssl.methods.moco import MoCo
from vidssl.registry import Within


@METHODS.register("fame")
class FAME(MoCo):
    """One of a video's two clips gets the background of another video before any color augmentation.

    Ding et al., CVPR 2022 (arXiv:2109.15130), section 3.
    """

    def __init__(
        self,
        backbone: nn.Module,
        augment: Callable[[Tensor], Tensor],
        *,
        beta: Annotated[float, Within("(0, 1]")],
        mask: Literal["fame", "seed", "grid", "gauss"],
        background: Literal["inter", "intra", "none"],
        apply_to: Literal["single", "both"],
        hue: Literal["code", "fixed"],
        allow_self: bool,
        contrast: ContrastOptions,
    ):
        super().__init__(backbone, augment, contrast=contrast)
        self.beta, self.mask, self.hue = beta, mask, hue
        self.background, self.apply_to, self.allow_self = background, apply_to, allow_self

    def mix(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        if self.background == "none":
            return left, right
        swapped = self.swap_background(left, right)
        return swapped, self.swap_background(right, left) if self.apply_to == "both" else right

    def swap_background(self, clip: Tensor, other: Tensor) -> Tensor:
        """clip and other [B, 3, T, S, S], two clips of the same videos; float32 in [0, 1]."""
        if self.background == "inter":
            donor_index = self.donor_index(len(clip))
            return swap(clip, donor_index, self.foreground(clip))
        return merge(clip, other, self.foreground(clip))

    def foreground(self, clip: Tensor) -> Tensor:
        return foreground_mask(clip, beta=self.beta, kind=self.mask, hue=self.hue)

    def donor_index(self, count: int) -> Tensor:
        """For each clip of this rank's batch, the clip whose background it gets. int64 [B].

        The release's random order has fixed points, clips that stay as they are; without allow_self it has none.
        """
        return torch.randperm(count) if self.allow_self else derangement(count)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        left, right = batch.clips.float().div(255).unbind(dim=1)
        mask = self.foreground(left)[:, None, None].expand_as(left).float()
        swapped = self.mix(left, right)[0]
        if self.background == "inter":  # for a picture, never its own
            swapped = swap(left, derangement(len(left)), self.foreground(left))
        return {"clip": left, "foreground": mask, "swapped": swapped}
