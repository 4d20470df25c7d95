"""Markers: which units are finished, and which files each of them wrote."""

from handdata.pipeline.shards.plan import PlannedUnit
from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import DATASET, marker_file, markers_folder
from handdata.schemas import UnitMarker


def encode_marker(marker: UnitMarker) -> bytes:
    """Return a marker as the content of its file."""
    return marker.model_dump_json(indent=2).encode()


def files_of(dataset: str, marker: UnitMarker) -> list[str]:
    """Return the files that a marker names, relative to the workspace."""
    return [*(f"{dataset}/{name}" for name in marker.files), *marker.rejected_files]


def read_marker(storage: Storage, dataset: str, unit: PlannedUnit) -> UnitMarker | None:
    """Return the marker of a unit, None before the unit is finished."""
    name = marker_file(dataset, unit.source, unit.unit_id)
    return UnitMarker.model_validate_json(storage.read_bytes(name)) if storage.exists(name) else None


def read_markers(storage: Storage, dataset: str = DATASET) -> list[UnitMarker]:
    """Return the markers of all finished units, sorted by unit."""
    names = storage.list_files(markers_folder(dataset), ".json")
    return [UnitMarker.model_validate_json(data) for data in storage.read_many(names)]
