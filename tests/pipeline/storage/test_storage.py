"""Workspaces on local disk and on a real S3-speaking server keep the same promises."""

import asyncio
import os
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from handdata.pipeline.storage import Storage, blob_checksums, blob_ranges, store, table_to_parquet
from handdata.schemas import StorageError
from tests.fixtures.faults import FaultyS3


def test_a_link_to_a_folder_is_listed_as_a_folder_and_a_link_to_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "step-1").mkdir(parents=True)
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "w" / "runs").mkdir(parents=True)
    for name in ("step-1", "file", "gone"):
        (tmp_path / "w" / "runs" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert Storage(tmp_path / "w").list_folders("runs") == ["step-1"]


def test_what_is_written_is_read_and_listed(storage: Storage) -> None:
    storage.write_bytes("a/b/one.json", b"1")
    storage.write_bytes("a/two.json", b"2")
    storage.write_bytes("a/.hidden.json", b"3")
    storage.write_bytes("a/_marker.json", b"4")
    assert storage.list_files("a", ".json") == ["a/b/one.json", "a/two.json"]
    assert storage.list_folders("a") == ["b"]
    assert storage.read_many(["a/b/one.json", "a/two.json"]) == [b"1", b"2"]
    assert storage.read_many(["a/two.json"]) == [b"2"]
    assert storage.list_files("nowhere", ".json") == []
    assert storage.list_folders("nowhere") == []


def test_a_write_that_fails_leaves_nothing_behind(storage: Storage) -> None:
    storage.write_bytes("kept.bin", b"old")
    with pytest.raises(RuntimeError, match="in the middle"), storage.open_output("kept.bin") as stream:
        stream.write(b"half of the new")
        raise RuntimeError("in the middle")
    assert storage.read_bytes("kept.bin") == b"old"
    assert storage.list_files("", ".bin") == ["kept.bin"]


def test_the_first_writer_of_a_created_file_wins(storage: Storage) -> None:
    assert storage.create_bytes("a/one.json", b"first") == b"first"
    assert storage.create_bytes("a/one.json", b"second") == b"first"
    assert storage.read_bytes("a/one.json") == b"first"
    assert storage.list_files("a", "") == ["a/one.json"]


def test_of_many_writers_at_once_exactly_one_wins(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(lambda n: storage.create_bytes("a/one.json", b"%d" % n), range(16)))
    assert len(set(seen)) == 1
    assert storage.read_bytes("a/one.json") == seen[0]


def test_a_moved_file_has_its_new_name_only(storage: Storage) -> None:
    storage.write_bytes(".staging/x/new.json", b"new")
    storage.move(".staging/x/new.json", "final/new.json")
    assert storage.read_bytes("final/new.json") == b"new"
    assert not storage.exists(".staging/x/new.json")


def test_parquet_files_open_by_row_group(storage: Storage) -> None:
    table = pa.table({"a": list(range(10))})
    storage.write_bytes("t.parquet", table_to_parquet(table, [4, 6]))
    with storage.open_parquet("t.parquet") as file:
        assert file.read_row_group(1)["a"].to_pylist() == [4, 5, 6, 7, 8, 9]
    assert storage.read_parquet("t.parquet").equals(table)


def test_the_storage_tells_when_a_file_was_written(storage: Storage) -> None:
    storage.write_bytes("folder/a.json", b"{}")
    storage.write_bytes("folder/b.txt", b"")
    times = storage.modified_times("folder", ".json")
    assert list(times) == ["folder/a.json"]
    assert abs(times["folder/a.json"] - time.time()) < 60
    assert storage.modified_times("nowhere", ".json") == {}


@pytest.fixture
def faulty_s3(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    proxy = FaultyS3(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(store, "RETRY_WAITS_S", (0.1,) * 8)
    sleep = asyncio.sleep  # s3fs and botocore wait in it before they ask again: for seconds, which say nothing here
    monkeypatch.setattr(asyncio, "sleep", lambda delay, result=None: sleep(delay / 20, result))
    s3fs.S3FileSystem.clear_instance_cache()  # their servers are those of the moment in which they were made
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.stop()


def test_a_server_that_fails_now_and_then_is_asked_again(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    storage = Storage(f"{s3_bucket}/{uuid.uuid4().hex[:8]}")
    faulty_s3.failing = 0.4
    for number in range(10):
        data = b"%d" % number
        storage.write_bytes(f"written/{number}", data)
        assert storage.create_bytes(f"created/{number}", data) == data
        assert storage.create_bytes(f"created/{number}", b"too late") == data
        storage.move(f"written/{number}", f"moved/{number}")
        assert storage.read_bytes(f"moved/{number}") == data
    assert len(storage.list_files("moved", "")) == len(storage.list_files("created", "")) == 10
    assert storage.list_files("written", "") == []
    assert faulty_s3.faults > 20


def test_a_server_that_stays_away_is_one_clear_error(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    faulty_s3.failing = 1
    with pytest.raises(StorageError, match=rf"cannot write {s3_bucket}/a: .*the same command continues") as caught:
        Storage(s3_bucket).write_bytes("a", b"")
    assert caught.value.transient
    assert "\n" not in str(caught.value)


def test_a_conditional_request_that_meets_another_one_is_repeated(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    storage = Storage(f"{s3_bucket}/{uuid.uuid4().hex[:8]}")
    faulty_s3.conflicts = 3
    assert storage.create_bytes("created", b"first") == b"first"
    assert (faulty_s3.conflicts, faulty_s3.faults) == (0, 3)
    assert storage.create_bytes("created", b"second") == b"first"


def test_a_store_that_ignores_conditional_requests_is_found_out(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    workspace = f"{s3_bucket}/{uuid.uuid4().hex[:8]}"
    Storage(workspace).check_creates_once()
    faulty_s3.conditional = False
    with pytest.raises(StorageError, match="If-None-Match"):
        Storage(workspace).check_creates_once()
    faulty_s3.conditional = True
    assert Storage(workspace)._filesystem.find(workspace.removeprefix("s3://")) == []  # probes are removed


def test_a_disk_creates_each_file_once(storage: Storage) -> None:
    storage.check_creates_once()
    assert storage.list_folders("") == []


def test_sizes_are_those_of_one_listing(storage: Storage) -> None:
    storage.write_bytes("a/b/one.parquet", b"1")
    storage.write_bytes("a/three.parquet", b"333")
    storage.write_bytes("a/_hidden/four.parquet", b"4444")
    assert storage.sizes("a", ".parquet") == {"a/b/one.parquet": 1, "a/three.parquet": 3}
    assert storage.sizes("nowhere", ".parquet") == {}


@pytest.mark.parametrize("byte", [300, -6])
def test_a_flipped_bit_of_a_parquet_file_is_one_line_that_names_it(tmp_path: Path, byte: int) -> None:
    storage = Storage(tmp_path)
    table = pa.table({"number": np.arange(1000), "text": [f"text {number}" for number in range(1000)]})
    data = bytearray(table_to_parquet(table, 100))
    data[byte] ^= 4  # of a page, of the footer
    storage.write_bytes("dataset/data/source=a/split=train/u-0.parquet", bytes(data))
    with pytest.raises(StorageError, match=r"u-0\.parquet is damaged: .*`handdata annotate --repair`") as caught:
        storage.read_parquet("dataset/data/source=a/split=train/u-0.parquet")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error_that_names_it(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*nothing\.json"):
        storage.read_bytes("nothing.json")


def test_a_file_has_a_path_on_this_machine_wherever_it_lies(storage: Storage) -> None:
    storage.write_bytes("folder/weights.bin", b"abc")
    with storage.local_copy("folder/weights.bin") as path:
        assert (path.name, path.read_bytes()) == ("weights.bin", b"abc")
    assert path.exists() == storage.is_local
    with Storage(storage.url("folder/weights.bin")).local_copy() as path:
        assert path.read_bytes() == b"abc"


def test_an_unknown_protocol_is_one_clear_error() -> None:
    with pytest.raises(StorageError, match="nosuch://bucket"):
        Storage("nosuch://bucket").exists("a")


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_small_images_of_few_rows_are_found_in_a_file(rows: int) -> None:
    images = [bytes([7 - number]) * 700 for number in range(rows)]
    column = pa.array([{"bytes": image} for image in images], pa.struct([("bytes", pa.binary())]))
    data = table_to_parquet(pa.table({"name": ["a"] * rows, "image": column}), 128)
    ranges = blob_ranges(pq.ParquetFile(pa.BufferReader(data)), "image")
    assert ranges is not None
    assert [data[start : start + size] for start, size in ranges.tolist()] == images


def test_parts_of_files_are_read_without_the_rest(storage: Storage) -> None:
    images = [bytes([number % 250]) * (1000 + number) for number in range(300)]
    masks = [None if number % 3 else b"mask" * number for number in range(300)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        name: pa.array([None if value is None else {"bytes": value, "path": None} for value in values], kind)
        for name, values in (("image", images), ("hand_mask", masks))
    }
    table = pa.table({"name": [str(number) for number in range(300)], **columns})
    storage.write_bytes("a/rows.parquet", table_to_parquet(table, 128))
    storage.write_bytes("a/other.bin", b"0123456789")
    with storage.open_parquet("a/rows.parquet") as file:
        ranges = {name: blob_ranges(file, name) for name in columns}
        assert file.read().equals(table)
        assert blob_ranges(file, "name") is None
        checksums = blob_checksums(file, "hand_mask")
        assert checksums is not None
        assert checksums.tolist() == [0 if mask is None else zlib.crc32(mask) for mask in masks]
        assert blob_checksums(file, "name") is None
    image, mask = ranges["image"], ranges["hand_mask"]
    assert image is not None
    assert mask is not None
    ranges = [("a/rows.parquet", *image[number].tolist()) for number in (299, 0, 130)]
    parts = storage.read_ranges([*ranges, ("a/other.bin", 2, 3), ("a/rows.parquet", *mask[150].tolist())])
    assert parts == [images[299], images[0], images[130], b"234", masks[150]]
    assert not mask[1].any()
    with pytest.raises(StorageError, match="ends before byte 20"):
        storage.read_ranges([("a/other.bin", 5, 15)])
    with pytest.raises(StorageError, match=r"missing\.bin"):
        storage.read_ranges([("missing.bin", 0, 1)])
