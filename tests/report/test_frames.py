"""Sheets of frames, overlays, animations, neighbors: which pixel shows what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from vidssl.report.frames import contact_sheet, even, frames_of, side_of, stack, write_gif
from vidssl.report.strips import CAPTION, EDGE, GAP, OTHER, SAME, Row, Tile, neighbors, overlay, strip


@pytest.mark.parametrize(
    ("size", "side"), [(16, 96), (32, 96), (64, 128), (96, 96), (112, 112), (128, 128), (224, 128)]
)
def test_a_frame_is_large_enough_to_be_seen_and_not_larger(size: int, side: int) -> None:
    assert side_of(size) == side


def test_a_contact_sheet_has_a_row_for_each_video_and_keeps_its_pixels() -> None:
    clip = torch.rand(2, 3, 6, 32, 32)
    sheet = contact_sheet(clip, frames=6)
    assert sheet.shape == (2 * 97, 6 * 97, 3)
    assert sheet.dtype == np.uint8
    second = sheet[97 + 1 : 97 + 96 : 3, 3 * 97 + 1 : 3 * 97 + 96 : 3]  # video 1, frame 3
    expected = (clip[1, :, 3].permute(1, 2, 0) * 255).round().byte().numpy()
    np.testing.assert_array_equal(second, expected)
    assert (sheet[96] == 255).all(), "videos are apart"


def test_frames_are_evenly_spread_from_the_first_to_the_last() -> None:
    clip = torch.linspace(0, 1, 16).view(1, 16, 1, 1).expand(3, 16, 32, 32)
    gray = frames_of(clip, 4)[:, 0, 0, 0]
    np.testing.assert_array_equal(gray, [0, 85, 170, 255])
    assert len(frames_of(clip[:, :1], 8)) == 1, "a still clip is one frame"


def test_a_strip_has_its_captions_on_the_left_and_its_frames_on_the_right() -> None:
    black = np.zeros((3, 96, 96, 3), np.uint8)
    sheet = strip([Row("foreground mask", black), Row("", black)], "a title")
    assert sheet.shape == (30 + 2 * (96 + GAP), CAPTION + 3 * (96 + GAP), 3)
    assert (sheet[30:126, CAPTION : CAPTION + 96] == 0).all()
    assert (sheet[30:126, :CAPTION] < 128).any(), "the caption"
    assert (sheet[130:226, :CAPTION] == 255).all(), "no caption"
    assert (sheet[:26] < 128).any(), "the title"


def test_no_caption_of_ours_reaches_into_the_frames() -> None:
    from vidssl.tasks.visualize import CAPTIONS

    black = np.zeros((1, 96, 96, 3), np.uint8)
    for caption in (*CAPTIONS.values(), "network input: right motion", "network input: distracting"):
        assert (strip([Row(caption, black)])[:, CAPTION - 4 : CAPTION] == 255).all(), caption


def test_images_of_other_widths_are_below_one_another() -> None:
    sheet = stack([np.zeros((4, 6, 3), np.uint8), np.zeros((5, 3, 3), np.uint8)], gap=2)
    assert sheet.shape == (11, 6, 3)
    assert (sheet[4:6] == 255).all()
    assert (sheet[6:, 3:] == 255).all()


def test_an_overlay_is_half_the_frame_and_blue_to_red() -> None:
    frames = np.full((1, 2, 2, 3), 100, np.uint8)
    heat = np.array([[[0.25, 1.0], [0.25, 0.25]]])
    shown = overlay(frames, heat).astype(int)[0]
    assert shown[0, 1, 0] > shown[0, 1, 2], "red"
    assert shown[0, 0, 2] > shown[0, 0, 0], "blue"
    assert (shown >= 50).all(), "half of the frame remains"
    assert (shown[0, 0] == shown[1, 1]).all()


def test_a_gif_moves_at_its_rate_and_loops(tmp_path: Path) -> None:
    frames = np.zeros((4, 10, 12, 3), np.uint8)
    for time in range(4):
        frames[time, :, 3 * time : 3 * time + 3, 0] = 255
    write_gif(tmp_path / "a.gif", frames, fps=5)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 4
        assert picture.info["duration"] == 200
        assert picture.info["loop"] == 0
        picture.seek(2)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), frames[2])


def test_videos_get_even_sides() -> None:
    assert even(np.zeros((2, 5, 8, 3), np.uint8)).shape == (2, 6, 8, 3)


def test_neighbors_are_in_their_order_with_their_color() -> None:
    def tile(value: int, color: str = "#ffffff") -> Tile:
        return Tile(np.full((96, 96, 3), value, np.uint8), "a class whose name has no end at all", "0.9", color)

    sheet = neighbors([(tile(10), [tile(20, SAME), tile(30, OTHER)]), (tile(40), [tile(50, SAME)])])
    middle = 30 + EDGE + 48
    row = sheet[middle]
    for value in (10, 20, 30):
        assert ((row == value).all(axis=1)).sum() == 96, value
    first, second = (int(np.flatnonzero((row == value).all(axis=1))[0]) for value in (20, 30))
    assert first < second
    assert tuple(row[first - 2]) == ImageColor.getrgb(SAME)
    assert tuple(row[second - 2]) == ImageColor.getrgb(OTHER)
