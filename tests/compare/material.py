"""Videos to measure with, rendered on the spot: their codec, size and distance of key frames are chosen."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from vidssl.data.numbering import VOP_START, time_bits
from vidssl.data.spatial import as_tensor, resize


class Material(NamedTuple):
    """What a file is like: that a key frame stands every `gop` frames decides what reading from its middle costs."""

    name: str
    codec: str  # mpeg4 | libx264
    width: int
    height: int
    frames: int
    gop: int
    b_frames: int  # at most so many in a row
    packed: bool = False  # MPEG-4 as XviD and DivX wrote it, and UCF101 has it

    def render(self, folder: Path) -> Path:
        """Write the file unless it is there; its path."""
        path = folder / self.name
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        scene = Scene(self.height, self.width)
        with av.open(str(unfinished), "w") as out:
            # libx264's assembler code and conversion by several threads give other bytes from one call to the next
            free = {"sc_threshold": "0", "x264-params": "asm=0"}
            options = {"sc_threshold": "1000000000"} if self.codec == "mpeg4" else free
            stream = out.add_stream(self.codec, rate=25, options=options)
            if self.codec == "mpeg4":
                stream.bit_rate = 5 * self.width * self.height  # a second, as UCF101 has
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            stream.gop_size, stream.codec_context.max_b_frames = self.gop, self.b_frames
            stream.codec_context.thread_count = 1
            for time in range(self.frames):
                frame = av.VideoFrame.from_ndarray(scene.frame(time), format="rgb24")
                frame = frame.reformat(format="yuv420p", threads=1)
                frame.pts, frame.time_base = time, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        if self.packed:
            pack(unfinished, unfinished.with_name(f"packed-{unfinished.name}")).replace(unfinished)
        unfinished.replace(path)
        return path


DEFAULT = (
    Material("mpeg4_packed.avi", "mpeg4", 320, 240, 164, 300, 2, packed=True),
    Material("mpeg4_p_g60.avi", "mpeg4", 320, 240, 180, 60, 0),
    Material("h264_340x256_g60.mp4", "libx264", 340, 256, 300, 60, 3),
    Material("h264_340x256_g250.mp4", "libx264", 340, 256, 300, 250, 3),
    Material("h264_1280x720_g60.mp4", "libx264", 1280, 720, 300, 60, 3),
)


def pack(source: Path, target: Path, *, last_owed: bool = False) -> Path:
    """Rewrite an MPEG-4 stream with B-frames as XviD and DivX packed it: P and the B after it in one packet, then an
    empty packet instead of the B, and user data that says so. last_owed: drop the last empty packet."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        out = writer.add_stream_from_template(stream)
        frames = [bytes(packet) for packet in reader.demux(stream) if packet.size]
        kinds = ["IPBS"[data[data.find(VOP_START) + 4] >> 6] for data in frames]
        note = b"\x00\x00\x01\xb2DivX503b1393p"
        head = frames[0].find(VOP_START)
        frames[0] = frames[0][:head] + note + frames[0][head:]
        chunks, place = [], 0
        while place < len(frames):
            if place + 1 < len(frames) and kinds[place] in "IP" and kinds[place + 1] == "B" and place > 0:
                run = place + 1
                while run < len(frames) and kinds[run] == "B":
                    run += 1
                chunks.append(frames[place] + frames[place + 1])
                chunks += frames[place + 2 : run]
                chunks.append(not_coded(stream))
                place = run
            else:
                chunks.append(frames[place])
                place += 1
        if last_owed:
            assert len(chunks[-1]) < 10, "the stream ends in a packed B-frame"
            chunks.pop()
        for time, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.stream, packet.pts, packet.dts, packet.time_base = out, time, time, stream.time_base
            packet.is_keyframe = time == 0
            writer.mux(packet)
    return target


def not_coded(stream: av.VideoStream) -> bytes:
    """A P frame that says "not coded": type 01, no whole second, marker, time 0, marker, 0."""
    bits = time_bits(bytes(stream.codec_context.extradata))
    field = "01" + "0" + "1" + "0" * bits + "1" + "0"
    field += "0" + "1" * (-(len(field) + 1) % 8)
    return VOP_START + int(field, 2).to_bytes(len(field) // 8, "big")


class Scene:
    """A textured plane that a camera pans over, discs that move on it, and grain. Known by size and time alone."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        chance = np.random.default_rng([height, width])
        self.margin = height // 4
        self.plane = _clouds(chance, height + 2 * self.margin, width + 2 * self.margin)
        self.grain = chance.normal(0, 2.5, (4, height, width, 1)).round().astype(np.int16)
        self.sides = chance.integers(height // 8, height // 3, 6)
        self.starts = chance.uniform(0, 1, (6, 2)) * (height, width)
        self.steps = chance.normal(0, height / 90, (6, 2))
        self.discs = [_clouds(chance, side, side) for side in self.sides]

    def frame(self, time: int) -> np.ndarray:
        """uint8 [height, width, 3]."""
        top = self.margin + round(self.margin * 0.9 * np.sin(time / 37))
        left = self.margin + round(self.margin * 0.9 * np.cos(time / 53))
        frame = self.plane[top : top + self.height, left : left + self.width].copy()
        for side, start, step, disc in zip(self.sides, self.starts, self.steps, self.discs, strict=True):
            y, x = (start + time * step).astype(int) % (self.height - side, self.width - side)
            reach = np.arange(side) - side / 2
            inside = np.hypot(reach[:, None], reach) < side / 2
            frame[y : y + side, x : x + side][inside] = disc[inside]
        return (frame + self.grain[time % 4]).clip(0, 255).astype(np.uint8)


def _clouds(chance: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Random colors on grids of several sizes. int16 [height, width, 3]."""
    total = np.zeros((height, width, 3), np.int16)
    for cells, weight in ((4, 0.4), (12, 0.3), (40, 0.2), (120, 0.1)):
        grid = chance.integers(0, 256, (1, cells, cells, 3), np.uint8)
        enlarged = resize(as_tensor(grid), height, width, antialias=False)[0].permute(1, 2, 0).numpy()
        total += (enlarged * weight).astype(np.int16)
    return total
