"""DCLR: what stands still and what moves in a clip are contrasted apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.augment.motion import frame_difference, still_frame
from vidssl.clips import Batch, ClipPlan, View
from vidssl.engine import distributed
from vidssl.learner import Learner, StepOutput
from vidssl.methods.contrast import (
    METHODS,
    MomentumEncoder,
    Queue,
    across_ranks,
    head_layers,
    multi_positive_nce,
    spread,
    unit,
)
from vidssl.registry import ConfigError, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Within

# Embeddings of a window: three views of its video stream, its two other streams, and the last two once more, as the
# twin saw them before it followed; positives are searched with these
VIDEO, VIDEO_STATIC, VIDEO_MOTION, STATIC, MOTION, SEARCH_STATIC, SEARCH_MOTION = range(7)
HEADS = ("video", "video_static", "video_motion", "static", "motion")
PARTNERS = (VIDEO, STATIC, MOTION, VIDEO_STATIC, VIDEO_MOTION)  # the key that each head's query attracts


@dataclass(frozen=True)
class DecoupledContrastOptions:
    dim: PositiveInt  # of an embedding
    head: Literal["mlp", "mlp_bn"]  # mlp_bn: batch norm behind both layers, the last without scale
    hidden: PositiveInt | None  # width of a head's inner layer; null: the backbone's
    head_std: PositiveFloat | None  # initial spread of a head's layers, their bias 0; null: PyTorch's own
    queue: PositiveInt  # number of past clips whose keys serve as negatives and mined positives
    topk: NonNegativeInt  # positives mined from the queue for each query
    fill_steps: NonNegativeInt  # batches at the start that only fill the queue
    momentum: Annotated[float, Within("[0, 1]")]  # of the twin
    temperature: PositiveFloat
    shuffle_bn: bool  # keys are computed on a batch shuffled over the ranks


class Windows(NamedTuple):
    """Two windows of each video, augmented and normalized."""

    left: Tensor  # float32 [B, 3, T, S, S]
    right: Tensor  # same
    left_still: Tensor  # float32 [B, 3, 1, S, S]: a still clip is one frame, repeated where the network wants T
    right_still: Tensor  # same


class Attention(NamedTuple):
    """Where the streams of a window respond, and what positives are searched with."""

    video: Tensor  # float32 [B, 1, t, h, w]
    static: Tensor  # same
    motion: Tensor  # same
    search: Tensor  # unit float32 [B, 2, D]: static, motion


class Decoupler(nn.Module):
    """Backbone and five heads: sees a window as video, as one of its frames, and as its frame differences."""

    def __init__(self, backbone: nn.Module, options: DecoupledContrastOptions, first_difference: str):
        super().__init__()
        self.backbone, self.first_difference = backbone, first_difference
        self.heads = nn.ModuleDict({name: head(backbone.out_channels, options) for name in HEADS})

    def features(self, video: Tensor, still: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of the video, static and motion stream, float32 [B, C, t, h, w]."""
        return self.backbone(self.streams(video, still)).float().chunk(3)

    def streams(self, video: Tensor, still: Tensor) -> Tensor:
        """[3 B, 3, T, S, S]: one batch, whose statistics batch norm takes over all three streams."""
        static = torch.empty_like(video).copy_(still)  # in the video's memory format
        return torch.cat([video, static, frame_difference(video, self.first_difference)])

    def attend(self, video: Tensor, still: Tensor) -> Attention:
        features = self.features(video, still)
        _, static, motion = (average(feature) for feature in features)
        search = self.embed({"static": static, "motion": motion})
        return Attention(*(activation(feature) for feature in features), search)

    def forward(self, video: Tensor, still: Tensor, static_map: Tensor, motion_map: Tensor) -> tuple[Tensor, Tensor]:
        """The five embeddings, unit float32 [B, 5, D], and the video's activation map, [B, 1, t, h, w]."""
        whole, static, motion = self.features(video, still)
        pooled = (
            average(whole),
            weighted_average(whole, static_map),
            weighted_average(whole, motion_map),
            average(static),
            average(motion),
        )
        return self.embed(dict(zip(HEADS, pooled, strict=True))), activation(whole)

    def embed(self, pooled: dict[str, Tensor]) -> Tensor:
        """Pooled features [B, C] of some heads -> unit float32 [B, heads, D]."""
        answers = [self.heads[name](feature) for name, feature in pooled.items()]
        return unit(torch.stack(answers, dim=1))


def head(width: int, options: DecoupledContrastOptions) -> nn.Sequential:
    """[B, width] -> [B, dim]"""
    layers = head_layers(options.head, width, options.hidden or width, options.dim)
    for layer in layers:
        if options.head_std is not None and isinstance(layer, nn.Linear):
            spread(layer, options.head_std)
    return nn.Sequential(*layers)


def activation(feature: Tensor) -> Tensor:
    """Sum over channels. [B, C, t, h, w] -> [B, 1, t, h, w], >= 0 behind a ReLU."""
    return feature.sum(dim=1, keepdim=True)


def average(feature: Tensor) -> Tensor:
    """[B, C, t, h, w] -> [B, C]"""
    return feature.mean(dim=(2, 3, 4))


def weighted_average(feature: Tensor, attention: Tensor) -> Tensor:
    """Average where the attention [B, 1, t, h, w] is. [B, C, t, h, w] -> [B, C]"""
    return average(feature * relative(attention))


def relative(attention: Tensor) -> Tensor:
    """Each map divided by its mean."""
    return attention / attention.mean(dim=(2, 3, 4), keepdim=True).clamp(min=1e-6)


@METHODS.register("dclr")
class DCLR(Learner):
    """Static and motion streams of a clip point out what belongs to them in the video, and each attracts its part.

    Ding et al., "Dual Contrastive Learning for Spatio-temporal Representation", ACM MM 2022 (arXiv:2207.05340). Follows
    the authors' released code where the abstract leaves things open.
    """

    static_graph = False  # no gradient while the queue fills

    def __init__(
        self,
        backbone: nn.Module,
        augment: Callable[[Tensor], Tensor],
        *,
        contrast: DecoupledContrastOptions,
        shuffle_maps: bool,
        static_registered: bool,
        first_difference: Literal["wrap", "zero", "repeat"],
        dynamic_positive: Literal["other", "same"],
        static_as_negative: bool,
        align: Literal["constant", "off", "grad"],
        align_weight: NonNegativeFloat,
    ):
        super().__init__()
        if contrast.queue <= contrast.topk:
            raise ConfigError(
                f"method.contrast.queue={contrast.queue}: {contrast.topk} positives are mined from it "
                f"(method.contrast.topk) and negatives have to remain; allowed: {contrast.topk + 1} or more"
            )
        if not shuffle_maps and not contrast.shuffle_bn:
            raise ConfigError(
                "method.shuffle_maps=false: says how maps go with shuffled clips, and method.contrast.shuffle_bn=false "
                "shuffles none; allowed: true"
            )
        self.augment, self.options, self.shuffle_maps = augment, contrast, shuffle_maps
        self.static_registered, self.static_as_negative = static_registered, static_as_negative
        self.align, self.align_weight = align, align_weight
        stills = () if static_registered else (View(0, "still"), View(1, "still"))
        self.plan = ClipPlan(windows=2, views=(View(0), View(1), *stills))
        self.online = Decoupler(backbone, contrast, first_difference)
        self.key_encoder = MomentumEncoder(self.online, contrast.momentum)
        self.queue = Queue(contrast.dim, contrast.queue, kinds=7)
        partners = [SEARCH_MOTION if p == MOTION and dynamic_positive == "same" else p for p in PARTNERS]
        self.register_buffer("partners", torch.tensor(partners), persistent=False)
        self.steps = 0  # saved with the state; not a buffer, so that no step waits for the device to read it

    @property
    def backbone(self) -> nn.Module:
        return self.online.backbone

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = int(state)

    def problems(self, clip_frames: int, frame_stride: int, crop_size: int) -> list[str]:
        if clip_frames > 1:
            return []
        return [f"clip_frames={clip_frames}: method=dclr takes differences of frames; allowed: 2 or more"]

    @torch.no_grad()
    def views(self, batch: Batch) -> Windows:
        return Windows(*(self.augment(clip) for clip in self.windows(batch)))

    def windows(self, batch: Batch) -> Windows:
        """The clips in [0, 1], before color."""
        clips = batch.clips.float().div(255).unbind(dim=1)
        if self.static_registered:  # the same frame of both, with the crop of its video
            frame = torch.randint(clips[0].shape[2], (len(clips[0]),)).to(clips[0].device)
            return Windows(*clips, *(still_frame(clip, frame) for clip in clips))
        left, right, *stills = clips
        return Windows(left, right, *(still[:, :, :1] for still in stills))

    def forward(self, views: Windows) -> StepOutput:
        self.steps += 1
        if self.steps > self.options.fill_steps:
            return self.step(views)
        with torch.no_grad():  # all but the weights moves on
            return self.step(views)._replace(update=False)

    def step(self, views: Windows) -> StepOutput:
        left = self.attend(views.left, views.left_still)
        right = self.attend(views.right, views.right_still)
        queries, video_map = self.online(views.left, views.left_still, left.static, left.motion)
        self.key_encoder.update(self.online)
        keys = self.keys(views.right, views.right_still, right)
        logits = self.logits(queries, distributed.local_rows(keys), left.search)
        losses = multi_positive_nce(logits, self.positives(left.search))
        self.queue.push(keys)
        video, video_static, video_motion, static, motion = losses.detach()
        better = (logits[:, VIDEO, 1:] > logits[:, VIDEO, :1]).sum(dim=1)
        scalars = {"video": video, "static": video_static + static, "motion": video_motion + motion}
        scalars |= {f"contrast_top{k}": (better < k).float().mean() for k in (1, 5)}
        loss = losses.sum()
        if self.align != "off":
            alignment = self.alignment(video_map, left)
            scalars["align"] = alignment.detach()
            if self.align == "grad":
                loss = loss + self.align_weight * alignment
        return StepOutput(loss, scalars)

    @torch.no_grad()
    def attend(self, video: Tensor, still: Tensor) -> Attention:
        """By the twin before it follows, on this rank's own clips."""
        return self.key_encoder.network.attend(video, still)

    @torch.no_grad()
    def keys(self, video: Tensor, still: Tensor, attention: Attention) -> Tensor:
        """By the twin after it followed; of all ranks, unit float32 [B * ranks, 7, D].

        Ranks exchange neither frame differences nor repeated frames. With shuffle_maps=false, as released, maps stay
        in place when clips are shuffled, so each clip is weighted with another's maps, in one process too.
        """
        maps = (attention.static, attention.motion)
        shuffle = self.options.shuffle_bn
        if self.shuffle_maps:
            (keys,) = across_ranks(self._embed, video, still, *maps, shuffle=shuffle)
        else:
            (keys,) = across_ranks(lambda *clips: self._embed(*clips, *maps), video, still, shuffle=shuffle, alone=True)
        return torch.cat([keys, distributed.gather(attention.search)], dim=1)

    def _embed(self, *inputs: Tensor) -> tuple[Tensor]:
        return self.key_encoder.network(*inputs)[:1]

    def logits(self, queries: Tensor, keys: Tensor, search: Tensor) -> Tensor:
        """[B, 5, 1 + K] of the five heads: the partner in column 0, then the queue.

        queries [B, 5, D] of the left windows; keys [B, 7, D] of the right; search [B, 2, D] of the left: its motion is
        the partner where dynamic_positive=same. static_as_negative puts one more column behind these, in which the
        two weighted views of the video repel each other's partner.
        """
        keys = torch.cat([keys[:, :SEARCH_STATIC], search], dim=1)
        positive = (queries * keys.index_select(1, self.partners)).sum(dim=-1, keepdim=True)
        negative = torch.einsum("bnd,knd->bnk", queries, self.queue.keys.index_select(1, self.partners))
        logits = torch.cat([positive, negative], dim=-1)
        if self.static_as_negative:
            other = logits.new_full(positive.shape, -torch.inf)
            other[:, VIDEO_STATIC, 0] = (queries[:, VIDEO_STATIC] * keys[:, MOTION]).sum(dim=-1)
            other[:, VIDEO_MOTION, 0] = (queries[:, VIDEO_MOTION] * keys[:, STATIC]).sum(dim=-1)
            logits = torch.cat([logits, other], dim=-1)
        return logits / self.options.temperature

    def positives(self, search: Tensor) -> Tensor:
        """Which columns of the logits are positive, bool like these: the partner, and the past clips most alike.

        search [B, 2, D]. Static views look for what is alike when still, those of motion for what moves alike, and the
        video for both.
        """
        video, static, motion = self.mine(self.similarity(search)).unbind(dim=1)
        mined = torch.stack([video, static, motion, static, motion], dim=1)
        with_partner = F.pad(mined, (1, 0), value=True)
        return F.pad(with_partner, (0, int(self.static_as_negative)))

    def similarity(self, search: Tensor) -> Tensor:
        """To the queue's clips, still and in motion; a softmax over each makes them comparable. [B, 2, K]"""
        return torch.einsum("bnd,knd->bnk", search, self.queue.keys[:, SEARCH_STATIC:]).float().softmax(dim=-1)

    def mine(self, similarity: Tensor) -> Tensor:
        """[B, 2, K] static, motion -> bool [B, 3, K] video, static, motion: topk in each row."""
        similarity = torch.cat([similarity.sum(dim=1, keepdim=True), similarity], dim=1)
        nearest = similarity.topk(self.options.topk, dim=-1).indices
        return torch.zeros_like(similarity, dtype=torch.bool).scatter_(-1, nearest, True)

    def alignment(self, video_map: Tensor, left: Attention) -> Tensor:
        """How far the video's activation is from that of static and motion together, mean square.

        As released a constant for the network, since the twin makes all three. grad, our reading of the intent: the
        online network's map against the mean of the twin's two, each relative to its own mean.
        """
        if self.align == "grad":
            return (relative(video_map) - (relative(left.static) + relative(left.motion)) / 2).square().mean()
        return (left.video - (left.static + left.motion)).square().mean()

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        clips = self.windows(batch)
        motion = frame_difference(clips.left, self.online.first_difference)
        return {"video": clips.left, "static": clips.left_still.expand_as(clips.left), "motion": (motion + 1) / 2}
