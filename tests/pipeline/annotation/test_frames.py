"""Pixels of image files: equal to what Pillow reads, whole or not at all."""

import io
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handdata.adapters.reading.video import VideoReader
from handdata.pipeline.annotation import frames
from handdata.pipeline.annotation.frames import decode_image, open_frames, read_image_file
from handdata.schemas import HandRecord, RecordError, RejectReason
from handdata.schemas.arrays import ByteArray
from tests.fixtures.videos import DETAIL, WITHOUT_B_FRAMES, damage, overwritten, write_detailed_video


def image(height: int = 90, width: int = 120) -> ByteArray:
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


WHOLE = encoded(Image.fromarray(image()), quality=92)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 30}]
)
def test_a_jpeg_has_the_values_that_pillow_gives(mode: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(image()).convert(mode), **options)
    np.testing.assert_array_equal(decode_image(data, "a.jpg"), np.array(Image.open(io.BytesIO(data)).convert("RGB")))
    # Bytes behind the end, as some cameras leave them, change nothing.
    np.testing.assert_array_equal(decode_image(data + bytes(9), "a.jpg"), decode_image(data, "a.jpg"))


def test_a_jpeg_with_a_fault_that_pillow_reads_over_is_read() -> None:
    scan = WHOLE.index(b"\xff\xda")
    faulty = WHOLE[:scan] + bytes(3) + WHOLE[scan:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(faulty)
    np.testing.assert_array_equal(decode_image(faulty, "a.jpg"), decode_image(WHOLE, "a.jpg"))


def test_an_orientation_in_the_file_is_not_applied_for_labels_are_of_the_stored_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(image()), exif=exif)
    assert decode_image(data, "a.jpg").shape == (90, 120, 3)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
def test_other_formats_are_read(form: str) -> None:
    data = encoded(Image.fromarray(image()), form, **({"lossless": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(data, "a"), image())


@given(kept=st.integers(0, len(WHOLE) - 1))
def test_a_truncated_file_is_rejected_and_never_filled_up(kept: int) -> None:
    with pytest.raises(RecordError, match=r"a\.jpg") as error:
        decode_image(WHOLE[:kept], "a.jpg")
    assert error.value.reason is RejectReason.FRAME_MISSING


@given(damage=st.dictionaries(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), min_size=1, max_size=20))
def test_a_damaged_file_gives_an_image_or_is_rejected(damage: dict[int, int]) -> None:
    data = bytearray(WHOLE)
    for position, value in damage.items():
        data[position] = value
    try:
        pixels = decode_image(bytes(data), "a.jpg")
    except RecordError as error:
        assert error.reason in (RejectReason.FRAME_MISSING, RejectReason.IMAGE_TOO_LARGE)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def test_a_bomb_is_rejected_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(RecordError, match="announces 120 x 90 pixels") as error:
        decode_image(WHOLE, "a.jpg")
    assert error.value.reason is RejectReason.IMAGE_TOO_LARGE


@pytest.mark.parametrize("where", ["path", "file://", "memory://"])
def test_files_are_read_from_paths_and_urls(tmp_path: Path, where: str) -> None:
    uri = {"path": str(tmp_path / "a b.jpg"), "file://": f"file://{tmp_path}/a b.jpg", "memory://": "memory://a b.jpg"}
    with fsspec.open(uri[where], "wb") as stream:
        stream.write(WHOLE)
    assert read_image_file(uri[where]) == WHOLE
    with pytest.raises(RecordError, match="does not exist") as error:
        read_image_file(uri[where].replace("a b", "another"))
    assert error.value.reason is RejectReason.IMAGE_MISSING


def video_record(uri: str, frame: int, size: tuple[int, int]) -> HandRecord:
    return HandRecord(
        source="wlasl",
        split="train",
        sequence_id="clip",
        frame_index=frame,
        video_frame=frame,
        image_uri=uri,
        width=size[0],
        height=size[1],
        viewpoint="exo",
        hand_state=("unknown", "unknown"),
        keypoints_valid=np.zeros(42, dtype=np.bool_),
        keypoints_2d=np.zeros((42, 2)),
    )


def test_damage_in_a_video_costs_the_frames_up_to_the_next_key_frame_and_the_file_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = damage(write_detailed_video(tmp_path / "clip.mp4", WITHOUT_B_FRAMES), 10, overwritten)
    opened: list[Path] = []

    class Counted(VideoReader):
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(frames, "VideoReader", Counted)
    size = (DETAIL.shape[1], DETAIL.shape[0])
    rows = list(open_frames([video_record(str(path), frame, size) for frame in range(40)]))
    errors = {row.video_frame: found for row, found in rows if isinstance(found, RecordError)}
    assert list(errors) == list(range(10, 20))
    assert {error.reason for error in errors.values()} == {RejectReason.FRAME_MISSING}
    assert len(opened) == 1


def test_records_of_a_video_that_is_none_are_all_rejected(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    rows = list(open_frames([video_record(str(tmp_path / "clip.mp4"), frame, (8, 8)) for frame in range(3)]))
    assert [found.reason for _, found in rows if isinstance(found, RecordError)] == [RejectReason.FRAME_MISSING] * 3
