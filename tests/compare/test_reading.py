"""Part data: like is compared with like, and loaders that deliver other frames are found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.video.frame import PictureType

from tests.compare import apart, loaders, record
from tests.compare import reading as data
from tests.compare.__main__ import main
from tests.compare.apart import Apart
from tests.compare.material import DEFAULT, Material, pack
from tests.compare.timing import Row
from tests.conftest import make_streams, make_video, read_json
from vidssl.data.video import probe

CLIP = (4, 2, 32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("bench") / "a.mp4", 60, g="20")


def jobs_of(path: Path, count: int = 2) -> tuple[data.ClipDataset, list[loaders.Job]]:
    dataset = data.dataset_of([path], CLIP, 0)
    return dataset, data.jobs_of(dataset, count, loaders.scan_by_decoding(path))


def test_packed_material_is_packed(tmp_path: Path) -> None:
    path = Material("p.avi", "mpeg4", 96, 64, 25, 300, 2, packed=True).render(tmp_path)
    assert "x" in probe(path).kinds
    assert data.kind_of(probe(path)) == "MPEG-4 packed"
    assert [file.name for file in tmp_path.iterdir()] == ["p.avi"]


@pytest.mark.parametrize(("codec", "b_frames"), [("mpeg4", 0), ("libx264", 0), ("libx264", 3)])
def test_material_is_what_was_asked_for(codec: str, b_frames: int, tmp_path: Path) -> None:
    material = Material(f"{codec}{b_frames}.mp4", codec, 96, 64, 25, 10, b_frames)
    path = material.render(tmp_path)
    index = probe(path)
    assert (index.width, index.height, index.frames) == (96, 64, 25)
    assert index.codec == {"mpeg4": "mpeg4", "libx264": "h264"}[codec]
    assert index.keys == (0, 10, 20)
    with av.open(str(path)) as container:
        kinds = {frame.pict_type for frame in container.decode(video=0)}
    assert (PictureType.B in kinds) == (b_frames > 0)
    stamp = path.stat().st_mtime_ns
    assert material.render(tmp_path).stat().st_mtime_ns == stamp, "rendered once"
    assert path.read_bytes() == Material("b.mp4", *material[1:]).render(tmp_path).read_bytes()


def test_the_kind_of_a_file_is_read_from_the_file(path: Path, tmp_path: Path) -> None:
    assert data.kind_of(probe(path)) == "H.264, GOP 12"
    plain = make_video(tmp_path / "b.avi", 61, codec="mpeg4", bf="2", g="300")
    assert data.kind_of(probe(plain)) == "MPEG-4 with B, GOP 60"
    assert data.kind_of(probe(pack(plain, tmp_path / "packed.avi"))) == "MPEG-4 packed"
    assert data.kind_of(probe(make_video(tmp_path / "c.avi", 40, codec="mpeg4", g="40"))) == "MPEG-4 without B, GOP 60"
    assert len({each.name for each in DEFAULT}) == len(DEFAULT)


def test_files_come_by_name_from_folders_and_are_rendered_if_none_are_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "edcba":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "notes.txt").touch()
    found = data.files([str(path), str(tmp_path)], tmp_path, print)
    assert [each.stem for each in found] == ["a", "a", "b", "c", "e"]
    monkeypatch.setattr(data, "DEFAULT", (Material("x.mp4", "libx264", 64, 48, 3, 2, 0),))
    said: list[str] = []
    assert [each.name for each in data.files(None, tmp_path / "new", said.append)] == ["x.mp4"]
    assert "render" in said[0]


@pytest.mark.parametrize("read", [loaders.official, loaders.whole_file, loaders.seeking])
def test_loaders_deliver_the_pictures_asked_for(read: Callable, path: Path) -> None:
    dataset, jobs = jobs_of(path, 4)
    right = data.thumbnails(path)
    assert data.verdict(read, jobs, right) == ""
    clips = loaders.Loader(read, loaders.crop_bytes).clips(jobs[1])
    assert torch.equal(clips, dataset.read(0, data.item_generator(0, 1, 0))[0]), "the same clips as ours"
    floats = loaders.Loader(read, loaders.crop_floats).clips(jobs[1]) * 255
    assert (floats - clips.float()).abs().mean() < 8, "but for antialiasing"


def test_a_loader_with_other_frames_is_caught(path: Path, tmp_path: Path) -> None:
    _, jobs = jobs_of(path)

    def late(job: loaders.Job) -> loaders.Frames:
        return loaders.whole_file(job._replace(numbers=np.minimum(job.numbers + 1, 59)))

    assert data.verdict(late, jobs, data.thumbnails(path)).startswith("16 of 16, such as ")
    packed = pack(make_video(tmp_path / "b.avi", 61, codec="mpeg4", bf="2", g="300"), tmp_path / "packed.avi")
    dataset, jobs = jobs_of(packed, 3)
    said: list[str] = []
    found = data.sound_loaders(dataset, jobs, said.append)
    assert "wrong frames" in found["official style"][1], "it sorts by presentation time"
    assert found["whole file"][1] == ""
    assert any("official style delivers wrong frames" in line for line in said)


def test_ours_must_be_exact(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, jobs = jobs_of(path)
    windows_swapped = lambda job, **how: loaders.whole_file(job._replace(numbers=job.numbers[::-1]), **how)  # noqa: E731
    monkeypatch.setattr(data, "whole_file", windows_swapped)
    with pytest.raises(ValueError, match="differ from those of a plain decode loop"):
        data.sound_loaders(dataset, jobs, print)


def test_pure_decoding_decodes_from_key_frame_to_last_picture_once(path: Path) -> None:
    _, (job, _) = jobs_of(path)
    for numbers, least, most in (([[0, 2]], 3, 3), ([[25, 27]], 8, 8), ([[5, 7], [50, 52]], 21, 21), ([[59]], 20, 20)):
        decoded = loaders.decode_all(job._replace(numbers=np.array(numbers)))
        assert least <= decoded <= most, numbers


def test_candidates_apart_tell_their_own_time_and_their_errors() -> None:
    with Apart() as apart:
        busy = apart.start(_busy, 200_000)
        busy()
        once = apart.clock()
        busy()
        assert 0 < once < apart.clock() < 30
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            apart.start(_busy, 0)()


def _busy(count: int) -> Callable[[], object]:
    return lambda: sum(range(count)) // count


def test_the_record_holds_rows_and_where_they_were_measured(tmp_path: Path) -> None:
    rows = [
        Row("data", "read a.mp4", "official style", 4.0, 3.9, 4.05, 5.0, 0.01, "", {"open_seconds": 0.1}),
        Row("data", "read a.mp4", "torchcodec", 2.0, 1.5, 2.5, 1.4, 0.01, "wrong frames: 3 of 4"),
        Row("step", "step", "fp32", 3.0, 3.0, 3.0),
    ]
    record.write(tmp_path / "compare.json", rows, {"rounds": 5}, {"decord": "not installed"})
    content = read_json(tmp_path / "compare.json")
    assert content["schema"] == record.SCHEMA
    assert content["machine"]["cores"] >= 1
    assert {"torch", "av", "ffmpeg"} <= content["versions"].keys()
    assert content["left_out"] == {"decord": "not installed"}
    assert [row["met"] for row in content["rows"]] == [False, True, True]
    assert record.read(tmp_path / "compare.json") == [row._replace(figures=dict(row.figures)) for row in rows]
    (tmp_path / "old.json").write_text(json.dumps(content | {"schema": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        record.read(tmp_path / "old.json")
    told = record.table(rows).splitlines()
    assert "NOT MET" in told[1]
    assert "spread" not in told[1]
    assert "wrong frames: 3 of 4" in told[2]
    assert "spread 50%" in told[2]


class Together(Apart):
    """Candidates in this process, to save its start."""

    def start(self, make: Callable, *arguments: object, keeps_memory: bool = False) -> Callable:
        candidate = make(*arguments)

        def call() -> None:
            candidate()
            self.spent += 1.0

        return call


def test_a_file_has_a_row_for_each_loader_and_our_stages(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "Apart", Together)
    monkeypatch.setattr(apart, "Apart", Together)
    rows = data.file_rows(data.dataset_of([path], CLIP, 0), 1, 2, tmp_path, print)
    assert {"official style", "pure decoding", "whole file", "seek for each clip"} <= {row.baseline for row in rows}
    assert {row.ratio for row in rows} == {1.0}
    assert {row.what for row in rows} >= {"read a.mp4 (H.264, GOP 12)", "index a.mp4", "crop, resize, flip a.mp4"}
    copies = {f"read a.mp4 (H.264, GOP 12) from a copy, {form}" for form in ("mjpeg-128", "raw-128")}
    assert copies <= {row.what for row in rows}
    assert rows[0].figures.keys() >= {f"{stage}_seconds" for stage in data.STAGES}
    assert all(row.least is None for row in rows if row.what != "index a.mp4"), "told for clips of another size"


def test_what_is_promised_depends_on_the_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "Apart", Together)
    monkeypatch.setattr(apart, "Apart", Together)
    path = make_video(tmp_path / "b.avi", 50, codec="mpeg4", g="50")
    rows = data.file_rows(data.dataset_of([path], (16, 2, 112), 0), 1, 1, tmp_path, print)
    least = {row.baseline: row.least for row in rows if row.what == "read b.avi (MPEG-4 without B, GOP 60)"}
    assert least["official style"] == 4.5
    assert least["whole file"] is None


@pytest.mark.slow
def test_the_part_runs_on_a_file(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["data", "backbone.width=4", "--files", str(path), "--json", str(tmp_path / "compare.json")]
    words += ["--rounds=1", "--clip-pairs=1", "--clip-frames=4", "--crop-size=32", f"--material={tmp_path}"]
    assert main(words) == 0
    rows = record.read(tmp_path / "compare.json")
    found = {(row.what, row.baseline): row for row in rows}
    reading = found["read a.mp4 (H.264, GOP 12)", "official style"]
    assert {f"{stage}_seconds" for stage in data.STAGES} <= reading.figures.keys()
    assert 1 <= reading.figures["decoded_per_used_frame"] < 60
    assert ("read a.mp4 (H.264, GOP 12)", "pure decoding") in found
    assert found["index a.mp4", "official style"].least == data.LEAST_OF_SCAN
    assert "index a.mp4" in capsys.readouterr().out


def test_a_competitor_that_cannot_be_loaded_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "decord.py").write_text("raise OSError('libavformat.so.58: cannot open shared object file\\nmore')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "decord", raising=False)
    reason = "installed, but cannot be loaded: OSError: libavformat.so.58: cannot open shared object file"
    found, left_out = loaders.available()
    assert "decord" not in found
    assert left_out["decord"] == reason
    assert {"official style", "whole file", "seek for each clip"} <= found.keys()
    monkeypatch.setattr(data, "measure", lambda run, options: [])
    assert main(["data", "--json", str(tmp_path / "compare.json")]) == 0
    assert f"left out: decord, {reason}" in capsys.readouterr().out
    assert read_json(tmp_path / "compare.json")["left_out"]["decord"] == reason


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data", "--files", "nowhere.mp4"], "--files nowhere.mp4: no such file or folder"),
        (["dat"], "dat: no such part; allowed: data, aug, step, methods"),
        (["step", "method=mocoo"], "Did you mean moco?"),
        (["step", "method.contrast.queue=-1"], "method.contrast.queue=-1: must lie in [0, inf)"),
        (["step", "--backbones", "i4d"], "--backbones=i4d: no such value. Did you mean i3d?"),
        (["step", "--backbones", "tiny"], "--backbones tiny: has options; give backbone=tiny"),
        (["step", "--backbones", "s3dg", "--crop-size=8"], "--backbones s3dg: cannot take clips of --clip-frames 16"),
    ],
)
def test_wrong_words_are_told_before_work(words: list[str], problem: str, capsys: pytest.CaptureFixture) -> None:
    assert main(words) == 2
    assert problem in capsys.readouterr().err


def test_a_file_that_cannot_be_compared_is_left_out(tmp_path: Path) -> None:
    short = make_video(tmp_path / "short.mp4", 5)
    several = make_streams(tmp_path / "several.mkv", ("mjpeg", (24, 32), 1), ("libx264", (48, 64), 24))
    said: list[str] = []
    options = SimpleNamespace(
        clip_frames=4, frame_stride=2, crop_size=32, files=[str(short), str(several)], material=str(tmp_path),
        clip_pairs=1, rounds=1,
    )  # fmt: skip
    assert data.measure(SimpleNamespace(log=SimpleNamespace(say=said.append), seed=0), options) == []
    assert "5 frames, a clip spans 8" in said[0]
    assert "several video streams" in said[1]


def test_colors_of_ten_bit_video_are_no_difference(tmp_path: Path) -> None:
    dataset, jobs = jobs_of(make_video(tmp_path / "a.mp4", 60, pixels="yuv420p10le", g="20"))
    assert data.sound_loaders(dataset, jobs, print)["whole file"][1] == ""
