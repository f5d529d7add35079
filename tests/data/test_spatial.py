from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.conftest import moving_picture
from vidssl.data.sampling import item_generator
from vidssl.data.spatial import (
    Box,
    Center,
    RandomResized,
    RandomRotated,
    TurnedBox,
    as_shown,
    as_tensor,
    empty_clip,
    resize,
)


def crop(**changes: object) -> RandomResized:
    return RandomResized(**{"area": (0.2, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "antialias": True, **changes})


def test_boxes_lie_inside_with_area_and_shape_in_range() -> None:
    boxes = [crop().box(240, 320, 112, item_generator(0, 0, i)) for i in range(400)]
    for box in boxes:
        assert 0 <= box.top <= 240 - box.height
        assert 0 <= box.left <= 320 - box.width
        assert 0.19 < box.height * box.width / (240 * 320) <= 1
        assert 0.74 < box.width / box.height < 1.36
    mirrored = np.mean([box.mirrored for box in boxes])
    assert 0.4 < mirrored < 0.6


def test_shapes_are_uniform_in_the_logarithm_of_their_ratio() -> None:
    boxes = [crop(area=(0.2, 0.3)).box(1000, 1000, 112, item_generator(0, 0, i)) for i in range(500)]
    wide = np.mean([box.width > box.height for box in boxes])
    assert 0.44 < wide < 0.56


def test_a_frame_that_no_box_fits_gives_its_largest_central_one() -> None:
    box = crop(area=(0.9, 1.0)).box(20, 400, 112, item_generator(0, 0, 0))
    assert (box.height, box.top) == (20, 0)
    assert box.width == round(20 * 4 / 3)
    assert box.left == (400 - box.width) // 2


@pytest.mark.parametrize(("side", "start"), [(171, 30), (113, 0), (112, 0), (240, 64)])
def test_native_center_is_the_releases_with_half_rounded_to_even(side: int, start: int) -> None:
    box = Center(resize_short="native", antialias=True).box(side, side, 112, item_generator(0, 0, 0))
    assert box == Box(start, start, 112, 112)


def test_native_center_refuses_frames_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="64 x 48 has no 112 x 112"):
        Center(resize_short="native", antialias=True).box(48, 64, 112, item_generator(0, 0, 0))


def test_auto_center_is_seven_eighths_of_the_short_side() -> None:
    box = Center(resize_short="auto", antialias=True).box(256, 340, 112, item_generator(0, 0, 0))
    assert (box.height, box.width) == (224, 224)
    whole = Center(resize_short=32, antialias=True).box(64, 64, 32, item_generator(0, 0, 0))
    assert whole == Box(0, 0, 64, 64)


def test_box_shares_tell_where_a_crop_was_and_whether_mirrored() -> None:
    assert Box(10, 20, 31, 41).shares(101, 201) == (0.1, 0.1, 0.3, 0.4)
    assert Box(10, 20, 31, 41, mirrored=True).shares(101, 201) == (0.3, 0.1, 0.1, 0.4)
    assert Box(0, 0, 100, 200).shares(100, 200) == (0, 0, 1, 1)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_clip_mirrored_after_the_resize_is_one_mirrored_before_it(antialias: bool) -> None:
    """Pixel by pixel, whatever the sizes: what is cut from every picture need not be mirrored itself."""
    chance = np.random.default_rng(0)
    for size in (32, 56, 112, 224):
        for height, width in ((size, size), *chance.integers(9, 300, (10, 2))):
            box = Box(5, 6, int(height), int(width), mirrored=True)
            pictures = chance.integers(0, 256, (2, height + 9, width + 9, 3), np.uint8)
            cut = np.stack([box.cut(picture) for picture in pictures])
            np.testing.assert_array_equal(cut, pictures[:, 5 : 5 + height, 6 : 6 + width])
            before = resize(as_tensor(np.ascontiguousarray(cut[:, :, ::-1])), size, size, antialias=antialias)
            after = as_shown(resize(as_tensor(cut), size, size, antialias=antialias), box)
            assert torch.equal(before, after)
            assert torch.equal(as_shown(after, box._replace(mirrored=False)), after)


@pytest.mark.parametrize("degrees", [-10.0, -3.7, 0.0, 0.4, 8.2, 10.0])
def test_turned_cuts_are_those_of_pillow(degrees: float) -> None:
    """Image.rotate, nearest; it computes places in fixed point, so that a few fall on the other side."""
    picture = moving_picture(3, 97, 130)
    turned = np.asarray(Image.fromarray(picture).rotate(degrees))
    for box in (Box(0, 0, 97, 130), Box(11, 40, 84, 84)):
        found = TurnedBox(box, degrees, 97, 130).cut(picture)
        assert (found != box.cut(turned)).any(axis=2).mean() < 0.002


def test_a_turn_leaves_the_center_and_blackens_the_corners() -> None:
    picture = np.full((120, 160, 3), 255, np.uint8)
    found = TurnedBox(Box(0, 0, 120, 160), 10.0, 120, 160).cut(picture)
    assert found[0, 0].max() == found[-1, -1].max() == found[0, -1].max() == found[-1, 0].max() == 0
    assert found[30:90, 30:130].min() == 255
    assert found.shape == (120, 160, 3)


def test_rotated_crops_are_full_sized_squares_anywhere_in_the_frame() -> None:
    crop = RandomRotated(degrees=10.0, resize_short="auto", antialias=True)
    boxes = [crop.box(240, 320, 112, item_generator(0, 0, i)) for i in range(600)]
    assert {(box.height, box.width) for box in boxes} == {(210, 210)}
    assert {box.box.top for box in boxes} >= {0, 30}
    assert max(box.box.left for box in boxes) > 105
    assert max(box.box.left for box in boxes) <= 110
    angles = np.array([box.degrees for box in boxes])
    assert np.abs(angles).max() <= 10
    assert angles.std() == pytest.approx(20 / 12**0.5, rel=0.1)
    assert boxes[0] == crop.box(240, 320, 112, item_generator(0, 0, 0))
    assert boxes[0].shares(240, 320) == boxes[0].box.shares(240, 320)


def test_without_degrees_a_rotated_crop_is_a_plain_one() -> None:
    crop = RandomRotated(degrees=0.0, resize_short="auto", antialias=True)
    picture = moving_picture(5, 120, 160)
    box = crop.box(120, 160, 56, item_generator(0, 0, 0))
    np.testing.assert_array_equal(box.cut(picture), box.box.cut(picture))


def test_cutting_before_the_resize_is_near_the_releases_resize_before_cutting() -> None:
    """Where the cut falls on whole pixels on both sides: 8/7 of 112 are 128, from 256 x 320 pixels."""
    crop = RandomRotated(degrees=0.0, resize_short="auto", antialias=True)
    assert crop.box(256, 320, 112, item_generator(0, 0, 0)).height == 224
    picture = moving_picture(2, 256, 320)
    clip = as_tensor(TurnedBox(Box(20, 40, 224, 224), 0.0, 256, 320).cut(picture)[None])
    first = np.asarray(Image.fromarray(picture).resize((160, 128), Image.Resampling.BILINEAR))[10:122, 20:132]
    difference = np.abs(crop.resize(clip, 112)[0].permute(1, 2, 0).numpy().astype(int) - first)
    assert difference[1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_bytes_is_within_one_gray_level_of_resizing_floats(antialias: bool) -> None:
    """The papers resize floats; whole gray levels up to the device cost one rounding."""
    box = Box(0, 0, 90, 120)
    clip = empty_clip(4, box)
    clip[:] = np.random.default_rng(0).integers(0, 256, clip.shape)
    found = resize(as_tensor(clip), 56, 56, antialias=antialias)
    exact = F.interpolate(as_tensor(clip).float(), (56, 56), mode="bilinear", antialias=antialias)
    assert found.dtype == torch.uint8
    assert (found.float() - exact).abs().max() <= 1.0
    assert (found.float() - exact).abs().mean() < 0.35
