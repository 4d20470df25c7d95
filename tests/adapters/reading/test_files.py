"""Files from outside: names stay below the root, headers are checked, nothing is unpickled, errors are reasons."""

import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handdata.adapters.reading import arrays
from handdata.adapters.reading.arrays import numbers, read_npz, read_npz_and_shapes, require_finite
from handdata.adapters.reading.images import read_image_size, read_image_size_from
from handdata.adapters.reading.paths import Fence, is_file, read_text, resolve_below
from handdata.schemas import HandRecord, RecordError, RejectReason, record_name, rejections_to_table
from handdata.schemas.rejection import printable, rejection


def reason_of(error: pytest.ExceptionInfo[RecordError]) -> RejectReason:
    return error.value.reason


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "a/../../b.jpg",
        "/etc/passwd",
        "\\etc\\passwd",
        "..\\a.jpg",
        "a\\..\\..\\b",
        "",
        ".",
        "a\0b",
        "\udcff",
    ],
)
def test_names_that_leave_the_root_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as error:
        resolve_below(tmp_path, name)
    assert reason_of(error) == RejectReason.PATH_ESCAPES_ROOT
    error.value.detail.encode()


@given(name=st.text(max_size=30))
def test_whatever_is_accepted_lies_below_the_root(name: str) -> None:
    root = Path("/data/root")
    try:
        path = resolve_below(root, name)
    except RecordError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(root)
    assert Path(os.path.normpath(path)) != root


def test_names_with_folders_spaces_and_other_scripts_are_kept(tmp_path: Path) -> None:
    assert resolve_below(tmp_path, "a b/手\u00a0.jpg") == tmp_path / "a b" / "手\u00a0.jpg"
    assert resolve_below(tmp_path, "train\\0001.jpg") == tmp_path / "train" / "0001.jpg"


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
        ("a.jpg", _png_header(8, 8), RejectReason.IMAGE_FORMAT_MISMATCH),
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
    assert reason_of(error) == reason


def test_a_folder_with_an_image_s_name_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(RecordError) as error:
        read_image_size(tmp_path / "a.jpg")
    assert reason_of(error) == RejectReason.IMAGE_CORRUPT


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_member_of_an_archive_has_a_size_or_a_reason(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "picture", format=kind)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "picture", "picture")
        archive.writestr("empty.jpg", b"")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        with archive.open("picture") as stream:
            assert read_image_size_from(stream, "a.zip/picture") == (40, 30)
        with archive.open("empty.jpg") as stream, pytest.raises(RecordError, match=r"a\.zip/empty\.jpg") as error:
            read_image_size_from(stream, "a.zip/empty.jpg")
    assert reason_of(error) == RejectReason.IMAGE_EMPTY


def test_a_large_photograph_within_the_limit_raises_no_warning(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_jpeg_header(12_000, 12_000))
    assert read_image_size(tmp_path / "a.jpg") == (12_000, 12_000)


def test_is_file_is_false_for_names_that_no_file_can_have(tmp_path: Path) -> None:
    assert not is_file(tmp_path / ("n" * 300))
    assert not is_file(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_arrays_come_back_as_numpy_wrote_them(tmp_path: Path, save: object) -> None:
    assert callable(save)
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "flag": np.array([True, False]),
        "scalar": np.array(3, dtype=">i4"),
        "names": np.array(["x", "yy"]),
        "empty": np.zeros((0, 2)),
    }
    save(tmp_path / "a.npz", **arrays)
    read = read_npz(tmp_path / "a.npz", ("a", "columns", "flag"), ("scalar", "names", "empty", "not there"))
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_shapes_are_known_of_arrays_that_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mask=np.zeros((4, 5)), kpts=np.zeros((42, 2)))
    arrays, shapes = read_npz_and_shapes(tmp_path / "a.npz", ("kpts",))
    assert arrays.keys() == {"kpts"}
    assert shapes == {"mask": (4, 5), "kpts": (42, 2)}


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("was-run",)


def _write_npz(path: Path, kind: str) -> None:
    np.savez(path, a=np.arange(1000.0))
    good = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "pickled array":
        np.savez(path, a=np.array([_RunsCode()]))
    elif kind == "pickled array beside":
        np.savez(path, a=np.arange(3), b=np.array([_RunsCode()]))
    elif kind == "object within a record dtype":
        np.savez(path, a=np.array([(1, _RunsCode())], dtype=[("n", "i4"), ("o", "O")]))
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps(_RunsCode()))
    elif kind == "truncated":
        path.write_bytes(good[:500])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"hello")
    elif kind == "bare npy":
        np.save(path.with_suffix(".npy"), np.arange(3))
        path.with_suffix(".npy").rename(path)
    elif kind == "flipped byte":
        path.write_bytes(good[:3000] + bytes([good[3000] ^ 255]) + good[3001:])
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "without the array":
        np.savez(path, b=np.arange(3))
    elif kind == "data shorter than the shape":
        with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (9, 9)})
            stream.write(b"\0" * 8)
    elif kind == "data longer than the shape":
        with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (1,)})
            stream.write(b"\0" * 80)
    elif kind == "negative shape":
        with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (-1, -1)})
            stream.write(b"\0" * 8)
    elif kind == "header of four gigabytes":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{")
    elif kind == "not an array":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", b"hi")
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as stream:
            count = arrays.MAX_ARRAY_BYTES + 1
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (count,)})
            stream.write(bytes(count))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", RejectReason.LABEL_MISSING),
        ("pickled array", RejectReason.LABEL_UNSAFE),
        ("pickled array beside", RejectReason.LABEL_UNSAFE),
        ("object within a record dtype", RejectReason.LABEL_UNSAFE),
        ("bare pickle", RejectReason.LABEL_UNSAFE),
        ("truncated", RejectReason.LABEL_CORRUPT),
        ("empty", RejectReason.LABEL_CORRUPT),
        ("text", RejectReason.LABEL_CORRUPT),
        ("bare npy", RejectReason.LABEL_CORRUPT),
        ("flipped byte", RejectReason.LABEL_CORRUPT),
        ("folder", RejectReason.LABEL_CORRUPT),
        ("without the array", RejectReason.LABEL_CORRUPT),
        ("data shorter than the shape", RejectReason.LABEL_CORRUPT),
        ("data longer than the shape", RejectReason.LABEL_CORRUPT),
        ("negative shape", RejectReason.LABEL_CORRUPT),
        ("header of four gigabytes", RejectReason.LABEL_CORRUPT),
        ("not an array", RejectReason.LABEL_CORRUPT),
        ("bomb", RejectReason.LABEL_CORRUPT),
    ],
)
def test_each_bad_npz_has_its_reason_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: RejectReason
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 2**16)
    path = tmp_path / "label.npz"
    _write_npz(path, kind)
    with pytest.raises(RecordError, match=r"label\.npz") as error:
        read_npz(path, ("a",))
    assert reason_of(error) == reason
    assert not (tmp_path / "was-run").exists()


def test_numbers_says_what_was_expected_and_what_was_there(tmp_path: Path) -> None:
    assert numbers(tmp_path, "kpts", np.ones((42, 2), dtype=np.int8), (42, 2)).dtype == np.float64
    with pytest.raises(RecordError, match=r"kpts should hold numbers \(42, 2\), holds float64 \(21, 2\)"):
        numbers(tmp_path, "kpts", np.ones((21, 2)), (42, 2))
    with pytest.raises(RecordError, match=r"holds <U1 \(2,\)"):
        numbers(tmp_path, "kpts", np.array(["a", "b"]), (2,))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_float32_cannot_hold_are_not_finite(value: float) -> None:
    with pytest.raises(RecordError, match="label_not_finite: file: kpts holds NaN or infinity"):
        require_finite("file", "kpts", np.array([0.0, value]))


def test_a_refused_frame_has_the_id_that_its_record_would_have() -> None:
    record = HandRecord(
        source="hagrid",
        split="val",
        sequence_id="s",
        frame_index=7,
        camera_id="c",
        image_uri="a.jpg",
        width=1,
        height=1,
        viewpoint="exo",
        keypoints_valid=np.zeros(42),
        keypoints_2d=np.zeros((42, 2)),
        hand_state=("unknown", "unknown"),
    )
    assert record_name("hagrid", "val", "s", 7, "c") == record.record_id


def test_names_that_are_not_text_still_fit_the_rejected_table() -> None:
    error = RecordError(RejectReason.IMAGE_MISSING, "no \udcff")
    row = rejection("a/\udcff", "b/\ud800.jpg", error)
    assert (row.record_id, row.image_uri) == ("a/\\udcff", "b/\\ud800.jpg")
    assert rejections_to_table([row]).num_rows == 1
    assert printable("plain ü") == "plain ü"


def test_a_text_file_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    with path.open("wb") as stream:
        stream.truncate(1 << 33)  # takes no room on the disk
    with pytest.raises(RecordError, match=r"cameras\.txt: is larger than 4194304 bytes") as caught:
        read_text(path)
    assert reason_of(caught) == RejectReason.LABEL_CORRUPT
    path.write_bytes(b"\xff")
    with pytest.raises(RecordError, match="utf-8"):
        read_text(path)
    with pytest.raises(RecordError, match="label_missing"):
        read_text(tmp_path / "absent.txt")


def test_a_long_label_is_quoted_in_part() -> None:
    row = rejection("a", "b.jpg", RecordError(RejectReason.LABEL_CORRUPT, f"start {'x' * 10_000_000} end"))
    assert len(row.detail) <= 1000
    assert row.detail.startswith("start xxx")
    assert row.detail.endswith("xxx end")


def test_links_are_followed_within_the_root_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-beside"
    for folder in (root / "inner", outside):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"")
    (root / "folder").symlink_to(root / "inner")
    (root / "away").symlink_to(outside)
    (root / "b.jpg").symlink_to(root / "inner" / "a.jpg")
    (root / "c.jpg").symlink_to(outside / "a.jpg")
    (tmp_path / "root-by-link").symlink_to(root)
    for fence in (Fence(root), Fence(tmp_path / "root-by-link")):
        fence.check(*(f"{fence.root}/{name}" for name in ("inner/a.jpg", "folder/a.jpg", "b.jpg", "absent.jpg")))
        fence.check(f"zip://member.jpg::{fence.root}/b.jpg", "s3://bucket/a.jpg", "zip://a.jpg::https://host/b.zip")
        for name in ("away/a.jpg", "c.jpg", "away/absent.jpg"):
            with pytest.raises(RecordError, match=rf"{name} is reached by a link to .*root-beside") as caught:
                fence.check(f"{fence.root}/{name}")
            assert reason_of(caught) == RejectReason.PATH_ESCAPES_ROOT
