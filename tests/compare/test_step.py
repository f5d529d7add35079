"""Part step: the released form computes what ours computes; nothing here asserts times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.bench.test_step import setting
from tests.compare import apart, step
from tests.compare.apart import CPU, Apart
from tests.compare.released import Contrast, MoCoStep, follow
from tests.compare.test_reading import Together
from tests.conftest import composed
from vidssl.bench.step import random_clips, untrained
from vidssl.methods.contrast import MomentumEncoder, Queue, contrast_loss


def test_the_released_step_and_ours_compute_the_same() -> None:
    """From the same weights and queue, on the same clips: losses and weights of three steps."""
    words = ("bench.optimizer.lr=0.1", "method.contrast.temperature=0.07", "method.contrast.enqueue=after_each_pass")
    trainer = untrained(setting("moco", *words))
    learner, batch = trainer.learner, random_clips(setting(), trainer.learner)
    group = trainer.optimizer.param_groups[0]
    theirs = MoCoStep(
        learner.online, learner.queue.keys, temperature=0.07, twin_momentum=learner.key_encoder.momentum,
        lr=group["lr"], momentum=group["momentum"], weight_decay=group["weight_decay"],
    )  # fmt: skip
    model = trainer.prepare()
    trainer.steps_per_epoch = 1
    views = learner.views(batch)
    for _ in range(3):
        trainer.step(model, iter([batch]))
        loss = theirs(views.left, views.right)
        ours = trainer.meters.pending[-1][2][0]
        torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
        for mine, released in zip(learner.online.parameters(), theirs.network.parameters(), strict=True):
            torch.testing.assert_close(mine, released, rtol=1e-4, atol=1e-5)


def test_the_contrast_and_the_slow_network_are_the_released_ones() -> None:
    torch.manual_seed(0)
    keys = F.normalize(torch.randn(5000, 8), dim=1)
    query, key = F.normalize(torch.randn(2, 6, 8), dim=-1)
    queue = Queue(8, len(keys))
    queue.keys.copy_(keys)
    mine, released = query.clone().requires_grad_(), query.clone().requires_grad_()
    loss, _, _ = contrast_loss(mine, key, queue, 0.07)
    expected = Contrast(keys, 0.07).loss(released, key)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, released.grad)
    network = nn.Linear(3, 4)
    key_encoder = MomentumEncoder(network, 0.9)
    slow = MomentumEncoder(network, 0.9).network
    nn.init.normal_(network.weight)
    key_encoder.update(network)
    follow(slow, network, 0.9)
    torch.testing.assert_close(key_encoder.network.weight, slow.weight)


def test_something_is_promised_for_what_was_released_alone() -> None:
    config = {"backbone": {"name": "i3d"}}
    promised = setting(config=config, frames=16, size=112)
    assert step.least(promised, "bf16") == step.ON_CPU["i3d"]
    assert step.least(promised._replace(device=torch.device("cuda"), size=224), "bf16") == step.ON_GPU["i3d"]
    for other in (
        promised._replace(size=224),
        promised._replace(frames=8),
        promised._replace(method={"name": "dclr"}),
        promised._replace(config={"backbone": {"name": "tiny"}}),
    ):
        assert step.least(other, "bf16") is None
    assert step.least(promised, "fp32") is None


def test_a_step_has_a_twin_and_a_queue_whatever_the_recipe() -> None:
    demo = composed("task=bench", "method=moco", "recipe=demo")["method"]
    assert demo["contrast"]["queue"] == demo["contrast"]["momentum"] == 0
    made = step.as_published(demo)["contrast"]
    assert (made["queue"], made["momentum"]) == (65536, 0.999)
    small = composed("task=bench", "method=moco", "recipe=paper_small")["method"]
    assert step.as_published(small) == small
    without = composed("task=bench", "method=be_pretext")["method"]
    assert step.as_published(without) == without
    assert (
        step.as_published(composed("task=bench", "method=dclr", "recipe=paper")["method"])["contrast"]["fill_steps"]
        == 0
    )


@pytest.mark.parametrize(("precision", "units"), [("auto", True), ("auto", False), ("fp32", True)])
def test_a_cpu_with_units_for_it_is_measured_in_half(
    precision: str, units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "has_bfloat16", lambda: units)
    run = setting("moco", f"precision={precision}").run()
    changed = step.half_if_it_pays(run)
    assert changed.get("precision") == ("bf16" if precision == "auto" and units else None)
    if changed:
        assert changed["trainer"] == {**run.config["trainer"], "channels_last": True}


def test_the_part_has_a_row_for_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apart, "Apart", Together)
    monkeypatch.setattr(step, "CALLS", 1)
    monkeypatch.setattr(step, "RELEASED", step.RELEASED.__class__(**{**vars(step.RELEASED), "queue": 128}))
    made = setting()
    rows = [step.step_row(made.run(), made, 1), step.follow_row(made, 1), step.contrast_row(made, 1)]
    assert [row.what for row in rows] == ["step moco tiny 4x8x16 fp32", "EMA tiny", "contrast 4 x 128"]
    assert {"tflops", "matmul_tflops", "share_of_matmul", "clips_per_second"} <= rows[0].figures.keys()
    assert rows[0].seconds > 0


def test_candidates_have_a_clock_of_their_device() -> None:
    with Apart(CPU) as processes:
        work = processes.start(sorted_numbers, 100_000)
        work()
        first = processes.clock()
        work()
        assert processes.clock() > first > 0


def sorted_numbers(count: int) -> Any:
    return lambda: sorted(range(count, 0, -1))
