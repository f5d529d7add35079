"""Features as a file: what is in it, whoever and however many wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.conftest import composed, launch, make_video
from vidssl import build
from vidssl.build import Run
from vidssl.engine.log import Log
from vidssl.registry import read_options
from vidssl.run.check import check
from vidssl.run.command import DONE
from vidssl.tasks.extract import Extract


def extracted(folder: Path, *words: str) -> dict[str, float]:
    config = composed("task=extract", "checkpoint=none", "accelerator=cpu", *words)
    assert check(config) == []
    folder.mkdir(parents=True)
    run = Run(config, folder, Log(folder, rank=0), torch.device("cpu"), "none")
    return Extract(**read_options(Extract, config["extract"]))(run)


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 not a dict
        about = {name: json.loads(value) for name, value in opened.metadata().items() if name != "format"}
    return tensors, about


def test_a_video_is_the_mean_of_its_clips_in_the_order_of_the_manifest(small: list[str], tmp_path: Path) -> None:
    words = [*small, "extract.clips=3", "extract.batch_size=5"]
    assert extracted(tmp_path / "video", *words) == {"train_videos": 16.0, "test_videos": 12.0}
    extracted(tmp_path / "clip", *words, "extract.per=clip")
    extracted(tmp_path / "unit", *words, "extract.per=clip", "extract.unit=true", "extract.splits=[test]")
    for split, count in (("train", 16), ("test", 12)):
        video, about = read(tmp_path / f"video/features-{split}.safetensors")
        clip, _ = read(tmp_path / f"clip/features-{split}.safetensors")
        assert video["features"].shape == (count, 32)
        assert clip["features"].shape == (count, 3, 32)
        torch.testing.assert_close(clip["features"].mean(dim=1), video["features"])
        assert (clip["features"][:, 0] - clip["features"][:, 2]).abs().max() > 0
        listing = build.read_listing(composed(*small)["dataset"], split)
        assert video["index"].tolist() == list(range(count))
        assert about["paths"] == [item.path for item in listing.videos]
        assert video["label"].tolist() == [item.label for item in listing.videos]
        assert about["classes"] == list(listing.classes)
        assert about["backbone"] == {"name": "tiny", "width": 4}
        assert about["checkpoint"] == "none"
        assert (about["extract"]["clips"], about["extract"]["clip_frames"], about["split"]) == (3, 8, split)
    unit, _ = read(tmp_path / "unit/features-test.safetensors")
    torch.testing.assert_close(unit["features"].norm(dim=2), torch.ones(12, 3))
    assert not (tmp_path / "unit/features-train.safetensors").exists()


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(small: list[str], tmp_path: Path) -> None:
    words = [*small, "extract.per=clip", "extract.batch_size=5", "extract.splits=[test]"]
    extracted(tmp_path / "one", *words)
    two = ["task=extract", "checkpoint=none", "devices=2", "accelerator=cpu", "output=two"]
    answer = launch([*words, *two], tmp_path)
    assert answer.status == DONE, answer.err
    (one, about), (both, theirs) = (read(tmp_path / name / "features-test.safetensors") for name in ("one", "two"))
    assert both["index"].tolist() == list(range(12)), "each video once"
    assert torch.equal(one["label"], both["label"])
    torch.testing.assert_close(one["features"], both["features"], atol=1e-6, rtol=1e-5)
    assert about == theirs
    assert not [path for path in (tmp_path / "two").iterdir() if path.name.startswith(".feat")]


def test_videos_without_classes_have_label_minus_one(tmp_path: Path) -> None:
    for number in range(3):
        make_video(tmp_path / f"videos/{number}.mp4", 20, size=(48, 64))
    words = [
        "dataset=folder",
        f"dataset.root={tmp_path}/videos",
        "dataset.test_share=0.0",
        "recipe=demo",
        "extract.splits=[train]",
    ]
    extracted(tmp_path / "out", *words, "data.workers=0", "data.processes=1", "backbone.width=4")
    found, about = read(tmp_path / "out/features-train.safetensors")
    assert found["label"].tolist() == [-1, -1, -1]
    assert (about["paths"], about["classes"]) == (["0.mp4", "1.mp4", "2.mp4"], [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["extract.splits=[]"], "extract.splits=[]: each split once"),
        (["extract.splits=[train,train]"], "extract.splits=['train', 'train']: each split once"),
        (["extract.splits=[tets]"], "extract.splits[0]=tets: no such value. Did you mean test?"),
        (["dataset=folder", "dataset.root=.", "extract.splits=[test_swap]"], "dataset=folder: has no test_swap split"),
    ],
)
def test_splits_that_are_not_there_are_refused(words: list[str], told: str, tmp_path: Path, monkeypatch) -> None:
    make_video(tmp_path / "train/a/1.mp4", 5, size=(48, 64))
    make_video(tmp_path / "test/a/2.mp4", 5, size=(48, 64))
    monkeypatch.chdir(tmp_path)
    problems = check(composed("task=extract", "checkpoint=none", "accelerator=cpu", *words))
    assert any(line.startswith(told) for line in problems), problems
