"""Where clips lie in a video: a plan and a length -> frame numbers. Whole numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidssl.clips import ClipPlan


def item_generator(seed: int, epoch: int, index: int, attempt: int = 0) -> np.random.Generator:
    """All chance of one item, as a function of these numbers: workers and restarts change nothing."""
    return np.random.default_rng([seed, epoch, index, attempt])


def window_starts(plan: ClipPlan, places: int, generator: np.random.Generator) -> np.ndarray:
    """First frames of the plan's windows, int64 [windows]; 0 .. places - 1 are possible.

    random: all different where there are enough places. uniform: floor(i (places - 1) / (windows - 1)).
    """
    if plan.placement == "uniform":
        return np.arange(plan.windows) * (places - 1) // max(1, plan.windows - 1)
    return generator.choice(places, plan.windows, replace=places < plan.windows)


def partners(labels: Sequence[int], seed: int) -> np.ndarray:
    """For each place of a list a random other one, of another label where there is one; the only one has itself.

    int64 [N].
    """
    generator, label = np.random.default_rng(seed), np.asarray(labels)
    others = {each: np.flatnonzero(label != each) for each in np.unique(label)}
    chosen = np.empty(len(label), np.int64)
    for place, each in enumerate(label):
        allowed = others[each] if len(others[each]) else np.delete(np.arange(len(label)), place)
        chosen[place] = generator.choice(allowed) if len(allowed) else place
    return chosen


def frame_numbers(
    plan: ClipPlan, frames: int, clip_frames: int, frame_stride: int, generator: np.random.Generator
) -> np.ndarray:
    """Frame numbers of each view, int64 [V, clip_frames], for a video of `frames` frames.

    A video shorter than a window is repeated from its start.
    """
    if plan.placement == "released":
        starts = released_starts(plan, frames, frame_stride, generator)
        return np.stack([restarted(starts[v.window], frames - 1, clip_frames, frame_stride) for v in plan.views])
    span = clip_frames * frame_stride
    starts = window_starts(plan, max(1, frames - span + 1), generator)
    still = int(generator.integers(span))
    offsets = {
        "stride": np.arange(0, span, frame_stride),
        "head": np.arange(clip_frames),
        "tail": np.arange(span - clip_frames, span),
        "still": np.full(clip_frames, still),
    }
    return np.stack([starts[view.window] + offsets[view.frames] for view in plan.views]) % frames


# ---------------------------------------------------------------------------------------------------------------------
# BE's release: the video's last frame is never read, starts leave room for 32 frames whatever the length of the clip,
# and a clip that reaches the end goes on at the video's first frame

RELEASED_WINDOW = 32


def released_starts(plan: ClipPlan, frames: int, frame_stride: int, generator: np.random.Generator) -> list[int]:
    """First frames of the plan's windows; those behind the first are moved away from it."""
    last = last_start(frames - 1, frame_stride, RELEASED_WINDOW)
    first, *others = (int(start) for start in generator.integers(last + 1, size=plan.windows))
    return [first, *(moved_away(other, first, frames - 1) for other in others)]


def last_start(frames: int, frame_stride: int, window: int) -> int:
    return max(frames - window * frame_stride, 0)


def moved_away(start: int, anchor: int, frames: int) -> int:
    """A third of the video further if the two are less than 2 frames apart; the release counts from 1, hence + 1."""
    if abs(start - anchor) >= 2:
        return start
    return max((start + 1 + frames // 3) % frames, 1) - 1


def restarted(start: int, frames: int, clip_frames: int, frame_stride: int) -> np.ndarray:
    """Every frame_stride-th frame from `start`, after the last one again from frame 0. int64 [clip_frames]."""
    before = np.arange(start, frames, frame_stride)
    again = np.arange(0, frames, frame_stride)
    return np.concatenate([before, np.resize(again, clip_frames)])[:clip_frames]
