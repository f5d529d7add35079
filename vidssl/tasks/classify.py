"""Fine-tuning, the linear probe, and scoring a classifier that these left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vidssl import build
from vidssl.build import Augmentation, ClipOptions, Run, TrainOptions
from vidssl.clips import Batch, ClipPlan, View
from vidssl.data.loader import Order
from vidssl.engine.checkpoint import load_weights, save_state
from vidssl.evaluation.classifier import Classifier, Probe, pooled, restored
from vidssl.evaluation.metrics import accuracy
from vidssl.registry import ConfigError, Count, Share, Whole
from vidssl.tasks import TASKS, Task

Average = Literal["logits", "probabilities", "log_probabilities"]
AVERAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "probabilities": lambda logits: logits.softmax(dim=1),
    "log_probabilities": lambda logits: logits.log_softmax(dim=1),
}


@dataclass(frozen=True)
class Scoring(ClipOptions):
    """How test videos are scored: the answers to evenly spread clips, averaged."""

    clips: Count
    average: Average
    test_augmentation: Augmentation
    test_batch_size: Count

    def scores(self, run: Run, classifier: Classifier, split: str) -> dict[str, Tensor]:
        """value float32 [N, classes], label, index int64 [N]."""
        average = AVERAGES[self.average]
        classifier.to(run.device).eval()
        return build.features(
            run, lambda clip: average(classifier.logits(clip)), self, self.clips, self.test_augmentation,
            self.test_batch_size, split,
        )  # fmt: skip

    def figures(self, run: Run, classifier: Classifier) -> dict[str, float]:
        """Top-1 and top-5 of the test split; of swapped backgrounds, too, where the data set has them."""
        return figures(lambda split: self.scores(run, classifier, split), build.has_split(run, "test_swap"))


def figures(scores: Callable[[str], dict[str, Tensor]], has_swap: bool) -> dict[str, float]:
    found = {}
    for prefix, split in (("", "test"), ("swap_", "test_swap")) if has_swap else (("", "test"),):
        result = scores(split)
        found |= {f"{prefix}{name}": value for name, value in accuracy(result["value"], result["label"]).items()}
    return found


@TASKS.register("finetune")
@dataclass(frozen=True)
class Finetune(TrainOptions, Scoring, Task):
    """All layers are trained.

    frames=still: on clips of one repeated frame, which show no motion.
    """

    augmentation: Augmentation
    dropout: Share
    validate_every: Whole
    frames: Literal["stride", "still"]

    splits = ("train", "test")
    labelled = True
    starts_from = "backbone"
    trains_backbone = True
    leaves = "classifier"

    def __call__(self, run: Run) -> dict[str, float]:
        return train_classifier(run, "finetune", self, frozen=False, unit=False, dropout=self.dropout)


@TASKS.register("linear")
@dataclass(frozen=True)
class Linear(TrainOptions, Scoring, Task):
    """Only the last layer is trained.

    features=online: on fresh crops each epoch. cached: on features that are extracted once, without chance; the mean of
    each video's evenly spread clips.
    """

    augmentation: Augmentation
    features: Literal["online", "cached"]
    normalize: Literal["none", "unit", "standardize"]
    validate_every: Whole

    splits = ("train", "test")
    labelled = True
    starts_from = "backbone"
    leaves = "classifier"

    def problems(self) -> list[str]:
        if self.features == "online" and self.normalize == "standardize":
            return ["linear.normalize=standardize: needs statistics of all features first; set linear.features=cached"]
        if self.features == "cached" and self.validate_every:
            return [
                f"linear.validate_every={self.validate_every}: features=cached scores once, at the end; set it to 0"
            ]
        return []

    def __call__(self, run: Run) -> dict[str, float]:
        if self.features == "cached":
            return self.on_features(run)
        return train_classifier(run, "linear", self, frozen=True, unit=self.normalize == "unit", dropout=0.0)

    def on_features(self, run: Run) -> dict[str, float]:
        backbone = build.backbone(run).to(run.device).eval()
        train = self.extract(run, backbone, "train", self.augmentation)
        center, spread = torch.zeros(()), torch.ones(())
        if self.normalize == "standardize":
            center, spread = train["value"].mean(dim=0), train["value"].std(dim=0, correction=0).clamp(min=1e-6)
        torch.manual_seed(run.seed)
        classes = len(build.listing(run, "train").classes)
        classifier = Classifier(
            backbone, build.color(run, self.augmentation), classes, dropout=0.0, frozen=True,
            unit=self.normalize == "unit",
        )  # fmt: skip
        part = self.batch_size // run.config["trainer"]["accumulate"]
        loader = FeatureLoader((train["value"] - center) / spread, train["label"], part, run.seed)
        probe = Probe(classifier.head)
        build.trainer(run, "linear", probe, self, file=None).fit(loader)
        with torch.no_grad():  # from here on the layer takes features as the backbone gives them
            head = probe.head.cpu()
            head.bias -= head.weight @ (center / spread).expand(head.in_features)
            head.weight /= spread
        if run.log.is_main:
            save_classifier(run, "linear", classifier)
        run.checkpoint = str(run.state_file("linear"))

        def scores(split: str) -> dict[str, Tensor]:
            found = self.extract(run, backbone, split, self.test_augmentation)
            return {**found, "value": head(found["value"]).detach()}

        return figures(scores, build.has_split(run, "test_swap"))

    def extract(self, run: Run, backbone: nn.Module, split: str, augmentation: Augmentation) -> dict[str, Tensor]:
        unit = self.normalize == "unit"
        return build.features(
            run,
            lambda clip: pooled(backbone, clip, unit=unit),
            self,
            self.clips,
            augmentation,
            self.test_batch_size,
            split,
        )


def train_classifier(
    run: Run, task: str, options: Finetune | Linear, *, frozen: bool, unit: bool, dropout: float
) -> dict[str, float]:
    """Train on clips, validating now and then; the figures after the last epoch."""
    backbone = build.backbone(run)
    classes = len(build.listing(run, "train").classes)
    color = build.color(run, options.augmentation)
    classifier = Classifier(backbone, color, classes, dropout=dropout, frozen=frozen, unit=unit)
    plan = ClipPlan(windows=1, views=(View(0, options.frames if isinstance(options, Finetune) else "stride"),))
    loader = build.training_loader(run, plan, options.augmentation.crop, options, options.batch_size)
    trainer = build.trainer(run, task, classifier, options, file=run.state_file(task))

    found: dict[int, dict[str, float]] = {}  # step -> figures

    def validate(epoch: int, step: int) -> dict[str, float]:
        if epoch % options.validate_every:
            return {}
        found[step] = options.figures(run, classifier)
        return found[step]

    progress = trainer.fit(loader, validate if options.validate_every else None)
    run.checkpoint = str(run.state_file(task))
    return found.get(progress.step) or options.figures(run, classifier)


@TASKS.register("test")
@dataclass(frozen=True)
class Test(ClipOptions, Task):
    """Score a classifier, ours or a released one."""

    clips: Count
    average: Average
    augmentation: Augmentation
    batch_size: Count

    splits = ("test",)
    labelled = True
    starts_from = "classifier"

    def __call__(self, run: Run) -> dict[str, float]:
        weights = load_weights(run.checkpoint)
        backbone = build.backbone(run)
        classes = len(build.listing(run, "test").classes)
        if len(weights.classifier.get("bias", ())) != classes:
            raise ConfigError(
                f"checkpoint={run.checkpoint}: its classifier tells {len(weights.classifier.get('bias', ()))} classes, "
                f"dataset={run.config['dataset']['name']} has {classes}"
            )
        color = build.color(run, self.augmentation)
        classifier = restored(backbone, color, weights.classifier, unit=weights.unit)
        scoring = Scoring(
            self.clip_frames,
            self.frame_stride,
            self.crop_size,
            self.clips,
            self.average,
            self.augmentation,
            self.batch_size,
        )
        return scoring.figures(run, classifier)


def save_classifier(run: Run, task: str, classifier: Classifier) -> None:
    state = {name: value.detach().cpu() for name, value in classifier.state_dict().items()}
    save_state(
        run.state_file(task),
        {"task": task, "config": run.config, "learner": state, "backbone_prefix": "backbone."},
    )


class FeatureLoader:
    """Batches of extracted features in a new order each epoch; the same on all ranks."""

    def __init__(self, features: Tensor, label: Tensor, batch_size: int, seed: int):
        self.features, self.label = features, label
        self.order = Order(len(label), min(batch_size, len(label)), seed=seed, training=True)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        self.order.epoch, self.order.skip = epoch, skip
        for keys in self.order:
            rows = torch.tensor([index for _, index in keys])
            yield Batch(self.features[rows], torch.zeros(len(rows), 0), self.label[rows], rows)
