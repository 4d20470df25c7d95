"""The size of an image is read from its header; each bad image has its own reason."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handdata.adapters.reading.images import read_image_size, read_image_size_from
from handdata.schemas import RecordError, RejectReason


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".JPEG", "JPEG"), (".png", "PNG"), (".webp", "WEBP")])
def test_the_size_of_an_image_is_width_then_height(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (40, 30)).save(path, format=kind)
    assert read_image_size(path) == (40, 30)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"progressive": True}),
        ("L", {}),
        ("CMYK", {"quality": 90}),
        ("RGB", {"exif": b"Exif\0\0" + bytes(60_000), "comment": b"c" * 60_000}),
        ("RGB", {"icc_profile": bytes(100_000)}),
        ("RGB", {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (8, 8))]}),
    ],
)
def test_jpeg_files_of_all_kinds_have_the_size_of_their_pixels(
    tmp_path: Path, mode: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "a.jpg"
    Image.new(mode, (37, 53)).save(path, **{"format": "JPEG"} | options)
    assert read_image_size(path) == (37, 53)


@given(cut=st.integers(0, 700), flipped=st.integers(0, 699), value=st.integers(0, 255))
def test_a_damaged_jpeg_has_a_size_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flipped: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.jpg"
    Image.new("RGB", (37, 53)).save(path)
    data = bytearray(path.read_bytes())
    data[min(flipped, len(data) - 1)] = value
    path.write_bytes(data[:cut])
    try:
        width, height = read_image_size(path)
    except RecordError as error:
        assert error.reason.startswith("image_")
    else:
        assert width > 0 and height > 0


def _png_header(width: int, height: int) -> bytes:
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": b"", b"IEND": b""}
    packed = (struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _jpeg_header(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xda\x00\x02"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jpg", None, RejectReason.IMAGE_MISSING),
        ("a.jpg/b.jpg", None, RejectReason.IMAGE_MISSING),
        ("n" * 300 + ".jpg", None, RejectReason.IMAGE_MISSING),
        ("a.jpg", b"", RejectReason.IMAGE_EMPTY),
        ("a.jpg", b"\xff\xd8\xff", RejectReason.IMAGE_CORRUPT),
        ("a.jpg", b"<html>not found</html>", RejectReason.IMAGE_CORRUPT),
        ("a.png", _png_header(40_000, 40_000), RejectReason.IMAGE_TOO_LARGE),
        ("a.jpg", _jpeg_header(40_000, 40_000), RejectReason.IMAGE_TOO_LARGE),
        ("a.jpg", _jpeg_header(14_000, 14_000), RejectReason.IMAGE_TOO_LARGE),
    ],
)
def test_each_bad_image_has_its_own_reason(tmp_path: Path, name: str, data: bytes | None, reason: RejectReason) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    elif "/" in name:
        path.parent.write_bytes(b"")
    with pytest.raises(RecordError) as error:
        read_image_size(path)
    assert error.value.reason == reason


def test_a_folder_with_an_image_s_name_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(RecordError) as error:
        read_image_size(tmp_path / "a.jpg")
    assert error.value.reason == RejectReason.IMAGE_CORRUPT


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_member_of_an_archive_has_a_size_or_a_reason(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "photograph", format=kind)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "photograph", "photograph")
        archive.writestr("empty.jpg", b"")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        with archive.open("photograph") as stream:
            assert read_image_size_from(stream, "a.zip/photograph") == (40, 30)
        with archive.open("empty.jpg") as stream, pytest.raises(RecordError, match=r"a\.zip/empty\.jpg") as error:
            read_image_size_from(stream, "a.zip/empty.jpg")
    assert error.value.reason == RejectReason.IMAGE_EMPTY


def test_a_large_photograph_within_the_limit_raises_no_warning(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_jpeg_header(12_000, 12_000))
    assert read_image_size(tmp_path / "a.jpg") == (12_000, 12_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("name", ["a.jpg", "a.PNG", "a.webp", "a.tif", "a.gif", "a.txt", "a", "a.jpg.png"])
def test_an_image_is_what_its_bytes_say_whatever_its_name(tmp_path: Path, kind: str, name: str) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / name, format=kind)
    assert read_image_size(tmp_path / name) == (40, 30)
