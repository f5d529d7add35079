"""task=bench reads the run's videos and takes its steps; nothing here asserts how long anything takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import HOME, launch, make_video, read_json
from vidssl.run.command import DONE, WRONG, explain, register_resolvers
from vidssl.tasks.bench import verdict

SMALL = ("task=bench", "output=run", "bench.rounds=1", "bench.batch_size=4", "bench.videos=4")


def test_the_runs_own_videos_and_step_are_measured(tmp_path: Path, small: list[str]) -> None:
    answer = launch([*SMALL, *small, "bench.crop_size=16"], tmp_path)
    assert answer.status == DONE, answer.err
    content = read_json(tmp_path / "run/bench.json")
    assert content["schema"] == 2
    assert {"torch", "av", "ffmpeg"} <= content["versions"].keys()
    assert content["machine"]["cores"] >= 1
    assert content["config"]["crop_size"] == 16
    assert content["data"]["videos"] == 4
    result = read_json(tmp_path / "run/result.json")["bench"]
    assert next(iter(result)) == "step_seconds"
    assert result["data_clips_per_second"] == content["data"]["clips_per_second"]
    assert result["step_clips_per_second"] == content["step"]["clips_per_second"]
    assert content["verdict"] in answer.out
    assert "step fame tiny 4x8x16 fp32: " in answer.out


def test_a_part_alone_needs_nothing_of_the_other(tmp_path: Path) -> None:
    words = [*SMALL, "data.workers=1", "dataset.root=nowhere"]
    make_video(tmp_path / "a.mp4", 40)
    answer = launch([*words, "bench.parts=[data]", "bench.files=[a.mp4]"], tmp_path)
    assert answer.status == DONE, answer.err
    content = read_json(tmp_path / "run/bench.json")
    assert content["data"]["workers"] == 1
    assert "step" not in content
    assert "verdict" not in content
    assert not (tmp_path / "nowhere").exists()


def test_the_verdict_says_who_waits_and_what_would_help() -> None:
    def told(loader: float, step: float, **more: float) -> str:
        return verdict({"clips_per_second": loader, "workers": 2.0, **more}, {"clips_per_second": step})

    assert told(100, 50).startswith("compute-bound")
    assert "1 worker would do" in told(100, 50)
    waiting = told(100, 400, **{"mjpeg-160_times": 4.0, "raw-160_times": 8.0})
    assert waiting.startswith("data-bound")
    assert "it needs 8 workers, each with a core" in waiting
    assert "read 4.0 times as fast, 2 workers" in waiting
    assert "data.cache" not in told(100, 400), "what is read are copies already"


COMPARE = "make compare measures ours against other people's code"


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("bench.files=[nowhere.mp4]", "bench.files=nowhere.mp4: no such file or folder"),
        ("bench.parts=[]", "bench.parts=[]: name one or more of data, step"),
        ("bench.parts=[dat]", "bench.parts=dat: no such value. Did you mean data?"),
        ("bench.parts=[aug]", f"bench.parts=[aug]: {COMPARE}: make compare ARGS='aug'"),
        ("bench.parts=[method]", f"bench.parts=[method]: {COMPARE}: make compare ARGS='methods method=...'"),
        ("bench.backbones=[i3d]", "bench.backbones=[i3d]: this key was removed; choose one with backbone=NAME"),
        ("+bench.step_batch_size=2", "bench.step_batch_size=2: this key was removed; set bench.batch_size"),
        ("bench.baseline.contrast.queue=0", "this key was removed; make compare measures"),
        ("method@bench.baseline=fame", "method@bench.baseline=fame: this key was removed; make compare measures"),
    ],
)
def test_former_words_answer_with_the_new_ones(word: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSSL_HOME", str(HOME))
    register_resolvers()
    (line,) = explain(["task=bench", word], HOME)
    assert problem in line


@pytest.mark.slow
def test_one_rank_is_measured(tmp_path: Path) -> None:
    answer = launch([*SMALL, "bench.parts=[step]", "devices=2", "accelerator=cpu"], tmp_path)
    assert answer.status == WRONG
    assert "devices=2: task=bench measures one rank" in answer.err
