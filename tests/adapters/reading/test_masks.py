"""Segmentations: each format gives exactly the pixels that were written, hostile input one readable error."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from handdata.adapters.reading.masks import (
    decode_rle,
    fill_polygon,
    read_alpha,
    read_label_image,
    read_mask_of_colours,
    read_nonzero_mask,
    read_npz_labels,
)
from handdata.schemas.errors import RecordError, RejectReason

LABEL = Path("labels.json")
masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))


def square(low: float, high: float) -> list[list[float]]:
    return [[low, low], [high, low], [high, high], [low, high]]


def assert_rejected(call: Any, *arguments: Any, match: str) -> None:
    with pytest.raises(RecordError, match=match) as caught:
        call(*arguments)
    assert caught.value.reason is RejectReason.MASK_UNREADABLE


class TestPolygons:
    def test_a_ring_within_a_ring_is_a_hole_whose_outline_belongs_to_the_mask(self) -> None:
        mask = fill_polygon([square(2, 12), square(5, 9)], (20, 16), LABEL)
        expected = np.zeros((16, 20), bool)
        expected[2:13, 2:13] = True
        expected[6:9, 6:9] = False
        assert (mask == expected).all()

    def test_separate_rings_are_separate_parts(self) -> None:
        mask = fill_polygon([square(1, 3), square(6, 8)], (10, 10), LABEL)
        assert mask[1:4, 1:4].all()
        assert mask[6:9, 6:9].all()
        assert mask.sum() == 18

    def test_coordinates_are_truncated_to_whole_pixels(self) -> None:
        assert (fill_polygon([square(1.9, 3.9)], (8, 8), LABEL) == fill_polygon([square(1, 3)], (8, 8), LABEL)).all()

    def test_rings_without_area_paint_nothing(self) -> None:
        assert not fill_polygon([[], [[3, 3]], [[1, 1], [5, 5]]], (8, 8), LABEL).any()

    def test_a_ring_beyond_the_border_is_cut_at_it(self) -> None:
        assert fill_polygon([square(-50, 500)], (9, 7), LABEL).all()

    @pytest.mark.parametrize(
        "ring",
        [
            [[0, 0], [1, "a"], [2, 2]],
            [[0, 0], [1], [2, 2]],
            [1, 2, 3],
            [[0, 0, 0]] * 3,
            square(0, float("nan")),
            square(0, 1e9),
        ],
    )
    def test_what_is_not_a_ring_is_rejected(self, ring: Any) -> None:
        assert_rejected(fill_polygon, [ring], (8, 8), LABEL, match=r"labels\.json: a ring")


def run_lengths(mask: np.ndarray) -> list[int]:
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def compress(runs: list[int]) -> str:
    """Encode as COCO's ``rleToString`` is described: five bits a character, differences from the fourth number on."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            chunk, value = value & 31, value >> 5
            more = value != -1 if chunk & 16 else value != 0
            text += chr(48 + (chunk | 32 * more))
            if not more:
                break
    return text


class TestRunLengths:
    @given(mask=masks)
    def test_both_spellings_give_the_mask_back(self, mask: np.ndarray) -> None:
        runs, size = run_lengths(mask), (mask.shape[1], mask.shape[0])
        assert (decode_rle(runs, size, LABEL) == mask).all()
        assert (decode_rle(compress(runs), size, LABEL) == mask).all()
        assert (decode_rle(compress(runs).encode(), size, LABEL) == mask).all()

    @given(runs=st.lists(st.integers(1, 100_000), min_size=1, max_size=8))
    def test_long_runs_survive_compression(self, runs: list[int]) -> None:
        mask = decode_rle(compress(runs), (sum(runs), 1), LABEL)
        assert (mask == decode_rle(runs, (sum(runs), 1), LABEL)).all()

    def test_a_string_as_the_coco_api_writes_it_is_read(self) -> None:
        # From its documentation: runs 6, 1, 40, 4, 5, 4, 5, 4, 21 spell this string.
        runs = [6, 1, 40, 4, 5, 4, 5, 4, 21]
        assert compress(runs) == "61X13mN000`0"
        assert (decode_rle("61X13mN000`0", (9, 10), LABEL) == decode_rle(runs, (9, 10), LABEL)).all()

    @pytest.mark.parametrize(
        "counts", [[3, 4], [9, -1, 1], [4.5, 4.5], ["9"], "61", "\x7f", "P", "o" * 99, "é", [2**70]]
    )
    def test_runs_that_do_not_fill_the_image_are_rejected(self, counts: Any) -> None:
        assert_rejected(decode_rle, counts, (3, 3), LABEL, match=r"labels\.json: ")

    def test_an_image_larger_than_any_photograph_is_rejected(self) -> None:
        assert_rejected(decode_rle, [10**12], (10**6, 10**6), LABEL, match="not the size of an image")


def write_grey_png(path: Path, labels: np.ndarray, bits: int) -> None:
    """Write greyscale of few bits a pixel, which Pillow cannot."""
    lines = b"".join(
        b"\0" + np.packbits([(value >> bit) & 1 for value in row for bit in range(bits - 1, -1, -1)]).tobytes()
        for row in labels.tolist()
    )
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


class TestLabelImages:
    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    def test_grey_of_any_depth_is_read_unscaled(self, tmp_path: Path, bits: int) -> None:
        labels = np.arange(35).reshape(5, 7) % (1 << bits)
        write_grey_png(tmp_path / "mask.png", labels, bits)
        assert (read_label_image(tmp_path / "mask.png", (7, 5)) == labels).all()

    def test_sixteen_bits_are_read_whole(self, tmp_path: Path) -> None:
        labels = np.array([[0, 1, 255], [256, 40_000, 65_535]], np.uint16)
        Image.fromarray(labels).save(tmp_path / "mask.png")
        assert (read_label_image(tmp_path / "mask.png") == labels).all()

    def test_palette_images_give_indices_and_not_colours(self, tmp_path: Path) -> None:
        labels = np.array([[0, 1, 7], [200, 255, 3]], np.uint8)
        image = Image.fromarray(labels, mode=None).convert("L")
        palette = Image.new("P", image.size)
        palette.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
        palette.putdata(labels.ravel().tolist())
        palette.save(tmp_path / "mask.png", transparency=1)
        assert (read_label_image(tmp_path / "mask.png") == labels).all()

    def test_colour_is_rejected_where_ids_are_expected(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "mask.png")
        assert_rejected(read_label_image, tmp_path / "mask.png", match="mode RGB")

    def test_colours_must_match_exactly(self, tmp_path: Path) -> None:
        pixels = np.zeros((2, 3, 4), np.uint8)
        pixels[0, 0, :3], pixels[0, 1, :3], pixels[1, 2, :3] = (0, 128, 0), (0, 127, 0), (0, 128, 128)
        Image.fromarray(pixels).save(tmp_path / "rgba.png")
        Image.fromarray(pixels[..., :3]).save(tmp_path / "rgb.png")
        expected = np.array([[True, False, False], [False, False, True]])
        for name in ("rgba.png", "rgb.png"):
            assert (read_mask_of_colours(tmp_path / name, [(0, 128, 0), (0, 128, 128)]) == expected).all()

    def test_nonzero_counts_any_channel_but_alpha(self, tmp_path: Path) -> None:
        pixels = np.zeros((1, 3, 4), np.uint8)
        pixels[0, :, 3] = 255
        pixels[0, 1, 2] = 9
        Image.fromarray(pixels).save(tmp_path / "mask.png")
        assert read_nonzero_mask(tmp_path / "mask.png").tolist() == [[False, True, False]]
        Image.fromarray(pixels[..., 2]).save(tmp_path / "grey.png")
        assert read_nonzero_mask(tmp_path / "grey.png").tolist() == [[False, True, False]]

    def test_alpha_is_read_and_its_absence_rejected(self, tmp_path: Path) -> None:
        pixels = np.zeros((2, 2, 4), np.uint8)
        pixels[..., 3] = [[0, 127], [128, 255]]
        Image.fromarray(pixels).save(tmp_path / "render.png")
        assert read_alpha(tmp_path / "render.png").tolist() == [[0, 127], [128, 255]]
        Image.new("RGB", (2, 2)).save(tmp_path / "flat.png")
        assert_rejected(read_alpha, tmp_path / "flat.png", match="no alpha channel")

    def test_missing_cut_and_wrongly_sized_files_are_rejected(self, tmp_path: Path) -> None:
        path = tmp_path / "mask.png"
        assert_rejected(read_label_image, path, match="does not exist")
        Image.fromarray(np.random.default_rng(0).integers(0, 9, (50, 50), np.uint8)).save(path)
        assert_rejected(read_label_image, path, (50, 51), match="is 50 x 50, expected 50 x 51")
        path.write_bytes(path.read_bytes()[:-100])
        assert_rejected(read_label_image, path, match=r"mask\.png")
        path.write_bytes(b"")
        assert_rejected(read_label_image, path, match=r"mask\.png")


class TestNpz:
    def test_ids_are_read_exactly(self, tmp_path: Path) -> None:
        seg = np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8)
        np.savez_compressed(tmp_path / "labels.npz", seg=seg, other=np.zeros(3))
        assert (read_npz_labels(tmp_path / "labels.npz", "seg", (64, 48)) == seg).all()

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ({"other": np.zeros(1)}, "lacks the array 'seg'"),
            ({"seg": np.zeros((64, 48), np.uint8)}, "of shape"),
            ({"seg": np.zeros((48, 64), np.float32)}, "float32"),
            ({"seg": np.array([{}], object)}, "pickled objects, which are never loaded"),
            ({"seg": np.zeros((4000, 4000), np.uint8)}, r"expected ids of shape \(48, 64\)"),
        ],
    )
    def test_what_is_not_the_label_array_is_rejected(self, tmp_path: Path, content: dict[str, Any], match: str) -> None:
        np.savez_compressed(tmp_path / "labels.npz", **content)
        assert_rejected(read_npz_labels, tmp_path / "labels.npz", "seg", (64, 48), match=match)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04junk", b"\x93NUMPY\x01\x00", b"junk" * 99])
    def test_what_is_not_an_archive_is_rejected(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "labels.npz").write_bytes(content)
        assert_rejected(read_npz_labels, tmp_path / "labels.npz", "seg", (64, 48), match=r"labels\.npz")


@pytest.mark.parametrize("read", [read_label_image, read_nonzero_mask])
def test_a_mask_with_a_changed_byte_is_no_mask(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "mask.png"
    ids = np.random.default_rng(0).integers(0, 5, (40, 60), dtype=np.uint8)
    Image.fromarray(ids).save(path)
    assert np.array_equal(read(path), ids if read is read_label_image else ids > 0)
    data = path.read_bytes()
    for position in range(16, len(data) - 12, 11):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        assert_rejected(read, path, match=r"mask\.png")
