"""Stored URIs are relative to the dataset's folder, whatever its name, and come back whole, wherever it lies now."""

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handdata.adapters import AdapterOptions
from handdata.adapters.registry import find_adapter
from handdata.pipeline.annotation.frames import read_image_file
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.records.provenance import absolute_row, absolute_uri, relative_uri, with_relative_uris
from handdata.pipeline.records.stored import read_ingest_summary
from handdata.pipeline.storage import Storage
from handdata.schemas import FORMAT_VERSION, RECORD_SCHEMA, RecordError, UsageError, rejections_to_table
from tests.fixtures.mano import write_mano
from tests.fixtures.sources import ADAPTER_FIXTURES, AdapterFixture

ROOTS = ["/data/rhd", "/", "/my data/50 %/#1", "/a::b/c", "/Hände/手", '/say "hi"/\\n', "/zip:/x", "/a{root}/b"]
INSIDE = ["a.jpg", "x y/50%.jpg", "é/#1?.png", "a::b.jpg", "{root}/a.jpg", "a:/b.jpg"]
ODD_PATHS = {"visor", "reinterhand", "dart", "foundhand10m", "wlasl", "hagrid-v1"}
"""Sources with archives, videos and paths in ``extra`` among them."""
WHOLE = ["s3://bucket/a.jpg", "https://host/a%20b.jpg?x=1", "zip://a.jpg::s3://bucket/b.zip", "/elsewhere/a.jpg"]


@pytest.mark.parametrize("root", ROOTS)
def test_uris_come_back_as_they_were_or_move_with_the_root(root: str) -> None:
    below = root.rstrip("/")
    for name in INSIDE:
        for uri in (f"{below}/{name}", f"zip://m.jpg::{below}/{name}"):
            relative = relative_uri(uri, root)
            assert relative == uri.replace(f"{below}/{name}", name)
            assert absolute_uri(relative, root) == uri
            assert absolute_uri(relative, "/new::place") == uri.replace(f"{below}/{name}", f"/new::place/{name}")
            assert relative_uri(relative, root) == relative
        assert relative_uri(f"file://{below}/{name}", root) == name
        assert relative_uri(f"zip://m.jpg::file://{below}/{name}", root) == f"zip://m.jpg::{name}"
    for uri in WHOLE[: 3 if root == "/" else 4]:
        assert relative_uri(uri, root) == absolute_uri(uri, root) == uri
    assert relative_uri(f"{below}x/a.jpg", root).endswith("x/a.jpg") and absolute_uri("a.jpg", "") == "a.jpg"
    assert relative_uri(f"{below}//a.jpg", root) == "a.jpg"  # what looks absolute would be another file


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("uris", [INSIDE, INSIDE + WHOLE, WHOLE])
def test_tables_hold_what_single_uris_become_and_so_do_paths_in_extra(root: str, uris: list[str]) -> None:
    below = root.rstrip("/")
    whole = [uri if "://" in uri or uri.startswith("/") else f"{below}/{uri}" for uri in uris]
    extra = [None, *(json.dumps({"mask": uri, "boxes": [1.5]}) for uri in whole[1:])]
    table = pa.table({"image_uri": whole, "extra": extra})
    stored = with_relative_uris(table, root)
    assert stored["image_uri"].to_pylist() == [relative_uri(uri, root) for uri in whole]
    assert stored.schema.names == table.schema.names and with_relative_uris(stored, root).equals(stored)
    if root not in ("/", "/a{root}/b"):
        assert f"{root}/" not in "".join(filter(None, stored["extra"].to_pylist()))
    rows = [absolute_row(row, root) for row in stored.to_pylist()]
    assert [(row["image_uri"], row["extra"]) for row in rows] == list(zip(whole, extra, strict=True))


@pytest.mark.parametrize(
    "fixture",
    [
        pytest.param(fixture, id=fixture.name, marks=() if fixture.name in ODD_PATHS else pytest.mark.soak)
        for fixture in ADAPTER_FIXTURES
    ],
)
def test_no_table_of_an_ingest_names_the_folder_but_in_words(fixture: AdapterFixture, tmp_path: Path) -> None:
    root, mano = tmp_path / "50 % # ::é" / "data", tmp_path / "mano"
    root.mkdir(parents=True)
    fixture.write(root)
    write_mano(mano)
    storage = Storage(tmp_path / "w")
    options = AdapterOptions(mano_dir=mano)
    summary = ingest(find_adapter(fixture.source), root, storage, limit=1000, options=options)
    assert (summary.records, summary.format_version) == (fixture.records, FORMAT_VERSION)
    for name in (*summary.files, *summary.rejected_files):
        table = storage.read_parquet(name)
        for row in table.select(
            [column for column in ("image_uri", "extra") if column in table.column_names]
        ).to_pylist():
            assert str(tmp_path) not in json.dumps(row) and "50 %" not in json.dumps(row)
    for name in summary.files:
        assert storage.read_parquet(name).schema.equals(RECORD_SCHEMA)
        for row in storage.read_parquet(name, ["image_uri", "extra", "video_frame"]).to_pylist():
            uri = absolute_row(row, summary.root)["image_uri"]
            assert read_image_file(uri) if row["video_frame"] is None else Path(uri).is_file()


def test_an_image_in_an_archive_below_any_folder_is_read(tmp_path: Path) -> None:
    archive = tmp_path / "a::b # 50%" / "c::d.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.jpg", b"bytes")
    for uri in (f"zip://x.jpg::{archive}", f"zip://x.jpg::file://{archive}", f"simplecache::zip://x.jpg::{archive}"):
        assert read_image_file(uri) == b"bytes"
    (archive.parent / "y::z.jpg").write_bytes(b"more")
    assert read_image_file(f"file://{archive.parent}/y::z.jpg") == b"more"
    assert Storage(archive.parent).read_bytes("y::z.jpg") == b"more"


def test_a_damaged_archive_costs_its_images_and_no_waiting_for_a_server(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x.jpg", b"bytes")
        file.writestr("y.jpg", b"whole")
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "other.zip").write_bytes(data.replace(b"bytes", b"bytez"))
    (tmp_path / "cut.zip").write_bytes(data[:60])
    for name in ("other.zip", "cut.zip"):
        with pytest.raises(RecordError, match="lies in a damaged archive"):
            read_image_file(f"zip://x.jpg::{tmp_path / name}")
    assert read_image_file(f"zip://y.jpg::{tmp_path / 'other.zip'}") == b"whole"


def test_records_of_a_newer_format_are_an_error(synthetic_root: Path, tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    ingest(find_adapter("synthetic"), synthetic_root, storage)
    file = tmp_path / "records/source=synthetic/_ingest.json"
    file.write_text(file.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 9'))
    with pytest.raises(UsageError, match="has format 9, this handdata reads 2"):
        read_ingest_summary(storage, "synthetic")


def test_rejected_rows_are_relative_too(tmp_path: Path) -> None:
    fixture = next(fixture for fixture in ADAPTER_FIXTURES if fixture.name == "hagrid-v1")
    fixture.write(tmp_path / "d")
    ingest(find_adapter("hagrid"), tmp_path / "d", Storage(tmp_path / "w"))
    (row,) = pq.read_table(tmp_path / "w/rejected/ingest/source=hagrid").to_pylist()
    assert not row["image_uri"].startswith("/") and row["image_uri"].endswith(".jpg")
    assert not len(with_relative_uris(rejections_to_table([]), "/x"))
