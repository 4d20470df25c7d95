"""Where the index of an MP4 or MOV file contradicts itself.

FFmpeg takes what the index says, skips what it cannot read in it, and says nothing: the frames behind a lost one would
take its number. But an index says most things twice: all its tables count the same frames, an edit list ends where the
frames do, and the fragments of a file in fragments follow each other without a gap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the data of a file lies whose index does not contradict itself.

    Args:
        data: First byte and end of each box of data.
        has_fragments: Whether the file is in fragments.
        is_dense: Whether each byte of ``data`` belongs to the packets of FFmpeg: it gives none of other tracks than
            those of images and sound.
        whole_until: First byte that does not belong into a file in fragments; None where there is no such thing.

    """

    data: list[tuple[int, int]]
    has_fragments: bool
    is_dense: bool
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
        file.seek(index.content)
        movie = file.read(index.end - index.content)
    clock = _clock(_one(movie, b"mvhd"))
    kinds = set()
    for track in _all(movie, b"trak"):
        kinds.add(_one(track, b"mdia", b"hdlr")[8:12])
        if _one(track, b"mdia", b"hdlr")[8:12] == b"vide" and _all(track, b"mdia", b"minf", b"stbl", b"stsz"):
            _check_track(track, clock, size)
    is_dense = kinds <= {b"vide", b"soun"}
    data = [(box.content, min(box.end, size)) for box in boxes if box.kind == b"mdat"]
    if not _all(movie, b"mvex") and not any(box.kind == b"moof" for box in boxes):
        return Layout(data, False, is_dense, None)
    strange = next((box.start for box in boxes if box.kind not in _BESIDE_FRAGMENTS), None)
    end = boxes[-1].end
    return Layout(data, True, is_dense, strange if strange is not None or end == size else min(end, size))


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


# ---------------------------------------------------------------------------------------------------- tables


def _check_track(track: bytes, movie_clock: int, size: int) -> None:
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
    decoded = np.cumsum(np.append(0, np.repeat(durations, counts)))
    shown = np.sort(decoded[:-1] + np.repeat(shifts.astype(np.int32), shifted))
    edits = [(begin, length) for begin, length in _edits(track) if begin >= 0]
    if frames and len(edits) == 1:
        head = _one(track, b"mdia", b"mdhd")
        announced = int.from_bytes(head[24:32] if head[:1] == b"\1" else head[16:20], "big")
        delay = int(np.abs(shifts.astype(np.int32)).max())
        _check_edit(shown, (announced, delay), int(decoded[-1]), *edits[0], _clock(head) / movie_clock)


def _check_edit(
    shown: _Numbers, announced: tuple[int, int], duration: int, begin: int, length: int, tick: float
) -> None:
    """Check that an edit hides as many frames as it is shorter than all of them.

    Args:
        shown: Rising presentation times before the edit.
        announced: Duration of all frames as the media's head tells it, and by how much it may differ from the sum.
        duration: Sum of the durations of all frames.
        begin: Time at which the edit begins.
        length: Of the edit, in units of the movie.
        tick: Such a unit in those of the other times.

    """
    end, hidden_time = begin + length * tick, duration - length * tick
    if shown[0] >= begin and shown[-1] < end:
        return
    if hidden_time < tick or begin - int(shown[0]) > hidden_time + tick or abs(announced[0] - duration) > announced[1]:
        raise IndexDamagedError("its edit list hides more frames than it can")


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
    numbers = np.frombuffer(content, ">u4", offset=at + 4) if len(content) >= at + 4 and len(content) % 4 == 0 else []
    if len(numbers) < rows * width:
        raise IndexDamagedError("its index ends in the middle")
    return np.array(numbers[: rows * width], dtype=np.int64).reshape(rows, width)
