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
        frames: How many frames each video has whose data begins within the file; of those whose edit list may hide
            some, and of fragments, nothing is said.
        is_cut: Whether the index names data behind the end of the file.
        leaves_out_data: Whether there is something behind a frame that is no other data, no padding and no box.
        whole_until: First byte that does not belong into a file in fragments; None where there is no such thing.

    """

    data: list[Data]
    has_fragments: bool
    frames: frozenset[int]
    is_cut: bool
    leaves_out_data: bool
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
        tracks = _all(movie, b"trak")
        videos = [
            _check_track(track, clock, size) for track in tracks if _one(track, b"mdia", b"hdlr")[8:12] == b"vide"
        ]
        is_cut = any(video.is_cut for video in videos)
        if not _all(movie, b"mvex") and not any(box.kind == b"moof" for box in boxes):
            is_sure = not any(video.may_hide for video in videos)
            frames = frozenset(int((video.spans[:, 0] < size).sum()) for video in videos if is_sure)
            return Layout(data, False, frames, is_cut, _leaves_out_data(file, videos, tracks, data), None)
    strange = next((box.start for box in boxes if box.kind not in _BESIDE_FRAGMENTS), None)
    end = boxes[-1].end
    return Layout(
        data, True, frozenset(), is_cut, False, strange if strange is not None or end == size else min(end, size)
    )


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


class _Track(NamedTuple):
    """What the tables of a video say: first byte and end of each frame, in the order of decoding."""

    spans: _Numbers
    is_cut: bool
    may_hide: bool
    """Whether its edit list may hide frames."""


def _check_track(track: bytes, movie_clock: int, size: int) -> _Track:
    """Check what the index says of a video."""
    tables = _one(track, b"mdia", b"minf", b"stbl")
    spans = _spans(tables, size)
    frames = len(spans)
    counts, durations = _rows(tables, b"stts", 2).T
    shifted, shifts = (_rows(tables, b"ctts", 2) if _all(tables, b"ctts") else np.array([[frames, 0]])).T
    keys = _rows(tables, b"stss", 1)[:, 0] if _all(tables, b"stss") else np.arange(0)
    if not frames == counts.sum() == shifted.sum():
        raise IndexDamagedError("its tables count different numbers of frames")
    if (np.diff(keys) <= 0).any() or (len(keys) and not 1 <= keys[0] <= keys[-1] <= frames):
        raise IndexDamagedError("its table of key frames is out of order")
    if (spans[:, 0] == spans[:, 1]).any():
        raise IndexDamagedError("its table of sizes has frames without any data")
    begins, ends = spans[np.argsort(spans[:, 0])].T
    if (begins[1:] < ends[:-1]).any():
        raise IndexDamagedError("it gives the same data to several frames")
    is_behind = spans[:, 1] > size
    if (is_behind[:-1] & ~is_behind[1:]).any():
        raise IndexDamagedError("it names data behind the end of the file, but not that of the last frames")
    late = shifts.astype(np.int32)
    timing = _Timing(np.repeat(durations, counts), np.repeat(late, shifted), _one(track, b"mdia", b"mdhd"))
    return _Track(spans, bool(is_behind.any()), _may_hide(_edits(track), timing, movie_clock))


class _Timing(NamedTuple):
    """How long each frame lasts, how much later it is shown than decoded, and the head that gives the clock."""

    durations: _Numbers
    late: _Numbers
    head: bytes


def _may_hide(edits: list[tuple[int, int]], timing: _Timing, movie_clock: int) -> bool:
    """Check the edit list of a video and return whether it may hide frames."""
    edits = [(begin, length) for begin, length in edits if begin != -1]
    if any(begin < 0 for begin, _ in edits):
        raise IndexDamagedError("its edit list begins before its frames")
    tick = _clock(timing.head) / movie_clock
    if any(after[0] < before[0] + (before[1] - 1) * tick for before, after in pairwise(sorted(edits))):
        raise IndexDamagedError("its edit list repeats frames")
    if not len(timing.durations) or len(edits) != 1:
        return len(edits) > 1
    decoded = np.cumsum(np.append(0, timing.durations))
    shown = np.sort(decoded[:-1] + timing.late)
    begin, length = edits[0]
    end, hidden_time = begin + length * tick, int(decoded[-1]) - length * tick
    lasting = shown[:-1] if timing.durations[-1] == 0 else shown  # the last frame is hidden where it lasts no time
    if shown[0] < begin or (lasting >= end).any():
        announced = int.from_bytes(timing.head[24:32] if timing.head[:1] == b"\1" else timing.head[16:20], "big")
        is_long = hidden_time < tick or begin - int(shown[0]) > hidden_time + tick
        if is_long or abs(announced - int(decoded[-1])) > np.abs(timing.late).max():
            raise IndexDamagedError("its edit list hides more frames than it can")
    return bool(shown[0] < begin or shown[-1] >= end)


def _spans(tables: bytes, size: int) -> _Numbers:
    """Return first byte and end of each frame (n, 2), in the order of decoding."""
    sizes, chunks = _sizes(tables, size), _chunks(tables)
    first_chunks, in_chunk, _ = _rows(tables, b"stsc", 3).T
    lengths = np.diff(np.append(first_chunks, len(chunks) + 1))
    if (in_chunk * lengths).sum() != len(sizes):
        raise IndexDamagedError("its tables count different numbers of frames")
    if (lengths <= 0).any() or (len(chunks) and (not len(first_chunks) or first_chunks[0] != 1)):
        raise IndexDamagedError("its table of chunks is out of order")
    in_each = np.repeat(in_chunk, lengths)
    before = np.cumsum(np.append(0, sizes))
    firsts = np.cumsum(in_each) - in_each
    starts = np.repeat(chunks - before[firsts], in_each) + before[:-1]
    spans = np.stack([starts, starts + sizes], axis=1)
    if (spans < 0).any():
        raise IndexDamagedError("its table of chunks is out of order")
    return spans


def _chunks(tables: bytes) -> _Numbers:
    """Return where each chunk of a track begins."""
    if not _all(tables, b"co64"):
        return _rows(tables, b"stco", 1)[:, 0]
    high, low = _rows(tables, b"co64", 2).T
    places: _Numbers = (high << 32) + low
    return places


def _sizes(tables: bytes, size: int) -> _Numbers:
    """Return how many bytes each frame has, in a file of ``size`` bytes."""
    if not _all(tables, b"stsz") and (compact := _all(tables, b"stz2")):
        bits, count = _integers(compact[0][4:12])
        packed = np.frombuffer(compact[0], np.uint8, offset=12)
        if bits not in (4, 8, 16) or 8 * len(packed) < bits * count:
            raise IndexDamagedError("its index ends in the middle")
        if bits == 4:  # the upper half of a byte first
            packed = np.stack([packed >> 4, packed & 15], axis=1).ravel()
        numbers = packed[: 2 * count].view(">u2") if bits == 16 else packed[:count]
        return numbers.astype(np.int64)
    frame_size, frames = _integers(_one(tables, b"stsz")[4:12])
    if not frame_size:
        return _rows(tables, b"stsz", 1, at=8)[:, 0]
    if frames * frame_size > size:
        raise IndexDamagedError("its table of sizes is longer than its file")
    return np.full(frames, frame_size, dtype=np.int64)


def _leaves_out_data(file: BinaryIO, videos: list[_Track], tracks: list[bytes], data: list[Data]) -> bool:
    """Return whether behind a frame there is something else than other data, zeros, or whole boxes.

    Boxes are what is left of the fragments of a recording whose index was written at its end.
    """
    places = [np.array([box.end for box in data]), *(video.spans[:, 0] for video in videos)]
    for track in tracks:
        try:
            places.append(_chunks(_one(track, b"mdia", b"minf", b"stbl")))
        except IndexDamagedError:
            return False  # of a kind that is not known
    begins = np.unique(np.concatenate(places))
    for video in videos:
        for end in np.setdiff1d(video.spans[:, 1], begins):
            place = int(np.searchsorted(begins, end))
            if place < len(begins) and not _is_padding(file, int(end), int(begins[place])):
                return True
    return False


def _is_padding(file: BinaryIO, start: int, end: int) -> bool:
    file.seek(start)
    found = file.read(min(end - start, _MOST_INDEX_BYTES))
    if not found.strip(b"\0"):
        return True
    at = 0
    while at + 8 <= len(found) and found[at + 4 : at + 8] in _BESIDE_FRAGMENTS:
        length = int.from_bytes(found[at : at + 4], "big")
        head = 16 if length == 1 else 8
        at += head if found[at + 4 : at + 8] == b"mdat" else max(length, 8)
    return at == len(found)


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
