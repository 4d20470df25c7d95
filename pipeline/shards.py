"""Annotated shards: writing what a unit made, and reading datasets back.

Imports neither Ray nor MediaPipe: the trainer reads through this module.

A unit writes its sample files, its rejected table and, last, its marker. Readers see only files that a marker names.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from handdata._version import __version__
from handdata.pipeline.plan import PlannedUnit, row_group_sizes
from handdata.pipeline.records import rejected_folder
from handdata.pipeline.storage import Storage, table_to_parquet
from handdata.schemas import (
    FORMAT_VERSION,
    AnnotatedSample,
    DatasetManifest,
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
    storage: Storage,
    dataset: str,
    unit: PlannedUnit,
    samples: Sequence[AnnotatedSample],
    rejections: Sequence[Rejection],
    annotator_hash: str,
) -> UnitMarker:
    """Write what a unit made and, last, its marker. Writing a unit again replaces its files by equal ones.

    Raises:
        RunError: samples and rejections do not add up to the unit's records.
        StorageError: a file cannot be written.

    """
    if len(samples) + len(rejections) != unit.rows:
        raise RunError(
            f"unit {unit.unit_id} has {unit.rows} records, but {len(samples)} samples and {len(rejections)} rejections",
            "this is a bug: please report it",
        )
    files: list[str] = []
    written_bytes = 0
    if samples:
        sizes = row_group_sizes([(sample.sequence_id, sample.frame_index) for sample in samples])
        data = table_to_parquet(samples_to_table(samples), sizes)
        name = f"data/source={unit.source}/split={unit.split}/{unit.unit_id}.parquet"
        storage.write_bytes(f"{dataset}/{name}", data)
        files.append(name)
        written_bytes = len(data)
    rejected_files: list[str] = []
    if rejections:
        rejected_name = f"{rejected_folder('annotate', unit.source)}/{unit.unit_id}.parquet"
        storage.write_bytes(rejected_name, table_to_parquet(rejections_to_table(rejections), unit.rows))
        rejected_files.append(rejected_name)
    marker = UnitMarker(
        unit_id=unit.unit_id,
        source=unit.source,
        split=unit.split,
        files=tuple(files),
        rejected_files=tuple(rejected_files),
        records=unit.rows,
        samples=len(samples),
        rejected=dict(sorted(Counter(rejection.reason.value for rejection in rejections).items())),
        flags=dict(sorted(Counter(flag for sample in samples for flag in sample.flags).items())),
        bytes=written_bytes,
        annotator_hash=annotator_hash,
    )
    storage.write_bytes(
        f"{markers_folder(dataset, unit.source)}/{unit.unit_id}.json", marker.model_dump_json(indent=2).encode()
    )
    return marker


def read_markers(storage: Storage, dataset: str = DATASET) -> list[UnitMarker]:
    """Return the markers of all finished units, sorted by unit."""
    names = storage.list_files(markers_folder(dataset), ".json")
    return [UnitMarker.model_validate_json(data) for data in storage.read_many(names)]


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
    frames = []
    for position, shard in enumerate(shards):
        with storage.open_parquet(shard.name) as file:
            for group in range(file.num_row_groups):
                table = pl.DataFrame(file.read_row_group(group, list(columns)))
                table = table.with_row_index("row").with_columns(
                    shard=pl.lit(position, pl.Int32), row_group=pl.lit(group, pl.Int32)
                )
                frames.append(table.with_columns(pl.col(pl.Categorical).cast(pl.String)))
    if not frames:
        raise UsageError("the dataset has no samples for this choice of sources and splits", "run `handdata annotate`")
    return pl.concat(frames)


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


def write_manifest(
    storage: Storage,
    dataset: str,
    *,
    image_size: int,
    annotators: dict[str, dict[str, object]],
    licenses: dict[str, str],
    planned_units: int,
) -> DatasetManifest:
    """Sum the manifest from the markers and write it.

    Args:
        storage: the workspace.
        dataset: folder of the dataset.
        image_size: side of the crops, pixels.
        annotators: settings and model hashes of this run, by ``annotator_hash``; those of earlier runs are kept.
        licenses: of this run's sources; those of earlier runs are kept.
        planned_units: units planned in the whole dataset.

    """
    markers = read_markers(storage, dataset)
    sources: dict[str, dict[Split, SplitCounts]] = {}
    for marker in markers:
        sources.setdefault(marker.source, {}).setdefault(marker.split, SplitCounts()).add(marker)
    if storage.exists(f"{dataset}/{MANIFEST}"):
        earlier = read_manifest(storage, dataset)
        annotators = earlier.annotator_hashes | annotators
        licenses = earlier.licenses | licenses
    manifest = DatasetManifest(
        handdata_version=__version__,
        image_size=image_size,
        annotator_hashes=annotators,
        sources=sources,
        licenses=licenses,
        complete=len(markers) == planned_units,
    )
    storage.write_bytes(f"{dataset}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
    return manifest
