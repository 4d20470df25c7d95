"""The manifest of a dataset, summed from its markers."""

from collections.abc import Mapping, Sequence

from handdata._version import __version__
from handdata.pipeline.shards.markers import read_markers
from handdata.pipeline.shards.plan import planned_sources, stored_units
from handdata.pipeline.storage import Dataset
from handdata.schemas import DatasetManifest, Split, SplitCounts, UnitMarker, UsageError


def read_manifest(dataset: Dataset) -> DatasetManifest:
    """Return a dataset's manifest.

    Raises:
        UsageError: the workspace has no such dataset.

    """
    name = dataset.manifest_file
    if not dataset.storage.exists(name):
        raise UsageError(f"{dataset.storage.describe()} has no annotated dataset", "run `handdata annotate` first")
    return DatasetManifest.model_validate_json(dataset.storage.read_bytes(name))


def is_summed_up(dataset: Dataset, markers: Sequence[UnitMarker]) -> bool:
    """Return whether the manifest counts as many units as there are markers: the last run came to its end."""
    if not dataset.storage.exists(dataset.manifest_file):
        return False
    sources = read_manifest(dataset).sources
    return sum(counts.units for splits in sources.values() for counts in splits.values()) == len(markers)


def write_manifest(
    dataset: Dataset,
    *,
    image_size: int | None = None,
    annotators: Mapping[str, dict[str, object]] | None = None,
    licenses: Mapping[str, str] | None = None,
    quality: Mapping[str, float] | None = None,
    planned_units: int | None = None,
) -> DatasetManifest:
    """Sum the manifest from the markers and write it.

    Args:
        dataset: The dataset.
        image_size: side of the crops, pixels; None keeps the earlier one.
        annotators: settings and model hashes of this run, by ``annotator_hash``; those of earlier runs are kept.
        licenses: of this run's sources; those of earlier runs are kept.
        quality: thresholds behind the flags; None keeps the earlier ones.
        planned_units: units planned in the whole dataset; None counts the plan's.

    """
    name = dataset.manifest_file
    earlier = read_manifest(dataset) if image_size is None or dataset.storage.exists(name) else None
    markers = read_markers(dataset)
    sources: dict[str, dict[Split, SplitCounts]] = {}
    for marker in markers:
        sources.setdefault(marker.source, {}).setdefault(marker.split, SplitCounts()).add(marker)
    if planned_units is None:
        planned_units = sum(len(stored_units(dataset, name)) for name in planned_sources(dataset))
    manifest = DatasetManifest(
        handdata_version=__version__,
        image_size=image_size or (earlier.image_size if earlier else 0),
        annotator_hashes=(earlier.annotator_hashes if earlier else {}) | dict(annotators or {}),
        quality=dict(quality) if quality is not None else earlier.quality if earlier else {},
        sources=sources,
        licenses=(earlier.licenses if earlier else {}) | dict(licenses or {}),
        complete=len(markers) == planned_units,
    )
    data = manifest.model_dump_json(indent=2).encode()
    if not dataset.storage.exists(name) or dataset.storage.read_bytes(name) != data:
        dataset.storage.write_bytes(name, data)
    return manifest
