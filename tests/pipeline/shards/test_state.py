"""A state that is followed is the state that would be read, and what it lacks does no harm."""

import json
from dataclasses import asdict, replace

from handdata.pipeline.shards.commit import remove_orphans, write_unit
from handdata.pipeline.shards.lease import Lease, take_lease
from handdata.pipeline.shards.markers import files_of
from handdata.pipeline.shards.plan import PlannedUnit
from handdata.pipeline.shards.settle import is_settled, remove_unfinished
from handdata.pipeline.shards.state import DatasetState, read_state, write_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import UnitMarker
from tests.fixtures.samples import sample


def unit_of(source: str, ordinal: int = 0) -> PlannedUnit:
    return PlannedUnit(f"{source}-train-000-{ordinal:06d}", source, "train", 2, "", ordinal)


def plan(storage: Storage, source: str, *units: PlannedUnit) -> None:
    document = {"records": 2 * len(units), "units": [asdict(unit) for unit in units], "ingest": ""}
    storage.write_bytes(f"dataset/plan/source={source}/generation-000.json", json.dumps(document).encode())


def commit(lease: Lease, unit: PlannedUnit) -> UnitMarker:
    samples = [sample(f"s{unit.row_group}", frame, source=unit.source) for frame in range(2)]
    return write_unit(lease, unit, samples, [], "hash")


def files(storage: Storage) -> list[str]:
    return storage.list_files("dataset/data", ".parquet")


def read(storage: Storage) -> DatasetState:
    return read_state(Dataset(storage))


def test_a_state_with_made_markers_is_the_state_that_would_be_read(storage: Storage) -> None:
    units = [unit_of("rhd"), unit_of("rhd-2"), unit_of("rhd", 1)]
    plan(storage, "rhd", units[0], units[2])
    plan(storage, "rhd-2", units[1])
    lease = take_lease(Dataset(storage))
    state = read(storage)
    assert state.to_do(["rhd", "rhd-2"]) == [units[0], units[2], units[1]]
    state = state.with_markers([commit(lease, unit) for unit in reversed(units)])
    assert state.to_do(["rhd", "rhd-2"]) == []
    assert state == read(storage)
    state = write_manifest(lease, state, state.sum_up(image_size=48))
    assert state == read(storage)
    assert state.manifest is not None
    assert state.manifest.complete


def test_a_unit_that_is_committed_after_the_reading_keeps_its_files_and_is_summed_up_next_time(
    storage: Storage,
) -> None:
    known, late = unit_of("rhd"), unit_of("visor")
    plan(storage, "rhd", known)
    plan(storage, "visor", late)
    lease = take_lease(Dataset(storage))
    state = read(storage)
    commit(lease, late)  # as a writer does that checked its lease a moment before this one was taken
    state = state.with_markers([commit(lease, known)])
    assert remove_orphans(lease, state) == 0
    write_manifest(lease, state, state.sum_up(image_size=48))
    assert len(files(storage)) == 2
    after = read(storage)
    assert not after.is_summed_up(after.sum_up())
    assert after.sum_up().sources["visor"]["train"].samples == 2


def test_files_of_an_unfinished_unit_go_unless_a_late_writer_has_just_committed_them(storage: Storage) -> None:
    late, killed = unit_of("rhd"), unit_of("rhd", 1)
    plan(storage, "rhd", late, killed)
    lease = take_lease(Dataset(storage))
    state = read(storage)
    left = commit(lease, killed)
    storage.remove(lease.dataset.marker_file("rhd", killed.unit_id))  # a writer that was killed before its marker
    marker = commit(lease, late)  # as a writer does that checked its lease a moment before this one was taken
    remove_unfinished(lease, state, "rhd")
    assert files(storage) == files_of(lease.dataset, marker)
    assert not set(files_of(lease.dataset, left)) & set(files(storage))


def test_a_manifest_that_another_version_wrote_is_summed_up(storage: Storage) -> None:
    unit = unit_of("rhd")
    plan(storage, "rhd", unit)
    lease = take_lease(Dataset(storage))
    state = read(storage).with_markers([commit(lease, unit)])
    state = write_manifest(lease, state, state.sum_up(image_size=48))
    assert state.manifest is not None
    older = state.manifest.model_copy(update={"handdata_version": "0.0.1"})
    assert replace(state, manifest=older).is_summed_up(state.sum_up())
    other = state.manifest.model_copy(update={"licenses": {"rhd": "another"}})
    assert not replace(state, manifest=other).is_summed_up(state.sum_up())


def test_a_unit_that_is_committed_late_and_not_planned_any_more_is_unsettled(storage: Storage) -> None:
    late = unit_of("rhd")
    plan(storage, "rhd", late)
    lease = take_lease(Dataset(storage))
    plan(storage, "rhd")
    state = read(storage)
    commit(lease, late)
    remove_orphans(lease, state)
    assert files(storage) == []
    assert not is_settled(read(storage))


def test_the_manifest_has_the_warnings_of_the_last_ingest_of_each_source(storage: Storage) -> None:
    units = [unit_of("rhd"), unit_of("visor")]
    for unit in units:
        plan(storage, unit.source, unit)
    lease = take_lease(Dataset(storage))
    state = read(storage).with_markers([commit(lease, unit) for unit in units])
    for warnings, expected in [
        ({"rhd": ["a"], "visor": ["b"]}, {"rhd": ("a",), "visor": ("b",)}),
        (None, {"rhd": ("a",), "visor": ("b",)}),  # as `flag` and `drop` sum up
        ({"rhd": []}, {"visor": ("b",)}),  # annotated again, of another ingest
    ]:
        state = write_manifest(lease, state, state.sum_up(image_size=48, warnings=warnings))
        assert state.manifest is not None
        assert state.manifest.warnings == expected
        assert state == read(storage)
    left = state.with_markers((), removed=[units[1].unit_id])
    assert left.sum_up().warnings == {}
