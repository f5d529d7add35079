"""Figures from logits and features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RANKS = (1, 5, 10, 20, 50)


def accuracy(scores: Tensor, label: Tensor, ranks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of videos whose class is among the k highest scores, in percent. scores [N, C], label int64 [N].

    class_top1: the mean of the classes' own shares, over the classes that have videos.
    """
    hit = best(scores, max(ranks)) == label[:, None]
    found = {f"top{k}": 100 * hit[:, :k].any(dim=1).double().mean().item() for k in ranks}
    videos = label.bincount()
    right = label[hit[:, 0]].bincount(minlength=len(videos))
    return found | {"class_top1": 100 * (right / videos.double())[videos > 0].mean().item()}


def best(scores: Tensor, count: int = 5) -> Tensor:
    """The classes with the highest scores, highest first: int64 [N, count]. All figures ask here, for the same ties."""
    return scores.topk(min(count, scores.shape[1]), dim=1).indices


def hits(scores: Tensor, label: Tensor) -> Tensor:
    """Of each video, 100 where its class has the highest score, else 0: float64 [N], for `interval`."""
    return 100.0 * (best(scores)[:, 0] == label).double()


def confusions(scores: Tensor, label: Tensor) -> Tensor:
    """How many videos of each class were told to be of each. scores [N, classes], label [N] -> int64 [true, told]."""
    count = scores.shape[1]
    return (label * count + best(scores)[:, 0]).bincount(minlength=count * count).view(count, count)


class ClassRow(NamedTuple):
    """How the videos of one class fared."""

    name: str
    videos: int
    top1: float | None  # percent; None without videos
    confused_with: str  # the class that was most often told instead; empty if none was
    confused: int  # how often


def class_rows(scores: Tensor, label: Tensor, classes: Sequence[str]) -> list[ClassRow]:
    """A row for each class. scores [N, classes], label int64 [N]."""
    table, rows = confusions(scores, label), []
    for number, (name, row) in enumerate(zip(classes, table, strict=True)):
        videos, right = int(row.sum()), int(row[number])
        wrong = row.clone()
        wrong[number] = 0
        other = int(wrong.argmax())
        most = int(wrong[other])
        share = 100 * right / videos if videos else None
        rows.append(ClassRow(name, videos, share, classes[other] if most else "", most))
    return rows


def recall(
    queries: Tensor, query_label: Tensor, gallery: Tensor, gallery_label: Tensor, *, centered: bool
) -> dict[str, float]:
    """Share of queries with at least one video of their class among the k nearest of the gallery, in percent.

    queries [N, D], gallery [M, D]. centered: each set's own mean is taken away first. Cosine similarity.
    """
    return recalls(found_by(queries, query_label, gallery, gallery_label, centered=centered))


def recalls(found: dict[int, Tensor]) -> dict[str, float]:
    """The figures of what `found_by` tells of each query."""
    return {f"R@{k}": 100 * each.mean().item() for k, each in found.items()}


def found_by(
    queries: Tensor, query_label: Tensor, gallery: Tensor, gallery_label: Tensor, *, centered: bool
) -> dict[int, Tensor]:
    """k -> of each query 1 if a video of its class is among its k nearest, else 0: float64 [N]."""
    near = nearest(queries, gallery, max(RANKS), centered=centered)
    hit = gallery_label[near] == query_label[:, None]
    return {k: hit[:, :k].any(dim=1).double() for k in RANKS}


def nearest(queries: Tensor, gallery: Tensor, count: int, *, centered: bool) -> Tensor:
    """Places of the most similar gallery videos, most similar first. int64 [N, count]."""
    queries, gallery = (unit(part, centered=centered) for part in (queries, gallery))
    return torch.cat([(q @ gallery.T).topk(min(count, len(gallery)), dim=1).indices for q in queries.split(1024)])


def unit(features: Tensor, *, centered: bool) -> Tensor:
    if centered:
        features = features - features.mean(dim=0)
    return F.normalize(features, dim=1)


def knn(queries: Tensor, gallery: Tensor, gallery_label: Tensor, classes: int, *, k: int, temperature: float) -> Tensor:
    """Class scores by the k nearest, each with weight exp(cosine / temperature), both centered by the gallery's mean.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4.
    -> [N, classes].
    """
    center = gallery.mean(dim=0)
    gallery, queries = F.normalize(gallery - center, dim=1), F.normalize(queries - center, dim=1)
    scores = []
    for part in queries.split(1024):
        similarity, near = (part @ gallery.T).topk(min(k, len(gallery)), dim=1)
        weight = (similarity / temperature).exp()
        scores.append(weight.new_zeros(len(part), classes).scatter_add_(1, gallery_label[near], weight))
    return torch.cat(scores)


def motion_preference(original: Tensor, same_motion: Tensor, same_background: Tensor) -> float:
    """Of videos, the percentage that lie nearer to the same motion on another background than to another motion on
    the same background. All [N, D]; cosine. 0: only the background counts; 100: only the motion."""
    return prefers_motion(original, same_motion, same_background).mean().item()


def prefers_motion(original: Tensor, same_motion: Tensor, same_background: Tensor) -> Tensor:
    """The same of each video, 100.0 or 0.0. -> float64 [N]."""
    prefers = F.cosine_similarity(original, same_motion) > F.cosine_similarity(original, same_background)
    return 100 * prefers.double()


def interval(values: Tensor, *, seed: int, resamples: int = 2000, share: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a mean over videos, by the percentile bootstrap: videos are drawn anew, with replacement.

    values [N]: one of each video, such as 100 where it was told right and 0 where not. Efron, "Bootstrap Methods",
    Annals of Statistics 7 (1979).
    """
    generator = torch.Generator().manual_seed(seed)
    values = values.double()
    draws = (torch.randint(len(values), (len(values),), generator=generator) for _ in range(resamples))
    means = torch.stack([values[drawn].mean() for drawn in draws])
    low, high = means.quantile(torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.double)).tolist()
    return low, high


def bounds(name: str, values: Tensor, seed: int) -> dict[str, float]:
    """The interval as figures, NAME_low and NAME_high."""
    low, high = interval(values, seed=seed)
    return {f"{name}_low": low, f"{name}_high": high}
