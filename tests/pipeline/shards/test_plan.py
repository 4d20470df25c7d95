"""Units are planned once, deterministically, and cut between frames."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handdata.pipeline.records.stored import IngestSummary
from handdata.pipeline.shards.outdated import outdated_records
from handdata.pipeline.shards.plan import MAX_UNIT_ROWS, plan_source, read_unit, row_group_sizes, unit_rows
from handdata.pipeline.storage import Dataset, Storage, table_to_parquet
from handdata.pipeline.storage.layout import INGEST_SUMMARY, records_folder
from handdata.schemas import ROW_GROUP_ROWS, HandRecord, StorageError, records_to_table


def record(sequence: str, frame: int, camera: str = "0", split: str = "train") -> HandRecord:
    return HandRecord(
        source="synthetic",
        split=split,
        sequence_id=sequence,
        frame_index=frame,
        camera_id=camera,
        image_uri=f"/{sequence}/{camera}/{frame}.jpg",
        width=64,
        height=64,
        viewpoint="exo",
        keypoints_2d=np.zeros((42, 2)),
        keypoints_valid=np.zeros(42, bool),
        hand_state=("unknown", "unknown"),
    )


def store(storage: Storage, records: list[HandRecord], token: str = "first") -> None:
    half = len(records) // 2
    files = []
    for number, part in enumerate((records[:half], records[half:])):
        files.append(f"{records_folder('synthetic')}/part-{number:05d}-{token}.parquet")
        storage.write_bytes(files[-1], table_to_parquet(records_to_table(part), 4096))
    summary = IngestSummary("synthetic", "/", 2, len(records), {}, {}, "CC0-1.0", tuple(files), ())
    storage.write_bytes(f"{records_folder('synthetic')}/{INGEST_SUMMARY}", json.dumps(asdict(summary)).encode())


def planned(storage: Storage, **options: int) -> list[list[str]]:
    units = plan_source(Dataset(storage), "synthetic", 256, **options)
    return [[row.record_id for row in read_unit(storage, unit)] for unit in units]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path)
    long_video = [record("long", frame, camera) for camera in "ab" for frame in range(90)]
    stills = [record(f"still{number:03d}", 0) for number in range(100)]
    store(storage, long_video + stills + [record("other", 0, split="val")])
    return storage


def test_every_record_is_in_one_unit(storage: Storage) -> None:
    ids = [record_id for unit in planned(storage) for record_id in unit]
    assert len(ids) == len(set(ids)) == 281


def test_long_sequences_are_cut_evenly_between_frames_and_stills_are_packed(storage: Storage) -> None:
    units = planned(storage)
    video = [unit for unit in units if "/long/" in unit[0]]
    assert [len(unit) for unit in video] == [60, 60, 60]
    assert all(unit[0].rsplit("-", 1)[0] == unit[1].rsplit("-", 1)[0] for unit in video)
    assert [len(unit) for unit in units if "/still" in unit[0]] == [64, 36]


def test_a_unit_has_one_split(storage: Storage) -> None:
    assert all(len({record_id.split("/")[1] for record_id in unit}) == 1 for unit in planned(storage))


def test_planning_again_changes_nothing(storage: Storage) -> None:
    assert planned(storage) == planned(storage)


def test_records_ingested_later_become_further_units(storage: Storage) -> None:
    first = planned(storage, limit=50)
    assert sum(map(len, first)) == 50
    everything = planned(storage)
    assert everything[: len(first)] == first
    ids = [record_id for unit in everything for record_id in unit]
    assert len(ids) == len(set(ids)) == 281


@pytest.mark.parametrize(
    ("name", "why"), [("generation-001.json", "000.json: it is gone"), ("generation-000 (1).json", "no file of a plan")]
)
def test_a_plan_with_a_gap_or_a_copy_is_an_error_and_nothing_is_planned_for_ever(
    storage: Storage, name: str, why: str
) -> None:
    plan_source(Dataset(storage), "synthetic", 256)
    first = "dataset/plan/source=synthetic/generation-000.json"
    storage.write_bytes(first.replace("generation-000.json", name), storage.read_bytes(first))
    if name == "generation-001.json":
        storage.remove(first)
    with pytest.raises(StorageError, match=re.escape(why)):
        plan_source(Dataset(storage), "synthetic", 256)


def test_a_sample_is_spread_over_the_sequences(storage: Storage) -> None:
    ids = [record_id for unit in planned(storage, sample=28) for record_id in unit]
    assert len(ids) == 28
    assert len({record_id.split("/")[2] for record_id in ids}) > 8


def test_units_are_bounded_in_rows_and_bytes() -> None:
    assert unit_rows(256, 10**7) == MAX_UNIT_ROWS
    assert unit_rows(512, 10**7) * 512 * 512 * 0.5 <= 128 << 20
    assert unit_rows(2048, 10**7) >= 1


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_row_groups_hold_whole_frames(cameras_of_frames: list[int]) -> None:
    rows = [("s", frame) for frame, cameras in enumerate(cameras_of_frames) for _ in range(cameras)]
    sizes = row_group_sizes(rows)
    assert sum(sizes) == len(rows)
    assert max(sizes) <= ROW_GROUP_ROWS
    edges = np.cumsum(sizes)[:-1]
    assert all(rows[edge] != rows[edge - 1] for edge in edges)


def test_labels_that_another_ingest_gives_otherwise_are_found_and_moved_files_are_not(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    stills = [record(f"still{number:03d}", 0) for number in range(10)]

    def said() -> tuple[str, ...]:
        return outdated_records(Dataset(storage), "synthetic", plan_source(Dataset(storage), "synthetic", 256))

    def labelled(x: float) -> HandRecord:
        valid = np.arange(42) == 8
        fields = {"keypoints_2d": valid[:, None] * [x, 7.0], "keypoints_valid": valid}
        return HandRecord.model_validate({**dict(stills[3]), **fields, "hand_state": ("labelled", "unknown")})

    stills[5] = labelled(3.0).model_copy(update={"sequence_id": "labelled"})
    store(storage, stills)
    assert said() == ()
    moved = [row.model_copy(update={"image_uri": f"/elsewhere{row.image_uri}"}) for row in stills]
    store(storage, moved[5:] + moved[:5], "again")
    assert said() == ()
    stills[5] = labelled(3.5).model_copy(update={"sequence_id": "labelled"})
    store(storage, stills, "relabelled")
    (found,) = said()
    assert "1 records" in found and "such as synthetic/train/labelled/" in found
