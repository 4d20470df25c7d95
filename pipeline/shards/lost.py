"""Lost units: finished ones whose files are missing, or not as large as their markers say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from handdata.pipeline.records.tombstones import is_among
from handdata.pipeline.shards.markers import files_of
from handdata.pipeline.shards.plan import PlannedUnit, read_unit_keys
from handdata.pipeline.shards.state import DatasetState, read_state
from handdata.pipeline.storage import DATASET, Dataset, Storage
from handdata.schemas import GENERATED, RunError, StorageError, UnitMarker

_LEAST_BYTES = 12
"""Size of the shortest Parquet file: for tables whose markers do not say how large they are."""

_NAMED_UNITS = 5
"""Most units that a message names; ``status --json`` names all."""


@dataclass(frozen=True, slots=True)
class LostUnit:
    """A finished unit whose files are not as it wrote them.

    Args:
        marker: Marker of the unit.
        why: Which file, and what is wrong with it.
        late: Whether all its files are missing and its marker follows earlier tombstones: a writer that was thought
            dead may have written the marker after the files were removed.

    """

    marker: UnitMarker
    why: str
    late: bool = False


def find_lost(state: DatasetState) -> list[LostUnit]:
    """Return the planned units that have lost files; lists the files once, and opens none that is as it should be."""
    dataset, planned = state.dataset, state.planned
    markers = [marker for marker in state.markers if marker.unit_id in planned]
    sources = sorted({marker.source for marker in markers})
    sizes = dict(dataset.storage.sizes(dataset.data_folder, ".parquet"))
    for source in sources:
        sizes |= dataset.storage.sizes(dataset.rejected_folder(source), ".parquet")
    unsettled = {marker.unit_id for marker in state.unsettled()}
    lost = []
    for marker in markers:
        why = _loss(dataset, marker, sizes, planned[marker.unit_id] if marker.unit_id in unsettled else None)
        if why:
            late = marker.tombstones != state.tombstones_of(marker).digest
            late &= not any(name in sizes for name in files_of(dataset, marker))
            lost.append(LostUnit(marker, why, late))
    return lost


def confirmed_lost(state: DatasetState) -> list[LostUnit]:
    """Return ``find_lost``, for a reader without the lease.

    A command that rewrites or removes a unit replaces a file shortly before the marker, so that what seems lost is
    looked at again with a state that was read later.
    """
    first = {unit.marker.unit_id for unit in find_lost(state)}
    return [unit for unit in find_lost(read_state(state.dataset)) if unit.marker.unit_id in first] if first else []


def lost_error(dataset: Dataset, lost: Sequence[LostUnit]) -> RunError:
    """Return the error that names lost units, and how they are done again."""
    return RunError(
        f"{dataset.describe()} has lost files of {describe_lost(lost)}",
        f"is its disk mounted? {how_to_repair(dataset, lost)}",
    )


def how_to_repair(dataset: Dataset, lost: Sequence[LostUnit]) -> str:
    """Return which command does lost units again, for a message."""
    command = "sample domain-transfer" if lost[0].marker.source == GENERATED else "annotate"
    option = "" if dataset.name == DATASET else f" --dataset {dataset.name}"
    return f"`handdata {command}{option} --repair` does these units again"


def describe_lost(lost: Sequence[LostUnit]) -> str:
    """Return which units are lost, and why, for a message."""
    named = ", ".join(f"{unit.marker.unit_id} ({unit.why})" for unit in lost[:_NAMED_UNITS])
    more = f" and {len(lost) - _NAMED_UNITS:,} more" if len(lost) > _NAMED_UNITS else ""
    return f"{len(lost):,} finished {'unit' if len(lost) == 1 else 'units'}: {named}{more}"


def _loss(dataset: Dataset, marker: UnitMarker, sizes: Mapping[str, int], unit: PlannedUnit | None) -> str:
    """Return which files of a unit are lost, empty where none is.

    Args:
        dataset: The dataset.
        marker: Marker of the unit.
        sizes: Sizes of the files that are there.
        unit: Planned unit, where a command may have stopped after it replaced a file and before it replaced the marker;
            a file of another size is then lost unless it is a whole one with records of this unit.

    """
    shards = [dataset.path(name) for name in marker.files]
    for names, expected in ((shards, marker.bytes), (marker.rejected_files, marker.rejected_bytes)):
        for name in names:
            if name not in sizes:
                return f"{name} is missing"
        size = sum(sizes[name] for name in names)
        if names and (size < _LEAST_BYTES or (expected and size != expected)):
            if unit and all(_has_records_of(dataset.storage, name, unit) for name in names):
                continue
            return f"{', '.join(names)} has {size:,} of {expected or _LEAST_BYTES:,} bytes"
    return ""


def _has_records_of(storage: Storage, name: str, unit: PlannedUnit) -> bool:
    try:
        found = storage.read_parquet(name, ["record_id"])["record_id"]
        return bool(is_among(found, read_unit_keys(storage, unit)["record_id"].to_pylist()).all())
    except StorageError as error:
        if error.transient:
            raise
        return False
