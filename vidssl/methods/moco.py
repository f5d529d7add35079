"""MoCo for video: the baseline under FAME and the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vidssl.clips import Batch, ClipPlan, View
from vidssl.engine import distributed
from vidssl.learner import Learner, StepOutput
from vidssl.methods.contrast import (
    METHODS,
    ContrastOptions,
    Embedder,
    MomentumEncoder,
    Queue,
    contrast_loss,
    embed,
    projector,
)


class Pair(NamedTuple):
    """Two clips of each video, augmented and normalized."""

    left: Tensor  # float32 [B, 3, T, S, S]
    right: Tensor  # same


@METHODS.register("moco")
class MoCo(Learner):
    """Two clips of one video attract; clips of other videos, kept in a queue, repel.

    He et al., CVPR 2020 (arXiv:1911.05722), algorithm 1, in the form of the FAME release: both clips are query once.
    """

    plan = ClipPlan(windows=2, views=(View(0), View(1)))

    def __init__(self, backbone: nn.Module, augment: Callable[[Tensor], Tensor], *, contrast: ContrastOptions):
        super().__init__()
        self.augment, self.options = augment, contrast
        self.online = Embedder(backbone, projector(backbone.out_channels, contrast))
        self.key_encoder = MomentumEncoder(self.online, contrast.momentum) if contrast.momentum > 0 else None
        self.queue = Queue(contrast.dim, contrast.queue) if contrast.queue > 0 else None

    @property
    def backbone(self) -> nn.Module:
        return self.online.backbone

    @torch.no_grad()
    def views(self, batch: Batch) -> Pair:
        left, right = self.mix(*batch.clips.float().div(255).unbind(dim=1))
        return Pair(self.augment(left), self.augment(right))

    def mix(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Where FAME swaps backgrounds; plain MoCo leaves the clips alone."""
        return left, right

    def forward(self, views: Pair) -> StepOutput:
        losses, logits, targets = zip(*self.contrast(views), strict=True)
        hit = (torch.stack(logits).mean(0).argmax(dim=1) == targets[0]).float().mean()
        return StepOutput(torch.stack(losses).mean(), {"contrast_top1": hit})

    def contrast(self, views: Pair) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Loss [], logits [B, 1 + K] (or [B, B * ranks] without a queue) and targets [B], of one or two passes."""
        if self.key_encoder is not None:
            self.key_encoder.update(self.online)
        passes = [(views.left, views.right), (views.right, views.left)][: 1 + self.options.symmetric]
        queries = [embed(self.online, query) for query, _ in passes]
        results, pushed = [], []
        for turn, (query, (_, key_clip)) in enumerate(zip(queries, passes, strict=True)):
            keys = self.keys(key_clip, queries, turn)
            results.append(contrast_loss(query, keys, self.queue, self.options.temperature))
            if self.queue is None:
                continue
            pushed.append(keys)
            if self.options.enqueue == "after_each_pass":
                self.queue.push(pushed.pop())
        for keys in pushed:
            self.queue.push(keys)
        return results

    def keys(self, clip: Tensor, queries: list[Tensor], turn: int) -> Tensor:
        """Unit keys of all ranks, [B * ranks, D], without gradient."""
        if self.key_encoder is not None:
            return self.key_encoder(clip, shuffle=self.options.shuffle_bn)
        if len(queries) == 2:  # no twin: the other pass has embedded this clip already
            return distributed.gather(queries[1 - turn])
        with torch.no_grad():
            return distributed.gather(embed(self.online, clip))
