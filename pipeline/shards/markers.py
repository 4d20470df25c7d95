"""Markers: which units are finished, and which files each of them wrote."""

from handdata.pipeline.shards.plan import PlannedUnit
from handdata.pipeline.storage import Dataset
from handdata.schemas import UnitMarker


def encode_marker(marker: UnitMarker) -> bytes:
    """Return a marker as the content of its file."""
    return marker.model_dump_json(indent=2).encode()


def files_of(dataset: Dataset, marker: UnitMarker) -> list[str]:
    """Return the files that a marker names, relative to the workspace."""
    return [*(dataset.path(name) for name in marker.files), *marker.rejected_files]


def read_marker(dataset: Dataset, unit: PlannedUnit) -> UnitMarker | None:
    """Return the marker of a unit, None before the unit is finished."""
    name = dataset.marker_file(unit.source, unit.unit_id)
    return UnitMarker.model_validate_json(dataset.storage.read_bytes(name)) if dataset.storage.exists(name) else None


def read_markers(dataset: Dataset) -> list[UnitMarker]:
    """Return the markers of all finished units, sorted by unit."""
    names = dataset.storage.list_files(dataset.markers_folder, ".json")
    return [UnitMarker.model_validate_json(data) for data in dataset.storage.read_many(names)]
