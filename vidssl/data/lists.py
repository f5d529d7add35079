"""Texts that name videos and their labels: csv, split files, lists, JSON.

Whatever a file holds, the answer is rows or a ConfigError of one line: FILE:LINE, what was found, what is allowed.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vidssl.data.classes import class_key
from vidssl.data.folders import has_video_suffix
from vidssl.data.labels import SplitClasses, printable
from vidssl.registry import ConfigError

MOST_CLASSES = 10_000  # a label beyond is a mistake, and would cost memory for each class below it
WHOLE = re.compile(r"\+?[0-9]+(\.0*)?")  # table programs write 5 as 5.0
NUMBER = re.compile(r"[-+]?[0-9]+(\.0*)?")


class Row(NamedTuple):
    name: str  # of the video, as listed
    label: str  # class name or number; "" without
    file: Path
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


def malformed(file: Path, line: int, found: str, allowed: str) -> ConfigError:
    shown = found if len(found) <= 100 else f"{found[:97]}..."
    return ConfigError(f"{file}:{line}: found {shown!r}, allowed {printable(allowed)}; correct the line or remove it")


def read_text(file: Path) -> str:
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")  # with or without the mark that some editors put in front
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{file}: not a UTF-8 text ({error.reason} at byte {error.start}), line {line}; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ConfigError(f"{file}: not a UTF-8 text (it holds NUL characters, as UTF-16 does); save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(file: Path) -> list[tuple[int, str]]:
    """(number from 1, line without blanks around it) of the lines that are not empty. Names may begin with "#"."""
    lines = ((number, line.strip()) for number, line in enumerate(read_text(file).split("\n"), 1))
    return [(number, line) for number, line in lines if line]


def _tidy(path: str) -> str:
    """One way to write a path, so that a video is the same in ./a/v.mp4 and a//v.mp4."""
    odd = "./" in path or "//" in path or path.endswith("/")
    return posixpath.normpath(path) if odd and "../" not in path else path


def _some(rows: list[Row], file: Path) -> list[Row]:
    if not rows:
        raise ConfigError(f"{file}: lists no videos")
    return rows


def label_number(text: str, file: Path, line: int, found: str) -> str:
    label = _small_number(text)
    if label is None:
        raise malformed(file, line, found, f"a label from 0 to {MOST_CLASSES - 1}")
    return label


@lru_cache(maxsize=2 * MOST_CLASSES)  # a few labels, many lines
def _small_number(text: str) -> str | None:
    fits = WHOLE.fullmatch(text) and len(text) <= 20 and float(text) < MOST_CLASSES
    return str(int(float(text))) if fits else None


def refuse_contradictions(lists: Iterable[Sequence[Row]], labels: Mapping[str, int]) -> None:
    """No video may be listed under two labels, in whichever of the lists. labels: of the class names; others count as
    they are."""
    first: dict[str, Row] = {}
    for row in itertools.chain(*lists):
        other = first.setdefault(row.name, row)
        if other.label != row.label and labels.get(other.label, other.label) != labels.get(row.label, row.label):
            raise two_labels(row, other)


def two_labels(row: Row, other: Row) -> ConfigError:
    same = "" if row.name == other.name else f", named {printable(other.name)}"
    return ConfigError(
        f"{row.where}: {printable(row.name)} has label {printable(row.label)}, but {printable(other.label)} in "
        f"{other.where}{same}; a video has one label, remove one of the lines"
    )


def classes_of(rows: Sequence[Row]) -> SplitClasses:
    """What a list says of the classes of its split. rows: at least one."""
    names = dict.fromkeys(row.label for row in rows)
    source = printable(str(rows[0].file))
    if "" in names:
        return SplitClasses(source, (), unlabelled=f"{source} has no labels")
    return SplitClasses(source, list(names), numbered=all(WHOLE.fullmatch(name) for name in names))


# ---------------------------------------------------------------------------------------------------------------------
# The forms of each data set


def ucf101_rows(file: Path) -> list[Row]:
    """`CLASS/v_CLASS_g01_c01.avi`, with or without a class number. Labels are class names."""
    rows: list[Row] = []
    classes: dict[str, tuple[str, int]] = {}  # number -> class and line, and the reverse
    for line, text in read_lines(file):
        name, number = re.fullmatch(r"(.*?)(?:\s+([0-9]+))?", text).groups()
        parts = name.split("/")
        if len(parts) < 2 or not parts[-2].strip() or not parts[-1]:
            raise malformed(file, line, text, "'CLASS/VIDEO.avi' or 'CLASS/VIDEO.avi NUMBER'")
        label = parts[-2]
        named = re.fullmatch(r"v_(.+)_g[0-9]+_c[0-9]+(?:\.[^.]*)?", parts[-1])
        if named and class_key(named[1]) != class_key(label):
            raise malformed(file, line, text, f"a video of one class; folder and name say {label} and {named[1]}")
        if number is not None:
            for key, value in ((f"number {int(number)}", label), (f"class {label.casefold()}", str(int(number)))):
                known, first = classes.setdefault(key, (value, line))
                if known.casefold() != value.casefold():
                    raise malformed(file, line, text, f"one number for a class: {key} is {known} in line {first}")
        rows.append(Row(_tidy(name), label, file, line))
    return _some(rows, file)


def hmdb51_rows(file: Path, label: str) -> dict[str, list[Row]]:
    """Mark (1 train, 2 test, 0 neither) -> videos of lines `VIDEO.avi MARK`, all of one class."""
    rows: dict[str, list[Row]] = {"0": [], "1": [], "2": []}
    marks: dict[str, tuple[str, int]] = {}
    for line, text in read_lines(file):
        name, *mark = text.rsplit(maxsplit=1)
        if len(mark) != 1 or mark[0] not in rows:
            raise malformed(file, line, text, "'VIDEO.avi 1' (train), 'VIDEO.avi 2' (test) or 'VIDEO.avi 0' (neither)")
        known, first = marks.setdefault(name, (mark[0], line))
        if known != mark[0]:
            raise malformed(file, line, text, f"one split for a video: line {first} says {known}")
        rows[mark[0]].append(Row(_tidy(f"{label}/{name}"), label, file, line))
    return rows


def diving48_rows(file: Path) -> list[Row]:
    """A JSON list of objects with vid_name and label. A row's line is its place in the list, from 1."""
    allowed = "a list of objects with vid_name and label"
    try:
        entries = json.loads(read_text(file))
    except RecursionError:
        raise ConfigError(f"{file}: not {allowed} (nested too deeply)") from None
    except ValueError as error:  # also numbers of more digits than Python reads
        raise ConfigError(f"{file}: not {allowed} ({error}); fetch it again") from None
    if not isinstance(entries, list):
        raise ConfigError(f"{file}: not {allowed} (it holds {_kind(entries)}); fetch it again")
    rows = []
    for number, entry in enumerate(entries, 1):
        name, label = (entry.get("vid_name"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        fits = isinstance(name, (str, int)) and isinstance(label, (str, int, float)) and not isinstance(label, bool)
        if not fits or name == "" or not WHOLE.fullmatch(str(label)[:20]) or float(str(label)[:20]) >= 48:
            raise ConfigError(
                f"{file}: not {allowed}: found {str(entry)[:100]!r} as entry {number}, allowed a vid_name and a label "
                "from 0 to 47; correct the entry or remove it"
            )
        rows.append(Row(str(name), str(int(float(label))), file, number))
    return _some(rows, file)


def _kind(value: object) -> str:
    return "an object" if isinstance(value, dict) else "a single value"


def kinetics_rows(file: Path) -> list[Row]:
    """Columns label, youtube_id, time_start, time_end, or lines `path label`. Labels are class names or numbers."""
    lines = read_lines(file)
    if lines and "youtube_id" in lines[0][1].casefold():
        return _kinetics_columns(file, lines)
    separator = "," if lines and "," in lines[0][1] else None
    rows = []
    for line, text in lines:
        name, *label = (part.strip() for part in text.rsplit(separator, 1))
        if not name or len(label) != 1 or not WHOLE.fullmatch(label[0]):
            raise malformed(
                file,
                line,
                text,
                "lines 'path label' with a label from 0, or columns label, youtube_id, time_start, time_end",
            )
        rows.append(Row(_tidy(name), label_number(label[0], file, line, text), file, line))
    return _some(rows, file)


def _kinetics_columns(file: Path, lines: Sequence[tuple[int, str]]) -> list[Row]:
    (first, header), *rest = lines
    delimiter = max(",;\t", key=header.count)
    columns = [column.strip().casefold() for column in _fields(file, first, header, delimiter)]
    wanted = ("label", "youtube_id", "time_start", "time_end")
    if any(columns.count(column) != 1 for column in wanted):
        raise malformed(file, first, header, f"columns {', '.join(wanted)}")
    rows = []
    for line, text in rest:
        fields = _fields(file, line, text, delimiter)
        if len(fields) != len(columns):
            raise malformed(file, line, text, f"{len(columns)} columns, as in line {first}")
        label, video, start, end = (fields[columns.index(column)].strip() for column in wanted)
        if not label or not video or not all(WHOLE.fullmatch(time) and len(time) < 12 for time in (start, end)):
            raise malformed(file, line, text, "a label, a youtube_id and times in whole seconds")
        rows.append(Row(f"{video}_{int(float(start)):06d}_{int(float(end)):06d}", label, file, line))
    if rows and all(WHOLE.fullmatch(row.label) for row in rows):
        numbers = (str(label_number(row.label, file, row.line, row.label)) for row in rows)
        rows = [row._replace(label=number) for row, number in zip(rows, numbers, strict=True)]
    return _some(rows, file)


def _fields(file: Path, line: int, text: str, delimiter: str) -> list[str]:
    """Of one line: a quote that is not closed must not swallow the lines after it."""
    if '"' not in text:
        return text.split(delimiter)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise malformed(file, line, text, f"quotes in pairs ({error})") from None


LIST_FORMS = "'path num_frames label', 'path label' or 'path', with blanks between, in all lines alike"


def list_rows(file: Path) -> list[Row]:
    """`path num_frames label`, `path label` or `path`; the label is "" where there is none."""
    lines, rows, counts = read_lines(file), [], []
    for line, text in lines:
        path, numbers = _path_and_numbers(file, line, text)
        rows.append(Row(_tidy(path), label_number(numbers[0], file, line, text) if numbers else "", file, line))
        counts.append(len(numbers))
    if len(set(counts)) > 1:
        usual = Counter(counts).most_common(1)[0][0]
        (line, text), count = next(pair for pair in zip(lines, counts, strict=True) if pair[1] != usual)
        some = "some lines have a label, others none; " if 0 in (usual, count) else ""
        raise malformed(file, line, text, f"{usual} numbers after the path as in most lines ({some}{LIST_FORMS})")
    return _some(rows, file)


def _path_and_numbers(file: Path, line: int, text: str) -> tuple[str, list[str]]:
    """Path, numbers after it from the last, the label, to the first."""
    _, *words = text.rsplit(maxsplit=3)
    numbers = list(itertools.takewhile(NUMBER.fullmatch, reversed(words)))
    if len(numbers) > 2:
        if has_video_suffix(text.rsplit(maxsplit=3)[0]):
            raise malformed(file, line, text, LIST_FORMS)
        numbers = numbers[:2]
    return text.rsplit(maxsplit=len(numbers))[0] if numbers else text, numbers


def refuse_odd_paths(rows: Sequence[Row], root: Path) -> None:
    """Refuse paths that are more than a path: with commas, quotes or words beside it. rows: of videos not on disk."""
    for row in rows:
        beside = re.search(r"\.\w+(?=\s*[,;|\s])", row.name)
        is_more = beside and has_video_suffix(row.name[: beside.end()]) and not has_video_suffix(row.name)
        if row is rows[0] and not is_more:
            path = re.split(r"[,;|\s]", row.name)[0]
            is_more = path not in ("", row.name) and os.path.exists(root / path)
        if is_more or row.name[0] in "\"'":
            raise malformed(row.file, row.line, row.name, f"{LIST_FORMS}, without commas and quotes, labels as numbers")
