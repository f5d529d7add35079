"""Speed of reading clips here: by the loader as training has it, and by one core, stage by stage.

Files are read once before anything counts, so that they come from the system's memory where they fit into it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
import torch

from vidssl import build
from vidssl.build import Augmentation, Run
from vidssl.clips import ClipPlan
from vidssl.data.cache import Form, with_copies
from vidssl.data.dataset import ClipDataset, collate
from vidssl.data.loader import ClipLoader
from vidssl.data.manifest import Manifest, Video
from vidssl.data.sampling import frame_numbers, item_generator
from vidssl.data.video import VideoError, VideoIndex, decode, probe, rgb_frames
from vidssl.registry import ConfigError

VIDEOS = {".avi", ".mp4", ".mkv", ".webm", ".mov", ".ts", ".m4v", ".mpg", ".wmv", ".flv"}
COPIED = 4  # videos of which small copies are tried


class Options(Protocol):
    files: Sequence[str] | None
    videos: int
    batch_size: int
    rounds: int
    clip_frames: int
    frame_stride: int
    crop_size: int
    augmentation: Augmentation


def measure(run: Run, options: Options, plan: ClipPlan) -> dict[str, float]:
    """Metrics of reading: clips_per_second of the loader with so many workers, seconds_per_video and STAGE_seconds of
    one core, FORM_times: how many times as fast small copies are read (only where originals are)."""
    videos = chosen_videos(run, options)
    dataset = build.dataset(run, videos, plan, options.augmentation.crop, options, training=True)
    metrics = loader_metrics(run, dataset, options) | stage_metrics(dataset, options.rounds)
    return metrics if videos.files else metrics | copy_metrics(run, dataset, options.rounds)


def describe(metrics: dict[str, float]) -> list[str]:
    """Lines for people."""
    workers, clips = int(metrics["workers"]), metrics["clips_per_second"]
    stages = ", ".join(f"{stage} {1e3 * metrics[f'{stage}_seconds']:.2g}" for stage in STAGES)
    work = f"{metrics['videos']:.0f} videos, {metrics['clips_per_video']:.0f} clips of each"
    quartiles = f"{metrics['clips_per_second_low']:.4g} to {metrics['clips_per_second_high']:.4g}"
    lines = [
        f"reading {work}: {clips:.4g} clips/s with data.workers={workers} (quartiles {quartiles})",
        f"one core takes {1e3 * metrics['seconds_per_video']:.3g} ms for a video, in ms: {stages}; "
        f"{metrics['decoded_per_used_frame']:.1f} frames are decoded for each that is used",
    ]
    copies = {name.removesuffix("_times"): value for name, value in metrics.items() if name.endswith("_times")}
    told = ", ".join(f"{form} {times:.1f} times as fast" for form, times in copies.items())
    return [*lines, f"small copies (data.cache) are read: {told}"] if copies else lines


# ---------------------------------------------------------------------------------------------------------------------
# Videos


def chosen_videos(run: Run, options: Options) -> Manifest:
    """Evenly from bench.files or the run's training split; as often as it takes to have bench.videos of them."""
    window = options.clip_frames * options.frame_stride
    if options.files is None:
        found = build.manifest(run, "train", window, training=True)
    else:
        found = of_files(evenly(paths_of(options.files), options.videos), window, run.log.say)
    places = [int(place) for place in np.linspace(0, len(found) - 1, options.videos)]
    return replace(
        found,
        videos=[found.videos[place] for place in places],
        rows=[found.rows[place] for place in places],
        files=[found.files[place] for place in places] if found.files else (),
    )


def paths_of(files: Sequence[str]) -> list[Path]:
    """Files as they are named, and all videos in the folders among them."""
    found = []
    for path in map(Path, files):
        found += sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEOS) if path.is_dir() else [path]
    return found


def evenly(items: Sequence, most: int) -> list:
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, min(most, len(items)))]


def of_files(paths: Sequence[Path], window: int, say: Callable[[str], None]) -> Manifest:
    """Those that can be read and are as long as a clip; the others are named. Raises ConfigError if none is left."""
    videos, rows = [], []
    for path in paths:
        try:
            index = probe(path)
            if index.damage or index.frames < window:
                raise VideoError(f"{path}: {index.damage or f'{index.frames} frames, a clip spans {window}'}")
        except VideoError as error:
            say(f"left out: {error}")
            continue
        videos.append(Video(str(path.resolve())))
        rows.append(json.dumps(index.to_row()).encode())
    if not videos:
        raise ConfigError(f"bench.files: none of {len(paths)} files can be used; name others, or folders with videos")
    return Manifest(Path(), videos, (), rows)


# ---------------------------------------------------------------------------------------------------------------------
# The loader


def loader_metrics(run: Run, dataset: ClipDataset, options: Options) -> dict[str, float]:
    """By the clock on the wall, with data.workers and data.prefetch of the run."""
    data = build.data_options(run)
    loader = ClipLoader(
        dataset, min(options.batch_size, len(dataset)), training=False, workers=data.workers, prefetch=data.prefetch,
        pin=run.device.type == "cuda", most_damaged=data.most_damaged, report=run.log.say,
    )  # fmt: skip
    clips, rates = len(dataset) * len(dataset.plan.views), []
    for epoch in run.log.track(range(options.rounds + 1), options.rounds + 1, "bench: loader"):
        begun = time.perf_counter()
        deque(loader.epoch(0), maxlen=0)
        if epoch:
            rates.append(clips / (time.perf_counter() - begun))
    low, median, high = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else rates * 3
    return {
        "videos": float(len(dataset)),
        "clips_per_video": float(len(dataset.plan.views)),
        "workers": float(data.workers),
        "clips_per_second": median,
        "clips_per_second_low": low,
        "clips_per_second_high": high,
    }


# ---------------------------------------------------------------------------------------------------------------------
# One core


Keys = Sequence[tuple[int, int]]  # epoch and index of a data set's items


class Job(NamedTuple):
    path: Path
    index: VideoIndex
    wanted: list[int]  # frame indices of an item, ascending


def jobs_of(dataset: ClipDataset, keys: Keys) -> list[Job]:
    jobs = []
    for epoch, place in keys:
        index, generator = dataset.manifest.index(place), item_generator(dataset.seed, epoch, place)
        numbers = frame_numbers(dataset.plan, index.frames, dataset.clip_frames, dataset.frame_stride, generator)
        jobs.append(Job(dataset.manifest.path(place), index, sorted(set(map(int, numbers.ravel())))))
    return jobs


def each(work: Callable[[Any], object], jobs: Sequence) -> Callable[[], None]:
    def candidate() -> None:
        for job in jobs:
            work(job)

    return candidate


def opened(dataset: ClipDataset, keys: Keys) -> Callable[[], None]:
    return each(lambda job: av.open(str(job.path), metadata_errors="ignore").close(), jobs_of(dataset, keys))


def decoded(dataset: ClipDataset, keys: Keys) -> Callable[[], None]:
    return each(lambda job: deque(decode(job.path, job.wanted, job.index), maxlen=0), jobs_of(dataset, keys))


def converted(dataset: ClipDataset, keys: Keys) -> Callable[[], None]:
    return each(lambda job: deque(rgb_frames(job.path, job.wanted, job.index), maxlen=0), jobs_of(dataset, keys))


def clips_read(dataset: ClipDataset, keys: Keys) -> Callable[[], None]:
    """What a worker does for each item."""
    return each(lambda key: dataset.read(key[1], item_generator(dataset.seed, *key)), keys)


def collated(dataset: ClipDataset, keys: Keys) -> Callable[[], object]:
    return lambda: collate([dataset[key] for key in keys])


def transferred(dataset: ClipDataset, keys: Keys) -> Callable[[], object]:
    """Into memory that the training process reads, too."""

    def candidate() -> None:
        for part in collate([dataset[key] for key in keys])[0]:
            part.share_memory_()

    return candidate


# Reading up to the end of each stage, so that differences tell what a stage takes
STAGES = {
    "open": opened,
    "decode": decoded,
    "convert": converted,
    "crop_resize": clips_read,
    "collate": collated,
    "transfer": transferred,
}


def stage_metrics(dataset: ClipDataset, rounds: int) -> dict[str, float]:
    """For a video, in processor time of one thread."""
    keys = [(0, place) for place in range(len(dataset))]
    seconds = processor_seconds({name: make(dataset, keys) for name, make in STAGES.items()}, rounds)
    whole = statistics.median(seconds["crop_resize"]) / len(keys)
    effort = decoded_per_used(jobs_of(dataset, keys))
    return {"seconds_per_video": whole, **split(seconds, len(keys)), "decoded_per_used_frame": effort}


def processor_seconds(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Of each candidate in each round, in turn on one thread; a first round does not count."""
    found, threads = {name: [] for name in candidates}, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(rounds + 1):
            for name, work in candidates.items():
                begun = time.process_time()
                work()
                if number:
                    found[name].append(time.process_time() - begun)
    finally:
        torch.set_num_threads(threads)
    return found


def split(seconds: dict[str, list[float]], count: int) -> dict[str, float]:
    """STAGE_seconds of one of `count` items, medians of the rounds' differences between one stage and the next."""
    columns = [np.zeros(len(seconds["open"])), *(np.array(seconds[stage]) for stage in STAGES)]
    spent = [float(np.median(after - before)) / count for before, after in pairwise(columns)]
    return {f"{stage}_seconds": max(0.0, value) for stage, value in zip(STAGES, spent, strict=True)}


def decoded_per_used(jobs: Sequence[Job]) -> float:
    """Frames decoded for each frame used."""
    effort: list[int] = []
    for job in jobs:
        deque(decode(job.path, job.wanted, job.index, effort), maxlen=0)
    return sum(effort) / sum(len(job.wanted) for job in jobs)


def copy_metrics(run: Run, dataset: ClipDataset, rounds: int) -> dict[str, float]:
    """FORM_times: processor time of reading some originals over that of reading their small copies."""
    videos = dataset.manifest
    some = sorted({video.path: place for place, video in enumerate(videos.videos)}.values())
    some = evenly(some, COPIED)
    few = replace(videos, videos=[videos.videos[i] for i in some], rows=[videos.rows[i] for i in some])
    keys = [(epoch, place) for epoch in range(2) for place in range(len(few))]
    with tempfile.TemporaryDirectory(prefix="vidssl-bench-") as folder:
        candidates = {"originals": clips_read(replace(dataset, manifest=few), keys)}
        for name in ("mjpeg", "raw"):
            form = Form(name, build.data_options(run).cache_short)
            copies = with_copies(few, form, Path(folder) / name)
            candidates[str(form)] = clips_read(replace(dataset, manifest=copies), keys)
        seconds = {name: statistics.median(each) for name, each in processor_seconds(candidates, rounds).items()}
    whole = seconds.pop("originals")
    return {f"{name}_times": whole / value for name, value in seconds.items()}
