"""The manifest of a dataset, summed from its markers."""

import json
from collections.abc import Iterable, Mapping, Sequence

from handdata._version import __version__
from handdata.pipeline.records.stored import require_format
from handdata.pipeline.storage import Dataset
from handdata.pipeline.storage.damage import parse_document
from handdata.pipeline.storage.layout import MANIFEST, list_datasets
from handdata.schemas import FORMAT_VERSION, DatasetManifest, Split, SplitCounts, UnitMarker, UsageError, license_id_of
from handdata.schemas.errors import known_names


def encode_manifest(manifest: DatasetManifest) -> bytes:
    """Return a manifest as the content of its file."""
    return manifest.model_dump_json(indent=2).encode()


def find_manifest(dataset: Dataset) -> DatasetManifest | None:
    """Return a dataset's manifest, None where there is none.

    Raises:
        UsageError: A newer handdata wrote it.
        StorageError: It is damaged.

    """
    name = dataset.manifest_file
    if not dataset.storage.exists(name):
        return None
    data = dataset.storage.read_bytes(name)
    require_format(dataset.describe(), _format_of(data))  # first: what a newer version has written may look damaged
    return parse_document(data, DatasetManifest, dataset.storage.describe(name), name)


def _format_of(manifest: bytes) -> int:
    """Return the format version that a manifest says, 0 where it says none."""
    try:
        version = json.loads(manifest)["format_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return version if isinstance(version, int) else 0


def read_manifest(dataset: Dataset) -> DatasetManifest:
    """Return a dataset's manifest.

    Raises:
        UsageError: The workspace has no such dataset.

    """
    manifest = find_manifest(dataset)
    if manifest is None:
        others = [other.name for other in list_datasets(dataset.storage)]
        if others:
            what = f"{dataset.storage.describe()} has no dataset {dataset.name}"
            raise UsageError(what, known_names(dataset.name, others))
        hint = "run `handdata annotate` first"
        if dataset.storage.exists(MANIFEST):
            hint = "it is the folder of a dataset: the workspace is the folder above it"
        raise UsageError(f"{dataset.storage.describe()} has no annotated dataset", hint)
    return manifest


def license_ids(manifest: DatasetManifest) -> dict[str, str]:
    """Return the ids of the licences of a dataset's sources; manifests of format version 1 have names only."""
    names = manifest.licenses
    return {
        source: manifest.license_ids.get(source) or license_id_of(names.get(source, "")) for source in manifest.sources
    }


def describe_licences(manifest: DatasetManifest) -> str:
    """Return the ids of the licences of a dataset's sources, for messages."""
    return ", ".join(f"{license_id} ({source})" for source, license_id in sorted(license_ids(manifest).items()))


def sum_manifest(
    earlier: DatasetManifest | None,
    markers: Iterable[UnitMarker],
    planned_units: int,
    *,
    image_size: int | None = None,
    annotators: Mapping[str, dict[str, object]] | None = None,
    licenses: Mapping[str, str] | None = None,
    license_ids: Mapping[str, str] | None = None,
    roots: Mapping[str, str] | None = None,
    warnings: Mapping[str, Sequence[str]] | None = None,
    quality: Mapping[str, float] | None = None,
) -> DatasetManifest:
    """Return the manifest of a dataset with these markers.

    Args:
        earlier: Manifest so far; None where there is none.
        markers: Markers of all finished units, in the order of their files.
        planned_units: Number of units planned in the whole dataset.
        image_size: Side of the crops, pixels; None keeps the earlier one.
        annotators: Settings and model hashes of this run by ``annotator_hash``; those of earlier runs are kept.
        licenses: Licences of this run's sources; those of earlier runs are kept.
        license_ids: Ids of these licences.
        roots: Folders of the datasets of this run's sources; those of earlier runs are kept.
        warnings: Warnings of the ingests of this run's sources; those of other sources that have samples are kept.
        quality: Thresholds behind the flags; None keeps the earlier ones.

    """
    sources: dict[str, dict[Split, SplitCounts]] = {}
    finished_units = version = 0
    for marker in markers:
        sources.setdefault(marker.source, {}).setdefault(marker.split, SplitCounts()).add(marker)
        finished_units += 1
        version = max(version, marker.format_version)
    kept = {name: found for name, found in (earlier.warnings if earlier else {}).items() if name in sources}
    warned = kept | {name: tuple(found) for name, found in (warnings or {}).items()}
    return DatasetManifest(
        format_version=version or FORMAT_VERSION,
        handdata_version=__version__,
        image_size=image_size or (earlier.image_size if earlier else 0),
        annotator_hashes=(earlier.annotator_hashes if earlier else {}) | dict(annotators or {}),
        quality=dict(quality) if quality is not None else earlier.quality if earlier else {},
        sources=sources,
        licenses=(earlier.licenses if earlier else {}) | dict(licenses or {}),
        license_ids=(earlier.license_ids if earlier else {}) | dict(license_ids or {}),
        roots=(earlier.roots if earlier else {}) | dict(roots or {}),
        warnings={name: found for name, found in warned.items() if found},
        complete=finished_units == planned_units,
    )
