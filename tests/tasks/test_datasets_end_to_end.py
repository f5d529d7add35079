"""Trees in the layouts of the real data sets, from real video files, through launch.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import launch, make_video, read_json, read_lines, slow
from vidssl.run.command import DONE, WRONG

CLASSES = ("Archery", "BabyCrawling")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind; trees are made of copies."""
    folder = tmp_path_factory.mktemp("material")
    return {
        "avi": make_video(folder / "a.avi", 44, codec="mpeg4", bf="2", g="44", size=(60, 80)),
        "mp4": make_video(folder / "a.mp4", 44, size=(64, 85 // 2 * 2)),
    }


def ucf101(root: Path, material: dict[str, Path]) -> None:
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for name in CLASSES:
        for split, groups in (("train", (8, 9)), ("test", (1, 2))):
            for group in groups:
                file = f"{name}/v_{name}_g{group:02d}_c01.avi"
                copy(material["avi"], root / "UCF-101" / file)
                lists[split].append(file + (f" {CLASSES.index(name) + 1}" if split == "train" else ""))
    for split, lines in lists.items():
        write(root / "ucfTrainTestlist" / f"{split}list01.txt", lines)


def hmdb51(root: Path, material: dict[str, Path]) -> None:
    for name in ("brush_hair", "cartwheel"):
        lines = []
        for i, mark in enumerate((1, 1, 2, 2, 0)):
            file = f"{name}_clip!_{i}.avi"
            copy(material["avi"], root / "hmdb51_org" / name / file)
            lines.append(f"{file} {mark} ")
        write(root / "testTrainMulti_7030_splits" / f"{name}_test_split1.txt", lines)


def kinetics400(root: Path, material: dict[str, Path]) -> None:
    for split in ("train", "val"):
        for name in ("air drumming", "zumba"):
            for i in range(2):
                copy(material["mp4"], root / split / name / f"{split}{i}abcdefgh_000010_000020.mp4")


def diving48(root: Path, material: dict[str, Path]) -> None:
    for split in ("train", "test"):
        entries = [{"vid_name": f"{split}_{i}", "label": i, "start_frame": 0, "end_frame": 44} for i in range(4)]
        for entry in entries:
            copy(material["mp4"], root / "rgb" / f"{entry['vid_name']}.mp4")
        (root / f"Diving48_V2_{split}.json").write_text(json.dumps(entries))


def folder(root: Path, material: dict[str, Path]) -> None:
    for name in ("jump", "run"):
        for split in ("train", "test"):
            for i in range(2):
                copy(material["mp4"], root / split / name / f"{i}.mp4")


def listed(root: Path, material: dict[str, Path]) -> None:
    for i in range(8):
        copy(material["mp4"], root / f"some where/{i}.mp4")
    write(root / "train.txt", [f"some where/{i}.mp4 44 {i % 2}" for i in range(4)])
    write(root / "test.txt", [f"some where/{i}.mp4 44 {i % 2}" for i in range(4, 8)])


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


TREES: dict[str, tuple[Callable, list[str]]] = {
    "ucf101": (ucf101, []),
    "hmdb51": (hmdb51, []),
    "kinetics400": (kinetics400, []),
    "diving48": (diving48, []),
    "folder": (folder, []),
    "list": (listed, ["dataset.train_list=train.txt", "dataset.test_list=test.txt"]),
}
SMALL = [
    "backbone=tiny", "backbone.width=4", "crop_size=32", "pretrain.batch_size=4", "pretrain.max_steps=2",
    "pretrain.epochs=2", "finetune.batch_size=4", "finetune.max_steps=2", "finetune.epochs=2", "finetune.clips=2",
    "finetune.validate_every=0", "retrieve.clips=2", "data.workers=1", "data.processes=1", "trainer.log_every=1",
]  # fmt: skip


@pytest.mark.parametrize("name", [name if name == "ucf101" else slow(name) for name in TREES])
def test_the_layout_trains_end_to_end(name: str, material: dict[str, Path], tmp_path: Path) -> None:
    make, words = TREES[name]
    root = tmp_path / "root"
    root.mkdir()
    make(root, material)
    words = [f"dataset={name}", f"dataset.root={root}", *words, *SMALL, "task=[pretrain,finetune,retrieve]"]
    answer = launch([*words, "output=run"], tmp_path)
    assert answer.status == DONE, answer.err
    result = read_json(tmp_path / "run/result.json")
    assert {"top1", "top5"} <= set(result["finetune"])
    assert result["retrieve"]["R@5"] == 100.0 or name == "diving48", "few videos, two of each class in the gallery"
    rows = read_lines(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows if row["task"] == "pretrain"] == [1, 2]
    assert (root / ".vidssl-index.jsonl").exists()


def test_prepare_reports_flaws_and_later_runs_leave_them_out(material: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    kinetics400(root, material)
    make_video(root / "train/zumba/short.mp4", 9, size=(64, 84))
    make_video(root / "train/zumba/turned.mp4", 44, size=(64, 84), rotation=90)
    (root / "train/zumba/broken.mp4").write_bytes(b"not a video")
    words = ["task=prepare", "dataset=kinetics400", f"dataset.root={root}", "output=prepared", "data.processes=2"]
    answer = launch([*words, "data.drop=[rotated]"], tmp_path)
    assert answer.status == DONE, answer.err
    for told in ("4 of 7 videos", "1 unreadable", "broken.mp4: cannot be opened", "1 short", "9 frames", "1 rotated"):
        assert told in answer.out
    result = read_json(tmp_path / "prepared/result.json")["prepare"]
    assert (result["train_videos"], result["train_listed"], result["test_videos"]) == (4, 7, 4)
    loop = launch([*words[:-2], "data.short_video=loop", "output=looped"], tmp_path)
    assert "6 of 7 videos" in loop.out


def test_prepare_of_videos_without_labels(tmp_path: Path) -> None:
    for i in range(3):
        make_video(tmp_path / "v" / f"{i}.mp4", 40, size=(32, 48))
    answer = launch(["task=prepare", "dataset=folder", f"dataset.root={tmp_path}/v", "output=run"], tmp_path)
    assert answer.status == DONE, answer.err
    assert "3 of 3 videos" in answer.out
    assert "no test split" in answer.out


def test_unlabelled_videos_pretrain(tmp_path: Path) -> None:
    for i in range(4):
        make_video(tmp_path / "v" / f"{i}.mp4", 40, size=(32, 48))
    words = [
        "dataset=folder",
        f"dataset.root={tmp_path}/v",
        "task=pretrain",
        *SMALL[:6],
        "data.workers=0",
        "output=run",
    ]
    assert launch(words, tmp_path).status == DONE
    assert (tmp_path / "run/backbone.safetensors").exists()


def test_only_unusable_videos_is_an_error_of_the_input(tmp_path: Path) -> None:
    for i in range(4):
        make_video(tmp_path / "v" / f"{i}.mp4", 7, size=(32, 48))
    words = [
        "dataset=folder",
        f"dataset.root={tmp_path}/v",
        "task=pretrain",
        *SMALL[:6],
        "data.workers=0",
        "output=run",
    ]
    answer = launch(words, tmp_path)
    assert answer.status == WRONG
    assert "no video of the train split can be used; 4 short" in answer.err


@pytest.mark.slow
def test_the_second_synthetic_data_set_runs(tmp_path: Path) -> None:
    words = ["dataset=synthetic_scenes", "dataset.train_videos=16", "dataset.test_videos=12", "backbone.width=4",
             "pretrain.batch_size=8", "pretrain.epochs=1", "knn.k=3", "data.workers=0", "output=run"]  # fmt: skip
    answer = launch([*words, "task=[pretrain,knn,retrieve]"], tmp_path)
    assert answer.status == DONE, answer.err
    result = read_json(tmp_path / "run/result.json")
    assert {"top1", "swap_top1"} <= set(result["knn"])
    assert 0 <= result["motion_preference"] <= 100
