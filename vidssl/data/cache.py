"""Small copies of the videos that are cheap to decode: written once, read in every epoch.

A copy has the pictures of its original, number for number, with a shorter short side and compressed once more; so what
is learned from copies is not what is learned from the originals. Where no sound copy can be made, the original is read.
Nothing here imports torch: encoding processes start fast.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import av
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from vidssl.data.manifest import INDEX_NAME, Manifest, append_rows, index_file, read_rows, stamp
from vidssl.data.video import VideoError, VideoIndex, decode, filter_graph, probe
from vidssl.engine import disk
from vidssl.engine.pool import each_in_pool

ROWS = "copies.jsonl"  # in the folder of the copies, a line each


@dataclass(frozen=True)
class Form:
    """How copies are made.

    mjpeg: every picture for itself; fast, larger than most originals. raw: not compressed at all; the fastest, and very
    large. fastdecode: H.264 with a key picture every 12, no B-pictures, and nothing in it that takes a decoder long;
    smaller than most originals.
    """

    name: Literal["mjpeg", "raw", "fastdecode"]
    short: int  # length of the copies' short side; smaller videos keep theirs

    @property
    def suffix(self) -> str:
        return ".mp4" if self.name == "fastdecode" else ".avi"

    @property
    def pixels(self) -> str:
        return "yuvj420p" if self.name == "mjpeg" else "yuv420p"

    def __str__(self) -> str:
        return f"{self.name}-{self.short}"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a copy; even, as encoders want them."""
        share = min(1.0, self.short / min(width, height))
        return tuple(max(2, round(side * share / 2) * 2) for side in (width, height))

    def add_stream(self, out: av.container.OutputContainer) -> av.VideoStream:
        if self.name == "mjpeg":
            return out.add_stream("mjpeg", rate=25, options={"qmin": "4", "qmax": "4"})
        if self.name == "raw":
            return out.add_stream("rawvideo", rate=25)
        options = {"crf": "18", "preset": "medium", "tune": "fastdecode", "bf": "0", "sc_threshold": "0"}
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.gop_size, stream.codec_context.max_b_frames = 12, 0
        return stream


class Job(NamedTuple):
    """One copy to make."""

    source: Path
    index: bytes  # of the source, as JSON
    target: Path
    form: Form
    row: dict  # what is known of it already


def folder_of(root: Path, form: Form, index_folder: str | None, cache_folder: str | None) -> Path:
    """Where the copies of the videos under `root` are."""
    file = index_file(root, index_folder)
    if cache_folder is None:
        beside = file.with_name(".vidssl-cache") if file.name == INDEX_NAME else file.with_suffix(".cache")
    else:
        beside = Path(cache_folder) / f"{root.name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]}"
    return beside / str(form)


def with_copies(
    manifest: Manifest,
    form: Form,
    folder: Path,
    *,
    processes: int = 1,
    progress: Callable[[Iterator, int], Iterator] = lambda rows, total: rows,
) -> Manifest:
    """The manifest with copies in place of its videos; those that are missing or whose original has changed are made.

    An interrupted call goes on where it stopped.
    """
    known, jobs = read_rows(folder / ROWS), []
    for number, video in enumerate(manifest.videos):
        source, target = manifest.root / video.path, folder / _name(video.path, form)
        row = {"format": 1, "path": video.path, "stamp": stamp(source)}
        if b'"stream"' in manifest.rows[number]:  # one of several
            row["stream"] = manifest.index(number).stream
        if not _is_made(known.get(video.path, {}), row, target):
            jobs.append(Job(source, manifest.rows[number], target, form, row))
    if jobs:
        chunk = max(1, min(16, len(jobs) // (4 * processes)))
        made = each_in_pool(_make, jobs, processes, fewest=8, chunk=chunk)
        for row in append_rows(folder / ROWS, progress(made, len(jobs))):
            known[row["path"]] = row
    rows, files = list(manifest.rows), [video.path for video in manifest.videos]
    for number, video in enumerate(manifest.videos):
        made = known[video.path]
        if "video" in made:
            rows[number] = json.dumps(made["video"], separators=(",", ":")).encode()
            files[number] = str((folder / _name(video.path, form)).resolve())
    return replace(manifest, rows=rows, files=files)


def not_made(paths: Iterable[str], folder: Path) -> int:
    """How many of these videos have no copy in the folder, nor a reason why not."""
    return len(set(paths) - read_rows(folder / ROWS).keys())


def problems(manifest: Manifest, folder: Path) -> list[str]:
    """Which of the manifest's videos have no copy, and why."""
    rows = read_rows(folder / ROWS)
    return [f"{v.path}: {rows[v.path]['error']}" for v in manifest.videos if "error" in rows.get(v.path, {})]


def _name(path: str, form: Form) -> str:
    inside = not os.path.isabs(path) and ".." not in Path(path).parts
    return (path if inside else hashlib.sha256(os.fsencode(path)).hexdigest()[:24]) + form.suffix


def _is_made(known: dict, row: dict, target: Path) -> bool:
    """Whether the copy, or that there can be none, is of the original as it is now."""
    if any(known.get(key) != value for key, value in row.items()) or row["stamp"] is None:
        return False
    return "error" in known or (target.exists() and target.stat().st_size == known["bytes"])


def _make(job: Job) -> dict:
    """Write one copy, look whether it is sound, put it in its place. Raises DiskError."""
    unfinished = job.target.with_name(f".{os.getpid()}-{job.target.name}")
    try:
        with disk.writing(job.target):
            return _made(job, unfinished)
    finally:
        unfinished.unlink(missing_ok=True)


def _made(job: Job, unfinished: Path) -> dict:
    job.target.parent.mkdir(parents=True, exist_ok=True)
    try:
        original = VideoIndex.from_row(json.loads(job.index))
        _encode(job.source, original, unfinished, job.form)
        copy = _sound(unfinished, original)
        size = unfinished.stat().st_size
        unfinished.replace(job.target)
    except (VideoError, av.FFmpegError) as error:
        if disk.errno_of(error) in disk.FULL:
            raise  # says nothing of the video
        return {**job.row, "error": str(error).replace(f"{unfinished}: ", "").removeprefix(f"{job.source}: ")}
    return {**job.row, "bytes": size, "video": copy.to_row()}


def _encode(source: Path, index: VideoIndex, target: Path, form: Form) -> None:
    convert, graph, shape = VideoReformatter(), None, None
    with av.open(str(target), "w") as out:
        stream = form.add_stream(out)
        stream.width, stream.height = form.size(index.width, index.height)
        stream.pix_fmt, stream.codec_context.thread_count = form.pixels, 1
        for number, frame in decode(source, range(index.frames), index):
            shape = shape or (frame.width, frame.height)
            if shape != (frame.width, frame.height):
                raise VideoError(f"{source}: frame {number} has another size than those before")
            if frame.interlaced_frame:  # PyAV's conversion would scale its fields apart
                scale = f"{stream.width}:{stream.height}:flags=area"
                graph = graph or filter_graph(frame, ("setfield", "prog"), ("scale", scale), ("format", form.pixels))
                graph.push(frame)
                small = graph.pull()
            else:
                small = convert.reformat(
                    frame, stream.width, stream.height, format=form.pixels, interpolation="AREA", threads=1
                )
            small.pts, small.time_base, small.pict_type = number, Fraction(1, 25), PictureType.NONE
            out.mux(stream.encode(small))
        out.mux(stream.encode(None))


def _sound(path: Path, original: VideoIndex) -> VideoIndex:
    """The copy's index; what a player is asked to do and how time goes is its original's."""
    index = probe(path)
    if index.frames != original.frames or index.damage:
        raise VideoError(f"{path}: the copy has {index.frames} pictures of {original.frames} {index.damage or ''}")
    last = index.frames - 1
    if {number for number, _ in decode(path, {0, last}, index)} != {0, last}:
        raise VideoError(f"{path}: the copy's first or last picture cannot be read")
    return replace(index, rotation=original.rotation, fps=original.fps, variable_rate=original.variable_rate)
