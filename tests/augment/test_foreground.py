from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN, golden
from vidssl.augment.foreground import (
    blur,
    color_bins,
    color_histograms,
    color_posterior,
    foreground_mask,
    gauss_mask,
    grid_activation,
    grid_mask,
    merge,
    motion,
    normalize,
    seed_region,
    swap,
    top_mask,
)

FILES = sorted(file.stem for file in (GOLDEN / "fame").glob("mask_*.npz"))
VARIANTS = ("mask_blob_32x32_b05", "mask_blob_112x112_b05")


def clip_of(file: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(file["video_u8"]).float() / 255


def close(found: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FILES)
def test_golden_mask_and_merge_hue_code(name: str) -> None:
    """Released FAME module: method.mask=fame, method.hue=code."""
    file = golden(f"fame/{name}.npz")
    clip, beta = clip_of(file), float(file["beta"])
    before = clip.clone()
    seed, bins = seed_region(clip), color_bins(clip, hue="code")
    close(motion(clip), file["diff"], 1e-6)
    close(seed, file["seed"], 5e-6)
    np.testing.assert_array_equal(bins.numpy(), file["color_bin"])
    foreground, background = color_histograms(seed, bins)
    np.testing.assert_array_equal(foreground.numpy(), file["hist_fg"])
    np.testing.assert_array_equal(background.numpy(), file["hist_bg"])
    posterior = color_posterior(seed, bins)
    close(posterior, file["refine"], 2e-6)
    close(normalize(blur(posterior)), file["prob"], 5e-6)
    mask = foreground_mask(clip, beta=beta, kind="fame", hue="code")
    np.testing.assert_array_equal(mask.numpy(), file["mask"])
    merged = merge(clip, clip[torch.from_numpy(file["index"])], mask)
    video, index = file["video_u8"], file["index"]
    expected = np.where(file["mask"][:, None, None].astype(bool), video, video[index])
    np.testing.assert_array_equal(merged.numpy(), (torch.from_numpy(expected).float() / 255).numpy())
    assert torch.equal(clip, before), "the argument is left alone"


@pytest.mark.parametrize("name", VARIANTS)
def test_golden_variants_seed_grid_gauss(name: str) -> None:
    """method.mask=seed, grid, gauss."""
    file, variants = golden(f"fame/{name}.npz"), golden("fame/variants.npz")
    clip, beta = clip_of(file), float(file["beta"])
    seed = torch.from_numpy(file["seed"])
    np.testing.assert_allclose(grid_activation(seed).numpy(), variants[f"{name}.grid_activation"], rtol=1e-4)
    np.testing.assert_array_equal(grid_mask(seed, 8).numpy(), variants[f"{name}.grid_mask"])
    np.testing.assert_array_equal(foreground_mask(clip, beta=beta, kind="grid").numpy(), variants[f"{name}.grid_mask"])
    np.testing.assert_array_equal(foreground_mask(clip, beta=beta, kind="seed").numpy(), variants[f"{name}.seed_mask"])
    side = clip.shape[-1]
    close(gauss_mask(side, side), variants[f"{name}.gauss_map"], 1e-6)
    close(foreground_mask(clip, beta=beta, kind="gauss")[0], variants[f"{name}.gauss_map"], 1e-6)


@pytest.mark.parametrize("kind", ["fame", "seed"])
@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_exactly_the_asked_share_is_foreground_even_where_all_ties(kind: str, beta: float) -> None:
    flat = torch.full((2, 3, 5, 90, 90), 0.5)
    noisy = torch.rand(2, 3, 5, 90, 90)
    for clip in (flat, noisy):
        mask = foreground_mask(clip, beta=beta, kind=kind)
        assert (mask.sum(dim=(1, 2)) == int(beta * 90 * 90)).all()


def test_beta_one_keeps_the_whole_clip() -> None:
    clip = torch.rand(2, 3, 4, 16, 16)
    mask = foreground_mask(clip, beta=1.0)
    assert mask.all()
    assert torch.equal(merge(clip, torch.zeros_like(clip), mask), clip)


def test_a_still_clip_has_no_seed() -> None:
    still = torch.rand(2, 3, 1, 8, 8).expand(-1, -1, 6, -1, -1)
    assert seed_region(still).abs().max() == 0


def test_a_mask_does_not_depend_on_the_direction_of_time_or_the_rest_of_the_batch() -> None:
    clip = clip_of(golden("fame/mask_blob_56x56_b03.npz"))
    mask = foreground_mask(clip, beta=0.3)
    assert torch.equal(foreground_mask(clip.flip(2), beta=0.3), mask)
    assert torch.equal(foreground_mask(clip[2:3], beta=0.3)[0], mask[2])


def test_a_mirrored_clip_has_the_mirrored_mask() -> None:
    clip = clip_of(golden("fame/mask_blob_112x112_b05.npz"))
    mirrored = foreground_mask(clip.flip(-1), beta=0.5).flip(-1)
    assert (mirrored != foreground_mask(clip, beta=0.5)).float().mean() < 1e-4


def test_hue_fixed_puts_neighbouring_reds_into_neighbouring_bins() -> None:
    reds = torch.tensor([[0.9, 0.1, 0.12], [0.9, 0.12, 0.1]]).view(2, 3, 1, 1, 1).expand(-1, -1, 3, 4, 4)
    fixed, code = (color_bins(reds, hue=hue).flatten(1)[:, 0].tolist() for hue in ("fixed", "code"))
    assert abs(fixed[0] - fixed[1]) in (0, 10)
    assert code[0] != code[1], "the release tells them apart by a jump of the angle"


def test_ties_go_to_the_lower_index() -> None:
    values = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert top_mask(values, 3).tolist() == [[False, True, True, True, False, False]]
    assert not top_mask(values, 0).any()
    assert top_mask(values, 6).all()


@pytest.mark.parametrize("kind", ["fame", "gauss"])
def test_swapping_is_merging_with_the_donors_clips(kind: str) -> None:
    clip, donor_index = torch.rand(4, 3, 5, 32, 32), torch.tensor([2, 1, 3, 0])
    mask, before = foreground_mask(clip, beta=0.5, kind=kind), clip.clone()
    assert torch.equal(swap(clip, donor_index, mask), merge(clip, clip[donor_index], mask))
    assert torch.equal(clip, before)


def test_a_soft_mask_blends() -> None:
    clip, other = torch.rand(1, 3, 2, 4, 4), torch.rand(1, 3, 2, 4, 4)
    half = torch.full((1, 4, 4), 0.25)
    torch.testing.assert_close(merge(clip, other, half), 0.25 * clip + 0.75 * other)
