from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import golden
from vidssl.augment.motion import frame_difference


def test_golden_frame_difference() -> None:
    file = golden("fima/frame_difference.npz")
    found = frame_difference(torch.from_numpy(file["clip"]))
    np.testing.assert_allclose(found.numpy(), file["diff"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("first", ["roll", "zero", "drop"])
def test_a_still_clip_is_gray_everywhere(first: str) -> None:
    still = torch.rand(2, 3, 1, 8, 8).expand(-1, -1, 6, -1, -1)
    assert (frame_difference(still, first=first) == 0.5).all()


def test_the_first_frame_alone_depends_on_the_switch() -> None:
    clip = torch.rand(2, 6, 3, 5, 4, 4)
    before = clip.clone()
    roll, zero, drop = (frame_difference(clip, first=first) for first in ("roll", "zero", "drop"))
    assert torch.equal(clip, before)
    assert torch.equal(roll[..., 1:, :, :], drop)
    assert torch.equal(zero[..., 1:, :, :], drop)
    assert (zero[..., 0, :, :] == 0.5).all()
    torch.testing.assert_close(roll[..., 0, :, :], (clip[..., 0, :, :] - clip[..., -1, :, :] + 1) / 2)
    assert drop.shape[-3] == 4
