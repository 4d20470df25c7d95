"""Annotated shards: writing what a unit made, and reading datasets back.

Imports neither Ray nor MediaPipe: the trainer reads through this module.

A unit writes its sample files, its rejected table and, last, its marker. Readers see only files that a marker names.

What makes a commit exactly-once, however many writers a unit has had:

- A file's name ends in a token of the content that its unit first had. Only ``rewrite_unit`` ever writes other bytes
  under a name that a marker names: in one step, so that who reads the folder never sees a row twice.
- A marker is created, never overwritten: the first complete writer wins, and the others count what that one wrote.
- Whoever is about to commit holds the dataset's lease.
- A file is an orphan, and may go, once its unit has a marker that names another, or is not planned any more. Before
  that, a writer may be about to commit it.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from handdata._version import __version__
from handdata.pipeline.lease import Lease
from handdata.pipeline.plan import PlannedUnit, planned_sources, row_group_sizes, stored_units
from handdata.pipeline.records import rejected_folder
from handdata.pipeline.storage import Storage, blob_places, table_to_parquet
from handdata.schemas import (
    FORMAT_VERSION,
    AnnotatedSample,
    DatasetManifest,
    LeaseLostError,
    Rejection,
    RunError,
    Split,
    SplitCounts,
    UnitMarker,
    UsageError,
    rejections_to_table,
    samples_to_table,
)

DATASET = "dataset"
"""Name of a workspace's dataset folder."""

MANIFEST = "dataset.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file of annotated samples.

    Args:
        name: relative to the workspace.
        source: of all its rows.
        split: of all its rows.
        unit_id: the unit that wrote it.

    """

    name: str
    source: str
    split: Split
    unit_id: str


def markers_folder(dataset: str, source: str = "") -> str:
    """Return the folder of the markers of finished units, of one source or of all."""
    return f"{dataset}/units/source={source}" if source else f"{dataset}/units"


def write_unit(
    lease: Lease,
    unit: PlannedUnit,
    samples: Sequence[AnnotatedSample],
    rejections: Sequence[Rejection],
    annotator_hash: str,
    *,
    thresholds: Mapping[str, float] | None = None,
) -> UnitMarker:
    """Commit what a unit made, and return the marker that counts: an earlier writer's where there is one.

    Args:
        lease: of the run.
        unit: as planned.
        samples: its rows.
        rejections: its refused records.
        annotator_hash: of the settings and model files.
        thresholds: behind the flags.

    Raises:
        LeaseLostError: another run has taken the dataset over; nothing was added.
        RunError: samples and rejections do not add up to the unit's records.
        StorageError: a file cannot be written.

    """
    if len(samples) + len(rejections) != unit.rows:
        raise RunError(
            f"unit {unit.unit_id} has {unit.rows} records, but {len(samples)} samples and {len(rejections)} rejections",
            "this is a bug: please report it",
        )
    storage, dataset = lease.storage, lease.dataset
    lease.check()
    rows = samples_to_table(samples), rejections_to_table(rejections)
    made = _write_files(lease, unit, *rows).model_copy(
        update={
            "annotator_hash": annotator_hash,
            "thresholds": dict(thresholds or {}),
            "tombstones": unit.tombstones,
        }
    )
    try:
        lease.check()
    except LeaseLostError:
        committed = read_marker(storage, dataset, unit)
        if committed:
            _remove_files(storage, dataset, made, keep=committed)
        raise
    committed = UnitMarker.model_validate_json(storage.create_bytes(_marker_file(dataset, made), _encoded(made)))
    _remove_files(storage, dataset, made, keep=committed)
    return committed


def rewrite_unit(
    lease: Lease, marker: UnitMarker, samples: pa.Table | None = None, rejections: pa.Table | None = None
) -> UnitMarker:
    """Replace rows of a finished unit, and return its new marker.

    Each file is replaced under its own name, at once; then comes the marker, and a file that has no row left goes last.
    Whoever is interrupted rewrites the unit again: what is in the files decides, not what the marker says of them.

    Args:
        lease: on the dataset.
        marker: the unit's new marker; files and counts of replaced rows are filled in.
        samples: all its samples now, of ``SAMPLE_SCHEMA``, in the order of before; None leaves them as they are.
        rejections: all its refused records now, of ``REJECTION_SCHEMA``; None leaves them as they are.

    Raises:
        LeaseLostError: another run has taken the dataset over.
        StorageError: a file cannot be written.

    """
    storage, dataset = lease.storage, lease.dataset
    lease.check()
    changes: dict[str, object] = {}
    emptied: list[str] = []
    if samples is not None:
        names = [f"{dataset}/{name}" for name in marker.files]
        written_bytes = _replace_file(storage, names, samples, _sample_groups(samples), emptied)
        changes |= {
            "files": marker.files if len(samples) else (),
            "samples": len(samples),
            "flags": _counts(samples["flags"].combine_chunks().flatten()),
            "bytes": written_bytes,
        }
    if rejections is not None:
        _replace_file(storage, marker.rejected_files, rejections, len(rejections), emptied)
        changes |= {
            "rejected_files": marker.rejected_files if len(rejections) else (),
            "rejected": _counts(rejections["reason"]),
        }
    made = marker.model_copy(update=changes)
    made = made.model_copy(update={"records": made.samples + sum(made.rejected.values())})
    lease.check()
    storage.write_bytes(_marker_file(dataset, made), _encoded(made))
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
    storage, latents = lease.storage, f"{lease.dataset}/latents"
    for folder in storage.list_folders(latents):
        for name in marker.files:
            storage.remove(f"{latents}/{folder}/{name.removeprefix('data/')}")


def remove_unit(lease: Lease, marker: UnitMarker) -> None:
    """Take a finished unit back: first what was derived from it, then its marker, then its files."""
    lease.check()
    remove_derived(lease, marker)
    lease.storage.remove(_marker_file(lease.dataset, marker))
    for name in files_of(lease.dataset, marker):
        lease.storage.remove(name)


def remove_orphans(lease: Lease) -> int:
    """Remove files that killed or late writers left and that nobody can commit any more; return how many.

    Raises:
        LeaseLostError: another run has taken the dataset over.
        StorageError: a file cannot be removed.

    """
    storage, dataset = lease.storage, lease.dataset
    committed = [name.removeprefix("source=") for name in storage.list_folders(f"{dataset}/units")]
    sources = sorted({*committed, *planned_sources(storage, dataset)})
    rejected = [annotate_rejected_folder(dataset, source) for source in sources]
    folders = [f"{dataset}/data", f"{dataset}/units", *rejected]
    files = [name for folder in folders for name in storage.list_files(folder, ".parquet")]
    markers = read_markers(storage, dataset)
    finished = {marker.unit_id for marker in markers}
    planned = {unit.unit_id for source in sources for unit in stored_units(storage, dataset, source)}
    named = {name for marker in markers for name in files_of(dataset, marker)}
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
    storage, dataset, unit_id = lease.storage, lease.dataset, unit.unit_id
    files: list[str] = []
    rejected_files: list[str] = []
    written_bytes = 0
    if len(samples):
        data = table_to_parquet(samples, _sample_groups(samples))
        files.append(f"data/source={unit.source}/split={unit.split}/{_file_name(unit_id, data)}")
        storage.write_bytes(f"{dataset}/{files[0]}", data)
        written_bytes = len(data)
    if len(rejections):
        data = table_to_parquet(rejections, len(rejections))
        rejected_files.append(f"{annotate_rejected_folder(dataset, unit.source)}/{_file_name(unit_id, data)}")
        storage.write_bytes(rejected_files[0], data)
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
        annotator_hash="",
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


def annotate_rejected_folder(dataset: str, source: str) -> str:
    """Return the folder of a dataset's refused records; further datasets of a workspace have one each."""
    return rejected_folder("annotate" if dataset == DATASET else f"annotate-{dataset}", source)


def _marker_file(dataset: str, unit: UnitMarker | PlannedUnit) -> str:
    return f"{markers_folder(dataset, unit.source)}/{unit.unit_id}.json"


def _encoded(marker: UnitMarker) -> bytes:
    return marker.model_dump_json(indent=2).encode()


def files_of(dataset: str, marker: UnitMarker) -> list[str]:
    """Return the files that a marker names, relative to the workspace."""
    return [*(f"{dataset}/{name}" for name in marker.files), *marker.rejected_files]


def _remove_files(storage: Storage, dataset: str, marker: UnitMarker, *, keep: UnitMarker) -> None:
    """Remove the files of one marker that another does not name."""
    for name in set(files_of(dataset, marker)) - set(files_of(dataset, keep)):
        storage.remove(name)


def read_marker(storage: Storage, dataset: str, unit: PlannedUnit) -> UnitMarker | None:
    """Return the marker of a unit, None before the unit is finished."""
    name = _marker_file(dataset, unit)
    return UnitMarker.model_validate_json(storage.read_bytes(name)) if storage.exists(name) else None


def read_markers(storage: Storage, dataset: str = DATASET) -> list[UnitMarker]:
    """Return the markers of all finished units, sorted by unit."""
    names = storage.list_files(markers_folder(dataset), ".json")
    return [UnitMarker.model_validate_json(data) for data in storage.read_many(names)]


def list_datasets(storage: Storage) -> list[str]:
    """Return the names of all datasets of a workspace, sorted."""
    return [name for name in storage.list_folders("") if storage.exists(f"{name}/plan")]


def list_shards(
    storage: Storage,
    dataset: str = DATASET,
    *,
    sources: Collection[str] | None = None,
    splits: Collection[Split] | None = None,
) -> list[Shard]:
    """Return the committed shards of a dataset, sorted; of these sources and splits where given.

    Raises:
        UsageError: there is no dataset, or a newer handdata wrote it.

    """
    manifest = read_manifest(storage, dataset)
    if manifest.format_version > FORMAT_VERSION:
        raise UsageError(
            f"{storage.describe(dataset)} has format {manifest.format_version}, this handdata reads {FORMAT_VERSION}",
            "upgrade handdata",
        )
    return [
        Shard(f"{dataset}/{file}", marker.source, marker.split, marker.unit_id)
        for marker in read_markers(storage, dataset)
        if (sources is None or marker.source in sources) and (splits is None or marker.split in splits)
        for file in marker.files
    ]


def read_index(storage: Storage, shards: Sequence[Shard], columns: Sequence[str]) -> pl.DataFrame:
    """Return small columns of all rows of some shards, with where each row lies.

    Besides ``columns`` the result has ``shard`` (position in ``shards``), ``row_group`` and ``row`` (in the row group).
    Pictures are not read.
    """
    frames = [
        read_shard_index(storage, shard, columns).with_columns(shard=pl.lit(position, pl.Int32))
        for position, shard in enumerate(shards)
    ]
    if not frames:
        raise UsageError("the dataset has no samples for this choice of sources and splits", "run `handdata annotate`")
    return pl.concat(frames)


def read_shard_index(storage: Storage, shard: Shard, columns: Sequence[str], blobs: Sequence[str] = ()) -> pl.DataFrame:
    """Return small columns of all rows of a shard, with ``row_group`` and ``row`` (in the row group).

    For each of the binary columns ``blobs``, ``<name>_start`` and ``<name>_bytes`` say at which bytes of the file the
    value lies; null in a file that does not say.
    """
    with storage.open_parquet(shard.name) as file:
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        table = pl.DataFrame(file.read(list(columns))).with_columns(
            pl.col(pl.Categorical).cast(pl.String),
            row=pl.Series(np.concatenate([np.arange(rows) for rows in groups]), dtype=pl.Int32),
            row_group=pl.Series(np.repeat(np.arange(len(groups)), groups), dtype=pl.Int32),
        )
        for name in blobs:
            places = blob_places(file, name)
            table = table.with_columns(
                pl.lit(None, pl.UInt32).alias(f"{name}_{part}")
                if places is None
                else pl.Series(f"{name}_{part}", values)
                for part, values in zip(("start", "bytes"), (None, None) if places is None else places.T, strict=True)
            )
    return table


def read_row_group(storage: Storage, shard: Shard, row_group: int, columns: Sequence[str]) -> pa.Table:
    """Return columns of one row group of a shard."""
    with storage.open_parquet(shard.name) as file:
        return file.read_row_group(row_group, list(columns))


def read_manifest(storage: Storage, dataset: str = DATASET) -> DatasetManifest:
    """Return a dataset's manifest.

    Raises:
        UsageError: the workspace has no such dataset.

    """
    name = f"{dataset}/{MANIFEST}"
    if not storage.exists(name):
        raise UsageError(f"{storage.describe()} has no annotated dataset", "run `handdata annotate` first")
    return DatasetManifest.model_validate_json(storage.read_bytes(name))


def is_summed_up(storage: Storage, dataset: str, markers: Sequence[UnitMarker]) -> bool:
    """Return whether the manifest counts as many units as there are markers: the last run came to its end."""
    if not storage.exists(f"{dataset}/{MANIFEST}"):
        return False
    sources = read_manifest(storage, dataset).sources
    return sum(counts.units for splits in sources.values() for counts in splits.values()) == len(markers)


def write_manifest(
    storage: Storage,
    dataset: str,
    *,
    image_size: int | None = None,
    annotators: Mapping[str, dict[str, object]] | None = None,
    licenses: Mapping[str, str] | None = None,
    quality: Mapping[str, float] | None = None,
    planned_units: int | None = None,
) -> DatasetManifest:
    """Sum the manifest from the markers and write it.

    Args:
        storage: the workspace.
        dataset: folder of the dataset.
        image_size: side of the crops, pixels; None keeps the earlier one.
        annotators: settings and model hashes of this run, by ``annotator_hash``; those of earlier runs are kept.
        licenses: of this run's sources; those of earlier runs are kept.
        quality: thresholds behind the flags; None keeps the earlier ones.
        planned_units: units planned in the whole dataset; None counts the plan's.

    """
    name = f"{dataset}/{MANIFEST}"
    earlier = read_manifest(storage, dataset) if image_size is None or storage.exists(name) else None
    markers = read_markers(storage, dataset)
    sources: dict[str, dict[Split, SplitCounts]] = {}
    for marker in markers:
        sources.setdefault(marker.source, {}).setdefault(marker.split, SplitCounts()).add(marker)
    if planned_units is None:
        planned_units = sum(len(stored_units(storage, dataset, name)) for name in planned_sources(storage, dataset))
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
    if not storage.exists(name) or storage.read_bytes(name) != data:
        storage.write_bytes(name, data)
    return manifest
