from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from tests.conftest import GOLDEN, golden
from vidssl.clips import ClipPlan, View
from vidssl.data.sampling import (
    RELEASED_WINDOW,
    frame_numbers,
    item_generator,
    last_start,
    moved_away,
    partners,
    restarted,
    window_starts,
)

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


# -- as BE's release places clips; it counts from 1


def test_golden_frames_restart_at_the_first() -> None:
    """method.placement=released."""
    file = golden("be/clip_index.npz")
    for (frames, stride, start, length), expected in zip(file["frame_cfg"], file["frames"], strict=True):
        found = restarted(start - 1, frames, length, stride) + 1
        assert found.tolist() == expected[expected >= 0].tolist()


def test_golden_starts_leave_room_for_a_window() -> None:
    for frames, stride, window, low, high in golden("be/clip_index.npz")["start_bounds"]:
        assert (1, last_start(frames, stride, window) + 1) == (low, high)


def test_golden_negatives_are_moved_away_from_their_anchor() -> None:
    for frames, anchor, drawn, final in golden("be/clip_index.npz")["neg_start"]:
        assert moved_away(drawn - 1, anchor - 1, frames) + 1 == final


def test_released_placement_reaches_all_its_starts_and_no_others() -> None:
    plan = ClipPlan(2, (View(0), View(0), View(1)), "released")
    anchors, negatives = Counter(), Counter()
    for i in range(2000):
        anchor, positive, negative = frame_numbers(plan, 1 + 4 * RELEASED_WINDOW + 9, 16, 4, item_generator(0, 0, i))
        assert anchor.tolist() == positive.tolist() == list(range(anchor[0], anchor[0] + 64, 4))
        assert abs(int(negative[0]) - int(anchor[0])) >= 2
        anchors[int(anchor[0])] += 1
        negatives[int(negative[0])] += 1
    assert sorted(anchors) == list(range(10))
    assert max(anchors.values()) < 2 * min(anchors.values())
    assert max(negatives) > 40, "moved by a third of the video"
    short = frame_numbers(plan, 20, 16, 4, item_generator(0, 0, 0))
    assert short[0].tolist() == [0, 4, 8, 12, 16] * 3 + [0]
    assert short.max() < 19, "the last frame is never read"


def test_partners_have_another_label_where_there_is_one() -> None:
    labels = [0] * 30 + [1] * 20 + [2]
    found = partners(labels, seed=3)
    assert all(labels[other] != label for other, label in zip(found, labels, strict=True))
    assert found.tolist() == partners(labels, seed=3).tolist()
    assert found.tolist() != partners(labels, seed=4).tolist()
    assert len(set(found.tolist())) > 20
    alone = partners([-1] * 12, seed=0)
    assert all(other != place for place, other in enumerate(alone))
    assert partners([3], seed=0).tolist() == [0]
