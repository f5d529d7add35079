"""Which videos are read, and that their metrics belong to what training reads; nothing here asserts times."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import composed, make_video
from vidssl.bench import reading
from vidssl.bench.reading import STAGES, chosen_videos, split
from vidssl.build import Augmentation, Run
from vidssl.clips import ClipPlan, View
from vidssl.engine.log import Log
from vidssl.registry import ConfigError

PLAN = ClipPlan(windows=2, views=(View(window=0), View(window=1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for name in "abc":
        make_video(root / f"{name}.mp4", 30)
    make_video(root / "short.mp4", 5)
    (root / "notes.txt").touch()
    return root


def options(files: list[str] | None, **changes: object) -> SimpleNamespace:
    crop = composed("task=bench")["bench"]["augmentation"]["crop"]
    standard = {"videos": 4, "batch_size": 3, "rounds": 2, "clip_frames": 4, "frame_stride": 2, "crop_size": 32}
    return SimpleNamespace(files=files, augmentation=Augmentation(crop, {}), **standard | changes)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = composed("task=bench", "data.workers=0", "data.cache_short=48")
    return Run(config, tmp_path, Log(tmp_path), torch.device("cpu"))


def names(manifest: reading.Manifest) -> list[str]:
    return [manifest.path(place).stem for place in range(len(manifest))]


def test_files_that_are_too_short_are_left_out_and_the_others_repeated(
    folder: Path, run: Run, capsys: pytest.CaptureFixture
) -> None:
    assert names(chosen_videos(run, options([str(folder)], videos=6))) == ["a", "a", "a", "b", "b", "c"]
    assert "short.mp4: 5 frames, a clip spans 8" in capsys.readouterr().out
    assert names(chosen_videos(run, options([str(folder / "b.mp4")], videos=2))) == ["b", "b"]
    with pytest.raises(ConfigError, match="none of 1 files can be used"):
        chosen_videos(run, options([str(folder / "short.mp4")]))


def test_metrics_are_of_the_clips_that_training_reads(folder: Path, run: Run) -> None:
    metrics = reading.measure(run, options([str(folder / "a.mp4"), str(folder / "b.mp4")]), PLAN)
    assert (metrics["videos"], metrics["clips_per_video"], metrics["workers"]) == (4, 2, 0)
    assert metrics["clips_per_second_low"] <= metrics["clips_per_second"] <= metrics["clips_per_second_high"]
    assert metrics.keys() >= {f"{stage}_seconds" for stage in STAGES} | {"mjpeg-48_times", "raw-48_times"}
    assert metrics["seconds_per_video"] > 0
    assert 1 <= metrics["decoded_per_used_frame"] < 30
    first, second, third = reading.describe(metrics)
    assert first.startswith("reading 4 videos, 2 clips of each: ")
    assert "data.workers=0" in first
    assert all(stage in second for stage in STAGES)
    assert "raw-48" in third


def test_a_stage_takes_what_it_adds_to_the_stages_before() -> None:
    seconds = {stage: [place + 1.0, 2 * place + 2.0] for place, stage in enumerate(STAGES)}
    assert split(seconds, 2) == {f"{stage}_seconds": 0.75 for stage in STAGES}
    seconds["decode"] = [0.5, 0.5]
    assert split(seconds, 2)["decode_seconds"] == 0, "noise is no negative time"
