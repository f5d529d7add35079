"""Each data set in the layouts in which people have it; empty files do, no source opens a video."""

from __future__ import annotations

import json
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
