"""Our figures beside those of torchmetrics and scikit-learn, on random data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.retrieval import retrieval_hit_rate

from vidssl.evaluation.metrics import RANKS, accuracy, class_rows, hits, knn, recall

CLASSES = 13


def scored(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """300 videos whose scores tell a little; classes of different sizes, the last of them empty."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(300, generator=generator) ** 2 * (CLASSES - 1)).long()
    return torch.randn(300, CLASSES, generator=generator) + 1.5 * F.one_hot(label, CLASSES), label


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_accuracies_are_those_of_torchmetrics(seed: int) -> None:
    scores, label = scored(seed)
    found = accuracy(scores, label)
    for k in (1, 5):
        theirs = multiclass_accuracy(scores, label, CLASSES, average="micro", top_k=k)
        assert found[f"top{k}"] == pytest.approx(100 * theirs.item(), abs=1e-4)
    present = label.bincount(minlength=CLASSES) > 0
    each = 100 * multiclass_accuracy(scores, label, CLASSES, average="none")
    assert found["class_top1"] == pytest.approx(each[present].mean().item(), abs=1e-4)
    rows = class_rows(scores, label, [str(number) for number in range(CLASSES)])
    assert [row.videos for row in rows] == label.bincount(minlength=CLASSES).tolist()
    assert [row.top1 for row in rows if row.videos] == pytest.approx(each[present].tolist(), abs=1e-4)
    assert (rows[-1].top1, rows[-1].confused_with) == (None, "")
    assert hits(scores, label).mean().item() == pytest.approx(found["top1"])


def test_the_most_frequent_confusion_is_named() -> None:
    told = torch.tensor([0, 0, 2, 2, 1, 1])
    rows = class_rows(F.one_hot(told, 3).float(), torch.tensor([0, 0, 0, 0, 0, 1]), ["run", "jump", "sit"])
    assert rows[0] == ("run", 5, 40.0, "sit", 2)
    assert rows[1] == ("jump", 1, 100.0, "", 0)
    assert rows[2] == ("sit", 0, None, "", 0)


def features(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(7, (count,), generator=generator)
    return torch.randn(count, 24, generator=generator) + 0.7 * F.one_hot(label, 24) + 0.5, label


def test_the_vote_is_that_of_scikit_learn() -> None:
    (gallery, label), (queries, _) = features(0, 200), features(1, 90)
    center = gallery.mean(dim=0)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / 0.07)

    theirs = KNeighborsClassifier(10, weights=weights, metric="cosine", algorithm="brute")
    theirs.fit((gallery - center).numpy(), label.numpy())
    ours = knn(queries, gallery, label, 7, k=10, temperature=0.07)
    shares = ours / ours.sum(dim=1, keepdim=True)
    np.testing.assert_allclose(shares.numpy(), theirs.predict_proba((queries - center).numpy()), atol=1e-4)


@pytest.mark.parametrize("centered", [True, False])
def test_recalls_are_those_of_both(centered: bool) -> None:
    (gallery, gallery_label), (queries, label) = features(2, 150), features(3, 60)
    found = recall(queries, label, gallery, gallery_label, centered=centered)
    q, g = (part - part.mean(dim=0) * centered for part in (queries, gallery))
    near = NearestNeighbors(metric="cosine", algorithm="brute").fit(g.numpy())
    for k in RANKS:
        places = near.kneighbors(q.numpy(), k, return_distance=False)
        hit = (gallery_label.numpy()[places] == label.numpy()[:, None]).any(axis=1)
        assert found[f"R@{k}"] == pytest.approx(100 * hit.mean())
    similarity = F.normalize(q, dim=1) @ F.normalize(g, dim=1).T
    rates = [
        retrieval_hit_rate(row, gallery_label == mine, top_k=1) for row, mine in zip(similarity, label, strict=True)
    ]
    assert found["R@1"] == pytest.approx(100 * torch.stack(rates).mean().item(), abs=1e-4)
