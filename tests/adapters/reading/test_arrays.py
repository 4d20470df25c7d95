"""Arrays from outside: headers are checked, nothing is unpickled, each bad file has its reason."""

import contextlib
import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from handdata.adapters.reading import arrays
from handdata.adapters.reading.arrays import number_array, numbers, read_npz, read_npz_and_shapes, require_finite
from handdata.schemas import RecordError, RejectReason


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
    assert error.value.reason == reason
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


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [3]],
        [[1, "2"], [3, 4]],
        [[1, True], [3, 4]],
        [[1, None], [3, 4]],
        [[1, 10**400], [3, 4]],
        [[1, 2]],
        [1, 2, 3, 4],
        [[[1, 2], [3, 4]]],
        [[1, {}], [3, 4]],
        [{}, {}],
        "1234",
        None,
        7,
        [[1 + 2j, 2], [3, 4]],
        np.array([["1", "2"], ["3", "4"]]),
        np.ones((2, 2), dtype=bool),
        [np.ones(2), np.ones(3)],
        [[[1] * 1000] * 1000] * 1000,
    ],
)
def test_only_numbers_of_the_expected_shape_are_an_array(values: object) -> None:
    with pytest.raises(RecordError, match=r"a\.json: K should be numbers of shape \(2, 2\), has ") as caught:
        number_array("a.json", "K", values, (2, 2))
    assert caught.value.reason is RejectReason.LABEL_CORRUPT


@pytest.mark.parametrize(
    "values",
    [[[1, 2], [3, 4.0]], ((1, 2), (3, 4)), np.array([[1, 2], [3, 4]]), [np.array([1, 2]), [3, np.float32(4)]]],
)
def test_lists_tuples_and_arrays_of_numbers_are_one_array(values: object) -> None:
    for shape in ((2, 2), (-1, 2), (-1, -1)):
        assert number_array("a.json", "K", values, shape).tolist() == [[1, 2], [3, 4]]
    assert number_array("a.json", "K", values, (4,), any_nesting=True).tolist() == [1, 2, 3, 4]
    assert number_array("a.json", "K", [values], (2, 2), any_nesting=True).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("seed", range(20))
def test_members_that_do_not_unpack_are_rejected(tmp_path: Path, method: int, seed: int) -> None:
    path = tmp_path / "a.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(seed).normal(size=400))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", buffer.getvalue())
    content = bytearray(path.read_bytes())
    chance = random.Random(seed)
    for _ in range(1 + seed % 3):
        content[chance.randrange(35, len(content))] = chance.randrange(256)
    path.write_bytes(content)
    with contextlib.suppress(RecordError):
        read_npz(path, ("a",))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }" + "(" * 500,
        "{'descr': [('a', '<f8', {})], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': ('<f8', (2, 2)), 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': 3}",
        "{'descr': 'zz', 'fortran_order': False, 'shape': (3,)}",
        "{1: 2}",
        "[" * 3000,
        "\\x00",
        "3**9**9",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}",
    ],
)
def test_odd_headers_of_arrays_are_rejected(tmp_path: Path, header: str) -> None:
    text = header.encode("latin1") + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(24)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(RecordError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz", ("a",))
