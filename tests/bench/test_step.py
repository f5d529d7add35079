"""The part step measures what training does, against a form that computes the same; nothing here asserts times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.bench.test_data import Together
from tests.conftest import composed, launch, read_json, slow
from vidssl.bench import apart, record, step
from vidssl.bench.apart import CPU, Apart
from vidssl.bench.released import Contrast, MoCoStep, follow
from vidssl.bench.timing import Row
from vidssl.build import Augmentation
from vidssl.methods.contrast import MomentumEncoder, Queue, contrast_loss
from vidssl.tasks.bench import verdicts


def setting(method: str = "moco", *words: str, **changes: Any) -> step.Setting:
    config = composed(
        "task=bench", f"method={method}", "recipe=paper_small", "backbone=tiny", "backbone.width=4", "accelerator=cpu",
        "method.contrast.queue=64", *words,
    )  # fmt: skip
    bench = config["bench"]
    made = step.Setting(config, config["method"], None, bench["optimizer"], bench["schedule"], 4, 8, 16, CPU)
    return made._replace(**changes)


def test_the_released_step_and_ours_compute_the_same() -> None:
    """From the same weights and queue, on the same clips: losses and weights of three steps."""
    words = ("bench.optimizer.lr=0.1", "method.contrast.temperature=0.07", "method.contrast.enqueue=after_each_pass")
    trainer = step.untrained(setting("moco", *words))
    learner, batch = trainer.learner, step.clips(setting(), trainer.learner)
    group = trainer.optimizer.param_groups[0]
    theirs = MoCoStep(
        learner.online, learner.queue.keys, temperature=0.07, twin_momentum=learner.key_encoder.momentum,
        lr=group["lr"], momentum=group["momentum"], weight_decay=group["weight_decay"],
    )  # fmt: skip
    model = trainer.prepare()
    views = learner.views(batch)
    for _ in range(3):
        trainer.steps_per_epoch = 1
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
    key_encoder.follow(network)
    follow(slow, network, 0.9)
    torch.testing.assert_close(key_encoder.network.weight, slow.weight)


@pytest.mark.parametrize("method", ["fame", "be", slow("moco"), slow("dclr"), slow("fima")])
def test_stages_are_those_of_the_step(method: str) -> None:
    chain = composed("task=bench")["bench"]["augmentation"]
    words = {"dclr": ["method.contrast.fill_steps=0"]}.get(method, [])
    made = setting(method, *words, augmentation=Augmentation(**chain), size=32)
    figures = step.stages(made, 2)
    stages = {name.removesuffix("_seconds") for name in figures if name.endswith("_seconds")}
    assert stages == {
        "to_device", "views", "color", "queries", "keys", "ema", "queue", "loss", "backward", "optimizer", "rest"
    }  # fmt: skip
    assert all(value >= 0 for value in figures.values())
    assert figures["flop"] > 1e6
    assert figures["clips"] == 4 * len(step.untrained(made).learner.plan.views)


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
    monkeypatch.setattr(record, "has_bfloat16", lambda: units)
    run = setting("moco", f"precision={precision}").run()
    changed = step.half_if_it_pays(run)
    assert changed.get("precision") == ("bf16" if precision == "auto" and units else None)
    if changed:
        assert changed["trainer"] == {**run.config["trainer"], "channels_last": True}


def test_the_verdict_says_who_waits_and_what_would_help() -> None:
    assert step.verdict(100.0, 2, 50.0, None).startswith("compute-bound")
    assert "1 worker would do" in step.verdict(100.0, 2, 50.0, 4.0)
    told = step.verdict(100.0, 2, 400.0, 4.0)
    assert told.startswith("data-bound")
    assert "it needs 8 workers, each with a core" in told
    assert "read 4.0 times as fast, 2 workers" in told
    rows = [
        Row("data", "read a (x)", "official style", 4, 4, 4, seconds=0.4),
        Row("data", "read a (x) from a copy, mjpeg-128", "official style", 16, 16, 16, seconds=0.1),
        Row("data", "loader with 2 workers", "no worker", 2, 2, 2, figures={"clips_per_second": 100, "workers": 2}),
        Row("step", "step moco", "released form", 2, 2, 2, figures={"clips_per_second": 400}),
        Row("step", "EMA", "released form", 2, 2, 2),
    ]
    assert verdicts(rows) == [f"step moco is {told}"]
    assert verdicts(rows[:2] + rows[3:]) == []


def test_the_part_has_a_row_for_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apart, "Apart", Together)
    monkeypatch.setattr(step, "CALLS", 1)
    monkeypatch.setattr(step, "RELEASED", step.RELEASED.__class__(**{**vars(step.RELEASED), "queue": 128}))
    made = setting()
    rows = [step.step_row(made.run(), made, 1), step.follow_row(made, 1), step.contrast_row(made, 1)]
    assert [row.what for row in rows] == ["step moco tiny 4x8x16 fp32", "EMA tiny", "contrast 4 x 128"]
    assert {"tflops", "matmul_tflops", "share_of_matmul", "clips_per_second"} <= rows[0].figures.keys()
    assert rows[0].seconds > 0
    assert "TFLOP/s" in step.told(rows[0].figures)


@pytest.mark.slow
def test_it_runs_and_leaves_its_figures(tmp_path: Path) -> None:
    words = ["task=bench", "bench.parts=[step]", "bench.backbones=null", "backbone=tiny", "backbone.width=4"]
    words += ["bench.rounds=2", "bench.step_batch_size=2", "bench.clip_frames=8", "bench.crop_size=32", "output=run"]
    answer = launch(words, tmp_path)
    assert answer.status == 0, answer.err
    rows = record.read(tmp_path / "run/bench.json")
    assert [row.what.split()[0] for row in rows] == ["step", "EMA", "contrast"]
    assert rows[0].figures["share_of_matmul"] > 0
    assert all(row.seconds > 0 for row in rows)
    assert f"step: {rows[0].what} / released form" in read_json(tmp_path / "run/result.json")["bench"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bench.backbones=[i4d]"], "bench.backbones=i4d: no such value. Did you mean i3d?"),
        (["bench.backbones=[tiny]"], "bench.backbones=tiny: has options; set backbone=tiny"),
        (["bench.backbones=[s3dg]", "bench.crop_size=8"], "bench.backbones=s3dg: cannot take clips of bench.clip_"),
    ],
)
def test_backbones_that_cannot_be_measured_are_told_before_work(words: list[str], told: str, tmp_path: Path) -> None:
    answer = launch(["task=bench", "bench.parts=[step]", *words], tmp_path)
    assert answer.status == 2
    assert told in answer.err


def test_candidates_have_a_clock_of_their_device() -> None:
    with Apart(CPU) as processes:
        work = processes.start(sorted_numbers, 100_000)
        work()
        first = processes.clock()
        work()
        assert processes.clock() > first > 0


def sorted_numbers(count: int) -> Any:
    return lambda: sorted(range(count, 0, -1))


@pytest.mark.slow
def test_it_measures_one_rank(tmp_path: Path) -> None:
    answer = launch(["task=bench", "bench.parts=[step]", "devices=2", "accelerator=cpu", "output=run"], tmp_path)
    assert answer.status == 2
    assert "devices=2: bench.parts=[step] measures the step of one rank" in answer.err
