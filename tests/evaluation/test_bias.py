from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from vidssl.evaluation import bias
from vidssl.evaluation.metrics import prefers_motion
from vidssl.evaluation.probe import logistic
from vidssl.report.conditions import follows

COUNT = 400


def features(motion_share: float) -> dict[str, torch.Tensor]:
    """What a network that sees so much of the motion, else the background, tells of each change."""
    torch.manual_seed(0)
    motion, other_motion, ground, other_ground = (F.normalize(torch.randn(COUNT, 32), dim=1) for _ in range(4))
    gone = torch.zeros(COUNT, 32)

    def see(m: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return torch.cat([motion_share**0.5 * m, (1 - motion_share) ** 0.5 * g], dim=1) + 1e-3

    return {
        "original": see(motion, ground),
        "other_background": see(motion, other_ground),
        "no_foreground": see(gone, ground),
        "frozen": see(gone, ground),
        "reversed": see(-motion, ground),
        "shuffled": see(other_motion, ground),
        "before_own": see(motion, ground),
        "other_motion": see(other_motion, ground),
    }


def measured(motion_share: float) -> dict[str, float]:
    """Scores: the motion's sign decides between two classes."""
    seen = features(motion_share)
    found = {f"{name}.features": value for name, value in seen.items()}
    label = (seen["original"][:, 0] > 1e-3).long()
    for name in bias.SCORED:
        found[f"{name}.scores"] = torch.stack([-(seen[name][:, 0] - 1e-3), seen[name][:, 0] - 1e-3], dim=1)
    found["label"] = label
    return bias.figures_of(found, torch.arange(COUNT).roll(1), seed=0)


def test_the_two_ends_are_read_as_what_they_are() -> None:
    motion, background = measured(1.0), measured(0.0)
    assert motion["masked_motion_preference"] == 100.0
    assert background["masked_motion_preference"] == 0.0
    assert motion["same_motion_likeness"] == pytest.approx(1.0, abs=1e-4)
    assert motion["same_background_likeness"] == pytest.approx(0.0, abs=0.05)
    assert background["same_motion_likeness"] == pytest.approx(0.0, abs=0.05)
    assert background["same_background_likeness"] == pytest.approx(1.0, abs=1e-4)
    assert motion["other_background_likeness"] == pytest.approx(1.0, abs=1e-4)
    assert background["other_background_likeness"] == pytest.approx(0.0, abs=0.05)
    assert background["frozen_likeness"] == pytest.approx(1.0, abs=1e-4)
    assert motion["frozen_likeness"] < 0.1
    assert motion["reversed_likeness"] == pytest.approx(-1.0, abs=0.05)


def test_accuracies_fall_where_the_motion_is_gone() -> None:
    found = measured(0.7)
    assert found["top1"] == found["other_background_top1"] == 100.0
    assert found["reversed_top1"] == 0.0
    assert found["shuffled_top1"] == pytest.approx(50, abs=8)
    assert found["top1_low"] <= found["top1"] <= found["top1_high"]
    assert 50 <= found["chance"] < 60


def test_half_and_half_lies_between_and_is_called_undecided() -> None:
    found = measured(0.5)
    low, high = (found[f"masked_motion_preference_{end}"] for end in ("low", "high"))
    assert low < 50 < high
    assert [follows(measured(share)) for share in (0.0, 0.5, 1.0)] == ["background", "undecided", "motion"]


def test_likeness_is_one_for_no_change_and_zero_for_another_video_also_where_all_lie_together() -> None:
    torch.manual_seed(0)
    crowd = torch.randn(300, 16) + 5  # cosines of different videos are near 1
    other = crowd.roll(1, 0)
    assert F.cosine_similarity(crowd, other).mean() > 0.9
    assert bias.likeness(crowd, crowd, other).tolist() == pytest.approx([1.0] * 300, abs=1e-5)
    assert bias.likeness(crowd, other, other).mean().item() == pytest.approx(0.0, abs=1e-5)


def test_preference_is_one_of_each_video() -> None:
    one, two = torch.eye(2)
    found = prefers_motion(torch.stack([one, one]), torch.stack([one, two]), torch.stack([two, one]))
    assert found.tolist() == [100.0, 0.0]


def test_the_probe_is_the_one_that_scikit_learn_finds() -> None:
    torch.manual_seed(0)
    label = torch.randint(4, (300,))
    data = torch.randn(4, 12)[label] + torch.randn(300, 12) * torch.linspace(0.3, 20, 12) + 3
    probe = logistic(data, label, 4)
    center, spread = data.mean(0), data.std(0, correction=0)
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(
        ((data - center) / spread).double().numpy(), label.numpy()
    )
    scaled = (data - center) / spread
    expected = torch.from_numpy(oracle.predict_proba(scaled.double().numpy()))
    torch.testing.assert_close(probe(data).softmax(dim=1).double(), expected, atol=2e-3, rtol=0)
    assert not probe.weight.requires_grad
