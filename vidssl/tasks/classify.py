"""Fine-tuning, the linear probe, and scoring a classifier that these left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from vidssl import build
from vidssl.build import Augmentation, ClipOptions, Run, TrainOptions
from vidssl.clips import Batch, ClipPlan, View
from vidssl.data.loader import Order
from vidssl.engine.checkpoint import save_state
from vidssl.evaluation.classifier import Classifier, Probe, Probes, pooled
from vidssl.evaluation.metrics import hits
from vidssl.registry import ConfigError, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval, Within
from vidssl.tasks import TASKS, Context, Task
from vidssl.tasks.costs import Cost, Costs, Sizes, Steps, memory_lines, optimizer_state, state_bytes, training_line
from vidssl.tasks.scores import rehearse, scored

Part = Annotated[float, Within("(0, 1)")]

Average = Literal["logits", "probabilities", "log_probabilities"]
AVERAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "probabilities": lambda logits: logits.softmax(dim=1),
    "log_probabilities": lambda logits: logits.log_softmax(dim=1),
}


@dataclass(frozen=True)
class Scoring(ClipOptions):
    """How test videos are scored: the answers to evenly spread clips, averaged."""

    clips: PositiveInt
    average: Average
    test_augmentation: Augmentation
    test_batch_size: PositiveInt

    def rehearse(self, run: Run) -> None:
        rehearse(run)

    def scores(self, run: Run, classifier: Classifier, split: str) -> dict[str, Tensor]:
        """value float32 [N, classes], label, index int64 [N]."""
        average = AVERAGES[self.average]
        classifier.to(run.device).eval()
        return build.features(
            run, lambda clip: average(classifier.logits(clip)), self, self.clips, self.test_augmentation,
            self.test_batch_size, split,
        )  # fmt: skip

    def figures(self, run: Run, task: str, classifier: Classifier) -> dict[str, float]:
        return scored(run, task, lambda split: self.scores(run, classifier, split))


@TASKS.register("finetune")
@dataclass(frozen=True)
class Finetune(TrainOptions, Scoring, Task):
    """All layers are trained.

    frames=still: on clips of one repeated frame, which show no motion.
    """

    augmentation: Augmentation
    dropout: UnitInterval
    validate_every: NonNegativeInt
    frames: Literal["stride", "still"]

    splits = ("train", "test")
    labelled = True
    starts_from = "backbone"
    leaves = "classifier"

    def conflicts(self, context: Context) -> list[str]:
        if self.batch_size != context.parts or not context.is_single_value(self):
            return []
        return [
            f"finetune.batch_size={self.batch_size}: batch norm needs two values of each channel or more, and of one "
            f"video's {self.clip_frames} x {self.crop_size} x {self.crop_size} clip "
            f"backbone={context.config['backbone']['name']} makes one; allowed: {2 * self.batch_size} or more, larger "
            "clips, or trainer.batch_norm=frozen"
        ]

    def estimate(self, name: str, costs: Costs) -> Cost:
        return estimate_on_clips(self, name, costs, frozen=False)

    def __call__(self, run: Run) -> dict[str, float]:
        return train_classifier(run, "finetune", self, frozen=False, unit=False, dropout=self.dropout)


@TASKS.register("linear")
@dataclass(frozen=True)
class Linear(TrainOptions, Scoring, Task):
    """Only the last layer is trained.

    features=online: on fresh crops each epoch. cached: on features that are extracted once, without chance; the mean of
    each video's evenly spread clips. rates: learning rates in place of optimizer.lr (cached only). All are tried at
    once on a part of the training videos; the best on the others, `held_out` of each class, trains on all of them.
    """

    augmentation: Augmentation
    features: Literal["online", "cached"]
    normalize: Literal["none", "unit", "standardize"]
    rates: tuple[PositiveFloat, ...] | None
    held_out: Part
    validate_every: NonNegativeInt

    splits = ("train", "test")
    labelled = True
    starts_from = "backbone"
    leaves = "classifier"

    def problems(self) -> list[str]:
        return list(self.contradictions())

    def conflicts(self, context: Context) -> list[str]:
        clip_grad = context.config["trainer"]["clip_grad"]
        problems = []
        if self.rates is not None and clip_grad:
            problems.append(
                f"trainer.clip_grad={clip_grad}: limits the gradients of all linear.rates together, which are trained "
                "at once; set it to 0, or linear.rates=null"
            )
        listing = context.listing("train")
        labels = [video.label for video in listing.videos] if listing else []
        return problems + (self.none_to_hold_out(labels) if labels else [])

    def estimate(self, name: str, costs: Costs) -> Cost:
        """Of cached features: a pass over all videos; the steps of one layer are next to nothing, on each rank."""
        if self.features == "online":
            return estimate_on_clips(self, name, costs, frozen=True)
        videos = costs.count(["train"])
        line, flops = costs.scoring(self, self.clips, ["train", *costs.test_splits("test_swap")])
        lines = [f"{name}: {training_line(self, videos, Steps.of(self, videos, self.batch_size))}"]
        lines.append(f"  on features: {line}")
        if self.rates is not None:
            rates = ", ".join(f"{rate:g}" for rate in sorted(self.rates))
            lines.append(
                f"  rates tried at once, {self.held_out:.0%} of the videos held out: {rates}; then the best on all"
            )
        learner = untrained(costs, frozen=True)
        files = costs.state_files(name, state_bytes(learner, Sizes(0, 0)), None, has_best=False)
        lines += memory_lines(learner, optimizer_state(learner, self.optimizer))
        return Cost(lines, flops, files | costs.score_files(name))

    def contradictions(self) -> Iterator[str]:
        if self.features == "online" and self.normalize == "standardize":
            yield "linear.normalize=standardize: needs statistics of all features first; set linear.features=cached"
        if self.features == "online" and self.rates is not None:
            yield (
                f"linear.rates={list(self.rates)}: are tried on features that are extracted once; set "
                "linear.features=cached, or linear.rates=null for optimizer.lr alone"
            )
        if self.rates is not None and len(set(self.rates)) < max(1, len(self.rates)):
            yield f"linear.rates={list(self.rates)}: each rate once, one or more; null for optimizer.lr"
        if self.features == "cached" and self.validate_every:
            yield f"linear.validate_every={self.validate_every}: features=cached scores once, at the end; set it to 0"
        if self.features == "cached" and self.average != "logits":
            yield (
                f"linear.average={self.average}: features=cached averages the features of a video's clips, which is "
                "averaging logits; set linear.average=logits, or linear.features=online"
            )

    def none_to_hold_out(self, labels: Sequence[int]) -> list[str]:
        """Whether the training videos' labels leave none by which to choose a rate."""
        if self.rates is None or len(set(labels)) < len(labels):
            return []
        return [
            f"linear.held_out={self.held_out}: no class has two training videos, so that none can be held out to "
            "choose among linear.rates; set linear.rates=null"
        ]

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
        features = (train["value"] - center) / spread
        rate, tried = self.best_rate(run, classifier.head, features, train["label"])
        probe = Probe(classifier.head)
        groups = None if rate is None else [{"params": list(probe.head.parameters()), "lr": rate}]
        loader = self.loader(run, features, train["label"])
        build.trainer(run, "linear", probe, self, file=None, groups=groups).fit(loader)
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

        return scored(run, "linear", scores) | tried

    def best_rate(
        self, run: Run, head: nn.Linear, features: Tensor, label: Tensor
    ) -> tuple[float | None, dict[str, float]]:
        """The rate whose layer does best on held-out training videos, the smaller of equals, and all rates' figures."""
        if self.rates is None:
            return None, {}
        rates = sorted(self.rates)
        away = held_out(label, self.held_out, run.seed)
        if not away.any():  # some that are listed cannot be used
            raise ConfigError(self.none_to_hold_out(label.tolist()))
        probes = Probes(head, rates)
        loader = self.loader(run, features[~away], label[~away])
        build.trainer(run, "linear-rates", probes, self, file=None, groups=probes.groups()).fit(loader)
        with torch.no_grad():
            logits = probes.cpu().logits(features[away])
        found = {
            rate: hits(scores, label[away]).mean().item()
            for rate, scores in zip(rates, logits.unbind(dim=1), strict=True)
        }
        best = max(rates, key=lambda rate: found[rate])  # the first of equals
        told = ", ".join(f"{rate:g}: {value:.1f}" for rate, value in found.items())
        run.log.say(f"linear: top-1 on {int(away.sum())} held-out training videos by rate: {told}; takes {best:g}")
        return best, {"rate": best} | {f"held_out_top1@{rate:g}": value for rate, value in found.items()}

    def loader(self, run: Run, features: Tensor, label: Tensor) -> FeatureLoader:
        parts = run.config["trainer"]["accumulate"]
        if len(label) < parts:
            raise ConfigError(f"trainer.accumulate={parts}: linear has only {len(label)} videos to train on")
        return FeatureLoader(features, label, min(self.batch_size, len(label)) // parts, run.seed)

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
            training=split == "train",
        )


def estimate_on_clips(task: Finetune | Linear, name: str, costs: Costs, *, frozen: bool) -> Cost:
    cost, steps = costs.training(name, task, untrained(costs, frozen=frozen))
    line, flops = costs.scoring(task, task.clips, costs.test_splits("test_swap"), steps.scorings(task))
    cost.lines.insert(3, f"  {line}")
    cost.flops = None if cost.flops is None else cost.flops + flops
    cost.files |= costs.score_files(name)
    return cost


def untrained(costs: Costs, *, frozen: bool) -> Classifier:
    """On the meta device, without color, which changes no shape."""
    classes = len(costs.listing("train").classes)
    with torch.device("meta"):
        return Classifier(costs.backbone(), nn.Identity(), classes, dropout=0.0, frozen=frozen, unit=False)


def held_out(label: Tensor, share: float, seed: int) -> Tensor:
    """Which videos are set aside: `share` of each class, at least one, never all. int64 [N] -> bool [N]."""
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    away = torch.zeros(len(label), dtype=torch.bool)
    for number in label.unique():
        mine = order[label[order] == number]
        away[mine[: min(max(1, round(share * len(mine))), len(mine) - 1)]] = True
    return away


def train_classifier(
    run: Run, task: str, options: Finetune | Linear, *, frozen: bool, unit: bool, dropout: float
) -> dict[str, float]:
    """Train on clips, validating now and then; the figures after the last epoch."""
    backbone = build.backbone(run)
    classes = build.listing(run, "train").classes
    color = build.color(run, options.augmentation)
    if frozen:
        torch.manual_seed(run.seed)  # the layer starts as it does on extracted features
    classifier = Classifier(backbone, color, len(classes), dropout=dropout, frozen=frozen, unit=unit)
    plan = ClipPlan(windows=1, views=(View(0, options.frames if isinstance(options, Finetune) else "stride"),))
    loader = build.training_loader(run, task, plan, options.augmentation.crop, options, options.batch_size)
    trainer = build.trainer(run, task, classifier, options, file=run.state_file(task), classes=classes)

    found: dict[int, dict[str, float]] = {}  # step -> figures

    def validate(epoch: int, step: int) -> dict[str, float]:
        if epoch % options.validate_every:
            return {}
        found[step] = options.figures(run, task, classifier)
        return found[step]

    progress = trainer.fit(loader, validate if options.validate_every else None)
    run.checkpoint = str(run.state_file(task))
    return found.get(progress.step) or options.figures(run, task, classifier)


@TASKS.register("test")
@dataclass(frozen=True)
class Test(ClipOptions, Task):
    """Score a classifier, ours or a released one."""

    clips: PositiveInt
    average: Average
    augmentation: Augmentation
    batch_size: PositiveInt

    splits = ("test",)
    labelled = True
    starts_from = "classifier"

    def estimate(self, name: str, costs: Costs) -> Cost:
        line, flops = costs.scoring(self, self.clips, costs.test_splits("test_swap"))
        return Cost([f"{name}: {line}"], flops, costs.score_files(name))

    def rehearse(self, run: Run) -> None:
        rehearse(run)

    def __call__(self, run: Run) -> dict[str, float]:
        classifier = build.classifier(run, build.backbone(run), build.listing(run, "test").classes)
        scoring = Scoring(
            self.clip_frames,
            self.frame_stride,
            self.crop_size,
            self.clips,
            self.average,
            self.augmentation,
            self.batch_size,
        )
        return scoring.figures(run, "test", classifier)


def save_classifier(run: Run, task: str, classifier: Classifier) -> None:
    state = {name: value.detach().cpu() for name, value in classifier.state_dict().items()}
    save_state(
        run.state_file(task),
        {
            "task": task,
            "config": run.config,
            "learner": state,
            "backbone_prefix": "backbone.",
            "classes": list(build.listing(run, "train").classes),
        },
    )


class FeatureLoader:
    """Batches of extracted features in a new order each epoch; the same on all ranks."""

    def __init__(self, features: Tensor, label: Tensor, batch_size: int, seed: int):
        self.features, self.label = features, label
        self.order = Order(len(label), batch_size, seed=seed, training=True)

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        self.order.epoch, self.order.skip = epoch, skip
        for keys in self.order:
            rows = torch.tensor([index for _, index in keys])
            yield Batch(self.features[rows], torch.zeros(len(rows), 0), self.label[rows], rows)
