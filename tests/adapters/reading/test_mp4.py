"""MP4 and MOV: no frame takes the number of another one where the index contradicts itself."""

from pathlib import Path
from typing import Final

import av
import numpy as np
import pytest

from handdata.adapters.reading.mp4 import IndexDamagedError, read_layout
from handdata.adapters.reading.video import VideoReader
from handdata.schemas.errors import RecordError, RejectReason
from tests.fixtures.numbered_videos import (
    FRAMES,
    boxes_of,
    damaged_in_index,
    numbers_of,
    shifted_numbers,
    write_numbered_video,
)

FRAGMENTS: Final = {"movflags": "frag_keyframe+empty_moov"}
KINDS: Final = {
    "b-frames.mp4": ("libx264", {"g": "10", "bf": "3"}, {}),
    "plain.mov": ("libx264", {"g": "10", "bf": "0"}, {}),
    "fragments.mp4": ("libx264", {"g": "10", "bf": "3"}, FRAGMENTS),
    "fragments-vp9.mp4": ("libvpx-vp9", {"g": "10", "cpu-used": "8"}, FRAGMENTS),
    "both.mp4": ("libx264", {"g": "10", "bf": "3"}, {"movflags": "frag_keyframe"}),
    "vp9.mp4": ("libvpx-vp9", {"g": "10", "cpu-used": "8"}, {}),
    "mpeg4.mp4": ("mpeg4", {"g": "10", "bf": "2"}, {}),
}
UNEVEN_MS: Final = np.cumsum(np.random.default_rng(3).integers(15, 90, FRAMES)).tolist()


def written(folder: Path, name: str, times_ms: list[int] | None = None) -> Path:
    codec, options, muxer = KINDS[name]
    return write_numbered_video(folder / name, codec, options, muxer, times_ms)


def with_number(path: Path, kind: bytes, at: int, number: int) -> Path:
    """Write a copy with a 32-bit number of the first box of a kind changed, ``at`` bytes behind its begin."""
    data = bytearray(path.read_bytes())
    start = next(start for found, start, _ in boxes_of(bytes(data)) if found == kind)
    data[start + at : start + at + 4] = number.to_bytes(4, "big")
    changed = path.with_stem("changed")
    changed.write_bytes(data)
    return changed


def wrong_of(folder: Path, name: str, cases: int, seed: int) -> list[str]:
    wrong = []
    for times_ms in (None, UNEVEN_MS):
        path = written(folder, name, times_ms)
        data, damaged = path.read_bytes(), path.with_stem("damaged")
        for case in range(cases):
            damaged.write_bytes(damaged_in_index(data, np.random.default_rng([seed, case])))
            if shifted := shifted_numbers(damaged):
                wrong.append(f"{name}, case {case}: {shifted}")
    return wrong


@pytest.mark.parametrize("name", ["b-frames.mp4", "fragments.mp4"])
def test_what_is_handed_on_has_its_own_number_whatever_the_index_says(tmp_path: Path, name: str) -> None:
    assert wrong_of(tmp_path, name, 12, seed=1) == []


@pytest.mark.soak
@pytest.mark.parametrize("name", KINDS)
def test_no_damage_of_an_index_shifts_a_number(tmp_path: Path, name: str) -> None:
    assert wrong_of(tmp_path, name, 300, seed=2) == []


@pytest.mark.parametrize("times_ms", [None, UNEVEN_MS], ids=["even", "uneven"])
@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_gives_every_frame(tmp_path: Path, name: str, times_ms: list[int] | None) -> None:
    assert numbers_of(written(tmp_path, name, times_ms)) == {index: index for index in range(FRAMES)}


@pytest.mark.parametrize(("begin_ms", "first"), [(600, 15), (610, 16)])
def test_a_video_that_was_cut_without_encoding_gives_the_frames_of_its_edit_list(
    tmp_path: Path, begin_ms: int, first: int
) -> None:
    path = tmp_path / "cut.mp4"
    with av.open(str(written(tmp_path, "b-frames.mp4"))) as source, av.open(str(path), "w") as cut:
        stream = source.streams.video[0]
        assert stream.time_base is not None
        copied, begin = cut.add_stream_from_template(stream), int(begin_ms / 1000 / stream.time_base)
        packets = [packet for packet in source.demux(stream) if packet.size]
        for packet in packets[10:]:  # from the key frame before
            assert packet.pts is not None and packet.dts is not None
            packet.stream, packet.pts, packet.dts = copied, packet.pts - begin, packet.dts - begin
            cut.mux(packet)
    assert numbers_of(path) == {index: index + first for index in range(FRAMES - first)}


@pytest.mark.parametrize(
    ("kind", "at", "number", "problem"),
    [
        (b"ctts", 16, 3, "different numbers of frames"),
        (b"stts", 16, FRAMES + 1, "different numbers of frames"),
        (b"stss", 16, FRAMES + 1, "key frames is out of order"),
        (b"stsc", 16, 2, "different numbers of frames"),
        (b"elst", 20, 2000, "hides more frames"),
        (b"elst", 20, 2**32 - 2, "begins before its frames"),
        (b"stsz", 16, FRAMES - 1, "different numbers of frames"),
        (b"stts", 4, 0, "lacks stts"),
    ],
)
def test_an_index_that_contradicts_itself_costs_the_video_and_says_why(
    tmp_path: Path, kind: bytes, at: int, number: int, problem: str
) -> None:
    path = with_number(written(tmp_path, "b-frames.mp4"), kind, at, number)
    with pytest.raises(IndexDamagedError, match=problem):
        read_layout(path)
    with pytest.raises(RecordError) as caught:
        VideoReader(path)
    assert caught.value.reason is RejectReason.FRAME_MISSING


def test_a_lost_fragment_ends_the_frames_whose_number_is_known(tmp_path: Path) -> None:
    path = written(tmp_path, "fragments-vp9.mp4")
    data = bytearray(path.read_bytes())
    starts = [start for kind, start, _ in boxes_of(bytes(data)) if kind == b"moof"]
    data[starts[2] + 4] ^= 0x20
    path.write_bytes(data)
    assert numbers_of(path) == {index: index for index in range(20)}
    with VideoReader(path) as reader, pytest.raises(RecordError, match="damaged at byte"):
        list(reader.frames(range(FRAMES)))


def test_a_recording_in_fragments_that_was_cut_short_gives_the_frames_before_the_end(tmp_path: Path) -> None:
    path = written(tmp_path, "fragments-vp9.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = numbers_of(path)
    assert len(found) >= 20
    assert all(index == number for index, number in found.items())
