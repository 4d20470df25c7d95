"""Files that are missing or short are found by one listing, and what a command is about to replace is not lost."""

import json
from dataclasses import asdict

import pytest

from handdata.pipeline.shards.commit import write_unit
from handdata.pipeline.shards.lease import take_lease
from handdata.pipeline.shards.lost import confirmed_lost, describe_lost, find_lost
from handdata.pipeline.shards.markers import encode_marker, files_of
from handdata.pipeline.shards.plan import PlannedUnit
from handdata.pipeline.shards.state import read_state
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import Rejection, RejectReason, UnitMarker
from tests.fixtures.samples import sample


@pytest.fixture
def markers(storage: Storage) -> list[UnitMarker]:
    """Three finished units of two samples and a rejection each."""
    units = [
        PlannedUnit(f"synthetic-train-000-{number:06d}", "synthetic", "train", 3, "", number) for number in range(3)
    ]
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


def test_markers_of_earlier_versions_do_not_say_how_large_the_rejected_table_is(
    storage: Storage, markers: list[UnitMarker]
) -> None:
    document = json.loads(encode_marker(markers[0]))
    document.pop("rejected_bytes")
    document["bytes"] = 0
    storage.write_bytes(Dataset(storage).marker_file("synthetic", markers[0].unit_id), json.dumps(document).encode())
    assert lost(storage) == {}
    storage.write_bytes(markers[0].rejected_files[0], b"")
    assert list(lost(storage)) == [markers[0].unit_id]


def test_a_file_that_a_command_has_replaced_before_its_marker_is_not_lost(
    storage: Storage, markers: list[UnitMarker]
) -> None:
    shard = files_of(Dataset(storage), markers[0])[0]
    longer = storage.read_bytes(files_of(Dataset(storage), markers[1])[0])
    store(storage, markers[0].model_copy(update={"bytes": len(longer) + 1, "tombstones": "earlier"}))
    storage.write_bytes(shard, longer)
    assert lost(storage) == {}
    storage.write_bytes(shard, longer[:-7])
    assert list(lost(storage)) == [markers[0].unit_id]
    storage.write_bytes(shard, longer)
    store(storage, markers[0].model_copy(update={"bytes": len(longer) + 1}))
    assert list(lost(storage)) == [markers[0].unit_id]  # nothing is to be replaced: these are other rows
