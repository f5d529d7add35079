from __future__ import annotations

import pytest
import torch

from vidssl.augment import counterfactual as cf


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A white square that walks over a static background: clip [2, 3, 5, 12, 12], its mask, the background."""
    torch.manual_seed(0)
    background = torch.rand(2, 3, 1, 12, 12) * 0.8
    mask = torch.zeros(2, 1, 5, 12, 12, dtype=torch.bool)
    for time in range(5):
        mask[:, :, time, 4:7, 2 * time : 2 * time + 3] = True
    return torch.where(mask, torch.ones(()), background.expand(2, 3, 5, 12, 12)), mask, background


def test_the_background_behind_a_moving_thing_is_found_exactly(scene: tuple) -> None:
    clip, mask, background = scene
    assert torch.equal(cf.still_background(clip, mask), background)


def test_what_is_always_covered_gets_the_median_of_its_frames() -> None:
    clip = torch.tensor([0.1, 0.9, 0.5]).view(1, 1, 3, 1, 1).expand(1, 3, 3, 2, 2)
    mask = torch.zeros(1, 1, 1, 2, 2, dtype=torch.bool)
    mask[..., 0, 0] = True
    assert cf.still_background(clip, mask).unique().tolist() == pytest.approx([0.5])


def test_a_composite_shows_the_foreground_here_and_the_background_there(scene: tuple) -> None:
    clip, mask, background = scene
    assert torch.equal(cf.composite(clip, mask, background), clip)
    other = torch.full_like(background, 0.25)
    found = cf.composite(clip, mask, other)
    assert (found[mask.expand_as(found)] == 1).all()
    assert (found[~mask.expand_as(found)] == 0.25).all()
    shared = mask.any(dim=2, keepdim=True)
    assert torch.equal(cf.composite(clip, shared, other)[:, :, 0], torch.where(shared[:, :, 0], clip[:, :, 0], 0.25))


def test_without_foreground_nothing_moves_and_the_hole_has_the_color_of_the_rest(scene: tuple) -> None:
    clip, mask, _ = scene
    found = cf.without_foreground(clip, mask)
    assert found.diff(dim=2).abs().max() == 0
    hole = mask.any(dim=2)[:, :, None].expand(2, 3, 5, 12, 12)
    assert torch.equal(found[~hole], clip[~hole])
    for b in range(2):
        for c in range(3):
            rest = clip[b, c][~hole[b, c]]
            assert found[b, c][hole[b, c]].unique().tolist() == pytest.approx([rest.mean().item()])
    everything = torch.ones_like(mask[:, :, :1])
    assert (cf.without_foreground(clip, everything) == 0.5).all()


def test_time_is_stopped_turned_and_mixed() -> None:
    clip = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(2, 3, 5, 4, 4)
    assert cf.frozen(clip).unique().tolist() == [2.0]
    assert cf.backwards(clip)[0, 0, :, 0, 0].tolist() == [4, 3, 2, 1, 0]
    order = torch.tensor([[3, 0, 4, 1, 2], [0, 1, 2, 4, 3]])
    found = cf.reordered(clip, order)
    assert found[:, 0, :, 0, 0].tolist() == order.tolist()
    assert found.shape == clip.shape


def test_a_random_order_is_none_but_the_own_and_always_the_same() -> None:
    for number in range(50):
        order = cf.frame_order(3, 7, number)
        assert sorted(order.tolist()) == [0, 1, 2]
        assert order.tolist() != [0, 1, 2]
        assert torch.equal(order, cf.frame_order(3, 7, number))
    assert cf.frame_order(1, 0, 0).tolist() == [0]
    assert len({tuple(cf.frame_order(8, 0, number).tolist()) for number in range(20)}) > 15
