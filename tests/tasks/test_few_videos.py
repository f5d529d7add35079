"""A first try on two or three videos: every task does what it can."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.conftest import composed, make_video
from vidssl.build import Run
from vidssl.engine.log import Log
from vidssl.methods.contrast import METHODS
from vidssl.registry import ConfigError, read_options
from vidssl.run.check import check
from vidssl.tasks import TASKS

SMALL = ("accelerator=cpu", "backbone.width=4", "data.workers=0", "data.processes=1", "checkpoint=none")


def figures(folder: Path, name: str, *words: str) -> dict[str, float]:
    """Of a task that passed the check."""
    config = composed(f"task={name}", *SMALL, *words)
    assert check(config) == []
    run = Run(config, folder, Log(folder), torch.device("cpu"), "none")
    return TASKS.get(name)(**read_options(TASKS.get(name), config[name]))(run)


@pytest.mark.parametrize("method", METHODS.names())
def test_two_videos_are_trained_on_and_shown(method: str, rendered: str, tmp_path: Path) -> None:
    words = [f"method={method}", f"dataset.root={rendered}", "dataset.train_videos=2", "trainer.pictures_every=1"]
    found = figures(tmp_path, "pretrain", *words, "pretrain.batch_size=2", "pretrain.epochs=1", "trainer.log_every=1")
    assert all(map(math.isfinite, found.values()))
    assert list((tmp_path / "pictures").glob("pretrain-input-*.png"))


@pytest.mark.parametrize("videos", [1, 2])
@pytest.mark.parametrize("task", ["retrieve", "knn", "bias", "linear", "finetune", "visualize", "extract"])
def test_one_video_of_a_class_is_enough(task: str, videos: int, rendered: str, tmp_path: Path) -> None:
    sizes = [f"dataset.{split}_videos={videos}" for split in ("train", "test")]
    trains = [f"{task}.batch_size=1", f"{task}.epochs=1"] if task in ("linear", "finetune") else []
    found = figures(tmp_path, task, f"dataset.root={rendered}", *sizes, *trains)
    assert found
    assert all(map(math.isfinite, found.values()))


def test_a_batch_of_more_videos_than_can_be_used_is_refused_with_what_they_lack(tmp_path: Path) -> None:
    for number, frames in enumerate((20, 20, 4)):
        make_video(tmp_path / f"data/train/a/{number}.mp4", frames, size=(48, 64))
    words = ["dataset=folder", f"dataset.root={tmp_path}/data", "clip_frames=8", "frame_stride=1"]
    told = r"^pretrain.batch_size=3: only 2 videos of the train split can be used \(1 short\), so that it must be 2"
    with pytest.raises(ConfigError, match=told):
        figures(tmp_path, "pretrain", *words, "pretrain.batch_size=3")
