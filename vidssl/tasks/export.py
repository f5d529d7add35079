"""Write a network for use elsewhere, and prove that what was written answers the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidssl import build
from vidssl.backbones.blocks import BACKBONES
from vidssl.build import Augmentation, Run
from vidssl.engine.checkpoint import clip_format, load_backbone, load_weights, save_backbone, write_atomically
from vidssl.evaluation.classifier import Classifier
from vidssl.registry import PositiveInt
from vidssl.tasks import TASKS, Task
from vidssl.tasks.costs import Cost, Costs, weights_bytes

CLOSE = 1e-4  # largest difference that a program may show, as a share of the largest value


@TASKS.register("export")
@dataclass(frozen=True)
class Export(Task):
    """backbone.safetensors, backbone.pt2 and, where the checkpoint has one, classifier.pt2.

    The .pt2 files are programs of torch.export, which need torch but nothing of this package: clips float32
    [B, 3, T, S, S], normalized, any B -> map [B, C, t, h, w], or logits [B, classes]. T and S are fixed; they and the
    mean and spread of the normalization are in the file itself, as vidssl.json among its extra files.
    """

    clip_frames: PositiveInt
    crop_size: PositiveInt
    augmentation: Augmentation

    starts_from = "backbone"

    def estimate(self, name: str, costs: Costs) -> Cost:
        size = weights_bytes(costs.backbone())
        return Cost([name], files={"backbone.safetensors": size, "backbone.pt2": size})

    def __call__(self, run: Run) -> dict[str, float]:
        if not run.log.is_main:
            return {}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return self.export(run)

    def export(self, run: Run) -> dict[str, float]:
        backbone = build.backbone(run).eval()
        color = build.color(run, self.augmentation).cpu()
        torch.manual_seed(run.seed)
        clips = color(torch.rand(3, 3, self.clip_frames, self.crop_size, self.crop_size))
        figures = {"largest_difference": 0.0, "parameters": float(sum(p.numel() for p in backbone.parameters()))}

        file = run.output / "backbone.safetensors"
        save_backbone(file, backbone, run.config["backbone"], clip_format(run.config["export"]))
        again = BACKBONES.build(run.config["backbone"]).eval()
        load_backbone(load_weights(file), again)
        self.compare(run, figures, file, again(clips), backbone(clips))

        mean, std = ([round(number, 6) for number in each.flatten().tolist()] for each in (color.mean, color.std))
        about = {"clip": list(clips.shape[1:]), "mean": mean, "std": std, "backbone": run.config["backbone"]}
        run.log.say(f"programs take clips [B, {str(about['clip'])[1:]}, ([0, 1] - {mean}) / {std}")
        networks: dict[str, nn.Module] = {"backbone": backbone}
        classifier = build.classifier(run, backbone)
        if classifier is not None:
            networks["classifier"] = Logits(classifier).eval()
        for name, network in networks.items():
            file = run.output / f"{name}.pt2"
            save_program(file, network, clips[:2], about)
            self.compare(run, figures, file, load_program(file)(clips), network(clips))
        return figures

    def compare(self, run: Run, figures: dict[str, float], file: Path, found: Tensor, wanted: Tensor) -> None:
        """Note size and difference. Raises RuntimeError if what was read back answers differently."""
        difference = (found - wanted).abs().max().item()
        megabytes = file.stat().st_size / 1e6
        run.log.say(f"{file.name}: {megabytes:.1f} MB, read back, largest difference {difference:.1e}")
        largest = wanted.abs().max().item()
        if not difference <= CLOSE * largest:  # also if it is not a number
            file.unlink()
            raise RuntimeError(
                f"{file}: answers differ by {difference:.1e} from those of the network, whose largest is "
                f"{largest:.1e}; removed it"
            )
        figures["largest_difference"] = max(figures["largest_difference"], difference)
        figures[f"{file.name.replace('.', '_')}_megabytes"] = round(megabytes, 3)


class Logits(nn.Module):
    """A classifier as a plain network: clips -> logits."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, clips: Tensor) -> Tensor:
        return self.classifier.logits(clips)


def save_program(path: Path, network: nn.Module, clips: Tensor, about: dict[str, Any]) -> None:
    """The network, for any number of clips of this size, as a program of torch.export."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (clips,), dynamic_shapes=({0: batch},))

    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as file:
            torch.export.save(program, file, extra_files={"vidssl.json": json.dumps(about)})

    write_atomically(path, write)


def load_program(path: Path) -> nn.Module:
    """A program that this task has just written; files of others may execute code and are never read here."""
    with path.open("rb") as file:
        return torch.export.load(file).module()
