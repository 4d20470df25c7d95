"""Pickled labels: what numpy and Python wrote comes back, code is an error, large arrays are not copied."""

import gc
import io
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from handdata.adapters.reading import pickles
from handdata.adapters.reading.pickles import PickledObject, load_object_npy, load_pickle
from handdata.schemas.errors import RecordError, RejectReason

PLAIN_DTYPES = scalar_dtypes().filter(lambda dtype: dtype.kind in "biufc")


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        if expected.dtype == object:
            for one, other in zip(found.ravel(), expected.ravel(), strict=True):
                assert_same(one, other)
        else:
            assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


LABELS = {
    7: {"uv_vis": np.arange(126.0).reshape(42, 3), "K": np.eye(3, dtype=np.float32), "name": "ü.png"},
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "big_endian": np.arange(5, dtype=">f4"),
    "empty": np.zeros((0, 3)),
    "text": np.array(["ab", "c"]),
    "scalar": np.float32(1.5),
    "flag": np.bool_(True),
    "objects": np.array([{"a": np.ones(2)}, None], dtype=object),
    "order": OrderedDict(a=[1, (2, b"xyz", 3.5)], b={1, 2}),
    "large": np.random.default_rng(0).random((100, 1000)),
    "raw": b"",
    "long": 2**100,
}


@pytest.mark.parametrize("protocol", range(6))
def test_labels_come_back_whatever_the_protocol(tmp_path: Path, protocol: int) -> None:
    assert_same(load_pickle(write(tmp_path / "anno.pickle", LABELS, protocol)), LABELS)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_names_of_numpy_one_are_known(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"joint2d": np.ones((21, 2)), "s": np.float64(2)}, protocol=protocol)
    if protocol == 4:  # strings with their lengths
        data = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        data = data[:3] + (int.from_bytes(data[3:11], "little") - 1).to_bytes(8, "little") + data[11:]
    else:
        data = data.replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core." in data
    path = tmp_path / "anno.pickle"
    path.write_bytes(data)
    assert_same(load_pickle(path), {"joint2d": np.ones((21, 2)), "s": np.float64(2)})


def test_a_pickle_of_python_two_is_read(tmp_path: Path) -> None:
    raw = np.array([1.0, 2.5, -3.0])
    path = tmp_path / "mano.pkl"
    path.write_bytes(
        b"\x80\x02}U\x04betacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([24]) + raw.tobytes() + b"tbs."
    )
    assert_same(load_pickle(path), {"beta": raw})


@settings(max_examples=50, deadline=None)
@given(content=arrays(PLAIN_DTYPES, array_shapes(min_dims=0, min_side=0)), protocol=st.integers(0, 5))
def test_arrays_of_any_number_come_back(
    tmp_path_factory: pytest.TempPathFactory, content: np.ndarray, protocol: int
) -> None:
    path = write(tmp_path_factory.mktemp("pickle") / "a.pkl", content, protocol)
    assert_same(load_pickle(path), content)


def test_an_array_that_is_named_twice_stays_one(tmp_path: Path) -> None:
    shared = np.ones(3)
    found = load_pickle(write(tmp_path / "a.pkl", [shared, {"again": shared}]))
    assert found[0] is found[1]["again"]


class Command:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_a_command_is_rejected_by_name(tmp_path: Path, protocol: int) -> None:
    victim = tmp_path / "victim"
    path = write(tmp_path / "anno.pickle", {"a": Command(os.system, f"touch {victim}")}, protocol)
    with pytest.raises(RecordError, match=r"anno\.pickle: the pickle asks for posix\.system") as caught:
        load_pickle(path)
    assert caught.value.reason is RejectReason.LABEL_UNSAFE
    assert not victim.exists()


@pytest.mark.parametrize("call", [(eval, "1"), (getattr, [], "x"), (np.load, "x"), (np.memmap, "x"), (bytearray, 9)])
def test_no_other_callable_is_admitted(tmp_path: Path, call: tuple[Any, ...]) -> None:
    with pytest.raises(RecordError) as caught:
        load_pickle(write(tmp_path / "a.pkl", Command(*call)))
    assert caught.value.reason is RejectReason.LABEL_UNSAFE


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"

NESTED = b")" + b"2\x86" * 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"\x80\x04",
        b"\x80\x04N",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes of nine exabytes
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of nine exabytes
        b"\x80\x02h\x05.",
        b"\x80\x02P1\n.",
        b"\x80\x04cnumpy\ndtype\n}b.",  # changes an admitted class
        b"\x80\x04ccollections\nOrderedDict\n)R}b.",
        b"\x80\x04cnumpy\nndarray\nK\x05\x85R.",
        b"\x80\x04cnumpy\ndtype\nX\x02\x00\x00\x00V8\x85R.",
        # An array of 10^12 numbers in eight bytes, and one of object pointers taken from bytes.
        b"\x80\x04" + RECONSTRUCT + b"(K\x01\x8a\x06\x00\x10\xa5\xd4\xe8\x00\x85cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R"
        b"\x89C\x0812345678tb.",
        b"\x80\x04" + RECONSTRUCT + b"(K\x01K\x01\x85cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R\x89C\x0812345678tb.",
        b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
        # A key of 2^200 nested tuples, whose hash never comes; as dict, set and frozenset, and through OrderedDict.
        b"\x80\x04}" + NESTED + b"Ns.",
        b"\x80\x04}(" + NESTED + b"Nu.",
        b"\x80\x04(" + NESTED + b"Nd.",
        b"\x80\x04\x8f(" + NESTED + b"\x90.",
        b"\x80\x04(" + NESTED + b"\x91.",
        b"\x80\x04c__builtin__\nset\n" + NESTED + b"\x85\x85R.",
        b"\x80\x04ccollections\nOrderedDict\n](" + NESTED + b"N\x86e\x85R.",
        # A shape that, multiplied, is a text of a terabyte.
        b"\x80\x04" + RECONSTRUCT + b"(K\x01\x8a\x06\x00\x10\xa5\xd4\xe8\x00X\x01\x00\x00\x00x\x86"
        b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R\x89C\x0812345678tb.",
    ],
)
def test_a_damaged_or_hostile_stream_is_corrupt_and_nothing_worse(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "anno.pickle"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"anno\.pickle") as caught:
        load_pickle(path)
    assert caught.value.reason is RejectReason.LABEL_CORRUPT


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_gives_an_object_or_a_record_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(
        pickle.dumps({"a": np.arange(4.0), "b": [1, "x"]}, protocol=data.draw(st.sampled_from([2, 4, 5])))
    )
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("pickle") / "a.pkl"
    path.write_bytes(content)
    try:
        load_pickle(path)
    except RecordError as error:
        assert error.reason in (RejectReason.LABEL_CORRUPT, RejectReason.LABEL_UNSAFE)


def test_a_pickle_cannot_ask_for_a_huge_memo(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")  # entry 4,294,967,295: the C unpickler allocates all before it
    assert load_pickle(path) is None


def test_a_missing_file_is_a_missing_label(tmp_path: Path) -> None:
    with pytest.raises(RecordError) as caught:
        load_pickle(tmp_path / "absent.pkl")
    assert caught.value.reason is RejectReason.LABEL_MISSING


def arctic_split(sequences: int, frames: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "imgnames": [f"s01/box/{view}/{frame:05d}.jpg" for view in range(9) for frame in range(10)],
        "data_dict": {
            f"s01/box_grab_{index:02d}": {
                "cam_coord": {"joints.right": rng.random((frames, 10, 21, 3), np.float32)},
                "2d": {"joints.right": rng.random((frames, 10, 21, 2), np.float32)},
            }
            for index in range(sequences)
        },
    }


def test_a_saved_dict_comes_back(tmp_path: Path) -> None:
    content = arctic_split(2, 5)
    np.save(tmp_path / "p1_val.npy", content, allow_pickle=True)
    assert_same(load_object_npy(tmp_path / "p1_val.npy"), content)


def test_an_npy_without_objects_or_with_code_is_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.ones(3))
    with pytest.raises(RecordError, match="expected pickled objects, found an array of float64"):
        load_object_npy(tmp_path / "plain.npy")
    np.save(tmp_path / "code.npy", np.array({"a": Command(os.system, "true")}), allow_pickle=True)
    with pytest.raises(RecordError, match=r"posix\.system"):
        load_object_npy(tmp_path / "code.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "code.npy").read_bytes()[:60])
    with pytest.raises(RecordError) as caught:
        load_object_npy(tmp_path / "cut.npy")
    assert caught.value.reason is RejectReason.LABEL_CORRUPT


def write_large_split(path: Path, sequences: int, frames: int) -> int:
    """Write an ARCTIC-like split of many equal sequences, each pickled anew; return its size."""
    values = np.random.default_rng(0).random((frames, 10, 21, 3), np.float32)
    with path.open("wb") as stream:
        content = {f"s01/seq_{index:04d}": {"cam_coord": {"joints.right": values.view()}} for index in range(sequences)}
        np.save(stream, np.array({"data_dict": content}, dtype=object), allow_pickle=True)
    return path.stat().st_size


WALK = """
import sys
from pathlib import Path
from handdata.adapters.reading.pickles import load_object_npy

def private():  # "Private" pages include those of the file until they are written back; "Anonymous" are our own
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024

before = private()
split = load_object_npy(Path(sys.argv[1]))
total = sum(float(s["cam_coord"]["joints.right"].sum()) for s in split["data_dict"].values())
assert total > 0
print(private() - before)
"""


def private_bytes_of_a_walk(path: Path) -> int:
    result = subprocess.run([sys.executable, "-c", WALK, str(path)], capture_output=True, text=True, check=True)
    return int(result.stdout)


needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's memory accounting")


@needs_smaps
def test_large_arrays_are_views_and_cost_no_memory_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "p1_train.npy"
    assert write_large_split(path, sequences=40, frames=1000) > 100_000_000
    gc.collect()
    assert private_bytes_of_a_walk(path) < 20_000_000


@needs_smaps
@pytest.mark.soak
def test_six_gigabytes_are_walked_in_less_than_two(tmp_path: Path) -> None:
    path = tmp_path / "p1_train.npy"
    assert write_large_split(path, sequences=2_400, frames=1000) > 6_000_000_000
    assert private_bytes_of_a_walk(path) < 2 << 30


def test_the_arrays_cannot_be_written(tmp_path: Path) -> None:
    found = load_pickle(write(tmp_path / "a.pkl", np.arange(3)))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_the_standard_unpickler_would_have_read_the_same(tmp_path: Path) -> None:
    data = pickle.dumps(LABELS, protocol=5)
    assert_same(load_pickle(write(tmp_path / "a.pkl", LABELS, 5)), pickle.load(io.BytesIO(data)))


class Matrix:
    """A class that must not be made: it would tell."""

    def __init__(self) -> None:
        self.data = np.arange(3.0)
        self.parts: list[Any] = [self]

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("the class itself was loaded")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_objects_of_named_classes_come_back_as_their_content_only(tmp_path: Path, protocol: int) -> None:
    path = write(tmp_path / "a.pkl", {"m": Matrix()}, protocol)
    found = load_pickle(path, inert=[(Matrix.__module__, "Matrix")])["m"]
    assert isinstance(found, PickledObject)
    assert found.name == f"{Matrix.__module__}.Matrix"
    assert_same(found.state["data"], np.arange(3.0))
    assert found.state["parts"][0] is found
    with pytest.raises(RecordError, match=r"asks for .*Matrix"):
        load_pickle(path)


@pytest.mark.parametrize("call", [b"(I1\ntR.", b"(I1\nt\x81.", b"}b."])
def test_named_classes_are_neither_called_with_arguments_nor_changed(tmp_path: Path, call: bytes) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02cany\nThing\n" + call)
    with pytest.raises(RecordError) as caught:
        load_pickle(path, inert=[("any", "Thing")])
    assert caught.value.reason is RejectReason.LABEL_CORRUPT


def nested_lists(levels: int, width: int = 1000) -> Any:
    found: Any = [0.0] * width
    for _ in range(levels - 1):
        found = [found] * width
    return found


def objects(entries: list[Any]) -> np.ndarray:
    """Return an array of objects, which numpy does not look into."""
    found = np.empty(len(entries), dtype=object)
    for index, entry in enumerate(entries):
        found[index] = entry
    return found


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nested_lists(3),
        lambda: [np.zeros(10_000)] * 10_000,
        lambda: {"a": {"b": tuple([nested_lists(2)] * 1000)}},
        lambda: nested_lists(60, 2),
        lambda: objects([nested_lists(2, 2000)] * 500),
    ],
)
def test_a_small_pickle_that_names_far_more_than_it_holds_is_rejected(
    tmp_path: Path, protocol: int, make: Callable[[], Any]
) -> None:
    path = write(tmp_path / "a.pkl", {"labels": make()}, protocol)
    with pytest.raises(RecordError, match="names more than") as caught:
        load_pickle(path)
    assert caught.value.reason is RejectReason.LABEL_CORRUPT


def test_a_list_that_holds_itself_is_rejected(tmp_path: Path) -> None:
    loop: list[Any] = [1]
    loop.append({"inner": [loop] * 3})
    with pytest.raises(RecordError, match="holds itself"):
        load_pickle(write(tmp_path / "a.pkl", loop, 4))


def test_arrays_that_frames_share_are_read(tmp_path: Path) -> None:
    shared = np.arange(9.0).reshape(3, 3)
    found = load_pickle(write(tmp_path / "a.pkl", {n: {"K": shared, "pose": [0.5] * 48} for n in range(500)}, 4))
    assert found[499]["K"] is found[0]["K"]


def test_texts_without_characters_are_no_way_to_claim_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", np.zeros(0, "S1"), 2)
    content = path.read_bytes()
    assert b"S1" in content
    for code in (b"S0", b"U0", b"V0"):
        forged = content.replace(b"S1", code).replace(b"K\x00\x85", b"M\xe8\x03M\xe8\x03M\xe8\x03\x87")
        path.write_bytes(forged)
        with pytest.raises(RecordError):
            load_pickle(path)


def test_a_file_that_is_cut_while_its_arrays_are_read_ends_no_process(tmp_path: Path) -> None:
    path = tmp_path / "labels.pickle"
    path.write_bytes(pickle.dumps({"xyz": np.arange(200_000.0)}, protocol=4))
    array = load_pickle(path)["xyz"]
    os.truncate(path, 0)  # of a mapped file, the next line would end this process by SIGBUS
    assert array.sum() == np.arange(200_000.0).sum()


TEXT = b"X" + struct.pack("<I", 1 << 16) + b"x" * (1 << 16) + b"q\x01"
RAW_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\nq\x04)q\x05](" + b"h\x04h\x05Rh\x03b" * 2000 + b"e."


@pytest.mark.parametrize(
    "content",
    [
        TEXT + b"c_codecs\nencode\nq\x02](" + b"h\x02h\x01\x85R" * 2000 + b"e.",
        TEXT
        + b"cnumpy\ndtype\nX\x06\x00\x00\x00S65536\x85Rq\x02cnumpy.core.multiarray\nscalar\nq\x03]("
        + b"h\x03h\x02h\x01\x86R" * 2000
        + b"e.",
        TEXT
        + b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85Rq\x02(K\x01J\x00\x00\x01\x00\x85h\x02\x89h\x01tq\x03"
        + RAW_ARRAY,
        b"]("
        + b"K\x01" * 10_000
        + b"eq\x01cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85Rq\x02(K\x01M\x10\x27\x85h\x02\x89h\x01tq\x03"
        + RAW_ARRAY,
        b"](" + b"".join(b"M" + struct.pack("<H", n) for n in range(10_000)) + b"eq\x01c__builtin__\nset\nq\x02]("
        b"" + b"h\x02h\x01\x85R" * 2000 + b"e.",
        b"](" + b"]" * 100_000 + b"e.",
        b"](" + b"\x8f" * 20_000 + b"e.",
    ],
    ids=["texts", "scalars", "arrays", "arrays of objects", "sets", "lists", "empty sets"],
)
def test_a_pickle_does_not_claim_far_more_memory_than_it_has_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Five bytes of a pickle make another copy of a text of a megabyte that it has once, or of a list."""
    monkeypatch.setattr(pickles, "_ALWAYS_ALLOWED_BYTES", 1 << 20)
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04" + content)
    with pytest.raises(RecordError, match="far more memory than it has bytes") as caught:
        load_pickle(path)
    assert caught.value.reason is RejectReason.LABEL_CORRUPT
