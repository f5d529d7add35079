"""Nearest neighbours: retrieval and the k-nearest-neighbour vote. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vidssl import build
from vidssl.build import Augmentation, ClipOptions, Run
from vidssl.evaluation.classifier import pooled
from vidssl.evaluation.metrics import bounds, found_by, knn, motion_preference, recalls
from vidssl.registry import PositiveFloat, PositiveInt
from vidssl.tasks import TASKS, Task
from vidssl.tasks.costs import Cost, Costs
from vidssl.tasks.scores import rehearse, scored


@dataclass(frozen=True)
class Neighbours(ClipOptions, Task):
    clips: PositiveInt
    augmentation: Augmentation
    batch_size: PositiveInt

    splits = ("train", "test")
    labelled = True
    starts_from = "backbone"
    rendered = ("test_swap",)  # splits that are scored, too, where the data set has them

    def estimate(self, name: str, costs: Costs) -> Cost:
        line, flops = costs.scoring(self, self.clips, ["train", *costs.test_splits(*self.rendered)])
        return Cost([f"{name}: {line}"], flops)

    def extractor(self, run: Run, *, unit: bool):
        """split -> {value [N, C], label, index} of its videos."""
        backbone = build.backbone(run).to(run.device).eval()

        def extract(split: str) -> dict[str, Tensor]:
            return build.features(
                run,
                lambda clip: pooled(backbone, clip, unit=unit),
                self,
                self.clips,
                self.augmentation,
                self.batch_size,
                split,
            )

        return extract


@TASKS.register("retrieve")
@dataclass(frozen=True)
class Retrieve(Neighbours):
    """Test videos query the training videos.

    Figures are recalls R@k, the 95 % interval of R@1 over queries, and uncentered_R@k (or centered_R@k) for the other
    way of centering; with counterfactual splits motion_preference, too.
    """

    unit_clips: bool
    centered: bool

    rendered = ("test_swap", "test_cf")

    def __call__(self, run: Run) -> dict[str, float]:
        extract = self.extractor(run, unit=self.unit_clips)
        gallery, queries = extract("train"), extract("test")
        sets = queries["value"], queries["label"], gallery["value"], gallery["label"]
        each = {centered: found_by(*sets, centered=centered) for centered in (True, False)}
        found = recalls(each[self.centered]) | bounds("R@1", 100 * each[self.centered][1], run.seed)
        if build.has_split(run, "test_cf"):
            same_motion, same_background = extract("test_swap"), extract("test_cf")
            found["motion_preference"] = motion_preference(
                queries["value"], same_motion["value"], same_background["value"]
            )
        other = "uncentered" if self.centered else "centered"
        return found | {f"{other}_{name}": value for name, value in recalls(each[not self.centered]).items()}


@TASKS.register("knn")
@dataclass(frozen=True)
class Knn(Neighbours):
    k: PositiveInt
    temperature: PositiveFloat

    def estimate(self, name: str, costs: Costs) -> Cost:
        cost = super().estimate(name, costs)
        cost.files |= costs.score_files(name)
        return cost

    def rehearse(self, run: Run) -> None:
        rehearse(run)

    def __call__(self, run: Run) -> dict[str, float]:
        extract = self.extractor(run, unit=False)
        gallery = extract("train")
        classes = len(build.listing(run, "train").classes)

        def scores(split: str) -> dict[str, Tensor]:
            queries = extract(split)
            votes = knn(
                queries["value"], gallery["value"], gallery["label"], classes, k=self.k, temperature=self.temperature
            )
            return {**queries, "value": votes}

        return scored(run, "knn", scores)
