from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import golden
from vidssl.clips import Batch
from vidssl.evaluation.classifier import Classifier, Labelled, average, pooled
from vidssl.evaluation.features import per_video
from vidssl.evaluation.metrics import accuracy, interval, knn, motion_preference, nearest, recall, unit


def test_golden_retrieval_centered() -> None:
    """retrieve.centered=true."""
    file = {key: torch.from_numpy(value) for key, value in golden("moco/retrieval.npz").items()}
    found = recall(
        file["test_features"], file["test_labels"], file["train_features"], file["train_labels"], centered=True
    )
    expected = dict(zip(file["k"].tolist(), file["recall"].tolist(), strict=True))
    assert {k: found[f"R@{k}"] / 100 for k in expected} == pytest.approx(expected, abs=1e-6)
    plain = recall(
        file["test_features"], file["test_labels"], file["train_features"], file["train_labels"], centered=False
    )
    assert plain["R@1"] != pytest.approx(found["R@1"], abs=1e-6), "centering matters on this file"


def test_golden_retrieval_of_be() -> None:
    """retrieve.centered=false."""
    file = {key: torch.from_numpy(np.asarray(value)) for key, value in golden("be/retrieval.npz").items()}
    distance = 1 - unit(file["val_x"], centered=False) @ unit(file["train_x"], centered=False).T
    torch.testing.assert_close(distance, file["cosine_distance"], rtol=0, atol=1e-6)
    found = recall(file["val_x"], file["val_y"], file["train_x"], file["train_y"], centered=False)
    for k, hits, percent in zip(*(file[key].tolist() for key in ("ks", "correct", "acc_percent")), strict=True):
        assert round(found[f"R@{k}"] * len(file["val_y"]) / 100, 6) == hits
        assert found[f"R@{k}"] == pytest.approx(percent)


def test_accuracy_counts_the_k_highest() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.2], [0.3, 0.2, 0.5], [0.3, 0.2, 0.5]])
    label = torch.tensor([1, 2, 2, 0])
    assert accuracy(scores, label, (1, 2)) == {"top1": 50.0, "top2": 100.0, "class_top1": 50.0}
    assert accuracy(scores, label) == {"top1": 50.0, "top5": 100.0, "class_top1": 50.0}, "fewer classes than five"


def test_accuracy_of_random_scores_is_chance() -> None:
    torch.manual_seed(0)
    found = accuracy(torch.rand(20000, 50), torch.randint(50, (20000,)))
    assert found["top1"] == pytest.approx(2.0, abs=0.4)
    assert found["top5"] == pytest.approx(10.0, abs=0.8)


def test_each_query_finds_itself_first() -> None:
    torch.manual_seed(0)
    features, label = torch.randn(60, 16), torch.arange(60)
    for centered in (True, False):
        assert nearest(features, features, 1, centered=centered)[:, 0].tolist() == list(range(60))
        assert recall(features, label, features, label, centered=centered)["R@1"] == 100.0


def test_scale_and_common_offset_do_not_matter_when_centered() -> None:
    torch.manual_seed(1)
    queries, gallery = torch.randn(40, 8), torch.randn(70, 8)
    labels = torch.randint(5, (40,)), torch.randint(5, (70,))
    plain = recall(queries, labels[0], gallery, labels[1], centered=True)
    assert plain == recall(3 * queries + 7, labels[0], 0.5 * gallery - 2, labels[1], centered=True)


def test_knn_of_one_neighbour_is_its_class_and_weights_decide_ties() -> None:
    gallery = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.3], [-1.0, 0.1], [-0.9, -0.4]]), dim=1)
    label = torch.tensor([0, 1, 2, 2])
    scores = knn(gallery, gallery, label, 3, k=1, temperature=0.07)
    assert scores.argmax(1).tolist() == label.tolist()
    both = knn(gallery[:1], gallery, label, 3, k=2, temperature=0.07)
    assert both.argmax(1).item() == 0
    assert (both > 0).sum() == 2


def test_motion_preference_ends_are_known() -> None:
    torch.manual_seed(0)
    motion, background, other = torch.randn(50, 8), torch.randn(50, 8), torch.randn(50, 8)

    def network(share: float) -> float:
        def see(m: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.cat([share * m, (1 - share) * b], dim=1)

        return motion_preference(see(motion, background), see(motion, other), see(torch.randn(50, 8), background))

    assert network(1.0) == 100.0
    assert network(0.0) == 0.0
    assert 20 < network(0.5) < 80


def test_the_bootstrap_interval_is_that_of_a_mean() -> None:
    torch.manual_seed(0)
    hits = 100 * (torch.rand(400) < 0.3).double()
    low, high = interval(hits, seed=0)
    error = hits.std().item() / 400**0.5
    assert (low, high) == pytest.approx((hits.mean().item() - 1.96 * error, hits.mean().item() + 1.96 * error), abs=0.6)
    assert interval(hits, seed=0) == (low, high)
    assert interval(torch.full((7,), 100.0), seed=3) == (100.0, 100.0)


# -- features


def batches(order: list[list[int]]) -> list[Batch]:
    clips = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1, 1, 1).expand(6, 2, 3, 1, 2, 2).clone()
    clips[:, 1] += 10
    return [
        Batch(clips[rows], torch.zeros(len(rows), 2, 4), torch.tensor(rows) * 7, torch.tensor(rows)) for rows in order
    ]


def test_features_are_means_over_clips_in_the_order_of_the_manifest() -> None:
    found = per_video(
        lambda clip: clip.float().mean((1, 2, 3, 4))[:, None], batches([[4, 1], [0], [5, 3, 2]]), torch.device("cpu")
    )
    assert found["index"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["label"].tolist() == [0, 7, 14, 21, 28, 35]
    assert found["value"][:, 0].tolist() == [5, 6, 7, 8, 9, 10]


# -- classifier


class Flat(nn.Module):
    out_channels = 3

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm3d(3)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return self.bn(clip)


def classifier(**changes: object) -> Classifier:
    return Classifier(Flat(), nn.Identity(), 4, **{"dropout": 0.0, "frozen": False, "unit": False, **changes})


def test_a_frozen_backbone_stays_as_it_is_while_the_head_learns() -> None:
    network = classifier(frozen=True).train()
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    out = network(Labelled(torch.randn(8, 3, 2, 4, 4), torch.arange(8) % 4))
    out.loss.backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert network.head.weight.grad.abs().max() > 0
    assert all(torch.equal(value, before[key]) for key, value in network.backbone.state_dict().items())
    trained = classifier().train()
    trained(Labelled(torch.randn(8, 3, 2, 4, 4), torch.arange(8) % 4)).loss.backward()
    assert trained.backbone.bn.weight.grad.abs().max() > 0
    assert trained.backbone.bn.num_batches_tracked == 1


def test_unit_features_have_length_one_and_the_head_starts_small() -> None:
    network = classifier(unit=True)
    assert average(network.backbone(torch.randn(5, 3, 2, 4, 4)), unit=network.unit).norm(
        dim=1
    ).tolist() == pytest.approx([1.0] * 5)
    assert network.head.bias.abs().max() == 0
    wide = Classifier(Wide(), nn.Identity(), 50, dropout=0.0, frozen=False, unit=False)
    assert wide.head.weight.std().item() == pytest.approx(0.01, rel=0.05)


class Wide(Flat):
    out_channels = 512


def test_pooling_is_the_mean_over_time_and_space() -> None:
    clip = torch.randn(2, 3, 4, 5, 6)
    found = pooled(nn.Identity(), clip, unit=False)
    np.testing.assert_allclose(found.numpy(), clip.numpy().mean((2, 3, 4)), atol=1e-6)
