"""Where a Matroska or WebM file is damaged between its frames.

FFmpeg skips what it cannot read in such a file and says nothing: the frames behind a lost one would take its number.
But the elements of the format say how long they are, and one begins where another ends. So a file is whole where they
cover it without a gap, and where each block belongs to one of its tracks. (Several frames of a video in one block,
which the format knows and no program writes, count as damage.)

FFmpeg puts a checksum before the rest of each element at the top and of each cluster, which covers the frames, too:
the only certain sign of damage within them. (WebM has none, nor what MKVToolNix and browsers write.) Where it
fails, the whole cluster, of a few seconds, counts as damaged.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from handdata.adapters.reading.listing import open_file, size_of

_HEADER: Final = 0x1A45DFA3
_SEGMENT: Final = 0x18538067
_INFO: Final = 0x1549A966
_TRACKS: Final = 0x1654AE6B
_CLUSTER: Final = 0x1F43B675
_BLOCK_GROUP: Final = 0xA0
_BLOCKS: Final = frozenset({0xA1, 0xA3})
_CHECKSUM: Final = 0xBF
_VOID: Final = frozenset({0xEC, _CHECKSUM})
"""Void and CRC-32, which may stand anywhere."""
_IN_SEGMENT: Final = _VOID | {
    *(0x114D9B74, _INFO, _TRACKS, _CLUSTER, 0x1C53BB6B),
    *(0x1941A469, 0x1043A770, 0x1254C367),
}
_NUMBERS: Final = frozenset({0xE7, 0xA7, 0xAB, 0x9B, 0xFA, 0xFB, 0xFD, 0xC8, 0x75A2})
"""Elements of clusters and block groups that hold one number."""
_IN_CLUSTER: Final = _VOID | {0xE7, 0xA7, 0xAB, 0x5854, _BLOCK_GROUP, 0xA3, 0xAF}
_IN_GROUP: Final = _VOID | {0xA1, 0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8, 0xCB, 0xAF}
_TRACK_ENTRY: Final = 0xAE
_TRACK_NUMBER: Final = 0xD7
_TRACK_TYPE: Final = 0x83
_VIDEO: Final = 1
_LACING: Final = 0x06
_BLOCK_BYTES: Final = 2**20


class _DamagedError(Exception):
    """At this byte there is something else than what belongs there."""


@dataclass(slots=True)
class Damage:
    """What of a file is damaged.

    Args:
        position: First byte that is not what belongs there; None where all are.
        clusters: First byte and end of the clusters before it that are not what their checksum says.

    """

    position: int | None = None
    clusters: list[tuple[int, int]] = field(default_factory=list)


def find_damage(path: Path) -> Damage:
    """Return what of a Matroska file is damaged.

    A file that ends too early is damaged at its end. Frames are looked at only where a checksum covers them.

    Raises:
        DatasetReadError: The file cannot be read.

    """
    size, damage = size_of(path), Damage()
    with open_file(path) as file:
        try:
            _check_file(file, size, damage)
        except _DamagedError as error:
            damage.position = int(error.args[0])
    return damage


def _check_file(file: BinaryIO, size: int, damage: Damage) -> None:
    kind, _, end = _element(file, 0, size)
    if kind != _HEADER or end is None:
        raise _DamagedError(0)
    kind, start, segment_end = _element(file, end, size, may_be_cut=True)
    if kind != _SEGMENT:
        raise _DamagedError(end)
    _check_segment(file, start, min(size, segment_end or size), damage)
    if segment_end is not None and segment_end > size:
        raise _DamagedError(size)
    if segment_end is not None and segment_end < size:
        file.seek(segment_end)
        if int.from_bytes(file.read(4), "big") in _IN_SEGMENT:
            raise _DamagedError(segment_end)


def _check_segment(file: BinaryIO, at: int, end: int, damage: Damage) -> None:
    tracks: dict[int, bool] = {}
    while at < end:
        kind, start, stop = _element(file, at, end)
        if kind not in _IN_SEGMENT or (stop is None and kind != _CLUSTER):
            raise _DamagedError(at)
        if kind == _TRACKS and stop is not None:
            tracks |= dict(_tracks(file, start, stop))
        if (
            stop is not None
            and kind in (_INFO, _TRACKS, _CLUSTER)
            and not _is_what_its_checksum_says(file, start, stop)
        ):
            if kind != _CLUSTER:
                raise _DamagedError(at)
            damage.clusters.append((at, stop))
        at = _check_cluster(file, start, stop, end, tracks) if kind == _CLUSTER else (stop or end)


def _is_what_its_checksum_says(file: BinaryIO, at: int, end: int) -> bool:
    """Return whether the content of an element is that of the checksum at its begin, if there is one."""
    if at == end:
        return True
    kind, start, stop = _element(file, at, end)
    if kind != _CHECKSUM or stop != start + 4:
        return True
    file.seek(start)
    announced, found, left = int.from_bytes(file.read(4), "little"), 0, end - stop
    while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
        found, left = zlib.crc32(block, found), left - len(block)
    return announced == found


def _tracks(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, bool]]:
    """Yield the number of each track, and whether it is a video."""
    for kind, start, stop in _elements(file, at, end):
        if kind == _TRACK_ENTRY:
            numbers: dict[int, int] = {}
            for inner, inner_start, inner_end in _elements(file, start, stop):
                if inner in (_TRACK_NUMBER, _TRACK_TYPE):
                    file.seek(inner_start)
                    numbers[inner] = int.from_bytes(file.read(inner_end - inner_start), "big")
            yield numbers.get(_TRACK_NUMBER, 0), numbers.get(_TRACK_TYPE) == _VIDEO


def _elements(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the kind, the begin of the content and the end of each element between two places."""
    while at < end:
        kind, start, stop = _element(file, at, end)
        if stop is None:
            raise _DamagedError(at)
        yield kind, start, stop
        at = stop


def _check_cluster(file: BinaryIO, at: int, stop: int | None, end: int, tracks: dict[int, bool]) -> int:
    """Check a cluster and return where it ends; one of unknown length (``stop`` is None) ends where the next begins."""
    while at < (stop or end):
        kind, start, child_end = _element(file, at, stop or end)
        if stop is None and kind in _IN_SEGMENT - _VOID:
            return at
        if kind not in _IN_CLUSTER or child_end is None:
            raise _DamagedError(at)
        _check_child(file, kind, start, child_end, tracks)
        at = child_end
    return at


def _check_child(file: BinaryIO, kind: int, start: int, end: int, tracks: dict[int, bool]) -> None:
    if kind in _BLOCKS:
        file.seek(start)
        number, length = _number(file.read(12), 0, keep_marker=False)
        file.seek(start + length + 2)
        flags = file.read(1)
        if number not in tracks or not flags or (flags[0] & _LACING and tracks[number]):
            raise _DamagedError(start)
    elif kind in _NUMBERS and end - start > 8:
        raise _DamagedError(start)
    elif kind == _BLOCK_GROUP:
        at = start
        while at < end:
            inner, inner_start, inner_end = _element(file, at, end)
            if inner not in _IN_GROUP or inner_end is None:
                raise _DamagedError(at)
            _check_child(file, inner, inner_start, inner_end, tracks)
            at = inner_end


def _element(file: BinaryIO, at: int, end: int, may_be_cut: bool = False) -> tuple[int, int, int | None]:
    """Return an element's kind, where its content begins, and where it ends; None where the file does not say."""
    file.seek(at)
    head = file.read(12)
    kind, id_length = _number(head, 0, keep_marker=True)
    size, size_length = _number(head, id_length, keep_marker=False)
    start = at + id_length + size_length
    if not id_length or id_length > 4 or not size_length or start > end:
        raise _DamagedError(at)
    if size == (1 << 7 * size_length) - 1:
        return kind, start, None
    if start + size > end and not may_be_cut:
        raise _DamagedError(at)
    return kind, start, start + size


def _number(data: bytes, at: int, keep_marker: bool) -> tuple[int, int]:
    """Return a number whose first bit that is set says how many bytes it has, and how many; 0 where it is none."""
    length = 9 - data[at].bit_length() if at < len(data) else 9
    if length > 8 or at + length > len(data):
        return 0, 0
    number = int.from_bytes(data[at : at + length], "big")
    return number if keep_marker else number & ((1 << 7 * length) - 1), length
