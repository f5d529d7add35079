"""vidssl: self-supervised video representation learning that is not fooled by the background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidssl.run.pretrained import Pretrained

__version__ = "0.1.0"


def load(path: str, **clip: Any) -> Pretrained:
    """The network of a run's folder, a state, a backbone.safetensors or a released file, in evaluation mode.

    `net.features(video)` -> float32 [C]. clip: clip_frames, frame_stride, crop_size, mean, std in place of those that
    the file says.
    """
    from vidssl.run.pretrained import load  # imports torch, which questions about the configuration can do without

    return load(path, **clip)
