"""Clips that are turned and flipped, for pretext tasks. The types and their order are those of BE's release and of its
predecessors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

Turn = Callable[[Tensor], Tensor]  # of clips [B, 3, T, S, S], H pointing down


def flip(*axes: int) -> Turn:
    return lambda clip: clip.flip(axes)


def chain(*turns: Turn) -> Turn:
    """One after the other, the first first."""
    return lambda clip: reduce(lambda turned, turn: turn(turned), turns, clip)


def left(clip: Tensor) -> Tensor:
    """A quarter turn counter-clockwise."""
    return clip.transpose(3, 4).flip(3)


def right(clip: Tensor) -> Tensor:
    return clip.transpose(3, 4).flip(4)


SAME, TIME, UPSIDE_DOWN, MIRROR, HALF = flip(), flip(2), flip(3), flip(4), flip(3, 4)
ROTATIONS = (SAME, left, HALF, right)
TURNS: dict[str, tuple[Turn, ...]] = {
    "rotation4": ROTATIONS,
    "flip8": (UPSIDE_DOWN, MIRROR, left, HALF, right, chain(UPSIDE_DOWN, left), chain(MIRROR, left), SAME),
    "temporal16": tuple(chain(f, r) for f in (SAME, MIRROR, TIME, chain(MIRROR, TIME)) for r in ROTATIONS),
    "temporal16_released": 4 * ROTATIONS,  # the published code loses the flip: four turns under sixteen names
}


def turned(clip: Tensor, turns: Sequence[Turn]) -> Tensor:
    """Every clip in every turn, turn by turn. [B, 3, T, S, S] -> [turns * B, 3, T, S, S]."""
    return torch.cat([turn(clip) for turn in turns])
