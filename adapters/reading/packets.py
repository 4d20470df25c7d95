"""What the data of a video's packet tells before it is decoded: whether it is whole, and whether it is shown.

Decoders read what stands before a damaged place, fill up the rest of the image, and say nothing. But the units of most
codecs say how long they are, and never hold the bytes that mark a unit's begin.
"""

import re
from collections.abc import Callable
from typing import Final

import av

_MOST_PADDING: Final = 8
"""Zeros that a program may leave behind a unit; more are what is left of its data."""
_NEVER_IN_A_UNIT: Final = re.compile(rb"\0\0[\0-\2]")
"""Bytes that mark the beginning of a unit of H.264 or HEVC; within one, an encoder puts a 3 between them."""
_START_OF_MPEG4: Final = b"\0\0\1"
_IMAGE_OF_MPEG4: Final = b"\0\0\1\xb6"
_SHORT_HEADERS: Final = (b"\0\0\x80", b"\0\0\x81", b"\0\0\x82", b"\0\0\x83")
"""Begins of MPEG-4 that is written as H.263."""
_KINDS_OF_AV1: Final = frozenset({*range(1, 9), 15})
_MARK_OF_VP9: Final = 0x80
_HOLE: Final = bytes(64)
"""Zeros that no arithmetic coder writes: what a disk or a download has lost."""


def codec_name(codec: av.codec.context.CodecContext) -> str:
    """Return the codec's name, whichever decoder reads it."""
    return codec.codec.canonical_name


def check_of(codec: av.codec.context.CodecContext) -> Callable[[bytes], bool]:
    """Return what tells of a packet of this codec whether it is whole, as far as that can be seen."""
    name, extradata = codec_name(codec), codec.extradata or b""
    if name == "h264" and len(extradata) > 6 and extradata[0] == 1:
        length_size = (extradata[4] & 3) + 1
        return lambda packet: _has_whole_units(packet, length_size, _is_slice_of_h264)
    if name == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        length_size = (extradata[21] & 3) + 1
        return lambda packet: _has_whole_units(packet, length_size, _is_slice_of_hevc)
    known = {"mpeg4": _is_whole_mpeg4, "av1": _is_whole_av1, "vp9": _is_whole_vp9, "vp8": _has_no_hole}
    return known.get(name, lambda packet: True)


def _is_slice_of_h264(unit: bytes) -> bool:
    return 1 <= unit[0] & 31 <= 5


def _is_slice_of_hevc(unit: bytes) -> bool:
    return unit[0] >> 1 & 63 < 32


def _has_whole_units(packet: bytes, length_size: int, is_slice: Callable[[bytes], bool]) -> bool:
    """Return whether a packet is made of whole units, no slice of which holds what an encoder escapes."""
    at = 0
    while at + length_size <= len(packet):
        start = at + length_size
        at = start + int.from_bytes(packet[at:start], "big")
        if at == start or at > len(packet):
            return False
        unit = packet[start:at]
        content = unit.rstrip(b"\0")
        if is_slice(unit) and (len(unit) - len(content) > _MOST_PADDING or _NEVER_IN_A_UNIT.search(content)):
            return False
    return at == len(packet)


def _is_whole_mpeg4(packet: bytes) -> bool:
    """Return whether a packet begins where a unit does, and holds an image without more zeros than it may have."""
    if packet.startswith(_SHORT_HEADERS):
        return True
    image, content = packet.find(_IMAGE_OF_MPEG4), packet.rstrip(b"\0")
    if not packet.startswith(_START_OF_MPEG4) or len(packet) - len(content) > _MOST_PADDING:
        return False
    return image >= 0 and b"\0\0\0" not in content[image:]


def _is_whole_av1(packet: bytes) -> bool:
    at = 0
    while at < len(packet):
        head = packet[at]
        if head & 0x81 or head >> 3 not in _KINDS_OF_AV1:  # bits that are always zero
            return False
        at += 2 if head & 4 else 1
        if not head & 2:  # the last one may not say how long it is
            return at <= len(packet) and _has_no_hole(packet)
        length = shift = 0
        while True:
            if at >= len(packet) or shift > 49:
                return False
            length |= (packet[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not packet[at - 1] & 0x80:
                break
        at += length
    return at == len(packet) and _has_no_hole(packet)


def _is_whole_vp9(packet: bytes) -> bool:
    return packet[0] & 0xC0 == _MARK_OF_VP9 and _has_no_hole(packet)


def _has_no_hole(packet: bytes) -> bool:
    return _HOLE not in packet


def is_shown(packet: "av.Packet[av.stream.Stream]", codec: str) -> bool:
    """Return whether a packet holds a frame to show; those of VP8 may hold one that others are predicted from."""
    return codec != "vp8" or bool(bytes(memoryview(packet)[:1])[0] & 16)


def has_vp8_head(head: bytes, size: int) -> bool:
    """Return whether a packet of VP8 begins as one: the head tells whether its frame is shown."""
    is_key, first_part = not head[0] & 1, int.from_bytes(head[:3], "little") >> 5
    return 0 < first_part <= size - (10 if is_key else 3) and (not is_key or head[3:6] == b"\x9d\x01\x2a")
