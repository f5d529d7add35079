"""The bench of reading clips: it compares like with like, and finds those who deliver other pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.video.frame import PictureType

from tests.conftest import launch, make_video, read_json
from vidssl.bench import apart, data, loaders, record
from vidssl.bench.apart import Apart
from vidssl.bench.material import DEFAULT, Material, pack
from vidssl.bench.timing import Row
from vidssl.data.video import probe

CLIP = (4, 2, 32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("bench") / "a.mp4", 60, g="20")


def jobs_of(path: Path, count: int = 2) -> tuple[data.ClipDataset, list[loaders.Job]]:
    dataset = data.dataset_of([path], CLIP, 0)
    return dataset, data.jobs_of(dataset, count, data.scan_by_decoding(path))


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


def test_a_loader_with_other_pictures_is_caught(path: Path, tmp_path: Path) -> None:
    _, jobs = jobs_of(path)

    def late(job: loaders.Job) -> loaders.Pictures:
        return loaders.whole_file(job._replace(numbers=np.minimum(job.numbers + 1, 59)))

    assert data.verdict(late, jobs, data.thumbnails(path)).startswith("16 of 16, such as ")
    packed = pack(make_video(tmp_path / "b.avi", 61, codec="mpeg4", bf="2", g="300"), tmp_path / "packed.avi")
    dataset, jobs = jobs_of(packed, 3)
    said: list[str] = []
    found = data.sound_loaders(dataset, jobs, said.append)
    assert "wrong pictures" in found["official style"][1], "it sorts by presentation time"
    assert found["whole file"][1] == ""
    assert any("official style delivers wrong pictures" in line for line in said)


def test_ours_must_be_exact(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, jobs = jobs_of(path)
    monkeypatch.setattr(data, "whole_file", lambda job: loaders.whole_file(job._replace(numbers=job.numbers[::-1])))
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
        Row("data", "read a.mp4", "torchcodec", 2.0, 1.5, 2.5, 1.4, 0.01, "wrong pictures: 3 of 4"),
        Row("step", "step", "fp32", 3.0, 3.0, 3.0),
    ]
    record.write(tmp_path / "bench.json", rows, {"rounds": 5})
    content = read_json(tmp_path / "bench.json")
    assert content["schema"] == record.SCHEMA
    assert content["machine"]["cores"] >= 1
    assert {"torch", "av", "ffmpeg"} <= content["versions"].keys()
    assert len(content["config_hash"]) == 16
    assert [row["met"] for row in content["rows"]] == [False, True, True]
    assert record.read(tmp_path / "bench.json") == [row._replace(figures=dict(row.figures)) for row in rows]
    (tmp_path / "old.json").write_text(json.dumps(content | {"schema": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        record.read(tmp_path / "old.json")
    told = record.table(rows).splitlines()
    assert "NOT MET" in told[1]
    assert "spread" not in told[1]
    assert "wrong pictures: 3 of 4" in told[2]
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
def test_the_part_runs_on_a_file(path: Path, tmp_path: Path) -> None:
    words = ["task=bench", "bench.parts=[data]", f"bench.files=[{path}]", "bench.rounds=1", "bench.clip_pairs=1"]
    words += ["bench.clip_frames=4", "bench.crop_size=32", "data.workers=1", "output=run", "backbone.width=4"]
    answer = launch(words, tmp_path)
    assert answer.status == 0, answer.err
    rows = record.read(tmp_path / "run/bench.json")
    found = {(row.what, row.baseline): row for row in rows}
    reading = found["read a.mp4 (H.264, GOP 12)", "official style"]
    stages = {f"{stage}_seconds" for stage in data.STAGES}
    assert stages <= reading.figures.keys()
    assert 1 <= reading.figures["decoded_per_used_picture"] < 60
    assert ("read a.mp4 (H.264, GOP 12)", "pure decoding") in found
    assert found["index a.mp4", "official style"].least == data.LEAST_OF_SCAN
    assert data.copies_help(rows) > 0
    assert found["loader with 1 worker", "no worker"].figures["clips_per_second"] > 0
    assert "index a.mp4" in answer.out
    assert "data: index a.mp4 / official style" in read_json(tmp_path / "run/result.json")["bench"]


def test_a_file_that_is_not_there_is_refused_before_work(tmp_path: Path) -> None:
    answer = launch(["task=bench", "bench.files=[nowhere.mp4]", "output=run"], tmp_path)
    assert answer.status == 2
    assert "bench.files=nowhere.mp4: no such file or folder" in answer.err


def test_a_file_that_cannot_serve_is_left_out(tmp_path: Path) -> None:
    short = make_video(tmp_path / "short.mp4", 5)
    said: list[str] = []
    options = SimpleNamespace(
        clip_frames=4, frame_stride=2, crop_size=32, files=[str(short)], material=str(tmp_path), clip_pairs=1, rounds=1
    )
    run = SimpleNamespace(log=SimpleNamespace(say=said.append, is_main=True), seed=0, config={})
    assert data.measure(run, options) == []
    assert "left out" in said[0]
    assert "5 frames, a clip spans 8" in said[0]
