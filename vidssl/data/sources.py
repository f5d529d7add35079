"""The data sets: folders and annotation files as people have them -> which videos, with which labels.

A source is a function (split, *, options) -> Listing; it opens no video. Splits are train and test; the test split of
Kinetics is its validation set. docs/datasets.md shows the accepted layouts.
"""

from __future__ import annotations

import csv
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from vidssl.data.manifest import Listing, Video
from vidssl.registry import ConfigError, Registry, Share, Within

SOURCES = Registry("dataset", "vidssl.data")

SUFFIXES = {
    ".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv", ".gif",
}  # fmt: skip
Fold = Annotated[int, Within("[1, 3]")]


@SOURCES.register("ucf101")
def ucf101(split: str, *, root: str, fold: Fold, annotations: str | None) -> Listing:
    """UCF101 (Soomro et al., 2012): 13,320 videos, 101 classes, three folds.

    Looks for trainlist0N.txt and testlist0N.txt anywhere under the root (or `annotations`), and for the videos they
    name by file name, with or without class folders, in any video format.
    """
    folder = _folder(root)
    lists = {part: _find(annotations or folder, f"{part}list0{fold}.txt", folder) for part in ("train", "test")}
    names = {part: [line.split()[0] for line in _lines(file)] for part, file in lists.items()}
    classes = sorted({_class_of(name) for part in names.values() for name in part})
    wanted = [(name, classes.index(_class_of(name))) for name in names[split]]
    return _located(folder, wanted, classes)


@SOURCES.register("hmdb51")
def hmdb51(split: str, *, root: str, fold: Fold, annotations: str | None) -> Listing:
    """HMDB51 (Kuehne et al., 2011): 6,766 videos, 51 classes, three folds of 70 and 30 videos a class.

    Looks for CLASS_test_splitN.txt anywhere under the root (or `annotations`); 1 in a line is train, 2 test, 0 neither.
    """
    folder = _folder(root)
    ending = f"_test_split{fold}.txt"
    files = sorted(_walk(_folder(annotations) if annotations else folder, lambda path: path.name.endswith(ending)))
    if not files:
        raise ConfigError(f"dataset.root={root}: no CLASS{ending} found there; set dataset.annotations to their folder")
    classes = [file.name.removesuffix(ending) for file in files]
    flag = {"train": "1", "test": "2"}[split]
    wanted = []
    for label, file in enumerate(files):
        for line in _lines(file):
            name, mark = line.rsplit(maxsplit=1)
            if mark == flag:
                wanted.append((f"{classes[label]}/{name}", label))
    return _located(folder, wanted, classes)


@SOURCES.register("diving48")
def diving48(split: str, *, root: str, annotations: str | None) -> Listing:
    """Diving48 with its V2 labels (Li et al., ECCV 2018): about 18,000 videos, 48 classes."""
    folder = _folder(root)
    file = _find(annotations or folder, f"Diving48_V2_{split}.json", folder)
    try:
        entries = json.loads(_text(file))
        wanted = [(str(entry["vid_name"]), int(entry["label"])) for entry in entries]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: not a list of objects with vid_name and label ({error})") from None
    return _located(folder, wanted, [str(label) for label in range(48)])


@SOURCES.register("kinetics400")
def kinetics400(split: str, *, root: str, annotations: str | None) -> Listing:
    """Kinetics-400 (Kay et al., 2017): class folders, or lists in one of two forms.

    Lists are train and val (.csv or .txt): the official columns label, youtube_id, time_start, time_end, or lines
    "path label". Without lists the folders decide: train and val, also named train_256, videos_train and so on.
    """
    folder = _folder(root)
    part = {"train": "train", "test": "val"}[split]
    lists = {"train": "train", "val": "val", "validate": "val", "validation": "val"}
    found = _walk(_folder(annotations) if annotations else folder, lambda p: p.suffix in (".csv", ".txt"), depth=2)
    files = {lists[p.stem.removeprefix("kinetics400_").lower()]: p for p in sorted(found) if _is_list(p, lists)}
    if part not in files:
        return _class_folders(folder, part, dataset="kinetics400")
    rows = {name: _kinetics_rows(file) for name, file in files.items()}
    words = {label for part_rows in rows.values() for _, label in part_rows if not label.isdigit()}
    if words:
        classes = sorted(words)
        return _located(folder, [(path, classes.index(label)) for path, label in rows[part]], classes)
    highest = max(int(label) for part_rows in rows.values() for _, label in part_rows)
    return _located(folder, [(path, int(label)) for path, label in rows[part]], [str(i) for i in range(highest + 1)])


@SOURCES.register("folder")
def folder(split: str, *, root: str, test_share: Share) -> Listing:
    """Any videos. Subfolders train and test (or val) are the splits; folders within are classes.

    Without them all is train but for a `test_share` of the videos, chosen by their names. Videos that lie in no folder
    have no class: enough for pretraining.
    """
    top = _folder(root)
    if _split_folder(top, "train") is not None:
        part = "train" if split == "train" else ("test" if _split_folder(top, "test") else "val")
        return _class_folders(top, part, dataset="folder")
    found = sorted(path.relative_to(top).as_posix() for path in _walk(top, _is_video))
    if not found:
        raise ConfigError(f"dataset.root={root}: no videos there; known endings: {', '.join(sorted(SUFFIXES))}")
    classes = sorted({name.split("/")[0] for name in found if "/" in name})
    if any("/" not in name for name in found):
        classes = []
    held_out = {name for name in found if zlib.crc32(os.fsencode(name)) % 10_000 < test_share * 10_000}
    chosen = [name for name in found if (name in held_out) == (split == "test")]
    if not chosen:
        raise ConfigError(
            f"dataset.root={root}: no videos for the {split} split; make subfolders train and test, "
            f"or set dataset.test_share (now {test_share})"
        )
    labels = {name: i for i, name in enumerate(classes)}
    return Listing(top, [Video(name, labels[name.split("/")[0]] if classes else -1) for name in chosen], classes)


@SOURCES.register("list")
def listed(
    split: str,
    *,
    root: str,
    train_list: str | None,
    test_list: str | None,
    missing: Literal["error", "skip"],
) -> Listing:
    """Text files with a line a video: `path num_frames label`, `path label` or `path`, relative to the root.

    The frame count is not used. Labels count from 0; without labels the list serves pretraining.
    """
    top = _folder(root)
    files = {"train": train_list, "test": test_list}
    if files[split] is None:
        raise ConfigError(f"dataset.{split}_list: missing; the {split} split is needed")
    rows = {part: _list_rows(Path(file), top) for part, file in files.items() if file is not None}
    highest = max((label for part in rows.values() for _, label in part), default=-1)
    here = [(name, label) for name, label in rows[split] if (top / name).is_file()]
    lost = [name for name, _ in rows[split] if not (top / name).is_file()]
    if not rows[split]:
        raise ConfigError(f"dataset.{split}_list={files[split]}: lists no videos; dataset.root={root}")
    if (lost and missing == "error") or not here:
        example = next(iter(lost), "none listed")
        raise ConfigError(
            f"dataset.{split}_list={files[split]}: {len(lost)} of {len(rows[split])} listed videos are not under "
            f"{top}, for example {example}; correct dataset.root, or dataset.missing=skip"
        )
    remarks = [f"{len(lost)} listed videos are not there, for example {lost[0]}"] if lost else []
    classes = [str(i) for i in range(highest + 1)]
    return Listing(top, [Video(*row) for row in here], classes, remarks, missing=lost)


# ---------------------------------------------------------------------------------------------------------------------
# Reading lists


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # with or without the mark that some editors put in front
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not a UTF-8 text ({error.reason} at byte {error.start})") from None


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in _text(file).splitlines() if line.strip()]  # names may begin with "#"


def _class_of(name: str) -> str:
    if "/" not in name:
        raise ConfigError(f"line {name!r} of a UCF101 list has no class folder in front")
    return name.split("/")[-2]


def _is_list(path: Path, names: Iterable[str]) -> bool:
    return path.stem.removeprefix("kinetics400_").lower() in names


def _kinetics_rows(file: Path) -> list[tuple[str, str]]:
    """(name or path, class name or number) of each line."""
    text = _text(file)
    first = text.split("\n", 1)[0]
    if "youtube_id" in first:
        rows = csv.DictReader(text.splitlines())
        return [
            (f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}", row["label"])
            for row in rows
        ]
    separator = "," if "," in first else None
    pairs = [line.rsplit(separator, 1) for line in _lines(file)]
    if any(len(pair) != 2 or not pair[1].strip().isdigit() for pair in pairs):
        raise ConfigError(f"{file}: lines must be 'path label', or columns label, youtube_id, time_start, time_end")
    return [(path.strip(), label.strip()) for path, label in pairs]


def _list_rows(file: Path, root: Path) -> list[tuple[str, int]]:
    file = file if file.is_file() else root / file
    if not file.is_file():
        raise ConfigError(f"dataset: no list {file}")
    rows = []
    for line in _lines(file):
        words = line.split()
        numbers = [word for word in words[-2:] if word.lstrip("-").isdigit()] if len(words) > 1 else []
        name = line if not numbers else line.rsplit(maxsplit=len(numbers))[0]
        rows.append((name, int(numbers[-1]) if numbers else -1))
    if len({label < 0 for _, label in rows}) > 1:
        raise ConfigError(f"{file}: some lines have a label, others none")
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Finding files


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ConfigError(f"dataset.root={name}: no such folder")
    return path


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _walk(top: Path, wanted, depth: int = 6) -> Iterable[Path]:
    """Files under a folder, following links, hidden folders left out."""
    for path in sorted(top.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if depth > 0:
                yield from _walk(path, wanted, depth - 1)
        elif wanted(path):
            yield path


def _find(where: str | Path, name: str, root: Path) -> Path:
    for path in _walk(_folder(str(where)), lambda path: path.name == name, depth=4):
        return path
    raise ConfigError(f"dataset.root={root}: {name} not found under {where}; set dataset.annotations to its folder")


def _located(root: Path, wanted: Sequence[tuple[str, int]], classes: Sequence[str]) -> Listing:
    """Videos looked up by name under a root: the path as listed, else the same class folder and name in any format,
    else the name alone."""
    by_class: dict[tuple[str, str], str] = {}
    by_name: dict[str, str] = {}
    for path in _walk(root, _is_video):
        relative = path.relative_to(root).as_posix()
        by_class.setdefault((path.parent.name, path.stem), relative)
        by_name.setdefault(path.stem, relative)
    videos, lost = [], []
    for name, label in wanted:
        if (root / name).is_file():
            videos.append(Video(name, label))
            continue
        listed_as = Path(name)
        stem = listed_as.stem if listed_as.suffix.lower() in SUFFIXES else listed_as.name
        found = by_class.get((listed_as.parent.name, stem)) or by_name.get(stem)
        if found is None:
            lost.append(name)
        else:
            videos.append(Video(found, label))
    if not videos:
        example = lost[0] if lost else "none, the list is empty"
        raise ConfigError(
            f"dataset.root={root}: none of the {len(wanted)} listed videos is there, for example {example}"
        )
    remarks = [f"{len(lost)} of {len(wanted)} listed videos are not there, for example {lost[0]}"] if lost else []
    return Listing(root, videos, classes, remarks, missing=lost)


SPLIT_FOLDERS = {
    "train": ("train", "train_256", "videos_train", "training", "train_videos"),
    "val": ("val", "val_256", "videos_val", "validation", "valid", "val_videos", "test"),
    "test": ("test", "testing", "videos_test", "test_videos"),
}


def _split_folder(root: Path, part: str) -> Path | None:
    for top in (root, root / "videos", root / "compress", root / root.name):
        for name in SPLIT_FOLDERS[part]:
            if (top / name).is_dir():
                return top / name
    return None


def _class_folders(root: Path, part: str, dataset: str) -> Listing:
    """SPLIT/CLASS/video; classes are the sorted folder names of the training split."""
    train, here = _split_folder(root, "train"), _split_folder(root, part)
    if here is None:
        raise ConfigError(
            f"dataset.root={root}: no folder for the {part} split of {dataset} (looked for "
            f"{', '.join(SPLIT_FOLDERS[part])})"
        )
    classes = sorted(path.name for path in (train or here).iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [path.relative_to(here) for path in _walk(here, _is_video)]
    if not found:
        raise ConfigError(f"dataset.root={root}: no videos in {here}")
    strangers = sorted({path.parts[0] for path in found if len(path.parts) > 1} - set(classes))
    if strangers:
        raise ConfigError(f"dataset.root={root}: class {strangers[0]} of {here.name} has no folder in {train}")
    labels = {name: label for label, name in enumerate(classes)}
    if not classes or any(len(path.parts) == 1 for path in found):
        classes = []
    videos = [
        Video((here / path).relative_to(root).as_posix(), labels[path.parts[0]] if classes else -1) for path in found
    ]
    return Listing(root, videos, classes)
