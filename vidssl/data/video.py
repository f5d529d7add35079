"""Exact random access to the pictures of a video file, with PyAV.

A picture's number is its position in the decoder's output order: picture 7 is the eighth that a plain decode loop
returns. Presentation times do not serve as numbers, because files with packed B-frames (UCF101) carry wrong ones and
others carry none. One pass over the file answers any set of numbers; of the pictures that nobody wants, those that no
other refers to are not decoded.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain

import av
import av.filter
import av.logging
import av.stream
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from vidssl.data.numbering import VOP_START, pts_numbering, split_vops, vop_numbering, vop_numbers


class VideoError(ValueError):
    """This file cannot serve: one line that names it and says why."""


@dataclass(frozen=True)
class VideoIndex:
    """What a scan over a file's packets tells; with it any picture can be reached.

    `numbering` says how a packet is matched with its picture's number:
    pts    the rank of the packet's presentation time; only where all times are there, differ and can be trusted
    vop    MPEG-4 part 2: from the coding types of the pictures
    count  neither can be trusted: the file is decoded from its start, always, and the pictures are counted
    """

    frames: int  # pictures that can be read: all that a plain decode loop returns
    numbering: str  # pts | vop | count
    times: tuple[int, ...] = ()  # pts: time stamps in order; only the first and the step where `even`
    even: bool = False
    kinds: str = ""  # vop: one letter a coded picture in file order, see `vop_kinds`
    keys: tuple[int, ...] = (0,)  # numbers of the pictures at which decoding may start, ascending
    width: int = 0  # as stored, before any rotation
    height: int = 0
    fps: float = 0.0  # average pictures per second; 0 if unknown
    rotation: int = 0  # degrees counter-clockwise that the file asks a player to turn the picture
    codec: str = ""
    stream: int | None = None  # which of the file's streams this is; None: its only video stream
    variable_rate: bool = False
    damage: str | None = None  # what the scan found broken; pictures before it can still be read

    @cached_property
    def number_of(self) -> dict[int, int]:
        """pts: time stamp -> number."""
        if not self.even:
            return {time: number for number, time in enumerate(self.times[: self.frames])}
        first, step = self.times
        return {first + number * step: number for number in range(self.frames)}

    @cached_property
    def vop_numbers(self) -> list[int | None]:
        """vop: number of each coded picture in file order; None for those that are not shown."""
        return vop_numbers(self.kinds)

    @cached_property
    def key_set(self) -> frozenset[int]:
        return frozenset(self.keys)

    @property
    def is_intra(self) -> bool:
        """No picture refers to another, and each is large."""
        return self.codec in INTRA

    @property
    def seek_beyond(self) -> int:
        """Pictures; up to there, reading packets without decoding them costs less than a seek."""
        return 20 if self.is_intra else 250

    def key_before(self, number: int) -> int:
        """The nearest picture at or before `number` at which decoding may start."""
        return self.keys[bisect_right(self.keys, number) - 1]

    def to_row(self) -> dict:
        """Plain JSON values without what equals its default; `from_row` reverses it."""
        changed = {key: value for key, value in asdict(self).items() if value != getattr(VideoIndex, key, None)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}

    @classmethod
    def from_row(cls, row: dict) -> VideoIndex:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})


def probe(path: str | os.PathLike) -> VideoIndex:
    """Scan a file's packets and decode its first picture.

    Raises VideoError if not one picture can be read. A file that is broken further on is returned with `damage`. It and
    streams whose packets do not tell the numbers are decoded whole, once.
    """
    with _Reader(path) as reader:
        index, others = reader.scan(), reader.others
    for stream in others:
        if index.width == 0:
            with _Reader(path, stream) as reader:
                index = reader.scan()
    if index.width == 0:
        reason = index.damage or _first_failure(path, index.stream)[1]
        raise VideoError(f"{path}: not one picture can be decoded ({reason})")
    if index.numbering == "count" or index.damage:
        frames, failure = _first_failure(path, index.stream)
        index = replace(index, frames=frames, damage=index.damage or failure, variable_rate=False)  # not judged
    return index


def read_frames(
    path: str | os.PathLike, indices: Sequence[int], index: VideoIndex | None = None, *, rotate: bool = True
) -> np.ndarray:
    """Pictures of one file in the order asked for, repeats allowed -> uint8 [N, H, W, 3], RGB.

    Raises VideoError if the file cannot serve, IndexError for a number outside 0 .. frames - 1.
    """
    index = index or probe(path)
    places: dict[int, list[int]] = {}
    for place, number in enumerate(indices):
        places.setdefault(int(number), []).append(place)
    out = np.empty((0, index.height, index.width, 3), np.uint8)
    for number, picture in rgb_frames(path, places, index, rotate=rotate):
        if not len(out):
            out = np.empty((len(indices), *picture.shape), np.uint8)
        out[places[number]] = picture
    return out


def rgb_frames(
    path: str | os.PathLike, wanted: Iterable[int], index: VideoIndex, *, rotate: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 [H, W, 3]) of each wanted picture. A view of the converted picture: copy to keep it.

    rotate: turn the pictures as the file asks a player to do, where it asks for quarter turns.
    """
    convert = ToRGB()
    turns = round(index.rotation / 90) % 4 if rotate else 0
    for number, frame in decode(path, wanted, index):
        plane = convert(frame).planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        picture = rows[:, : plane.width * 3].reshape(plane.height, plane.width, 3)
        yield number, np.rot90(picture, turns) if turns else picture


# Formats whose chroma FFmpeg does not interpolate: because there is no need, or where frames have even sides
FULL_CHROMA = {"yuv444p", "yuvj444p"}
REPEATED_CHROMA = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p"}


class ToRGB:
    """Conversion of frames to rgb24 with the values that FFmpeg's own conversion gives (`-pix_fmt rgb24`).

    PyAV's conversion, which starts faster, interpolates the chroma of interlaced frames field by field and of 10-bit
    4:2:0 with another filter; these and other rare formats go through FFmpeg's scale filter. One thread: starting a
    pool for each frame costs more than it saves.
    """

    def __init__(self) -> None:
        self.plain = VideoReformatter()
        self.graph, self.graph_is_for = None, None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        pixels, width, height = kind = frame.format.name, frame.width, frame.height
        is_plain = pixels in REPEATED_CHROMA and not ((width | height) & 1 or frame.interlaced_frame)
        if is_plain or pixels in FULL_CHROMA:
            return self.plain.reformat(frame, format="rgb24", threads=1)
        if kind != self.graph_is_for:
            self.graph, self.graph_is_for = filter_graph(frame, ("format", "rgb24")), kind
        self.graph.push(frame)
        return self.graph.pull()


def filter_graph(frame: av.VideoFrame, *filters: tuple[str, str]) -> av.filter.Graph:
    """FFmpeg's filters (name, arguments) in a row, for frames like this one."""
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
    nodes = [graph.add(name, arguments) for name, arguments in filters]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    return graph


def decode(
    path: str | os.PathLike, wanted: Iterable[int], index: VideoIndex, effort: list[int] | None = None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, decoded frame) of each wanted picture, in one pass over the file.

    effort: gets an entry for every jump, how many pictures were decoded after it.
    """
    ordered = sorted(set(wanted))
    if not ordered:
        return
    if not 0 <= ordered[0] <= ordered[-1] < index.frames:
        problem = f"{path}: pictures {ordered[0]} to {ordered[-1]} wanted of 0 to {index.frames - 1}"
        raise VideoError(f"{problem}; damaged: {index.damage}") if index.damage else IndexError(problem)
    missing = set(ordered)
    if index.numbering != "count":
        try:
            for number, frame in _jump(path, ordered, index, [] if effort is None else effort):
                missing.remove(number)
                yield number, frame
        except av.FFmpegError:
            pass  # the plain loop finds out whether the file is broken, and where
    if missing:
        yield from _count(path, missing, index.stream)


def _jump(
    path: str | os.PathLike, wanted: Sequence[int], index: VideoIndex, effort: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode only from the key pictures before wanted ones; ends early where the file surprises.

    wanted: ascending.
    """
    with _Reader(path, index.stream) as reader:
        if reader.number != index.stream:
            return  # the index was made when the first stream was read, whatever it was
        packets = reader.numbered_packets(index)
        while wanted:
            key = index.key_before(wanted[0])
            if index.numbering == "pts" and key - reader.position > index.seek_beyond:
                packets = reader.packets_before(index, key)
            sent = yield from reader.decode_from(packets, key, wanted, index)
            effort.append(reader.decoded)
            if not sent:
                return
            wanted = [number for number in wanted if number not in sent]


def _count(path: str | os.PathLike, wanted: Iterable[int], stream: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
    """The definition of a picture's number: decode everything from the start and count."""
    pending, decoded = set(wanted), 0
    try:
        with _Reader(path, stream) as reader:
            for frame in reader.container.decode(reader.stream):
                if decoded in pending:
                    pending.remove(decoded)
                    yield decoded, frame
                decoded += 1
                if not pending:
                    return
    except av.FFmpegError as error:
        _, cause = _first_failure(path, stream)
        raise VideoError(f"{path}: decoding fails after {decoded} pictures ({cause})") from error
    raise VideoError(f"{path}: picture {min(pending)} wanted, but the file ends after {decoded}")


class _Reader:
    """An open file, one of its video streams, the highest number whose packet was read.

    stream: which one; None: the only one, or the best of several.
    """

    def __init__(self, path: str | os.PathLike, stream: int | None = None):
        try:
            self.container = av.open(os.fspath(path), metadata_errors="ignore")
        except (OSError, ValueError) as error:
            raise VideoError(f"{path}: cannot be opened ({_why_not_opened(path, error)})") from None
        streams = [s for s in self.container.streams.video if s.codec_context and not s.disposition & COVER_PICTURE]
        if not streams:
            kinds = sorted({s.type for s in self.container.streams})
            self.container.close()
            raise VideoError(f"{path}: no video stream that can be decoded (streams: {', '.join(kinds) or 'none'})")
        self.stream, self.number, self.others = streams[0], None, []
        if len(streams) > 1:
            numbers = [each.index for each in streams]
            ranked = [stream] if stream in numbers else _ranked(path, numbers)
            self.number, *self.others = ranked
            self.stream = self.container.streams[self.number]
        self.decoder = self.stream.codec_context
        self.decoder.thread_type = "NONE"  # a loader worker has one core
        self.position = 0
        self.decoded = 0  # pictures, since the last jump

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def scan(self) -> VideoIndex:
        """Read all packets, decode until the first picture is out."""
        packets, vops, first, damage = [], [], None, self._missing_end()
        is_mpeg4 = self.decoder.name == "mpeg4"
        headers = bytes(self.decoder.extradata or b"")
        try:
            for packet in self.container.demux(self.stream):
                if first is None and packet.size and not packets:
                    first = self._first_of(packet, alone=True)
                if first is None:
                    first = self._first_of(packet, alone=False)
                if packet.size == 0:
                    continue
                if packet.is_corrupt:
                    damage = f"the file breaks off in packet {len(packets)}"
                packets.append((packet.pts, packet.is_keyframe, packet.is_discard))
                if is_mpeg4:
                    vops.append(bytes(packet))
        except av.FFmpegError as error:
            damage = f"packet {len(packets)} cannot be read: {error.strerror}"
        is_avi = self.container.format.name == "avi"
        if is_avi and len(packets) < self.stream.frames:
            damage = f"the header promises {self.stream.frames} pictures, there are {len(packets)}"
        facts = {"fps": float(self.stream.average_rate or 0), "codec": self.decoder.name, "damage": damage}
        facts["stream"] = self.number
        if first is not None:
            facts |= {"width": first.width, "height": first.height, "rotation": int(first.rotation)}
        if is_mpeg4:
            facts |= vop_numbering(headers, vops)
        elif first is None or first.interlaced_frame:
            pass  # interlaced: maybe two packets a picture
        elif not is_avi or all(key for _, key, _ in packets):  # AVI stores no presentation times
            facts |= pts_numbering(packets, first.pts, self.decoder.name)
        return VideoIndex(**{"frames": 0, "numbering": "count", **facts})

    def _missing_end(self) -> str | None:
        end = max((entry.pos + entry.size for entry in self.stream.index_entries), default=0)
        size = os.path.getsize(self.container.name)
        return f"cut off: its index reaches to byte {end}, the file has {size}" if end > size else None

    def _first_of(self, packet: av.Packet, *, alone: bool) -> av.VideoFrame | None:
        """The first picture, if it is out with this packet. alone: try to get it from this packet without the next
        ones, which cost more; if that fails the decoder knows nothing of it."""
        try:
            frames = self.decoder.decode(packet)
            if alone and not frames and packet.size:
                frames = self.decoder.decode(None)
                self.decoder.flush_buffers()
            return next(iter(frames), None)
        except av.FFmpegError:
            return None

    def numbered_packets(self, index: VideoIndex) -> Iterator[tuple[av.Packet, int | None, bool]]:
        """(packet, number of its picture, whether it may be left out). The decoder hands a packet's time stamp on to
        its picture, which is how the picture is recognised."""
        if index.numbering == "vop":
            yield from self._vops(index)
            return
        for packet in self.container.demux(self.stream):
            if packet.size:
                yield packet, index.number_of.get(packet.pts), index.is_intra

    def _vops(self, index: VideoIndex) -> Iterator[tuple[av.Packet, int | None, bool]]:
        """One packet a coded picture, stamped with its number."""
        place, is_packed = 0, "x" in index.kinds
        for packet in self.container.demux(self.stream):
            content = bytes(packet)
            pieces = list(split_vops(content)) if is_packed else [content] * (VOP_START in content)
            for piece in pieces:
                if place == len(index.kinds):
                    return  # not the file that was scanned
                kind, number = index.kinds[place], index.vop_numbers[place]
                place += 1
                if kind == "x":
                    continue
                single = packet
                if len(pieces) > 1:
                    single = av.Packet(len(piece))  # from bytes it would lack the zeros that decoders read behind it
                    single.update(piece)
                single.pts = number
                yield single, number, kind == "B"

    def packets_before(self, index: VideoIndex, key: int) -> Iterator[tuple[av.Packet, int | None, bool]]:
        """Continue shortly before a key picture, or at the start of the file where its container seeks badly."""
        first, step = index.times[:2]
        for target in (key, index.key_before(max(0, key - index.seek_beyond // 2)), 0):
            try:
                time = first + target * step if index.even else index.times[target]
                self.container.seek(time, stream=self.stream)
            except av.FFmpegError:
                continue
            packets = self.numbered_packets(index)
            for packet in packets:
                if packet[1] is not None and packet[1] > key:
                    break
                if packet[1] is not None:
                    return chain([packet], packets)
        return iter(())

    def decode_from(
        self, packets: Iterator[tuple[av.Packet, int | None, bool]], key: int, wanted: Sequence[int], index: VideoIndex
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode from picture `key` for as long as no jump to a later key picture is due; yields what is found of
        `wanted`, returns the numbers that were sent to the decoder (none if `key` did not come)."""
        unsent, keys, stamps = deque(wanted), index.key_set, {}
        newest_key, key_stamp, skipping = key, None, None
        missing, may_skip = set(wanted), self.decoder.name in SKIPS_EXACTLY
        self.decoded, reach = 0, index.seek_beyond if index.is_intra else 0
        for packet, number, may_be_left_out in packets:
            self.position = max(self.position, number or 0)
            if key_stamp is None:
                if number != key:
                    continue
                key_stamp = packet.pts
            if number in keys:
                newest_key = max(newest_key, number)
            needed = number in missing
            if needed:
                missing.remove(number)
                stamps[packet.pts] = number
            elif may_be_left_out:
                continue
            if may_skip and skipping is not (not needed):
                skipping = not needed
                self.decoder.skip_frame = "NONREF" if skipping else "DEFAULT"
            for frame in self.decoder.decode(packet):
                self.decoded += 1
                if frame.pts == key_stamp and key > 0 and frame.pict_type != PictureType.I:
                    return set()  # said to be a place to start, but it refers to what came before (intra refresh)
                if frame.pts in stamps:
                    yield stamps[frame.pts], frame
            while unsent and unsent[0] not in missing:
                unsent.popleft()
            if not unsent or index.key_before(unsent[0]) > newest_key + reach:
                break
        for frame in self.decoder.decode(None):
            self.decoded += 1
            if frame.pts in stamps:
                yield stamps[frame.pts], frame
        self.decoder.flush_buffers()
        return set(stamps.values())


# Decoders that, told so before a packet, leave out its picture if no other refers to it, and change no other picture.
SKIPS_EXACTLY = {"h264", "hevc"}
INTRA = {"mjpeg", "rawvideo"}
COVER_PICTURE = av.stream.Disposition.attached_pic
FOR_THE_IMPAIRED = av.stream.Disposition.hearing_impaired | av.stream.Disposition.visual_impaired


def _ranked(path: str | os.PathLike, numbers: Sequence[int]) -> list[int]:
    """Numbers of video streams, the one to read first.

    FFmpeg's criteria: marked as default, larger, of a higher bit rate, with more frames, earlier in the file. Its limit
    of five frames is asked first, since MP4 muxers mark whatever comes first as default, even a preview of one frame.
    """
    with av.open(os.fspath(path), metadata_errors="ignore") as container:
        streams, frames = [container.streams[number] for number in numbers], Counter()
        try:
            for packet in container.demux(streams):
                frames[packet.stream.index] += packet.size > 0
        except av.FFmpegError:
            pass  # what can be read decides; the scan finds out what is broken

        def rank(stream: av.VideoStream) -> tuple:
            marked = bool(stream.disposition & av.stream.Disposition.default)
            marked -= bool(stream.disposition & FOR_THE_IMPAIRED)
            count, area = frames[stream.index], stream.width * stream.height
            return min(count, 5), marked, area, stream.bit_rate or 0, count

        return [stream.index for stream in sorted(streams, key=rank, reverse=True)]


# ---------------------------------------------------------------------------------------------------------------------
# Causes


def _first_failure(path: str | os.PathLike, stream: int | None) -> tuple[int, str | None]:
    """(pictures that a plain decode loop returns, what ends it before the end of the file)."""
    decoded = 0
    try:
        with av.logging.Capture() as log, _Talkative(), _Reader(path, stream) as reader:
            for _ in reader.container.decode(reader.stream):
                decoded += 1
    except av.FFmpegError as error:
        return decoded, _last_words(log, error)
    return decoded, None


def _why_not_opened(path: str | os.PathLike, error: Exception) -> str:
    if not isinstance(error, av.FFmpegError):
        return str(error)
    if not os.path.exists(path):
        return "no such file"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "the file is empty"
    with av.logging.Capture() as log, _Talkative():
        try:
            av.open(os.fspath(path), metadata_errors="ignore").close()
        except av.FFmpegError as again:
            return _last_words(log, again)
    return error.strerror


class _Talkative:
    """FFmpeg's error messages, for as long as they are looked for."""

    def __enter__(self) -> None:
        self.level = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)

    def __exit__(self, *_: object) -> None:
        av.logging.set_level(self.level)


def _last_words(log: list[tuple[int, str, str]], error: av.FFmpegError) -> str:
    said = [message.strip() for _, _, message in ([*log, error.log] if error.log else log)]
    return f"{error.strerror}: {said[-1]}" if said else error.strerror
