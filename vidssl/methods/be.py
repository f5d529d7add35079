"""BE, background erasing: a clip with one of its own frames added to all of them shall mean the same.

Wang et al., "Removing the Background by Adding the Background: Towards Background Robust Self-supervised Video
Representation Learning", CVPR 2021 (arXiv:2009.05769), in the form of its release.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidssl.augment.background import StaticMix, derangement
from vidssl.clips import Batch, ClipPlan, View
from vidssl.engine import distributed
from vidssl.learner import Learner, StepOutput
from vidssl.methods.contrast import (
    METHODS,
    Embedder,
    KeyOptions,
    MomentumEncoder,
    Queue,
    across_ranks,
    contrast_logits,
    embed,
    projector,
    unit,
)
from vidssl.registry import ConfigError, PositiveFloat, PositiveInt, UnitInterval

Augment = Callable[[Tensor], Tensor]
Scope = Literal["batch", "sample"]
Source = Literal["clip", "other_video", "noise"]
Mixed = Literal["anchor", "positive", "both"]
Placement = Literal["random", "released"]


@dataclass(frozen=True)
class BEContrast(KeyOptions):
    key_bn: Literal["train", "eval"]  # the twin normalizes by its batch, or by the network's running statistics


@dataclass(frozen=True)
class Noise:
    """Noise contrastive estimation in place of the softmax."""

    videos: PositiveInt  # n of the estimate: size of the data set; the release counts batches
    legacy_z: bool  # Z is cut to a whole number, as released


@dataclass(frozen=True)
class Consistency:
    """A squared distance between the features of the distracting clip and of the clip as it is."""

    type: Literal["none", "mse", "tcr"]  # tcr: frame by frame of the map
    weight: PositiveFloat
    of: Literal["conv_pooled", "embed"]
    reverse_time: bool  # the distracting clip runs backwards, its features are compared in turned order
    stop_grad_target: bool  # true: the target is the twin's; false: the network's own, with gradient


class Trio(NamedTuple):
    """Two crops of the same frames, and a clip that shall be told from them; augmented, normalized and mixed."""

    anchor: Tensor  # float32 [B, 3, T, S, S]
    positive: Tensor  # same
    negative: Tensor | None  # same


class Features(NamedTuple):
    embedding: Tensor  # unit float32 [B, D]
    pooled: Tensor  # float32 [B, C, t], the map's mean over space


def features(network: Embedder, clip: Tensor) -> Features:
    fmap = network.backbone(clip)
    return Features(unit(network.head(fmap)), over_space(fmap.float()))


def over_space(fmap: Tensor) -> Tensor:
    """[B, C, t, h, w] -> [B, C, t]."""
    return fmap.mean(dim=(3, 4))


def plan(placement: Placement, negative: bool) -> ClipPlan:
    views = (View(0), View(0), View(1)) if negative else (View(0), View(0))
    return ClipPlan(1 + negative, views, placement)


def trio(batch: Batch, augment: Augment, mix: Callable[[Tensor], Tensor], view: Mixed) -> Trio:
    """The mix comes after color and normalization, which is no different from before them but for color's chance."""
    anchor, positive, *negative = (augment(clip) for clip in batch.clips.float().div(255).unbind(dim=1))
    if view in ("anchor", "both"):
        anchor = mix(anchor)
    if view in ("positive", "both"):
        positive = mix(positive)
    return Trio(anchor, positive, *negative or [None])


@METHODS.register("be")
class BE(Learner):
    """The distracting clip is the query, another crop of the same frames its key; queued keys and a clip from elsewhere
    in the same video repel.

    One direction alone, and the extra negative goes through the trained network, with gradient.
    """

    def __init__(
        self,
        backbone: nn.Module,
        augment: Augment,
        *,
        gamma: UnitInterval,
        lambda_scope: Scope,
        frame_source: Source,
        view: Mixed,
        p: UnitInterval,
        extra_negative: Literal["none", "intra", "inter"],
        detach_negative: bool,
        placement: Placement,
        consistency: Consistency,
        nce: Noise | None,
        contrast: BEContrast,
    ):
        super().__init__()
        refuse_contradictions(view, extra_negative, detach_negative, consistency, nce, contrast)
        self.augment, self.view = augment, view
        self.mix = StaticMix(gamma, lambda_scope, frame_source, p)
        self.plan = plan(placement, extra_negative != "none")
        self.extra_negative, self.detach_negative = extra_negative, detach_negative
        self.consistency, self.options = consistency, contrast
        self.online = Embedder(backbone, projector(backbone.out_channels, contrast))
        self.key_encoder = MomentumEncoder(self.online, contrast.momentum)
        self.queue = uniform_queue(contrast.dim, contrast.queue) if contrast.queue > 0 else None
        self.nce = NoiseContrast(nce) if nce else None

    @property
    def backbone(self) -> nn.Module:
        return self.online.backbone

    def problems(self, clip_frames: int, frame_stride: int, crop_size: int) -> list[str]:
        if self.consistency.type == "tcr" and clip_frames // self.backbone.strides[0] < 2:
            return [
                f"method.consistency.type=tcr: compares the map's frames; clip_frames={clip_frames} gives one, the "
                f"backbone's stride over time is {self.backbone.strides[0]}"
            ]
        return []

    def train(self, mode: bool = True) -> BE:
        """The twin stays in evaluation mode, but for its batch norms."""
        super().train(mode)
        self.key_encoder.eval()
        for module in self.key_encoder.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode and self.options.key_bn == "train")
        return self

    @torch.no_grad()
    def views(self, batch: Batch) -> Trio:
        views = trio(batch, self.augment, self.distract, self.view)
        if self.extra_negative == "inter":
            partner = derangement(len(batch.clips)).to(batch.clips.device)
            views = views._replace(negative=views.negative[partner])
        return views

    def distract(self, clip: Tensor) -> Tensor:
        """What the clip is changed to, normalized float32 [B, 3, T, S, S]."""
        mixed = self.mix(clip)
        return mixed.flip(2) if self.consistency.reverse_time else mixed

    def forward(self, views: Trio) -> StepOutput:
        self.update()
        query = features(self.online, views.anchor)  # the order of the passes shows in batch norm's running statistics
        keys = self.keys(views.positive)
        consistency = self.inconsistency(query, keys, views)
        logits, target = self.logits(query.embedding, keys.embedding, self.negative(views.negative))
        if self.queue is not None:
            self.queue.push(keys.embedding)
        loss = F.cross_entropy(logits, target) if self.nce is None else self.nce(logits)
        hit = (logits.argmax(dim=1) == target).float().mean()
        scalars = {"contrast_top1": hit.detach()}
        if consistency is not None:
            loss = loss + self.consistency.weight * consistency
            scalars["consistency"] = consistency.detach()
        return StepOutput(loss, scalars)

    @torch.no_grad()
    def update(self) -> None:
        """Before the keys, which is the release's after the step of the optimizer: the twin starts as a copy."""
        self.key_encoder.update(self.online)
        if self.options.key_bn == "eval":
            for own, buffer in zip(self.key_encoder.network.buffers(), self.online.buffers(), strict=True):
                own.copy_(buffer)

    @torch.no_grad()
    def keys(self, clip: Tensor) -> Features:
        """Of all ranks, [B * ranks, ...]."""
        return Features(
            *across_ranks(lambda part: features(self.key_encoder.network, part), clip, shuffle=self.options.shuffle_bn)
        )

    def negative(self, clip: Tensor | None) -> Tensor | None:
        if clip is None:
            return None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_negative):
            return embed(self.online, clip)

    def logits(self, query: Tensor, keys: Tensor, negative: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, 1 + K + 1] and the column of the own key: the own key, the queue, and each query's extra negative."""
        logits, target = contrast_logits(query, keys, self.queue, self.options.temperature)
        if negative is not None:
            extra = (query * negative).sum(dim=1, keepdim=True) / self.options.temperature
            logits = torch.cat([logits, extra], dim=1)
        return logits, target

    def inconsistency(self, query: Features, keys: Features, views: Trio) -> Tensor | None:
        if self.consistency.type == "none":
            return None
        if self.consistency.stop_grad_target:
            target = Features(*(distributed.local_rows(part) for part in keys))
        else:
            target = features(self.online, views.positive)
        if self.consistency.type == "tcr":
            return temporal_consistency(query.pooled, target.pooled, reverse_time=self.consistency.reverse_time)
        if self.consistency.of == "embed":
            return F.mse_loss(query.embedding, target.embedding)
        return F.mse_loss(query.pooled.mean(dim=2), target.pooled.mean(dim=2))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return self.mix.pictures(batch.clips[:, 0].float().div(255))


def refuse_contradictions(
    view: Mixed, extra_negative: str, detach: bool, consistency: Consistency, nce: Noise | None, contrast: BEContrast
) -> None:
    problems = []
    if detach and extra_negative == "none":
        problems.append("method.detach_negative=true: there is none; extra_negative=intra or inter")
    if consistency.type == "tcr" and consistency.of == "embed":
        problems.append("method.consistency.of=embed: an embedding has no time, which type=tcr compares; conv_pooled")
    if consistency.reverse_time and consistency.type != "tcr":
        problems.append(f"method.consistency.reverse_time=true: needs type=tcr; type={consistency.type}")
    if consistency.reverse_time and view == "both":
        problems.append("method.consistency.reverse_time=true: one of the two runs backwards; view=anchor or positive")
    if nce and not contrast.queue:
        problems.append("method.nce: its negatives come from the queue; contrast.queue=0 has none")
    if contrast.shuffle_bn and contrast.key_bn == "eval":
        problems.append("method.contrast.shuffle_bn=true: does nothing without batch statistics; key_bn=train")
    if problems:
        raise ConfigError(problems)


def uniform_queue(dim: int, length: int) -> Queue:
    """Starts uniform in a box and not normalized, as released; its keys have lengths near 1."""
    queue = Queue(dim, length)
    bound = math.sqrt(3 / dim)
    queue.keys.uniform_(-bound, bound)
    return queue


def temporal_consistency(pooled: Tensor, target: Tensor, *, reverse_time: bool) -> Tensor:
    """Mean squared difference of features over time, float32 [B, C, t] each; the target's time turned around."""
    return F.mse_loss(pooled, target.flip(2) if reverse_time else target)


class NoiseContrast(nn.Module):
    """Each column against noise. Wu et al., CVPR 2018 (arXiv:1805.01978), eq. 4-7: P = exp(logit) / Z.

    Z is fixed by the first batch, over all ranks. Logits [B, 1 + m], the positive in column 0.
    """

    def __init__(self, options: Noise):
        super().__init__()
        self.options = options
        self.register_buffer("z", torch.zeros(()))  # 0: not known yet

    def forward(self, logits: Tensor) -> Tensor:
        likelihood = self.likelihood(logits)
        b, m = len(logits), logits.shape[1] - 1
        noise = m / self.options.videos
        positive, negative = likelihood[:, 0], likelihood[:, 1:]
        told = (positive / (positive + noise + 1e-7)).log().sum()
        told = told + (noise / (negative + noise + 1e-7)).log().sum()
        return -told / b

    def likelihood(self, logits: Tensor) -> Tensor:
        weight = logits.exp()
        fresh = distributed.mean(weight.detach().mean()) * self.options.videos
        fresh = fresh.trunc() if self.options.legacy_z else fresh
        z = torch.where(self.z == 0, fresh, self.z)  # asked on the device: no step waits for the answer
        self.z.copy_(z)
        return weight / z


@METHODS.register("be_triplet")
class BETriplet(Learner):
    """BE without a twin and a queue: the distracting clip is nearer to the other crop of its frames than to a clip from
    elsewhere in its video, and to one of another video. Release, `be_triplet`."""

    def __init__(
        self,
        backbone: nn.Module,
        augment: Augment,
        *,
        gamma: UnitInterval,
        lambda_scope: Scope,
        frame_source: Source,
        view: Mixed,
        p: UnitInterval,
        placement: Placement,
        dim: PositiveInt,
        margin: PositiveFloat,
    ):
        super().__init__()
        self.augment, self.view, self.margin = augment, view, margin
        self.mix = StaticMix(gamma, lambda_scope, frame_source, p)
        self.plan = plan(placement, negative=True)
        head = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(backbone.out_channels, dim))
        self.online = Embedder(backbone, head)

    @property
    def backbone(self) -> nn.Module:
        return self.online.backbone

    @torch.no_grad()
    def views(self, batch: Batch) -> Trio:
        return trio(batch, self.augment, self.mix, self.view)

    def forward(self, views: Trio) -> StepOutput:
        intra, inter = triplets(*(embed(self.online, clip) for clip in views), margin=self.margin)
        scalars = {"intra": intra.mean().detach(), "inter": inter.mean().detach()}
        scalars["satisfied"] = torch.cat([intra, inter]).eq(0).float().mean()
        return StepOutput(intra.mean() + inter.mean(), scalars)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        return self.mix.pictures(batch.clips[:, 0].float().div(255))


def triplets(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> tuple[Tensor, Tensor]:
    """Hinges against the own and against another video's negative, [B] each; unit embeddings [B, D].

    The other is the batch in reverse order, as released: in an odd batch the middle row meets its own again.
    """
    return tuple(
        F.triplet_margin_loss(anchor, positive, each, margin=margin, reduction="none")
        for each in (negative, negative.flip(0))
    )
