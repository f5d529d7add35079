from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import read_lines
from vidssl.clips import Batch
from vidssl.engine import distributed
from vidssl.engine.log import Log
from vidssl.engine.loop import Session, Trainer, TrainerOptions
from vidssl.engine.meters import NotFinite
from vidssl.engine.optim import OPTIMIZERS, SCHEDULES
from vidssl.learner import Learner, StepOutput
from vidssl.registry import ConfigError


class Input(NamedTuple):
    clip: Tensor
    label: Tensor


class Regression(Learner):
    """Least squares with noise on its input: small, exact, and dependent on the seed of each step."""

    def __init__(self, *, noise: float = 0.0, idle: int = 0, broken_at: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(6, 1)
        self.noise, self.idle, self.broken_at, self.calls = noise, idle, broken_at, 0

    def views(self, batch: Batch) -> Input:
        clip = batch.clips.flatten(1).float() / 255
        return Input(clip + self.noise * torch.randn_like(clip), batch.label.float())

    def forward(self, views: Input) -> StepOutput:
        self.calls += 1
        loss = (self.backbone(views.clip)[:, 0] - views.label).square().mean()
        if self.calls == self.broken_at:
            loss = loss * float("nan")
        return StepOutput(loss, {"twice": 2 * loss.detach()}, update=self.calls > self.idle)


class Data:
    """24 items in batches, as ClipLoader gives them."""

    def __init__(self, size: int):
        generator = torch.Generator().manual_seed(1)
        self.size = size
        self.clips = torch.randint(0, 256, (24, 1, 3, 2, 1, 1), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return 24 // self.size

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(epoch)).split(self.size)
        for rows in order[skip:]:
            yield Batch(self.clips[rows], torch.zeros(len(rows), 1, 4), rows % 3, rows)


OPTIONS = TrainerOptions(
    accumulate=1,
    clip_grad=0.0,
    channels_last=False,
    log_every=2,
    save_every=1,
    keep_every=0,
    pictures_every=0,
    batch_norm="local",
    broadcast_buffers=True,
)


def trainer(
    folder: Path, learner: Learner, *, options: dict | None = None, epochs: int = 3, precision: str = "fp32",
    max_steps: int | None = None, lr: float = 0.02, classes: tuple[str, ...] = (),
) -> Trainer:  # fmt: skip
    optimizer = OPTIMIZERS.build({"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": 0.0}, learner.parameters())
    schedule = SCHEDULES.build({"name": "cosine", "warmup_epochs": 1, "warmup_from": 0.1, "every": "step"})
    return Trainer(
        learner, optimizer, schedule,
        Session("pretrain", Log(folder), {"seed": 5}, 5, torch.device("cpu"), precision, folder / "last.pt", classes),
        TrainerOptions(**{**vars(OPTIONS), **(options or {})}), epochs=epochs, max_steps=max_steps,
    )  # fmt: skip


def weights(learner: Learner) -> list[float]:
    return [value for parameter in learner.parameters() for value in parameter.flatten().tolist()]


def test_it_follows_the_schedule_and_logs_means_over_the_interval(tmp_path: Path) -> None:
    learner = Regression()
    trainer(tmp_path, learner).fit(Data(6))
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert rows[0]["lr"] == pytest.approx(0.02 * (0.1 + 0.9 * 0.25))
    assert all(row["twice"] == pytest.approx(2 * row["loss"]) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize("stops", [[5], [1, 2, 7], [4], [3, 11], [12]])
def test_stopped_and_continued_it_ends_bit_for_bit_where_it_would_have(
    stops: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    straight = Regression(noise=0.3)
    trainer(whole, straight, options={"log_every": 3}).fit(Data(6))
    for stop in stops:
        part = trainer(parts, Regression(noise=0.3), options={"log_every": 3})
        monkeypatch.setattr(distributed, "stop_asked", lambda part=part, stop=stop: part.progress.step == stop)
        with pytest.raises(distributed.Stopped, match=f"step {stop}"):
            part.fit(Data(6))
        with (parts / "metrics.jsonl").open("a") as file:
            file.write('{"task": "pretrain", "step": 999, "epoch": 9}\n')  # of steps after the last save
    monkeypatch.undo()
    continued = Regression(noise=0.3)
    trainer(parts, continued, options={"log_every": 3}).fit(Data(6))
    assert weights(continued) == weights(straight)
    assert (parts / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(folder / name, weights_only=True)["progress"] for folder in (parts, whole))
        assert ours == theirs


def test_states_name_the_classes_and_go_on_with_the_same_alone(tmp_path: Path) -> None:
    trainer(tmp_path, Regression(), max_steps=2).fit(Data(6))
    assert "classes" not in torch.load(tmp_path / "last.pt", weights_only=True)
    trainer(tmp_path, Regression(), max_steps=4, classes=("up", "down")).fit(Data(6))  # from one that names none
    assert torch.load(tmp_path / "last.pt", weights_only=True)["classes"] == ["up", "down"]
    assert trainer(tmp_path, Regression(), max_steps=6, classes=("up", "down")).fit(Data(6)).step == 6
    with pytest.raises(ConfigError, match=r"trained on other classes, 2 \(up, down, ...\); the data set has 3 \(down"):
        trainer(tmp_path, Regression(), classes=("down", "left", "up")).fit(Data(6))


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path) -> None:
    ways = []
    for name, size, accumulate in (("whole", 12, 1), ("parts", 4, 3)):
        (tmp_path / name).mkdir()
        learner = Regression()
        trainer(tmp_path / name, learner, options={"accumulate": accumulate}).fit(Data(size))
        ways.append(weights(learner))
    assert ways[0] == pytest.approx(ways[1], rel=1e-5)


def test_steps_that_only_fill_queues_leave_the_weights_alone(tmp_path: Path) -> None:
    learner = Regression(idle=4)
    before = weights(learner)
    trainer(tmp_path, learner, max_steps=4).fit(Data(6))
    assert weights(learner) == before
    assert learner.calls == 4


def test_a_gradient_is_clipped_to_its_largest_norm(tmp_path: Path) -> None:
    learner = Regression()
    before = torch.tensor(weights(learner))
    trainer(tmp_path, learner, options={"clip_grad": 1e-3}, max_steps=1).fit(Data(6))
    moved = (torch.tensor(weights(learner)) - before).norm().item()
    assert moved == pytest.approx(1e-3 * 0.02 * 0.1, rel=0.05), "norm x rate x warm-up"


def test_a_loss_that_is_not_finite_stops_with_step_and_scalars_and_is_not_saved(tmp_path: Path) -> None:
    learner = Regression(broken_at=6)
    with pytest.raises(NotFinite, match=r"pretrain: not finite at step 6: loss=nan, twice=.*lr="):
        trainer(tmp_path, learner, options={"log_every": 4, "save_every": 4}).fit(Data(6))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["progress"]["step"] == 4
    assert all(value.isfinite().all() for value in state["learner"].values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions_learn(precision: str, tmp_path: Path) -> None:
    learner = Regression()
    trainer(tmp_path, learner, precision=precision, epochs=20).fit(Data(6))
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in learner.parameters())


def test_validation_is_logged_and_the_best_state_kept(tmp_path: Path) -> None:
    scores = iter([10.0, 30.0, 20.0])
    learner = Regression()
    trainer(tmp_path, learner).fit(Data(6), lambda epoch, step: {"top1": next(scores)})
    best = torch.load(tmp_path / "best.pt", weights_only=True)["progress"]
    assert (best["best"], best["step"]) == ({"top1": 30.0}, 8)
    validated = [row for row in read_lines(tmp_path / "metrics.jsonl") if "top1" in row]
    assert [(row["epoch"], row["top1"]) for row in validated] == [(1.0, 10.0), (2.0, 30.0), (3.0, 20.0)]


def test_nothing_to_train_is_nothing_changed(tmp_path: Path) -> None:
    learner = Regression()
    before = weights(learner)
    trainer(tmp_path, learner, epochs=0).fit(Data(6))
    assert weights(learner) == before
    assert (tmp_path / "last.pt").exists()


class Changing(Regression):
    """Gives another scalar from its third step on."""

    def forward(self, views: Input) -> StepOutput:
        output = super().forward(views)
        return output if self.calls < 3 else StepOutput(output.loss, {"thrice": output.loss.detach()})


def test_scalars_that_change_their_names_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^pretrain: a step's scalars are called thrice, those before twice; [^\n]*$"
    ):
        trainer(tmp_path, Changing()).fit(Data(4))


def test_progress_says_no_loss_before_one_is_read_back(tmp_path: Path) -> None:
    learning = trainer(tmp_path, Regression())
    assert learning.meters.note().startswith("loss - ")
    learning.fit(Data(4))
    assert learning.meters.note().startswith(f"loss {learning.meters.last_loss:.3f} ")


def test_learning_rates_of_several_groups_are_logged_apart(tmp_path: Path) -> None:
    learner = Regression()
    groups = [{"params": [learner.backbone.weight], "lr": 0.02}, {"params": [learner.backbone.bias], "lr": 0.002}]
    learning = trainer(tmp_path, learner)
    learning.optimizer = OPTIMIZERS.build({"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}, groups)
    learning.base_rates = [0.02, 0.002]
    learning.fit(Data(4))
    for row in read_lines(tmp_path / "metrics.jsonl"):
        assert row["lr_1"] == pytest.approx(0.1 * row["lr"])
