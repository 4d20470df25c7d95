"""A unit is committed once, whoever writes it, however often and wherever a writer stops."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pytest

from handdata.pipeline.shards import read_markers
from handdata.pipeline.shards.commit import remove_orphans, remove_unit, rewrite_unit, write_unit
from handdata.pipeline.shards.lease import take_lease
from handdata.pipeline.shards.markers import read_marker
from handdata.pipeline.shards.plan import PlannedUnit
from handdata.pipeline.shards.state import read_state
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import (
    REJECTION_SCHEMA,
    AnnotatedSample,
    LeaseLostError,
    Rejection,
    RejectReason,
    UnitMarker,
)
from tests.fixtures.samples import sample

UNIT = PlannedUnit("synthetic-train-000-000000", "synthetic", "train", 3, "", 0)
REJECTED = Rejection(record_id="c", image_uri="c.jpg", reason=RejectReason.NO_HAND_FOUND, detail="")


@pytest.fixture(autouse=True)
def _plan(storage: Storage) -> None:
    """Store the plan that the unit was of, and is not any more."""
    storage.write_bytes("dataset/plan/source=synthetic/generation-000.json", b'{"records": 0, "units": []}')


def samples(flags: tuple[str, ...] = ()) -> list[AnnotatedSample]:
    return [sample("s", frame, flags=flags) for frame in range(2)]


def files(storage: Storage) -> list[str]:
    return storage.list_files("dataset/data", ".parquet") + storage.list_files("rejected", ".parquet")


def named_files(storage: Storage) -> list[str]:
    return sorted(
        name
        for marker in read_markers(Dataset(storage))
        for name in (*(f"dataset/{file}" for file in marker.files), *marker.rejected_files)
    )


def test_the_first_of_two_writers_counts_and_the_other_leaves_no_file(storage: Storage) -> None:
    lease = take_lease(Dataset(storage))
    first = write_unit(lease, UNIT, samples(), [REJECTED], "first")
    second = write_unit(lease, UNIT, samples(("blurry",)), [REJECTED], "second")
    assert second == first
    assert files(storage) == named_files(storage)


def test_a_unit_written_again_is_the_same_files(storage: Storage) -> None:
    first = write_unit(take_lease(Dataset(storage)), UNIT, samples(), [REJECTED], "hash")
    assert write_unit(take_lease(Dataset(storage)), UNIT, samples(), [REJECTED], "hash") == first
    assert len(files(storage)) == 2


def test_a_run_that_was_taken_over_adds_nothing(storage: Storage) -> None:
    late = take_lease(Dataset(storage))
    take_lease(Dataset(storage))
    with pytest.raises(LeaseLostError, match="taken over by process"):
        write_unit(late, UNIT, samples(), [REJECTED], "hash")
    assert files(storage) == []
    assert read_markers(Dataset(storage)) == []


class Stopped(BaseException):
    """A process that ends here and now."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """Let the process end before the nth change of any workspace; the result counts the changes so far."""
    done = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if done == step:
                raise Stopped
            done += 1
            return change(*arguments, **options)

        return changed

    for name in ("write_bytes", "create_bytes", "remove"):
        monkeypatch.setattr(Storage, name, counted(getattr(Storage, name)))
    return lambda: done


def rows(storage: Storage) -> Counter[str]:
    """The rows that readers see, with their flags."""
    seen: Counter[str] = Counter()
    for marker in read_markers(Dataset(storage)):
        for name in marker.files:
            table = storage.read_parquet(f"dataset/{name}", ["record_id", "flags"])
            seen.update(map(str, table.to_pylist()))
    return seen


@pytest.mark.parametrize("step", range(4))
def test_a_writer_may_stop_at_any_step(storage: Storage, step: int) -> None:
    late = take_lease(Dataset(storage))
    with pytest.MonkeyPatch.context() as patch:
        changes = stop_at(patch, step)
        try:
            write_unit(late, UNIT, samples(("blurry",)), [REJECTED], "first")
        except Stopped:
            assert changes() == step < 3
            assert read_marker(Dataset(storage), UNIT) is None
    lease = take_lease(Dataset(storage))
    marker = write_unit(lease, UNIT, samples(), [REJECTED], "second")
    remove_orphans(lease, read_state(Dataset(storage)))
    assert marker.samples == 2
    assert read_markers(Dataset(storage)) == [marker]
    assert files(storage) == named_files(storage)
    assert sum(rows(storage).values()) == 2


@pytest.mark.parametrize("step", range(6))
def test_a_rewrite_may_stop_at_any_step(storage: Storage, step: int) -> None:
    before = write_unit(take_lease(Dataset(storage)), UNIT, samples(), [REJECTED], "hash")
    old_rows = rows(storage)

    def drop_one() -> UnitMarker:
        lease = take_lease(Dataset(storage))
        kept = storage.read_parquet(f"dataset/{before.files[0]}")
        kept = kept.filter(pa.compute.equal(kept["frame_index"], 1))
        nothing = pa.Table.from_pylist([], REJECTION_SCHEMA)
        return rewrite_unit(lease, before, kept, nothing)

    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step)
        try:
            drop_one()
        except Stopped:
            assert sum(rows(storage).values()) in (1, 2)
            assert rows(storage) <= old_rows
    marker = read_marker(Dataset(storage), UNIT)
    if marker == before:
        marker = drop_one()
    remove_orphans(take_lease(Dataset(storage)), read_state(Dataset(storage)))
    assert (marker.records, marker.samples, marker.rejected) == (1, 1, {})
    assert files(storage) == named_files(storage) == [f"dataset/{marker.files[0]}"]


def test_files_of_an_unfinished_unit_are_no_orphans(storage: Storage) -> None:
    lease = take_lease(Dataset(storage))
    plan = {"records": 3, "units": [asdict(UNIT)], "ingest": ""}
    storage.write_bytes("dataset/plan/source=synthetic/generation-000.json", json.dumps(plan).encode())
    write_unit(lease, UNIT, samples(), [REJECTED], "hash")
    (marker,) = storage.list_files("dataset/units", ".json")
    storage.remove(marker)
    assert remove_orphans(lease, read_state(Dataset(storage))) == 0
    assert len(files(storage)) == 2


def test_files_of_a_unit_that_is_not_planned_any_more_are_orphans(storage: Storage) -> None:
    lease = take_lease(Dataset(storage))
    remove_unit(lease, write_unit(lease, UNIT, samples(), [REJECTED], "hash"))
    assert files(storage) == []
    storage.write_bytes(f"dataset/data/source=synthetic/split=train/{UNIT.unit_id}-00000000.parquet", b"late")
    assert remove_orphans(lease, read_state(Dataset(storage))) == 1


def test_orphans_are_left_to_the_run_that_has_the_lease(storage: Storage) -> None:
    late = take_lease(Dataset(storage))
    marker = write_unit(late, UNIT, samples(), [REJECTED], "hash")
    orphan = f"dataset/data/source=synthetic/split=train/{UNIT.unit_id}-00000000.parquet"
    storage.write_bytes(orphan, storage.read_bytes(f"dataset/{marker.files[0]}"))
    lease = take_lease(Dataset(storage))
    with pytest.raises(LeaseLostError):
        remove_orphans(late, read_state(Dataset(storage)))
    assert storage.exists(orphan)
    assert remove_orphans(lease, read_state(Dataset(storage))) == 1
    assert files(storage) == named_files(storage)
