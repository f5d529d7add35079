"""Color, blur and normalization of clips on their device; every draw holds for all frames of a clip.

The chain of the papers' releases: gray, color jitter, Gaussian blur, normalization, in this order. Written for few
passes over memory; tests hold every step against kornia.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from vidssl.augment.blur import blur_matrix, kernel_size
from vidssl.registry import Positive, Registry, Share

AUGMENTS = Registry("augmentation", "vidssl.augment")

LUMA = (0.299, 0.587, 0.114)


class Jittered(nn.Module):
    """What the color operations share: their ranges, and normalization at the end."""

    def __init__(
        self,
        jitter: float,
        ranges: tuple[tuple[float, float], ...],
        flavor: str,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ):
        super().__init__()
        self.jitter, self.ranges = jitter, ranges
        self.steps = JIGGLE if flavor == "jiggle" else JITTER
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1, 1), persistent=False)

    def normalized(self, clip: Tensor) -> Tensor:
        return (clip - self.mean) / self.std


@AUGMENTS.register("photometric")
class Photometric(Jittered):
    """clip float32 [B, 3, T, S, S] in [0, 1] -> normalized float32, same shape. Draws anew at each call.

    gray, jitter, blur: probability that a clip gets it. brightness, contrast, saturation: range of the factor;
    hue: range of the shift in turns. The four run in one random order for the whole call, on every jittered clip.
    flavor: jiggle adds (factor - 1) for brightness and scales for contrast, as the releases did; jitter is
    torchvision's, with contrast about the gray mean. blur_sigma in pixels, drawn per_clip, or once per_run as the
    releases did; the kernel has a tenth of the frame's side, rounded down to an odd number.
    """

    def __init__(
        self,
        *,
        gray: Share,
        jitter: Share,
        brightness: tuple[float, float],
        contrast: tuple[float, float],
        saturation: tuple[float, float],
        hue: tuple[float, float],
        flavor: Literal["jiggle", "jitter"],
        blur: Share,
        blur_sigma: tuple[Positive, Positive],
        blur_draw: Literal["per_clip", "per_run"],
        mean: tuple[float, float, float],
        std: tuple[Positive, Positive, Positive],
    ):
        super().__init__(jitter, (brightness, contrast, saturation, hue), flavor, mean, std)
        self.gray, self.blur, self.blur_sigma = gray, blur, blur_sigma
        if blur_draw == "per_run":
            self.blur_sigma = (_uniform(1, blur_sigma).item(),) * 2

    @torch.no_grad()
    def forward(self, clip: Tensor) -> Tensor:
        count = clip.shape[0]
        clip = _on_some(clip, _draw(count, self.gray), to_gray)
        chosen = _draw(count, self.jitter)
        factors = [_uniform(count, bounds) for bounds in self.ranges]
        for step in torch.randperm(4).tolist():
            if self.ranges[step] != NEUTRAL[step]:
                clip = _on_some(clip, chosen, self.steps[step], factors[step])
        sigma = _uniform(count, self.blur_sigma)
        return self.normalized(_on_some(clip, _draw(count, self.blur), gaussian_blur, sigma))


@AUGMENTS.register("one_of_four")
class OneOfFour(Jittered):
    """clip float32 [B, 3, T, S, S] in [0, 1] -> normalized float32, same shape. Draws anew at each call.

    A clip gets a single one of the four operations, each as likely: what the color jitter of BE's release comes to,
    which was meant to apply all. jitter: probability that a clip gets any; the rest as in photometric.
    """

    def __init__(
        self,
        *,
        jitter: Share,
        brightness: tuple[float, float],
        contrast: tuple[float, float],
        saturation: tuple[float, float],
        hue: tuple[float, float],
        flavor: Literal["jiggle", "jitter"],
        mean: tuple[float, float, float],
        std: tuple[Positive, Positive, Positive],
    ):
        super().__init__(jitter, (brightness, contrast, saturation, hue), flavor, mean, std)

    @torch.no_grad()
    def forward(self, clip: Tensor) -> Tensor:
        count = clip.shape[0]
        operation = torch.where(_draw(count, self.jitter), torch.randint(4, (count,)), -1)
        for number, (bounds, step) in enumerate(zip(self.ranges, self.steps, strict=True)):
            clip = _on_some(clip, operation == number, step, _uniform(count, bounds))
        return self.normalized(clip)


def to_gray(clip: Tensor) -> Tensor:
    """[B, 3, T, H, W] -> same shape with three equal channels."""
    weights = clip.new_tensor(LUMA).view(3, 1, 1, 1)
    return (clip * weights).sum(1, keepdim=True).expand_as(clip)


def add_brightness(clip: Tensor, factor: Tensor) -> Tensor:
    """factor [B, 1, 1, 1, 1], 1 leaves the clip alone; so for the next three, where hue's neutral shift is 0."""
    return (clip + (factor - 1)).clamp(0, 1)


def scale_contrast(clip: Tensor, factor: Tensor) -> Tensor:
    return (clip * factor).clamp(0, 1)


def scale_saturation(clip: Tensor, factor: Tensor) -> Tensor:
    """Scale S of HSV, at most to 1. With hue and value fixed, each channel's distance to the largest scales with S."""
    value = clip.amax(1, keepdim=True)
    span = value - clip.amin(1, keepdim=True)
    limit = torch.where(span > 0, value / span, 1.0)  # brings S to 1
    return value - (value - clip) * torch.minimum(factor, limit)


def shift_hue(clip: Tensor, turns: Tensor) -> Tensor:
    """Turn H of HSV. turns [B, 1, 1, 1, 1]."""
    value, largest = clip.max(dim=1, keepdim=True)
    span = value - clip.amin(1, keepdim=True)
    red, green, blue = clip.unbind(1)
    ends = torch.stack([green - blue, blue - red, red - green], dim=1).gather(1, largest)
    sector = torch.where(span > 0, ends / span, 0.0) + 2 * largest + 6 * turns  # hue in sixths of a turn
    at = clip.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1, 1)  # where each channel's trapezoid begins
    k = (sector + at) % 6
    return value - span * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(clip: Tensor, sigma: Tensor) -> Tensor:
    """Reflected border; sigma [B, 1, 1, 1, 1] in pixels, kernel a tenth of the height."""
    h, w = clip.shape[-2:]
    size = kernel_size(h)
    blurred = []
    for frames, width in zip(clip, sigma.flatten().tolist(), strict=True):
        rows, columns = (blur_matrix(n, size, width).to(clip) for n in (h, w))
        blurred.append(rows @ frames @ columns.T)
    return torch.stack(blurred)


def _kornia(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """One of kornia's image functions, frame by frame."""

    def step(clip: Tensor, factor: Tensor) -> Tensor:
        import kornia.enhance

        frames = clip.transpose(1, 2)
        factor = factor.flatten().repeat_interleave(frames.shape[1])
        changed = getattr(kornia.enhance, name)(frames.flatten(0, 1), factor)
        return changed.view_as(frames).transpose(1, 2)

    return step


JIGGLE = (add_brightness, scale_contrast, scale_saturation, shift_hue)
JITTER = (
    _kornia("adjust_brightness_accumulative"),
    _kornia("adjust_contrast_with_mean_subtraction"),
    _kornia("adjust_saturation_with_gray_subtraction"),
    shift_hue,
)
NEUTRAL = ((1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0))


def _draw(count: int, probability: float) -> Tensor:
    return torch.rand(count) < probability


def _uniform(count: int, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count)


def _on_some(clip: Tensor, chosen: Tensor, step: Callable[..., Tensor], *draws: Tensor) -> Tensor:
    """The step's result where a clip is chosen; draws are made on the CPU, so that nothing waits for the device."""
    if not chosen.any():
        return clip
    draws = tuple(draw[chosen].to(clip.device).view(-1, 1, 1, 1, 1) for draw in draws)
    if chosen.all():
        return step(clip, *draws)
    places = chosen.nonzero()[:, 0].to(clip.device)
    return clip.index_copy(0, places, step(clip[places], *draws))
