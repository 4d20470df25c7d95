"""Pixels of image files: equal to what Pillow reads, whole or not at all."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

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


RAMP = np.linspace(0, 65535, 64 * 48).reshape(48, 64)


def tiff(values: np.ndarray, *, photometric: int = 1, kind: int = 1, order: str = "<") -> bytes:
    """Return an uncompressed grey TIFF of any numbers; ``kind``: 1 whole, 2 with sign, 3 fractions."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    tags = [
        *((256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, photometric)),
        *((273, 200), (277, 1), (278, height), (279, len(data)), (339, kind)),
    ]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(tiff(RAMP.astype("u2")), id="16 bits"),
        pytest.param(tiff(RAMP.astype("u2"), order=">"), id="16 bits, big end first"),
        pytest.param(tiff((65535 - RAMP).astype("u2"), photometric=0), id="16 bits, 0 is white"),
        pytest.param(tiff((RAMP / 2).astype("i2"), kind=2), id="15 bits and a sign"),
        pytest.param(tiff(RAMP.astype("u4") << 16), id="32 bits"),
        pytest.param(bytes(cv2.imencode(".png", RAMP.astype("u2"))[1]), id="PNG of 16 bits"),
        pytest.param(bytes(cv2.imencode(".png", np.dstack([RAMP.astype("u2")] * 3))[1]), id="colour of 16 bits"),
        pytest.param(bytes(cv2.imencode(".png", np.dstack([RAMP.astype("u2")] * 4))[1]), id="16 bits with alpha"),
        pytest.param(encoded(Image.fromarray((RAMP / 257).astype("u1")).convert("LA"), "PNG"), id="grey with alpha"),
    ],
)
def test_grey_levels_are_scaled_by_the_depth_of_their_container(data: bytes) -> None:
    pixels = decode_image(data, "a")
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels[..., 0] - RAMP / 257).max() <= 1


@pytest.mark.parametrize("options", [{}, {"transparency": 3}, {"transparency": b"\0\1"}])
def test_a_palette_keeps_its_colours_whatever_is_transparent(options: dict[str, object]) -> None:
    palette = Image.fromarray(image()).quantize(32)
    expected = np.array(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(palette, "PNG", **options), "a"), expected)
    black_and_white = palette.convert("1")
    np.testing.assert_array_equal(decode_image(encoded(black_and_white, "PNG"), "a"), black_and_white.convert("RGB"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tiff(RAMP.astype("f4"), kind=3), "fractions"),
        (tiff((RAMP - 32768).astype("i2"), kind=2), "which of them is black"),
        (tiff((RAMP / 257 - 128).astype("i1"), kind=2), "signed 8-bit"),
        (tiff(RAMP.astype("u4")), "32-bit numbers up to 65535"),
        (tiff(RAMP.astype("u2"), photometric=3), "cannot identify"),
    ],
)
def test_numbers_without_a_known_range_are_rejected(data: bytes, why: str) -> None:
    with pytest.raises(RecordError, match=why) as error:
        decode_image(data, "a.tif")
    assert error.value.reason is RejectReason.FRAME_MISSING


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright_as_viewers_show_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(image()), exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data, "a.jpg", upright=True), upright)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["PNG", "PNG of 16 bits", "progressive", "CMYK", "WEBP", "TIFF", "bomb"])
def test_the_largest_images_stay_below_the_memory_that_a_worker_is_planned_with(tmp_path: Path, kind: str) -> None:
    side = {"bomb": 13_000, "CMYK": 8_400, "WEBP": 8_400}.get(kind, 12_000)
    mode = {"PNG of 16 bits": "I;16", "CMYK": "CMYK"}.get(kind, "RGB")
    form = {"progressive": "JPEG", "CMYK": "JPEG", "bomb": "PNG"}.get(kind, kind.split()[0])
    options = {"progressive": True} if form == "JPEG" else {"compression": "tiff_lzw"} if form == "TIFF" else {}
    Image.new(mode, (side, side)).save(tmp_path / "image", form, **options)
    script = (
        "import re, sys\n"
        "from handdata.pipeline.annotation import annotator, frames\n"
        "from handdata.schemas import RecordError\n"
        "try:\n"
        "    print(frames.decode_image(frames.read_image_file(sys.argv[1]), 'image').shape[0])\n"
        "except RecordError as error:\n"
        "    print(error.reason)\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) >> 10)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "image"], capture_output=True, text=True, check=True
    )
    result, peak_mib = done.stdout.split()
    assert result == ("image_too_large" if kind == "bomb" else str(side))
    assert int(peak_mib) < (400 if kind == "bomb" else 1700)


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
