"""Any picture of any file, exactly: random access equals decoding everything from the start."""

from __future__ import annotations

import json
import random
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest
from av.stream import Disposition

from tests.compare.material import pack
from tests.conftest import make_streams, make_video, moving_picture
from vidssl.data import video
from vidssl.data.video import ToRGB, VideoError, VideoIndex, decode, probe, read_frames


def plainly(path: Path) -> list[np.ndarray]:
    """All pictures in decoder output order: the definition of their numbers."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def index_sets(frames: int, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    sets = [list(range(frames)), [0], [frames - 1]]
    for size in (1, 1, 2, 3, 5, 8, 16):
        sets.append(sorted(chance.sample(range(frames), min(size, frames))))
    for _ in range(6):
        start = chance.randrange(frames)
        sets.append(list(range(start, min(frames, start + 31), 2)))
    return sets


def assert_exact(path: Path) -> VideoIndex:
    index, expected = probe(path), plainly(path)
    assert index.frames == len(expected)
    for wanted in index_sets(index.frames, seed=len(expected)):
        found = dict(decode(path, wanted, index))
        assert sorted(found) == wanted
        for number, frame in found.items():
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), expected[number], err_msg=f"{number}")
    return index


# file, how its numbers are found, encoder, options
FORMATS = {
    "h264.mp4": ("pts", "libx264", {"g": "25"}),
    "h264_one_key.mp4": ("pts", "libx264", {"g": "250"}),
    "h264_open_gop.mp4": ("pts", "libx264", {"g": "25", "x264-params": "open-gop=1:bframes=3"}),
    "h264_open_gop.ts": ("pts", "libx264", {"g": "25", "x264-params": "open-gop=1:bframes=3"}),
    "h264_intra_refresh.mkv": ("pts", "libx264", {"g": "20", "x264-params": "intra-refresh=1:bframes=2"}),
    "h264_interlaced.mp4": ("count", "libx264", {"g": "25", "x264-params": "tff=1"}),
    "h264.avi": ("count", "libx264", {"g": "25", "bf": "3"}),
    "h264.flv": ("pts", "libx264", {"g": "25"}),
    "h264.264": ("count", "libx264", {"g": "25"}),
    "h264_444.mp4": ("pts", "libx264", {"pixels": "yuv444p", "size": (95, 127)}),
    "h264_10bit.mp4": ("pts", "libx264", {"pixels": "yuv420p10le"}),
    "hevc.mp4": ("pts", "libx265", {"x265-params": "open-gop=1:keyint=20:min-keyint=20:log-level=none"}),
    "vp8.webm": ("count", "libvpx", {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9_odd.webm": ("pts", "libvpx-vp9", {"g": "30", "cpu-used": "8", "size": (95, 127)}),
    "av1.mkv": ("pts", "libsvtav1", {"g": "30", "preset": "12"}),
    "mpeg2.ts": ("pts", "mpeg2video", {"bf": "2", "g": "15"}),
    "mpeg2.mpg": ("pts", "mpeg2video", {"bf": "2", "g": "15"}),
    "mpeg4_p.avi": ("vop", "mpeg4", {"g": "12"}),
    "mpeg4_b.avi": ("vop", "mpeg4", {"bf": "2", "g": "24"}),
    "mpeg4_b.mp4": ("vop", "mpeg4", {"bf": "2", "g": "24"}),
    "mjpeg.avi": ("pts", "mjpeg", {"pixels": "yuvj420p"}),
    "wmv2.wmv": ("count", "wmv2", {"g": "12"}),
    "anim.gif": ("count", "gif", {"pixels": "rgb8"}),
}


@pytest.fixture(autouse=True)
def quiet_svt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "1")


@pytest.mark.parametrize("name", FORMATS)
def test_random_access_equals_sequential_decoding(name: str, tmp_path: Path) -> None:
    numbering, codec, options = FORMATS[name]
    index = assert_exact(make_video(tmp_path / name, codec=codec, **options))
    assert index.numbering == numbering


def test_a_variable_rate_is_seen_and_does_not_shift_pictures(tmp_path: Path) -> None:
    times = [i + 3 * (i // 7) for i in range(60)]
    index = assert_exact(make_video(tmp_path / "vfr.mp4", times=times, g="20"))
    assert index.variable_rate
    assert not probe(make_video(tmp_path / "cfr.mp4")).variable_rate


def test_files_without_frame_counts_or_indices(tmp_path: Path) -> None:
    assert_exact(make_video(tmp_path / "live.mkv", muxer={"live": "1"}, g="20"))
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    assert_exact(make_video(tmp_path / "fragmented.mp4", muxer=fragmented, g="20"))


def test_far_pictures_are_reached_by_seeking_and_near_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("long.mp4", "long.ts", "long.mkv"):
        path = make_video(tmp_path / name, 700, size=(48, 64), g="50")
        index, expected = probe(path), plainly(path)
        counted = []
        monkeypatch.setattr(video, "_count", lambda path, wanted, stream, seen=counted: seen.append(wanted) or iter(()))
        for wanted in ([3, 5, 690, 699], [650], [100, 101, 460], [699]):
            found = dict(decode(path, wanted, index))
            assert sorted(found) == wanted, name
            for number, frame in found.items():
                np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), expected[number])
        assert not counted, "the plain loop was not needed"


def test_of_pictures_that_stand_for_themselves_only_the_wanted_ones_are_decoded(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", 120, codec="mjpeg", pixels="yuvj420p")
    index, expected = probe(path), plainly(path)
    wanted, effort = [3, 5, 7, 30, 31, 80, 119], []
    found = dict(decode(path, wanted, index, effort))
    assert sum(effort) == len(wanted)
    for number in wanted:
        np.testing.assert_array_equal(found[number].to_ndarray(format="rgb24"), expected[number])


@pytest.mark.parametrize("last_owed", [False, True])
def test_packed_b_frames_come_in_the_right_order(tmp_path: Path, last_owed: bool) -> None:
    plain = make_video(tmp_path / "plain.avi", 61, codec="mpeg4", bf="2", g="300")
    packed = pack(plain, tmp_path / "packed.avi", last_owed=last_owed)
    index = assert_exact(packed)
    assert index.numbering == "vop"
    assert "x" in index.kinds, "the file is packed"
    originals, pictures = plainly(plain), plainly(packed)
    for number, picture in enumerate(pictures[:-2]):
        nearest = min(range(len(originals)), key=lambda i, p=picture: np.abs(originals[i].astype(int) - p).mean())
        assert nearest == number


def test_presentation_times_scramble_packed_files_and_are_not_used(tmp_path: Path) -> None:
    packed = pack(make_video(tmp_path / "plain.avi", codec="mpeg4", bf="2", g="300"), tmp_path / "packed.avi")
    with av.open(str(packed)) as container:
        times = [frame.pts for frame in container.decode(video=0)]
    assert times != sorted(times), "the reason why numbers are not taken from these times"


def test_a_file_that_asks_to_be_turned_is_turned_unless_told_otherwise(tmp_path: Path) -> None:
    path = make_video(tmp_path / "turned.mp4", 5, rotation=90)
    index = probe(path)
    assert index.rotation == 90
    stored = read_frames(path, [2], rotate=False)[0]
    assert stored.shape == (96, 128, 3)
    np.testing.assert_array_equal(read_frames(path, [2])[0], np.rot90(stored))


def test_frames_come_in_the_order_asked_for_with_repeats(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 30)
    expected = plainly(path)
    wanted = [7, 3, 3, 29, 7]
    np.testing.assert_array_equal(read_frames(path, wanted), [expected[i] for i in wanted])
    with pytest.raises(IndexError, match="0 to 29"):
        read_frames(path, [30])


def test_an_index_survives_json(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "libx264"), ("b.avi", "mpeg4")):
        index = probe(make_video(tmp_path / name, 20, codec=codec))
        assert VideoIndex.from_row(json.loads(json.dumps(index.to_row()))) == index


def test_each_file_that_cannot_serve_says_why(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", 100, muxer={"movflags": "faststart"}).read_bytes()
    empty = tmp_path / "empty.mp4"
    empty.touch()
    text = tmp_path / "text.mp4"
    text.write_text("no video at all\n" * 100)
    headless = tmp_path / "headless.mp4"
    headless.write_bytes(make_video(tmp_path / "late.mp4").read_bytes()[:-2000])
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    for path, cause in (
        (empty, "the file is empty"),
        (text, "Invalid data"),
        (headless, "moov atom not found"),
        (sound, "no video stream .*audio"),
        (tmp_path / "nowhere.mp4", "no such file"),
    ):
        with pytest.raises(VideoError, match=f"{path}: .*{cause}") as told:
            probe(path)
        assert "\n" not in str(told.value)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: int(len(whole) * 0.6)])
    index = probe(cut)
    assert "the file" in index.damage
    assert len(read_frames(cut, range(index.frames), index)) == index.frames > 20, "what is whole can be read"
    with pytest.raises(VideoError, match=rf"{cut}: .*damaged: .*the file"):
        read_frames(cut, [index.frames], index)


def test_damage_in_the_middle_is_told_with_the_number_of_good_pictures(tmp_path: Path) -> None:
    path = make_video(tmp_path / "damaged.mp4", 90, g="90", size=(192, 256))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    with pytest.raises(VideoError, match=rf"{path}: decoding fails after \d+ pictures \(.*\)$"):
        read_frames(path, range(90))


# -- several streams


FILM, PREVIEW = ("libx264", (96, 128), 24), ("mjpeg", (24, 32), 1)


def frames_of(path: Path, stream: int) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams[stream])]


SEVERAL = {
    "a preview before the film": ([PREVIEW, FILM], 1),
    "a preview after the film": ([FILM, PREVIEW], 0),
    "a preview that is larger": ([("mjpeg", (480, 640), 1), FILM], 1),
    "three frames before the film": ([("libx264", (96, 128), 3), FILM], 1),
    "two previews": ([PREVIEW, PREVIEW, FILM], 2),
    "the larger film first": ([FILM, ("libx264", (48, 64), 24)], 0),
}


@pytest.mark.parametrize("kind", ["mkv", "mp4", "avi"])
@pytest.mark.parametrize("shape", SEVERAL)
def test_of_several_streams_the_film_is_read(shape: str, kind: str, tmp_path: Path) -> None:
    streams, film = SEVERAL[shape]
    path = make_streams(tmp_path / f"a.{kind}", *streams)
    index, expected = probe(path), frames_of(path, film)
    assert (index.stream, index.frames, index.damage) == (film, 24, None)
    for wanted in ([0], [23], [3, 11, 19]):
        np.testing.assert_array_equal(read_frames(path, wanted, index), [expected[number] for number in wanted])
    assert VideoIndex.from_row(json.loads(json.dumps(index.to_row()))) == index


def test_of_two_films_the_one_marked_as_default_is_read_then_the_larger_one(tmp_path: Path) -> None:
    small = ("libx264", (48, 64), 24)
    plain, default = Disposition(0), Disposition.default
    marked = make_streams(tmp_path / "marked.mkv", FILM, small, marks={0: plain, 1: default})
    assert probe(marked).width == 64
    assert probe(make_streams(tmp_path / "plain.mkv", small, FILM, marks={0: plain, 1: plain})).width == 128
    preview = make_streams(tmp_path / "preview.mkv", PREVIEW, FILM, marks={0: default, 1: plain})
    assert probe(preview).frames == 24, "one frame is no film, whatever it is marked as"
    cover = make_streams(tmp_path / "cover.mp4", PREVIEW, FILM, marks={0: Disposition.attached_pic})
    assert (probe(cover).frames, probe(cover).stream) == (24, None), "a cover is no video stream"


def test_a_stream_that_cannot_be_decoded_gives_way_to_one_that_can(tmp_path: Path) -> None:
    path = make_streams(tmp_path / "a.mkv", ("mpeg2video", (192, 256), 24), FILM)
    content = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    unknown = tmp_path / "unknown.mkv"
    unknown.write_bytes(content.replace(b"V_MPEG2", b"V_XPEG2"))
    assert (probe(unknown).width, probe(unknown).frames) == (128, 24)
    garbled = bytearray(content)
    for place, size in packets:
        garbled[place + 12 : place + size] = bytes(size - 12)  # but not the container's own headers
    path.write_bytes(garbled)
    index = probe(path)
    assert (index.width, index.frames, index.stream) == (128, 24, 1)
    np.testing.assert_array_equal(read_frames(path, [20], index)[0], frames_of(path, 1)[20])


def test_an_index_of_another_stream_is_not_believed(tmp_path: Path) -> None:
    """As an earlier version made it, of the first stream and without its number."""
    path = make_streams(tmp_path / "a.mkv", ("libx264", (48, 64), 24), FILM)
    alone = probe(make_streams(tmp_path / "first.mkv", ("libx264", (48, 64), 24)))
    assert alone.stream is None
    np.testing.assert_array_equal(read_frames(path, [20, 4], alone), [frames_of(path, 1)[number] for number in (20, 4)])


# -- colors


def by_ffmpeg(path: Path) -> list[np.ndarray]:
    """All frames as `ffmpeg -i path -pix_fmt rgb24` writes them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream, time_base=stream.time_base)
        graph.link_nodes(source, graph.add("scale"), graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        frames = []
        for frame in container.decode(stream):
            graph.push(frame)
            frames.append(graph.pull().to_ndarray())
        return frames


COLORS = {
    "ordinary.mp4": {},
    "bt709.mp4": {"colorspace": "bt709"},
    "full_range.mp4": {"color_range": "pc"},
    "422.mp4": {"pixels": "yuv422p"},
    "444_odd.mp4": {"pixels": "yuv444p", "size": (95, 127)},
    "jpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "interlaced.mp4": {"x264-params": "tff=1"},
    "interlaced.ts": {"codec": "mpeg2video", "flags": "+ildct+ilme"},
    "10bit.mp4": {"pixels": "yuv420p10le"},
    "10bit_2020.mp4": {"pixels": "yuv420p10le", "colorspace": "bt2020nc"},
    "10bit_422.mp4": {"pixels": "yuv422p10le"},
    "10bit_interlaced.mp4": {"pixels": "yuv420p10le", "x264-params": "tff=1"},
    "odd.webm": {"codec": "libvpx-vp9", "cpu-used": "8", "size": (95, 127)},
    "411.mkv": {"codec": "ffv1", "pixels": "yuv411p"},
    "nv12.avi": {"codec": "rawvideo", "pixels": "nv12"},
}


@pytest.mark.parametrize("name", COLORS)
def test_colors_are_those_of_ffmpegs_own_conversion(name: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / name, 6, **COLORS[name])
    np.testing.assert_array_equal(read_frames(path, range(6)), by_ffmpeg(path))


def test_a_frame_of_another_size_is_converted_too() -> None:
    convert = ToRGB()
    for size in ((32, 48), (64, 48)):
        frame = av.VideoFrame.from_ndarray(moving_picture(0, *size), format="rgb24").reformat(format="yuv420p10le")
        assert (convert(frame).height, convert(frame).width) == size


# -- other people's files


def facts(folder: Path) -> dict:
    return json.loads((folder / "facts.json").read_text())


def test_real_files_random_access_finds_the_recorded_pictures(videos: Path) -> None:
    checked = 0
    for name, fact in facts(videos).items():
        if fact.get("decode_error") or not fact.get("mean_luma"):
            continue
        index, luma = probe(videos / name), fact["mean_luma"]
        assert index.frames == len(luma), name
        for wanted in index_sets(len(luma), seed=7):
            for number, frame in decode(videos / name, wanted, index):
                assert frame.to_ndarray(format="gray").mean() == pytest.approx(luma[number], abs=0.1), (name, number)
        checked += 1
    assert checked >= 16


def test_real_files_random_access_equals_sequential_decoding(videos: Path) -> None:
    for name, fact in facts(videos).items():
        if not fact.get("decode_error") and fact.get("mean_luma"):
            assert_exact(videos / name)


def test_real_broken_files_name_file_and_cause(videos: Path) -> None:
    broken = {name for name, fact in facts(videos).items() if fact.get("decode_error") or "mean_luma" not in fact}
    assert len(broken) >= 5
    for name in broken:
        with pytest.raises(VideoError, match=name) as told:
            index = probe(videos / name)
            read_frames(videos / name, range(max(index.frames, facts(videos)[name].get("header_frames", 0))), index)
        assert "\n" not in str(told.value)
        assert len(str(told.value)) > len(str(videos / name)) + 10
