"""What decoders read over in silence is found, and nothing that cameras and programs really write is taken for it."""

import io
import random
import struct
import zlib
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from handdata.adapters.reading.damage import find_damage
from handdata.pipeline.annotation.frames import decode_image
from handdata.schemas import RecordError, RejectReason
from tests.fixtures.jpegs import encoded, good_jpegs, odd_jpegs, photograph, with_changed_bytes


def rejection_of(data: bytes) -> RecordError | None:
    """The error that a file is rejected with."""
    try:
        decode_image(data, "a.jpg")
    except RecordError as error:
        return error
    return None


@pytest.mark.parametrize("photographs", [2, pytest.param(28, marks=pytest.mark.soak)])
def test_no_good_jpeg_is_rejected(photographs: int) -> None:
    kinds = [kind for seed in range(photographs) for kind in (*good_jpegs(seed), *islice(odd_jpegs(seed), 7))]
    errors = {kind: error for kind, data in kinds if (error := rejection_of(data))}
    assert not errors


def test_odd_subsampling_is_decoded_as_pillow_decodes_it() -> None:
    for _, data in odd_jpegs(0):
        pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(decode_image(data, "a.jpg"), pixels)


@pytest.mark.parametrize(
    ("count", "least"),
    [(20, 0.9), pytest.param(5, 0.75, marks=pytest.mark.soak), pytest.param(1, 0.25, marks=pytest.mark.soak)],
)
def test_most_jpegs_with_changed_bytes_are_rejected(count: int, least: float) -> None:
    chance = random.Random(count)
    photographs = [data for seed in range(11) for _, data in good_jpegs(seed)]
    damaged = [with_changed_bytes(data, count, chance) for data in photographs[:200]]
    errors = [error for data in damaged if (error := rejection_of(data))]
    assert len(errors) >= least * len(damaged)
    assert {error.reason for error in errors} <= {RejectReason.FRAME_MISSING, RejectReason.IMAGE_TOO_LARGE}


def test_odd_subsampling_with_changed_bytes_is_rejected() -> None:
    chance = random.Random(0)
    damaged = [with_changed_bytes(data, 20, chance) for seed in range(3) for _, data in odd_jpegs(seed)]
    assert sum(rejection_of(data) is not None for data in damaged) >= 0.9 * len(damaged)


def test_jpegs_whose_data_ends_in_zeros_too_early_are_rejected() -> None:
    chance, damaged = random.Random(0), []
    for seed in range(2):
        for _, data in (*good_jpegs(seed), *odd_jpegs(seed)):
            scan = data.index(b"\xff\xda")
            end = data.index(b"\xff\xd9", scan)
            kept = chance.randrange(scan + 16, (scan + end) // 2)
            damaged += [data[:kept] + bytes(end - kept) + data[end:], data[:kept] + bytes(len(data) - kept)]
    assert sum(rejection_of(data) is not None for data in damaged) >= 0.95 * len(damaged)


def test_the_detail_says_what_is_wrong_in_one_line() -> None:
    data = encoded(photograph(0))
    middle = len(data) // 2
    error = rejection_of(data[:middle] + data[middle + 200 :])
    assert error is not None
    assert error.reason is RejectReason.FRAME_MISSING
    assert error.detail.startswith("a.jpg is damaged: Corrupt JPEG data: ")
    assert "\n" not in error.detail


def test_every_changed_byte_of_a_png_is_found() -> None:
    data = encoded(photograph(0).quantize(16), "PNG")
    for position in range(8, len(data) - 12, 7):
        assert find_damage(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]), position
    assert find_damage(data) is None
    assert find_damage(data + b"more") is None


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_cut_file_is_rejected(form: str) -> None:
    data = encoded(photograph(0), form)
    for kept in range(0, len(data), len(data) // 23):
        assert rejection_of(data[:kept]), kept


def test_a_png_whose_data_is_cut_and_whose_checksums_are_right_is_rejected() -> None:
    pixels = zlib.compress(bytes(3 * 40 + 1) * 30)
    head = struct.pack(">IIBBBBB", 40, 30, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    assert rejection_of(start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")) is None
    assert rejection_of(start + chunk(b"IDAT", pixels[: len(pixels) // 2]) + chunk(b"IEND", b""))


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "jpeg"])
def test_damage_in_a_compressed_tiff_is_found(compression: str) -> None:
    data = encoded(photograph(0, 200, 150), "TIFF", compression=compression)
    assert rejection_of(data) is None
    chance = random.Random(0)
    found = 0
    for _ in range(20):
        changed = bytearray(data)
        for position in chance.sample(range(len(data) // 4, len(data) // 2), 40):
            changed[position] ^= chance.randrange(1, 256)
        found += rejection_of(bytes(changed)) is not None
    assert found >= 16


@pytest.mark.parametrize("form", ["GIF", "PPM"])
def test_formats_that_no_source_ships_are_rejected(form: str) -> None:
    error = rejection_of(encoded(photograph(0), form))
    assert error is not None
    assert "0x" not in error.detail


def png(width: int, height: int, kind: int, depth: int, interlaced: int, data: bytes) -> bytes:
    """Return a PNG whose chunks have their checksums, whatever its compressed data is; in three chunks."""
    packed = zlib.compress(data)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))]
    chunks += [(b"PLTE", bytes(768))] if kind == 3 else []
    chunks += [
        (b"IDAT", packed[start : start + 1 + len(packed) // 3]) for start in range(0, len(packed), 1 + len(packed) // 3)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in [*chunks, (b"IEND", b"")]
    )


@pytest.mark.parametrize(("kind", "depth"), [(0, 1), (0, 8), (0, 16), (2, 8), (2, 16), (3, 2), (3, 8), (4, 8), (6, 8)])
@pytest.mark.parametrize(
    ("width", "height", "interlaced"), [(37, 23, 0), (37, 23, 1), (1, 1, 1), (3, 5, 1), (700, 900, 0)]
)
def test_a_png_with_all_its_rows_is_sound_and_one_without_the_last_is_not(
    width: int, height: int, interlaced: int, kind: int, depth: int
) -> None:
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # as the standard draws them, pixel by pixel
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    sizes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in passes]
    data = bytes(sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns))
    sound = png(width, height, kind, depth, interlaced, data)
    assert find_damage(sound) is None
    assert decode_image(sound, "a.png").shape == (height, width, 3)
    assert find_damage(png(width, height, kind, depth, interlaced, data + bytes(99))) is None
    for cut in (1, len(data) // 2, len(data)):
        assert "ends before its last row" in str(find_damage(png(width, height, kind, depth, interlaced, data[:-cut])))
