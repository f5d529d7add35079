"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import nn

from vidssl.registry import NonNegativeFloat, PositiveFloat, Registry, UnitInterval, Within

OPTIMIZERS = Registry("optimizer", "vidssl.engine.optim")
SCHEDULES = Registry("schedule", "vidssl.engine.optim")

BelowOne = Annotated[float, Within("[0, 1)")]


@OPTIMIZERS.register("sgd")
def sgd(
    parameters: Iterable[nn.Parameter], *, lr: PositiveFloat, momentum: BelowOne, weight_decay: NonNegativeFloat
) -> torch.optim.SGD:
    """SGD with weight decay on all parameters, batch norm and biases included, as in the papers' releases."""
    parameters = list(parameters)
    fused = _fused(parameters)
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)


@OPTIMIZERS.register("adamw")
def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: PositiveFloat,
    betas: tuple[BelowOne, BelowOne],
    weight_decay: NonNegativeFloat,
) -> torch.optim.AdamW:
    """AdamW with weight decay on all parameters. Loshchilov and Hutter, ICLR 2019 (arXiv:1711.05101)."""
    parameters = list(parameters)
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=_fused(parameters))


def _fused(parameters: list[nn.Parameter] | list[dict[str, Any]]) -> bool | None:
    """Value of an optimizer's `fused`: True if all parameters are on GPUs, else None, PyTorch's default.

    parameters: those of one group, or parameter groups.
    """
    groups = [group["params"] if isinstance(group, dict) else [group] for group in parameters]
    return all(parameter.is_cuda for group in groups for parameter in group) or None


class Schedule(Protocol):
    """Learning rate over a training, relative to the base rate."""

    def factor(self, epoch: float, epochs: float) -> float:
        """Factor of the base learning rate, in [0, 1]. epoch: position in the training, in [0, epochs]."""


class Warmup:
    """Linear warm-up from `warmup_from` times the base rate over the first epochs; common to all schedules.

    every: whether the rate changes once per epoch, as in the papers' releases, or at every step.
    """

    def __init__(self, *, warmup_epochs: NonNegativeFloat, warmup_from: UnitInterval, every: Literal["epoch", "step"]):
        self.warmup_epochs, self.warmup_from, self.every = warmup_epochs, warmup_from, every

    def factor(self, epoch: float, epochs: float) -> float:
        epoch = math.floor(epoch) if self.every == "epoch" else epoch
        if epoch < self.warmup_epochs:
            return self.warmup_from + (1 - self.warmup_from) * epoch / self.warmup_epochs
        return self.after_warmup(epoch, epochs)

    def after_warmup(self, epoch: float, epochs: float) -> float:
        raise NotImplementedError


@SCHEDULES.register("constant")
class Constant(Warmup):
    """Base learning rate until the end."""

    def after_warmup(self, epoch: float, epochs: float) -> float:
        return 1.0


@SCHEDULES.register("cosine")
class Cosine(Warmup):
    """Half a cosine period from 1 to 0. Loshchilov and Hutter, ICLR 2017 (arXiv:1608.03983), without restarts."""

    def after_warmup(self, epoch: float, epochs: float) -> float:
        progress = (epoch - self.warmup_epochs) / max(1e-9, epochs - self.warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@SCHEDULES.register("steps")
class Steps(Warmup):
    """Learning rate multiplied by `decay` at each milestone, in epochs."""

    def __init__(
        self,
        *,
        milestones: list[NonNegativeFloat],
        decay: UnitInterval,
        warmup_epochs: NonNegativeFloat,
        warmup_from: UnitInterval,
        every: Literal["epoch", "step"],
    ):
        super().__init__(warmup_epochs=warmup_epochs, warmup_from=warmup_from, every=every)
        self.milestones, self.decay = milestones, decay

    def after_warmup(self, epoch: float, epochs: float) -> float:
        return self.decay ** sum(milestone <= epoch for milestone in self.milestones)
