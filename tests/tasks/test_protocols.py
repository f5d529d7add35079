"""Protocols by their numbers: from the words of the configuration to clips, crops, averages, centering, rates.

Every number is written out here, from the releases; a protocol that changes in any of them fails.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import composed, launch, read_json
from vidssl import build
from vidssl.augment.photometric import AUGMENTS
from vidssl.clips import Batch, ClipPlan
from vidssl.data.sampling import frame_numbers
from vidssl.data.spatial import CROPS
from vidssl.engine.optim import OPTIMIZERS, SCHEDULES
from vidssl.evaluation.classifier import Classifier, Labelled
from vidssl.evaluation.features import per_video
from vidssl.registry import read_options
from vidssl.run.command import DONE
from vidssl.tasks import TASKS, Task, classify
from vidssl.tasks.classify import AVERAGES
from vidssl.tasks.retrieve import Retrieve

PROTOCOLS = ("ours", "fame", "be", "dclr", "fima")
KINETICS, IMAGENET = (0.43216, 0.394666, 0.37645), (0.485, 0.456, 0.406)
NO_CHANCE = np.random.default_rng(0)


_read: dict[tuple[str, str, str], Any] = {}


def task(protocol: str, name: str, backbone: str = "r2plus1d18") -> Any:
    """The task on UCF101, as a run makes it."""
    key = (protocol, name, backbone)
    if key not in _read:
        words = ["dataset=ucf101", "dataset.root=.", f"protocol={protocol}", f"backbone={backbone}"]
        config = composed(*words, "task=[finetune,linear,knn,retrieve,test]")
        for each in ("finetune", "linear", "knn", "retrieve", "test"):
            _read[protocol, each, backbone] = TASKS.get(each)(**read_options(TASKS.get(each), config[each]))
    return _read[key]


def test_augmentation(which: Task) -> build.Augmentation:
    return getattr(which, "test_augmentation", None) or which.augmentation


test_augmentation.__test__ = False


# -- clips


TEN_OF_32 = [0, 7, 15, 22, 30, 37, 45, 52, 60, 68]  # of 69 places, a video of 100 frames, 16 frames x stride 2
TEN_OF_64 = [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]  # of 37 places, 64 frames x stride 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["finetune", "linear", "knn", "retrieve", "test"])
def test_where_test_clips_start(protocol: str, name: str) -> None:
    which = task(protocol, name)
    plan = ClipPlan.uniform(which.clips)
    found = frame_numbers(plan, 100, which.clip_frames, which.frame_stride, NO_CHANCE)
    if protocol == "be":
        assert found[:, 0].tolist() == ([0] if name in ("knn", "retrieve") else TEN_OF_64)
        assert (found[0, -1], found.shape[1]) == (63, 64)
    else:
        assert found[:, 0].tolist() == TEN_OF_32
        assert (found[0, -1], found.shape[1]) == (30, 16)


# -- crops


# top, left, side of the square in a frame of 320 x 240, for crops of 112 and of 224; whether it is smoothed
CROP = {
    "ours": ((15, 55, 210), (15, 55, 210), True),
    "fame": ((64, 104, 112), (8, 48, 224), False),
    "be": ((15, 55, 210), (15, 55, 210), True),
    "dclr": ((64, 104, 112), (8, 48, 224), False),
    "fima": ((8, 48, 224), (8, 48, 224), False),
}
MEANS = {"ours": KINETICS, "fame": KINETICS, "be": IMAGENET, "dclr": KINETICS, "fima": KINETICS}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["finetune", "linear", "knn", "retrieve", "test"])
def test_what_of_the_frame_is_tested(protocol: str, name: str) -> None:
    augmentation = test_augmentation(task(protocol, name))
    crop, (*squares, smooth) = CROPS.build(augmentation.crop), CROP[protocol]
    for size, square in zip((112, 224), squares, strict=True):
        box = crop.box(240, 320, size, NO_CHANCE)
        assert (box.top, box.left, box.height, box.width, box.mirrored) == (*square, square[2], False)
        assert crop.resize(torch.zeros(2, 3, box.height, box.width, dtype=torch.uint8), size).shape == (
            2,
            3,
            size,
            size,
        )
    line = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    line[..., 100] = 200  # of one column the plain resize to half keeps a half, the smooth one spreads more of it
    assert crop.resize(line, 112).max().item() == (75 if smooth else 100)
    color = AUGMENTS.build(augmentation.color)
    assert color.mean.flatten().tolist() == pytest.approx(MEANS[protocol])
    clip = torch.rand(1, 3, 2, 4, 4)
    torch.testing.assert_close(color(clip) * color.std + color.mean, clip)  # no chance


def test_frames_smaller_than_the_square_of_fima_are_cut_to_their_short_side() -> None:
    crop = CROPS.build(test_augmentation(task("fima", "test")).crop)
    assert crop.box(180, 320, 112, NO_CHANCE)[:4] == (0, 70, 180, 180)


# -- averages


LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # what two clips of a video say of two classes
AVERAGED = {"logits": [1.0, 0.5], "probabilities": [0.5749, 0.4251], "log_probabilities": [-0.7201, -1.2201]}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("backbone", ["r2plus1d18", "i3d"])
def test_what_is_averaged_over_clips(protocol: str, backbone: str) -> None:
    as_released = {"be": "probabilities"}
    if backbone == "i3d":
        as_released |= {"fame": "log_probabilities", "fima": "log_probabilities"}
    for name in ("finetune", "test", "linear"):
        expected = "logits" if (protocol, name) == ("be", "linear") else as_released.get(protocol, "logits")
        answer = AVERAGES[task(protocol, name, backbone).average]
        batch = Batch(LOGITS[None], torch.empty(1, 2, 4), torch.zeros(1).long(), torch.zeros(1).long())
        found = per_video(answer, [batch], torch.device("cpu"))["value"][0]
        assert found.tolist() == pytest.approx(AVERAGED[expected], abs=1e-4)


# -- retrieval


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unit_clips_and_centering_of_retrieval(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes lie at +1 and -1 of one axis; all test videos are far away on another, each off its class's side.

    Only each set's own mean brings them together again.
    """
    gallery = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    queries = torch.tensor([[11.0, 1.0], [9.0, -1.0]])
    seen = []

    def extractor(self: Retrieve, run: Any, *, unit: bool):
        seen.append(unit)
        values = {"train": gallery, "test": queries}
        return lambda split: {"value": values[split], "label": torch.tensor([0, 1]), "index": torch.arange(2)}

    monkeypatch.setattr(Retrieve, "extractor", extractor)
    monkeypatch.setattr(build, "has_split", lambda run, split: False)
    found = task(protocol, "retrieve")(SimpleNamespace(seed=0))
    assert seen == [protocol != "be"]
    assert found["R@1"] == (50.0 if protocol == "be" else 100.0)


# -- training


# epochs, batch, {epoch: rate}, weight decay, dropout, batch norm of the backbone trains
FINETUNE = {
    "ours": (150, 128, {0: 0.025, 59: 0.025, 60: 0.0025, 120: 0.00025}, 1e-4, 0.7),
    "fame": (150, 128, {0: 0.025, 59: 0.025, 60: 0.0025, 120: 0.00025}, 1e-4, 0.7),
    "be": (45, 4, {0: 0.001, 9: 0.001, 10: 0.0003, 20: 9e-5, 25: 2.7e-5, 30: 8.1e-6, 44: 7.29e-7}, 1e-8, 0.5),
    "dclr": (10, 64, {0: 0.1, 5: 0.1, 6: 0.01, 8: 0.001}, 1e-4, 0.7),
    "fima": (150, 16, {0: 0.01, 59: 0.01, 60: 0.001, 120: 0.0001}, 1e-4, 0.7),
}
LINEAR = {
    "ours": (100, 256, {0: 0.01, 50: 0.005}, 0.0, "cached", "standardize"),
    "fame": (100, 256, {0: 30.0, 59: 30.0, 60: 3.0, 80: 0.3}, 0.0, "online", "unit"),
    "be": (100, 256, {0: 0.01, 50: 0.005}, 0.0, "cached", "standardize"),
    "dclr": (10, 128, {0: 5.0, 5: 5.0, 6: 0.5, 8: 0.05}, 0.0, "online", "unit"),
    "fima": (100, 256, {0: 30.0, 59: 30.0, 60: 3.0, 80: 0.3}, 0.0, "online", "none"),
}


def check_training(which: Any, epochs: int, batch: int, rates: dict[int, float], weight_decay: float) -> None:
    assert (which.epochs, which.batch_size, which.max_steps) == (epochs, batch, None)
    (group,) = OPTIMIZERS.build(which.optimizer, [nn.Parameter(torch.zeros(1))]).param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, weight_decay)
    schedule = SCHEDULES.build(which.schedule)
    found = {epoch: group["lr"] * schedule.factor(epoch + 0.5, which.epochs) for epoch in rates}  # amid the epoch
    assert found == pytest.approx(rates)


def called(which: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """How the task asks for training on clips."""
    kept: dict[str, Any] = {}
    monkeypatch.setattr(classify, "train_classifier", lambda run, name, options, **more: kept.update(more) or {})
    which(None)
    return kept


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fine_tuning(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    which, (*numbers, dropout) = task(protocol, "finetune"), FINETUNE[protocol]
    check_training(which, *numbers)
    asked = called(which, monkeypatch)
    assert asked == {"frozen": False, "unit": False, "dropout": dropout}
    assert trains_batch_norm(asked)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_linear_probe(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    which, (*numbers, features, normalize) = task(protocol, "linear"), LINEAR[protocol]
    check_training(which, *numbers)
    assert (which.features, which.normalize) == (features, normalize)
    if features == "cached":
        assert (which.rates, which.held_out, which.validate_every) == ((0.001, 0.003, 0.01, 0.03, 0.1, 0.3), 0.2, 0)
    else:
        asked = called(which, monkeypatch)
        assert asked == {"frozen": True, "unit": normalize == "unit", "dropout": 0.0}
        assert not trains_batch_norm(asked)


class Normalizing(nn.Module):
    out_channels = 3

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm3d(3)

    def forward(self, clip: Tensor) -> Tensor:
        return self.bn(clip)


def trains_batch_norm(asked: dict[str, Any]) -> bool:
    """Whether a training step with these options moves statistics and weights of batch norm."""
    classifier = Classifier(Normalizing(), nn.Identity(), 2, **asked).train()
    classifier(Labelled(torch.randn(4, 3, 2, 2, 2), torch.tensor([0, 1, 0, 1]))).loss.backward()
    moved = classifier.backbone.bn.num_batches_tracked.item() > 0
    assert moved == (classifier.backbone.bn.weight.grad is not None)
    return moved


CROPPED = {"name": "random_resized", "area": [0.2, 1.0], "ratio": [0.75, 4 / 3], "flip": 0.5}
CENTERED = {"name": "center", "resize_short": "auto", "antialias": True}
# the crop of training, and how often it is gray and jittered
SEEN = {
    ("finetune", "ours"): (CROPPED | {"antialias": True}, 0.2, 0.8),
    ("finetune", "fame"): (CROPPED | {"antialias": False}, 0.2, 0.8),
    ("finetune", "be"): (
        {"name": "random_rotated", "degrees": 10.0, "resize_short": "auto", "antialias": True}, None, 1.0,
    ),
    ("finetune", "dclr"): (CROPPED | {"antialias": False}, 0.2, 0.8),
    ("finetune", "fima"): (CROPPED | {"antialias": False}, 0.2, 0.8),
    ("linear", "ours"): (CENTERED, 0.0, 0.0),
    ("linear", "fame"): (CROPPED | {"antialias": False}, 0.0, 0.0),
    ("linear", "be"): (CENTERED, 0.0, 0.0),
    ("linear", "dclr"): (CROPPED | {"antialias": False}, 0.0, 0.0),
    ("linear", "fima"): (CROPPED | {"antialias": False}, 0.2, 0.8),
}  # fmt: skip


@pytest.mark.parametrize(("name", "protocol"), SEEN)
def test_what_is_seen_in_training(name: str, protocol: str) -> None:
    crop, gray, jitter = SEEN[name, protocol]
    augmentation = task(protocol, name).augmentation
    assert augmentation.crop == pytest.approx(crop) if "area" not in crop else flat(augmentation.crop) == flat(crop)
    assert (augmentation.color.get("gray"), augmentation.color["jitter"]) == (gray, jitter)
    assert augmentation.color.get("blur", 0.0) == 0.0
    assert augmentation.color["mean"] == pytest.approx(MEANS[protocol])


def flat(crop: dict[str, Any]) -> dict[str, Any]:
    return {
        key: [round(number, 9) for number in value] if key in ("area", "ratio") else value
        for key, value in crop.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_task_runs_by_each_protocol(protocol: str, small: list[str], tmp_path: Path) -> None:
    words = [f"protocol={protocol}", "backbone=tiny", "task=[finetune,linear,knn,retrieve,test]", "checkpoint=none"]
    words += [f"{task}.{key}" for task in ("finetune", "linear") for key in ("epochs=1", "batch_size=8")]
    answer = launch([*small, *words, "output=run"], tmp_path)
    assert answer.status == DONE, answer.err
    result = read_json(tmp_path / "run/result.json")
    if protocol != "be":  # whose probe is ours, averaging logits
        assert result["test"] == {name: value for name, value in result["linear"].items() if name in result["test"]}
    assert next(iter(result["retrieve"])) == "R@1"
