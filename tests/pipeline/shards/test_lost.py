"""Files that are missing or short are found by one listing, and what a command is about to replace is not lost."""

import json
from dataclasses import asdict

import pyarrow as pa
import pytest

from handdata.pipeline.shards.commit import write_unit
from handdata.pipeline.shards.lease import take_lease
from handdata.pipeline.shards.lost import confirmed_lost, describe_lost, find_lost
from handdata.pipeline.shards.markers import encode_marker, files_of
from handdata.pipeline.shards.plan import PlannedUnit
from handdata.pipeline.shards.progress import dataset_progress
from handdata.pipeline.shards.settle import drop, settle
from handdata.pipeline.shards.state import read_state, write_manifest
from handdata.pipeline.storage import Dataset, Storage, table_to_parquet
from handdata.schemas import Rejection, RejectReason, StorageError, UnitMarker
from tests.fixtures.samples import sample


@pytest.fixture
def markers(storage: Storage) -> list[UnitMarker]:
    """Three finished units of two samples and a rejection each."""
    plan_file = "dataset/plan/source=synthetic/generation-000-a.parquet"
    units = [
        PlannedUnit(f"synthetic-train-000-{number:06d}", "synthetic", "train", 3, plan_file, number)
        for number in range(3)
    ]
    ids = [
        name
        for unit in units
        for name in (*(sample(f"s{unit.row_group}", frame).record_id for frame in range(2)), unit.unit_id)
    ]
    keys = pa.table({"record_id": ids, "sequence_id": ["s"] * 9, "subject_id": pa.nulls(9, pa.string())})
    storage.write_bytes(plan_file, table_to_parquet(keys, 3))
    document = {"records": 9, "units": [asdict(unit) for unit in units], "ingest": ""}
    storage.write_bytes("dataset/plan/source=synthetic/generation-000.json", json.dumps(document).encode())
    lease = take_lease(Dataset(storage))
    return [
        write_unit(
            lease,
            unit,
            [sample(f"s{unit.row_group}", frame) for frame in range(2)],
            [Rejection(record_id=unit.unit_id, image_uri="a", reason=RejectReason.NO_HAND_FOUND, detail="")],
            "hash",
        )
        for unit in units
    ]


def lost(storage: Storage) -> dict[str, str]:
    state = read_state(Dataset(storage))
    found = find_lost(state)
    assert confirmed_lost(state) == found
    return {unit.marker.unit_id: unit.why for unit in found}


def store(storage: Storage, marker: UnitMarker) -> None:
    storage.write_bytes(Dataset(storage).marker_file(marker.source, marker.unit_id), encode_marker(marker))


def test_missing_and_short_files_of_either_kind_are_lost(storage: Storage, markers: list[UnitMarker]) -> None:
    assert lost(storage) == {}
    shard, rejected = files_of(Dataset(storage), markers[0])
    whole = storage.read_bytes(shard)
    storage.write_bytes(shard, whole[:-1])
    assert lost(storage) == {markers[0].unit_id: f"{shard} has {len(whole) - 1:,} of {len(whole):,} bytes"}
    storage.write_bytes(shard, b"")
    assert "has 0 of" in lost(storage)[markers[0].unit_id]
    storage.write_bytes(shard, whole)
    storage.remove(rejected)
    assert lost(storage) == {markers[0].unit_id: f"{rejected} is missing"}
    storage.remove(files_of(Dataset(storage), markers[2])[0])
    assert list(lost(storage)) == [markers[0].unit_id, markers[2].unit_id]
    assert describe_lost(find_lost(read_state(Dataset(storage)))).startswith("2 finished units: ")


def test_a_shard_under_another_name_is_not_removed_while_it_is_lost(
    storage: Storage, markers: list[UnitMarker]
) -> None:
    dataset = Dataset(storage)
    shard = files_of(dataset, markers[0])[0]
    whole = storage.read_bytes(shard)
    for renamed in (
        shard.replace("000000-", "000000-old-"),
        shard.replace("synthetic-train", "copy-of-synthetic-train"),
    ):
        storage.write_bytes(renamed, whole)
        storage.remove(shard)
        assert list(lost(storage)) == [markers[0].unit_id]
        settle(take_lease(dataset), read_state(dataset))
        assert storage.exists(renamed)
        storage.write_bytes(shard, storage.read_bytes(renamed))
        settle(take_lease(dataset), read_state(dataset))
        assert not storage.exists(renamed)  # a copy of a file that is there


def test_markers_of_earlier_versions_do_not_say_how_large_the_rejected_table_is(
    storage: Storage, markers: list[UnitMarker]
) -> None:
    document = json.loads(encode_marker(markers[0]))
    document.pop("rejected_bytes")
    storage.write_bytes(Dataset(storage).marker_file("synthetic", markers[0].unit_id), json.dumps(document).encode())
    assert lost(storage) == {}
    storage.write_bytes(markers[0].rejected_files[0], b"")
    assert list(lost(storage)) == [markers[0].unit_id]


def test_a_file_that_a_command_has_replaced_before_its_marker_is_not_lost(
    storage: Storage, markers: list[UnitMarker]
) -> None:
    shard = files_of(Dataset(storage), markers[0])[0]
    one_row = table_to_parquet(storage.read_parquet(shard).slice(0, 1), 1)
    store(storage, markers[0].model_copy(update={"bytes": len(one_row) + 1, "tombstones": "earlier"}))
    storage.write_bytes(shard, one_row)
    assert lost(storage) == {}
    storage.write_bytes(shard, one_row[:-7])
    assert list(lost(storage)) == [markers[0].unit_id]
    storage.write_bytes(shard, storage.read_bytes(files_of(Dataset(storage), markers[1])[0]))
    store(storage, markers[0].model_copy(update={"bytes": 1, "tombstones": "earlier"}))
    assert list(lost(storage)) == [markers[0].unit_id]  # these are rows of another unit
    storage.write_bytes(shard, one_row)
    store(storage, markers[0].model_copy(update={"bytes": len(one_row) + 1}))
    assert list(lost(storage)) == [markers[0].unit_id]  # nothing is to be replaced


def test_a_file_with_other_rows_of_the_same_size_is_damaged_and_nothing_is_removed(
    storage: Storage, markers: list[UnitMarker]
) -> None:
    shard, other = (files_of(Dataset(storage), marker)[0] for marker in markers[:2])
    storage.write_bytes(shard, storage.read_bytes(other))
    store(storage, markers[0].model_copy(update={"bytes": storage.size(other), "tombstones": "earlier"}))
    dataset = Dataset(storage)
    with pytest.raises(StorageError, match=r"has 1 of its 3 records .*--repair"):
        settle(take_lease(dataset), read_state(dataset))
    assert storage.exists(shard)


@pytest.mark.parametrize("gone", ["plan/source=synthetic/generation-000.json", "plan/source=synthetic", "plan"])
def test_without_their_plan_finished_units_are_an_error_and_stay(
    storage: Storage, markers: list[UnitMarker], gone: str
) -> None:
    storage.remove(f"dataset/{gone}")
    dataset = Dataset(storage)
    for command in (
        lambda: read_state(dataset),
        lambda: dataset_progress(dataset),
        lambda: drop(storage, "source", [], "synthetic"),
    ):
        with pytest.raises(StorageError, match=r"generation-000\.json: it is gone .*restore it"):
            command()
    assert all(storage.exists(name) for marker in markers for name in files_of(dataset, marker))


@pytest.mark.parametrize(
    "changes",
    [
        {"records": -1},
        {"samples": 10**30},
        {"samples": 1},
        {"bytes": -5},
        {"bytes": 0},
        {"thresholds": {"max_mask_spill": 1e30}},
        {"thresholds": {"a_threshold": 1}},
        {"files": ["data/source=synthetic/split=train/synthetic-train-000-000009-0.parquet"]},
        {"files": ["../synthetic-train-000-000000-/../records"]},
    ],
)
def test_a_marker_with_numbers_or_files_that_no_unit_has_is_damaged(
    storage: Storage, markers: list[UnitMarker], changes: dict[str, object]
) -> None:
    name = Dataset(storage).marker_file("synthetic", markers[0].unit_id)
    storage.write_bytes(name, json.dumps(json.loads(encode_marker(markers[0])) | changes).encode())
    with pytest.raises(StorageError, match=r"000000\.json is damaged: .*does its unit again"):
        read_state(Dataset(storage))


def test_a_manifest_with_thresholds_that_no_dataset_has_is_damaged(storage: Storage, markers: list[UnitMarker]) -> None:
    state = read_state(Dataset(storage))
    write_manifest(take_lease(state.dataset), state, state.sum_up(quality={"max_mask_spill": 1e30}))
    with pytest.raises(StorageError, match=r"dataset\.json is damaged: max_mask_spill"):
        read_state(Dataset(storage))
