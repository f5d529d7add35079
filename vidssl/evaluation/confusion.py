"""Which classes a classifier takes for which."""

from __future__ import annotations

from torch import Tensor

from vidssl.evaluation.metrics import confusions


def confusion(scores: Tensor, label: Tensor) -> Tensor:
    """Of each class the share of its videos by the class with the highest score.

    scores [N, classes], label int64 [N] -> float64 [classes, classes]; a row sums to 1, or to 0 without videos.
    """
    count = confusions(scores, label).double()
    return count / count.sum(dim=1, keepdim=True).clamp(min=1)


def most_confused(shares: Tensor, count: int) -> list[tuple[int, int, float]]:
    """The largest shares off the diagonal, largest first: true class, other class, share; none that is 0."""
    off = shares.clone().fill_diagonal_(0)
    best = off.flatten().topk(min(count, off.numel()))
    found = ((int(place) // len(off), int(place) % len(off), float(share)) for share, place in zip(*best, strict=True))
    return [each for each in found if each[2] > 0]
