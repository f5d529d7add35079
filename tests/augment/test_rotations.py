from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import golden
from vidssl.augment.rotations import TURNS, chain, left, right, turned


@pytest.mark.parametrize(
    ("name", "array"), [("rotation4", "rot4"), ("flip8", "rot8"), ("temporal16_released", "temporal16")]
)
def test_golden_turns(name: str, array: str) -> None:
    file = golden("be/rotation.npz")
    np.testing.assert_array_equal(turned(torch.from_numpy(file["x"]), TURNS[name]).numpy(), file[array])


def test_sixteen_turns_differ_where_the_release_has_four() -> None:
    clip = torch.arange(3 * 4 * 5 * 5.0).view(1, 3, 4, 5, 5)
    for name, count in (("rotation4", 4), ("flip8", 8), ("temporal16", 16), ("temporal16_released", 4)):
        assert len({tuple(turn.flatten().tolist()) for turn in turned(clip, TURNS[name])}) == count
    assert torch.equal(TURNS["temporal16"][4 * 1 + 1](clip), left(clip.flip(4))), "first the flip, then the turn"
    assert torch.equal(TURNS["temporal16"][4 * 3](clip), clip.flip(2, 4))
    assert torch.equal(chain(left, right)(clip), clip)


def test_turned_clips_stand_turn_by_turn() -> None:
    clip = torch.rand(2, 3, 2, 4, 4)
    assert torch.equal(turned(clip, TURNS["rotation4"])[2:4], left(clip))
