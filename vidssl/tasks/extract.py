"""Features of a data set, as a file for work elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vidssl import build
from vidssl.build import Augmentation, ClipOptions, Run
from vidssl.engine.checkpoint import write_atomically
from vidssl.evaluation.classifier import pooled
from vidssl.registry import PositiveInt
from vidssl.tasks import TASKS, Task
from vidssl.tasks.costs import Cost, Costs


@TASKS.register("extract")
@dataclass(frozen=True, kw_only=True)
class Extract(ClipOptions, Task):
    """features-SPLIT.safetensors: features float32 [N, C], or [N, V, C] of each clip; label, index int64 [N].

    index: place in the manifest, in whose order the videos are, once each; label: -1 where the data set has none. The
    header says, as JSON: paths and classes, backbone, checkpoint, clips.
    """

    clips: PositiveInt
    augmentation: Augmentation
    batch_size: PositiveInt
    splits: tuple[Literal["train", "test", "test_swap", "test_cf"], ...]
    per: Literal["video", "clip"]
    unit: bool

    starts_from = "backbone"

    def problems(self) -> list[str]:
        if not self.splits or len(set(self.splits)) < len(self.splits):
            return [f"extract.splits={list(self.splits)}: each split once, one or more, such as [train,test]"]
        return []

    def estimate(self, name: str, costs: Costs) -> Cost:
        line, flops = costs.scoring(self, self.clips, self.splits)
        width = costs.backbone().out_channels * (self.clips if self.per == "clip" else 1)
        files = {}
        for split in self.splits:
            paths = [len(video.path) + 6 for video in costs.listing(split).videos]  # in quotes, which are escaped
            files[f"features-{split}.safetensors"] = sum(paths) + len(paths) * (4 * width + 16)
        return Cost([f"{name}: {line}"], flops, files)

    def __call__(self, run: Run) -> dict[str, float]:
        backbone = build.backbone(run).to(run.device).eval()
        return {f"{split}_videos": float(self.extract(run, backbone, split)) for split in self.splits}

    def extract(self, run: Run, backbone: nn.Module, split: str) -> int:
        """How many videos were written."""
        found = build.features(
            run, lambda clip: pooled(backbone, clip, unit=self.unit), self, self.clips, self.augmentation,
            self.batch_size, split, average=self.per == "video",
        )  # fmt: skip
        if run.log.is_main:
            file = run.output / f"features-{split}.safetensors"
            write_features(file, found, self.about(run, split, found["index"].tolist()))
            run.log.say(f"{file.name}: features {list(found['value'].shape)}, {file.stat().st_size / 1e6:.1f} MB")
        return len(found["index"])

    def rehearse(self, run: Run) -> None:
        row = {"value": torch.zeros(1, 1), "label": torch.zeros(1).long(), "index": torch.zeros(1).long()}
        file = run.output / ".rehearsal.safetensors"
        for split in self.splits:
            if not build.listing(run, split).recipes:
                try:
                    write_features(file, row, self.about(run, split, [0]))
                finally:
                    file.unlink(missing_ok=True)

    def about(self, run: Run, split: str, index: Sequence[int]) -> dict[str, Any]:
        videos = build.manifest(run, split, self.clip_frames * self.frame_stride, training=False)
        return {
            "paths": [videos.videos[number].path for number in index],
            "classes": list(videos.classes),
            "backbone": run.config["backbone"],
            "checkpoint": run.checkpoint,
            "dataset": run.config["dataset"],
            "split": split,
            "extract": asdict(self),
        }


def write_features(file: Path, found: dict[str, Tensor], about: dict[str, Any]) -> None:
    tensors = {"features": found["value"].contiguous(), "label": found["label"], "index": found["index"]}
    metadata = {"format": "pt"} | {name: json.dumps(value) for name, value in about.items()}
    write_atomically(file, lambda unfinished: save_file(tensors, unfinished, metadata))
