"""What evaluation needs is tried before training, and what is left out is logged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import composed, launch, make_video, read_json
from vidssl.build import Run
from vidssl.data.manifest import Listing, Video, allowance
from vidssl.engine import records
from vidssl.engine.log import Log
from vidssl.registry import ConfigError
from vidssl.run.app import run_tasks
from vidssl.run.check import check
from vidssl.run.command import DONE, WRONG
from vidssl.run.preflight import preflight
from vidssl.tasks.scores import write_files

NAMES = ("up", os.fsdecode(b"\xfcbung"), "down")
LINEAR = ("linear.epochs=1", "linear.batch_size=2", "linear.rates=null", "backbone.width=4")
WORDS = ("recipe=demo", "accelerator=cpu", "checkpoint=none", "data.workers=0", "data.processes=1", *LINEAR)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("sound")
    return {frames: make_video(folder / f"{frames}.mp4", frames, size=(48, 64)) for frames in (6, 20)}


@pytest.fixture
def root(tmp_path: Path, sound: dict[int, Path]) -> Path:
    """ROOT/SPLIT/CLASS/NUMBER.mp4: two classes of four training and two test videos."""
    for split, count in (("train", 4), ("test", 2)):
        for name in NAMES[:2]:
            for number in range(count):
                file = tmp_path / "data" / split / name / f"{number}.mp4"
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(sound[20], file)
    return tmp_path / "data"


def prepared(root: Path, *words: str, **missing: list[str]) -> Run:
    config = composed("dataset=folder", f"dataset.root={root}", "task=linear", *WORDS, *words)
    folder = root.parent / "run"
    folder.mkdir()
    run = Run(config, folder, Log(folder), torch.device("cpu"), "none")
    for split in ("train", "test"):
        videos = [
            Video(file.relative_to(root).as_posix(), NAMES.index(file.parent.name))
            for file in sorted((root / split).rglob("*.mp4"))
        ]
        run.listings[split] = Listing(root, videos, NAMES, missing=missing.get(split, ()))
    return run


def damage(file: Path) -> None:
    """Break a file that was scanned already, without its stamp changing."""
    status, content = file.stat(), bytearray(file.read_bytes())
    start = content.find(b"mdat") + 4
    content[start : start + 1500] = b"\xff" * 1500
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_is_left_out_is_logged_with_counts_and_an_example(root: Path, sound: dict[int, Path]) -> None:
    shutil.copy(sound[6], root / "train/up/0.mp4")
    (root / "test" / NAMES[1] / "0.mp4").write_bytes(b"no video")
    run = prepared(root, train=["lost.avi"])
    preflight(run, ["linear"])
    log = (run.output / "train.log").read_text(encoding="utf-8")
    assert "train split: 2 of 9 listed videos are left out: 1 not on disk, for example lost.avi; 1 short, for" in log
    assert r"test split: 1 of 4 listed videos are left out: 1 unreadable, for example test/\xfcbung/0.mp4: cann" in log
    assert "1 of 3 classes have no video in the test split, for example down" in log
    assert sorted(file.name for file in run.output.iterdir()) == ["run.json", "train.log"], "what was tried is removed"


def test_data_of_other_sizes_at_another_place_are_refused_where_a_run_has_left_something(root: Path) -> None:
    run = prepared(root)
    preflight(run, ["linear"])
    assert set(records.data_record(run.output)["splits"]) == {"train", "test"}
    run.config["dataset"]["root"] = f"{root}/../data"
    whole = (root / "train/up/0.mp4").read_bytes()
    (root / "train/up/0.mp4").write_bytes(whole + b"\0")
    run.manifests.clear()
    (run.output / "last.pt").touch()
    with pytest.raises(ConfigError, match="train split: files of other sizes than when the run began"):
        preflight(run, ["linear"])
    (root / "train/up/0.mp4").write_bytes(whole)
    run.manifests.clear()
    preflight(run, ["linear"])
    assert "the same data set at another place" in (run.output / "train.log").read_text()


def test_a_test_split_of_which_most_is_missing_is_refused_unless_a_key_allows_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(root, test=[f"lost{number}.avi" for number in range(9)])
    with pytest.raises(ConfigError, match=r"test split: 9 of 13 listed .* lost0.avi; more than data.most_missing=0.1"):
        preflight(run, ["linear"])
    monkeypatch.setattr("vidssl.build.read_listing", lambda section, split: run.listings[split])
    assert any("data.most_missing=0.1" in problem for problem in check(run.config)), "also before any scan"
    run.config["data"]["most_missing"] = 1.0
    assert not check(run.config)
    preflight(run, ["linear"])


def test_an_evaluation_of_which_no_clip_can_be_made_is_refused_before_training(root: Path) -> None:
    run = prepared(root)
    preflight(run, ["linear"])
    for file in (root / "test").rglob("*.mp4"):
        damage(file)
    with pytest.raises(ConfigError, match=r"test split: no clip of 3 tried videos can be made: .*mp4"):
        preflight(run, ["linear"])


def test_results_have_the_numbers_of_used_and_listed_videos(root: Path, sound: dict[int, Path]) -> None:
    """The linear probe leaves short training videos out, on extracted features as on clips."""
    shutil.copy(sound[6], root / "train/up/0.mp4")
    (root / "test/up/0.mp4").write_bytes(b"no video")
    config = prepared(root).config
    folder = root.parent / "run"
    (folder / "run.json").write_text('{"tasks": {}}')
    run_tasks(config, folder)
    assert read_json(folder / "run.json")["tasks"]["linear"]["splits"] == {
        "train": {"videos": 7, "listed": 8},
        "test": {"videos": 3, "listed": 4},
    }
    assert "(of 7 of 8 train and 3 of 4 test videos)" in (folder / "train.log").read_text()
    assert "\\xfcbung,2," in (folder / "linear-classes.csv").read_text(encoding="utf-8")


def test_a_file_that_cannot_be_written_is_known_before_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, task: str, *rest: object) -> None:
        write_files(folder, task, *rest)
        raise ConfigError("cannot be written")

    monkeypatch.setattr("vidssl.tasks.scores.write_files", fail)
    run = prepared(root)
    with pytest.raises(ConfigError, match="cannot be written"):
        preflight(run, ["linear"])
    assert not list(run.output.glob(".rehearsal*"))


def test_a_small_split_may_lose_some_videos_and_never_all() -> None:
    assert [allowance(count, 0.01) for count in (1, 4, 13, 100, 1000)] == [0.5, 2, 5, 5, 10]


@pytest.mark.slow
def test_a_chain_reads_and_reports_names_that_are_not_utf8(root: Path) -> None:
    shutil.copy(root / "test/up/0.mp4", root / "test/up" / os.fsdecode(b"caf\xe9.mp4"))
    (root / "train/up" / os.fsdecode(b"\xe9.mp4")).write_bytes(b"no video")
    tasks = "task=[pretrain,linear,retrieve,extract,visualize,report,prepare]"
    words = ["dataset=folder", f"dataset.root={root}", *WORDS, tasks, "pretrain.batch_size=4", "pretrain.max_steps=1"]
    answer = launch([*words, "data.cache=mjpeg", "output=run"], root.parent)
    assert answer.status == DONE, answer.err + answer.out
    assert "train/up/\\xe9.mp4: cannot be opened" in answer.out
    for file in ("train.log", "linear-classes.csv", "report.html", "report.md", "report.csv", "run.json"):
        (root.parent / "run" / file).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_finished_training_reaches_its_metrics_with_a_higher_limit(root: Path) -> None:
    for number in range(2, 14):
        shutil.copy(root / "test/up/0.mp4", root / f"test/up/{number}.mp4")
    words = ["dataset=folder", f"dataset.root={root}", *WORDS[: -len(LINEAR)], "backbone.width=4", "output=run"]
    words += ["task=finetune", "finetune.epochs=1", "finetune.batch_size=4"]
    assert launch([*words[:2], "recipe=demo", "task=prepare", "output=scan"], root.parent).status == DONE
    for file in sorted((root / "test/up").glob("*.mp4"))[1:8]:
        damage(file)
    refused = launch(words, root.parent)
    assert refused.status == WRONG
    assert "data.most_damaged=0.01" in refused.err
    answer = launch([*words, "data.most_damaged=0.9"], root.parent)
    assert answer.status == DONE, answer.err + answer.out
    assert "of 9 of 16 test videos" in answer.out
