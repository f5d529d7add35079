"""Numbers of pictures from packets, without decoding: by presentation time or, for MPEG-4 part 2, by coding type.

Both return facts for a VideoIndex, or nothing where the packets do not tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np


def pts_numbering(packets: list[tuple[int | None, bool, bool]], first_shown: int | None, codec: str) -> dict:
    """Facts for numbering by presentation time, or nothing where that cannot be trusted.

    packets: (presentation time, is a key picture, is to be discarded) in file order.
    """
    times = [time for time, _, _ in packets]
    if (
        codec not in ONE_PICTURE_A_PACKET
        or None in times
        or len(set(times)) < len(times)
        or any(discard for _, _, discard in packets)
        or not packets[0][1]
        or not min(times) == times[0] == first_shown
    ):
        return {}
    order = np.argsort(times)
    number, ordered = np.empty_like(order), np.array(times)[order].tolist()
    number[order] = np.arange(len(order))
    keys = number[[key for _, key, _ in packets]]
    steps = np.diff(ordered) if len(ordered) > 1 else np.ones(1, int)
    even = bool(steps.min() == steps.max())
    return {
        "numbering": "pts",
        "frames": len(ordered),
        "times": (ordered[0], int(steps[0])) if even else tuple(ordered),
        "even": even,
        "keys": tuple(sorted(keys.tolist())),
        "variable_rate": bool(steps.max() - steps.min() > 1),  # 1: rounding to the time base
    }


# A packet of these holds exactly one picture to show. Not so VP8, for example, which has packets that show nothing.
ONE_PICTURE_A_PACKET = {
    "h264", "hevc", "vp9", "libdav1d", "av1", "mpeg1video", "mpeg2video", "mjpeg", "ffv1", "rawvideo",
}  # fmt: skip


def vop_numbering(headers: bytes, packets: list[bytes]) -> dict:
    """Facts for numbering by coding type, or nothing where that cannot be trusted."""
    kinds = vop_kinds(headers, packets)
    if not kinds or kinds[0] != "I":
        return {}
    facts = {"numbering": "vop", "kinds": kinds, "frames": sum(kind not in "Nx" for kind in kinds)}
    if time_bits(headers) is not None:  # else the sequence header may stand before the first picture only
        facts["keys"] = tuple(sorted(n for n, kind in zip(vop_numbers(kinds), kinds, strict=True) if kind == "I"))
    return facts


def vop_numbers(kinds: str) -> list[int | None]:
    """Number of each picture in file order, None if it is not shown: B is shown at once, the others when the next of
    them arrives."""
    numbers: list[int | None] = [None] * len(kinds)
    shown, waiting = 0, None
    for place, kind in enumerate(kinds):
        if kind in "Nx":
            continue
        if kind == "B":
            numbers[place], shown = shown, shown + 1
            continue
        if waiting is not None:
            numbers[waiting], shown = shown, shown + 1
        waiting = place
    if waiting is not None:
        numbers[waiting] = shown
    return numbers


def vop_kinds(headers: bytes, packets: list[bytes]) -> str:
    """One letter for each coded picture (VOP) of an MPEG-4 part 2 stream in file order, "" if it cannot be told.

    I, P, B, S: intra, predicted, bidirectional, sprite. N: "not coded", nothing to show, but it moves the clock.
    x: the empty picture by which packed streams make up for a packet that held two, and pictures for which nothing
    makes up before the file ends: FFmpeg's decoder does not return these. ISO/IEC 14496-2, 6.2.3 and 6.2.5.
    """
    bits = time_bits(headers)
    packed = PACKED.search(headers) is not None
    kinds, owed = "", 0
    for packet in packets:
        codes = packet.count(START)
        pieces = [packet] if codes == 1 and packet.startswith(VOP_START) else list(split_vops(packet))
        if codes > len(pieces):  # headers among them
            bits = time_bits(packet) or bits
            packed = packed or PACKED.search(packet) is not None
        for piece in pieces:
            if bits is None:
                return ""
            at = piece.find(VOP_START) + 4
            field = int.from_bytes(piece[at : at + 12].ljust(12, b"\0"), "big")
            read = 96 - 2  # bits left after the coding type
            while field >> (read := read - 1) & 1:  # whole seconds, one bit each
                pass
            read -= 1 + bits + 1  # marker, time within the second, marker
            if field >> (read - 1) & 1:
                kinds += "IPBS"[field >> 94]
            elif owed:
                kinds, owed = kinds + "x", owed - 1
            else:
                kinds += "N"
        if len(pieces) > 1:
            if not packed or kinds[-len(pieces) + 1 :].strip("B"):
                return ""
            owed += len(pieces) - 1
    return kinds[: len(kinds) - owed] + "x" * owed


def split_vops(packet: bytes) -> Iterator[bytes]:
    """The coded pictures of a packet; the first keeps the headers before it."""
    start = packet.find(VOP_START)
    begin = 0
    while start >= 0:
        following = packet.find(VOP_START, start + 4)
        yield packet[begin : following if following >= 0 else len(packet)]
        begin = start = following


PACKED = re.compile(rb"DivX\d+(?:b|Build)\d+p")  # two pictures in a packet, says the encoder
START = b"\x00\x00\x01"  # of anything
VOP_START = START + b"\xb6"


def time_bits(headers: bytes) -> int | None:
    """Length of a picture's time field, from the sequence header (VOL) among `headers`. ISO/IEC 14496-2, 6.2.3."""
    for layer in range(0x20, 0x30):
        at = headers.find(bytes([0, 0, 1, layer]))
        if at >= 0:
            break
    else:
        return None
    field, length = int.from_bytes(headers[at + 4 : at + 36].ljust(32, b"\0"), "big"), 256
    place = 0

    def take(bits: int) -> int:
        nonlocal place
        place += bits
        return field >> (length - place) & ((1 << bits) - 1)

    take(1 + 8)  # random access, object type
    if take(1):
        take(4 + 3)  # version, priority
    if take(4) == 15:
        take(16)  # pixel aspect ratio
    if take(1):  # control parameters
        take(2 + 1)
        if take(1):
            take(79)
    if take(2) != 0:
        return None  # not rectangular
    take(1)
    return max(1, (take(16) - 1).bit_length())
