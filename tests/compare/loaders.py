"""Other ways to read clips, in our own words, to compare with.

A loader takes the same work as ours, two clips of one file with a crop each, and is made as its users have it: how it
converts frames, uses threads and finds frame indices.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.bench.reading import each
from vidssl.data.spatial import Box, as_shown, as_tensor, resize
from vidssl.data.video import ToRGB, VideoIndex


class Job(NamedTuple):
    """The clips to read from one file."""

    path: Path
    index: VideoIndex
    times: list[int]  # presentation times of all frames, ascending, as a scan that decodes everything finds them
    numbers: np.ndarray  # int64 [V, T]: those of the frames
    boxes: list[Box]  # V
    size: int  # of the clips' sides, pixels

    @property
    def wanted(self) -> list[int]:
        return sorted({int(number) for number in self.numbers.ravel()})


Frames = list[Sequence[np.ndarray]]  # V times T times uint8 [H, W, 3]


class Loader(NamedTuple):
    """Reading whole frames is what is checked, reading and cropping what is timed."""

    frames: Callable[[Job], Frames]
    crop: Callable[[Sequence[np.ndarray], Box, int], Tensor]  # T times [H, W, 3] -> [T, 3, S, S]

    def clips(self, job: Job) -> Tensor:
        """[V, 3, T, S, S]"""
        parts = zip(self.frames(job), job.boxes, strict=True)
        return torch.stack([self.crop(whole, box, job.size).transpose(0, 1) for whole, box in parts])


def crop_bytes(whole: Sequence[np.ndarray], box: Box, size: int) -> Tensor:
    """T times uint8 [H, W, 3] -> uint8 [T, 3, S, S]: only the box's pixels are touched."""
    part = np.stack([box.cut(frame) for frame in whole])
    return as_shown(resize(as_tensor(part), size, size, antialias=True), box)


def crop_floats(whole: Sequence[np.ndarray], box: Box, size: int) -> Tensor:
    """T times uint8 [H, W, 3] -> float32 [T, 3, S, S] in [0, 1], as torchvision's video transforms did it when the
    papers were written: all pixels to floats, then the crop, then a bilinear resize without antialiasing, then the
    mirror."""
    floats = torch.from_numpy(np.stack(whole)).permute(3, 0, 1, 2).float() / 255
    part = floats[..., box.top : box.top + box.height, box.left : box.left + box.width]
    small = F.interpolate(part, (size, size), mode="bilinear", align_corners=False)
    return (small.flip(-1) if box.mirrored else small).transpose(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# With PyAV


def as_array(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")


def with_ffmpegs_colors(frame: av.VideoFrame) -> np.ndarray:
    """As ours has them: the same but in interlaced and 10-bit video."""
    return ToRGB()(frame).to_ndarray()


def whole_file(job: Job, convert: Callable[[av.VideoFrame], np.ndarray] = as_array) -> Frames:
    """Decode everything and count: the definition of the right frames."""
    wanted, found = set(job.wanted), {}
    with av.open(str(job.path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found[number] = convert(frame)
    return _arranged(job, found)


def official(job: Job) -> Frames:
    """The releases' loader, torchvision's VideoClips: each clip for itself, by a range of presentation times.

    Seek a little before the clip, decode beyond its end by five frames in case these come out of order, convert all
    of its span at full size, sort by time, keep every frame_stride-th.
    """
    clips = []
    for row in job.numbers:
        first, last, stride = int(row[0]), int(row[-1]), int(row[1] - row[0]) if len(row) > 1 else 1
        start, end = job.times[first], job.times[min(last + stride - 1, len(job.times) - 1)]
        found, beyond = {}, 0
        with av.open(str(job.path)) as container:
            stream = container.streams.video[0]
            container.seek(max(0, start - 6), stream=stream)
            for frame in container.decode(stream):
                found[frame.pts] = frame
                if frame.pts >= end:
                    beyond += 1
                    if beyond > 5:
                        break
            span = [found[time].to_ndarray(format="rgb24") for time in sorted(found) if start <= time <= end]
        clips.append(np.stack(span)[::stride][: len(row)])  # the copy is theirs, too
    return clips


def seeking(job: Job) -> Frames:
    """Each clip for itself: seek to the key frame before it, decode, recognize frames by presentation time."""
    found = {}
    numbers = {time: number for number, time in enumerate(job.times)}
    for row in job.numbers:
        missing = {int(number) for number in row}
        with av.open(str(job.path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            container.seek(job.times[int(row[0])], stream=stream)
            for frame in container.decode(stream):
                number = numbers.get(frame.pts)
                if number in missing:
                    found[number] = frame.to_ndarray(format="rgb24")
                    missing.remove(number)
                if not missing:
                    break
    return _arranged(job, found)


def decode_all(job: Job) -> int:
    """The least a reader that skips nothing can do: decode once from the needed key frames to the last wanted frame,
    convert nothing. How many frames that is."""
    wanted, decoded, at = job.wanted, 0, 0
    numbers = {time: number for number, time in enumerate(job.times)}
    with av.open(str(job.path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        while wanted:
            key = job.index.key_before(wanted[0])
            if key > at:
                container.seek(job.times[key], stream=stream)
            for frame in container.decode(stream):
                decoded, at = decoded + 1, numbers[frame.pts]
                while wanted and wanted[0] <= at:
                    wanted.pop(0)
                if not wanted or job.index.key_before(wanted[0]) > at:
                    break
    return decoded


def _arranged(job: Job, found: dict[int, np.ndarray]) -> Frames:
    return [[found[int(number)] for number in row] for row in job.numbers]


# ---------------------------------------------------------------------------------------------------------------------
# Libraries, if they are there


def with_torchcodec(job: Job, mode: str = "exact") -> Frames:
    """Its own defaults: exact seeking, for which it scans the file first; approximate trusts the header."""
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(str(job.path), num_ffmpeg_threads=1, seek_mode=mode, dimension_order="NHWC")
    frames = decoder.get_frames_at(job.wanted).data.numpy()
    return _arranged(job, dict(zip(job.wanted, frames, strict=True)))


def with_decord(job: Job) -> Frames:
    decord = importlib.import_module("decord")
    reader = decord.VideoReader(str(job.path), num_threads=1)
    frames = reader.get_batch(job.wanted).asnumpy()
    return _arranged(job, dict(zip(job.wanted, frames, strict=True)))


def with_opencv(job: Job) -> Frames:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(str(job.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    found, at = {}, 0
    for number in job.wanted:
        if job.index.key_before(number) > at:
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            at = number
        while at <= number:
            if not capture.grab():
                raise RuntimeError(f"{job.path}: OpenCV finds no frame {at}")
            at += 1
        found[number] = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
    capture.release()
    return _arranged(job, found)


def available() -> tuple[dict[str, Loader], dict[str, str]]:
    """The baselines that can be run here; those that cannot, with the reason."""
    found = {
        "official style": Loader(official, crop_floats),
        "whole file": Loader(whole_file, crop_bytes),
        "seek for each clip": Loader(seeking, crop_bytes),
    }
    others = {
        "torchcodec": ("torchcodec.decoders", with_torchcodec),
        "torchcodec, approximate": ("torchcodec.decoders", partial(with_torchcodec, mode="approximate")),
        "decord": ("decord", with_decord),
        "OpenCV": ("cv2", with_opencv),
    }
    missing = {}
    for name, (module, read) in others.items():
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            missing[name] = "not installed"
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # torchcodec without FFmpeg's libraries raises a RuntimeError, others what they like
            missing[name] = f"installed, but cannot be loaded: {one_line(error)}"
            continue
        found[name] = Loader(read, crop_bytes)
    return found, missing


def one_line(error: Exception) -> str:
    """An error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def wrong_frames(found: Frames, job: Job, right: list[np.ndarray]) -> Iterator[tuple[int, int]]:
    """(wanted number, number of the frame that came) wherever another frame within reach is nearer than the wanted
    one. right: every fourth pixel of all frames of the file. Libraries convert colors a little differently."""
    for clip, row in zip(found, job.numbers, strict=True):
        for frame, number in zip(clip, row, strict=True):
            near = range(max(0, number - 3), min(len(right), number + 4))
            distances = {n: float(np.abs(right[n].astype(np.int16) - frame[::4, ::4]).mean()) for n in near}
            nearest = min(distances, key=distances.__getitem__)
            if distances[nearest] < 0.9 * distances[number]:
                yield int(number), nearest


# ---------------------------------------------------------------------------------------------------------------------
# Without reading


def cropped(crop: Callable, jobs: list[Job]) -> Callable[[], None]:
    """Crops alone, of frames that are in memory."""
    pairs = [pair for job in jobs for pair in zip(whole_file(job), job.boxes, strict=True)]
    return each(lambda pair: crop(*pair, jobs[0].size), pairs)


def scan_by_decoding(path: Path) -> list[int]:
    """The official style's index: presentation times of all frames, in order."""
    with av.open(str(path)) as container:
        return sorted(frame.pts for frame in container.decode(video=0))
