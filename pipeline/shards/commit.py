"""Committing what a unit made, changing it and taking it back."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa

from handdata.pipeline.records.provenance import with_relative_uris
from handdata.pipeline.shards.lease import Lease
from handdata.pipeline.shards.markers import encode_marker, files_of, parse_marker, read_marker
from handdata.pipeline.shards.plan import PlannedUnit, row_group_sizes
from handdata.pipeline.shards.state import DatasetState
from handdata.pipeline.storage import Dataset, Storage, table_to_parquet
from handdata.pipeline.storage.layout import list_sources
from handdata.schemas import (
    FORMAT_VERSION,
    AnnotatedSample,
    LeaseLostError,
    Rejection,
    RunError,
    UnitMarker,
    rejections_to_table,
    samples_to_table,
)


def write_unit(
    lease: Lease,
    unit: PlannedUnit,
    samples: Sequence[AnnotatedSample],
    rejections: Sequence[Rejection],
    annotator_hash: str,
    *,
    thresholds: Mapping[str, float] | None = None,
    root: str = "",
) -> UnitMarker:
    """Commit what a unit made, and return the marker that counts: an earlier writer's where there is one.

    Args:
        lease: Lease of the run on the dataset.
        unit: Unit of the plan.
        samples: Rows of the unit.
        rejections: Rejected records of the unit.
        annotator_hash: Hash of the settings and model files.
        thresholds: Thresholds behind the flags.
        root: Folder in which the source's dataset lies; stored URIs are relative to it.

    Raises:
        LeaseLostError: Another run has taken the dataset over; nothing was added.
        RunError: Samples and rejections do not add up to the unit's records.
        StorageError: A file cannot be written.

    """
    if len(samples) + len(rejections) != unit.rows:
        raise RunError(
            f"unit {unit.unit_id} has {unit.rows} records, but {len(samples)} samples and {len(rejections)} rejections",
            "this is a bug: please report it",
        )
    dataset, storage = lease.dataset, lease.dataset.storage
    lease.check()
    tables = (samples_to_table(samples), rejections_to_table(rejections))
    made = _write_files(lease, unit, *(with_relative_uris(table, root) for table in tables)).model_copy(
        update={
            "annotator_hash": annotator_hash,
            "thresholds": dict(thresholds or {}),
            "tombstones": unit.tombstones,
        }
    )
    try:
        lease.check()
    except LeaseLostError:
        committed = read_marker(dataset, unit)
        if committed:
            _remove_files(dataset, made, keep=committed)
        raise
    name = dataset.marker_file(made.source, made.unit_id)
    committed = parse_marker(dataset, name, storage.create_bytes(name, encode_marker(made)))
    _remove_files(dataset, made, keep=committed)
    return committed


def rewrite_unit(
    lease: Lease, marker: UnitMarker, samples: pa.Table | None = None, rejections: pa.Table | None = None
) -> UnitMarker:
    """Replace rows of a finished unit, and return its new marker.

    Each file is replaced under its own name, at once; then comes the marker, and a file that has no row left goes last.
    After an interruption the unit is rewritten again: what is in the files decides, not what the marker says of them.

    Args:
        lease: Lease of the run on the dataset.
        marker: New marker of the unit; files and counts of replaced rows are filled in.
        samples: All its samples from now on, of ``SAMPLE_SCHEMA``, in the earlier order; None leaves them as they are.
        rejections: All its rejected records from now on, of ``REJECTION_SCHEMA``; None leaves them as they are.

    Raises:
        LeaseLostError: Another run has taken the dataset over.
        StorageError: A file cannot be written.

    """
    dataset, storage = lease.dataset, lease.dataset.storage
    lease.check()
    changes: dict[str, object] = {}
    emptied: list[str] = []
    if samples is not None:
        names = [dataset.path(name) for name in marker.files]
        written_bytes = _replace_file(storage, names, samples, _sample_groups(samples), emptied)
        changes |= {
            "files": marker.files if len(samples) else (),
            "samples": len(samples),
            "flags": _counts(samples["flags"].combine_chunks().flatten()),
            "bytes": written_bytes,
        }
    if rejections is not None:
        written_bytes = _replace_file(storage, marker.rejected_files, rejections, len(rejections), emptied)
        changes |= {
            "rejected_bytes": written_bytes,
            "rejected_files": marker.rejected_files if len(rejections) else (),
            "rejected": _counts(rejections["reason"]),
        }
    made = marker.model_copy(update=changes)
    made = made.model_copy(update={"records": made.samples + sum(made.rejected.values())})
    lease.check()
    storage.write_bytes(dataset.marker_file(made.source, made.unit_id), encode_marker(made))
    for name in emptied:
        storage.remove(name)
    return made


def _replace_file(
    storage: Storage, names: Sequence[str], rows: pa.Table, row_groups: list[int] | int, emptied: list[str]
) -> int:
    """Replace the one file among ``names``, or note it as emptied, and return its new size."""
    if not len(rows):
        emptied += names
        return 0
    (name,) = names
    data = table_to_parquet(rows, row_groups)
    storage.write_bytes(name, data)
    return len(data)


def remove_derived(lease: Lease, marker: UnitMarker) -> None:
    """Remove what the trainer stored beside a unit's shards: latents show what a shard showed, row by row."""
    for shard in marker.files:
        for name in lease.dataset.derived_files(shard):
            lease.dataset.storage.remove(name)


def remove_unit(lease: Lease, marker: UnitMarker) -> None:
    """Take a finished unit back: first what was derived from it, then its marker, then its files."""
    lease.check()
    remove_derived(lease, marker)
    lease.dataset.storage.remove(lease.dataset.marker_file(marker.source, marker.unit_id))
    for name in files_of(lease.dataset, marker):
        lease.dataset.storage.remove(name)


def remove_orphans(lease: Lease, state: DatasetState) -> int:
    """Remove files that killed or late writers left and that nobody can commit any more; return how many.

    While a file that a marker names is missing, none is removed: it may be there under another name.

    Args:
        lease: Lease of the run on the dataset.
        state: State of the dataset, read under this lease, with the changes that the run has made since. A unit whose
            marker it lacks counts as unfinished, so that its files stay.

    Raises:
        LeaseLostError: Another run has taken the dataset over.
        StorageError: A file cannot be removed.

    """
    dataset, storage = lease.dataset, lease.dataset.storage
    sources = sorted({*list_sources(storage, dataset.markers_folder), *state.units})
    rejected = [dataset.rejected_folder(source) for source in sources]
    folders = [dataset.data_folder, dataset.markers_folder, *rejected]
    files = [name for folder in folders for name in storage.list_files(folder, ".parquet")]
    finished, planned = state.finished, state.planned
    named = {name for marker in state.markers for name in files_of(dataset, marker)}
    if not named.issubset(files):
        return 0
    orphans = [
        name for name in files if name not in named and (unit_of(name) in finished or unit_of(name) not in planned)
    ]
    # Only now: a file that a later holder of the lease wrote cannot be in a list made before it took the lease.
    lease.check()
    for name in orphans:
        storage.remove(name)
    for folder in folders:
        storage.remove_unfinished(folder)
    return len(orphans)


def _write_files(lease: Lease, unit: PlannedUnit, samples: pa.Table, rejections: pa.Table) -> UnitMarker:
    """Write a unit's files, and return a marker that names them."""
    dataset, storage, unit_id = lease.dataset, lease.dataset.storage, unit.unit_id
    files: list[str] = []
    rejected_files: list[str] = []
    written_bytes = rejected_bytes = 0
    if len(samples):
        data = table_to_parquet(samples, _sample_groups(samples))
        files.append(dataset.shard_in_dataset(unit.source, unit.split, _file_name(unit_id, data)))
        storage.write_bytes(dataset.path(files[0]), data)
        written_bytes = len(data)
    if len(rejections):
        data = table_to_parquet(rejections, len(rejections))
        rejected_files.append(f"{dataset.rejected_folder(unit.source)}/{_file_name(unit_id, data)}")
        storage.write_bytes(rejected_files[0], data)
        rejected_bytes = len(data)
    flags = samples["flags"].combine_chunks().flatten() if len(samples) else pa.array([], pa.string())
    return UnitMarker(
        unit_id=unit_id,
        source=unit.source,
        split=unit.split,
        files=tuple(files),
        rejected_files=tuple(rejected_files),
        records=len(samples) + len(rejections),
        samples=len(samples),
        rejected=_counts(rejections["reason"]),
        flags=_counts(flags),
        bytes=written_bytes,
        rejected_bytes=rejected_bytes,
        annotator_hash="",
        format_version=FORMAT_VERSION,
    )


def _sample_groups(samples: pa.Table) -> list[int]:
    frames = zip(samples["sequence_id"].to_pylist(), samples["frame_index"].to_pylist(), strict=True)
    return row_group_sizes(list(frames))


def _counts(values: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(Counter(values.to_pylist()).items()))


def _file_name(unit_id: str, data: bytes) -> str:
    return f"{unit_id}-{hashlib.sha256(data).hexdigest()[:8]}.parquet"


def unit_of(name: str) -> str:
    """Return the unit that wrote a file."""
    return name.rpartition("/")[2].rpartition("-")[0]


def _remove_files(dataset: Dataset, marker: UnitMarker, *, keep: UnitMarker) -> None:
    """Remove the files of one marker that another does not name."""
    for name in set(files_of(dataset, marker)) - set(files_of(dataset, keep)):
        dataset.storage.remove(name)
