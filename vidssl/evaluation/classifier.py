"""A classifier on a backbone, as fine-tuning and the linear probe train it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.clips import Batch, ClipPlan, View
from vidssl.learner import Learner, StepOutput


class Labelled(NamedTuple):
    input: Tensor  # clip float32 [B, 3, T, S, S], or features [B, C] where these were made before
    label: Tensor  # int64 [B]


class Classifier(Learner):
    """Backbone, average pool, dropout, linear layer; cross entropy.

    frozen: the backbone stays as it is, in evaluation mode, and gets no gradient. unit: pooled features are scaled to
    length 1 before the layer. The layer starts with spread 0.01 and bias 0.
    """

    plan = ClipPlan(windows=1, views=(View(0),))

    def __init__(
        self,
        backbone: nn.Module,
        augment: Callable[[Tensor], Tensor],
        classes: int,
        *,
        dropout: float,
        frozen: bool,
        unit: bool,
    ):
        super().__init__()
        self.backbone, self.augment, self.frozen, self.unit = backbone, augment, frozen, unit
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.out_channels, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        backbone.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    @torch.no_grad()
    def views(self, batch: Batch) -> Labelled:
        clip = batch.clips[:, 0].float().div(255)
        return Labelled(self.augment(clip), batch.label)

    def forward(self, views: Labelled) -> StepOutput:
        logits = self.logits(views.input)
        hit = (logits.argmax(dim=1) == views.label).float().mean()
        return StepOutput(F.cross_entropy(logits, views.label), {"train_top1": 100 * hit.detach()})

    def logits(self, clip: Tensor) -> Tensor:
        """clip [B, 3, T, S, S] -> float32 [B, classes]."""
        return self.read(self.backbone(clip))

    def read(self, feature_map: Tensor) -> Tensor:
        """What the layers behind the backbone make of its map [B, C, t, h, w]: float32 [B, classes]."""
        return self.head(self.dropout(average(feature_map, unit=self.unit))).float()


class MapClassifier(Classifier):
    """The classifier of BE's release on I3D and S3D-G, to score its files: means over space and over neighboring map
    frames, a convolution over time, the mean of what it says.

    weight [classes, C, k].
    """

    def __init__(
        self,
        backbone: nn.Module,
        augment: Callable[[Tensor], Tensor],
        weight: Tensor,
    ):
        classes, width, size = weight.shape
        super().__init__(backbone, augment, classes, dropout=0.0, frozen=True, unit=False)
        self.head = nn.Conv1d(width, classes, size, padding=size // 2)

    def read(self, feature_map: Tensor) -> Tensor:
        frames = feature_map.mean(dim=(3, 4))  # [B, C, t]
        pairs = F.avg_pool1d(frames, min(2, frames.shape[2]), stride=1)
        return self.head(pairs).mean(dim=2).float()


def restored(
    backbone: nn.Module, augment: Callable[[Tensor], Tensor], layer: dict[str, Tensor], *, unit: bool
) -> Classifier:
    """A frozen classifier with the last layer of a checkpoint: weight [classes, C] or [classes, C, k], bias."""
    if layer["weight"].ndim == 3:
        classifier: Classifier = MapClassifier(backbone, augment, layer["weight"])
    else:
        classes = len(layer["weight"])
        classifier = Classifier(backbone, augment, classes, dropout=0.0, frozen=True, unit=unit)
    classifier.head.load_state_dict(layer)
    return classifier


class Probe(Learner):
    """The linear layer alone, on features that were extracted before."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.head = head
        self.backbone = nn.Identity()

    @torch.no_grad()
    def views(self, batch: Batch) -> Labelled:
        return Labelled(batch.clips, batch.label)

    def forward(self, views: Labelled) -> StepOutput:
        logits = self.head(views.input)
        hit = (logits.argmax(dim=1) == views.label).float().mean()
        return StepOutput(F.cross_entropy(logits, views.label), {"train_top1": 100 * hit.detach()})


class Probes(Learner):
    """Copies of one linear layer, each to be trained with a learning rate of its own, in one product.

    Their losses are added, so that each copy gets the gradient that it would get alone.
    """

    def __init__(self, head: nn.Linear, rates: Sequence[float]):
        super().__init__()
        self.rates = rates
        self.weights = nn.ParameterList(head.weight.detach().clone() for _ in rates)
        self.biases = nn.ParameterList(head.bias.detach().clone() for _ in rates)
        self.backbone = nn.Identity()

    def groups(self) -> list[dict[str, Any]]:
        """For the optimizer."""
        pairs = zip(self.weights, self.biases, self.rates, strict=True)
        return [{"params": [weight, bias], "lr": rate} for weight, bias, rate in pairs]

    def logits(self, features: Tensor) -> Tensor:
        """[B, C] -> [B, rates, classes]."""
        every = F.linear(features, torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        return every.view(len(features), len(self.rates), -1)

    @torch.no_grad()
    def views(self, batch: Batch) -> Labelled:
        return Labelled(batch.clips, batch.label)

    def forward(self, views: Labelled) -> StepOutput:
        losses = [F.cross_entropy(logits, views.label) for logits in self.logits(views.input).unbind(dim=1)]
        scalars = {f"loss@{rate:g}": loss.detach() for rate, loss in zip(self.rates, losses, strict=True)}
        return StepOutput(torch.stack(losses).sum(), scalars)


def pooled(backbone: nn.Module, clip: Tensor, *, unit: bool) -> Tensor:
    """The mean of a backbone's map over time and space, [B, C]."""
    return average(backbone(clip), unit=unit)


def average(feature_map: Tensor, *, unit: bool) -> Tensor:
    """[B, C, t, h, w] -> [B, C], of length 1 if unit."""
    features = feature_map.mean(dim=(2, 3, 4))
    return F.normalize(features, dim=1) if unit else features
