from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import make_streams, make_video
from vidssl.data import manifest
from vidssl.data.manifest import INDEX_NAME, Listing, Video, index_file, read_manifest, scan, summary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_video(tmp_path / "long.mp4", 40)
    make_video(tmp_path / "short.mp4", 6)
    make_video(tmp_path / "turned.mp4", 40, rotation=90)
    make_video(tmp_path / "uneven.mp4", 40, times=[i + i // 5 * 3 for i in range(40)])
    whole = make_video(tmp_path / "cut.mp4", 90, muxer={"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(0.6 * len(whole))])
    (tmp_path / "text.mp4").write_text("not a video")
    return tmp_path


NAMES = ("long", "short", "turned", "uneven", "cut", "text")


def listing(root: Path) -> Listing:
    return Listing(root, [Video(f"{name}.mp4", i) for i, name in enumerate(NAMES)], NAMES)


def test_flaws_are_named_and_only_those_asked_for_are_left_out(folder: Path) -> None:
    found = read_manifest(listing(folder), window=16, drop=())
    assert [video.path for video in found.videos] == [f"{name}.mp4" for name in NAMES[:-1]], "the unreadable one goes"
    told = {flaw: [line.split(":")[0] for line in lines] for flaw, lines in found.flaws.items()}
    assert told == {
        "unreadable": ["text.mp4"],
        "damaged": ["cut.mp4"],
        "short": ["short.mp4"],
        "variable_rate": ["uneven.mp4"],
        "rotated": ["turned.mp4"],
    }
    fewer = read_manifest(listing(folder), window=16, drop=("damaged", "short", "rotated", "variable_rate"))
    assert [video.path for video in fewer.videos] == ["long.mp4"]
    lines = summary(listing(folder), fewer, 1)
    assert lines[0].startswith("1 of 6 videos")
    assert any("text.mp4: cannot be opened" in line for line in lines)


def test_a_second_scan_opens_nothing_and_changed_files_are_scanned_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan(listing(folder))
    opened = []
    probe = manifest.probe
    monkeypatch.setattr(manifest, "probe", lambda path: opened.append(path.name) or probe(path))
    assert scan(listing(folder)) == first
    assert opened == []
    os.utime(folder / "long.mp4", ns=(1, 1))
    scan(listing(folder))
    assert opened == ["long.mp4"]


def test_an_older_index_holds_but_for_videos_that_it_would_leave_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_streams(folder / "film.mkv", ("mjpeg", (24, 32), 1), ("libx264", (96, 128), 40))
    videos = Listing(folder, [Video(name) for name in ("long.mp4", "short.mp4", "text.mp4", "film.mkv")])
    rows = scan(videos)
    rows["film.mkv"]["video"] = {"frames": 1, "numbering": "pts", "codec": "mjpeg"}  # its preview
    file = folder / INDEX_NAME
    file.write_text("".join(json.dumps(row | {"format": 1}) + "\n" for row in rows.values()))
    opened, probe = [], manifest.probe
    monkeypatch.setattr(manifest, "probe", lambda path: opened.append(path.name) or probe(path))
    found = read_manifest(videos, window=16, drop=("short",))
    assert [video.path for video in found.videos] == ["long.mp4", "film.mkv"]
    assert found.index(1).frames == 40
    assert sorted(opened) == ["film.mkv", "short.mp4", "text.mp4"]
    opened.clear()
    read_manifest(videos, window=16, drop=("short",))
    assert opened == [], "once"


def test_an_interrupted_scan_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, opened = manifest.probe, []

    def until_killed(path: Path):
        opened.append(path.name)
        if len(opened) == 4:
            raise KeyboardInterrupt
        return probe(path)

    monkeypatch.setattr(manifest, "probe", until_killed)
    with pytest.raises(KeyboardInterrupt):
        scan(listing(folder))
    with (folder / INDEX_NAME).open("ab") as file:
        file.write(b'{"format":1,"path":"uneven.mp4","sta')  # a line that the kill cut off
    done = opened[:3]
    opened.clear()
    monkeypatch.setattr(manifest, "probe", lambda path: opened.append(path.name) or probe(path))
    rows = scan(listing(folder))
    assert set(rows) == {f"{name}.mp4" for name in NAMES}
    assert not set(opened) & set(done)
    assert all(json.loads(line) for line in (folder / INDEX_NAME).read_text().splitlines())


def test_a_folder_that_cannot_be_written_has_its_index_elsewhere(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere, so ask nobody
    file = index_file(folder)
    assert file.parent == cache / "vidssl"
    scan(listing(folder))
    assert file.exists()
    assert not (folder / INDEX_NAME).exists()
    assert index_file(folder, str(tmp_path_factory.mktemp("other"))).parent != file.parent


def test_scanning_in_processes_finds_the_same(folder: Path, tmp_path: Path) -> None:
    many = Listing(folder, [Video(f"{name}.mp4") for name in NAMES * 2] + [Video(f"copy{i}.mp4") for i in range(6)])
    for i in range(6):
        (folder / f"copy{i}.mp4").write_bytes((folder / "long.mp4").read_bytes())
    assert scan(many, cache=str(tmp_path / "one")) == scan(many, cache=str(tmp_path / "two"), processes=2)
