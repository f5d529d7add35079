"""A step is timed against a baseline of the same run; nothing here asserts how long anything takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import launch, read_json
from vidssl.run.command import DONE, WRONG

SMALL = (
    "task=bench",
    "bench.parts=[method]",
    "output=run",
    "backbone.width=4",
    "bench.batch_size=4",
    "bench.rounds=2",
    "bench.clip_frames=8",
    "bench.crop_size=16",
)


def test_a_step_is_measured_against_the_baseline(tmp_path: Path) -> None:
    """Without a twin, MoCo does a forward and a backward pass for each clip it queries with and, in one direction, a
    forward pass for the keys: 6 against 4 parts, the first layer's backward pass being half of one."""
    answer = launch([*SMALL, "method=moco", "method.contrast.symmetric=true"], tmp_path)
    assert answer.status == DONE, answer.err
    found = read_json(tmp_path / "run/result.json")["bench"]
    assert 0 < found["ratio_low"] <= found["ratio"] <= found["ratio_high"]
    assert found["flop_ratio"] == pytest.approx(1.5, rel=0.05)
    assert f"{found['ratio']:.2f} times" in answer.out
    assert not (tmp_path / "data").exists(), "no data set is needed"


def test_the_baseline_is_a_whole_method_section(tmp_path: Path) -> None:
    words = [*SMALL, "method=moco", "method@bench.baseline=fame", "bench.baseline.contrast.symmetric=true"]
    assert launch(words, tmp_path).status == DONE
    assert read_json(tmp_path / "run/result.json")["bench"]["flop_ratio"] == pytest.approx(
        1.0, rel=0.05
    )  # the mask is no network
    answer = launch([*SMALL, "bench.baseline.contrast.queue=-1"], tmp_path)
    assert answer.status == WRONG
    assert "bench.baseline.contrast.queue=-1: must lie in [0, inf)" in answer.err
