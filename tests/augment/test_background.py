from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import golden
from vidssl.augment.background import StaticMix, add_frame, derangement


def own_frame(clip: Tensor, numbers: np.ndarray) -> Tensor:
    return clip[torch.arange(len(clip)), :, torch.from_numpy(numbers)]


# -- golden


@pytest.mark.parametrize("name", ["seeded", "forced0", "forced1", "forced2"])
def test_golden_mix(name: str) -> None:
    """method.lambda_scope=batch method.frame_source=clip, given the release's draws."""
    file = golden("be/be_mix.npz")
    clip = torch.from_numpy(file["clip"])
    share = torch.full((len(clip),), float(file[f"{name}_lam"]))
    found = add_frame(clip, own_frame(clip, file[f"{name}_idx"]), share)
    np.testing.assert_allclose(found.numpy(), file[f"{name}_out"], rtol=0, atol=1e-6)


def test_golden_mix_of_a_normalized_clip() -> None:
    file = golden("be/be_mix.npz")
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    clip = (torch.from_numpy(file["clip"]) - mean) / std
    share = torch.full((len(clip),), float(file["forced0_lam"]))
    found = add_frame(clip, own_frame(clip, file["forced0_idx"]), share)
    np.testing.assert_allclose(found.numpy(), file["norm_out"], rtol=0, atol=2e-6)


# -- laws


def test_the_added_frame_stays_as_it_is_and_motion_keeps_its_share() -> None:
    clip = torch.rand(3, 3, 6, 8, 8)
    before = clip.clone()
    numbers, share = np.array([0, 5, 2]), torch.tensor([0.3, 0.1, 0.25])
    found = add_frame(clip, own_frame(clip, numbers), share)
    torch.testing.assert_close(own_frame(found, numbers), own_frame(clip, numbers), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.diff(dim=2), (1 - share).view(-1, 1, 1, 1, 1) * clip.diff(dim=2))
    assert torch.equal(clip, before)


def shares(mix: StaticMix, count: int = 64) -> Tensor:
    """How much of the added frame is found: clips are 0 at the start and 1 else, so that it is the change there."""
    clip = torch.zeros(count, 3, 50, 1, 1)
    clip[:, :, 1:] = 1.0
    return mix(clip)[:, 0, 0, 0, 0]


def test_shares_are_drawn_for_the_batch_or_for_each_clip_and_stay_below_gamma() -> None:
    torch.manual_seed(0)
    batch = shares(StaticMix(0.3, "batch", "clip", 1.0))
    assert len(set(batch[batch > 0].tolist())) == 1
    sample = shares(StaticMix(0.3, "sample", "clip", 1.0), 4000)
    assert 0.29 < sample.max() <= 0.3
    assert sample.mean().item() == pytest.approx(0.15 * 49 / 50, abs=0.01)


def test_p_is_the_share_of_clips_that_are_mixed() -> None:
    torch.manual_seed(0)
    clip = torch.rand(500, 3, 4, 2, 2)
    for p in (0.0, 0.25, 1.0):
        mixed = (StaticMix(0.3, "sample", "clip", p)(clip) != clip).flatten(1).any(1).float().mean().item()
        assert mixed == pytest.approx(p, abs=0.06)


def test_frames_come_from_where_they_should() -> None:
    torch.manual_seed(0)
    clip = torch.arange(5.0).view(5, 1, 1, 1, 1).expand(5, 3, 4, 2, 2) + torch.arange(4.0).view(1, 1, 4, 1, 1) / 10
    for _ in range(20):
        video = StaticMix(0.3, "batch", "clip", 1.0).frame(clip)[:, 0, 0, 0].floor()
        assert video.tolist() == [0, 1, 2, 3, 4]
        video = StaticMix(0.3, "batch", "other_video", 1.0).frame(clip)[:, 0, 0, 0].floor()
        assert (video != torch.arange(5)).all()
    noise = StaticMix(0.3, "batch", "noise", 1.0).frame(torch.zeros(4, 3, 5, 32, 32))
    assert noise.std().item() == pytest.approx(1.0, abs=0.05)


def test_partners_are_a_permutation_without_fixed_points() -> None:
    torch.manual_seed(0)
    for count in (2, 3, 8):
        for _ in range(20):
            partner = derangement(count)
            assert sorted(partner.tolist()) == list(range(count))
            assert not (partner == torch.arange(count)).any()
    assert derangement(1).tolist() == [0]
