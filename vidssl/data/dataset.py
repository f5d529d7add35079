"""One item is one video: its clips, cropped, uint8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidssl.clips import Batch, ClipPlan
from vidssl.data.manifest import Manifest
from vidssl.data.sampling import frame_numbers, item_generator
from vidssl.data.spatial import AnyBox, as_shown, as_tensor, empty_clip
from vidssl.data.video import VideoError, rgb_frames

MOST_ATTEMPTS = 20


class Crop(Protocol):
    def box(self, height: int, width: int, size: int, generator: np.random.Generator) -> AnyBox: ...

    def resize(self, clip: Tensor, size: int) -> Tensor: ...


class Item(NamedTuple):
    clips: Tensor  # uint8 [V, 3, T, S, S], color last in memory
    boxes: Tensor  # float32 [V, 4]
    label: int
    index: int
    failures: tuple[tuple[int, str], ...] = ()  # (video, why) of those that this one stands in for


@dataclass(frozen=True)
class ClipDataset(Dataset):
    """Items of (epoch, index): a pure function of these and the seed.

    A video that cannot be read is replaced by another, drawn from the same numbers; without `replace` the item has no
    clips and the loader leaves it out.
    """

    manifest: Manifest
    plan: ClipPlan
    crop: Crop
    clip_frames: int
    frame_stride: int
    crop_size: int
    seed: int
    rotate: bool = True
    replace: bool = True

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def item_bytes(self) -> int:
        """Of one video's clips."""
        return len(self.plan.views) * 3 * self.clip_frames * self.crop_size**2

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        chosen, failures = index, []
        for attempt in range(MOST_ATTEMPTS):
            generator = item_generator(self.seed, epoch, index, attempt)
            if attempt > 0:
                chosen = int(generator.integers(len(self.manifest)))
            try:
                clips, boxes = self.read(chosen, generator)
                return Item(clips, boxes, self.manifest.videos[chosen].label, chosen, tuple(failures))
            except VideoError as error:
                failures.append((chosen, str(error)))
                if not self.replace:
                    return Item(torch.empty(0), torch.empty(0), -1, index, tuple(failures))
        raise VideoError(f"{MOST_ATTEMPTS} videos in a row cannot be read; the last: {failures[-1][1]}")

    def read(self, number: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The clips of one video, uint8 [V, 3, T, S, S] with color last in memory, and their boxes, float32 [V, 4]."""
        index, path = self.manifest.index(number), self.manifest.path(number)
        numbers = frame_numbers(self.plan, index.frames, self.clip_frames, self.frame_stride, generator)
        places: dict[int, list[tuple[int, int]]] = {}
        for view, row in enumerate(numbers):
            for time, frame in enumerate(row):
                places.setdefault(int(frame), []).append((view, time))
        size, views = self.crop_size, len(numbers)
        clips = torch.empty(views, self.clip_frames, size, size, 3, dtype=torch.uint8)
        boxes: list[AnyBox] = []
        parts: dict[int, np.ndarray] = {}
        missing = [self.clip_frames] * views
        shape: tuple[int, ...] = ()
        for frame, picture in rgb_frames(path, places, index, rotate=self.rotate):
            if not boxes:
                shape = picture.shape
                boxes = self.boxes(shape, generator, path)
            elif picture.shape != shape:
                raise VideoError(f"{path}: frame {frame} has another size than those before")
            for view, time in places[frame]:
                if view not in parts:
                    parts[view] = empty_clip(self.clip_frames, boxes[view])
                parts[view][time] = boxes[view].cut(picture)
                missing[view] -= 1
                if missing[view] == 0:  # resize at once, so that few clips lie here at full size
                    small = self.crop.resize(as_tensor(parts.pop(view)), size)
                    clips[view] = as_shown(small, boxes[view]).permute(0, 2, 3, 1)
        shares = [box.shares(*shape[:2]) for box in boxes]
        return color_first(clips), torch.tensor(shares, dtype=torch.float32)

    def boxes(self, shape: tuple[int, ...], generator: np.random.Generator, path: object) -> list[AnyBox]:
        """Each view's crop of a picture [H, W, 3]. One is drawn for every view, also where it takes another's."""
        views, boxes, of_window = self.plan.views, [], {}
        try:
            for view in views:
                box = self.crop.box(*shape[:2], self.crop_size, generator)
                first = of_window.setdefault(view.window, box)
                boxes.append(first if view.crop == "window" else box)
        except ValueError as error:
            raise VideoError(f"{path}: {error}") from None
        return boxes


def color_first(clips: Tensor) -> Tensor:
    """[..., T, H, W, 3] -> view [..., 3, T, H, W]: moving single bytes takes CPUs as long as half a resize, and GPUs
    nothing."""
    return clips.movedim(-1, -4)


def collate(items: list[Item]) -> tuple[Batch | None, tuple[tuple[int, str], ...]]:
    """The batch, None if no item has clips, and the failures of its items."""
    good = [item for item in items if len(item.clips)]
    failures = tuple(failure for item in items for failure in item.failures)
    if not good:
        return None, failures
    batch = Batch(
        color_first(torch.stack([item.clips.permute(0, 2, 3, 4, 1) for item in good])),
        torch.stack([item.boxes for item in good]),
        torch.tensor([item.label for item in good]),
        torch.tensor([item.index for item in good]),
    )
    return batch, failures
