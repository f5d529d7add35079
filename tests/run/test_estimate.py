"""What a plan says is what a run does: held against closed forms, counted steps and files of real runs."""

from __future__ import annotations

import shutil
from collections import namedtuple
from itertools import repeat
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.conftest import HOME, LINEAR, PRETRAIN, composed, launch, read_lines, slow
from vidssl.backbones.blocks import BACKBONES
from vidssl.bench import step
from vidssl.build import Run
from vidssl.engine.log import Log
from vidssl.evaluation.classifier import Classifier
from vidssl.learner import StepOutput
from vidssl.methods.contrast import METHODS
from vidssl.methods.moco import MoCo
from vidssl.registry import read_options
from vidssl.run import estimate
from vidssl.run.check import task_names
from vidssl.run.command import DONE
from vidssl.tasks import TASKS, costs

TINY = ("backbone=tiny", "backbone.width=4", "crop_size=16", "clip_frames=8")


def parts_of(*words: str) -> list[costs.Cost]:
    return estimate.task_costs(costs.Costs(composed(*words)))


def meta(section: dict) -> nn.Module:
    with torch.device("meta"):
        return BACKBONES.build(section)


# -- operations


@pytest.mark.parametrize(
    ("name", "frames", "size", "giga"), [("r2plus1d18", 16, 112, 81.0), ("i3d", 16, 112, 14.0), ("i3d", 16, 224, 55.6)]
)
def test_operations_of_a_clip_are_those_of_the_official_networks(
    name: str, frames: int, size: int, giga: float
) -> None:
    assert costs.clip_flops(meta({"name": name}), frames, size) / 1e9 == pytest.approx(giga, abs=0.05)


def test_moco_takes_four_forward_passes_a_video_and_four_looks_at_the_queue() -> None:
    """In each direction one for the logits and one for their gradient, which is worked out together with them."""
    config = composed("method=moco", "recipe=paper", "method.contrast.head=linear", "task=pretrain", *TINY)
    (task,) = tasks_of(config)
    learner, dim, length = task.learner(costs.Costs(config)), 128, 65536
    passes = 4 * (costs.clip_flops(meta(config["backbone"]), 8, 16) + 2 * learner.backbone.out_channels * dim)
    assert costs.step_flops(learner, 6, 8, 16)[0] == 6 * (passes + 2 * 2 * 2 * length * dim)


def tasks_of(config: dict) -> list:
    return [TASKS.get(name)(**read_options(TASKS.get(name), config[name])) for name in task_names(config)]


def test_backward_is_two_forward_passes_but_for_the_first_layers_input() -> None:
    backbone, first = meta({"name": "r3d18"}), []
    conv = next(module for module in backbone.modules() if isinstance(module, nn.Conv3d))
    conv.register_forward_hook(lambda module, _, output: first.append(2 * output.numel() * module.weight[0].numel()))
    with torch.device("meta"):
        learner = Classifier(backbone, nn.Identity(), 7, dropout=0.0, frozen=False, unit=False)
    forward, backward = costs.step_flops(learner, 3, 8, 32)
    assert forward == 3 * (costs.clip_flops(meta({"name": "r3d18"}), 8, 32) + 2 * 512 * 7)
    assert backward == 2 * forward - first[0]


def test_a_frozen_backbone_has_no_backward_pass() -> None:
    with torch.device("meta"):
        learner = Classifier(meta({"name": "r3d18"}), nn.Identity(), 7, dropout=0.0, frozen=True, unit=False)
    assert costs.step_flops(learner, 3, 8, 32)[1] == 3 * 2 * 512 * 7


@pytest.mark.parametrize(("name", "backbone"), [*((name, "tiny") for name in METHODS.names()), slow("moco", "i3d")])
def test_a_step_counted_without_values_is_a_step_of_the_trainer(name: str, backbone: str, tmp_path: Path) -> None:
    """With a queue, a twin and views of every kind, as the papers have them."""
    words = [f"backbone={backbone}", *(("clip_frames=16", "crop_size=32") if backbone == "i3d" else TINY[2:])]
    bench = [f"bench.{word}" for word in words[1:] if word.startswith(("clip_frames", "crop_size"))]
    words += [f"method={name}", "recipe=paper_small", "frame_stride=2", "augmentation@bench.augmentation=none"]
    config = composed(*words, "task=[pretrain,bench]", "bench.batch_size=2", "accelerator=cpu", *bench)
    task, bench = tasks_of(config)
    learner = task.learner(costs.Costs(config))
    contrast = config["method"].get("contrast") or {}
    if "fill_steps" in contrast:
        contrast = {**contrast, "fill_steps": 0}
    at_once = {**config, "method": {**config["method"], "contrast": contrast} if contrast else config["method"]}
    run = Run(at_once, tmp_path, Log(tmp_path), torch.device("cpu"))
    setting = step.Setting.of(run, bench, at_once["method"])
    trainer = step.untrained(setting)
    counted = step.count_flops(step.stepping(trainer, repeat(step.random_clips(setting, trainer.learner))))
    assert sum(costs.step_flops(learner, 2, task.clip_frames, task.crop_size)) == counted


def test_steps_that_fill_a_queue_have_no_backward_pass() -> None:
    words = ("method=dclr", "task=pretrain", "pretrain.epochs=3", "trainer.accumulate=2", *TINY)
    many, none = (parts_of(*words, f"method.contrast.fill_steps={count}")[0].flops for count in (7, 0))
    config = composed(*words)
    learner = tasks_of(config)[0].learner(costs.Costs(config))
    forward, backward = costs.step_flops(learner, 32, 8, 16)
    assert none == 3 * 8 * 2 * (forward + backward)
    assert none - many == 7 * backward
    assert parts_of(*words, "method.contrast.fill_steps=99")[0].flops == 3 * 8 * 2 * forward


def test_the_work_is_the_same_however_many_ranks_and_parts_share_it() -> None:
    """Of MoCo with a queue; negatives from the batch would be fewer in a part of it."""
    words = ("method=moco", "recipe=paper", "task=pretrain", *TINY)
    alone, shared = (parts_of(*words, *more)[0] for more in ((), ("devices=4", "nodes=2", "trainer.accumulate=2")))
    assert alone.flops == shared.flops
    assert alone.files == shared.files
    assert "a batch: 1 rank x 1 part x 64 videos" in alone.lines[1]
    assert "a batch: 8 ranks x 2 parts x 4 videos" in shared.lines[1]


def test_every_clip_that_is_scored_is_counted() -> None:
    """Synthetic data have 512 training videos and 256 in each test split: 2 clips of each."""
    chain = "task=[finetune,linear,knn,retrieve,test]"
    words = ("finetune.max_steps=0", "linear.features=cached", *TINY)
    finetune, linear, knn, retrieve, test = (part.flops for part in parts_of("checkpoint=none", chain, *words))
    videos = composed("task=test")["dataset"]
    train, rest = videos["train_videos"], videos["test_videos"]
    clip = costs.clip_flops(meta({"name": "tiny", "width": 4}), 8, 16)
    assert finetune == test == 2 * (2 * rest) * clip
    assert linear == knn == 2 * (train + 2 * rest) * clip
    assert retrieve == 2 * (train + 3 * rest) * clip


def test_a_method_that_has_to_see_values_has_a_plan_without_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: MoCo, views: tuple) -> StepOutput:
        return StepOutput(views.left.mean() * views.left.sum().item(), {})

    monkeypatch.setattr(MoCo, "forward", forward)
    config = composed("method=moco", "task=[pretrain,knn]", *TINY)
    lines = estimate.estimate(config, Path("run"))
    assert any("operations of a step are not known" in line for line in lines)
    assert not any("in all" in line and "FLOP" in line for line in lines)
    assert any("last.pt" in line for line in lines)


# -- steps


@pytest.mark.parametrize(
    ("epochs", "max_steps", "validate_every", "count", "scorings", "has_best"),
    [
        (25, None, 10, 200, 3, True),  # after epochs 10, 20 and 25
        (20, None, 10, 160, 2, True),
        (25, None, 0, 200, 1, True),
        (25, 79, 10, 79, 1, False),  # ends in the tenth epoch
        (25, 80, 10, 80, 1, True),
        (25, 7, 0, 7, 1, False),
        (25, 999, 0, 200, 1, True),
        (0, None, 0, 0, 1, False),
    ],
)
def test_steps_scorings_and_whether_there_is_a_best_epoch(
    epochs: int, max_steps: int | None, validate_every: int, count: int, scorings: int, has_best: bool
) -> None:
    words = [f"finetune.epochs={epochs}", f"finetune.validate_every={validate_every}"]
    words += ["finetune.max_steps=" + ("null" if max_steps is None else str(max_steps))]
    (task,) = tasks_of(composed("task=finetune", *words))
    steps = costs.Steps.of(task, 519, 64)
    assert (steps.count, steps.scorings(task), steps.has_best(task)) == (count, scorings, has_best)


# -- memory and files


def test_what_an_optimizer_keeps_is_asked_of_it() -> None:
    with torch.device("meta"):
        learner = Classifier(
            meta({"name": "tiny", "width": 4}), nn.Identity(), 7, dropout=0.0, frozen=False, unit=False
        )
    numbers = list(learner.parameters())
    bytes_of = sum(parameter.nbytes for parameter in numbers)
    sgd = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    adamw = {"name": "adamw", "lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0}
    assert costs.optimizer_state(learner, sgd) == (len(numbers), bytes_of)
    assert costs.optimizer_state(learner, {**sgd, "momentum": 0.0}) == (0, 0)
    assert costs.optimizer_state(learner, adamw) == (3 * len(numbers), 2 * bytes_of + 4 * len(numbers))


def test_memory_of_moco_on_i3d() -> None:
    """The head has 1,180,800 numbers, the queue 65,536 keys of 128 numbers and its place."""
    words = ("method=moco", "backbone=i3d", "recipe=paper", "task=pretrain", "crop_size=64", "method.contrast.dim=128")
    _, _, _, parameters, memory = parts_of(*words)[0].lines
    assert "backbone 12,287,264, in all 26,936,128, trained 13,468,064, key encoder 13,468,064" in parameters
    trained = costs.human(4 * 13_468_064)
    assert f"gradients {trained}, optimizer {trained}, queue {costs.human(65536 * 128 * 4 + 8)};" in memory


def test_a_plan_needs_no_memory_for_tensors() -> None:
    """A million videos at once are 1.2 TB of clips."""
    words = ("method=moco", "backbone=r2plus1d18", "recipe=paper", "method.contrast.queue=0", "task=pretrain")
    config = composed(*words)
    learner = tasks_of(config)[0].learner(costs.Costs(config))
    forward, _ = costs.step_flops(learner, 1_000_000, 16, 112)
    assert forward == pytest.approx(4e6 * 81e9, rel=0.01)


REAL = {
    "chain": [
        "method=fame", "task=[pretrain,linear,finetune]", "pretrain.epochs=2", "finetune.epochs=2",
        "finetune.batch_size=8", *PRETRAIN, *LINEAR,
    ],
    "queue": [
        "method=dclr", "method.contrast.fill_steps=0", "task=[pretrain]", "optimizer=sgd", "pretrain.max_steps=3",
        "trainer.accumulate=2", *PRETRAIN,
    ],
    "online": [
        "checkpoint=none", "task=[linear,export]", "linear.features=online", "linear.normalize=unit",
        "linear.validate_every=2", *LINEAR,
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ["queue", slow("chain"), slow("online")])
def test_files_and_steps_are_those_of_a_real_run(name: str, small: list[str], tmp_path: Path) -> None:
    answer = launch([*small, *REAL[name], "output=run"], tmp_path)
    assert answer.status == DONE, answer.err
    config = OmegaConf.to_container(OmegaConf.load(tmp_path / "run/config.yaml"))
    parts = estimate.task_costs(costs.Costs(config))
    predicted = {file: size for part in parts for file, size in part.files.items() if not file.endswith(".pt2")}
    files = [file for file in (tmp_path / "run").iterdir() if file.suffix in (".pt", ".safetensors")]
    assert predicted == pytest.approx({file.name: file.stat().st_size for file in files}, rel=0.03)
    last = {row["task"]: row["step"] for row in read_lines(tmp_path / "run/metrics.jsonl")}
    for task, part in zip(task_names(config), parts, strict=True):
        assert "epochs" not in config[task] or f", {last[task]} steps" in part.lines[0]


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("task=pretrain", *TINY)
    needed = sum(parts_of("task=pretrain", *TINY)[0].files.values())
    for free, is_warned in ((2 * needed, False), (2 * needed - 1, True)):
        usage = namedtuple("usage", "total used free")(0, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        lines = estimate.estimate(config, Path("no/such/folder"))
        assert any("warning" in line for line in lines) == is_warned


@pytest.mark.parametrize(
    ("size", "expected"), [(999, "999 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (7 * 2**30, "7 GiB"), (2**43, "8 TiB")]
)
def test_sizes_are_printed_in_powers_of_1024(size: int, expected: str) -> None:
    assert costs.human(size) == expected


# -- as a command


def test_the_plan_of_a_recipe(tmp_path: Path) -> None:
    """Eight ranks, on a data set of 130 and 12 videos that nobody opens."""
    names = {"train": [f"Dive/v_Dive_g{i:03}_c01.avi" for i in range(130)]}
    names["test"] = [f"Dive/v_Dive_g{i:03}_c02.avi" for i in range(12)]
    for part, files in names.items():
        (tmp_path / "ucf" / "Dive").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ucf" / f"{part}list01.txt").write_text("".join(f"{name} 1\n" for name in files))
        for name in files:
            (tmp_path / "ucf" / name).touch()
    words = ["experiment=fame_ucf101_i3d", "dataset.root=ucf", "devices=8", "accelerator=cpu", "output=run"]
    answer = launch([*words, "check_only=true"], tmp_path)
    assert answer.status == DONE, answer.err
    for expected in (
        "The configuration is sound: method=fame backbone=i3d dataset=ucf101, seed 0, 8 ranks",
        "pretrain: 130 videos, batches of 64, 200 epochs, 400 steps",
        "25,600 videos x 2 clips of 16 x 224 x 224; a batch: 8 ranks x 1 part x 8 videos",
        "finetune: 130 videos, batches of 128, 150 epochs, 150 steps",
        "test, 15 times: 180 videos x 10 clips of 16 x 224 x 224",
        "last.pt", "best.pt", "backbone.safetensors", "finetune.last.pt", "finetune.best.pt", "config.yaml", "run.json",
        "result.json", "metrics.jsonl", "train.log", "tensorboard/", "pictures/", "in run, where",
    ):  # fmt: skip
        assert expected in answer.out, answer.out
    assert answer.cpu_seconds < 15
    assert not (tmp_path / "run").exists()


def test_the_plan_of_pictures_names_them_and_counts_what_is_read_for_them(small: list[str], tmp_path: Path) -> None:
    words = [*small, "task=[visualize,report]", "checkpoint=none", "check_only=true", "output=run"]
    answer = launch(words, tmp_path)
    assert answer.status == DONE, answer.err
    assert "visualize: inputs, activations, tsne, confusion, kernels, neighbors, curves, as pictures/" in answer.out
    assert "features of test + train: 28 videos x 2 clips of 8 x 32 x 32" in answer.out
    assert "report: report.md, report.csv and report.html in the folder of this run" in answer.out
    assert "tensorboard/, pictures/" in answer.out
    alone = launch([*words, "visualize.kinds=[kernels]"], tmp_path)
    assert "visualize: kernels, as pictures/" in alone.out
    assert "features of" not in alone.out


def test_the_readme_shows_what_is_printed(tmp_path: Path) -> None:
    """But for the free space."""
    block = next(part for part in (HOME / "README.md").read_text().split("```") if "check_only=true\nThe" in part)
    command, *shown = block.strip().splitlines()
    words = [*command.removeprefix("$ python launch.py ").split(), "accelerator=cpu"]
    printed = launch(words, tmp_path).out.splitlines()
    assert [line.partition(", where")[0] for line in shown] == [line.partition(", where")[0] for line in printed]


def test_copies_that_are_still_to_be_made_are_counted(tmp_path: Path) -> None:
    words = ("task=pretrain", *TINY, "dataset.train_videos=8", "pretrain.batch_size=4", f"data.cache_folder={tmp_path}")
    assert not [line for line in estimate.estimate(composed(*words), Path("run")) if "copies" in line]
    config = composed(*words, "data.cache=mjpeg", "data.cache_short=32")
    (line,) = [line for line in estimate.estimate(config, Path("run")) if "copies" in line]
    assert "first makes 8 small copies in " in line
    folder = Path(line.partition(" in ")[2])
    assert folder.name == "mjpeg-32"
    folder.mkdir(parents=True)
    paths = sorted({video.path for video in costs.Costs(config).listing("train").videos})
    (folder / "copies.jsonl").write_text("".join(f'{{"format":1,"path":"{path}"}}\n' for path in paths[:3]))
    (line,) = [line for line in estimate.estimate(config, Path("run")) if "copies" in line]
    assert "first makes 5 small copies in " in line
