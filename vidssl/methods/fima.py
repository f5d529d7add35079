"""FIMA: appearance has to foretell, cell by cell, where and how the other clip moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.augment.motion import First, motion_clip
from vidssl.clips import Batch, ClipPlan, View
from vidssl.engine import distributed
from vidssl.learner import Learner, StepOutput
from vidssl.methods.contrast import (
    METHODS,
    Embedder,
    MomentumEncoder,
    Queue,
    across_ranks,
    contrast_loss,
    head_layers,
    unit,
)
from vidssl.registry import ConfigError, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Within

LOCAL = ("head", "tail")  # the clips of a window behind the map's time steps, in their order


@dataclass(frozen=True)
class FIMAContrast:
    dim: PositiveInt  # of an embedding
    head: Literal["mlp", "mlp_bn"]  # mlp_bn: batch norm behind both layers, the last without scale
    hidden: PositiveInt  # width of the head's inner layer
    queue: (
        NonNegativeInt  # number of appearance keys of past batches that serve as negatives; 0: the batch's other keys
    )
    motion_queue: NonNegativeInt  # motion keys of past batches, for the local loss; 0: none
    dense_queue: NonNegativeInt  # motion keys of single cells, for the dense loss; 0: none
    momentum: Annotated[float, Within("[0, 1]")]  # of the twin; 0: keys are made with the network's own weights
    temperature: PositiveFloat
    dense_temperature: PositiveFloat
    shuffle_bn: bool  # keys are computed on a batch shuffled over the ranks
    enqueue: Literal["after_both", "after_each_pass"]  # the second: a clip's own key is among its negatives
    gather_negatives: bool  # local and dense negatives from the batches of all ranks


@dataclass(frozen=True)
class DecoderOptions:
    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    hidden: PositiveInt  # width between the two linear layers behind the attention
    dropout: Annotated[float, Within("[0, 1)")]


class FIMAViews(NamedTuple):
    """Clips float32 [B, 3, T, S, S], augmented and normalized; `motion`, `head` and `tail` show frame differences."""

    left: Tensor
    right: Tensor
    left_head: Tensor
    left_tail: Tensor
    right_head: Tensor
    right_tail: Tensor
    left_motion: Tensor  # in the crop of left
    right_motion: Tensor
    left_box: Tensor  # float32 [B, 4]: x0, y0, x1, y1 of left's crop in the frame
    right_box: Tensor


class Keys(NamedTuple):
    """What the twin makes of one window: unit float32, of all ranks [N, ...]."""

    whole: Tensor  # [N, D]: appearance
    motion: Tensor  # [N, t, h w, D]: frame differences, every cell
    local: Tensor  # [N, t, D]: frame differences of head and tail
    activation: Tensor  # this rank's alone, [B, h w]: where the maps are strong


@METHODS.register("fima")
class FIMA(Learner):
    """MoCo, and two losses that align motion: a decoder looks from one clip's appearance at the other's and has to
    find the key of the other's frame differences, in each cell (dense) and for each step of the map (local).

    Zhu et al., ACM MM 2023 (arXiv:2309.00297); numbers, order and constants follow the authors' released code.
    """

    def __init__(
        self,
        backbone: nn.Module,
        augment: Callable[[Tensor], Tensor],
        *,
        local_crop: Literal["independent", "shared"],
        first_difference: First,
        motion_color: Literal["augment", "none"],
        foreground: Literal["both", "rgb", "motion"],
        foreground_quantile: Annotated[float, Within("[0, 1)")],
        radius: PositiveFloat,
        local_weight: NonNegativeFloat,
        dense_weight: NonNegativeFloat,
        decoder: DecoderOptions,
        contrast: FIMAContrast,
    ):
        super().__init__()
        if decoder.width % (2 * decoder.heads):
            raise ConfigError(
                f"method.decoder.width={decoder.width}: must be a multiple of 2 * method.decoder.heads = "
                f"{2 * decoder.heads}, for heads of one width and pairs of sine and cosine"
            )
        crop = "window" if local_crop == "shared" else "own"
        views = [view for w in (0, 1) for view in (View(w), *(View(w, frames, crop) for frames in LOCAL))]
        self.plan = ClipPlan(windows=2, views=tuple(views))
        self.augment, self.options = augment, contrast
        self.first_difference, self.motion_color = first_difference, motion_color
        self.foreground, self.quantile, self.radius = foreground, foreground_quantile, radius
        self.local_weight, self.dense_weight = local_weight, dense_weight

        width = backbone.out_channels
        layers = head_layers(contrast.head, width, contrast.hidden, contrast.dim)
        self.online = Embedder(backbone, Projector(*layers))  # called part by part
        self.key_encoder = MomentumEncoder(self.online, contrast.momentum)
        self.into, self.out_of = nn.Linear(width, decoder.width), nn.Linear(decoder.width, width)
        self.decoder = Decoder(decoder)
        self.queue = Queue(contrast.dim, contrast.queue) if contrast.queue else None
        self.motion_queue = Queue(contrast.dim, contrast.motion_queue)
        self.dense_queue = Queue(contrast.dim, contrast.dense_queue)

    @property
    def backbone(self) -> nn.Module:
        return self.online.backbone

    def problems(self, clip_frames: int, frame_stride: int, crop_size: int) -> list[str]:
        time, space = self.backbone.strides
        problems, steps = [], len(LOCAL)
        if clip_frames // time != steps:
            problems.append(
                f"pretrain.clip_frames={clip_frames}: method=fima pairs each time step of the map with one of the two "
                f"local clips, head and tail, but this backbone makes {clip_frames // time} steps of {clip_frames} "
                f"frames; allowed: {steps * time}"
            )
        if frame_stride != steps:
            problems.append(
                f"pretrain.frame_stride={frame_stride}: method=fima needs {steps}, so that head and tail, clips of "
                "consecutive frames, hold just the frames behind the first and the second time step of the map"
            )
        if crop_size // space < 2:
            problems.append(
                f"pretrain.crop_size={crop_size}: method=fima tells foreground from background among the map's cells "
                f"and needs 2 x 2 of them or more; at least {2 * space}"
            )
        if not problems and self.first_difference == "drop":
            with torch.no_grad():
                made = self.backbone(next(self.parameters()).new_empty(2, 3, clip_frames - 1, crop_size, crop_size))
            if made.shape[2] != steps:
                problems.append(
                    f"method.first_difference=drop: {clip_frames - 1} frames give {made.shape[2]} steps of the map, "
                    f"not {steps}; allowed: wrap, zero, repeat"
                )
        return problems

    @torch.no_grad()
    def views(self, batch: Batch) -> FIMAViews:
        clips = batch.clips.float().div(255)
        left, _, _, right, _, _ = clips.unbind(dim=1)
        left_motion, left_head, left_tail, right_motion, right_head, right_tail = (
            motion_clip(clips, self.first_difference).unbind(dim=1)
        )  # fmt: skip
        rgb = [self.augment(clip) for clip in (left, right)]
        color = self.augment if self.motion_color == "augment" else lambda clip: 2 * clip - 1
        motions = (left_head, left_tail, right_head, right_tail, left_motion, right_motion)
        return FIMAViews(*rgb, *(color(clip) for clip in motions), batch.boxes[:, 0], batch.boxes[:, len(LOCAL) + 1])

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        clip = batch.clips[:, 0].float().div(255)
        return {"clip": clip, "motion": motion_clip(clip, self.first_difference)}

    def forward(self, views: FIMAViews) -> StepOutput:
        self.key_encoder.update(self.online)
        left = self.keys(views.left, views.left_motion, (views.left_head, views.left_tail))
        right = self.keys(views.right, views.right_motion, (views.right_head, views.right_tail))
        maps = torch.stack([self.backbone(views.left), self.backbone(views.right)])  # [2, B, C, t, h, w]

        masks, cells = zip(*(self.foreground_cells(keys.activation) for keys in (left, right)), strict=True)
        near = neighbors(views.left_box, views.right_box, *maps.shape[-2:], self.radius)
        near = near & masks[0][:, :, None] & masks[1][:, None, :]
        query, step, dense = self.predict(maps, torch.stack(cells))

        instance, instance_top1 = self.instance_loss(query, left.whole, right.whole)
        local, local_top1 = self.local_loss(step, left.local, right.local)
        dense = self.dense_loss(dense, (near, near.mT), cells, left.motion, right.motion)
        scalars = {
            "contrast_top1": instance_top1, "local_top1": local_top1, "instance_loss": instance, "local_loss": local,
            "dense_loss": dense, "matched_cells": near.sum(dim=(1, 2)).float().mean(),
        }  # fmt: skip
        loss = instance + self.local_weight * local + self.dense_weight * dense
        return StepOutput(loss, {name: value.detach() for name, value in scalars.items()})

    # -- keys and predictions

    @torch.no_grad()
    def keys(self, whole: Tensor, motion: Tensor, local: tuple[Tensor, ...]) -> Keys:
        """A pass for each clip, in the released order, which the twin's running statistics keep. Merging them would
        mix appearance and motion in the statistics of a batch."""
        key, appearance = self.encode(whole)
        cells, movement = self.encode(motion, dense=True)
        steps = [self.encode(clip)[0] for clip in local]
        chosen = {"both": appearance + movement, "rgb": appearance, "motion": movement}[self.foreground]
        cells = cells.unflatten(1, (len(LOCAL), -1))
        return Keys(key[:, 0], cells, torch.cat(steps, dim=1), distributed.local_rows(chosen))

    def encode(self, clip: Tensor, *, dense: bool = False) -> tuple[Tensor, Tensor]:
        """Keys of all ranks, unit float32 [N, 1, D], or [N, t h w, D] where dense, and activations [N, h w].

        Activations: the map's mean over channels and time, taken before ranks exchange anything.
        """

        def compute(clip: Tensor) -> tuple[Tensor, Tensor]:
            features = self.key_encoder.network.backbone(clip)
            tokens = cells_of(features) if dense else pooled(features)
            return unit(self.key_encoder.network.head(tokens)), features.float().mean(dim=(1, 2)).flatten(1)

        return across_ranks(compute, clip, shuffle=self.options.shuffle_bn)

    def foreground_cells(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """Cells above a quantile of their clip, the lower median as released: 24 of 49. [B, P] -> bool [B, P], and the
        places of all that can be, int64 [B, F]."""
        rank = int(self.quantile * (activation.shape[1] - 1))
        values, places = activation.topk(activation.shape[1] - rank, dim=1)
        return activation > values[:, -1:], places[:, :-1]

    def predict(self, maps: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Appearance maps [2, B, C, t, h, w] of left and right, foreground cells int64 [2, B, F] -> unit float32

        queries [2, B, D]: of left and right themselves;
        steps [2, B, t, D] and cells [2, B, t, F, D]: what left, looking at right, foretells of right's motion, and
        right of left's. Nothing passes between query cells, so those in the background can be left out.
        """
        sides, b, _, t, h, w = maps.shape
        tokens = self.into(cells_of(maps.flatten(0, 1))).view(sides * b * t, h * w, -1)
        tokens = tokens + positions(h * w, tokens.shape[-1], tokens.device).to(tokens.dtype)
        memory = tokens.view(sides, -1, *tokens.shape[1:]).flip(0).flatten(0, 1)
        places = cells.flatten(0, 1).repeat_interleave(t, dim=0)[:, :, None].expand(-1, -1, tokens.shape[-1])
        predicted = self.out_of(self.decoder(tokens.gather(1, places), memory)).unflatten(0, (sides, b, t))
        query = pooled(maps.flatten(0, 1)).view(sides, b, -1)
        return tuple(unit(self.online.head(part)) for part in (query, predicted[..., 0, :], predicted[..., 1:, :]))

    # -- losses

    def instance_loss(self, query: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """MoCo in both directions. query [2, B, D]; keys of all ranks [N, D]."""
        results = []
        for own, keys in zip(query, (right, left), strict=True):
            results.append(contrast_loss(own, keys, self.queue, self.options.temperature))
            if self.queue is not None and self.options.enqueue == "after_each_pass":
                self.queue.push(keys)
        if self.queue is not None and self.options.enqueue == "after_both":
            self.queue.push(right)
            self.queue.push(left)
        (first_loss, first, target), (second_loss, second, _) = results
        return (first_loss + second_loss) / 2, ((first + second).argmax(dim=1) == target).float().mean()

    def local_loss(self, step: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Find the local clip behind a step of the map. step [2, B, t, D]; keys of all ranks [N, t, D]."""
        logits, target = self.local_logits(step, left, right)
        if self.options.motion_queue:
            self.motion_queue.push(rank_major(right, left))
        return F.cross_entropy(logits, target), (logits.argmax(dim=1) == target).float().mean()

    def local_logits(self, step: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """[2 t B, 2 t N + K] and the column of the positive, [2 t B]: all terms in one product.

        Rows by (right, left), step, video; columns alike, then the queue. Negatives are the video's and all others'
        clips of other steps and windows; the same step of other videos is left out (-inf), as released.
        """
        keys = torch.stack([right, left]).transpose(1, 2)  # [2, t, N, D]
        if not self.options.gather_negatives:
            keys = keys.chunk(distributed.world(), dim=2)[distributed.rank()]
        sides, t, n, _ = keys.shape
        b = step.shape[1]
        rows = step.transpose(1, 2).flatten(0, 2) / self.options.temperature
        columns = torch.cat([keys.flatten(0, 2), self.motion_queue.keys])
        logits = (rows @ columns.T).float()
        group = torch.arange(sides * t, device=step.device)
        video = torch.arange(b, device=step.device) + (n > b) * distributed.rank() * b
        target = (group[:, None] * n + video).flatten()
        same = group.repeat_interleave(b)[:, None] == group.repeat_interleave(n)
        same = same & (torch.arange(sides * t * n, device=step.device) != target[:, None])
        return logits.masked_fill(F.pad(same, (0, len(self.motion_queue.keys))), -math.inf), target

    def dense_loss(
        self, query: Tensor, near: tuple[Tensor, ...], cells: tuple[Tensor, ...], left: Tensor, right: Tensor
    ) -> Tensor:
        """Both directions. query [2, B, t, F, D] at cells [B, F] of left, right; near [B, P, P] from left to right and
        back; keys of all ranks [N, t, P, D]."""
        losses = []
        for predicted, places, pairs, keys in zip(query, cells, near, (right, left), strict=True):
            own = distributed.local_rows(keys)
            negatives = torch.cat(
                [(keys if self.options.gather_negatives else own).flatten(0, 2), self.dense_queue.keys]
            )
            pairs = pairs.gather(1, places[:, :, None].expand(-1, -1, pairs.shape[2]))
            losses.append(dense_loss(predicted, own, negatives, pairs, self.options.dense_temperature))
        for keys in (right, left) if self.options.dense_queue else ():
            for step in keys.unbind(dim=1):
                self.dense_queue.push(step.flatten(0, 1))
        return torch.stack(losses).mean()


class Projector(nn.Sequential):
    """For pooled maps, cells and predictions alike: [..., width] -> [..., dim]. The release has 1 x 1 convolutions."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.flatten(0, -2)).view(*tokens.shape[:-1], -1)


class Decoder(nn.Module):
    """Cells of one clip look at those of the other, never at each other; a class token looks for the whole."""

    def __init__(self, options: DecoderOptions):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(options.width))
        first = DecoderLayer(options)
        self.layers = nn.ModuleList([first, *(deepcopy(first) for _ in range(options.layers - 1))])  # alike at first

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """query [B, F, width], memory [B, P, width] -> [B, 1 + F, width], the class token first."""
        x = torch.cat([self.token.expand(len(query), 1, -1), query], dim=1)
        for layer in self.layers:
            x = layer(x, memory)
        return x


class DecoderLayer(nn.Module):
    """Cross-attention and two linear layers, each on top of what it gets, normalized. The memory is not normalized."""

    def __init__(self, options: DecoderOptions):
        super().__init__()
        self.norm = nn.LayerNorm(options.width)
        self.attention = nn.MultiheadAttention(options.width, options.heads, options.dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(options.width), nn.Linear(options.width, options.hidden), nn.ReLU(),
            nn.Dropout(options.dropout), nn.Linear(options.hidden, options.width), nn.Dropout(options.dropout),
        )  # fmt: skip
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm(x), memory, memory, need_weights=False)[0])
        return x + self.feed_forward(x)


def positions(count: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of a cell's number, row by row, in turns. float32 [count, width]."""
    angle = torch.arange(count, device=device)[:, None] / 10000 ** (torch.arange(0, width, 2, device=device) / width)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def cells_of(features: Tensor) -> Tensor:
    """[B, C, t, h, w] -> [B, t h w, C]."""
    return features.flatten(2).transpose(1, 2)


def pooled(features: Tensor) -> Tensor:
    """[B, C, t, h, w] -> [B, 1, C]."""
    return features.mean(dim=(2, 3, 4))[:, None]


def rank_major(*keys: Tensor) -> Tensor:
    """Keys [N, t, D] of all ranks -> [keys * t * N, D], ordered by rank, key, step, video, as released."""
    stacked = torch.stack(keys).transpose(1, 2)  # [keys, t, N, D]
    return stacked.unflatten(2, (distributed.world(), -1)).permute(2, 0, 1, 3, 4).flatten(0, 3)


def neighbors(left_box: Tensor, right_box: Tensor, h: int, w: int, radius: float) -> Tensor:
    """Which cells of two crops lie close together in the frame. boxes float32 [B, 4] -> bool [B, h w, h w]."""
    return distances(left_box, right_box, h, w) < radius


def distances(left_box: Tensor, right_box: Tensor, h: int, w: int) -> Tensor:
    """From each cell of the left crop to each of the right, in diagonals of the larger one's cells. [B, h w, h w]."""
    (left, left_diagonal), (right, right_diagonal) = (cell_centers(box, h, w) for box in (left_box, right_box))
    apart = (left[:, :, None] - right[:, None]).square().sum(dim=3).sqrt()
    return apart / torch.maximum(left_diagonal, right_diagonal)[:, None, None]


def cell_centers(box: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """[B, 4] -> x, y of each cell's center [B, h w, 2], and a cell's diagonal [B]. Mirrored boxes have widths < 0."""
    x0, y0, x1, y1 = box[:, :, None].unbind(dim=1)
    width, height = (x1 - x0) / w, (y1 - y0) / h
    x = x0 + width * (torch.arange(w, device=box.device) + 0.5)  # [B, w]
    y = y0 + height * (torch.arange(h, device=box.device) + 0.5)
    grid = torch.stack([x[:, None].expand(-1, h, -1), y[:, :, None].expand(-1, -1, w)], dim=3)
    return grid.flatten(1, 2), torch.hypot(width, height)[:, 0]


def dense_loss(query: Tensor, keys: Tensor, negatives: Tensor, near: Tensor, temperature: float) -> Tensor:
    """-log of the share that a cell's matches have among all keys; mean over the cells of a video that have any, then
    over videos. 0 where nothing matches.

    query [B, t, F, D]; keys [B, t, P, D] of the same videos and steps; negatives [M, D], these keys among them;
    near bool [B, F, P]: what matches, at every step.
    """
    query = query / temperature
    every = (query.flatten(0, 2) @ negatives.T).float().logsumexp(dim=1).view(query.shape[:3])
    found = near.any(dim=2)  # [B, F]
    # again, not cut out of the product above, whose gradient would need a second matrix of that size
    matches = (query @ keys.mT).float().masked_fill((found[:, :, None] & ~near)[:, None], -math.inf).logsumexp(dim=3)
    cost = (every - matches).mean(dim=1) * found  # [B, F]
    per_video = cost.sum(dim=1) / found.sum(dim=1).clamp(min=1)
    return per_video.sum() / found.any(dim=1).sum().clamp(min=1)
