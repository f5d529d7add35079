from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vidssl.data.manifest import Listing
from vidssl.data.synthetic import SPLITS, Recipe, render, render_missing, synthetic, synthetic_scenes
from vidssl.data.video import probe, read_frames


def listing(kind: str, split: str, root: str = "nowhere", count: int = 48, **options: float) -> Listing:
    sizes = {"root": root, "train_videos": count, "test_videos": count, "data_seed": 0}
    if kind == "rings":
        return synthetic(split, **sizes)
    return synthetic_scenes(split, **sizes, scene_bias=options.get("scene_bias", 0.5))


@pytest.mark.parametrize("kind", ["rings", "scenes"])
def test_splits_share_exactly_what_they_should(kind: str) -> None:
    train, test, swap, counter = (listing(kind, split).recipes for split in SPLITS)
    assert not {r.foreground for r in train} & {r.foreground for r in (*test, *counter)}
    assert not {r.background for r in train} & {r.background for r in (*test, *swap)}
    for original, swapped, other in zip(test, swap, counter, strict=True):
        assert (swapped.foreground, swapped.motion) == (original.foreground, original.motion)
        assert swapped.background != original.background
        assert (other.background, other.family) == (original.background, original.family)
        assert other.foreground != original.foreground
        assert other.motion != original.motion


def test_scenes_predict_the_class_as_often_as_asked_and_never_when_swapped() -> None:
    for bias, low, high in ((0.0, 0.1, 0.25), (0.5, 0.5, 0.68), (1.0, 1.0, 1.0)):
        train = listing("scenes", "train", count=600, scene_bias=bias).recipes
        assert low <= np.mean([r.family == r.motion for r in train]) <= high
    swapped = listing("scenes", "test_swap", count=600).recipes
    assert all(r.family != r.motion for r in swapped)


@pytest.mark.parametrize("kind", ["rings", "scenes"])
def test_a_video_is_a_function_of_its_numbers_and_only_its_foreground_moves(kind: str) -> None:
    recipe = Recipe(kind, 3, 1, 4, 2)
    clip = render(recipe)
    np.testing.assert_array_equal(clip, render(recipe))
    assert clip.min() >= 0
    assert clip.max() <= 1
    other = render(recipe._replace(background=5))
    moving = np.abs(np.diff(clip, axis=0)).max(axis=(0, 3)) > 0.1
    assert 0.1 < moving.mean() < 0.95
    same_foreground = np.abs(clip - other).max(axis=-1) < 0.06
    assert same_foreground.any(axis=(1, 2)).all(), "the foreground covers the same pixels in both"


@pytest.mark.parametrize("kind", ["rings", "scenes"])
def test_masks_tell_exactly_which_pixels_hide_the_background(kind: str) -> None:
    test, masks = listing(kind, "test").recipes[3], listing(kind, "test_mask").recipes[3]
    assert masks == test._replace(is_mask=True)
    assert masks.name != test.name
    mask = render(masks)
    assert mask.min() >= 0
    assert mask.max() <= 1
    first, second = render(test), render(test._replace(background=77, family=1))
    hidden = mask.mean(axis=-1) > 0.97
    assert 0.05 < hidden.mean() < 0.6
    np.testing.assert_allclose(first[hidden], second[hidden], atol=0.04)
    shown = mask.mean(axis=-1) < 0.03
    assert np.abs(first[shown] - second[shown]).mean() > 0.05
    still = np.where(shown.all(axis=0)[None, ..., None], first, 0)
    assert np.abs(np.diff(still, axis=0)).max() < 0.1


def test_classes_move_where_their_names_say() -> None:
    """Phase correlation of neighbouring frames on a plain background finds the mean motion."""
    for label, (dx, dy) in enumerate([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)]):
        moves = []
        for seed in range(4):
            from vidssl.data.synthetic import render_rings

            gray = render_rings(seed, label, np.full((64, 64, 3), 0.5)).mean(-1)
            first, later = np.fft.fft2(gray[0] - gray[0].mean()), np.fft.fft2(gray[2] - gray[2].mean())
            peak = np.unravel_index(np.abs(np.fft.ifft2(later * first.conj())).argmax(), (64, 64))
            moves.append([(p + 32) % 64 - 32 for p in peak[::-1]])
        x, y = np.mean(moves, axis=0)
        angle = np.angle((x + 1j * -y) * np.exp(-1j * np.arctan2(-dy, dx)))
        assert abs(angle) < np.pi / 8, (label, x, y)


@pytest.mark.parametrize(("kind", "frames"), [("rings", 20), ("scenes", 16)])
def test_files_are_written_once_and_show_what_was_rendered(kind: str, frames: int, tmp_path: Path) -> None:
    files = listing(kind, "train", str(tmp_path), count=4)
    assert render_missing(files) == 4
    assert render_missing(files) == 0
    path = tmp_path / files.recipes[0].name
    index = probe(path)
    assert (index.frames, index.width, index.height, index.codec) == (frames, 64, 64, "h264")
    first = path.read_bytes()
    for _ in range(10):
        path.unlink()
        assert render_missing(files) == 1
        assert path.read_bytes() == first, "the same bytes each time"
    shown = read_frames(path, range(frames), index) / 255
    assert np.abs(shown - render(files.recipes[0])).mean() < 0.05
