"""Each data set in the layouts in which people have it; empty files do, no source opens a video."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from vidssl.data.manifest import Listing
from vidssl.data.sources import SOURCES
from vidssl.registry import ConfigError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


DEFAULTS = {
    "ucf101": {"fold": 1, "annotations": None},
    "hmdb51": {"fold": 1, "annotations": None},
    "diving48": {"annotations": None},
    "kinetics400": {"annotations": None},
    "folder": {"test_share": 0.0},
    "list": {"train_list": None, "test_list": None, "missing": "error"},
}


def listing(name: str, split: str, root: Path, **options: object) -> Listing:
    return SOURCES.build({"name": name, "root": str(root), **DEFAULTS[name], **options}, split)


def found(files: Listing) -> list[tuple[str, int]]:
    assert all((files.root / video.path).is_file() for video in files.videos)
    return sorted((video.path, video.label) for video in files.videos)


# -- UCF101

UCF = ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01", "HandstandPushups/v_HandStandPushups_g08_c01", "YoYo/v_YoYo_g08_c01")


def ucf_lists(folder: Path) -> None:
    write(folder / "classInd.txt", "1 ApplyEyeMakeup", "2 HandstandPushups", "3 YoYo")
    for fold in (1, 2, 3):
        write(folder / f"trainlist0{fold}.txt", *(f"{name}.avi {i + 1}" for i, name in enumerate(UCF)))
        write(folder / f"testlist0{fold}.txt", *(f"{name.replace('g08', f'g0{fold}')}.avi" for name in UCF))


UCF_LAYOUTS = {
    "official": ("UCF-101/{}.avi", "ucfTrainTestlist"),
    "official annotation archive": ("UCF-101/{}.avi", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist"),
    "fame": ("data/{}.avi", "anno"),
    "converted": ("videos/{}.mp4", "annotations"),
    "classes at the top": ("{}.avi", "."),
    "no class folders": ("videos/{flat}.avi", "splits"),
}


@pytest.mark.parametrize("layout", UCF_LAYOUTS)
def test_ucf101_layouts(layout: str, tmp_path: Path) -> None:
    pattern, lists = UCF_LAYOUTS[layout]
    ucf_lists(tmp_path / lists)
    for name in UCF:
        for group in ("g08", "g01", "g02"):
            full = name.replace("g08", group)
            touch(tmp_path, pattern.format(full, flat=full.split("/")[1]))
    train, test = listing("ucf101", "train", tmp_path), listing("ucf101", "test", tmp_path, fold=2)
    assert list(train.classes) == ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
    assert [label for _, label in found(train)] == [0, 1, 2]
    assert all("g08" in path for path, _ in found(train))
    assert all("g02" in path for path, _ in found(test))
    assert len(test.videos) == 3


def test_ucf101_folder_with_the_other_spelling_of_handstand_pushups(tmp_path: Path) -> None:
    ucf_lists(tmp_path / "ucfTrainTestlist")
    touch(tmp_path, *(f"UCF-101/{name.replace('Handstand', 'HandStand', 1)}.avi" for name in UCF))
    assert [label for _, label in found(listing("ucf101", "train", tmp_path))] == [0, 1, 2]


def test_videos_that_are_not_there_are_counted_and_all_of_them_missing_is_an_error(tmp_path: Path) -> None:
    ucf_lists(tmp_path / "ucfTrainTestlist")
    touch(tmp_path, f"UCF-101/{UCF[0]}.avi")
    train = listing("ucf101", "train", tmp_path)
    assert len(train.videos) == 1
    assert "2 of 3 listed videos are not there, for example HandstandPushups" in train.remarks[0]
    with pytest.raises(ConfigError, match="none of the 3 listed videos is there, for example ApplyEyeMakeup"):
        listing("ucf101", "test", tmp_path, fold=3)


def test_lists_elsewhere_and_nowhere(tmp_path: Path) -> None:
    touch(tmp_path / "v", *(f"{name}.avi" for name in UCF))
    with pytest.raises(ConfigError, match=r"trainlist01.txt not found .* set dataset.annotations"):
        listing("ucf101", "train", tmp_path / "v")
    ucf_lists(tmp_path / "elsewhere")
    assert len(listing("ucf101", "train", tmp_path / "v", annotations=str(tmp_path / "elsewhere")).videos) == 3
    with pytest.raises(ConfigError, match=r"dataset.root=.*: no such folder"):
        listing("ucf101", "train", tmp_path / "nothing")


# -- HMDB51


@pytest.mark.parametrize("videos", ["hmdb51_org/{}/{}", "{}/{}", "videos/{}/{}"])
@pytest.mark.parametrize("lists", ["testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits"])
def test_hmdb51_layouts(videos: str, lists: str, tmp_path: Path) -> None:
    for name in ("brush_hair", "ride_bike"):
        for fold in (1, 2, 3):
            rows = [f"#{name}_{i}_!(a).avi {(i + fold) % 3}" for i in range(6)]
            write(tmp_path / lists / f"{name}_test_split{fold}.txt", *rows)
        touch(tmp_path, *(videos.format(name, f"#{name}_{i}_!(a).avi") for i in range(6)))
    train, test = listing("hmdb51", "train", tmp_path), listing("hmdb51", "test", tmp_path)
    assert list(train.classes) == ["brush_hair", "ride_bike"]
    assert [label for _, label in found(train)] == [0, 0, 1, 1]
    assert {path[-10] for path, _ in found(train)} == {"0", "3"}
    assert {path[-10] for path, _ in found(test)} == {"1", "4"}
    assert {path[-10] for path, _ in found(listing("hmdb51", "train", tmp_path, fold=2))} == {"2", "5"}


def test_hmdb51_equal_names_in_two_classes_are_told_apart(tmp_path: Path) -> None:
    for name in ("hit", "kick"):
        write(tmp_path / "splits" / f"{name}_test_split1.txt", "same.avi 1")
        touch(tmp_path, f"{name}/same.avi")
    assert found(listing("hmdb51", "train", tmp_path)) == [("hit/same.avi", 0), ("kick/same.avi", 1)]


# -- Diving48


@pytest.mark.parametrize("pattern", ["rgb/{}.mp4", "videos/rgb/{}.mp4", "{}.mkv"])
def test_diving48_layouts(pattern: str, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        entries = [
            {"vid_name": f"{split}_{i:05d}", "label": i * 7, "start_frame": 0, "end_frame": 90} for i in range(count)
        ]
        (tmp_path / f"Diving48_V2_{split}.json").write_text(json.dumps(entries))
        touch(tmp_path, *(pattern.format(entry["vid_name"]) for entry in entries))
    train = listing("diving48", "train", tmp_path)
    assert [label for _, label in found(train)] == [0, 7, 14, 21]
    assert len(train.classes) == 48
    assert len(listing("diving48", "test", tmp_path).videos) == 2


def test_diving48_list_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "Diving48_V2_train.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="not a list of objects with vid_name and label"):
        listing("diving48", "train", tmp_path)


# -- Kinetics-400


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("train_256", "val_256"), ("videos_train", "videos_val")])
@pytest.mark.parametrize("top", ["", "compress/"])
def test_kinetics_class_folders(train: str, val: str, top: str, tmp_path: Path) -> None:
    for folder in (train, val):
        touch(
            tmp_path,
            *(f"{top}{folder}/{name}/{folder}_{name}_000001_000011.mp4" for name in ("abseiling", "air drumming")),
        )
    files = {split: listing("kinetics400", split, tmp_path) for split in ("train", "test")}
    for split, folder in (("train", train), ("test", val)):
        assert list(files[split].classes) == ["abseiling", "air drumming"]
        assert [label for _, label in found(files[split])] == [0, 1]
        assert all(f"{folder}/" in path for path, _ in found(files[split]))


def test_kinetics_official_columns(tmp_path: Path) -> None:
    for part, split in (("train", "train"), ("val", "validate")):
        write(
            tmp_path / f"{split}.csv",
            "label,youtube_id,time_start,time_end,split,is_cc",
            f"zumba,{part}AAAAAA,10,20,{split},0",
            f'"playing cards",-{part}_BBBB,3,13,{split},0',
            f"zumba,{part}_lost,3,13,{split},0",
        )
        touch(tmp_path, f"{part}/zumba/{part}AAAAAA_000010_000020.mp4")
        touch(tmp_path, f"{part}/playing cards/-{part}_BBBB_000003_000013.mp4")
    for split, part in (("train", "train"), ("test", "val")):
        files = listing("kinetics400", split, tmp_path)
        assert list(files.classes) == ["playing cards", "zumba"]
        assert found(files) == [
            (f"{part}/playing cards/-{part}_BBBB_000003_000013.mp4", 0),
            (f"{part}/zumba/{part}AAAAAA_000010_000020.mp4", 1),
        ]
        assert "1 of 3 listed videos" in files.remarks[0]


@pytest.mark.parametrize("separator", [" ", ","])
def test_kinetics_lists_of_path_and_label(separator: str, tmp_path: Path) -> None:
    touch(tmp_path, "train/a b/x y.mp4", "train/c/z.mp4", "val/c/v.mp4")
    write(tmp_path / "lists/train.csv", f"train/a b/x y.mp4{separator}0", f"train/c/z.mp4{separator}1")
    write(tmp_path / "lists/val.csv", f"val/c/v.mp4{separator}1")
    assert found(listing("kinetics400", "train", tmp_path)) == [("train/a b/x y.mp4", 0), ("train/c/z.mp4", 1)]
    assert found(listing("kinetics400", "test", tmp_path)) == [("val/c/v.mp4", 1)]


def test_kinetics_without_a_validation_set(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.mp4")
    assert len(listing("kinetics400", "train", tmp_path).videos) == 1
    with pytest.raises(ConfigError, match="no folder for the val split"):
        listing("kinetics400", "test", tmp_path)


# -- any videos


def test_folder_with_classes_and_a_held_out_share(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{i}.MP4" for name in ("run", "walk") for i in range(50)))
    train = listing("folder", "train", tmp_path, test_share=0.2)
    test = listing("folder", "test", tmp_path, test_share=0.2)
    assert list(train.classes) == ["run", "walk"]
    assert len(train.videos) + len(test.videos) == 100
    assert 8 <= len(test.videos) <= 32
    assert not set(found(train)) & set(found(test))
    with pytest.raises(ConfigError, match=r"no videos for the test split.*dataset.test_share"):
        listing("folder", "test", tmp_path)


def test_folder_with_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/1.mp4", "train/walk/2.mp4", "val/walk/3.mp4")
    assert found(listing("folder", "train", tmp_path)) == [("train/run/1.mp4", 0), ("train/walk/2.mp4", 1)]
    assert found(listing("folder", "test", tmp_path)) == [("val/walk/3.mp4", 1)]


def test_folder_without_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.webm", "notes.txt", ".hidden.mp4", "deeper/c.avi")
    files = listing("folder", "train", tmp_path)
    assert found(files) == [("a.mp4", -1), ("b.webm", -1), ("deeper/c.avi", -1)]
    assert not files.classes
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no videos there; known endings"):
        listing("folder", "train", tmp_path / "empty")


def test_lists_with_and_without_frame_counts_and_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a/one two.mp4", "b.mp4")
    for rows, labels in (
        (("a/one two.mp4 120 3", "b.mp4 80 0"), [3, 0]),
        (("a/one two.mp4 3", "b.mp4 0"), [3, 0]),
        (("a/one two.mp4", "b.mp4"), [-1, -1]),
    ):
        write(tmp_path / "train.txt", *rows)
        files = listing("list", "train", tmp_path, train_list="train.txt")
        assert found(files) == sorted(zip(("a/one two.mp4", "b.mp4"), labels, strict=True))
        assert len(files.classes) == max(labels) + 1


def test_lists_as_other_systems_write_them(tmp_path: Path) -> None:
    touch(tmp_path, "ü/a b.mp4", "c.mp4")
    rows = f"ü/a b.mp4 10 0\r\n{tmp_path / 'c.mp4'} 10 1\r\n\r\n"
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert found(listing("list", "train", tmp_path, train_list="t.txt")) == [
        (str(tmp_path / "c.mp4"), 1),
        ("ü/a b.mp4", 0),
    ]
    (tmp_path / "t.txt").write_bytes(rows.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"t.txt: not a UTF-8 text \(invalid start byte at byte 0\)"):
        listing("list", "train", tmp_path, train_list="t.txt")


def test_lists_that_cannot_serve(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(ConfigError, match=r"dataset.test_list: missing"):
        listing("list", "test", tmp_path, train_list="x.txt")
    write(tmp_path / "t.txt", "a.mp4 10 0", "lost.mp4 10 1")
    with pytest.raises(ConfigError, match=r"1 of 2 listed videos are not under .* lost.mp4.*dataset.missing=skip"):
        listing("list", "train", tmp_path, train_list="t.txt")
    assert found(listing("list", "train", tmp_path, train_list="t.txt", missing="skip")) == [("a.mp4", 0)]
    write(tmp_path / "mixed.txt", "a.mp4 10 0", "a.mp4")
    with pytest.raises(ConfigError, match="some lines have a label, others none"):
        listing("list", "train", tmp_path, train_list="mixed.txt")


# -- one numbering of classes for both splits


def kinetics(
    root: Path, part: str, form: str, labels: tuple[str, ...], numbers: tuple[str, ...] = ("a", "b", "c")
) -> None:
    """One split of Kinetics, two videos a class: class folders, a list by names, or a list by numbers."""
    names = [f"{part}{label.replace(' ', '')}{i}_000001_000011" for label in labels for i in (0, 1)]
    classes = [label for label in labels for _ in (0, 1)]
    if form == "folders":
        touch(root, *(f"{part}/{label}/{name}.mp4" for name, label in zip(names, classes, strict=True)))
        return
    touch(root, *(f"{part}/{name}.mp4" for name in names))
    if form == "names":
        rows = [f"{label},{name[:-14]},1,11,x" for name, label in zip(names, classes, strict=True)]
        write(root / f"{part}.csv", "label,youtube_id,time_start,time_end,split", *rows)
    else:
        rows = [f"{part}/{name}.mp4 {numbers.index(label)}" for name, label in zip(names, classes, strict=True)]
        write(root / f"{part}.txt", *rows)


def both(name: str, root: Path, **options: object) -> tuple[Listing, Listing | str]:
    """The training split, and the test split or why it is refused."""
    try:
        test = listing(name, "test", root, **options)
    except ConfigError as error:
        test = str(error)
        assert len(test.splitlines()) == 1
    return listing(name, "train", root, **options), test


@pytest.mark.parametrize("test", ["folders", "names"])
@pytest.mark.parametrize("train", ["folders", "names"])
def test_kinetics_splits_have_one_numbering_whichever_has_a_list(train: str, test: str, tmp_path: Path) -> None:
    kinetics(tmp_path, "train", train, ("a b", "c", "d"))
    kinetics(tmp_path, "val", test, ("A_B", "d"))  # c has no test video, a b another spelling
    first, second = both("kinetics400", tmp_path)
    assert list(first.classes) == list(second.classes) == ["a b", "c", "d"]
    assert [label for _, label in found(first)] == [0, 0, 1, 1, 2, 2]
    assert [label for _, label in found(second)] == [0, 0, 2, 2]
    assert any("1 of 3 classes have no video in" in remark and remark.endswith("c") for remark in second.remarks)


@pytest.mark.parametrize("test", ["folders", "names"])
@pytest.mark.parametrize("train", ["folders", "names"])
def test_a_class_that_training_lacks_is_refused(train: str, test: str, tmp_path: Path) -> None:
    kinetics(tmp_path, "train", train, ("b", "c"))
    kinetics(tmp_path, "val", test, ("a", "b", "c"))
    first, refusal = both("kinetics400", tmp_path)
    assert list(first.classes) == ["b", "c"]
    assert "class a of it is not in" in refusal
    assert "correct the names" in refusal


@pytest.mark.parametrize(("train", "test"), [("names", "numbers"), ("numbers", "names"), ("folders", "numbers")])
def test_names_in_one_split_and_numbers_in_the_other_are_refused(train: str, test: str, tmp_path: Path) -> None:
    kinetics(tmp_path, "train", train, ("a", "b"))
    kinetics(tmp_path, "val", test, ("a", "b"))
    assert "give both splits in one form" in both("kinetics400", tmp_path)[1]


def test_splits_with_numbers_have_the_classes_of_both(tmp_path: Path) -> None:
    kinetics(tmp_path, "train", "numbers", ("a", "b"))
    kinetics(tmp_path, "val", "numbers", ("b", "c"))
    train, test = both("kinetics400", tmp_path)
    assert train.classes == test.classes == ["0", "1", "2"]
    assert [label for _, label in found(test)] == [1, 1, 2, 2]


@pytest.mark.parametrize("train", [("a.mp4 0", "b.mp4 1"), ("a.mp4", "b.mp4")])
@pytest.mark.parametrize("test", [("c.mp4 3",), ("c.mp4",)])
def test_two_lists_have_one_numbering(train: tuple[str, ...], test: tuple[str, ...], tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    write(tmp_path / "train.txt", *train)
    write(tmp_path / "test.txt", *test)
    first, second = both("list", tmp_path, train_list="train.txt", test_list="test.txt")
    labelled = " " in train[0] and " " in test[0]
    assert first.classes == second.classes == ([str(i) for i in range(4)] if labelled else [])
    assert {video.label for video in second.videos} == ({3} if labelled else {-1})
    assert bool(first.unlabelled) != labelled


@pytest.mark.parametrize("stray", ["train/intro.mp4", "test/intro.mp4"])
def test_a_video_outside_the_class_folders_is_named(stray: str, tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.mp4", "train/b/1.mp4", "test/a/2.mp4", stray)
    for files in both("folder", tmp_path):
        assert files.classes == []
        assert files.unlabelled == f"{stray} is in no class folder"
        assert f"{stray} is in no class folder: no video of the data set gets a label" in files.remarks


def test_classes_that_differ_only_in_case_stay_apart(tmp_path: Path) -> None:
    touch(tmp_path, "train/Run/1.mp4", "train/run/1.mp4", "test/run/2.mp4")
    train, test = both("folder", tmp_path)
    assert train.classes == test.classes == ["Run", "run"]
    assert found(test) == [("test/run/2.mp4", 1)]


@pytest.mark.parametrize("where", ["train", "test", "files"])
def test_case_makes_no_difference_in_ucf101(where: str, tmp_path: Path) -> None:
    ucf_lists(tmp_path)
    for name in UCF:
        for group in ("g08", "g01"):
            full = name.replace("g08", group)
            touch(tmp_path, f"UCF-101/{full.replace('HandStand', 'Handstand') if where == 'files' else full}.avi")
    if where != "files":
        file = tmp_path / f"{where}list01.txt"
        file.write_text(file.read_text().replace("Handstand", "HandStand"))
    train, test = both("ucf101", tmp_path)
    assert train.classes == test.classes
    assert [name.casefold() for name in train.classes] == ["applyeyemakeup", "handstandpushups", "yoyo"]
    assert [label for _, label in found(train)] == [label for _, label in found(test)] == [0, 1, 2]
    assert not train.missing


def test_missing_videos_are_named_in_the_listing(tmp_path: Path) -> None:
    ucf_lists(tmp_path)
    touch(tmp_path, f"{UCF[0]}.avi")
    assert listing("ucf101", "train", tmp_path).missing == [f"{name}.avi" for name in UCF[1:]]
    write(tmp_path / "t.txt", f"{UCF[0]}.avi 0", "lost.mp4 0")
    assert listing("list", "train", tmp_path, train_list="t.txt", missing="skip").missing == ["lost.mp4"]


def test_a_file_of_another_class_does_not_stand_in_for_a_missing_video(tmp_path: Path) -> None:
    write(tmp_path / "hit_test_split1.txt", "same.avi 1", "own.avi 1")
    write(tmp_path / "kick_test_split1.txt", "same.avi 2")
    touch(tmp_path, "kick/same.avi", "hit/own.avi")
    train = listing("hmdb51", "train", tmp_path)
    assert found(train) == [("hit/own.avi", 0)]
    assert train.missing == ["hit/same.avi"]


# -- folders that are not what they seem


def test_folders_without_a_video_and_system_folders_are_no_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/b/1.mp4", "train/c/1.mp4", "test/c/2.mp4", "train/__MACOSX/b/_1.mp4", "train/@eaDir/x/2.mp4")
    touch(tmp_path, "train/a/notes.txt", "train/lost+found/3.mp4", "test/a/notes.txt")
    for files in both("folder", tmp_path):
        assert files.classes == ["b", "c"]
        assert "2 folders hold no video and are no classes, for example train/a" in files.remarks
    assert len(listing("folder", "train", tmp_path).videos) == 2


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "Val"), ("Videos_Train", "VALIDATION")])
@pytest.mark.parametrize("top", ["", "unpacked/"])
def test_split_folders_are_found_in_any_case(train: str, test: str, top: str, tmp_path: Path) -> None:
    touch(tmp_path, f"{top}{train}/a/1.mp4", f"{top}{train}/b/1.mp4", f"{top}{test}/b/2.mp4")
    for name in ("folder", *(("kinetics400",) if test != "Test" else ())):
        first, second = both(name, tmp_path)
        assert found(first) == [(f"{top}{train}/a/1.mp4", 0), (f"{top}{train}/b/1.mp4", 1)]
        assert found(second) == [(f"{top}{test}/b/2.mp4", 1)]


def test_a_root_with_one_split_serves_that_split(tmp_path: Path) -> None:
    touch(tmp_path, "Test/a/1.mp4", "Test/b/2.mp4")
    assert found(listing("folder", "test", tmp_path)) == [("Test/a/1.mp4", 0), ("Test/b/2.mp4", 1)]
    with pytest.raises(ConfigError, match="no folder for the train split of folder"):
        listing("folder", "train", tmp_path)


def test_split_folders_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.mp4", "Train/a/1.mp4")
    with pytest.raises(ConfigError, match="Train and train are both named like the train split"):
        listing("folder", "train", tmp_path)


def test_folders_beside_those_of_the_splits_are_told_or_refused(tmp_path: Path) -> None:
    touch(tmp_path / "one", "train/a/1.mp4", "raw/1.mp4")
    assert "raw" in listing("folder", "train", tmp_path / "one").remarks[0]
    touch(tmp_path / "two", "train/1.mp4", "bus/1.mp4", "car/1.mp4")  # a class of vehicles?
    with pytest.raises(ConfigError, match="train is named like a split and bus beside it like a class"):
        listing("folder", "train", tmp_path / "two")


def test_a_link_to_a_folder_above_is_not_followed_and_one_to_elsewhere_is(tmp_path: Path) -> None:
    touch(tmp_path, "set/train/a/1.mp4", "set/train/b/1.mp4", "set/test/b/2.mp4", "elsewhere/deep/3.mp4")
    for link, target in (("a/self", "set/train/a"), ("b/up", "set"), ("b/top", "."), ("b/more", "elsewhere")):
        (tmp_path / "set/train" / link).symlink_to(tmp_path / target)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "set/train")
    (tmp_path / "set/train/a/nothing").symlink_to("nothing")  # to itself
    assert found(listing("folder", "train", tmp_path / "set")) == [
        ("train/a/1.mp4", 0), ("train/b/1.mp4", 1), ("train/b/more/deep/3.mp4", 1),
    ]  # fmt: skip
    (tmp_path / "set/train").rename(tmp_path / "plain")
    (tmp_path / "plain/again").symlink_to(tmp_path / "plain")
    assert {video.path for video in listing("folder", "train", tmp_path / "plain").videos} >= {"a/1.mp4", "b/1.mp4"}
    assert len(listing("folder", "train", tmp_path / "plain").videos) == 4  # elsewhere, test of the set above
    assert listing("folder", "train", tmp_path / "plain").classes == ["a", "b"]


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    for name in (b"\xfcbung", b"left"):
        for i in range(9):
            touch(tmp_path, os.fsdecode(name + b"/%d.mp4" % i))
    train, test = both("folder", tmp_path, test_share=0.5)
    assert train.classes == test.classes == ["left", "\udcfcbung"]
    assert len(train.videos) + len(test.videos) == 18
    touch(tmp_path, os.fsdecode(b"caf\xe9.mp4"))
    assert listing("folder", "train", tmp_path).unlabelled == "caf\\xe9.mp4 is in no class folder"


@pytest.mark.parametrize("layout", ["train/a/{}.mp4", "a/{}.mp4"])
def test_videos_in_class_folders_are_listed_without_a_stat_call_each(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *(layout.format(i) for i in range(200)))
    calls, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: (calls.append(path), stat(path, **more))[1])
    assert len(listing("folder", "train", tmp_path).videos) == 200
    assert len(calls) < 40


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "train/a/1.mp4", "train/secret/1.mp4")
    scan = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"train/secret cannot be read \(Permission denied\)"):
        listing("folder", "train", tmp_path)


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_empty_root_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^dataset.root: empty"):
        SOURCES.build({"name": name, "root": "", **DEFAULTS[name]}, "train")


def test_other_empty_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^dataset.annotations: empty"):
        listing("ucf101", "train", tmp_path, annotations="")
    with pytest.raises(ConfigError, match=r"^dataset.test_list: empty"):
        listing("list", "test", tmp_path, test_list="")


# -- lines that are not as they should be


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("a.mp4,0", "b.mp4,1"), r":1: found 'a.mp4,0', allowed .* without commas"),
        (("a.mp4 0", "a b.mp4,1"), r":2: found 'a b.mp4,1', allowed 1 numbers"),
        (("a.mp4 20 0 1", "b.mp4 20 1 0"), r":1: found 'a.mp4 20 0 1', allowed 'path num_frames label'"),
        (("a.mp4 0,1", "b.mp4 1,0"), r":1: found 'a.mp4 0,1', allowed"),
        (("a.mp4 walk", "b.mp4 run"), r":1: found 'a.mp4 walk', allowed .* labels as numbers"),
        (('"a.mp4" 0', '"b.mp4" 1'), r"without commas and quotes"),
        (("a.mp4 20 0", "b.mp4 20", "c.mp4 20 1"), r":2: found 'b.mp4 20', allowed 2 numbers"),
        (("path label", "a.mp4 0", "b.mp4 1"), r":1: found 'path label', allowed 1 numbers .* others none"),
        (("a.mp4 0", "b.mp4 -1"), r":2: found 'b.mp4 -1', allowed a label from 0 to 9999"),
        (("a.mp4 0", "b.mp4 99999999999"), r":2: found 'b.mp4 99999999999', allowed a label"),
        (("a.mp4 0", "b.mp4 1.5"), r":2: found 'b.mp4 1.5', allowed"),
        (("a.mp4 0", "./a.mp4 1"), r":2: a.mp4 has label 1, but 0 in .*:1; a video has one label"),
        (("", " "), "lists no videos"),
        (("a.mp4 0", "x" * 5000 + " 1"), r"1 of 2 listed videos are not under"),
    ],
)
def test_lines_of_a_list_that_have_another_form_are_named(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "a b.mp4")
    write(tmp_path / "t.txt", *lines)
    with pytest.raises(ConfigError, match=message):
        listing("list", "train", tmp_path, train_list="t.txt")


def test_numbers_of_table_programs_and_repeated_lines_are_understood(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path / "t.txt", "a.mp4 20.0 0.0", "b.mp4 20.0 2.0", "./a.mp4 20.0 0.0")
    files = listing("list", "train", tmp_path, train_list="t.txt")
    assert found(files) == [("a.mp4", 0), ("b.mp4", 2)]
    assert any("1 lines of" in remark and "repeat others" in remark for remark in files.remarks)
    assert any("1 of 3 classes have no video" in remark for remark in files.remarks)


def test_a_video_of_both_splits_is_told_and_with_two_labels_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path / "train.txt", "a.mp4 0", "b.mp4 1")
    write(tmp_path / "test.txt", "a.mp4 0")
    names = {"train_list": "train.txt", "test_list": "test.txt"}
    assert "1 videos are in the lists of both splits" in listing("list", "test", tmp_path, **names).remarks
    write(tmp_path / "test.txt", "a.mp4 1")
    with pytest.raises(ConfigError, match=r"test.txt:1: a.mp4 has label 1, but 0 in .*train.txt:1"):
        listing("list", "train", tmp_path, **names)


@pytest.mark.parametrize("times", [("5.0", "15.0"), ("5.", "15"), (" 5 ", "015")])
def test_kinetics_times_may_be_written_with_a_decimal_point(times: tuple[str, str], tmp_path: Path) -> None:
    touch(tmp_path, "train/zumba/abc_000005_000015.mp4")
    for delimiter in (",", ";", "\t"):
        header, row = ("label", "youtube_id", "time_start", "time_end"), ("zumba", "abc", *times)
        write(tmp_path / "train.csv", delimiter.join(header), delimiter.join(row))
        assert found(listing("kinetics400", "train", tmp_path)) == [("train/zumba/abc_000005_000015.mp4", 0)]


@pytest.mark.parametrize(
    ("row", "allowed"),
    [
        ("zumba,abc,5.5,15", "times in whole seconds"),
        ("zumba,abc,-5,15", "times in whole seconds"),
        ("zumba,abc,nan,15", "times in whole seconds"),
        ("zumba,abc,5", "4 columns, as in line 1"),
        ("zumba,dancing,abc,5,15", "4 columns, as in line 1"),
        (",abc,5,15", "a label, a youtube_id"),
        ('"zumba,abc,5,15', "quotes in pairs"),
        ("label,youtube_id,time_start,time_end", "times in whole seconds"),
    ],
)
def test_lines_of_kinetics_csv_that_have_another_form_are_named(row: str, allowed: str, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "label,youtube_id,time_start,time_end", "zumba,def,1,11", row, "zumba,ghi,1,11")
    with pytest.raises(ConfigError, match=rf"train.csv:3: found .*, allowed .*{allowed}.*; correct the line"):
        listing("kinetics400", "train", tmp_path)


@pytest.mark.parametrize("line", ["April_09", "a.avi 3", "a.avi one", "1", "talk.avi\t2"])
def test_lines_of_hmdb51_that_have_another_form_are_named(line: str, tmp_path: Path) -> None:
    write(tmp_path / "talk_test_split1.txt", "talk.avi 1 ", line)
    with pytest.raises(ConfigError, match=r"talk_test_split1.txt:2: found .*, allowed"):
        listing("hmdb51", "train", tmp_path)


@pytest.mark.parametrize(
    "line", ["v_YoYo_g09_c01.avi 3", "YoYo/", "Yoyoyo/v_YoYo_g09_c01.avi 3", "YoYo/v_YoYo_g09_c01.avi 2"]
)
def test_lines_of_ucf101_that_contradict_are_named(line: str, tmp_path: Path) -> None:
    ucf_lists(tmp_path)
    write(
        tmp_path / "trainlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", "YoYo/v_YoYo_g08_c01.avi 3", line
    )
    with pytest.raises(ConfigError, match=r"trainlist01.txt:3: found .*, allowed"):
        listing("ucf101", "test", tmp_path)


@pytest.mark.parametrize("label", ["48", "-1", "true", "null", "[1]", "1e400", "NaN", '"seven"', "1" * 5000])
def test_entries_of_diving48_that_have_another_form_are_named(label: str, tmp_path: Path) -> None:
    (tmp_path / "Diving48_V2_train.json").write_text(
        f'[{{"vid_name": "a", "label": 1}}, {{"vid_name": "b", "label": {label}}}]'
    )
    with pytest.raises(ConfigError, match=r"not a list of objects with vid_name and label.*(entry 2|digits)"):
        listing("diving48", "train", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_texts_in_another_encoding_are_refused(encoding: str, tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "t.txt").write_bytes("a.mp4 0\n".encode(encoding))
    with pytest.raises(ConfigError, match=r"t.txt: not a UTF-8 text .*; save it as UTF-8"):
        listing("list", "train", tmp_path, train_list="t.txt")


@pytest.mark.parametrize("name", ["img_00001.jpg", "7.PNG", "cover.jpeg"])
def test_folders_of_images_are_called_so_and_the_command_makes_videos_of_them(name: str, tmp_path: Path) -> None:
    touch(tmp_path, *(f"raw frames/{c}/v/{name}" for c in "ab"))
    write(tmp_path / "t.txt", "raw frames/a/v 20 0", "raw frames/b/v 20 1")
    with pytest.raises(ConfigError, match="raw frames/a/v is a folder of images; make a video of each") as refusal:
        listing("list", "train", tmp_path, train_list="t.txt")
    command = re.search(r"for d in .*; done", str(refusal.value))[0]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ffmpeg").write_text(
        '#!/bin/sh\nfor last; do :; done\necho "$@" >"$last"\n'
    )  # stands in for ffmpeg
    (tmp_path / "bin/ffmpeg").chmod(0o755)
    search = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, env=search)
    pattern = {"img_00001.jpg": "img_%05d.jpg", "7.PNG": "%01d.PNG", "cover.jpeg": "*.jpeg"}[name]
    assert f"-i raw frames/a/v/{pattern} -c copy" in (tmp_path / "raw frames/a/v.avi").read_text()
    assert (tmp_path / "raw frames/b/v.avi").exists()
    write(tmp_path / "ucf/trainlist01.txt", "A/v_A_g08_c01.avi 1")
    write(tmp_path / "ucf/testlist01.txt", "A/v_A_g01_c01.avi")
    touch(tmp_path, f"ucf/UCF-101/A/v_A_g08_c01/{name}")
    with pytest.raises(ConfigError, match="UCF-101/A/v_A_g08_c01 is a folder of images"):
        listing("ucf101", "train", tmp_path / "ucf")
    with pytest.raises(ConfigError, match="is a folder of images"):
        listing("folder", "train", tmp_path / "ucf")
