"""Baselines give what ours gives; nothing here asserts how long anything takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.compare.aug import measure, moving_clips
from tests.compare.released import ColorChain, ForegroundSwap
from vidssl.augment.foreground import foreground_mask, swap
from vidssl.augment.photometric import Photometric
from vidssl.build import Augmentation


@pytest.mark.parametrize("flavor", ["jiggle", "jitter"])
def test_kornias_chain_and_ours_agree_on_kornias_draws(flavor: str) -> None:
    ours = Photometric(
        gray=0.4, jitter=0.7, brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.1, 0.1),
        flavor=flavor, blur=0.5, blur_sigma=(0.1, 2.0), blur_draw="per_clip", mean=(0.4, 0.3, 0.2), std=(0.3, 0.2, 0.4),
    )  # fmt: skip
    clip = moving_clips(6, 3, 32)
    clip[0] = clip[0].round()
    clip[1] = 0.5
    chain = ColorChain(ours, 32)
    orders = set()
    for seed in range(12):
        torch.manual_seed(seed)
        params, draws = chain.drawn(clip)
        torch.testing.assert_close(ours.changed(clip, draws), chain(clip, params), rtol=0, atol=3e-5)
        orders.add(draws.order)
    assert len(orders) > 5
    assert not torch.equal(chain(clip), chain(clip)), "drawn anew"


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.7])
def test_the_released_background_swap_and_ours_agree(beta: float) -> None:
    clip, order = moving_clips(4, 6, 64), torch.tensor([1, 3, 2, 0])
    merged, released = ForegroundSwap(64, beta)(clip, order)
    mask = foreground_mask(clip, beta=beta)
    assert (released != mask).float().mean() < 1e-3, "ties and rounding"
    torch.testing.assert_close(swap(clip, order, released.bool()), merged, rtol=0, atol=1e-7)


def test_of_a_flat_clip_both_take_as_many_pixels_and_ours_the_first() -> None:
    flat = torch.full((2, 3, 4, 32, 32), 0.5)
    _, released = ForegroundSwap(32, 0.5)(flat, torch.arange(2))
    mask = foreground_mask(flat, beta=0.5)
    assert mask.flatten(1).sum(1).tolist() == released.flatten(1).sum(1).tolist() == [512, 512]
    assert mask[:, :16].all()


def test_moving_clips_move_and_have_eight_bits() -> None:
    clip = moving_clips(2, 5, 48)
    torch.testing.assert_close(clip * 255, (clip * 255).round(), rtol=0, atol=1e-4)
    assert (clip[:, :, 0] - clip[:, :, 4]).abs().mean() > 0.05
    assert torch.equal(clip, moving_clips(2, 5, 48))


COLOR = {
    "name": "photometric", "gray": 0.2, "jitter": 0.8, "brightness": [0.6, 1.4], "contrast": [0.6, 1.4],
    "saturation": [0.6, 1.4], "hue": [-0.1, 0.1], "flavor": "jiggle", "blur": 0.5, "blur_sigma": [0.1, 2.0],
    "blur_draw": "per_clip", "mean": [0.4, 0.3, 0.2], "std": [0.3, 0.2, 0.4],
}  # fmt: skip


def test_the_part_has_two_rows_and_tells_the_stages() -> None:
    said: list[str] = []
    run = SimpleNamespace(device=torch.device("cpu"), log=SimpleNamespace(say=said.append))
    options = SimpleNamespace(
        batch_size=2, clip_frames=4, crop_size=32, rounds=2, augmentation=Augmentation(crop={}, color=COLOR)
    )
    rows = measure(run, options)
    assert [(row.what, row.baseline, row.least) for row in rows] == [
        ("color 2x4x32", "kornia", 3.0),
        ("FAME mask and merge 2x4x32", "released form", 2.5),
    ]
    assert all(0 < row.low <= row.ratio <= row.high for row in rows)
    assert "hue" in said[1]
    assert "copies" in said[1]
    photometric_alone = ("gray", "blur", "blur_sigma", "blur_draw")
    other = {key: value for key, value in COLOR.items() if key not in photometric_alone} | {"name": "one_of_four"}
    assert len(measure(run, SimpleNamespace(**{**vars(options), "augmentation": Augmentation({}, other)}))) == 1
    assert "one_of_four has no counterpart" in said[-1]
