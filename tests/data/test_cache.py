"""Small copies in place of the videos: the same pictures under the same numbers, made once, made again if needed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import PRETRAIN, launch, make_streams, make_video, read_json
from vidssl.clips import ClipPlan, View
from vidssl.data import cache
from vidssl.data.cache import Form, with_copies
from vidssl.data.dataset import ClipDataset
from vidssl.data.manifest import Listing, Manifest, Video, read_manifest
from vidssl.data.spatial import RandomResized
from vidssl.data.video import VideoError, decode, filter_graph, probe, read_frames

FORMS = (Form("mjpeg", 48), Form("raw", 48), Form("fastdecode", 48))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_video(tmp_path / "videos/a/0.mp4", 40, g="30")
    make_video(tmp_path / "videos/a/0.avi", 33, codec="mpeg4", g="12", size=(120, 90))
    make_video(tmp_path / "videos/turned.mp4", 25, rotation=90)
    return tmp_path / "videos"


def scanned(root: Path, *names: str) -> Manifest:
    names = names or ("a/0.mp4", "a/0.avi", "turned.mp4")
    return read_manifest(Listing(root, [Video(name) for name in names]), window=8, drop=())


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((left.astype(float) - right) ** 2))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_copies_hold_the_originals_pictures_under_their_numbers(form: Form, folder: Path, tmp_path: Path) -> None:
    originals = scanned(folder)
    copies = with_copies(originals, form, tmp_path / "copies")
    assert copies.videos == originals.videos
    for number in range(len(originals)):
        index, other = originals.index(number), copies.index(number)
        assert copies.path(number) != originals.path(number)
        assert (other.frames, other.rotation, other.fps) == (index.frames, index.rotation, index.fps)
        assert min(other.width, other.height) == 48
        assert other.width / other.height == pytest.approx(index.width / index.height, rel=0.02)
        found = read_frames(copies.path(number), range(other.frames), other)
        right = torch.from_numpy(read_frames(originals.path(number), range(index.frames), index)).permute(0, 3, 1, 2)
        small = F.interpolate(right, found.shape[1:3], mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
        assert psnr(found, small) > 27, originals.videos[number]
        for time in range(2, index.frames - 2, 7):
            near = [psnr(found[time], small[other]) for other in range(time - 2, time + 3)]
            assert np.argmax(near) == 2, "the wanted picture, not one beside it"


def test_interlaced_frames_are_scaled_whole_as_ffmpeg_does(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 8, g="4", **{"x264-params": "tff=1"})
    originals = scanned(tmp_path, "a.mp4")
    copies = with_copies(originals, Form("raw", 48), tmp_path / "copies")
    frame, copied = (dict(decode(m.path(0), [5], m.index(0)))[5] for m in (originals, copies))
    assert frame.interlaced_frame
    graph = filter_graph(frame, ("scale", "64:48:flags=area"), ("format", "yuv420p"))
    graph.push(frame)
    np.testing.assert_array_equal(copied.to_ndarray(), graph.pull().to_ndarray())


def test_a_copy_of_another_stream_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form, root, make, made = Form("raw", 48), tmp_path / "videos", cache._make, []
    monkeypatch.setattr(cache, "_make", lambda job: made.append(job.row) or make(job))
    make_streams(root / "film.mkv", ("libx264", (48, 64), 24), ("libx264", (96, 128), 24))
    first = probe(make_streams(tmp_path / "first.mkv", ("libx264", (48, 64), 24)))
    earlier = json.dumps(first.to_row()).encode()  # as an earlier version scanned the file
    with_copies(Manifest(root, [Video("film.mkv")], (), [earlier]), form, tmp_path / "copies")
    for _ in range(2):
        with_copies(scanned(root, "film.mkv"), form, tmp_path / "copies")
    assert [row.get("stream") for row in made] == [None, 1], "once more, and only once"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_any_picture_of_a_copy_is_reached_as_in_a_plain_decode_loop(form: Form, folder: Path, tmp_path: Path) -> None:
    copies = with_copies(scanned(folder, "a/0.mp4"), form, tmp_path / "copies")
    path, index = copies.path(0), copies.index(0)
    assert index.numbering == "pts"
    assert index.even, "an index of two numbers, whatever the length"
    whole = read_frames(path, range(40), index)
    for wanted in ([39], [0], [13, 14, 30], [5, 25]):
        found = {number: frame.to_ndarray(format="rgb24") for number, frame in decode(path, wanted, index)}
        for number in wanted:
            np.testing.assert_array_equal(found[number], whole[number])


def test_crops_take_the_same_shares_of_a_copy(folder: Path, tmp_path: Path) -> None:
    originals = scanned(folder)
    copies = with_copies(originals, Form("mjpeg", 64), tmp_path / "copies")
    crop = RandomResized(area=(0.3, 1.0), ratio=(0.75, 4 / 3), flip=0.5, antialias=True)
    plan = ClipPlan(2, (View(0), View(1)))
    left, right = (ClipDataset(each, plan, crop, 4, 2, 32, 0) for each in (originals, copies))
    for number in range(3):
        for epoch in range(4):
            item, other = left[epoch, number], right[epoch, number]
            torch.testing.assert_close(item.boxes, other.boxes, atol=0.04, rtol=0)
            assert (item.clips.float() - other.clips.float()).abs().mean() < 12


def test_sizes_are_even_and_small_videos_keep_theirs() -> None:
    form = Form("mjpeg", 160)
    assert form.size(340, 256) == (212, 160)
    assert form.size(256, 340) == (160, 212)
    assert form.size(171, 127) == (172, 128) or form.size(171, 127) == (170, 126)
    assert form.size(64, 64) == (64, 64)


def test_copies_are_made_once_and_again_when_an_original_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    plain = cache._encode
    monkeypatch.setattr(cache, "_encode", lambda source, *rest: made.append(source.name) or plain(source, *rest))
    with_copies(scanned(folder), FORMS[0], tmp_path / "copies")
    assert len(made) == 3
    with_copies(scanned(folder), FORMS[0], tmp_path / "copies")
    assert len(made) == 3
    make_video(folder / "a/0.mp4", 44)
    os.utime(folder / "a/0.mp4", ns=(1, 1))
    copies = with_copies(scanned(folder), FORMS[0], tmp_path / "copies")
    assert made[3:] == ["0.mp4"]
    assert copies.index(0).frames == 44
    copies.path(1).write_bytes(b"lost")
    with_copies(scanned(folder), FORMS[0], tmp_path / "copies")
    assert made[4:] == ["0.avi"]


def test_interrupted_copying_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    plain = cache._encode

    def until_killed(source: Path, *rest: object) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        plain(source, *rest)
        made.append(source.name)

    monkeypatch.setattr(cache, "_encode", until_killed)
    with pytest.raises(KeyboardInterrupt):
        with_copies(scanned(folder), FORMS[1], tmp_path / "copies")
    rows = tmp_path / "copies" / cache.ROWS
    rows.write_bytes(rows.read_bytes() + b'{"path": "turned')  # killed within a line
    again: list[str] = []
    monkeypatch.setattr(cache, "_encode", lambda source, *rest: again.append(source.name) or plain(source, *rest))
    copies = with_copies(scanned(folder), FORMS[1], tmp_path / "copies")
    assert again == ["turned.mp4"]
    assert all(copies.path(number).is_file() for number in range(3))


def test_where_no_sound_copy_can_be_made_the_original_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cache.decode

    def without_the_last(path: Path, wanted: range, index: object) -> object:
        return plain(path, list(wanted)[:-1], index)

    monkeypatch.setattr(cache, "decode", without_the_last)
    originals = scanned(folder, "a/0.mp4")
    copies = with_copies(originals, FORMS[0], tmp_path / "copies")
    assert copies.path(0) == originals.path(0)
    assert copies.index(0) == originals.index(0)
    (problem,) = cache.problems(originals, tmp_path / "copies")
    assert problem == "a/0.mp4: the copy has 39 pictures of 40 "
    assert [path.name for path in (tmp_path / "copies").rglob("*") if path.is_file()] == [cache.ROWS], (
        "nothing half made"
    )

    def broken(*_: object) -> object:
        raise VideoError(f"{folder / 'a/0.mp4'}: decoding fails after 3 pictures")

    monkeypatch.setattr(cache, "decode", broken)
    make_video(folder / "a/0.mp4", 30)
    originals = scanned(folder, "a/0.mp4")
    with_copies(originals, FORMS[0], tmp_path / "copies")
    assert cache.problems(originals, tmp_path / "copies") == ["a/0.mp4: decoding fails after 3 pictures"]


def test_copies_are_kept_beside_the_index_or_where_told(folder: Path, tmp_path: Path) -> None:
    form = FORMS[0]
    assert cache.folder_of(folder, form, None, None) == folder / ".vidssl-cache" / "mjpeg-48"
    elsewhere = cache.folder_of(folder, form, str(tmp_path / "indices"), None)
    assert elsewhere.parent.parent == tmp_path / "indices"
    assert cache.folder_of(folder, form, None, str(tmp_path / "c")).is_relative_to(tmp_path / "c")
    absolute = cache._name(str(folder / "a/0.mp4"), form)
    assert "/" not in absolute
    assert cache._name("a/0.mp4", form) == "a/0.mp4.avi", "a/0.avi has another one"


@pytest.mark.slow
def test_making_in_processes_gives_the_same(folder: Path, tmp_path: Path) -> None:
    names = [f"{i}.mp4" for i in range(8)]
    for i, name in enumerate(names):
        make_video(folder / name, 10 + i, size=(48, 64))
    originals = scanned(folder, *names)
    one = with_copies(originals, FORMS[0], tmp_path / "one")
    two = with_copies(originals, FORMS[0], tmp_path / "two", processes=2)
    assert one.rows == two.rows
    assert all(one.path(i).read_bytes() == two.path(i).read_bytes() for i in range(8))


@pytest.mark.slow
def test_a_run_reads_copies_and_is_another_run(tmp_path: Path, small: list[str]) -> None:
    words = [*small, *PRETRAIN, "pretrain.epochs=1", f"data.cache_folder={tmp_path}/copies", "output=run"]
    answer = launch([*words, "task=[prepare,pretrain]", "data.cache=mjpeg", "data.cache_short=32"], tmp_path)
    assert answer.status == 0, answer.err
    (folder,) = (tmp_path / "copies").glob("*/mjpeg-32")
    assert f"copies: {folder}" in answer.out
    rows = [json.loads(line) for line in (folder / cache.ROWS).read_text().splitlines()]
    assert {row["video"]["width"] for row in rows} == {32}
    assert read_json(tmp_path / "run/result.json")["pretrain"]
    answer = launch([*words, "task=[prepare,pretrain]"], tmp_path)
    assert answer.status == 2
    assert "data.cache=None (there mjpeg)" in answer.err
    answer = launch([*words, "task=prepare", "data.cache=png", "data.cache_short=4"], tmp_path)
    assert answer.status == 2
    assert "data.cache=png" in answer.err
    assert "data.cache_short=4: must lie in [16, inf)" in answer.err


def test_real_videos_have_copies_of_all_their_pictures(videos: Path, tmp_path: Path) -> None:
    names = [
        "ucf_packed_b.avi", "ucf_like_g12.avi", "vfr.mp4", "rotated90.mp4", "odd_171x127_444.mp4",
        "odd_171x127_vp9.webm",
        "bframes_startpts.ts", "noframecount_live.mkv", "fragmented.mp4", "tenbit_h264.mp4",
    ]  # fmt: skip
    originals = read_manifest(
        Listing(videos, [Video(name) for name in names]), window=8, drop=(), cache=str(tmp_path / "index")
    )
    copies = with_copies(originals, Form("fastdecode", 64), tmp_path / "copies")
    assert not cache.problems(originals, tmp_path / "copies")
    for number, video in enumerate(originals.videos):
        index, other = originals.index(number), copies.index(number)
        wanted = [0, index.frames // 2, index.frames - 1]
        found = read_frames(copies.path(number), wanted, other)
        right = torch.from_numpy(read_frames(originals.path(number), wanted, index)).permute(0, 3, 1, 2)
        small = F.interpolate(right, found.shape[1:3], mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
        assert psnr(found, small) > 20, video  # fine colored patterns lose most, by 4:2:0
