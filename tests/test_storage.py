"""Workspaces on local disk and on a real S3-speaking server keep the same promises."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.ingest import ingest
from handdata.pipeline.plan import plan_source, read_unit
from handdata.pipeline.storage import Storage, table_to_parquet
from handdata.schemas import StorageError


@pytest.fixture(scope="module")
def s3_bucket() -> Iterator[str]:
    """The URL of a new bucket on a server of this process; the environment points s3fs at it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        name = f"bucket-{uuid.uuid4().hex[:8]}"
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
        yield f"s3://{name}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(tmp_path / "workspace")
    return Storage(f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex[:8]}")


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


def test_a_replaced_folder_holds_the_new_files_only(storage: Storage) -> None:
    storage.write_bytes("final/old.json", b"old")
    storage.write_bytes(".staging/x/new.json", b"new")
    storage.replace_folder(".staging/x", "final")
    assert storage.list_files("final", ".json") == ["final/new.json"]
    assert storage.read_bytes("final/new.json") == b"new"


def test_parquet_files_open_by_row_group(storage: Storage) -> None:
    table = pa.table({"a": list(range(10))})
    storage.write_bytes("t.parquet", table_to_parquet(table, [4, 6]))
    with storage.open_parquet("t.parquet") as file:
        assert file.read_row_group(1)["a"].to_pylist() == [4, 5, 6, 7, 8, 9]
    assert storage.read_parquet("t.parquet").equals(table)


def test_ingest_and_planning_work_on_any_storage(storage: Storage, synthetic_root: Path) -> None:
    summary = ingest(SyntheticAdapter, synthetic_root, storage)
    ingest(SyntheticAdapter, synthetic_root, storage)
    units = plan_source(storage, "dataset", "synthetic", 64)
    ids = [record.record_id for unit in units for record in read_unit(storage, unit)]
    assert len(ids) == len(set(ids)) == summary.records == 48


def test_a_missing_file_is_an_error_that_names_it(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*nothing\.json"):
        storage.read_bytes("nothing.json")


def test_an_unknown_protocol_is_one_clear_error() -> None:
    with pytest.raises(StorageError, match="nosuch://bucket"):
        Storage("nosuch://bucket").exists("a")
