"""Where the index of an MP4 or MOV file contradicts itself.

FFmpeg takes what the index says, skips what it cannot read in it, and says nothing: the frames behind a lost one would
take its number. But an index says most things twice: all its tables count the same frames, an edit list ends where the
frames do, and the fragments of a file in fragments follow each other without a gap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.reading.listing import open_file, size_of

_Numbers: TypeAlias = NDArray[np.int64]
_BESIDE_FRAGMENTS: Final = frozenset(
    {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"sidx", b"ssix", b"mfra", b"free", b"skip", b"wide", b"uuid"}
    | {b"meta", b"udta", b"pdin", b"prft", b"emsg"}
)
_MOST_INDEX_BYTES: Final = 2**28
"""Days of video have less."""


class IndexDamagedError(Exception):
    """The index contradicts itself, so that no frame has a number."""


class Data(NamedTuple):
    """First byte and end of a box of data, and how many packets a fragment names in it; None outside of fragments."""

    start: int
    end: int
    packets: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the data of a file lies whose index does not contradict itself.

    Args:
        data: Boxes of data.
        has_fragments: Whether the file is in fragments.
        hides_last: Whether an edit list hides the last frames.
        whole_until: First byte that does not belong into a file in fragments; None where there is no such thing.

    """

    data: list[Data]
    has_fragments: bool
    hides_last: bool
    whole_until: int | None


class _Box(NamedTuple):
    kind: bytes
    start: int
    content: int
    end: int


def read_layout(path: Path) -> Layout:
    """Check the index of a file and return where its data lies.

    Raises:
        IndexDamagedError: The index contradicts itself.
        DatasetReadError: The file cannot be read.

    """
    size = size_of(path)
    with open_file(path) as file:
        boxes = list(_boxes_of(file, size))
        index = next((box for box in boxes if box.kind == b"moov"), None)
        if index is None or index.end - index.content > _MOST_INDEX_BYTES:
            raise IndexDamagedError("it has no index")
        movie = _read(file, index)
        data = list(_data_of(file, boxes, size))
    clock = _clock(_one(movie, b"mvhd"))
    hides_last = False
    for track in _all(movie, b"trak"):
        if _one(track, b"mdia", b"hdlr")[8:12] == b"vide" and _all(track, b"mdia", b"minf", b"stbl", b"stsz"):
            hides_last |= _check_track(track, clock, size)
    if not _all(movie, b"mvex") and not any(box.kind == b"moof" for box in boxes):
        return Layout(data, False, hides_last, None)
    strange = next((box.start for box in boxes if box.kind not in _BESIDE_FRAGMENTS), None)
    end = boxes[-1].end
    return Layout(data, True, hides_last, strange if strange is not None or end == size else min(end, size))


def _boxes_of(file: BinaryIO, size: int) -> Iterator[_Box]:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind, start = int.from_bytes(head[:4], "big"), head[4:8], at + 8
        if length == 1:
            length, start = int.from_bytes(head[8:16], "big"), at + 16
        end = size if length == 0 else at + length
        if end < start:
            return
        yield _Box(kind, at, start, end)
        at = end


def _read(file: BinaryIO, box: _Box) -> bytes:
    file.seek(box.content)
    return file.read(min(box.end - box.content, _MOST_INDEX_BYTES))


def _data_of(file: BinaryIO, boxes: list[_Box], size: int) -> Iterator[Data]:
    named: int | None = None
    for box in boxes:
        if box.kind == b"mdat":
            yield Data(box.content, min(box.end, size), named if box.end <= size else None)
            named = None if named is None else 0
        elif box.kind == b"moof":
            named = (named or 0) + _named_by(_read(file, box))


def _named_by(fragment: bytes) -> int:
    """Return how many packets a fragment names; -1 where that cannot be read."""
    try:
        runs = [run for part in _all(fragment, b"traf") for run in _all(part, b"trun")]
    except IndexDamagedError:
        return -1
    return sum(int.from_bytes(run[4:8], "big") for run in runs)


# ---------------------------------------------------------------------------------------------------- tables


def _check_track(track: bytes, movie_clock: int, size: int) -> bool:
    """Check what the index says of a video, and return whether its edit list hides the last frames."""
    tables = _one(track, b"mdia", b"minf", b"stbl")
    frame_size, frames = _integers(_one(tables, b"stsz")[4:12])
    counts, durations = _rows(tables, b"stts", 2).T
    shifted, shifts = (_rows(tables, b"ctts", 2) if _all(tables, b"ctts") else np.array([[frames, 0]])).T
    chunks = len(_rows(tables, b"co64", 2) if _all(tables, b"co64") else _rows(tables, b"stco", 1))
    first_chunks, in_chunk, _ = _rows(tables, b"stsc", 3).T
    lengths = np.diff(np.append(first_chunks, chunks + 1))
    keys = _rows(tables, b"stss", 1)[:, 0] if _all(tables, b"stss") else np.arange(0)
    stored = min(frames, size // frame_size) if frame_size else len(_rows(tables, b"stsz", 1, at=8))
    if not frames == stored == counts.sum() == shifted.sum() == (in_chunk * lengths).sum():
        raise IndexDamagedError("its tables count different numbers of frames")
    if (lengths <= 0).any() or (chunks and first_chunks[0] != 1):
        raise IndexDamagedError("its table of chunks is out of order")
    if (np.diff(keys) <= 0).any() or (len(keys) and not 1 <= keys[0] <= keys[-1] <= frames):
        raise IndexDamagedError("its table of key frames is out of order")
    late = shifts.astype(np.int32)
    decoded = np.cumsum(np.append(0, np.repeat(durations, counts)))
    shown = np.sort(decoded[:-1] + np.repeat(late, shifted))
    edits = [(begin, length) for begin, length in _edits(track) if begin != -1]
    if any(begin < 0 for begin, _ in edits):
        raise IndexDamagedError("its edit list begins before its frames")
    head = _one(track, b"mdia", b"mdhd")
    tick = _clock(head) / movie_clock
    if any(after[0] < before[0] + (before[1] - 1) * tick for before, after in pairwise(sorted(edits))):
        raise IndexDamagedError("its edit list repeats frames")
    if not frames or len(edits) != 1:
        return len(edits) > 1
    begin, length = edits[0]
    end, hidden_time = begin + length * tick, int(decoded[-1]) - length * tick
    if shown[0] < begin or shown[-1] >= end:
        announced = int.from_bytes(head[24:32] if head[:1] == b"\1" else head[16:20], "big")
        is_long = hidden_time < tick or begin - int(shown[0]) > hidden_time + tick
        if is_long or abs(announced - int(decoded[-1])) > np.abs(late).max():
            raise IndexDamagedError("its edit list hides more frames than it can")
    return bool(shown[-1] >= end)


def _edits(track: bytes) -> list[tuple[int, int]]:
    """Return when each edit begins, in the track's time, and how long it is, in the movie's."""
    found = _all(track, b"edts", b"elst")
    if not found:
        return []
    width = 8 if found[0][:1] == b"\1" else 4
    count = int.from_bytes(found[0][4:8], "big")
    row = np.dtype([("length", f">u{width}"), ("begin", f">i{width}"), ("rate", ">i4")])
    if len(found[0]) < 8 + count * row.itemsize:
        raise IndexDamagedError("its index ends in the middle")
    rows = np.frombuffer(found[0], row, count, offset=8)
    return [(int(row["begin"]), int(row["length"])) for row in rows]


# ---------------------------------------------------------------------------------------------------- boxes


def _children(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big") or len(content) - at
        if length < 8 or at + length > len(content):
            raise IndexDamagedError("its index ends in the middle")
        yield content[at + 4 : at + 8], content[at + 8 : at + length]
        at += length


def _all(content: bytes, *path: bytes) -> list[bytes]:
    """Return the contents of all boxes of the last kind of a path in the first of the others."""
    for kind in path[:-1]:
        content = next((child for found, child in _children(content) if found == kind), b"")
    return [child for found, child in _children(content) if found == path[-1]]


def _one(content: bytes, *path: bytes) -> bytes:
    found = _all(content, *path)
    if not found:
        raise IndexDamagedError(f"its index lacks {path[-1].decode('latin-1')}")
    return found[0]


def _integers(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4)]


def _clock(head: bytes) -> int:
    """Return how many units a second has, from the head of a movie or of its media."""
    at = 20 if head[:1] == b"\1" else 12
    return int.from_bytes(head[at : at + 4], "big") or 1


def _rows(tables: bytes, kind: bytes, width: int, at: int = 4) -> _Numbers:
    """Return a table of 32-bit numbers, whose number of rows stands at ``at``."""
    content = _one(tables, kind)
    rows = int.from_bytes(content[at : at + 4], "big")
    table = content[at + 4 : at + 4 + 4 * width * rows]
    if len(table) < 4 * width * rows:
        raise IndexDamagedError("its index ends in the middle")
    return np.frombuffer(table, ">u4").astype(np.int64).reshape(rows, width)
