"""The linear probe on extracted features: the same as on clips, and all rates at once the same as each alone."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import composed, read_lines
from vidssl import build
from vidssl.build import Run
from vidssl.engine.log import Log
from vidssl.evaluation.classifier import Probe, Probes
from vidssl.registry import ConfigError, read_options
from vidssl.tasks.classify import Linear, held_out


def prepared(folder: Path, *words: str) -> tuple[Linear, Run]:
    """The task and a run for it, on an untrained network."""
    config = composed("task=linear", "checkpoint=none", "accelerator=cpu", *words)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(config, folder, Log(folder, rank=0), torch.device("cpu"), "none")
    return Linear(**read_options(Linear, config["linear"])), run


def probed(folder: Path, *words: str) -> tuple[dict[str, float], dict[str, Tensor], list[float]]:
    """Figures, the layer that is left, and the losses."""
    linear, run = prepared(folder, *words)
    figures = linear(run)
    learner = torch.load(run.checkpoint, weights_only=True)["learner"]
    losses = [row["loss"] for row in read_lines(folder / "metrics.jsonl") if "loss" in row and row["task"] == "linear"]
    return figures, {key: value for key, value in learner.items() if key.startswith("head.")}, losses


# a window as long as a synthetic video, so that it has one place, and a crop without chance
NO_CHANCE = ("clip_frames=20", "linear.clips=1", "linear.epochs=4", "linear.batch_size=8", "trainer.log_every=1")
ONLINE = ("linear.features=online",)


@pytest.mark.parametrize("normalize", ["none", "unit"])
def test_on_extracted_features_it_is_what_it_is_on_clips(normalize: str, small: list[str], tmp_path: Path) -> None:
    words = [*small, *NO_CHANCE, f"linear.normalize={normalize}"]
    cached, layer, losses = probed(tmp_path / "cached", *words)
    online, its_layer, its_losses = probed(tmp_path / "online", *words, *ONLINE)
    assert len(losses) == 8
    assert losses == pytest.approx(its_losses, abs=1e-4)
    assert losses[-1] < losses[0]
    for key, value in layer.items():
        torch.testing.assert_close(value, its_layer[key], atol=1e-4, rtol=0)
    assert cached == pytest.approx(online, abs=1e-4)


@pytest.mark.slow
def test_on_extracted_features_it_is_ten_times_as_fast(small: list[str], tmp_path: Path) -> None:
    words = [*small, *NO_CHANCE, "linear.normalize=unit", "linear.epochs=20", "dataset.train_videos=160"]
    words += ["linear.batch_size=32", "trainer.log_every=100"]
    prepared_words = [*words, "linear.epochs=1", "linear.max_steps=1"]
    probed(tmp_path / "render", *prepared_words)  # renders and scans
    seconds, figures = {}, {}
    for name, more in (("cached", ()), ("online", ONLINE)):
        begun = time.process_time()  # other work on the machine does not count
        figures[name], _, _ = probed(tmp_path / name, *words, *more)
        seconds[name] = time.process_time() - begun
    assert figures["cached"] == pytest.approx(figures["online"], abs=1e-4)
    assert seconds["online"] > 10 * seconds["cached"], seconds


# -- rates


def trained(run: Run, linear: Linear, learner: nn.Module, rates: list[float], data: tuple[Tensor, Tensor]) -> None:
    groups = (
        learner.groups() if isinstance(learner, Probes) else [{"params": list(learner.parameters()), "lr": rates[0]}]
    )
    build.trainer(run, "linear", learner, linear, file=None, groups=groups).fit(linear.loader(run, *data))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_all_rates_at_once_are_each_rate_alone(optimizer: str, tmp_path: Path) -> None:
    linear, run = prepared(
        tmp_path, f"optimizer@linear.optimizer={optimizer}", "linear.epochs=5", "linear.batch_size=8"
    )
    torch.manual_seed(0)
    data = torch.randn(40, 6), torch.randint(3, (40,))
    head, rates = nn.Linear(6, 3), [0.003, 0.1, 1.0]
    together = Probes(head, rates)
    trained(run, linear, together, rates, data)
    for place, rate in enumerate(rates):
        alone = Probe(nn.Linear(6, 3))
        alone.head.load_state_dict(head.state_dict())
        trained(run, linear, alone, [rate], data)
        torch.testing.assert_close(together.weights[place], alone.head.weight, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.biases[place], alone.head.bias, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.logits(data[0])[:, place], alone.head(data[0]), atol=1e-4, rtol=1e-4)


def test_the_best_rate_trains_on_all_videos_and_is_told(small: list[str], tmp_path: Path) -> None:
    words = [*small, "linear.epochs=3", "linear.batch_size=8"]
    swept, layer, _ = probed(tmp_path / "swept", *words, "linear.rates=[0.3,0.00001]")
    rate = swept["rate"]
    held = {each: swept[f"held_out_top1@{each:g}"] for each in (0.00001, 0.3)}
    assert held[rate] == max(held.values())
    assert next(iter(swept)) == "top1"
    alone, its_layer, _ = probed(tmp_path / "alone", *words, f"linear.optimizer.lr={rate}")
    assert {name: swept[name] for name in alone} == alone
    assert all(torch.equal(value, its_layer[key]) for key, value in layer.items())
    assert {"top1", "top5", "class_top1", "top1_low", "top1_high", "swap_top1"} <= alone.keys()
    assert alone["top1_low"] <= alone["top1"] <= alone["top1_high"]


def test_of_rates_that_do_equally_well_the_smaller_is_taken(small: list[str], tmp_path: Path) -> None:
    linear, run = prepared(tmp_path, *small, "linear.epochs=0", "linear.rates=[3.0,0.2,1.0]", "linear.batch_size=8")
    features, label = torch.randn(16, 5), torch.arange(16) % 8
    rate, tried = linear.best_rate(run, nn.Linear(5, 8), features, label)
    assert rate == tried["rate"] == 0.2
    assert len({tried[f"held_out_top1@{each:g}"] for each in (0.2, 1.0, 3.0)}) == 1


def test_a_part_of_each_class_is_held_out_and_never_all() -> None:
    label = torch.tensor([0] * 10 + [1] * 3 + [2] * 2 + [3])
    away = held_out(label, 0.2, seed=0)
    assert [int(away[label == number].sum()) for number in range(4)] == [2, 1, 1, 0]
    assert torch.equal(away, held_out(label, 0.2, seed=0))
    assert not torch.equal(away, held_out(label, 0.2, seed=1))
    assert [int(held_out(label, 0.99, seed=0)[label == number].sum()) for number in range(4)] == [9, 2, 1, 0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"features": "online", "normalize": "unit", "rates": [0.1]}, "linear.rates=[0.1]: are tried on features"),
        ({"rates": [0.1, 0.1]}, "linear.rates=[0.1, 0.1]: each rate once"),
        ({"rates": []}, "linear.rates=[]"),
        ({"features": "online"}, "linear.normalize=standardize"),
        ({"average": "probabilities"}, "linear.average=probabilities: features=cached averages the features"),
        ({"validate_every": 1}, "linear.validate_every=1"),
    ],
)
def test_contradictions_are_told_before_work(changes: dict[str, Any], told: str) -> None:
    section = composed("task=linear")["linear"] | changes
    assert any(line.startswith(told) for line in Linear(**read_options(Linear, section)).problems())


# -- files


def test_scores_and_a_row_for_each_class_are_left(small: list[str], tmp_path: Path) -> None:
    figures, _, _ = probed(tmp_path, *small, "linear.epochs=2", "linear.batch_size=8")
    classes = torch.load(tmp_path / "last.pt", weights_only=True)["classes"]
    left = load_file(tmp_path / "linear-scores.safetensors")
    assert (left["scores"].shape, left["scores"].dtype) == ((12, 8), torch.float32)
    assert left["index"].tolist() == list(range(12))
    hit = left["scores"].argmax(dim=1) == left["label"]
    assert 100 * hit.double().mean().item() == pytest.approx(figures["top1"])
    with (tmp_path / "linear-classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["videos"]) for row in rows) == 12
    assert [row["class"] for row in rows] == classes
    each = [float(row["top1"]) for row in rows if row["top1"]]
    assert sum(each) / len(each) == pytest.approx(figures["class_top1"], abs=0.01)
    assert list(rows[0]) == ["class", "videos", "top1", "confused_with", "confused"]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_with_fewer_usable_videos_than_a_batch_it_still_makes_a_step(accumulate: int, tmp_path: Path) -> None:
    linear, run = prepared(tmp_path, "linear.batch_size=12", f"trainer.accumulate={accumulate}")
    loader = linear.loader(run, torch.zeros(7, 2), torch.zeros(7, dtype=torch.int64))
    assert len(loader) // accumulate == 1
    with pytest.raises(ConfigError, match=r"trainer.accumulate=8: linear has only 7 videos to train on"):
        linear, run = prepared(tmp_path, "linear.batch_size=16", "trainer.accumulate=8")
        linear.loader(run, torch.zeros(7, 2), torch.zeros(7, dtype=torch.int64))
