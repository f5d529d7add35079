"""Every step against kornia's; every draw constant over a clip."""

from __future__ import annotations

import kornia
import kornia.augmentation
import pytest
import torch
from torch import Tensor

from vidssl.augment import photometric
from vidssl.augment.blur import blur_matrix, kernel_size
from vidssl.augment.photometric import (
    JITTER,
    OneOfFour,
    Photometric,
    add_brightness,
    by_products,
    by_taps,
    gaussian_blur,
    scale_contrast,
    scale_saturation,
    shift_hue,
    to_gray,
)

PLAIN = {
    "gray": 0.0, "jitter": 0.0, "brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.6, 1.4),
    "hue": (-0.1, 0.1), "flavor": "jiggle", "blur": 0.0, "blur_sigma": (0.1, 2.0), "blur_draw": "per_clip",
    "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0),
}  # fmt: skip


def chain(**changes: object) -> Photometric:
    return Photometric(**{**PLAIN, **changes})


@pytest.fixture
def clip() -> Tensor:
    torch.manual_seed(0)
    clip = torch.rand(6, 3, 4, 24, 24)
    clip[0] = clip[0].round()  # pure colors, ties between channels
    clip[1] = clip[1].mean(0, keepdim=True)  # gray
    clip[2, :, :, :6] = 0
    clip[3, :, :, :6] = 1
    return clip


def frames(clip: Tensor) -> Tensor:
    return clip.transpose(1, 2).flatten(0, 1)


def each(factor: Tensor, clip: Tensor) -> Tensor:
    return factor.flatten().repeat_interleave(clip.shape[2])


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.7, 4.0])
def test_steps_equal_kornias_color_jiggle(clip: Tensor, scale: float) -> None:
    factor = (torch.rand(6) * scale).view(-1, 1, 1, 1, 1)
    turns = (torch.rand(6) - 0.5).view(-1, 1, 1, 1, 1)
    enhance = kornia.enhance
    for ours, theirs, given in (
        (add_brightness, lambda x, f: enhance.adjust_brightness(x, f - 1), factor),
        (scale_contrast, enhance.adjust_contrast, factor),
        (scale_saturation, enhance.adjust_saturation, factor),
        (shift_hue, lambda x, t: enhance.adjust_hue(x, t * 2 * torch.pi), turns),
    ):
        before = clip.clone()
        found, expected = frames(ours(clip, given)), theirs(frames(clip), each(given, clip))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        assert torch.equal(clip, before)


def test_whole_jiggle_equals_kornias_for_its_own_random_draws(clip: Tensor) -> None:
    """Twenty draws of kornia's ColorJiggle, replayed: factors and order."""
    steps = (add_brightness, scale_contrast, scale_saturation, shift_hue)
    jiggle = kornia.augmentation.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=1.0, same_on_batch=True)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = jiggle(frames(clip))
        drawn = jiggle._params
        names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
        factors = [drawn[name][0].view(1, 1, 1, 1, 1) for name in names]
        found = clip
        for step in drawn["order"].tolist():
            found = steps[step](found, factors[step])
        torch.testing.assert_close(frames(found), expected, rtol=0, atol=5e-6)


def test_jitter_flavor_equals_kornias_color_jitter(clip: Tensor) -> None:
    jitter = kornia.augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0, same_on_batch=True)
    for seed in range(10):
        torch.manual_seed(seed)
        expected = jitter(frames(clip))
        drawn = jitter._params
        names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
        factors = [drawn[name][0].expand(6).view(-1, 1, 1, 1, 1) for name in names]
        found = clip
        for step in drawn["order"].tolist():
            found = JITTER[step](found, factors[step])
        torch.testing.assert_close(frames(found), expected, rtol=0, atol=1e-5)


def test_gray_equals_kornias(clip: Tensor) -> None:
    expected = kornia.color.rgb_to_grayscale(frames(clip)).expand(-1, 3, -1, -1)
    torch.testing.assert_close(frames(to_gray(clip)), expected, rtol=0, atol=1e-6)


def test_blur_equals_kornias(clip: Tensor) -> None:
    sigma = torch.tensor([0.1, 0.4, 0.9, 1.3, 1.9, 2.0]).view(-1, 1, 1, 1, 1)
    found = gaussian_blur(torch.nn.functional.interpolate(clip, (4, 50, 50)), sigma)
    big = torch.nn.functional.interpolate(clip, (4, 50, 50))
    for one, blurred, width in zip(big, found, sigma.flatten().tolist(), strict=True):
        expected = kornia.filters.gaussian_blur2d(one.transpose(0, 1), (5, 5), (width, width), border_type="reflect")
        torch.testing.assert_close(blurred.transpose(0, 1), expected, rtol=0, atol=1e-6)


def test_blur_kernels_are_a_tenth_of_the_frame() -> None:
    assert [kernel_size(side) for side in (32, 56, 64, 112, 224)] == [3, 5, 7, 11, 23]
    torch.testing.assert_close(blur_matrix(20, 7, 1.5).sum(1), torch.ones(20))


def test_shares_of_clips_that_are_changed() -> None:
    torch.manual_seed(0)
    clip = torch.rand(2000, 3, 1, 10, 10) * 0.5 + 0.25
    gray = chain(gray=0.2)(clip)
    assert ((gray[:, 0] == gray[:, 1]).flatten(1).all(1)).float().mean() == pytest.approx(0.2, abs=0.04)
    for option, share in (("jitter", 0.8), ("blur", 0.5)):
        changed = chain(**{option: share}, blur_sigma=(1.0, 2.0))(clip.repeat(1, 1, 1, 2, 2)) != clip.repeat(
            1, 1, 1, 2, 2
        )
        assert changed.flatten(1).any(1).float().mean() == pytest.approx(share, abs=0.05)


def test_all_frames_of_a_clip_get_the_same_draw() -> None:
    torch.manual_seed(1)
    still = torch.rand(16, 3, 1, 32, 32).expand(-1, -1, 5, -1, -1)
    for flavor in ("jiggle", "jitter"):
        found = chain(gray=0.5, jitter=0.8, blur=0.5, flavor=flavor)(still)
        assert (found - found[:, :, :1]).abs().max() < 1e-6


def test_clips_get_draws_of_their_own_and_calls_too() -> None:
    torch.manual_seed(2)
    same = torch.rand(1, 3, 2, 16, 16).expand(8, -1, -1, -1, -1)
    augment = chain(jitter=1.0)
    found = augment(same)
    assert len({clip.sum().item() for clip in found}) == 8
    assert not torch.equal(found, augment(same))


def test_normalization_and_nothing_else() -> None:
    clip = torch.rand(2, 3, 2, 8, 8)
    found = chain(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))(clip)
    expected = (clip - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1)) / torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1, 1)
    torch.testing.assert_close(found, expected)


def test_blur_width_once_per_run() -> None:
    torch.manual_seed(0)
    widths = {chain(blur_draw="per_run").blur_sigma for _ in range(5)}
    assert len(widths) == 5
    assert all(low == high and 0.1 <= low <= 2.0 for low, high in widths)


@pytest.mark.parametrize("flavor", ["jiggle", "jitter"])
@pytest.mark.parametrize("at_once", [600_000, 3 * 3 * 24 * 24, 1])
def test_some_frames_at_a_time_give_what_the_whole_batch_gives(
    clip: Tensor, flavor: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photometric, "CACHED", at_once)
    augment = chain(gray=0.3, jitter=0.7, blur=0.5, flavor=flavor, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    before = clip.clone()
    for seed in range(5):
        torch.manual_seed(seed)
        draws = augment.draw(6)
        together = augment.normalized(augment._colored(clip, draws))
        torch.testing.assert_close(augment.changed(clip, draws), together, rtol=0, atol=1e-6)
        torch.manual_seed(seed)
        assert torch.equal(augment(clip), augment.changed(clip, draws)), "forward draws, then applies"
    assert torch.equal(clip, before)


def test_saturation_and_hue_in_one_are_one_after_the_other(clip: Tensor) -> None:
    factor, turns = torch.rand(6, 1, 1, 1, 1) * 3, torch.rand(6, 1, 1, 1, 1) - 0.5
    together = shift_hue(clip, turns, factor)
    torch.testing.assert_close(together, shift_hue(scale_saturation(clip, factor), turns), rtol=0, atol=2e-6)
    torch.testing.assert_close(together, scale_saturation(shift_hue(clip, turns), factor), rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [9, 50, 112])
def test_shifted_frames_blur_as_matrix_products_do(side: int) -> None:
    frames = torch.rand(2, 3, side, side + 7)
    for sigma in (0.1, 0.7, 2.0):
        size = kernel_size(side)
        torch.testing.assert_close(by_taps(frames, size, sigma), by_products(frames, size, sigma), rtol=0, atol=1e-6)


# -- one of four


def one_of_four(**changes: object) -> OneOfFour:
    options = {
        "jitter": 1.0, "brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0.75, 1.25),
        "hue": (-0.5, 0.5), "flavor": "jitter", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0),
    }  # fmt: skip
    return OneOfFour(**{**options, **changes})


def test_each_clip_gets_one_operation_of_four_equally_likely() -> None:
    """With ranges of one value each, the four results are known."""
    torch.manual_seed(0)
    clip = torch.rand(1, 3, 2, 8, 8).expand(2000, -1, -1, -1, -1)
    fixed = {"brightness": (0.7, 0.7), "contrast": (0.6, 0.6), "saturation": (0.8, 0.8), "hue": (0.25, 0.25)}
    found = one_of_four(**fixed)(clip)
    counts = []
    for step, factor in zip(JITTER, (0.7, 0.6, 0.8, 0.25), strict=True):
        expected = step(clip[:1], torch.full((1, 1, 1, 1, 1), factor))
        counts.append(((found - expected).abs().flatten(1).amax(1) < 1e-5).sum().item())
    assert sum(counts) == 2000
    assert all(420 < count < 580 for count in counts)


def test_share_of_clips_that_get_an_operation_and_statistics() -> None:
    torch.manual_seed(0)
    clip = torch.rand(1000, 3, 2, 4, 4) * 0.5 + 0.25
    for jitter in (0.0, 0.4, 1.0):
        changed = (one_of_four(jitter=jitter)(clip) != clip).flatten(1).any(1).float().mean().item()
        assert changed == pytest.approx(jitter, abs=0.05)
    normalized = one_of_four(jitter=0.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))(clip)
    torch.testing.assert_close(normalized, chain(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))(clip))


def test_one_draw_holds_for_all_frames_and_the_clip_is_left_alone() -> None:
    torch.manual_seed(1)
    still = torch.rand(16, 3, 1, 16, 16).expand(-1, -1, 5, -1, -1).contiguous()
    before = still.clone()
    for flavor in ("jiggle", "jitter"):
        augment = one_of_four(flavor=flavor)
        found = augment(still)
        assert (found - found[:, :, :1]).abs().max() < 1e-6
        assert not torch.equal(found, augment(still)), "drawn anew"
    assert torch.equal(still, before)
