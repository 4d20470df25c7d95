"""Committed shards, and small columns of all their rows."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from handdata.pipeline.shards.manifest import read_manifest
from handdata.pipeline.shards.markers import read_markers
from handdata.pipeline.storage import Dataset, Storage, blob_checksums, blob_ranges
from handdata.pipeline.storage.damage import damaged
from handdata.schemas import SAMPLE_SCHEMA, Split, UsageError


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file of annotated samples.

    Args:
        name: Name of the file, relative to the workspace.
        source: Source of all its rows.
        split: Split of all its rows.
        unit_id: Unit that wrote it.

    """

    name: str
    source: str
    split: Split
    unit_id: str

    @property
    def stem(self) -> str:
        """Name of the file without its folders and suffix: unit and token."""
        return PurePosixPath(self.name).stem


def list_shards(
    dataset: Dataset,
    *,
    sources: Collection[str] | None = None,
    splits: Collection[Split] | None = None,
) -> list[Shard]:
    """Return the committed shards of a dataset, sorted; of these sources and splits where given.

    Raises:
        UsageError: There is no dataset, or a newer handdata wrote it.

    """
    read_manifest(dataset)
    return [
        Shard(dataset.path(file), marker.source, marker.split, marker.unit_id)
        for marker in read_markers(dataset)
        if (sources is None or marker.source in sources) and (splits is None or marker.split in splits)
        for file in marker.files
    ]


def read_index(storage: Storage, shards: Sequence[Shard], columns: Sequence[str]) -> pl.DataFrame:
    """Return small columns of all rows of some shards, with where each row lies.

    Besides ``columns`` the result has ``shard`` (position in ``shards``), ``row_group`` and ``row`` (in the row group).
    Images are not read.

    Raises:
        UsageError: There are no shards.

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
    value lies, and ``<name>_crc32`` which CRC-32 it has; null in a file that does not say. Columns that a shard of an
    older version lacks are null, too.

    Raises:
        StorageError: The shard is missing or damaged.

    """
    with storage.open_parquet(shard.name) as file:
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        table = pl.DataFrame(_columns_of(file, columns, storage.describe(shard.name), shard.name)).with_columns(
            pl.col(pl.Categorical).cast(pl.String),
            row=pl.Series(np.concatenate([np.arange(rows) for rows in groups]), dtype=pl.Int32),
            row_group=pl.Series(np.repeat(np.arange(len(groups)), groups), dtype=pl.Int32),
        )
        for name in blobs:
            ranges = blob_ranges(file, name)
            start, length = (None, None) if ranges is None else ranges.T
            checksum = None if ranges is None else blob_checksums(file, name)
            table = table.with_columns(
                pl.lit(None, pl.UInt32).alias(f"{name}_{part}")
                if values is None
                else pl.Series(f"{name}_{part}", values)
                for part, values in (("start", start), ("bytes", length), ("crc32", checksum))
            )
    return table


def read_samples(storage: Storage, shard: Shard, columns: Sequence[str]) -> pa.Table:
    """Return columns of all rows of a shard, as ``SAMPLE_SCHEMA`` has them; null where an older version lacks one.

    Raises:
        StorageError: The shard is missing or damaged.

    """
    with storage.open_parquet(shard.name) as file:
        return _columns_of(file, columns, storage.describe(shard.name), shard.name)


def read_row_groups(storage: Storage, shard: Shard, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns of the row groups of a shard in turn, as ``read_samples`` returns those of all rows.

    Raises:
        StorageError: The shard is missing or damaged.

    """
    with storage.open_parquet(shard.name) as file:
        for group in range(file.num_row_groups):
            stored = file.read_row_group(group, list(columns))
            yield _with_all_columns(stored, columns, storage.describe(shard.name), shard.name)


def _columns_of(file: pq.ParquetFile, columns: Sequence[str], place: str, name: str) -> pa.Table:
    return _with_all_columns(file.read(list(columns)), columns, place, name)


def _with_all_columns(stored: pa.Table, columns: Sequence[str], place: str, name: str) -> pa.Table:
    stored.validate(full=True)
    for field in (SAMPLE_SCHEMA.field(column) for column in columns if column not in stored.column_names):
        if not field.nullable:
            raise damaged(place, name, f"it has no column {field.name}")
        stored = stored.append_column(field, pa.nulls(len(stored), field.type))
    return stored


def read_row_group(storage: Storage, shard: Shard, row_group: int, columns: Sequence[str]) -> pa.Table:
    """Return columns of one row group of a shard.

    Raises:
        StorageError: The shard is missing or damaged.

    """
    return storage.read_parquet(shard.name, columns, row_group)
