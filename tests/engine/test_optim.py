from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from tests.conftest import GOLDEN, golden
from vidssl.engine.optim import OPTIMIZERS, SCHEDULES, Schedule

PLAIN = {"warmup_epochs": 0, "warmup_from": 0.0, "every": "epoch"}


def schedule(name: str, **options: object) -> Schedule:
    return SCHEDULES.build({"name": name, **PLAIN, **options})


RECORDED = json.loads((GOLDEN / "moco/lr_schedules.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_golden_rates_by_epoch(name: str) -> None:
    """schedule.every=epoch; the release's warm-up counts its first milestone as the warm-up's end."""
    arguments, rates = RECORDED[name]["args"], RECORDED[name]["lr_per_epoch"]
    if arguments["cos"]:
        found = schedule("cosine")
    elif arguments["warmup"]:
        first, *milestones = arguments["schedule"]
        start = arguments["wp_lr"] / arguments["lr"]
        found = schedule(
            "steps", milestones=milestones, decay=arguments["lr_decay"], warmup_epochs=first, warmup_from=start
        )
    else:
        found = schedule("steps", milestones=arguments["schedule"], decay=arguments["lr_decay"])
    for epoch, rate in enumerate(rates):
        for within in (0.0, 0.4, 0.99):
            factor = found.factor(epoch + within, arguments["epochs"])
            assert arguments["lr"] * factor == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize(
    ("array", "rate", "milestones", "decay"),
    [("pt", 0.003, [120, 160, 200], 0.1), ("ft", 0.001, [10, 20, 25, 30, 35, 40], 0.3)],
)
def test_golden_rates_of_be(array: str, rate: float, milestones: list[int], decay: float) -> None:
    """Its pretraining counts epochs from 1 and changes the rate after a milestone: that is at it, counted from 0."""
    found, rates = schedule("steps", milestones=milestones, decay=decay), golden("be/lr.npz")[array]
    for epoch, expected in enumerate(rates):
        assert rate * found.factor(epoch, len(rates)) == pytest.approx(expected, rel=0, abs=1e-12)


def test_cosine_by_step_with_warm_up_ends_at_zero() -> None:
    found = schedule("cosine", warmup_epochs=2, warmup_from=0.1, every="step")
    assert found.factor(0, 10) == pytest.approx(0.1)
    assert found.factor(1, 10) == pytest.approx(0.55)
    assert found.factor(2, 10) == pytest.approx(1.0)
    assert found.factor(6, 10) == pytest.approx(0.5)
    assert found.factor(10, 10) == pytest.approx(0.0, abs=1e-12)
    assert found.factor(3.5, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi * 1.5 / 8)))


def test_constant() -> None:
    assert {schedule("constant").factor(epoch, 10) for epoch in (0, 3.3, 10)} == {1.0}


def test_optimizers_get_their_options() -> None:
    parameters = list(nn.Linear(3, 2).parameters())
    sgd = OPTIMIZERS.build({"name": "sgd", "lr": 0.1, "momentum": 0.8, "weight_decay": 0.01}, parameters)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.1, 0.8, 0.01)
    assert not sgd.defaults["nesterov"]
    adamw = OPTIMIZERS.build({"name": "adamw", "lr": 0.1, "betas": [0.8, 0.9], "weight_decay": 0.01}, parameters)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.9)
