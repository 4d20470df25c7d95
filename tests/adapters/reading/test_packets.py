"""Packets of videos: those that are not whole are told from those that are, before they are decoded."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import av
import numpy as np
import pytest

from handdata.adapters.reading.packets import check_of
from tests.fixtures.numbered_videos import numbers_of, write_numbered_video

KINDS: Final = {
    "libx264": ("clip.mp4", {"g": "10", "bf": "3"}),
    "libx265": ("clip.mp4", {"preset": "ultrafast", "x265-params": "keyint=10:log-level=error"}),
    "mpeg4": ("clip.mp4", {"g": "10", "bf": "2"}),
    "libvpx": ("clip.mkv", {"g": "10", "cpu-used": "8"}),
    "libvpx-vp9": ("clip.mp4", {"g": "10", "cpu-used": "8"}),
    "libsvtav1": ("clip.mp4", {"g": "10", "preset": "11"}),
}


def hollowed(packet: bytes) -> bytes:
    begin = len(packet) // 3
    return packet[:begin] + bytes(100) + packet[begin + 100 :]


def begun_later(packet: bytes) -> bytes:
    return packet[5:]


def ended_early(packet: bytes) -> bytes:
    return packet[:-5]


NOT_WHOLE: Final[list[tuple[str, Callable[[bytes], bytes]]]] = [
    *((codec, hollowed) for codec in KINDS),
    *((codec, begun_later) for codec in ("libx264", "libx265", "mpeg4")),
    *((codec, ended_early) for codec in ("libx264", "libx265", "libsvtav1")),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        codec: write_numbered_video(folder / f"{codec}-{name}", codec, options)
        for codec, (name, options) in KINDS.items()
    }


@pytest.mark.parametrize(("codec", "change"), NOT_WHOLE)
def test_a_packet_that_is_not_whole_is_told_from_the_others(
    videos: dict[str, Path], codec: str, change: Callable[[bytes], bytes]
) -> None:
    with av.open(str(videos[codec])) as container:
        is_whole = check_of(container.streams.video[0].codec_context)
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    assert all(is_whole(packet) for packet in packets)
    long = [packet for packet in packets[1:] if len(packet) > 300]  # the first may begin with texts
    assert long
    assert not any(is_whole(change(packet)) for packet in long)


@pytest.mark.parametrize("codec", ["libx265", "libvpx-vp9", "libsvtav1", "mpeg4"])
def test_a_hole_in_a_frame_hides_it_and_all_that_may_be_predicted_from_it(
    tmp_path: Path, videos: dict[str, Path], codec: str
) -> None:
    data = videos[codec].read_bytes()
    with av.open(str(videos[codec])) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    packet = max(packets[12:19], key=lambda packet: packet.size)
    assert packet.pos is not None
    changed = data[: packet.pos] + hollowed(bytes(packet)) + data[packet.pos + packet.size :]
    path = tmp_path / "clip.mp4"
    path.write_bytes(changed)
    found = numbers_of(path)
    assert 20 <= len(found) < 40
    assert all(index == number for index, number in found.items())


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9", "libsvtav1", "libx265", "mpeg4"])
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_no_frame_of_a_still_and_empty_video_is_taken_for_damaged(tmp_path: Path, codec: str, grey: int) -> None:
    path = tmp_path / KINDS[codec][0]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=KINDS[codec][1])
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((480, 640, 3), grey, np.uint8))))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        is_whole = check_of(container.streams.video[0].codec_context)
        assert all(is_whole(bytes(packet)) for packet in container.demux(video=0) if packet.size)
