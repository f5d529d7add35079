"""The measured step and its stages are those of training; nothing here asserts times."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import composed, slow
from vidssl.bench import step
from vidssl.build import Augmentation
from vidssl.registry import ConfigError


def setting(method: str = "moco", *words: str, **changes: Any) -> step.Setting:
    config = composed(
        "task=bench", f"method={method}", "recipe=paper_small", "backbone=tiny", "backbone.width=4", "accelerator=cpu",
        "method.contrast.queue=64", *words,
    )  # fmt: skip
    training = config["bench"]["optimizer"], config["bench"]["schedule"]
    made = step.Setting(config, config["method"], None, *training, 4, 8, 16, torch.device("cpu"))
    return made._replace(**changes)


def color() -> Augmentation:
    return Augmentation(**composed("task=bench")["bench"]["augmentation"])


@pytest.mark.parametrize("method", ["fame", "be", slow("moco"), slow("dclr"), slow("fima")])
def test_stages_are_those_of_the_step(method: str) -> None:
    words = {"dclr": ["method.contrast.fill_steps=0"]}.get(method, [])
    made = setting(method, *words, augmentation=color(), size=32)
    metrics = step.measure(made, 2)
    assert {name.removesuffix("_seconds") for name in metrics if name.endswith("_seconds")} == set(step.STAGES)
    assert all(value >= 0 for value in metrics.values())
    assert metrics["seconds_low"] <= metrics["seconds"] <= metrics["seconds_high"]
    assert metrics["flop"] > 1e6
    assert metrics["clips"] == 4 * len(step.untrained(made).learner.plan.views)
    assert metrics["clips_per_second"] == pytest.approx(metrics["clips"] / metrics["seconds"])
    assert metrics["tflops"] == pytest.approx(metrics["flop"] / metrics["seconds"] / 1e12)
    first, second, third = step.describe(made, metrics)
    assert first.startswith(f"step {method} tiny 4x8x32 fp32: ")
    assert "backward" in second
    assert "TFLOP/s" in third


def test_steps_that_only_fill_the_queue_are_left_out() -> None:
    made = setting("dclr")
    assert made.method["contrast"]["fill_steps"] > 0
    with pytest.raises(ConfigError, match="method=dclr: its first steps do not train"):
        step.measure(made, 1)
    assert step.without_filling(made.method)["contrast"] == made.method["contrast"] | {"fill_steps": 0}
    for method in ("moco", "be_pretext"):
        section = composed("task=bench", f"method={method}")["method"]
        assert step.without_filling(section) == section


def test_a_stage_counts_without_what_has_a_name_of_its_own() -> None:
    ticks = iter(range(100))

    class Work:
        def outer(self) -> None:
            self.inner()

        def inner(self) -> None:
            pass

    work, watch = Work(), step.Stopwatch(lambda: float(next(ticks)))
    watch.watch(work, "outer", "outer")
    watch.watch(work, "inner", "inner")
    work.outer()
    assert watch.spent == {"outer": 2.0, "inner": 1.0}
