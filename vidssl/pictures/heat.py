"""A map of numbers laid over frames."""

from __future__ import annotations

import numpy as np

OPACITY = 0.5


def overlay(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Blue where the map is 0, red where it is 1. frames uint8 [N, H, W, 3], heat float [N, H, W] in [0, 1]."""
    from matplotlib import colormaps  # slow, and in an extra

    color = 255 * colormaps["turbo"](heat)[..., :3]
    return ((1 - OPACITY) * frames + OPACITY * color).round().astype(np.uint8)
