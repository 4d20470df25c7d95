"""Reading normalized records and rejected rows back; ``storage.layout`` says where they are."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from handdata.pipeline.records.tombstones import KEY_COLUMNS, Tombstones
from handdata.pipeline.storage import Storage, table_to_parquet
from handdata.pipeline.storage.damage import damaged
from handdata.pipeline.storage.layout import (
    RECORDS,
    ingest_summary_file,
    list_sources,
    records_folder,
    rejected_folder,
)
from handdata.schemas import FORMAT_VERSION, RunError, Split, StorageError, UsageError
from handdata.schemas.arrays import BoolArray

RECORD_FILE_ROWS = 65_536
"""Most rows of one records file: about 60 MB in memory."""

RECORD_ROW_GROUP_ROWS = 4096
"""Rows of a row group of a records file: what planning holds in memory at a time."""


_CHOOSING_OPTIONS: Final = ("fps", "frames_as_video", "val_share")
"""Options of a source that decide which records it gives."""


@dataclass(frozen=True, slots=True)
class IngestCounts:
    """What the last ingest of a selection gave, after its records were replaced by those of another selection.

    Args:
        split: The only split that was asked for; None for all.
        limit: Number of records after which the ingest stopped; None for all.
        stride: Number by which the numbers of kept frames are divisible.
        records: Number of usable records.
        splits: Records per split.
        rejected: Rejected records per reason.
        dropped: Number of records that were skipped because a tombstone names them.
        options: The source's own options that were given.
        labels: What the records have (``label_counts``); those of earlier versions say nothing.

    """

    split: Split | None
    limit: int | None
    stride: int
    records: int
    splits: dict[str, int]
    rejected: dict[str, int]
    dropped: int
    options: dict[str, str | float | bool] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def selection(self) -> tuple[object, ...]:
        """Which records of the dataset were asked for."""
        return self.split, self.limit, self.stride, *(self.options.get(name) for name in _CHOOSING_OPTIONS)


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What an ingest did, as stored beside the records.

    Args:
        source: Name of the source.
        root: Folder that was read; the URIs of files below it are relative to it.
        partitions: Number of shares in which it was read.
        records: Number of usable records.
        splits: Records per split.
        rejected: Rejected records per reason.
        license: Licence of the data.
        files: Files of the records, in the order of the ingest, relative to the workspace.
        rejected_files: Files of the rejected records, relative to the workspace.
        dropped: Number of records that were skipped because a tombstone names them.
        tombstones: Digest of the tombstones that were honoured.
        warnings: What the user may not expect about how the dataset was read; ingests of earlier versions have none.
        split: The only split that was asked for; None for all.
        limit: Number of records after which the ingest stopped; None for all.
        stride: Number by which the numbers of kept frames are divisible.
        options: The source's own options that were given (``AdapterOptions.own``).
        earlier: What the last ingest of each other selection gave; ingests of earlier versions have none.
        license_id: SPDX id of the licence, or a ``LicenseRef-``; empty in those of earlier versions.
        release: Release of the dataset, where its files tell.
        format_version: Version of the columns of the records; those of version 1 have absolute URIs and no attributes.
        labels: What the records have (``label_counts``); summaries of earlier versions say nothing.

    """

    source: str
    root: str
    partitions: int
    records: int
    splits: dict[str, int]
    rejected: dict[str, int]
    license: str
    files: tuple[str, ...]
    rejected_files: tuple[str, ...]
    dropped: int = 0
    tombstones: str = ""
    warnings: tuple[str, ...] = ()
    split: Split | None = None
    limit: int | None = None
    stride: int = 1
    options: dict[str, str | float | bool] = field(default_factory=dict)
    earlier: tuple[IngestCounts, ...] = ()
    license_id: str = ""
    release: str | None = None
    format_version: int = 1
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def selection(self) -> tuple[object, ...]:
        """Which records of the dataset were asked for. Summaries of earlier versions say nothing: all, it seems."""
        return self.split, self.limit, self.stride, *(self.options.get(name) for name in _CHOOSING_OPTIONS)

    def counts(self) -> tuple[IngestCounts, ...]:
        """Return what the last ingest of each selection gave, this one's last."""
        own = IngestCounts(
            self.split,
            self.limit,
            self.stride,
            self.records,
            self.splits,
            self.rejected,
            self.dropped,
            self.options,
            self.labels,
        )
        return (*(counts for counts in self.earlier if counts.selection != self.selection), own)


def require_format(place: str, version: int) -> None:
    """Check that a file is of a format that this handdata reads.

    Raises:
        UsageError: A newer handdata wrote it.

    """
    if version > FORMAT_VERSION:
        raise UsageError(f"{place} has format {version}, this handdata reads {FORMAT_VERSION}", "upgrade handdata")


def ingested_sources(storage: Storage) -> list[str]:
    """Return the sources that have complete records in the workspace, sorted."""
    return [source for source in list_sources(storage, RECORDS) if storage.exists(ingest_summary_file(source))]


def read_ingest_summary(storage: Storage, source: str) -> IngestSummary:
    """Return what the ingest of a source did.

    Raises:
        UsageError: The source was not ingested into this workspace, or a newer handdata did it.
        StorageError: The summary is damaged.

    """
    name = ingest_summary_file(source)
    if not storage.exists(name):
        raise UsageError(
            f"{storage.describe()} has no records of source {source}", f"run `handdata ingest --source {source}` first"
        )
    summary = storage.read_document(name, IngestSummary)
    if summary.source != source:
        raise damaged(storage.describe(name), name, f"it is of source {summary.source}")
    require_format(storage.describe(name), summary.format_version)
    return summary


def find_ingest_summary(storage: Storage, source: str) -> IngestSummary | None:
    """Return what the ingest in force did; None where there is none, which a damaged summary means as well."""
    if not storage.exists(ingest_summary_file(source)):
        return None
    try:
        return read_ingest_summary(storage, source)
    except StorageError as error:
        if error.transient:
            raise
        return None


def struck_rows(
    storage: Storage, files: Sequence[str], rejected_files: Sequence[str], tombstones: Tombstones
) -> tuple[dict[str, BoolArray], dict[str, BoolArray]]:
    """Return, by file, which rows of records and of rejected records tombstones name."""
    keys = {name: storage.read_parquet(name, [*KEY_COLUMNS, "split"]) for name in files}
    struck = {name: tombstones.strike(table) for name, table in keys.items()}
    gone = [keys[name].filter(pa.array(rows)) for name, rows in struck.items() if rows.any()]
    none = pa.schema([(column, pa.string()) for column in (*KEY_COLUMNS, "split")]).empty_table()
    dropped = pa.concat_tables(gone) if gone else none
    rejected = {name: storage.read_parquet(name, ["record_id"])["record_id"] for name in rejected_files}
    return struck, {name: tombstones.strike_rejected(ids, dropped) for name, ids in rejected.items()}


def strike_records(
    storage: Storage, files: Sequence[str], rejected_files: Sequence[str], tombstones: Tombstones
) -> None:
    """Take dropped rows out of files of records and of rejected records; each file is replaced at once.

    Rejected records go first: which of them belong to a dropped subject is known only while its records are there.
    """
    struck, struck_rejected = struck_rows(storage, files, rejected_files, tombstones)
    for name, rows in (*struck_rejected.items(), *struck.items()):
        if rows.any():
            left = storage.read_parquet(name).filter(pa.array(~rows))
            storage.write_bytes(name, table_to_parquet(left, RECORD_ROW_GROUP_ROWS))


def recounted(storage: Storage, summary: IngestSummary, tombstones: Tombstones) -> IngestSummary:
    """Return a summary with the rows that its files hold after ``strike_records``."""
    splits: Counter[str] = Counter()
    for name in summary.files:
        splits.update(storage.read_parquet(name, ["split"])["split"].to_pylist())
    rejected: Counter[str] = Counter()
    for name in summary.rejected_files:
        rejected.update(storage.read_parquet(name, ["reason"])["reason"].to_pylist())
    return replace(
        summary,
        records=splits.total(),
        splits=dict(sorted(splits.items())),
        rejected=dict(sorted(rejected.items())),
        dropped=summary.dropped + summary.records - splits.total(),
        tombstones=tombstones.digest,
        labels=label_counts(storage, summary.files),
    )


def label_counts(storage: Storage, files: Sequence[str]) -> dict[str, int]:
    """Return how many labelled hands, masks and cameras files of records hold."""
    found: Counter[str] = Counter({"labelled hands": 0, "masks": 0, "cameras": 0})
    for name in files:
        table = storage.read_parquet(name, ["hand_state", "has_mask", "camera_k"])
        found["labelled hands"] += pc.sum(pc.equal(pc.list_flatten(table["hand_state"]), "labelled")).as_py() or 0
        found["masks"] += pc.sum(table["has_mask"]).as_py() or 0
        found["cameras"] += len(table) - table["camera_k"].null_count
    return dict(found)


def drop_records(storage: Storage, tombstones: Tombstones) -> tuple[int, int]:
    """Take what the tombstones of a source name out of its ingested records, for good.

    Returns:
        How many records and how many rejected records were removed.

    """
    source = tombstones.source
    if source not in ingested_sources(storage):
        return 0, 0
    before = after = read_ingest_summary(storage, source)
    if tombstones.of_source():
        storage.remove(ingest_summary_file(source))
        storage.remove(records_folder(source))
        storage.remove(rejected_folder("ingest", source))
        return before.records, sum(before.rejected.values())
    if before.tombstones != tombstones.digest:
        strike_records(storage, before.files, before.rejected_files, tombstones)
        after = recounted(storage, before, tombstones)
        write_ingest_summary(storage, after)
    return before.records - after.records, sum(before.rejected.values()) - sum(after.rejected.values())


def write_ingest_summary(storage: Storage, summary: IngestSummary) -> None:
    """Store what an ingest did; with it the files that it names take the place of earlier ones."""
    document = json.dumps(asdict(summary), indent=2).encode()
    storage.write_bytes(ingest_summary_file(summary.source), document)


def read_record_keys(storage: Storage, source: str, columns: list[str]) -> pa.Table:
    """Return some columns of all of a source's records, with ``file`` (position in the summary) and ``row`` of each.

    Raises:
        RunError: The folder holds no record file although its ingest is complete.
        StorageError: A file of records is missing, damaged, or has a row without id.

    """
    tables = []
    for position, name in enumerate(read_ingest_summary(storage, source).files):
        table = storage.read_parquet(name, columns)
        if "record_id" in columns and table["record_id"].null_count:
            raise damaged(storage.describe(name), name, "it has a row without record_id")
        table = table.append_column("file", pa.array([position] * len(table), pa.int32()))
        tables.append(table.append_column("row", pa.array(range(len(table)), pa.int32())))
    if not tables:
        raise RunError(f"no record of source {source} is usable", "`handdata ingest` shows why they were rejected")
    return pa.concat_tables(tables).combine_chunks()
