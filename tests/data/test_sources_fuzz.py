"""Every text that a source reads, damaged at random: a listing with the same class numbers, or one line on why not.

Videos are empty files: sources open none.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.test_sources import listing, touch, write
from vidssl.data.classes import class_key
from vidssl.data.manifest import Listing
from vidssl.registry import ConfigError

NAMES = ("ApplyEyeMakeup", "BabyCrawling", "HandstandPushups", "YoYo")
WORDS = ("abseiling", "air drumming", "playing cards", "zumba")


def ucf101(root: Path) -> dict:
    for split, groups in (("train", range(8, 12)), ("test", range(1, 4))):
        names = [f"{name}/v_{name}_g{g:02d}_c01.avi" for name in NAMES for g in groups]
        touch(root / "UCF-101", *names)
        numbers = [f" {i // len(groups) + 1}" if split == "train" else "" for i in range(len(names))]
        write(root / f"{split}list01.txt", *map("".join, zip(names, numbers, strict=True)))
    return {"name": "ucf101"}


def hmdb51(root: Path) -> dict:
    for name in ("brush_hair", "catch", "talk"):
        files = [f"#{name}_{i}_!(a).avi" for i in range(7)]
        touch(root / name, *files)
        write(root / "splits" / f"{name}_test_split1.txt", *(f"{f} {i % 3} " for i, f in enumerate(files)))
    return {"name": "hmdb51"}


def diving48(root: Path) -> dict:
    for split in ("train", "test"):
        entries = [{"vid_name": f"{split}_{i:03d}", "label": i * 7, "end_frame": 90} for i in range(5)]
        touch(root / "rgb", *(f"{entry['vid_name']}.mp4" for entry in entries))
        (root / f"Diving48_V2_{split}.json").write_text(json.dumps(entries, indent=1))
    return {"name": "diving48"}


def kinetics_columns(root: Path, splits: tuple[str, ...] = ("train", "val")) -> dict:
    for split in ("train", "val"):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for label in WORDS:
            for i in range(4):
                key = f"{split}{label[:2]}{i}"
                touch(root, f"{split}/{label}/{key}_{i:06d}_{i + 10:06d}.mp4")
                rows.append(f'"{label}",{key},{i},{i + 10}.0,{split}')
        if split in splits:
            write(root / f"{split}.csv", *rows)
    return {"name": "kinetics400"}


def kinetics_val_beside_folders(root: Path) -> dict:
    return kinetics_columns(root, ("val",))


def kinetics_train_beside_folders(root: Path) -> dict:
    return kinetics_columns(root, ("train",))


def kinetics_paths(root: Path) -> dict:
    for split in ("train", "val"):
        names = [f"{split}/{label}/{i}{label[0]}{split}.mp4" for label in WORDS for i in range(4)]
        touch(root, *names)
        write(root / f"{split}.txt", *(f"{name} {i // 4}" for i, name in enumerate(names)))
    return {"name": "kinetics400"}


def lists(root: Path) -> dict:
    for split in ("train", "test"):
        names = [f"{'abcd'[i // 4]} x/{split}{i}.mp4" for i in range(16)]
        touch(root, *names)
        write(root / f"{split}.txt", *(f"{name} {20 + i} {i // 4}" for i, name in enumerate(names)))
    return {"name": "list", "train_list": "train.txt", "test_list": "test.txt"}


def lists_that_skip(root: Path) -> dict:
    return {**lists(root), "missing": "skip"}


TREES: list[Callable[[Path], dict]] = [
    ucf101, hmdb51, diving48, kinetics_columns, kinetics_val_beside_folders, kinetics_train_beside_folders,
    kinetics_paths, lists, lists_that_skip,
]  # fmt: skip

SIGNS = [b'"', b",", b" ", b";", b"\t", b"/", b"\\", b"\0", b"\xff", b"\xe2\x80\xa8"]
NUMBERS = [b" -1", b" 5.0", b" 99999999999", b" 1e5", b" \xc2\xb2", b" 1_0", b" nan"]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The text with one of the faults that copying, editing, converting and table programs make."""
    lines = content.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    line, cut = lines[i], rng.randrange(len(lines[i]) + 1)
    one_line: dict[str, bytes] = {
        "cut": line[:cut],
        "beheaded": line[cut:],
        "emptied": b"",
        "line twice": line + b"\n" + line,
        "twice in a line": line + line,
        "joined": line + lines[j],
        "garbled": line[:cut] + bytes([rng.randrange(256)]) + line[cut + 1 :],
        "inserted": line[:cut] + rng.choice(SIGNS) + line[cut:],
        "number": line.rstrip(b"0123456789 ") + rng.choice(NUMBERS),
        "last field lost": line.rpartition(b" ")[0] or line.rpartition(b",")[0],
        "commas": line.replace(b" ", b","),
        "quoted": b'"' + line + b'"',
        "upper case": line.upper(),
    }  # fmt: skip
    of_all: dict[str, bytes] = {
        "reordered": b"\n".join(rng.sample(lines, len(lines))),
        "doubled": content + content,
        "halved": content[: rng.randrange(len(content) + 1)],
        "nothing": b"",
        "spaces": b" \n" * 3,
        "Windows": content.replace(b"\n", b"\r\n"),
        "old Mac": content.replace(b"\n", b"\r"),
        "mark": b"\xef\xbb\xbf" + content,
        "UTF-16": content.decode("latin-1").encode("utf-16"),
        "UTF-16 without mark": content.decode("latin-1").encode("utf-16-le"),
        "binary": rng.randbytes(200),
        "underscores": content.replace(b" ", b"_"),
    }
    if rng.random() < 0.7:
        lines[i] = rng.choice(list(one_line.values()))
        return b"\n".join(lines)
    return rng.choice(list(of_all.values()))


def outcome(options: dict, split: str, root: Path) -> Listing | str:
    try:
        return listing(options["name"], split, root, **{k: v for k, v in options.items() if k != "name"})
    except ConfigError as error:
        return str(error)


def check(tree: Callable[[Path], dict], cases: int, seed: int, folder: Path) -> None:
    options = tree(folder)
    whole = outcome(options, "train", folder)
    truth = {
        video.path: whole.classes[video.label] for video in (*whole.videos, *outcome(options, "test", folder).videos)
    }
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".csv", ".json"))
    for case in range(cases):
        rng = random.Random(f"{tree.__name__} {seed} {case}")
        file = rng.choice(files)
        before = file.read_bytes()
        after = before
        for _ in range(rng.choice((1, 1, 2, 5))):
            after = damaged(after, rng)
        file.write_bytes(after)
        try:
            verify([outcome(options, split, folder) for split in ("train", "test")], whole, truth, after)
        except AssertionError as error:
            raise AssertionError(f"case {case} of seed {seed}, {file.name}:\n{after!r}\n{error}") from error
        finally:
            file.write_bytes(before)


def verify(answers: list[Listing | str], whole: Listing, truth: dict[str, str], text: bytes) -> None:
    for answer in answers:
        if isinstance(answer, str):
            assert answer, "an empty message"
            assert len(answer.splitlines()) == 1, answer
            assert answer.isprintable(), answer
            continue
        assert answer.videos
        labels = {video.label for video in answer.videos}
        assert labels <= (set(range(len(answer.classes))) or {-1})
        assert len(answer.classes) == len(set(answer.classes))
        for remark in answer.remarks:
            assert remark.isprintable(), remark
        if [class_key(name) for name in answer.classes] != [class_key(name) for name in whole.classes]:
            assert any("classes" in remark or "label" in remark for remark in [*answer.remarks, answer.unlabelled]), (
                f"other classes, silently: {answer.classes}"
            )
        for video in answer.videos:
            name = answer.classes[video.label] if answer.classes else None
            if name is not None and class_key(name) != class_key(truth[video.path]):
                assert class_key(name) in class_key(text.decode()), (video, name)  # only where the text says so
    if all(isinstance(answer, Listing) for answer in answers):
        assert answers[0].classes == answers[1].classes


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_a_damaged_text_gives_the_same_class_numbers_or_one_line(tree: Callable[[Path], dict], tmp_path: Path) -> None:
    check(tree, 60, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.__name__)
def test_many_damaged_texts_give_the_same_class_numbers_or_one_line(
    tree: Callable[[Path], dict], seed: int, tmp_path: Path
) -> None:
    check(tree, 600, seed, tmp_path)
