"""The files of a data set: walking its folders, finding splits and classes among them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vidssl.data.classes import class_key
from vidssl.data.labels import SplitClasses, printable
from vidssl.registry import ConfigError

SUFFIXES = {
    ".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv", ".gif",
}  # fmt: skip
IMAGES = {".jpg", ".jpeg", ".png"}
SYSTEM_FOLDERS = {  # that zip programs, file systems and storage devices leave beside the data
    "__macosx", "lost+found", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "__pycache__",
    "system volume information",
}  # fmt: skip


def existing_folder(name: str, key: str = "dataset.root") -> Path:
    if not name.strip():
        raise ConfigError(f"{key}: empty; give the path of a folder")
    path = Path(os.path.expanduser(name))
    if not os.path.isdir(path):
        raise ConfigError(f"{key}={printable(name)}: no such folder")
    return path


def has_video_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGES


def walk(top: Path, accept: Callable[[str], bool], depth: int = 6, *, in_order: bool = True) -> Iterator[str]:
    """Files whose name is accepted, as paths below `top`; hidden and system folders left out.

    Links are followed, except those to a folder that contains them: its files would come again under other names. No
    file needs a stat call, where the file system tells files from folders by itself.
    """
    yield from _below(os.fspath(top), "", (os.path.realpath(top),), accept, depth, in_order)


def _below(
    folder: str, prefix: str, way: tuple[str, ...], accept: Callable[[str], bool], depth: int, in_order: bool
) -> Iterator[str]:
    """way: the real paths of the folder and of those from which links led here."""
    for entry in _entries(folder, in_order):
        if not _is_folder(entry):
            if accept(entry.name):
                yield prefix + entry.name
        elif depth > 0 and (inside := _way(entry, way)):
            yield from _below(entry.path, f"{prefix}{entry.name}/", inside, accept, depth - 1, in_order)


def _entries(folder: str, in_order: bool = True) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name) if in_order else entries:
                if not entry.name.startswith("."):
                    yield entry
    except OSError as error:
        raise ConfigError(
            f"dataset: {printable(folder)} cannot be read ({error.strerror}); change its permissions, or move it away"
        ) from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _way(entry: os.DirEntry, way: tuple[str, ...]) -> tuple[str, ...] | None:
    """The way on into a folder; nothing for folders to leave out."""
    if entry.name.casefold() in SYSTEM_FOLDERS:
        return None
    if not entry.is_symlink():
        return (*way[:-1], os.path.join(way[-1], entry.name))
    target = os.path.realpath(entry.path)
    above = target.rstrip("/") + "/"
    return None if any(f"{folder}/".startswith(above) for folder in way) else (*way, target)


# ---------------------------------------------------------------------------------------------------------------------
# Splits and classes

SPLIT_FOLDERS = {
    "train": ("train", "train_256", "videos_train", "training", "train_videos"),
    "val": ("val", "val_256", "videos_val", "validation", "valid", "val_videos", "test"),
    "test": ("test", "testing", "videos_test", "test_videos"),
}


def _folders(top: str, way: tuple[str, ...]) -> Iterator[tuple[os.DirEntry, tuple[str, ...]]]:
    for entry in _entries(top):
        if _is_folder(entry) and (inside := _way(entry, way)):
            yield entry, inside


def folders_in(top: Path) -> list[str]:
    """Names of the folders that can hold videos of a data set."""
    return [entry.name for entry, _ in _folders(os.fspath(top), (os.path.realpath(top),))]


def split_folder(root: Path, *parts: str) -> Path | None:
    """The folder of a split, in any case; of several parts, the first that there is."""
    below = folders_in(root)
    tops = [root, *(root / name for name in ("videos", "compress", root.name) if name in below)]
    if len(below) == 1 and root / below[0] not in tops and not looks_like_split(below[0]):
        tops.append(root / below[0])
    for part in parts:
        for top in tops:
            names = folders_in(top)
            for wanted in SPLIT_FOLDERS[part]:
                alike = [name for name in names if class_key(name) == class_key(wanted)]
                if len(alike) > 1:
                    raise ConfigError(
                        f"dataset.root={root}: {alike[0]} and {alike[1]} are both named like the {part} split; rename "
                        "one of them"
                    )
                if alike:
                    return top / alike[0]
    return None


def looks_like_split(name: str) -> bool:
    return any(class_key(name) == class_key(known) for names in SPLIT_FOLDERS.values() for known in names)


def class_folders(folder: Path, root: Path) -> SplitClasses:
    """The classes of a split whose videos are in class folders."""
    top, full, empty = os.fspath(folder), [], []
    for entry, way in _folders(top, (os.path.realpath(top),)):
        has_video = next(_below(entry.path, "", way, has_video_suffix, 5, False), None) is not None
        (full if has_video else empty).append(entry.name)
    strays = [e.name for e in _entries(top) if has_video_suffix(e.name) and not _is_folder(e)]
    source = folder.relative_to(root.parent).as_posix() if folder == root else folder.relative_to(root).as_posix()
    return SplitClasses(source, full, unlabelled=outside(strays, folder, root), empty=empty)


def beside_splits(places: Iterable[Path | None], root: Path) -> list[str]:
    """The remark on folders of videos beside those of the splits.

    Raises ConfigError where a single folder that is named like a split looks like one of several classes.
    """
    splits = [place for place in places if place is not None]
    top, others = splits[0].parent, []
    for name in folders_in(top):
        if not looks_like_split(name) and next(walk(top / name, has_video_suffix, 1, in_order=False), None):
            others.append(name)
    if others and len(splits) == 1 and not class_folders(splits[0], root).names:
        raise ConfigError(
            f"dataset.root={root}: {splits[0].name} is named like a split and {printable(others[0])} beside it like a "
            "class; put class folders into a folder train, or move one of the two away"
        )
    some = f"{len(others)} folders of videos beside {splits[0].name} are not used, for example"
    return [f"{some} {printable(others[0])}"] if others else []


def outside(strays: Iterable[str], folder: Path, root: Path) -> str:
    """What to say of videos that are in no class folder; nothing where there are none."""
    strays = list(strays)
    if not strays:
        return ""
    first = printable((folder / strays[0]).relative_to(root).as_posix())
    others = f" and {len(strays) - 1} more are" if len(strays) > 1 else " is"
    return f"{first}{others} in no class folder"


# ---------------------------------------------------------------------------------------------------------------------
# Videos as folders of images


def image_folder(root: Path, name: str) -> str:
    """What to say of a path that is a folder; nothing where it is none."""
    if not os.path.isdir(root / name):
        return ""
    first = next((entry.name for entry in _entries(os.fspath(root / name)) if is_image(entry.name)), None)
    if first is None:
        return f"{printable(name)} is a folder, not a video"
    stem, suffix = os.path.splitext(first)
    number = re.search(r"[0-9]+$", stem)
    images = "*" + suffix
    if number:
        images = f"{stem[: number.start()].replace('%', '%%')}%0{len(number[0])}d{suffix}"
    options = f"-start_number {int(number[0])}" if number else "-pattern_type glob"
    top, *rest = name.split("/")
    if os.path.isabs(name):
        top, rest = os.path.dirname(name), [name]
    all_folders = "/".join([shlex.quote(top), *("*" for _ in rest)]) if rest else "*"
    return (
        f"{printable(name)} is a folder of images; make a video of each, in {printable(os.fspath(root))}: "
        f'for d in {all_folders}/; do ffmpeg -nostdin -framerate 25 {options} -i "$d"{shlex.quote(images)} -c copy '
        f'"${{d%/}}.avi"; done; then list {printable(name)}.avi'
    )


def images_instead(root: Path, names: Iterable[str] | None = None) -> str:
    """What to say where no video is found but folders of images are, of these names if given; or nothing."""
    wanted = None if names is None else set(names)
    for path in walk(root, is_image, in_order=False):
        folder = os.path.dirname(path)
        if folder and (wanted is None or os.path.basename(folder) in wanted):
            return image_folder(root, folder)
    return ""
