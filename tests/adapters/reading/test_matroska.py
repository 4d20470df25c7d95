"""Matroska and WebM: no frame takes the number of one that damage of the file has lost."""

from pathlib import Path
from typing import Final

import av
import numpy as np
import pytest

from handdata.adapters.reading.matroska import find_damage
from handdata.adapters.reading.video import VideoReader, video_info
from handdata.schemas.errors import RecordError, RejectReason
from tests.fixtures.numbered_videos import (
    FRAMES,
    bytes_between_frames,
    damaged_between_frames,
    numbers_of,
    shifted_numbers,
    write_numbered_video,
)

KINDS: Final = {
    "b-frames.mkv": ("libx264", {"g": "10", "bf": "3"}),
    "plain.mkv": ("libx264", {"g": "10", "bf": "0"}),
    "mpeg4.mkv": ("mpeg4", {"g": "10"}),
    "vp8.webm": ("libvpx", {"g": "10", "cpu-used": "8"}),
    "vp9.webm": ("libvpx-vp9", {"g": "10", "cpu-used": "8"}),
}
SHORT_CLUSTERS: Final = {"cluster_time_limit": "300"}


def wrong_of(folder: Path, name: str, cases: int, seed: int) -> list[str]:
    codec, options = KINDS[name]
    path = write_numbered_video(folder / name, codec, options, SHORT_CLUSTERS)
    between, data, wrong = bytes_between_frames(path), path.read_bytes(), []
    damaged = path.with_stem("damaged")
    for case in range(cases):
        damaged.write_bytes(damaged_between_frames(data, between, np.random.default_rng([seed, case])))
        if shifted := shifted_numbers(damaged):
            wrong.append(f"{name}, case {case}: {shifted}")
    return wrong


@pytest.mark.parametrize("name", KINDS)
def test_what_is_handed_on_of_a_damaged_file_has_its_own_number(tmp_path: Path, name: str) -> None:
    assert wrong_of(tmp_path, name, 15, seed=1) == []


@pytest.mark.soak
@pytest.mark.parametrize("name", KINDS)
def test_no_damage_between_frames_shifts_a_number(tmp_path: Path, name: str) -> None:
    assert wrong_of(tmp_path, name, 400, seed=2) == []


@pytest.mark.parametrize(
    "muxer", [{}, SHORT_CLUSTERS, {"live": "1"}, {"write_crc32": "0"}, {"reserve_index_space": "4096"}]
)
@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_gives_every_frame(tmp_path: Path, name: str, muxer: dict[str, str]) -> None:
    codec, options = KINDS[name]
    times = np.cumsum(np.random.default_rng(3).integers(15, 90, FRAMES)).tolist()
    for times_ms in (None, times):
        path = write_numbered_video(tmp_path / name, codec, options, muxer, times_ms)
        assert find_damage(path).position is None
        assert numbers_of(path) == {index: index for index in range(FRAMES)}


def test_a_hidden_frame_of_vp8_has_no_number(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "clip.webm", *KINDS["vp8.webm"], {"live": "1", "write_crc32": "0"})
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    assert places[15] is not None
    data[places[15] + 4] &= ~16  # the bit of VP8 that says to show it
    path.write_bytes(data)
    assert video_info(path).frames == FRAMES - 1
    assert numbers_of(path) == {index: index + (index >= 15) for index in range(FRAMES - 1)}


def test_a_lost_block_ends_the_frames_whose_number_is_known(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "clip.mkv", *KINDS["plain.mkv"], {**SHORT_CLUSTERS, "write_crc32": "0"})
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    assert places[25] is not None
    data[places[25]] ^= 0x20  # its track
    path.write_bytes(data)
    assert find_damage(path).position is not None
    with VideoReader(path) as reader, pytest.raises(RecordError, match="damaged at byte") as caught:
        list(reader.frames(range(FRAMES)))
    assert caught.value.reason is RejectReason.FRAME_MISSING
    found = numbers_of(path)
    assert len(found) >= 9
    assert all(index == number for index, number in found.items())


def test_a_file_that_ends_too_early_is_damaged_at_its_end(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "clip.webm", *KINDS["vp8.webm"], SHORT_CLUSTERS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert find_damage(path).position is not None
    found = numbers_of(path)
    assert found and all(index == number for index, number in found.items())


def test_metadata_that_is_no_text_costs_nothing(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "clip.mp4", "libx264")
    path.write_bytes(path.read_bytes().replace(b"VideoHandler", b"Video\xbfandler"))
    assert video_info(path).frames == FRAMES


@pytest.mark.parametrize("name", ["b-frames.mkv", "plain.mkv", "mpeg4.mkv"])
def test_a_checksum_tells_damage_within_a_frame_that_the_decoder_hides(tmp_path: Path, name: str) -> None:
    path = write_numbered_video(tmp_path / name, *KINDS[name], SHORT_CLUSTERS)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][13]
    data = bytearray(path.read_bytes())
    assert packet.pos is not None
    data[packet.pos + 4 + packet.size // 2] ^= 1
    path.write_bytes(data)
    assert find_damage(path).position is None
    found = numbers_of(path)
    assert 13 not in found
    assert len(found) >= FRAMES - 20
    assert all(index == number for index, number in found.items())


def test_a_damaged_head_of_vp8_ends_the_frames_whose_number_is_known(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "clip.webm", *KINDS["vp8.webm"], {"write_crc32": "0"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][15]
    data = bytearray(path.read_bytes())
    assert packet.pos is not None
    data[packet.pos + 4 : packet.pos + 4 + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    assert numbers_of(path) == {index: index for index in range(15)}


@pytest.mark.parametrize("moved_ms", [-60, 60, 410, -410])
def test_a_cluster_at_a_wrong_time_moves_no_frame_of_the_others(tmp_path: Path, moved_ms: int) -> None:
    path = write_numbered_video(tmp_path / "clip.mkv", *KINDS["b-frames.mkv"], SHORT_CLUSTERS)
    data = bytearray(path.read_bytes())
    cluster = [at for at in range(len(data)) if data[at : at + 4] == b"\x1f\x43\xb6\x75"][2]
    at = data.index(b"\xe7\x82", cluster) + 2
    data[at : at + 2] = (int.from_bytes(data[at : at + 2], "big") + moved_ms).to_bytes(2, "big")
    path.write_bytes(data)
    found = numbers_of(path)
    assert len(found) >= FRAMES // 4
    assert all(index == number for index, number in found.items())


def test_a_frame_that_would_be_read_as_several_is_damage_beside_sound_too(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w", options={"write_crc32": "0"}) as container:
        video, sound = container.add_stream("libx264", rate=25), container.add_stream("pcm_s16le", rate=8000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for index in range(FRAMES):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8))))
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.int16), format="s16", layout="mono")
            noise.sample_rate = 8000
            container.mux(sound.encode(noise))
        container.mux(video.encode())
    assert find_damage(path).position is None
    with av.open(str(path)) as container:
        place = [packet.pos for packet in container.demux(video=0) if packet.size][9]
    data = bytearray(path.read_bytes())
    assert place is not None
    data[place + 3] |= 4
    path.write_bytes(data)
    assert find_damage(path).position == place


@pytest.mark.parametrize("codec", ["ffv1", "libvpx-vp9"])
def test_a_block_at_a_wrong_time_moves_no_frame_of_a_codec_that_never_reorders(tmp_path: Path, codec: str) -> None:
    path = write_numbered_video(tmp_path / "clip.mkv", codec, {"g": "10"}, {"write_crc32": "0"})
    with av.open(str(path)) as container:
        place = [packet.pos for packet in container.demux(video=0) if packet.size][36]
    data = bytearray(path.read_bytes())
    assert place is not None
    moved = int.from_bytes(data[place + 1 : place + 3], "big", signed=True) - 250
    data[place + 1 : place + 3] = moved.to_bytes(2, "big", signed=True)
    path.write_bytes(data)
    found = numbers_of(path)
    assert len(found) >= 25
    assert all(index == number for index, number in found.items())
