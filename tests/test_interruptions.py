"""Whatever interrupts a run, the same command ends it as if nothing had happened; and ranks share one run's work."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import launch, read_json, read_lines, start
from tests.ranks.test_processes import children, lines
from tests.run.test_app import outcome
from vidssl.run.command import DONE, STOPPED

RUN = ("task=[pretrain,linear]", "dataset.train_videos=64", "pretrain.epochs=60", "pretrain.batch_size=8")
RUN += ("linear.epochs=2", "linear.batch_size=8", "trainer.save_every=3", "devices=2", "accelerator=cpu")
RUN += ("data.workers=1", "method.contrast.queue=20", "method.contrast.momentum=0.9", "trainer.keep_every=20")
KILLS, SIGNALS = 20, 10


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_and_ten_signals_change_nothing(small: list[str], tmp_path: Path) -> None:
    """Two ranks. Killed is the command or one of its ranks, at any moment: while starting, training or saving."""
    words = [*small, *RUN]
    assert launch([*words, "output=straight"], tmp_path).status == DONE
    chance, file = random.Random(0), tmp_path / "run/metrics.jsonl"
    plan = ["kill"] * KILLS + ["signal"] * SIGNALS
    chance.shuffle(plan)
    seen = set()
    for what in plan:
        before = lines(file)
        process = start([*words, "output=run"], tmp_path, tmp_path / ".launched")
        wait_for_progress(process, file, before, chance)
        assert process.is_alive(), f"ended before it was interrupted: {(tmp_path / '.launched.err').read_text()}"
        check_files(tmp_path / "run")
        seen.add(interrupt(process, what, chance))
        process.join(60)
        assert not process.is_alive()
        assert what == "kill" or process.exitcode == STOPPED, (tmp_path / ".launched.err").read_text()
        check_files(tmp_path / "run")
    assert seen == {"command", "rank", signal.SIGTERM, signal.SIGUSR2}
    assert read_json(tmp_path / "run/run.json")["status"] != "done"
    assert launch([*words, "output=run"], tmp_path).status == DONE
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")
    for name in ("best.pt", "epoch-20.pt", "linear.last.pt"):
        ours, theirs = (torch.load(tmp_path / run / name, weights_only=True) for run in ("run", "straight"))
        assert all(torch.equal(ours["learner"][key], value) for key, value in theirs["learner"].items()), name


def wait_for_progress(process, file: Path, before: int, chance: random.Random) -> None:
    """Mostly for some steps after it has begun to train; sometimes for less, as long as it has not."""
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 3))
        return
    wanted, deadline = before + chance.randint(1, 12), time.monotonic() + 60
    while process.is_alive() and lines(file) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.05))


def interrupt(process, what: str, chance: random.Random) -> str | int:
    if what == "signal":
        number = chance.choice((signal.SIGTERM, signal.SIGUSR2))
        os.kill(process.pid, number)
        return number
    ranks = children(process.pid)
    if ranks and chance.random() < 0.5:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(ranks), signal.SIGKILL)
        return "rank"
    os.kill(process.pid, signal.SIGKILL)
    return "command"


def check_files(run: Path) -> None:
    """Every file that looks like a state is one, whole."""
    for file in run.glob("*.pt"):
        assert torch.load(file, weights_only=True)["format"] == 1


EQUAL = ("task=pretrain", "dataset.train_videos=64", "pretrain.epochs=3", "pretrain.batch_size=8", "optimizer=sgd")
EQUAL += ("pretrain.optimizer.lr=1", "augmentation@pretrain.augmentation=none", "trainer.batch_norm=frozen")
EQUAL += ("method.contrast.shuffle_bn=false", "method.contrast.head=mlp", "method.contrast.queue=16")
EQUAL += ("method.contrast.momentum=0.9", "method.contrast.dim=16", "accelerator=cpu")


@pytest.mark.slow
@pytest.mark.parametrize("method", [("method=moco",), ("method=fame", "method.background=intra")], ids=" ".join)
def test_two_ranks_learn_what_one_learns(method: tuple[str, ...], small: list[str], tmp_path: Path) -> None:
    """The same global batch, without draws of a rank's own, with batch norm's statistics as an earlier run left them.

    Losses agree to 1e-5 over 24 steps in which they grow tenfold, weights to 1e-4; and a second run of two ranks is
    the first, bit for bit.
    """
    first = [*small, "task=pretrain", "dataset.train_videos=64", "pretrain.epochs=1", "pretrain.batch_size=8"]
    assert launch([*first, "output=first"], tmp_path).status == DONE
    words = [*small, *EQUAL, *method, "checkpoint=first/backbone.safetensors"]
    for name, devices in (("one", 1), ("two", 2), ("again", 2)):
        answer = launch([*words, f"devices={devices}", f"output={name}"], tmp_path)
        assert answer.status == DONE, answer.err
    losses = {name: [row["loss"] for row in read_lines(tmp_path / name / "metrics.jsonl")] for name in ("one", "two")}
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    assert max(losses["one"]) > 5 * min(losses["one"]), "they say something"
    one, two = (torch.load(tmp_path / name / "last.pt", weights_only=True)["learner"] for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=key)
    assert outcome_of_training(tmp_path / "again") == outcome_of_training(tmp_path / "two")


def outcome_of_training(run: Path) -> tuple:
    state = torch.load(run / "last.pt", weights_only=True)["learner"]
    return (run / "metrics.jsonl").read_text(), {key: value.numpy().tobytes() for key, value in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("words", [("method=moco",), ("method=dclr", "method.contrast.fill_steps=3")], ids=" ".join)
def test_three_ranks_resume_bit_for_bit(words: tuple[str, ...], small: list[str], tmp_path: Path) -> None:
    """Sums of three ranks depend on their order, which must not depend on when a run was started."""
    run = [*small, "task=pretrain", "dataset.train_videos=48", "pretrain.batch_size=12", "devices=3", "accelerator=cpu"]
    run += [*words, "pretrain.epochs=3", "trainer.save_every=1", "method.contrast.queue=24"]
    assert launch([*run, "output=straight"], tmp_path).status == DONE
    process = start([*run, "output=run"], tmp_path, tmp_path / ".launched")
    deadline = time.monotonic() + 100
    while lines(tmp_path / "run/metrics.jsonl") < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert lines(tmp_path / "run/metrics.jsonl") < 12
    assert launch([*run, "output=run"], tmp_path).status == DONE
    assert outcome_of_training(tmp_path / "run") == outcome_of_training(tmp_path / "straight")
