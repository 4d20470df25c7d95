"""Videos: every frame is the one its index names, whatever the codec's order, the clock or the display matrix."""

import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from handdata.adapters.reading.video import VideoReader, video_info
from handdata.schemas.errors import RecordError, RejectReason
from tests.fixtures.jpegs import encoded
from tests.fixtures.photographs import photograph
from tests.fixtures.videos import (
    DETAIL,
    OPEN_GROUPS,
    WITH_B_FRAMES,
    WITHOUT_B_FRAMES,
    damage,
    overwritten,
    packets_of,
    write_detailed_video,
    zeroed,
)

FRAMES = 40


def write_video(
    path: Path,
    codec: str = "libx264",
    frames: int = FRAMES,
    times: list[int] | None = None,
    rotation: int = 0,
    size: tuple[int, int] = (96, 64),
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames whose grey level is 5 x their index, with B-frames, and a bright top-left corner."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.max_b_frames = 2
        stream.codec_context.gop_size = 12
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        stream.bit_rate = 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), 5 * index, np.uint8)
            pixels[:16, :16] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = times[index] if times else 40 * index, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read_frame(path: Path, index: int) -> np.ndarray:
    with VideoReader(path) as reader:
        (_, image) = next(reader.frames([index]))
        return image


def index_shown(image: np.ndarray) -> int:
    height, width = image.shape[:2]
    return round(float(image[height // 2 - 5 : height // 2 + 5, width // 2 - 5 : width // 2 + 5].mean()) / 5)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


def test_the_test_video_has_b_frames(video: Path) -> None:
    with av.open(str(video)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert times != sorted(times)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_every_index_gives_its_frame(tmp_path: Path, codec: str, name: str) -> None:
    path = write_video(tmp_path / name, codec)
    with VideoReader(path) as reader:
        assert [(index, index_shown(image)) for index, image in reader.frames(range(FRAMES))] == [
            (index, index) for index in range(FRAMES)
        ]


def test_wanted_frames_are_found_among_the_others(video: Path) -> None:
    wanted = [1, 2, 13, 30, 39]
    with VideoReader(video) as reader:
        assert [index_shown(image) for _, image in reader.frames(wanted)] == wanted
    assert index_shown(read_frame(video, 17)) == 17


def test_a_variable_frame_rate_does_not_shift_the_index(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).integers(10, 200, FRAMES)
    times = [int(time) for time in np.cumsum(gaps)]
    path = write_video(tmp_path / "clip.mp4", times=times)
    with VideoReader(path) as reader:
        assert [index_shown(image) for _, image in reader.frames(range(FRAMES))] == list(range(FRAMES))
    np.testing.assert_allclose(video_info(path).times_s, (np.array(times) - times[0]) / 1000, atol=0.002)


def test_the_container_tells_frames_size_rate_and_times(video: Path) -> None:
    info = video_info(video)
    assert (info.frames, info.width, info.height) == (FRAMES, 96, 64)
    assert float(info.rate) == pytest.approx(25)
    np.testing.assert_allclose(info.times_s, np.arange(FRAMES) / 25, atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "corners"),
    [
        ((1, 0, 0, 1), "RGBW"),
        ((0, 1, -1, 0), "BRWG"),
        ((-1, 0, 0, -1), "WBGR"),
        ((0, -1, 1, 0), "GWRB"),
        ((-1, 0, 0, 1), "GRWB"),
        ((1, 0, 0, -1), "BWRG"),
        ((0, 1, 1, 0), "RBGW"),
        ((0, -1, -1, 0), "WGBR"),
    ],
)
def test_a_video_is_turned_and_mirrored_as_its_matrix_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], corners: str
) -> None:
    """Front cameras may record mirrored: a frame that is not mirrored back shows the other hand."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "5"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_image(photograph(size=(96, 64)))))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44  # version 0
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    with VideoReader(path) as reader:
        ((_, image),) = reader.frames([0])
    height, width, _ = image.shape
    info = video_info(path)
    assert (info.width, info.height) == (width, height) == ((64, 96) if matrix[0] == 0 else (96, 64))
    found = [image[height * y // 4, width * x // 4].astype(int) for y in (1, 3) for x in (1, 3)]
    assert "".join("W" if colour.min() > 150 else "RGB"[colour.argmax()] for colour in found) == corners


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_phone_held_sideways_gives_the_image_that_opencv_gives(tmp_path: Path, rotation: int) -> None:
    path = write_video(tmp_path / "clip.mp4", rotation=rotation)
    capture = cv2.VideoCapture(str(path))
    try:
        found, expected = capture.read()
    finally:
        capture.release()
    assert found
    image = read_frame(path, 0)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected[..., ::-1]).mean() < 3
    info = video_info(path)
    assert (info.width, info.height) == ((64, 96) if abs(rotation) == 90 else (96, 64))


def test_a_frame_past_the_end_is_missing(video: Path) -> None:
    with pytest.raises(RecordError, match="frame 40: the video has 40 frames") as caught:
        read_frame(video, FRAMES)
    assert caught.value.reason is RejectReason.FRAME_MISSING


def test_indices_that_do_not_rise_are_a_mistake_of_the_caller(video: Path) -> None:
    for indices in ([3, 3], [5, 4], [-1]):
        with VideoReader(video) as reader, pytest.raises(ValueError, match="must rise"):
            list(reader.frames(indices))


def test_a_cut_video_gives_the_frames_before_the_cut_and_then_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    shown = []
    with VideoReader(path) as reader, pytest.raises(RecordError) as caught:
        for index, image in reader.frames(range(FRAMES)):
            shown.append((index, index_shown(image)))
    assert caught.value.reason is RejectReason.FRAME_MISSING
    assert len(shown) > 5
    assert all(index == number for index, number in shown)


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0\0\0\x20ftypisom" + bytes(64)])
def test_what_is_no_video_is_a_missing_frame(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"clip\.mp4") as caught:
        video_info(path)
    assert caught.value.reason is RejectReason.FRAME_MISSING


def test_a_container_without_presentation_times_is_rejected(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", "mpeg4")
    with pytest.raises(RecordError, match="AVI carries no presentation times"):
        video_info(path)


def test_a_missing_file_is_a_missing_image(tmp_path: Path) -> None:
    with pytest.raises(RecordError) as caught:
        VideoReader(tmp_path / "absent.mp4")
    assert caught.value.reason is RejectReason.IMAGE_MISSING


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a pipe"])
def test_what_is_no_file_is_never_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clip.mp4"
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path if kind == "pipe" else tmp_path / "pipe")
    if kind == "link to a pipe":
        path.symlink_to(tmp_path / "pipe")
    for read in (video_info, VideoReader):
        with pytest.raises(RecordError, match=r"clip\.mp4") as caught:
            read(path)
        assert caught.value.reason is RejectReason.FRAME_MISSING


def test_a_playlist_named_as_a_video_does_not_lead_to_other_files(tmp_path: Path, video: Path) -> None:
    for name, content in (
        ("hls.mp4", f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{video}\n#EXT-X-ENDLIST\n"),
        ("concat.mp4", f"ffconcat version 1.0\nfile {video}\n"),
    ):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(RecordError, match=name) as caught:
            video_info(path)
        assert caught.value.reason is RejectReason.FRAME_MISSING


def test_a_video_of_huge_frames_is_rejected_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", frames=3)
    monkeypatch.setattr("handdata.adapters.reading.video.MAX_FRAME_PIXELS", 96 * 64 - 1)
    with pytest.raises(RecordError, match=r"clip\.mp4"):
        read_frame(path, 0)


# ---------------------------------------------------------------------------------------------------- damage


def read_all(path: Path, indices: range = range(FRAMES)) -> dict[int, np.ndarray | RecordError]:
    with VideoReader(path) as reader:
        return dict(reader.read(indices))


def missing(found: dict[int, np.ndarray | RecordError]) -> list[int]:
    return [index for index, image in found.items() if isinstance(image, RecordError)]


@pytest.mark.parametrize("how", [overwritten, zeroed])
@pytest.mark.parametrize("options", [WITHOUT_B_FRAMES, WITH_B_FRAMES, OPEN_GROUPS], ids=["plain", "b", "open"])
@pytest.mark.parametrize("rank", [0, 1, 4, 10, 13, 25])
def test_what_is_handed_on_of_a_damaged_video_is_what_was_filmed(
    tmp_path: Path, rank: int, options: dict[str, str], how: Callable[[bytes], bytes]
) -> None:
    path = write_detailed_video(tmp_path / "clip.mp4", options)
    clean, found = read_all(path), read_all(damage(path, rank, how))
    refused = missing(found)
    assert not missing(clean)
    for index, image in found.items():
        if not isinstance(image, RecordError):
            clean_image = clean[index]
            assert isinstance(clean_image, np.ndarray)
            assert np.abs(image.astype(int) - clean_image).mean() < 1
    assert 1 <= len(refused) <= 14  # a group, and the leading frames of the next one
    times = sorted(packet.pts for packet in packets_of(path) if packet.pts is not None)
    assert times.index(packets_of(path)[rank].pts) in refused


@pytest.mark.parametrize(("zeros", "rank", "begin"), [(3, 31, 0.6), (4, 10, 0.6), (8, 31, 0.9), (60, 10, 0.9)])
def test_zeros_within_a_frame_are_damage_although_the_decoder_reads_over_them(
    tmp_path: Path, zeros: int, rank: int, begin: float
) -> None:
    def hollowed(packet: bytes) -> bytes:
        start = int(begin * len(packet))
        return (packet[:start] + bytes(zeros) + packet[start + zeros :])[: len(packet)]

    path = write_detailed_video(tmp_path / "clip.mp4", WITH_B_FRAMES)
    packets = packets_of(path)
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    clean, found = read_all(path), read_all(damage(path, rank, hollowed))
    assert times.index(packets[rank].pts) in missing(found)
    for index, image in found.items():
        if not isinstance(image, RecordError):
            assert np.array_equal(image, clean[index])


def test_behind_a_damaged_key_frame_nothing_is_handed_on_until_the_next_one(tmp_path: Path) -> None:
    path = damage(write_detailed_video(tmp_path / "clip.mp4", WITHOUT_B_FRAMES), 10, overwritten)
    found = read_all(path)
    assert missing(found) == list(range(10, 20))
    assert isinstance(found[10], RecordError) and "frame 10: it is damaged" in found[10].detail
    assert isinstance(found[11], RecordError) and "predicted from a damaged frame" in found[11].detail
    assert {error.reason for error in found.values() if isinstance(error, RecordError)} == {RejectReason.FRAME_MISSING}


def test_frames_before_the_damage_in_its_group_are_handed_on(tmp_path: Path) -> None:
    path = damage(write_detailed_video(tmp_path / "clip.mp4", WITHOUT_B_FRAMES), 15, overwritten)
    assert missing(read_all(path)) == list(range(15, 20))


def test_a_frame_that_is_shown_before_the_damaged_one_but_predicted_from_it_is_missing_too(tmp_path: Path) -> None:
    path = write_detailed_video(tmp_path / "clip.mp4", WITH_B_FRAMES)
    packets = packets_of(path)
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    shown = [times.index(packet.pts) for packet in packets if packet.pts is not None]
    rank = next(rank for rank in range(1, 10) if shown[rank] > shown[rank + 1])
    refused = missing(read_all(damage(path, rank, overwritten)))
    assert shown[rank + 1] in refused


def test_frames_that_are_read_behind_the_damage_alone_are_judged_as_if_all_were_read(tmp_path: Path) -> None:
    path = damage(write_detailed_video(tmp_path / "clip.mp4", WITHOUT_B_FRAMES), 10, overwritten)
    assert missing(read_all(path, range(12, 24, 4))) == [12, 16]


@pytest.mark.parametrize("how", [overwritten, zeroed])
def test_a_decoder_that_fails_at_the_end_does_not_take_along_the_frames_before(
    tmp_path: Path, how: Callable[[bytes], bytes]
) -> None:
    path = write_detailed_video(tmp_path / "clip.mp4", WITH_B_FRAMES)
    times = sorted(packet.pts for packet in packets_of(path) if packet.pts is not None)
    last = packets_of(path)[-1]
    assert missing(read_all(damage(path, FRAMES - 1, how))) == [times.index(last.pts)]


def test_one_bad_first_frame_does_not_cost_the_video(tmp_path: Path) -> None:
    path = damage(write_detailed_video(tmp_path / "clip.mp4", WITHOUT_B_FRAMES, rotation=90), 0, overwritten)
    info = video_info(path)
    assert (info.frames, info.width, info.height) == (FRAMES, DETAIL.shape[0], DETAIL.shape[1])
    assert missing(read_all(path)) == list(range(10))


def test_a_video_of_which_no_frame_decodes_is_rejected(tmp_path: Path) -> None:
    path = write_detailed_video(tmp_path / "clip.mp4", WITHOUT_B_FRAMES, frames=10)
    with pytest.raises(RecordError, match=r"none of its 10 frames decodes") as caught:
        video_info(damage(path, 0, zeroed))
    assert caught.value.reason is RejectReason.FRAME_MISSING


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_hidden_frames_of_a_codec_are_no_damage(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "clip.webm"
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "g": "20"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = DETAIL.shape[1], DETAIL.shape[0], "yuv420p"
        for index in range(FRAMES):
            moved = np.roll(DETAIL, 2 * index, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())
    with VideoReader(path) as reader:
        frames = len(reader.presentation_times)
        assert len([image for _, image in reader.read(range(frames)) if not isinstance(image, RecordError)]) >= FRAMES


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"quality": 100, "subsampling": 0}, {"optimize": True}],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("padding", [b"", bytes(100), b"\xff" * 9, b"what cameras leave behind"])
def test_no_good_jpeg_of_a_video_is_rejected(tmp_path: Path, options: dict[str, Any], padding: bytes) -> None:
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = DETAIL.shape[1], DETAIL.shape[0], "yuvj420p"
        for index in range(4):
            image = Image.fromarray(np.roll(DETAIL, 2 * index, axis=1))
            packet = av.Packet(encoded(image, **options) + padding)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), True
            packet.pts = packet.dts = index
            container.mux(packet)
    with VideoReader(path) as reader:
        assert not [found for _, found in reader.read(range(4)) if isinstance(found, RecordError)]
