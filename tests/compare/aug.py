"""Part aug: color and background swap against kornia's chain and FAME's released form, same results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.released import ColorChain, ForegroundSwap
from tests.compare.timing import Row, compared, interleaved, on_device, one_thread
from vidssl import build
from vidssl.augment.foreground import foreground_mask, swap
from vidssl.augment.photometric import JIGGLE, NEUTRAL, Photometric, gaussian_blur, to_gray
from vidssl.build import Augmentation, Run

COLOR, SWAP = 3.0, 2.5  # times as fast on CPUs, at least
TOLERANCE = 1e-5  # of colors in [0, 1]
UNLIKE = 1e-3  # share of a mask's pixels: rounding and ties, which the release leaves to chance


class Options(Protocol):
    batch_size: int
    clip_frames: int
    crop_size: int
    rounds: int
    augmentation: Augmentation


def measure(run: Run, options: Options) -> list[Row]:
    """On moving frames, with the probabilities and ranges of the configured chain.

    On one thread: what threads lose by waiting for one another depends on what else the machine does.
    """
    with one_thread():
        return _rows(run, options)


def _rows(run: Run, options: Options) -> list[Row]:
    clip = moving_clips(options.batch_size, options.clip_frames, options.crop_size).to(run.device)
    rows = [swap_row(run, options, clip)]
    augment = build.color(run, options.augmentation)
    if not isinstance(augment, Photometric):
        run.log.say(f"aug: {options.augmentation.color['name']} has no counterpart here; photometric has")
        return rows
    return [color_row(run, options, clip, augment), *rows]


def color_row(run: Run, options: Options, clip: Tensor, ours: Photometric) -> Row:
    """In each round both do what kornia drew, so that they have the same work."""
    chain = ColorChain(ours, options.crop_size, run.device)
    drawn = [chain.drawn(clip) for _ in range(options.rounds + 1)]
    params, draws = (cycle(each) for each in zip(*drawn, strict=True))
    for theirs, mine in drawn:
        apart = ((chain(clip, theirs) - ours.changed(clip, mine)) * ours.std).abs().max().item()
        if apart > TOLERANCE:
            raise RuntimeError(f"our colors differ from kornia's by {apart:.2g}, so their times cannot be compared")
    seconds = interleaved(
        {"ours": lambda: ours.changed(clip, next(draws)), "kornia": lambda: chain(clip, next(params))},
        options.rounds,
        clock=on_device(run.device),
    )
    tell_stages(run, options, clip, color_stages(clip, ours))
    least = COLOR if run.device.type == "cpu" and ours.flavor == "jiggle" else None
    return compared("aug", f"color {told(clip)}", seconds, "ours", "kornia", least)


def swap_row(run: Run, options: Options, clip: Tensor) -> Row:
    released, order = ForegroundSwap(options.crop_size, 0.5, run.device), torch.randperm(len(clip))

    def ours() -> tuple[Tensor, Tensor]:
        mask = foreground_mask(clip, beta=0.5)
        return swap(clip, order, mask), mask

    mask = ours()[1]
    unlike = (released(clip, order)[1] != mask).float().mean().item()
    if unlike > UNLIKE:
        raise RuntimeError(f"{unlike:.2%} of our masks differ from the released form's: their times say nothing")
    seconds = interleaved(
        {"ours": ours, "released form": lambda: released(clip, order)}, options.rounds, clock=on_device(run.device)
    )
    stages = {"mask": lambda: foreground_mask(clip, beta=0.5), "merge": lambda: swap(clip, order, mask)}
    tell_stages(run, options, clip, stages)
    least = SWAP if run.device.type == "cpu" else None
    return compared("aug", f"FAME mask and merge {told(clip)}", seconds, "ours", "released form", least)


def color_stages(clip: Tensor, ours: Photometric) -> dict[str, Callable[[], object]]:
    """Each step on all clips, one by one as training does on a CPU."""
    count = len(clip)
    names = ("brightness", "contrast", "saturation", "hue")
    inner = [(bounds[0] + 3 * bounds[1]) / 4 for bounds in ours.ranges]  # no neutral factor
    steps: dict[str, tuple[Callable[..., Tensor], float | None]] = {"gray": (to_gray, None)}
    for name, step, factor, neutral in zip(names, JIGGLE, inner, NEUTRAL, strict=True):
        steps[name] = (step, factor if factor != neutral[0] else factor + 0.1)
    steps["blur"] = (gaussian_blur, sum(ours.blur_sigma) / 2)
    parts = clip.split(1) if clip.device.type == "cpu" else (clip,)

    def stage(step: Callable[..., Tensor], factor: float | None) -> Callable[[], object]:
        given = () if factor is None else (torch.full((count // len(parts), 1, 1, 1, 1), factor, device=clip.device),)
        return lambda: [step(part, *given) for part in parts]

    found = {name: stage(*what) for name, what in steps.items()}
    return found | {"normalization": lambda: ours.normalized(clip)}


def tell_stages(run: Run, options: Options, clip: Tensor, stages: dict[str, Callable[[], object]]) -> None:
    """Milliseconds for the whole batch, and as multiples of copying it."""
    seconds = interleaved({**stages, "copy": clip.clone}, options.rounds, clock=on_device(run.device))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    copy = max(medians.pop("copy"), 1e-9)
    words = (f"{name} {1e3 * value:.2f} ms ({value / copy:.1f} copies)" for name, value in medians.items())
    run.log.say(f"aug: {told(clip)}, a copy takes {1e3 * copy:.2f} ms; " + ", ".join(words))


def told(clip: Tensor) -> str:
    """Such as 8x16x112."""
    b, _, t, _, s = clip.shape
    return f"{b}x{t}x{s}"


def moving_clips(count: int, frames: int, side: int, seed: int = 0) -> Tensor:
    """Smooth colors, a textured square that moves before them, and noise, as 8 bits have them.

    -> float32 [count, 3, frames, side, side] in [0, 1]. Such clips have few ties, unlike drawings.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, max(2, side // 16), max(2, side // 16), generator=generator)
    clip = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)[:, :, None]
    clip = clip.repeat(1, 1, frames, 1, 1)
    size = max(1, side // 3)
    square = torch.rand(count, 3, size, size, generator=generator)
    for t, left in enumerate(_path(frames, side - size)):
        clip[:, :, t, size : 2 * size, left : left + size] = square
    noise = 0.02 * torch.randn(clip.shape, generator=generator)
    return (clip + noise).clamp_(0, 1).mul_(255).round_().div_(255)


def _path(frames: int, room: int) -> Iterator[int]:
    return (round(t * room / max(1, frames - 1)) for t in range(frames))
