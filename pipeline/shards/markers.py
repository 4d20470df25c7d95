"""Markers: which units are finished, and which files each of them wrote."""

from handdata.pipeline.shards.plan import PlannedUnit
from handdata.pipeline.storage import Dataset
from handdata.pipeline.storage.damage import damaged, parse_document
from handdata.schemas import UnitMarker


def encode_marker(marker: UnitMarker) -> bytes:
    """Return a marker as the content of its file."""
    return marker.model_dump_json(indent=2).encode()


def files_of(dataset: Dataset, marker: UnitMarker) -> list[str]:
    """Return the files that a marker names, relative to the workspace."""
    return [*(dataset.path(name) for name in marker.files), *marker.rejected_files]


def parse_marker(dataset: Dataset, name: str, data: bytes) -> UnitMarker:
    """Return the marker that a file holds.

    Raises:
        StorageError: The file holds something else, or the marker of another unit.

    """
    where = dataset.storage.describe(name)
    marker = parse_document(data, UnitMarker, where, name)
    if dataset.marker_file(marker.source, marker.unit_id) != name:
        raise damaged(where, name, f"it holds the marker of {marker.unit_id}")
    for file in files_of(dataset, marker):  # they may have to be removed
        if ".." in file or not file.rpartition("/")[2].startswith(f"{marker.unit_id}-"):
            raise damaged(where, name, f"it names {file}, which is no file of its unit")
    return marker


def read_marker(dataset: Dataset, unit: PlannedUnit) -> UnitMarker | None:
    """Return the marker of a unit, None before the unit is finished."""
    name = dataset.marker_file(unit.source, unit.unit_id)
    return parse_marker(dataset, name, dataset.storage.read_bytes(name)) if dataset.storage.exists(name) else None


def read_markers(dataset: Dataset) -> list[UnitMarker]:
    """Return the markers of all finished units, sorted by unit.

    Raises:
        StorageError: A marker is damaged.

    """
    names = dataset.storage.list_files(dataset.markers_folder, ".json")
    contents = dataset.storage.read_many(names)
    return [parse_marker(dataset, name, data) for name, data in zip(names, contents, strict=True)]
