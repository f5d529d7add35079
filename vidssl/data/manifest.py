"""The videos of a data set and what a scan told about each, cached on disk.

The cache is one JSON object a line, beside the videos or, where that folder cannot be written, in the user's cache
folder. A row holds for as long as the file's size and modification time stay the same; an interrupted scan goes on
where it stopped. Nothing here imports torch: scanning processes start fast.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vidssl.data.video import VideoError, VideoIndex, probe
from vidssl.engine import disk
from vidssl.engine.pool import each_in_pool

FORMAT = 2  # 1: of several video streams the first was scanned, even if it was a preview of one frame
INDEX_NAME = ".vidssl-index.jsonl"
FLAWS = ("unreadable", "damaged", "short", "variable_rate", "rotated")


class Video(NamedTuple):
    path: str  # relative to the data set's root, or absolute
    label: int = -1


@dataclass(frozen=True)
class Listing:
    """What a source says: which videos, with which labels."""

    root: Path
    videos: Sequence[Video]
    classes: Sequence[str] = ()  # names by label; empty without labels
    remarks: Sequence[str] = ()  # what a user should know, such as videos that are listed but not there
    recipes: Sequence[Any] = ()  # of synthetic videos: how to render each
    missing: Sequence[str] = ()  # names of listed videos that are not on disk
    unlabelled: str = ""  # why there are no classes, where a list or a folder should have told


@dataclass(frozen=True)
class Manifest:
    """Videos that can be read, each with its index, in the order of the listing."""

    root: Path
    videos: Sequence[Video]
    classes: Sequence[str]
    rows: Sequence[bytes]  # the videos' indices as JSON: one object each would bloat every worker
    flaws: dict[str, list[str]] = field(default_factory=dict)  # flaw -> "path: reason" of all listed videos with it
    dropped: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)  # flaw -> "path: reason" of videos not used for it
    files: Sequence[str] = ()  # where to read each video instead, relative to root or absolute; () where they lie
    sizes: str = ""  # digest of the sizes of all listed files

    def __len__(self) -> int:
        return len(self.videos)

    def path(self, number: int) -> Path:
        return self.root / (self.files[number] if self.files else self.videos[number].path)

    def index(self, number: int) -> VideoIndex:
        return VideoIndex.from_row(json.loads(self.rows[number]))


def single(path: Path) -> Manifest:
    """Of any video file, which has no class. Raises VideoError if it cannot be read."""
    row = json.dumps(probe(path).to_row(), separators=(",", ":")).encode()
    return Manifest(path.parent, [Video(path.name)], (), [row])


def read_manifest(
    listing: Listing,
    *,
    window: int,
    drop: Sequence[str],
    cache: str | None = None,
    processes: int = 1,
    progress: Callable[[Iterator, int], Iterator] = lambda rows, total: rows,
) -> Manifest:
    """Scan what is new or has changed since the last scan, and leave out the videos with a flaw named in `drop`.

    window: frames that one clip spans; fewer are "short". cache: folder for the index; null: beside the videos.
    progress: shown the rows as they come. Unreadable videos are always left out.
    """
    known = scan(listing, window=window, cache=cache, processes=processes, progress=progress)
    kept, rows, flaws, left_out = [], [], {flaw: [] for flaw in FLAWS}, {}
    for video in listing.videos:
        row = known[video.path]
        found = list(_flaws(row, window))
        for flaw, reason in found:
            flaws[flaw].append(f"{video.path}: {reason}")
        decisive = next((each for each in found if each[0] == "unreadable" or each[0] in drop), None)
        if decisive is None:
            kept.append(video)
            rows.append(json.dumps(row["video"], separators=(",", ":")).encode())
        else:
            left_out.setdefault(decisive[0], []).append(f"{video.path}: {decisive[1]}")
    dropped = len(listing.videos) - len(kept)
    sizes = digest((known[video.path]["stamp"] or [None])[0] for video in listing.videos)
    return Manifest(listing.root, kept, listing.classes, rows, flaws, dropped, left_out, sizes=sizes)


def digest(values: Iterable[object]) -> str:
    whole = hashlib.sha256()
    for value in values:
        whole.update(os.fsencode(f"{value}\n"))
    return whole.hexdigest()[:16]


def identity(listing: Listing) -> dict[str, Any]:
    """What a split is, wherever its files are: two listings with equal identities give the same training.

    A manifest adds the sizes of the files.
    """
    return {
        "videos": len(listing.videos),
        "paths": digest(video.path for video in listing.videos),
        "labels": digest(video.label for video in listing.videos),
        "classes": digest(listing.classes),
    }


def differences(now: dict[str, Any], then: dict[str, Any]) -> str:
    """What of a split's identity is not as it was, "" if nothing is; compares what both have."""
    if now["videos"] != then["videos"]:
        return f"{now['videos']} videos (there {then['videos']})"
    words = {"paths": "other names of videos", "labels": "other labels", "classes": "other classes",
             "sizes": "files of other sizes"}  # fmt: skip
    return ", ".join(told for key, told in words.items() if key in now and key in then and now[key] != then[key])


def _flaws(row: dict, window: int) -> Iterator[tuple[str, str]]:
    if "error" in row:
        yield "unreadable", row["error"]
        return
    video = row["video"]
    if "damage" in video:
        yield "damaged", video["damage"]
    if video["frames"] < window:
        yield "short", f"{video['frames']} frames, a clip spans {window}"
    if video.get("variable_rate"):
        yield "variable_rate", "distances between its frames vary in time"
    if video.get("rotation"):
        yield "rotated", f"to be turned by {video['rotation']} degrees"


def scan(
    listing: Listing,
    *,
    window: int = 2,
    cache: str | None = None,
    processes: int = 1,
    progress: Callable[[Iterator, int], Iterator] = lambda rows, total: rows,
) -> dict[str, dict]:
    """path -> {"video": index} or {"error": why not}, for all listed videos.

    window: rows of format 1 are scanned again if their video has fewer frames, as a preview has; a reader sees whether
    the others are of the right stream.
    """
    file = index_file(listing.root, cache)
    known = read_rows(file)
    paths = sorted({video.path for video in listing.videos})
    with ThreadPoolExecutor(16) as threads:  # network file systems answer slowly, but many at once
        stamps = dict(zip(paths, threads.map(lambda path: stamp(listing.root / path), paths), strict=True))
    due = [path for path in paths if path not in known or not _holds(known[path], stamps[path], window)]
    if due:
        jobs = [(listing.root, path, stamps[path]) for path in due]
        chunk = max(1, min(64, len(jobs) // (4 * processes)))
        found = each_in_pool(_scan_one, jobs, processes, fewest=8, chunk=chunk)
        for row in append_rows(file, progress(found, len(jobs))):
            known[row["path"]] = row
    return {path: known[path] for path in paths}


def _holds(row: dict, stamp: list[int] | None, window: int) -> bool:
    """Whether a row is still true of its file."""
    if stamp is None or row.get("stamp") != stamp:
        return False
    return row["format"] == FORMAT or row.get("video", {}).get("frames", 0) >= window


def index_file(root: Path, cache: str | None = None) -> Path:
    """Where the index of the videos under `root` is kept."""
    if cache is None and os.access(root, os.W_OK):
        return root / INDEX_NAME
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache) if cache is not None else Path(home) / "vidssl"
    return folder / f"{root.name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]}.jsonl"


def read_rows(file: Path) -> dict[str, dict]:
    rows: dict[str, dict] = {}
    if not file.exists():
        return rows
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):  # the scan was killed within a line
        with file.open("r+b") as out:
            out.truncate(len(whole))
    for line in whole.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row.get("format") in (1, FORMAT):
            rows[row["path"]] = row
    return rows


def append_rows(file: Path, rows: Iterable[dict]) -> Iterator[dict]:
    """Write rows as they come, a row a write: what is interrupted keeps what it has. Raises DiskError."""
    with disk.writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab", buffering=0) as out:
            for row in rows:
                _write_whole(out, json.dumps(row, separators=(",", ":")).encode() + b"\n")
                yield row


def _write_whole(out: io.RawIOBase, line: bytes) -> None:
    """A full disk takes a part of a line, and says so at the next."""
    while line:
        line = line[out.write(line) :]


def stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _scan_one(job: tuple[Path, str, list[int] | None]) -> dict:
    root, path, stamp = job
    row = {"format": FORMAT, "path": path, "stamp": stamp}
    try:
        return {**row, "video": probe(root / path).to_row()}
    except VideoError as error:
        return {**row, "error": str(error).removeprefix(f"{root / path}: ")}


def allowance(count: int, share: float) -> float:
    """How many of `count` videos may be lost: a share, in small splits up to five, but never all for that reason."""
    return max(share * count, min(5, count / 2))


def listed(listing: Listing) -> int:
    """Number of listed videos, with those that are not on disk."""
    return len(listing.videos) + len(listing.missing)


def omissions(listing: Listing, manifest: Manifest | None = None) -> str:
    """How many listed videos are not used and why, with an example of each reason; "" if all are used.

    Without a manifest only of videos that are not on disk.
    """
    reasons = {"not on disk": list(listing.missing)} if listing.missing else {}
    if manifest is not None:
        reasons |= {flaw.replace("_", " "): names for flaw, names in manifest.left_out.items()}
    if not reasons:
        return ""
    lost = sum(map(len, reasons.values()))
    described = "; ".join(f"{len(names)} {reason}, for example {names[0]}" for reason, names in reasons.items())
    return f"{lost} of {listed(listing)} listed videos are left out: {described}"


def too_many_omissions(split: str, listing: Listing, manifest: Manifest | None, most_missing: float) -> list[str]:
    """Why an evaluation is refused on a split of which more than `most_missing` is not used; [] if it is not."""
    lost = listed(listing) - (len(listing.videos) if manifest is None else len(manifest))
    if lost <= allowance(listed(listing), most_missing):
        return []
    return [
        f"dataset.root={listing.root}: {split} split: {omissions(listing, manifest)}; more than "
        f"data.most_missing={most_missing:g} allows; complete the data set, or set data.most_missing=1 to evaluate on "
        "the others"
    ]


def absent_classes(split: str, manifest: Manifest, train: Manifest | None) -> list[str]:
    """Warnings: classes without a video in this split, and classes of its videos that training has none of."""
    here = {video.label for video in manifest.videos}
    known = range(len(manifest.classes)) if train is None else {video.label for video in train.videos}
    absent = [name for label, name in enumerate(manifest.classes) if label not in here]
    unknown = [name for label, name in enumerate(manifest.classes) if label in here and label not in known]
    warnings = []
    if absent:
        warnings.append(
            f"{len(absent)} of {len(manifest.classes)} classes have no video in the {split} split, "
            f"for example {absent[0]}"
        )
    if unknown:
        warnings.append(
            f"{len(unknown)} classes of the {split} split have no video in the train split, for example {unknown[0]}"
        )
    return warnings


def summary(listing: Listing, manifest: Manifest, examples: int) -> list[str]:
    """What a user wants to read after a scan, a line each; so many files are named for each flaw."""
    lines = [f"{len(manifest)} of {listed(listing)} videos of {listing.root} are used"]
    if manifest.classes:
        counts = Counter(video.label for video in manifest.videos)
        sizes = sorted(counts[label] for label in range(len(manifest.classes)))
        lines[0] += f", {len(manifest.classes)} classes with {sizes[0]} to {sizes[-1]} videos"
    lines += listing.remarks
    for flaw, found in manifest.flaws.items():
        if found:
            lines.append(f"{len(found)} {flaw.replace('_', ' ')}{':' if examples else ''}")
            lines += [f"    {name}" for name in found[:examples]]
    return lines
