"""A trained network for use from Python, without a configuration: vidssl.load."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidssl.backbones.blocks import BACKBONES
from vidssl.build import read_weights
from vidssl.clips import ClipPlan
from vidssl.data.dataset import ClipDataset
from vidssl.data.manifest import single
from vidssl.data.spatial import Center
from vidssl.data.video import VideoError
from vidssl.engine.checkpoint import load_backbone
from vidssl.evaluation.classifier import pooled
from vidssl.registry import ConfigError


@dataclass(frozen=True)
class ClipFormat:
    """The clips that a network was trained on."""

    clip_frames: int = 16
    frame_stride: int = 2
    crop_size: int = 112
    mean: tuple[float, ...] = (0.43216, 0.394666, 0.37645)  # of Kinetics, as the papers' releases normalize
    std: tuple[float, ...] = (0.22803, 0.22145, 0.216989)

    @classmethod
    def of(cls, section: dict[str, Any], saved: dict[str, Any]) -> ClipFormat:
        """What the file says, and for what it does not say the papers' recipe: 16 x 2 frames of 112, I3D of 224."""
        default = cls(crop_size=224 if section["name"] == "i3d" else 112)
        return replace(default, **{name: saved[name] for name in vars(default) if name in saved})


class Pretrained(nn.Module):
    """A backbone with the format of its clips.

    clip [B, 3, T, S, S], uint8 or float32 in [0, 1] -> features float32 [B, C]: the mean of the feature map.
    """

    def __init__(self, backbone: nn.Module, clip: ClipFormat):
        super().__init__()
        self.backbone, self.clip = backbone, clip
        self.clip_frames, self.frame_stride, self.crop_size = clip.clip_frames, clip.frame_stride, clip.crop_size
        self.register_buffer("mean", torch.tensor(clip.mean).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(clip.std).view(3, 1, 1, 1), persistent=False)

    def forward(self, clip: Tensor) -> Tensor:
        clip = clip.float().div(255) if clip.dtype == torch.uint8 else clip
        return pooled(self.backbone, (clip - self.mean) / self.std, unit=False)

    @torch.no_grad()
    def features(self, video: str | os.PathLike[str], clips: int = 10) -> Tensor:
        """Features of a video file, float32 [C]: the mean over evenly spread clips, as `retrieve` and `knn` take them.

        Raises VideoError if it cannot be read. A video shorter than a clip is repeated.
        """
        dataset = ClipDataset(
            single(Path(video).expanduser()), ClipPlan.uniform(clips), Center(resize_short="auto", antialias=True),
            self.clip_frames, self.frame_stride, self.crop_size, seed=0, replace=False,
        )  # fmt: skip
        item = dataset[0, 0]
        if item.failures:
            raise VideoError(item.failures[0][1])
        return self(item.clips.to(self.mean.device)).mean(dim=0)


def load(path: str | os.PathLike[str], **clip: Any) -> Pretrained:
    """The network of a run's folder, a state, a backbone.safetensors or a released file, in evaluation mode.

    clip: fields of ClipFormat in place of those that the file says. Raises ConfigError if it is no such file.
    """
    weights = read_weights(str(path))
    if weights.section is None:
        raise ConfigError(f"{path}: its weights ({weights.layout}) fit no backbone of this package")
    backbone = BACKBONES.build(weights.section)
    load_backbone(weights, backbone)
    fields = ClipFormat.__dataclass_fields__
    for name in clip:
        if name not in fields:
            raise ConfigError(f"{name}: no field of a clip's format; there are {', '.join(fields)}")
    return Pretrained(backbone, ClipFormat.of(weights.section, {**weights.clip, **clip})).eval()
