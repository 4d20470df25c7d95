"""Files that get lost or damaged after a run are named by every command, and the unit is done again, and only that."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import plan
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import RunError
from tests.fixtures.faults import rejected_rows, rows_of

SMALL = AnnotateSettings(masks="none", keypoints="dataset", image_size=64)
INVALID = (
    {"width": -5},
    {"extra": '{"cut off'},
    {"split": "bogus", "sequence_id": None},
    {"keypoints_2d": [None] * 84},
    {"camera_id": "another"},
)
"""Changes that make a record none."""
OPTIONS = ("--masks", "none", "--keypoints", "dataset", "--image-size", "64")


@pytest.fixture(scope="module")
def annotated(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A workspace of several units, some of whose records are none."""
    workspace = tmp_path_factory.mktemp("repair") / "w"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MIN_UNIT_ROWS", 8)
        ingest(SyntheticAdapter, synthetic_root, Storage(workspace))
        files = sorted((workspace / "records").rglob("*.parquet"))
        for number, path in enumerate(files):
            table = pq.read_table(path, partitioning=None)
            rows = table.to_pylist()
            for row, change in enumerate(INVALID[number :: len(files)]):
                rows[3 + row] |= change
            nullable = pa.schema([field.with_nullable(True) for field in table.schema])
            pq.write_table(pa.Table.from_pylist(rows, nullable), path)
        annotate(AnnotateRequest(Dataset(Storage(workspace))), SMALL)
    return workspace


@pytest.fixture
def workspace(annotated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(annotated, tmp_path / "w"))


def marker_with(workspace: Path, what: str) -> dict:
    """The first marker that names a file of ``files`` or ``rejected_files``."""
    markers = [json.loads(path.read_text()) for path in sorted((workspace / "dataset/units").rglob("*.json"))]
    return next(marker for marker in markers if marker[what])


def test_invalid_rows_are_rejected_one_by_one(annotated: Path) -> None:
    rejected = rejected_rows(annotated)
    assert len(rejected) == len(INVALID)
    assert {row["reason"] for row in rejected} == {"label_corrupt"}
    details = " ".join(row["detail"] for row in rejected)
    for why in ("greater than 0", "row is no record", "it has no sequence_id", "its columns make it"):
        assert why in details
    assert len(rows_of(annotated)) == 48 - len(INVALID)
    assert not {row["record_id"] for row in rejected} & rows_of(annotated).keys()


@pytest.mark.parametrize("what", ["files", "rejected_files"])
@pytest.mark.parametrize("how", ["deleted", "shortened"])
def test_lost_files_are_named_by_every_command_and_repaired(workspace: Path, run_command, what: str, how: str) -> None:
    before, rejected_before = rows_of(workspace), rejected_rows(workspace)
    marker = marker_with(workspace, what)
    path = workspace / ("dataset" if what == "files" else "") / marker[what][0]
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    here = ("-w", workspace)
    status = json.loads(run_command("status", *here, "--json").out)
    assert list(status["lost"]) == [marker["unit_id"]]
    assert not status["complete"]
    assert status["done"] == 48 - marker["records"]
    assert marker["unit_id"] in run_command("status", *here).out
    for command in (("annotate", *OPTIONS), ("flag", "--min-hand-px", "30"), ("annotate", *OPTIONS)):
        result = run_command(*command, *here)
        assert result.code == 1
        assert marker["unit_id"] in result.err
        assert "handdata annotate --repair" in result.err
    assert list(json.loads(run_command("status", *here, "--json").out)["lost"]) == [marker["unit_id"]]
    dataset = Dataset(Storage(workspace))
    with pytest.raises(RunError, match=marker["unit_id"]):
        annotate(AnnotateRequest(dataset), SMALL)
    repaired = annotate(AnnotateRequest(dataset, repair=True), SMALL)
    assert repaired.records == marker["records"]
    assert repaired.manifest.complete
    after = rows_of(workspace)
    flags = {name: row.pop("flags") for name, row in after.items()}
    assert after == {name: {key: row[key] for key in row if key != "flags"} for name, row in before.items()}
    assert all("small_hand" not in names or before[name]["flags"] for name, names in flags.items())
    assert sorted(map(str, rejected_rows(workspace))) == sorted(map(str, rejected_before))
    again = annotate(AnnotateRequest(dataset), SMALL)
    assert again.records == 0


def test_what_is_dropped_with_a_lost_shard_is_named_until_it_is_repaired(workspace: Path, run_command) -> None:
    marker = marker_with(workspace, "files")
    shard = workspace / "dataset" / marker["files"][0]
    record = pq.read_table(shard, partitioning=None)["record_id"][0].as_py()
    shard.write_bytes(shard.read_bytes()[:-40])
    result = run_command("drop", "-w", workspace, "--record", record)
    assert result.code == 1
    assert marker["unit_id"] in result.err
    annotate(AnnotateRequest(Dataset(Storage(workspace)), repair=True), SMALL)
    assert len(rows_of(workspace)) == 47 - len(INVALID)
    assert record not in rows_of(workspace)
    again = run_command("drop", "-w", workspace, "--record", record)
    assert (again.code, "Dropped before" in again.out) == (0, True)


@pytest.mark.parametrize(
    "command",
    [("flag", "--min-hand-px", "30"), ("drop", "--sequence", "SEQUENCE"), ("report", "--out", "OUT")],
    ids=lambda command: command[0],
)
def test_a_flipped_bit_in_a_shard_ends_a_command_in_one_line(
    workspace: Path, tmp_path: Path, run_command, command: tuple[str, ...]
) -> None:
    marker = marker_with(workspace, "files")
    shard = workspace / "dataset" / marker["files"][0]
    (sequence, *_) = pq.read_table(shard, partitioning=None)["sequence_id"].to_pylist()
    metadata = pq.read_metadata(shard).row_group(0)
    data = bytearray(shard.read_bytes())
    for number in range(metadata.num_columns):
        column = metadata.column(number)
        data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    shard.write_bytes(data)
    words = {"SEQUENCE": sequence, "OUT": str(tmp_path / "out")}
    result = run_command(*(words.get(word, word) for word in command), "-w", workspace)
    assert result.code == 1
    assert f"{shard.name} is damaged" in result.err
    assert "remove it: `handdata annotate --repair` does its unit again" in result.err
