"""How much features follow the background and how much the motion, from what they are of changed clips."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vidssl.evaluation.metrics import bounds, hits, prefers_motion

# What is shown in place of a test video's clips. The first is the video itself; `before_own` and `other_motion` have no
# accuracy: the one is there to be compared with, the other has a class of its own
CHANGES = {
    "original": "the clips as they are",
    "other_background": "its foreground before the still background of a video of another class",
    "no_foreground": "every pixel that the foreground covers at any time painted with the mean color of the others",
    "frozen": "the middle frame, repeated",
    "reversed": "played backwards",
    "shuffled": "frames in random order",
    "before_own": "its foreground before its own still background",
    "other_motion": "the foreground of a video of another class before its own still background",
}
SCORED = tuple(name for name in CHANGES if name not in ("before_own", "other_motion"))


def likeness(features: Tensor, changed: Tensor, other: Tensor) -> Tensor:
    """How much of a video's features a change leaves, [N]: 1 all, 0 no more than another video has of them.

    features, changed, other [N, D]: of the videos, of the same changed, of others. Cosines, measured from the mean
    cosine of different videos, so that networks whose features all lie close together compare with others.
    """
    apart = F.cosine_similarity(features, other).mean()
    return (F.cosine_similarity(features, changed) - apart) / (1 - apart).clamp(min=1e-6)


def with_interval(name: str, values: Tensor, seed: int) -> dict[str, float]:
    """The mean of values [N] as NAME, with its confidence interval as NAME_low and NAME_high."""
    return {name: values.mean().item(), **bounds(name, values, seed)}


def chance(label: Tensor) -> float:
    """Accuracy, in percent, of always telling the most frequent class."""
    return 100 * label.unique(return_counts=True)[1].max().item() / len(label)


def figures_of(found: dict[str, Tensor], other: Tensor, *, seed: int) -> dict[str, float]:
    """All figures from what `found` holds of N videos.

    label int64 [N], -1 without one; CHANGE.features float32 [N, D] for all changes; CHANGE.scores [N, classes] for the
    scored ones, where there is a classifier. other int64 [N]: the place of another video, for each.
    """
    features = {name: found[f"{name}.features"] for name in CHANGES}
    preference = prefers_motion(features["before_own"], features["other_background"], features["other_motion"])
    result = with_interval("masked_motion_preference", preference, seed)
    if "original.scores" in found:
        result["chance"] = chance(found["label"])
        for name in SCORED:
            told = with_interval(_named(name, "top1"), hits(found[f"{name}.scores"], found["label"]), seed)
            result |= told
    for name in SCORED[1:]:
        left = likeness(features["original"], features[name], features["original"][other])
        result[_named(name, "likeness")] = left.mean().item()
    for name, pair in (("same_motion", "other_background"), ("same_background", "other_motion")):
        left = likeness(features["before_own"], features[pair], features["before_own"][other])
        result[f"{name}_likeness"] = left.mean().item()
    return result


def _named(change: str, figure: str) -> str:
    return figure if change == "original" else f"{change}_{figure}"
