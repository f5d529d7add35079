"""What holds for every registered method, with the options of its YAML."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import composed, slow
from tests.methods.test_moco import in_two_processes
from vidssl.augment.photometric import AUGMENTS
from vidssl.backbones.blocks import BACKBONES
from vidssl.clips import Batch
from vidssl.learner import Learner
from vidssl.methods.contrast import METHODS


@cache
def options(name: str, *words: str) -> dict:
    return composed(f"method={name}", "backbone.width=4", *words)


def method(name: str, *words: str) -> Learner:
    """With a narrow tiny backbone; recipe=paper brings queue and twin, at sizes for a test."""
    config = deepcopy(options(name, *words))
    if "contrast" in config["method"] and config["method"]["contrast"]["queue"]:
        config["method"]["contrast"]["queue"] = 24
    if "fill_steps" in config["method"].get("contrast", {}):
        config["method"]["contrast"]["fill_steps"] = 0
    torch.manual_seed(0)
    augment = AUGMENTS.build(config["pretrain"]["augmentation"]["color"])
    return METHODS.build(config["method"], BACKBONES.build(config["backbone"]), augment)


def batch(learner: Learner, size: int = 6, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = len(learner.plan.views)
    clips = torch.randint(0, 256, (size, views, 3, 8, 32, 32), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([0.1, 0.1, 0.9, 0.9]).expand(size, views, 4)
    return Batch(clips, boxes, torch.zeros(size, dtype=torch.int64), torch.arange(size))


RECIPES = ("recipe=demo", "recipe=paper")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", METHODS.names())
def test_one_step_trains_the_backbone_and_leaves_its_input_alone(name: str, recipe: str) -> None:
    learner = method(name, recipe).train()
    given = batch(learner)
    clips = given.clips.clone()
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    before = [parameter.detach().clone() for parameter in learner.backbone.parameters()]
    out = learner(learner.views(given))
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    assert all(not value.requires_grad for value in out.scalars.values())
    out.loss.backward()
    optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, learner.backbone.parameters(), strict=True))
    assert torch.equal(given.clips, clips)
    for key, parameter in learner.named_parameters():
        assert parameter.requires_grad or parameter.grad is None, key
        assert not parameter.requires_grad or parameter.grad is not None, f"{key} gets no gradient"


@pytest.mark.parametrize("name", METHODS.names())
def test_views_are_normalized_floats_that_need_no_gradient(name: str) -> None:
    learner = method(name)
    for view in learner.views(batch(learner)):
        if isinstance(view, Tensor) and view.ndim == 5:
            assert view.dtype == torch.float32
            assert not view.requires_grad
            assert view.abs().max() < 10


@pytest.mark.parametrize("recipe", ["recipe=demo", slow("recipe=paper")])
@pytest.mark.parametrize("name", METHODS.names())
def test_a_saved_state_continues_bit_for_bit(name: str, recipe: str, tmp_path: Path) -> None:
    def steps(learner: Learner, seeds: range) -> list[float]:
        optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
        losses = []
        for seed in seeds:
            torch.manual_seed(seed)
            out = learner(learner.views(batch(learner, seed=seed)))
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            losses.append(out.loss.item())
        return losses

    straight = method(name, recipe).train()
    expected = steps(straight, range(4))
    first = method(name, recipe).train()
    found = steps(first, range(2))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = method(name, recipe).train()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert found + steps(second, range(2, 4)) == expected


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States of all methods after three steps in two processes, which are started once."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(_train_all, folder, str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", METHODS.names())
def test_two_processes_end_with_the_same_weights_and_queues(name: str, recipe: str, trained_by_two: Path) -> None:
    states = [torch.load(trained_by_two / f"{name}-{recipe}-{rank}.pt", weights_only=True) for rank in range(2)]
    for key, value in states[0].items():
        if "running" not in key and "num_batches" not in key:  # each rank's own without broadcast
            torch.testing.assert_close(states[1][key], value, rtol=0, atol=0, msg=key)


def _train_all(rank: int, folder: str) -> None:
    for name in METHODS.names():
        for recipe in RECIPES:
            _train_rank(rank, name, recipe, f"{folder}/{name}-{recipe}-{rank}.pt")


def _train_rank(rank: int, name: str, recipe: str, file: str) -> None:
    learner: Any = method(name, recipe).train()
    model = torch.nn.parallel.DistributedDataParallel(learner)
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        torch.manual_seed(2 * step + rank)
        out = model(learner.views(batch(learner, seed=2 * step + rank)))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    torch.save(learner.state_dict(), file)


@pytest.mark.slow
# be_triplet meets the reversed batch of its own rank, so it depends on how many there are
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "be_triplet"])
def test_two_processes_do_what_one_does_with_all_clips_but_for_batch_statistics(
    name: str, shuffle: bool, tmp_path: Path
) -> None:
    """Batch norm takes its running statistics here; FIMA's negatives in the batch come from both ranks."""
    words = ["recipe=paper"]
    if name != "be_pretext":
        words.append(f"method.contrast.shuffle_bn={str(shuffle).lower()}")
    if name == "fima":
        words.append("method.contrast.gather_negatives=true")
    learner = method(name, *words)
    torch.manual_seed(0)
    views = [learner.views(batch(learner, size=8, seed=seed)) for seed in range(2)]
    torch.save([tuple(step) for step in views], tmp_path / "views.pt")
    in_two_processes(_train_share, tmp_path, name, words, str(tmp_path))
    losses = _train(learner, learner, views)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    joined = [sum(pair) / 2 for pair in zip(*(each["losses"] for each in found), strict=True)]
    assert joined == pytest.approx(losses, rel=1e-5)
    for key, value in learner.state_dict().items():
        for each in found:
            ours, theirs = each["state"][key], value
            if key == "motion_queue.keys":  # the same keys in another order: rank by rank, as released
                ours, theirs = (part[part[:, 0].argsort()] for part in (ours, theirs))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6, msg=key)


def _train_share(rank: int, name: str, words: list[str], folder: str) -> None:
    learner: Any = method(name, *words)
    kind = type(learner.views(batch(learner)))
    views = [kind(*(part.chunk(2)[rank] for part in step)) for step in torch.load(f"{folder}/views.pt")]
    losses = _train(torch.nn.parallel.DistributedDataParallel(learner), learner, views)
    torch.save({"losses": losses, "state": learner.state_dict()}, f"{folder}/{rank}.pt")


def _train(model: torch.nn.Module, learner: Learner, views: list[Any]) -> list[float]:
    learner.eval()
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for step in views:
        out = model(step)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    return losses


def test_clips_are_shown_as_they_were_before_normalization_and_between_their_extremes_where_nobody_knows() -> None:
    learner, clip = method("moco", "recipe=demo"), torch.rand(2, 3, 4, 8, 8)
    normalized = (clip - learner.augment.mean) / learner.augment.std
    torch.testing.assert_close(learner.shown(normalized), clip)
    shown = Learner().shown(5 * clip - 2)
    assert (shown.min().item(), shown.max().item()) == (0.0, 1.0)
