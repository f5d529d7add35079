"""Pictures left by runs, embedded in the page, with what they show."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vidssl.report.canvas import PAGE
from vidssl.report.runs import Setting, Trial

WIDE, NARROW = 540, 340  # widths of thumbnails in CSS pixels
TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}


class Kind(NamedTuple):
    """Pictures whose file names begin alike."""

    start: str
    title: str
    meaning: str = ""
    density: int = 1  # pixels of the file for each CSS pixel


INPUTS = "What the networks see"
KINDS = (
    Kind(
        "visualize-inputs", INPUTS,
        "A video in each picture, frames from left to right: what the method separates or mixes, then what its "
        "networks get, colors included.",
    ),
    Kind(
        "pretrain-", "During training",
        "Inputs of the networks in the epoch last looked at: a row for each video, frames from left to right.",
    ),
    Kind(
        "visualize-activations", "Where they look",
        "Strength of the backbone's response at each position, whatever the class: from blue, the weakest of the clip, "
        "to red, the strongest.",
    ),
    Kind(
        "visualize-tsne", "What is close together: t-SNE",
        "Each point is a video, colored by its class; the name is in the middle of its class. Neighbors in the picture "
        "are neighbors among the features; distances between groups mean little.", 2,
    ),
    Kind(
        "visualize-confusion", "What is taken for what",
        "Rows are the true classes, columns the predicted ones; a perfect classifier has a dark diagonal alone.", 2,
    ),
    Kind(
        "visualize-neighbors", "Neighbors",
        "Videos and the training videos most similar to them: green frames are of the same class, orange ones of "
        "another.",
    ),
    Kind(
        "visualize-kernels", "Temporal kernels",
        "Above, the weights of each layer by their position in time. Below, how much of each kernel varies over time: "
        "a network that ignores motion has kernels that are constant in time.", 2,
    ),
    Kind("visualize-curves", "Training", "Loss and accuracy over the steps.", 2),
    Kind("", "More"),
)  # fmt: skip


class Picture(NamedTuple):
    source: str  # data URI
    text: str
    width: int | None  # CSS pixels; None: a video of its own size

    @property
    def is_video(self) -> bool:
        return self.source.startswith("data:video")


class Group(NamedTuple):
    """Pictures of one kind of a run; thumbnails are beside one another."""

    title: str
    meaning: str
    pictures: list[Picture]
    are_thumbnails: bool


def of_run(run: Trial) -> list[Group]:
    """All pictures of a run as wide as they are or as the page is; those of pretraining are small."""
    groups = []
    for index, kind in enumerate(KINDS):
        files = [file for file in _files(run) if _kind(file) == index]
        if files and kind.start == "pretrain-":
            groups.append(Group(kind.title, kind.meaning, [_thumbnail(file) for file in files], True))
        elif files:
            pictures = [
                _picture(file, None if file.suffix == ".mp4" else PAGE, f"{kind.title}: {_words(file)}", kind.density)
                for file in files
            ]
            groups.append(Group(kind.title, kind.meaning, pictures, False))
    return groups


def of_settings(settings: list[Setting]) -> list[Picture]:
    """Thumbnails of the first run with pictures of each setting, without curves; those of one name side by side."""
    found = []
    for setting in settings:
        files = next(filter(None, map(_files, setting.runs)), [])
        found += [(file, setting.label) for file in files if "curves" not in file.stem]
    found.sort(key=lambda pair: (_kind(pair[0]), pair[0].name))
    return [_thumbnail(*pair) for pair in found]


def has_curves(run: Trial) -> bool:
    return any(file.stem.startswith("visualize-curves") for file in _files(run))


def _files(run: Trial) -> list[Path]:
    files = sorted((run.folder / "pictures").glob("*")) if run.folder else []
    return [file for file in files if file.suffix in TYPES]


def _kind(file: Path) -> int:
    return next(index for index, kind in enumerate(KINDS) if file.stem.startswith(kind.start))


def _thumbnail(file: Path, label: str = "") -> Picture:
    text = f"{label}: {_words(file)}" if label else _words(file)
    return _picture(file, NARROW if file.stem.startswith("pretrain-") else WIDE, text)


def _picture(file: Path, widest: int | None, text: str, density: int = 1) -> Picture:
    source = f"data:{TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
    if file.suffix == ".mp4" or widest is None:
        return Picture(source, text, widest)
    with Image.open(file) as image:
        return Picture(source, text, min(widest, image.width // density))


def _words(file: Path) -> str:
    return file.stem.removeprefix("pretrain-").removeprefix("visualize-").replace("-", " ")
