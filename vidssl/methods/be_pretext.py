"""BE with a pretext task: how was this clip turned, whatever shines through it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.augment.background import StaticMix
from vidssl.augment.rotations import TURNS, turned
from vidssl.clips import Batch, ClipPlan, View
from vidssl.learner import Learner, StepOutput
from vidssl.methods.contrast import METHODS
from vidssl.registry import ConfigError, NonNegativeFloat, PositiveFloat, UnitInterval


@dataclass(frozen=True)
class Consistency:
    """A squared distance between the features of the distracting clip and of the clip as it is."""

    type: Literal["none", "mse", "tcr"]  # mse: of the map's mean; tcr: of its mean over space, frame by frame
    weight: PositiveFloat  # beta
    stop_grad_target: bool  # no gradient through the clip as it is


class Turned(NamedTuple):
    """Every clip in every turn, as it is and distracting: with a still frame added."""

    clip: Tensor  # float32 [turns * B, 3, T, S, S]
    distracting: Tensor  # same
    turn: Tensor  # int64 [turns * B]


@METHODS.register("be_pretext")
class BEPretext(Learner):
    """The pretext task named in the README of BE's release (CVPR 2021, arXiv:2009.05769), whose code for it was not
    published: cross-entropy of a clip and of its distracting form, and the distance of their features.

    Predicting turns: Jing et al., "Self-Supervised Spatiotemporal Feature Learning via Video Rotation Prediction"
    (arXiv:1811.11387).
    """

    plan = ClipPlan(windows=1, views=(View(0),))

    def __init__(
        self,
        backbone: nn.Module,
        augment: Callable[[Tensor], Tensor],
        *,
        gamma: UnitInterval,
        lambda_scope: Literal["batch", "sample"],
        frame_source: Literal["clip", "other_video", "noise"],
        p: UnitInterval,
        turns: Literal["rotation4", "flip8", "temporal16", "temporal16_released"],
        clip_weight: NonNegativeFloat,
        distracting_weight: NonNegativeFloat,
        consistency: Consistency,
    ):
        super().__init__()
        if clip_weight == distracting_weight == 0:
            raise ConfigError("method.clip_weight=0: one of clip_weight and distracting_weight must be above 0")
        self.backbone, self.augment, self.turns = backbone, augment, TURNS[turns]
        self.mix = StaticMix(gamma, lambda_scope, frame_source, p)
        self.clip_weight, self.distracting_weight, self.consistency = clip_weight, distracting_weight, consistency
        self.head = nn.Linear(backbone.out_channels, len(self.turns))

    def problems(self, clip_frames: int, frame_stride: int, crop_size: int) -> list[str]:
        stride = self.backbone.strides[0]
        if self.consistency.type == "tcr" and clip_frames // stride < 2:
            return [
                f"method.consistency.type=tcr: compares the map's frames; clip_frames={clip_frames} gives one, the "
                f"backbone's stride over time is {stride}"
            ]
        return []

    @torch.no_grad()
    def views(self, batch: Batch) -> Turned:
        clip = self.augment(batch.clips[:, 0].float().div(255))
        turn = torch.arange(len(self.turns), device=clip.device).repeat_interleave(len(clip))
        return Turned(turned(clip, self.turns), turned(self.mix(clip), self.turns), turn)

    def forward(self, views: Turned) -> StepOutput:
        consistent = self.consistency.type != "none"
        losses, maps = [], []
        for clip, weight in ((views.clip, self.clip_weight), (views.distracting, self.distracting_weight)):
            if weight == 0 and not consistent:
                continue
            over_time = self.backbone(clip).float().mean(dim=(3, 4))  # [turns * B, C, t]
            maps.append(over_time)
            if weight > 0:
                logits = self.head(over_time.mean(dim=2)).float()
                losses.append(weight * F.cross_entropy(logits, views.turn))
        scalars = {"turn_top1": (logits.argmax(dim=1) == views.turn).float().mean()}
        if consistent:
            losses.append(self.consistency.weight * self.distance(*maps))
            scalars["consistency"] = losses[-1].detach() / self.consistency.weight
        return StepOutput(torch.stack(losses).sum(), scalars)

    def distance(self, clip: Tensor, distracting: Tensor) -> Tensor:
        """Of features over time, [turns * B, C, t] each."""
        if self.consistency.stop_grad_target:
            clip = clip.detach()
        if self.consistency.type == "mse":
            clip, distracting = clip.mean(dim=2), distracting.mean(dim=2)
        return F.mse_loss(distracting, clip)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return self.mix.pictures(batch.clips[:, 0].float().div(255))
