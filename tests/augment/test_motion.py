from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import golden
from vidssl.augment.motion import frame_difference, motion_clip, still_frame


def clips() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 3, 5, 4, 6)


def test_golden_frame_difference() -> None:
    """first_difference=wrap"""
    file = golden("fima/frame_difference.npz")
    found = motion_clip(torch.from_numpy(file["clip"]), "wrap")
    np.testing.assert_allclose(found.numpy(), file["diff"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("first", ["wrap", "zero", "repeat", "drop"])
def test_a_still_clip_has_no_difference_and_others_that_of_adjacent_frames(first: str) -> None:
    clip = clips()
    still = still_frame(clip, torch.tensor([4, 0, 2])).expand_as(clip)
    assert frame_difference(still, first).abs().max() == 0
    assert (motion_clip(still, first) == 0.5).all()
    before = clip.clone()
    torch.testing.assert_close(frame_difference(clip, first)[:, :, -4:], clip.diff(dim=2))
    assert torch.equal(clip, before)


def test_what_stands_in_the_first_frame() -> None:
    clip = clips()
    assert torch.equal(frame_difference(clip, "wrap")[:, :, 0], clip[:, :, 0] - clip[:, :, 4])
    assert frame_difference(clip, "zero")[:, :, 0].abs().max() == 0
    repeated = frame_difference(clip, "repeat")
    assert torch.equal(repeated[:, :, 0], repeated[:, :, 1])
    assert frame_difference(clip, "drop").shape[2] == 4


def test_views_and_videos_in_front_make_no_difference() -> None:
    clip = clips()
    both = frame_difference(torch.stack([clip, clip.flip(2)], dim=1), "wrap")
    assert torch.equal(both[:, 1], frame_difference(clip.flip(2), "wrap"))


def test_each_clip_stands_still_at_a_frame_of_its_own() -> None:
    clip = clips()
    still = still_frame(clip, torch.tensor([4, 0, 2]))
    assert still.shape == (3, 3, 1, 4, 6)
    for i, frame in enumerate((4, 0, 2)):
        assert torch.equal(still[i, :, 0], clip[i, :, frame])
