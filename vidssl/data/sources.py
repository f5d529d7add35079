"""The data sets: folders and annotation files as people have them -> which videos, with which labels.

A source is a function (split, *, options) -> Listing; it opens no video. Splits are train and test; the test split of
Kinetics is its validation set. Both splits of a data set have the same classes in the same order: a source reads the
names in both, whichever is asked for. docs/datasets.md shows the accepted layouts.
"""

from __future__ import annotations

import os
import posixpath
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from vidssl.data import folders, lists
from vidssl.data.classes import class_key
from vidssl.data.folders import SUFFIXES, existing_folder, has_video_suffix, walk
from vidssl.data.labels import Numbering, SplitClasses, printable, without_video
from vidssl.data.lists import Row
from vidssl.data.manifest import Listing, Video
from vidssl.registry import ConfigError, FilePath, Registry, UnitInterval, Within

SOURCES = Registry("dataset", "vidssl.data")

Fold = Annotated[int, Within("[1, 3]")]


@SOURCES.register("ucf101")
def ucf101(split: str, *, root: FilePath, fold: Fold, annotations: FilePath | None) -> Listing:
    """UCF101 (Soomro et al., 2012): 13,320 videos, 101 classes, three folds.

    Looks for trainlist0N.txt and testlist0N.txt anywhere under the root (or `annotations`), and for the videos they
    name by file name, with or without class folders, in any video format. Case makes no difference in its names: one
    class, HandstandPushups, is written in two ways.
    """
    top = existing_folder(root)
    files = {part: _find(annotations, f"{part}list0{fold}.txt", top) for part in ("train", "test")}
    rows = {part: lists.ucf101_rows(file) for part, file in files.items()}
    spellings = {class_key(row.label): row.label for part in ("test", "train") for row in reversed(rows[part])}
    rows = {part: [row._replace(label=spellings[class_key(row.label)]) for row in rows[part]] for part in rows}
    return _located(split, top, rows, _number(split, rows), any_case=True)


@SOURCES.register("hmdb51")
def hmdb51(split: str, *, root: FilePath, fold: Fold, annotations: FilePath | None) -> Listing:
    """HMDB51 (Kuehne et al., 2011): 6,766 videos, 51 classes, three folds of 70 and 30 videos a class.

    Looks for CLASS_test_splitN.txt anywhere under the root (or `annotations`); 1 in a line is train, 2 test, 0 neither.
    """
    top = existing_folder(root)
    where = existing_folder(annotations, "dataset.annotations") if annotations is not None else top
    ending = f"_test_split{fold}.txt"
    files: dict[str, Path] = {}
    for path in walk(where, lambda name: name.endswith(ending) and name != ending):
        known = files.setdefault(posixpath.basename(path).removesuffix(ending), where / path)
        if known != where / path and lists.read_text(known) != lists.read_text(where / path):
            raise ConfigError(f"{where / path}: differs from {known}; keep one of them, or set dataset.annotations")
    if not files:
        raise ConfigError(f"dataset.root={root}: no CLASS{ending} found there; set dataset.annotations to their folder")
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for name, file in sorted(files.items()):
        marked = lists.hmdb51_rows(file, name)
        rows["train"] += marked["1"]
        rows["test"] += marked["2"]
    classes = SplitClasses(f"the {split} lines of *{ending}", sorted(files))
    empty = sorted(set(files) - {row.label for row in rows[split]})
    return _located(
        split, top, rows, Numbering(split, classes, classes), without_video(empty, classes.names, classes.source)
    )


@SOURCES.register("diving48")
def diving48(split: str, *, root: FilePath, annotations: FilePath | None) -> Listing:
    """Diving48 with its V2 labels (Li et al., ECCV 2018): about 18,000 videos, 48 classes."""
    top = existing_folder(root)
    rows = {split: lists.diving48_rows(_find(annotations, f"Diving48_V2_{split}.json", top))}
    classes = SplitClasses("Diving48 V2", [str(label) for label in range(48)], numbered=True)
    return _located(split, top, rows, Numbering(split, classes, classes))


@SOURCES.register("kinetics400")
def kinetics400(split: str, *, root: FilePath, annotations: FilePath | None) -> Listing:
    """Kinetics-400 (Kay et al., 2017): class folders, or lists in one of two forms, each split in its own way.

    Lists are train and val (.csv or .txt): the official columns label, youtube_id, time_start, time_end, or lines
    "path label". Without lists the folders decide: train and val, also named train_256, videos_train and so on.
    """
    top = existing_folder(root)
    where = existing_folder(annotations, "dataset.annotations") if annotations is not None else top
    parts = {"train": "train", "val": "test", "validate": "test", "validation": "test"}
    files: dict[str, list[Path]] = {}
    for path in walk(where, lambda name: _list_stem(name) in parts, depth=2):
        files.setdefault(parts[_list_stem(posixpath.basename(path))], []).append(where / path)
    rows = {part: lists.kinetics_rows(found[-1]) for part, found in files.items()}
    places = {"train": folders.split_folder(top, "train"), "test": folders.split_folder(top, "val")}
    remarks = [
        f"{found[-1]} is read, {found[0]} is not: there are {len(found)} lists of one split"
        for found in files.values() if len(found) > 1
    ]  # fmt: skip
    if split in rows:
        return _located(split, top, rows, _number(split, rows, places, top), remarks)
    return _in_class_folders(split, top, rows, places, "kinetics400", remarks)


@SOURCES.register("folder")
def folder(split: str, *, root: FilePath, test_share: UnitInterval) -> Listing:
    """Any videos. Subfolders train and test (or val), in any case, are the splits; folders within are classes.

    Without them all is train but for a `test_share` of the videos, chosen by their names. Videos that are in no folder
    have no class: enough for pretraining.
    """
    top = existing_folder(root)
    places = {"train": folders.split_folder(top, "train"), "test": folders.split_folder(top, "test", "val")}
    if any(places.values()):
        return _in_class_folders(split, top, {}, places, "folder", folders.beside_splits(places.values(), top))
    found = sorted(walk(top, has_video_suffix))
    if not found:
        raise ConfigError(f"dataset.root={root}: no videos there; {_instead(top)}")
    numbering = Numbering(split, folders.class_folders(top, top), None)
    held_out = {name for name in found if zlib.crc32(os.fsencode(name)) % 10_000 < test_share * 10_000}
    chosen = [name for name in found if (name in held_out) == (split == "test")]
    if not chosen:
        raise ConfigError(
            f"dataset.root={root}: no videos for the {split} split; make subfolders train and test, "
            f"or set dataset.test_share (now {test_share})"
        )
    return _listing(top, [(name, name.split("/")[0]) for name in chosen], numbering)


@SOURCES.register("list")
def listed(
    split: str,
    *,
    root: FilePath,
    train_list: FilePath | None,
    test_list: FilePath | None,
    missing: Literal["error", "skip"],
) -> Listing:
    """Text files with a line a video: `path num_frames label`, `path label` or `path`, relative to the root.

    The frame count is not used. Labels count from 0; without labels the list serves pretraining.
    """
    top = existing_folder(root)
    files = {"train": train_list, "test": test_list}
    if files[split] is None:
        raise ConfigError(f"dataset.{split}_list: missing; the {split} split is needed")
    rows = {part: lists.list_rows(_list_file(file, part, top)) for part, file in files.items() if file is not None}
    numbering = _number(split, rows)
    once, remarks = _once(split, rows, numbering)
    here = [(row.name, row.label) for row in once if os.path.isfile(os.path.join(top, row.name))]
    if len(here) == len(once):
        return _listing(top, here, numbering, remarks)
    present = {name for name, _ in here}
    lost = [row for row in once if row.name not in present]
    lists.refuse_odd_paths(lost, top)
    example = printable(lost[0].name)
    if missing == "error" or not here:
        problem = folders.image_folder(top, lost[0].name) or (
            f"{len(lost)} of {len(once)} listed videos are not under {top}, for example {example}; correct "
            "dataset.root, or dataset.missing=skip"
        )
        raise ConfigError(f"dataset.{split}_list={files[split]}: {problem}")
    remarks.insert(0, f"{len(lost)} of {len(once)} listed videos are not there, for example {example}")
    return _listing(top, here, numbering, remarks, [row.name for row in lost])


# ---------------------------------------------------------------------------------------------------------------------
# Where lists are


def _find(annotations: str | None, name: str, root: Path) -> Path:
    where = existing_folder(annotations, "dataset.annotations") if annotations is not None else root
    for path in walk(where, lambda found: found == name, depth=4):
        return where / path
    raise ConfigError(f"dataset.root={root}: {name} not found under {where}; set dataset.annotations to its folder")


def _list_stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem.lower().removeprefix("kinetics400_") if suffix.lower() in (".csv", ".txt") else ""


def _list_file(name: str, part: str, root: Path) -> Path:
    if not name.strip():
        raise ConfigError(f"dataset.{part}_list: empty; give a file, or null")
    file = Path(os.path.expanduser(name))
    file = file if os.path.isfile(file) else root / file
    if not os.path.isfile(file):
        raise ConfigError(f"dataset.{part}_list={printable(name)}: no such file, neither here nor under {root}")
    return file


# ---------------------------------------------------------------------------------------------------------------------
# From lists and folders to videos with labels


Rows = dict[str, list[Row]]  # of each split that has a list
Places = dict[str, Path | None]  # of each split: its folder of class folders


def _number(split: str, rows: Rows, places: Places | None = None, root: Path | None = None) -> Numbering:
    """The labels of both splits, from their lists or else from their folders."""
    sides = {part: lists.classes_of(found) for part, found in rows.items()}
    for part, place in (places or {}).items():
        if place is not None and part not in rows:
            sides[part] = folders.class_folders(place, root)
    return Numbering(split, sides.get("train"), sides.get("test"))


def _listing(
    root: Path,
    labelled: Sequence[tuple[str, str]],
    numbering: Numbering,
    remarks: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Listing:
    """labelled: path and class name of each video, as `numbering` knows it."""
    labels = numbering.labels({name for _, name in labelled})
    videos = [Video(path, labels.get(name, -1)) for path, name in labelled]
    remarks = [*remarks, *numbering.remarks]
    return Listing(root, videos, numbering.names, remarks, missing=missing, unlabelled=numbering.unlabelled)


def _once(split: str, rows: Rows, numbering: Numbering) -> tuple[list[Row], list[str]]:
    """The rows of a split without repetitions. Refuses a video that has two labels, in whichever split's list."""
    lists.refuse_contradictions(
        rows.values(), numbering.labels({row.label for found in rows.values() for row in found})
    )
    once: dict[str, Row] = {}
    for row in rows[split]:
        once.setdefault(row.name, row)
    remarks = []
    if len(once) < len(rows[split]):
        remarks.append(f"{len(rows[split]) - len(once)} lines of {rows[split][0].file} repeat others and do not count")
    shared = sum(row.name in once for part, found in rows.items() if part != split for row in found)
    if shared:
        remarks.append(f"{shared} videos are in the lists of both splits")
    return list(once.values()), remarks


def _located(
    split: str, root: Path, rows: Rows, numbering: Numbering, remarks: Sequence[str] = (), *, any_case: bool = False
) -> Listing:
    """Videos looked up by name under a root: the path as listed, else the same class folder and name in any format,
    else the name alone, unless that file is another listed video."""
    if not rows[split]:
        raise ConfigError(f"dataset.root={root}: none of the lists there names a video of the {split} split")
    fold = str.casefold if any_case else str
    once, repeated = _once(split, rows, numbering)
    paths = list(walk(root, has_video_suffix))
    by_class: dict[tuple[str, str], str] = {}
    by_name: dict[str, str] = {}
    for path in paths:
        by_class.setdefault(_folder_and_stem(path, fold), path)
        by_name.setdefault(_folder_and_stem(path, fold)[1], path)
    there = set(paths)
    names = [
        row.name
        if row.name in there or os.path.isfile(os.path.join(root, row.name))
        else by_class.get(_folder_and_stem(row.name, fold))
        for row in once
    ]
    owners: dict[str, Row] = {}
    for row, path in zip(once, names, strict=True):
        if path is not None:
            _own(path, row, owners, numbering)
    by_name_alone: dict[str, Row] = {}
    for number, row in enumerate(once):
        path = by_name.get(_folder_and_stem(row.name, fold)[1]) if names[number] is None else None
        if path is not None and path not in owners and not _of_other_class(path, row, numbering):
            _own(path, row, by_name_alone, numbering)
            names[number] = path
    found = {path: row.label for row, path in zip(once, names, strict=True) if path is not None}
    lost = [row.name for row, path in zip(once, names, strict=True) if path is None]
    if not found:
        hint = folders.images_instead(root, {_folder_and_stem(name, str)[1] for name in lost})
        raise ConfigError(
            f"dataset.root={root}: none of the {len(once)} listed videos is there, for example {printable(lost[0])}"
            + (f"; {hint}" if hint else "")
        )
    told = [f"{len(lost)} of {len(once)} listed videos are not there, for example {printable(lost[0])}"] if lost else []
    return _listing(root, list(found.items()), numbering, [*told, *repeated, *remarks], lost)


def _own(path: str, row: Row, owners: dict[str, Row], numbering: Numbering) -> None:
    """Note which row a file belongs to. Refuses a second row with another label."""
    other = owners.setdefault(path, row)
    if other.label != row.label and numbering.label(other.label) != numbering.label(row.label):
        raise lists.two_labels(row, other)


def _of_other_class(path: str, row: Row, numbering: Numbering) -> bool:
    """Whether the file is in the class folder of another class than the row's."""
    label = numbering.label(posixpath.basename(posixpath.dirname(path)))
    return label is not None and label != numbering.label(row.label)


def _folder_and_stem(path: str, fold: Callable[[str], str]) -> tuple[str, str]:
    parent, _, name = fold(path).rpartition("/")
    stem, suffix = posixpath.splitext(name)
    return parent.rpartition("/")[2], stem if suffix.lower() in SUFFIXES else name


def _in_class_folders(
    split: str, root: Path, rows: Rows, places: Places, dataset: str, remarks: Sequence[str]
) -> Listing:
    """SPLIT/CLASS/video."""
    here = places[split]
    if here is None:
        part = {"train": "train", "test": "val" if dataset == "kinetics400" else "test"}[split]
        known = dict.fromkeys(folders.SPLIT_FOLDERS[part] + (folders.SPLIT_FOLDERS["val"] if part == "test" else ()))
        raise ConfigError(
            f"dataset.root={root}: no folder for the {part} split of {dataset} (looked for {', '.join(known)})"
        )
    found = list(walk(here, has_video_suffix))
    if not found:
        raise ConfigError(f"dataset.root={root}: no videos in {here}; {_instead(here)}")
    numbering = _number(split, rows, places, root)
    prefix = here.relative_to(root).as_posix()
    labelled = [(f"{prefix}/{path}", path.split("/")[0]) for path in found]
    return _listing(root, labelled, numbering, remarks)


def _instead(folder: Path) -> str:
    return folders.images_instead(folder) or f"known endings: {', '.join(sorted(SUFFIXES))}"
