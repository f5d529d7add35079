"""Pictures that runs left, each put into the page itself, with what it shows."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vidssl.reporting.axes import tag

PAGE, WIDE, NARROW = 1120, 540, 340  # pixels: the page, and thumbnails
TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}


class Kind(NamedTuple):
    """Pictures whose file names begin alike."""

    start: str
    title: str
    meaning: str
    density: int = 1  # pixels of the file for one of the page


SEES = "What the networks see"
KINDS = (
    Kind(
        "visualize-inputs",
        SEES,
        "A video in each picture, frames from left to right: what the method takes apart or mixes, then what its "
        "networks get, colors included.",
    ),
    Kind(
        "pretrain-",
        "While it trained",
        "What pretraining fed to the networks when it looked last: a row for each video, frames from left to right.",
    ),
    Kind(
        "visualize-activations",
        "Where they look",
        "Strength of the backbone's answer at each place, whatever the class: from blue, the weakest of the clip, to "
        "red, the strongest.",
    ),
    Kind(
        "visualize-tsne",
        "What lies together: t-SNE",
        "Each point is a video, colored by its class; the name stands in the middle of its class. Neighbors in the "
        "picture are neighbors among the features; distances between groups mean little.",
        2,
    ),
    Kind(
        "visualize-confusion",
        "What is taken for what",
        "Rows are the true classes, columns what the classifier says; a perfect one has a dark diagonal alone.",
        2,
    ),
    Kind(
        "visualize-neighbors",
        "Neighbors",
        "Videos and the training videos most similar to them: green frames are of the same class, orange ones of "
        "another.",
    ),
    Kind(
        "visualize-kernels",
        "Temporal kernels",
        "Above, the weights of each layer by their place in time. Below, how much of each kernel varies over time: a "
        "network that ignores motion has kernels that are the same at all times.",
        2,
    ),
    Kind("visualize-curves", "Training", "Loss and accuracy over the steps.", 2),
    Kind("", "More", ""),
)


def pictures(folder: Path) -> list[Path]:
    """Of a run, in the order of their names."""
    return sorted(file for file in (folder / "pictures").glob("*") if file.suffix in TYPES)


def place(file: Path) -> tuple[int, str]:
    """In a row of pictures of many runs."""
    return next(i for i, kind in enumerate(KINDS) if file.stem.startswith(kind.start)), file.name


def has(folder: Path, kind: str) -> bool:
    return any(file.stem.startswith(f"visualize-{kind}") for file in pictures(folder))


def large(folder: Path) -> list[str]:
    """All of a run under headings, as wide as they are or as the page is; those of pretraining are small."""
    left, parts = pictures(folder), []
    for kind in KINDS:
        mine = [file for file in left if file.stem.startswith(kind.start)]
        left = [file for file in left if file not in mine]
        if not mine:
            continue
        parts += [tag("h2", html.escape(kind.title)), tag("p", html.escape(kind.meaning), class_="small")]
        if kind.start == "pretrain-":
            parts.append(tag("div", "".join(small(file, "") for file in mine), class_="pictures"))
        else:
            parts += [tag("figure", _element(file, kind), class_="large") for file in mine]
    return parts


def _element(file: Path, kind: Kind) -> str:
    told = f"{kind.title}: {_words(file)}"
    if file.suffix == ".mp4":
        return _video(file, None)
    return _img(file, min(_width(file) // kind.density, PAGE), told)


def small(file: Path, label: str) -> str:
    """A thumbnail with its caption."""
    told = f"{label}: {_words(file)}" if label else _words(file)
    width = NARROW if file.stem.startswith("pretrain-") else WIDE
    shown = _video(file, width) if file.suffix == ".mp4" else _img(file, min(width, _width(file)), told)
    return tag("figure", shown + tag("figcaption", html.escape(told)))


def _width(file: Path) -> int:
    with Image.open(file) as picture:
        return picture.width


def _words(file: Path) -> str:
    return file.stem.removeprefix("pretrain-").removeprefix("visualize-").replace("-", " ")


def _img(file: Path, width: int, told: str) -> str:
    return f'<img src="{_data(file)}" width="{width}" alt="{html.escape(told)}">'


def _video(file: Path, width: int | None) -> str:
    size = f' width="{width}"' if width else ""
    return f'<video src="{_data(file)}"{size} controls loop muted autoplay playsinline></video>'


def _data(file: Path) -> str:
    return f"data:{TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
