from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from tests.conftest import GOLDEN
from vidssl.clips import ClipPlan, View
from vidssl.data.sampling import frame_numbers, item_generator, window_starts

PAIR = ClipPlan(2, (View(0), View(1)))


def test_uniform_starts_are_those_of_the_release() -> None:
    recorded = json.loads((GOLDEN / "moco/clip_sampling.json").read_text())["uniform_10_clips"]
    for places, starts in recorded.items():
        found = window_starts(ClipPlan.uniform(10), int(places), item_generator(0, 0, 0))
        assert found.tolist() == starts


def test_two_windows_start_at_different_places_all_equally_likely() -> None:
    pairs = Counter(tuple(window_starts(PAIR, 4, item_generator(0, 0, i)).tolist()) for i in range(2400))
    assert all(a != b for a, b in pairs)
    assert len(pairs) == 12
    assert max(pairs.values()) < 2 * min(pairs.values())


def test_a_video_with_one_place_gives_it_twice() -> None:
    numbers = frame_numbers(PAIR, 32, 16, 2, item_generator(0, 0, 0))
    assert numbers.tolist() == [list(range(0, 32, 2))] * 2


def test_a_clip_spans_stride_times_frames_and_stays_inside() -> None:
    for i in range(50):
        numbers = frame_numbers(PAIR, 40, 16, 2, item_generator(1, 2, i))
        assert (np.diff(numbers, axis=1) == 2).all()
        assert numbers.min() >= 0
        assert numbers.max() <= 38


def test_views_of_a_window() -> None:
    plan = ClipPlan(2, (View(0, "stride"), View(0, "head"), View(0, "tail"), View(0, "still"), View(1, "still")))
    stride, head, tail, still, other = frame_numbers(plan, 64, 8, 4, item_generator(0, 0, 3))
    first = stride[0]
    assert stride.tolist() == list(range(first, first + 32, 4))
    assert head.tolist() == list(range(first, first + 8))
    assert tail.tolist() == list(range(first + 24, first + 32))
    assert len(set(still)) == len(set(other)) == 1
    assert first <= still[0] < first + 32
    starts = window_starts(plan, 33, item_generator(0, 0, 3))
    assert still[0] - starts[0] == other[0] - starts[1], "the same place in both windows"


def test_a_short_video_is_repeated() -> None:
    numbers = frame_numbers(ClipPlan.uniform(2), 5, 8, 1, item_generator(0, 0, 0))
    assert numbers.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]] * 2


@pytest.mark.parametrize("changed", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_draws_depend_on_seed_epoch_and_index_alone(changed: tuple[int, int, int]) -> None:
    def draw(key: tuple[int, int, int]) -> list:
        return frame_numbers(PAIR, 500, 16, 2, item_generator(*key)).tolist()

    assert draw((0, 0, 0)) == draw((0, 0, 0))
    assert draw((0, 0, 0)) != draw(changed)
