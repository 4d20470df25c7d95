"""MP4 and MOV: no frame takes the number of another one where the index contradicts itself."""

import struct
from pathlib import Path
from typing import Final

import av
import numpy as np
import pytest
from PIL import Image

from handdata.adapters.reading.mp4 import IndexDamagedError, read_layout
from handdata.adapters.reading.video import VideoReader
from handdata.schemas.errors import RecordError, RejectReason
from tests.fixtures.jpegs import encoded
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
        (b"stsz", 20 + 4 * 7, 0, "frames without any data"),
        (b"stco", 16 + 4 * 2, 100, "same data to several frames"),
        (b"stco", 16 + 4 * 2, 2**31, "behind the end of the file"),
        (b"stsz", 4, int.from_bytes(b"stsy", "big"), "lacks stsz"),
    ],
)
def test_an_index_that_contradicts_itself_costs_the_video_and_says_why(
    tmp_path: Path, kind: bytes, at: int, number: int, problem: str
) -> None:
    path = with_number(in_short_chunks(written(tmp_path, "b-frames.mp4")), kind, at, number)
    with pytest.raises(IndexDamagedError, match=problem):
        read_layout(path)
    with pytest.raises(RecordError) as caught:
        VideoReader(path)
    assert caught.value.reason is RejectReason.FRAME_MISSING


def in_short_chunks(path: Path, padding: bytes = b"") -> Path:
    """Write a copy whose frames lie in five chunks, with the same bytes behind each."""
    data = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    chunks = [b"".join(packets[first : first + 8]) + padding for first in range(0, FRAMES, 8)]
    starts = [16 + 8 + sum(map(len, chunks[:number])) for number in range(len(chunks))]
    chosen = {
        b"stco": struct.pack(">7I", 0, len(starts), *starts),
        b"stsc": struct.pack(">5I", 0, 1, 1, 8, 1),
    }
    copied = path.with_stem("chunks")
    copied.write_bytes(box(b"ftyp", b"isom\0\0\0\0") + box(b"mdat", b"".join(chunks)) + replaced(data, chosen))
    return copied


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def replaced(data: bytes, contents: dict[bytes, bytes]) -> bytes:
    """Return the index of an MP4 file with other contents of some boxes."""

    def rebuilt(start: int, end: int) -> bytes:
        made, at = b"", start
        while at < end:
            size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            is_folder = kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
            content = rebuilt(at + 8, at + size) if is_folder else contents.get(kind, data[at + 8 : at + size])
            made, at = made + box(kind, content), at + size
        return made

    start, end = next((start, end) for kind, start, end in boxes_of(data) if kind == b"moov")
    return rebuilt(start, end)


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_padding_behind_chunks_is_no_damage(tmp_path: Path, codec: str) -> None:
    path = write_numbered_video(tmp_path / "clip.mp4", codec, {"g": "10"})
    for padding in (b"", bytes(500), box(b"free", b"what a camera leaves")):
        assert numbers_of(in_short_chunks(path, padding)) == {index: index for index in range(FRAMES)}


def test_data_that_no_frame_claims_is_damage_where_nothing_else_tells_it(tmp_path: Path) -> None:
    path = in_short_chunks(write_numbered_video(tmp_path / "clip.mp4", "libvpx-vp9", {"g": "10"}), b"a lost frame")
    with pytest.raises(RecordError, match="leaves out some data"):
        VideoReader(path)


def test_compact_sizes_are_checked_as_others_are(tmp_path: Path) -> None:
    path = in_short_chunks(written(tmp_path, "b-frames.mp4"))
    data = path.read_bytes()
    start = next(start for kind, start, _ in boxes_of(data) if kind == b"stsz")
    sizes = struct.unpack(f">{FRAMES}I", data[start + 20 : start + 20 + 4 * FRAMES])
    compact = struct.pack(f">III{FRAMES}H", 0, 16, FRAMES, *sizes)
    index = replaced(data, {b"stsz": compact}).replace(b"stsz", b"stz2")
    moov = next(start for kind, start, _ in boxes_of(data) if kind == b"moov")
    path.write_bytes(data[:moov] + index)
    assert numbers_of(path) == {index: index for index in range(FRAMES)}
    with pytest.raises(IndexDamagedError, match="different numbers of frames"):
        read_layout(with_number(path, b"stz2", 16, FRAMES - 1))


def test_a_recording_whose_index_came_at_its_end_keeps_what_is_left_of_its_fragments(tmp_path: Path) -> None:
    muxer = {"movflags": "hybrid_fragmented+frag_keyframe"}
    path = write_numbered_video(tmp_path / "clip.mp4", "libvpx-vp9", {"g": "10"}, muxer)
    assert numbers_of(path) == {index: index for index in range(FRAMES)}


def test_a_last_frame_that_lasts_no_time_is_hidden_as_other_readers_hide_it(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "clip.mp4", "libvpx-vp9", {"g": "10"}, {"movflags": "faststart"})
    data = path.read_bytes()
    count, duration = struct.unpack(">II", data[data.index(b"stts") + 12 :][:8])
    assert count == FRAMES
    times = struct.pack(">6I", 0, 2, FRAMES - 1, duration, 1, 0)
    path = in_short_chunks(path)
    data = path.read_bytes()
    moov = next(start for kind, start, _ in boxes_of(data) if kind == b"moov")
    length = (FRAMES - 1) * 40
    edits = struct.pack(">IIIII", 0, 1, length, 0, 0x10000)
    head = bytearray(data[data.index(b"mdhd") + 4 :][:24])
    head[16:20] = ((FRAMES - 1) * duration).to_bytes(4, "big")
    path.write_bytes(data[:moov] + replaced(data, {b"stts": times, b"elst": edits, b"mdhd": bytes(head)}))
    assert numbers_of(path) == {index: index for index in range(FRAMES - 1)}


def test_a_video_that_an_edit_list_begins_at_a_later_group_loses_no_frame_at_its_end(tmp_path: Path) -> None:
    path = in_short_chunks(written(tmp_path, "b-frames.mp4"))
    data = path.read_bytes()
    begin = struct.unpack(">i", data[data.index(b"elst") + 16 :][:4])[0]
    clock = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    moov = next(start for kind, start, _ in boxes_of(data) if kind == b"moov")
    edits = struct.pack(">IIIiI", 0, 1, 30 * 40, begin + 10 * 40 * clock // 1000, 0x10000)
    path.write_bytes(data[:moov] + replaced(data, {b"elst": edits}))
    assert numbers_of(path) == {index: index + 10 for index in range(FRAMES - 10)}


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "clip.mp4", "libvpx-vp9", {"g": "10"})
    content = box(b"data", b"\0\0\0\x0d\0\0\0\0" + encoded(Image.new("RGB", (64, 64), "red")))
    kind = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    cover = box(b"udta", box(b"meta", bytes(4) + kind + box(b"ilst", box(b"covr", content))))
    data = path.read_bytes()
    start, end = next((start, end) for kind, start, end in boxes_of(data) if kind == b"moov")
    first = data.index(b"trak") - 4
    path.write_bytes(data[:start] + box(b"moov", data[start + 8 : first] + cover + data[first:end]) + data[end:])
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    assert numbers_of(path) == {index: index for index in range(FRAMES)}


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
