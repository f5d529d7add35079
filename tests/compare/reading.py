"""Part data: speed of reading clips, ours against other loaders; first, whether all deliver the right frames.

A unit of work is one file: two random clips, each with a crop of its own, as pretraining reads them. Frames are not
rotated, which the others do not do. One thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from tests.compare.apart import Apart, against
from tests.compare.loaders import (
    Frames,
    Job,
    Loader,
    available,
    crop_bytes,
    crop_floats,
    cropped,
    decode_all,
    one_line,
    scan_by_decoding,
    whole_file,
    with_ffmpegs_colors,
    wrong_frames,
)  # fmt: skip
from tests.compare.material import DEFAULT
from tests.compare.timing import Row, compared, interleaved, one_thread
from vidssl.bench.reading import (
    STAGES,
    decoded_per_used,
    each,
    evenly,
    paths_of,
    split,
)
from vidssl.bench.reading import (
    clips_read as ours,
)
from vidssl.bench.reading import (
    jobs_of as items_of,
)
from vidssl.build import Run
from vidssl.clips import ClipPlan, View
from vidssl.data.cache import Form, with_copies
from vidssl.data.dataset import ClipDataset
from vidssl.data.manifest import Manifest, Video
from vidssl.data.sampling import frame_numbers, item_generator
from vidssl.data.spatial import Box, RandomResized
from vidssl.data.video import VideoError, VideoIndex, probe

PLAN = ClipPlan(windows=2, views=(View(window=0), View(window=1)))
CROP = RandomResized(area=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, antialias=True)
COPIES = (Form("mjpeg", 128), Form("raw", 128))

# How many times as fast as each baseline ours should be at least, by the kind of a file; for LEAST_FOR
LEAST = {
    "MPEG-4 packed": {"official style": 5.0, "torchcodec": 1.4},
    "MPEG-4 without B, GOP 12": {"official style": 4.5, "torchcodec": 1.3, "pure decoding": 0.65},
    "MPEG-4 without B, GOP 60": {"official style": 4.5, "torchcodec": 1.3, "pure decoding": 0.65},
    "H.264, GOP 60": {"official style": 2.0, "torchcodec": 1.35, "pure decoding": 1.1},
    "H.264, GOP 250": {"official style": 3.0, "torchcodec": 1.35, "pure decoding": 1.1},
    "H.264 720p": {"official style": 3.3, "torchcodec": 1.6, "pure decoding": 1.1},
}
LEAST_OF_SCAN, LEAST_OF_CROP, LEAST_OF_COPIES = 20.0, 20.0, 20.0
LEAST_FOR = (16, 2, 112)  # clip_frames, frame_stride, crop_size


def measure(run: Run, options: Any) -> list[Row]:
    """options: see Options in __main__.py."""
    rows = []
    clip = (options.clip_frames, options.frame_stride, options.crop_size)
    with one_thread():
        for path in files(options.files, Path(options.material), run.log.say):
            try:
                dataset = dataset_of([path], clip, run.seed)
                index = dataset.manifest.index(0)
                if index.frames < clip[0] * clip[1]:
                    raise VideoError(f"{path}: {index.frames} frames, a clip spans {clip[0] * clip[1]}")
                if index.damage:
                    raise VideoError(f"{path}: {index.damage}")
                if index.stream is not None:
                    raise VideoError(f"{path}: several video streams, of which others may read another one")
            except VideoError as error:
                run.log.say(f"left out: {error}")
                continue
            run.log.say(f"{path.name}: {kind_of(index)}, {index.width} x {index.height}, {index.frames} frames")
            copies = Path(options.material) / "copies"
            rows += file_rows(dataset, options.clip_pairs, options.rounds, copies, run.log.say)
    return rows


def copied(what: str, form: Form) -> str:
    """The row of reading something -> that of reading its copy."""
    return f"{what} from a copy, {form}"


# ---------------------------------------------------------------------------------------------------------------------
# Files


FROM_FOLDER = 4  # files, evenly from the sorted ones


def files(given: Sequence[str] | None, material: Path, say: Callable[[str], None]) -> list[Path]:
    """Those named, some from each named folder; rendered ones if none are named."""
    if given is None:
        if not all((material / each.name).exists() for each in DEFAULT):
            say(f"render files to measure with to {material}")
        return [each.render(material) for each in DEFAULT]
    return [path for name in given for path in evenly(paths_of([name]), FROM_FOLDER)]


def kind_of(index: VideoIndex) -> str:
    """What decides how expensive it is to read from a file's middle. GOP: the longest way between key frames."""
    gop = max(after - before for before, after in pairwise((*index.keys, index.frames)))
    grade = "GOP 250" if gop > 120 else "GOP 60" if gop > 30 else "GOP 12"
    if index.codec == "mpeg4":
        return "MPEG-4 packed" if "x" in index.kinds else f"MPEG-4 with{'' if 'B' in index.kinds else 'out'} B, {grade}"
    if index.codec == "h264":
        return "H.264 720p" if min(index.height, index.width) >= 720 and gop > 30 else f"H.264, {grade}"
    return index.codec


def dataset_of(paths: Sequence[Path], clip: tuple[int, int, int], seed: int) -> ClipDataset:
    """The path that training reads by, with indices that are there already."""
    rows = [json.dumps(probe(path).to_row()).encode() for path in paths]
    manifest = Manifest(Path(), [Video(str(path.resolve())) for path in paths], (), rows)
    return ClipDataset(manifest, PLAN, CROP, *clip, seed, rotate=False)


def jobs_of(dataset: ClipDataset, count: int, times: list[int]) -> list[Job]:
    """What the dataset reads from its first video in so many epochs, for others to read the same."""
    path, index = dataset.manifest.path(0), dataset.manifest.index(0)
    jobs = []
    for epoch in range(count):
        generator = item_generator(dataset.seed, epoch, 0)
        numbers = frame_numbers(dataset.plan, index.frames, dataset.clip_frames, dataset.frame_stride, generator)
        boxes = dataset.boxes((index.height, index.width, 3), generator, path)
        jobs.append(Job(path, index, times, numbers, boxes, dataset.crop_size))
    return jobs


# ---------------------------------------------------------------------------------------------------------------------
# One file


def file_rows(
    dataset: ClipDataset, clip_pairs: int, rounds: int, folder: Path, say: Callable[[str], None]
) -> list[Row]:
    """Reading, also from a small copy, scanning and cropping; after a look at what each loader delivers.

    folder: for the copy.
    """
    path, index = dataset.manifest.path(0), dataset.manifest.index(0)
    jobs = jobs_of(dataset, clip_pairs, scan_by_decoding(path))
    keys = [(epoch, 0) for epoch in range(clip_pairs)]
    loaders = sound_loaders(dataset, jobs, say)
    kind = kind_of(index)
    is_told = (dataset.clip_frames, dataset.frame_stride, dataset.crop_size) == LEAST_FOR
    least = LEAST.get(kind, {}) if is_told else {}

    with Apart() as apart:
        candidates = {"ours": apart.start(ours, dataset, keys, keeps_memory=True)}
        for form in COPIES:
            small = replace(dataset, manifest=with_copies(dataset.manifest, form, folder / str(form)))
            candidates[f"copy {form}"] = apart.start(ours, small, keys, keeps_memory=True)
        candidates["pure decoding"] = apart.start(each, decode_all, jobs)
        candidates |= {name: apart.start(each, loader.clips, jobs) for name, (loader, _) in loaders.items()}
        for stage in STAGES.keys() - {"crop_resize"}:  # that is ours
            candidates[f"stage {stage}"] = apart.start(STAGES[stage], dataset, keys, keeps_memory=True)
        seconds = interleaved(candidates, rounds, clock=apart.clock)
    rows, what = [], f"read {path.name} ({kind})"
    for name in (
        "official style",
        *(name for name in candidates if not name.startswith(("ours", "copy", "stage", "off"))),
    ):
        if name in candidates:
            row = compared("data", what, seconds, "ours", name, least.get(name))
            note = loaders[name][1] if name in loaders else ""
            rows.append(row._replace(note=note, seconds=row.seconds / clip_pairs))
    by_stage = {stage: seconds["ours" if stage == "crop_resize" else f"stage {stage}"] for stage in STAGES}
    figures = split(by_stage, clip_pairs) | {"decoded_per_used_frame": decoded_per_used(items_of(dataset, keys))}
    rows[0] = rows[0]._replace(figures=figures)
    if "official style" in seconds:
        promised = LEAST_OF_COPIES if least else None
        for form in COPIES:
            row = compared("data", copied(what, form), seconds, f"copy {form}", "official style", promised)
            rows.append(row._replace(seconds=row.seconds / clip_pairs))
    return [*rows, scan_row(path, rounds), crop_row(path, jobs, rounds, is_told)]


def sound_loaders(dataset: ClipDataset, jobs: list[Job], say: Callable[[str], None]) -> dict[str, tuple[Loader, str]]:
    """name -> (loader, what is wrong with its frames) of those that can read the file. Ours must be exact."""
    path, found = jobs[0].path, {}
    plain = Loader(partial(whole_file, convert=with_ffmpegs_colors), crop_bytes)
    for epoch, job in enumerate(jobs):
        clips, _ = dataset.read(0, item_generator(dataset.seed, epoch, 0))
        if not torch.equal(clips, plain.clips(job)):
            raise VideoError(f"{path}: our reader's clips differ from those of a plain decode loop; please report this")
    right = thumbnails(path)
    for name, loader in available()[0].items():
        try:
            problem = verdict(loader.frames, jobs, right)
        except Exception as error:  # other people's libraries raise what they like
            say(f"{path.name}: {name} cannot read it: {one_line(error)}")
            continue
        if problem:
            say(f"{path.name}: {name} delivers wrong frames: {problem}")
        found[name] = loader, f"wrong frames: {problem}" if problem else ""
    return found


def thumbnails(path: Path) -> list[np.ndarray]:
    """Every fourth pixel of all frames of a file, as a plain decode loop returns them."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24")[::4, ::4].copy() for frame in container.decode(video=0)]


def verdict(read: Callable[[Job], Frames], jobs: list[Job], right: list[np.ndarray]) -> str:
    """What is wrong with the frames that a loader delivers; nothing if they are right."""
    wrong = [pair for job in jobs for pair in wrong_frames(read(job), job, right)]
    total = sum(job.numbers.size for job in jobs)
    return f"{len(wrong)} of {total}, such as {wrong[0][1]} for {wrong[0][0]}" if wrong else ""


SCANS = 16  # of a file in each round, as a data set has many


def scan_row(path: Path, rounds: int) -> Row:
    paths = [path] * SCANS
    seconds = against("official style", (each, probe, paths), (each, scan_by_decoding, paths), rounds)
    row = compared("data", f"index {path.name}", seconds, "ours", "official style", LEAST_OF_SCAN)
    return row._replace(seconds=row.seconds / SCANS)


def crop_row(path: Path, jobs: list[Job], rounds: int, is_told: bool) -> Row:
    """Crop, resize, flip and nothing else, of frames that lie in memory; of each the central quarter."""
    index = jobs[0].index
    height, width = index.height // 2, index.width // 2
    box = Box(height // 2, width // 2, height, width)
    jobs = [job._replace(boxes=[box, box._replace(mirrored=True)]) for job in jobs]
    seconds = against("official style", (cropped, crop_bytes, jobs), (cropped, crop_floats, jobs), rounds)
    least = LEAST_OF_CROP if is_told else None
    row = compared("data", f"crop, resize, flip {path.name}", seconds, "ours", "official style", least)
    return row._replace(seconds=row.seconds / len(jobs))
