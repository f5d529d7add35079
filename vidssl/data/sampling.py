"""Where clips lie in a video: a plan and a length -> frame numbers. Whole numbers only."""

from __future__ import annotations

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


def frame_numbers(
    plan: ClipPlan, frames: int, clip_frames: int, frame_stride: int, generator: np.random.Generator
) -> np.ndarray:
    """Frame numbers of each view, int64 [V, clip_frames], for a video of `frames` frames.

    A video shorter than a window is repeated from its start.
    """
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
