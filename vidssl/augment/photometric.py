"""Color, blur and normalization of clips on their device; every draw holds for all frames of a clip.

The chain of the papers' releases: gray, color jitter, Gaussian blur, normalization, in this order. Written for few
passes over memory, on CPUs some frames at a time, which stay in the processor's cache; tests hold every step against
kornia.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vidssl.augment.blur import blur_matrix, gaussian, kernel_size
from vidssl.registry import PositiveFloat, Registry, UnitInterval

AUGMENTS = Registry("augmentation", "vidssl.augment")

LUMA = (0.299, 0.587, 0.114)
TINY = 1e-30  # where all channels are equal, hue is 0 whatever stands below the fraction
CACHED = 600_000  # numbers that are worked on at once: a clip of 16 frames of 112 pixels, four frames of 224
NOTHING = 1e-9  # a share of a sum that float32 does not notice


class Draws(NamedTuple):
    """What chance decides about B clips; all on the CPU, so that nothing waits for a device."""

    gray: Tensor  # bool [B]
    jitter: Tensor  # bool [B]
    factors: Tensor  # float32 [4, B]: of brightness, contrast, saturation; turns of hue
    order: tuple[int, ...]  # of these four, for all clips
    blur: Tensor  # bool [B]
    sigma: Tensor  # float32 [B], pixels

    def each(self) -> Iterator[Draws]:
        """Those of the clips one by one."""
        for i in range(len(self.gray)):
            of = slice(i, i + 1)
            yield Draws(self.gray[of], self.jitter[of], self.factors[:, of], self.order, self.blur[of], self.sigma[of])


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
        gray: UnitInterval,
        jitter: UnitInterval,
        brightness: tuple[float, float],
        contrast: tuple[float, float],
        saturation: tuple[float, float],
        hue: tuple[float, float],
        flavor: Literal["jiggle", "jitter"],
        blur: UnitInterval,
        blur_sigma: tuple[PositiveFloat, PositiveFloat],
        blur_draw: Literal["per_clip", "per_run"],
        mean: tuple[float, float, float],
        std: tuple[PositiveFloat, PositiveFloat, PositiveFloat],
    ):
        super().__init__(jitter, (brightness, contrast, saturation, hue), flavor, mean, std)
        self.gray, self.blur, self.blur_sigma, self.flavor = gray, blur, blur_sigma, flavor
        if blur_draw == "per_run":
            self.blur_sigma = (_uniform(1, blur_sigma).item(),) * 2

    @torch.no_grad()
    def forward(self, clip: Tensor) -> Tensor:
        return self.changed(clip, self.draw(len(clip)))

    def draw(self, count: int) -> Draws:
        gray, jitter = _draw(count, self.gray), _draw(count, self.jitter)
        factors = torch.stack([_uniform(count, bounds) for bounds in self.ranges])
        order = tuple(torch.randperm(4).tolist())
        sigma = _uniform(count, self.blur_sigma)
        return Draws(gray, jitter, factors, order, _draw(count, self.blur), sigma)

    @torch.no_grad()
    def changed(self, clip: Tensor, draws: Draws) -> Tensor:
        """What these draws make of the clips: a new tensor."""
        if clip.device.type != "cpu":
            return self.normalized(self._colored(clip, draws))
        found = torch.empty_like(clip, memory_format=torch.contiguous_format)
        frames = max(1, CACHED // clip[0, :, 0].numel())
        for one, into, drawn in zip(clip.split(1), found.split(1), draws.each(), strict=True):
            for part, place in zip(one.split(frames, dim=2), into.split(frames, dim=2), strict=True):
                torch.sub(self._colored(part, drawn), self.mean, out=place).div_(self.std)
        return found

    def _colored(self, clip: Tensor, draws: Draws) -> Tensor:
        clip = _on_some(clip, draws.gray, to_gray)
        for step, factors in self._steps(draws):
            clip = _on_some(clip, draws.jitter, step, *factors)
        return _on_some(clip, draws.blur, gaussian_blur, draws.sigma)

    def _steps(self, draws: Draws) -> Iterator[tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
        """Of the jitter, in order, with what they need; saturation and hue in one where neighbors."""
        order = [step for step in draws.order if self.ranges[step] != NEUTRAL[step]]
        while order:
            step, *rest = order
            if self.flavor == "jiggle" and rest and {step, rest[0]} == {SATURATION, HUE}:
                yield shift_hue, (draws.factors[HUE], draws.factors[SATURATION])
                rest = rest[1:]
            else:
                yield self.steps[step], (draws.factors[step],)
            order = rest


@AUGMENTS.register("one_of_four")
class OneOfFour(Jittered):
    """clip float32 [B, 3, T, S, S] in [0, 1] -> normalized float32, same shape. Draws anew at each call.

    A clip gets a single one of the four operations, each as likely: what the color jitter of BE's release comes to,
    which was meant to apply all. jitter: probability that a clip gets any; the rest as in photometric.
    """

    def __init__(
        self,
        *,
        jitter: UnitInterval,
        brightness: tuple[float, float],
        contrast: tuple[float, float],
        saturation: tuple[float, float],
        hue: tuple[float, float],
        flavor: Literal["jiggle", "jitter"],
        mean: tuple[float, float, float],
        std: tuple[PositiveFloat, PositiveFloat, PositiveFloat],
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
    value, low = extremes(clip)
    limit = value / (value - low).clamp_(min=TINY)  # brings S to 1
    return torch.lerp(value[:, None], clip, torch.minimum(factor[:, 0], limit)[:, None])


def shift_hue(clip: Tensor, turns: Tensor, saturation: Tensor | None = None) -> Tensor:
    """Turn H of HSV. turns [B, 1, 1, 1, 1]. saturation: a factor of S as well; it does not change H, so one pass does.

    Each channel is a trapezoid of the hue between the smallest and the largest channel; the three differ in where
    theirs lies. A trapezoid is the distance from its middle, cut off at a sixth and a third of a turn.
    """
    value, low = extremes(clip)
    red, green, blue = clip.unbind(1)
    span = value - low
    per_turn = (6 * span).clamp_(min=TINY).reciprocal_()
    turns = turns[:, 0]
    hue = (red - green).mul_(per_turn).add_(turns + 2 / 3)  # where blue is largest
    hue = torch.where(green == value, (blue - red).mul_(per_turn).add_(turns + 1 / 3), hue)
    hue = torch.where(red == value, (green - blue).mul_(per_turn).add_(turns), hue)
    hue.sub_(hue.floor())
    if saturation is not None:
        span = torch.minimum(span.mul_(saturation[:, 0]), value)
        low = value - span
    turned, top, slope = torch.empty_like(clip, memory_format=torch.contiguous_format), low + 2 * span, 6 * span
    middles = ((1 / 2, low - span, 1), (1 / 3, top, -1), (2 / 3, top, -1))
    for channel, (middle, base, sign) in zip(turned.unbind(1), middles, strict=True):
        torch.sub(hue, middle, out=channel).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(base, slope, channel, value=sign, out=channel)
    return turned


def extremes(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and smallest channel. [B, 3, T, H, W] -> 2 x [B, T, H, W]."""
    red, green, blue = clip.unbind(1)
    return torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)


def gaussian_blur(clip: Tensor, sigma: Tensor) -> Tensor:
    """Reflected border; sigma [B, 1, 1, 1, 1] in pixels, kernel a tenth of the height."""
    blurred = by_taps if clip.device.type == "cpu" else by_products
    size = kernel_size(clip.shape[-2])
    widths = sigma.flatten().tolist()
    return torch.stack([blurred(frames, size, width) for frames, width in zip(clip, widths, strict=True)])


def by_products(frames: Tensor, size: int, sigma: float) -> Tensor:
    """[..., H, W] -> same shape: two matrix products, which GPUs do best."""
    rows, columns = (blur_matrix(n, size, sigma).to(frames) for n in frames.shape[-2:])
    return rows @ frames @ columns.T


def by_taps(frames: Tensor, size: int, sigma: float) -> Tensor:
    """[..., H, W] -> same shape: a sum of shifted frames, half as much work for CPUs as products with many zeros."""
    for axis in (-1, -2):
        frames = _blurred_along(frames, axis, gaussian(size, sigma).tolist())
    return frames


def _blurred_along(frames: Tensor, axis: int, taps: list[float]) -> Tensor:
    reach, length = len(taps) // 2, frames.shape[axis]
    first, last = frames.narrow(axis, 1, reach).flip(axis), frames.narrow(axis, length - 1 - reach, reach).flip(axis)
    padded = torch.cat([first, frames, last], dim=axis)
    blurred = frames * taps[reach]
    for i in range(reach):
        if taps[i] < NOTHING:
            continue
        pair = padded.narrow(axis, i, length) + padded.narrow(axis, len(taps) - 1 - i, length)
        blurred.add_(pair, alpha=taps[i])
    return blurred


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
SATURATION, HUE = 2, 3  # their places in these
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
