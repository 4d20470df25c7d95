"""Where normalized records and rejected rows lie in a workspace, and reading them back."""

import json
from dataclasses import dataclass

import pyarrow as pa

from handdata.pipeline.storage import Storage
from handdata.schemas import RunError, UsageError

INGEST_SUMMARY = "_ingest.json"
"""Beside a source's records: what the ingest did, and which files it wrote; only those exist for readers. Its leading
underscore hides it from table readers."""

RECORD_FILE_ROWS = 65_536
"""Most rows of one records file: about 60 MB in memory."""

RECORD_ROW_GROUP_ROWS = 4096
"""Rows of a row group of a records file: what planning holds in memory at a time."""


def records_folder(source: str) -> str:
    """Return the folder of a source's records in a workspace."""
    return f"records/source={source}"


def rejected_folder(stage: str, source: str) -> str:
    """Return the folder of a source's rejected rows of a stage (``ingest`` or ``annotate``)."""
    return f"rejected/{stage}/source={source}"


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What an ingest did, as stored beside the records.

    Args:
        source: its name.
        root: the folder that was read.
        partitions: how many shares it was read in.
        records: usable records.
        splits: records per split.
        rejected: refused records per reason.
        license: of the data.
        files: of the records, in the order of the ingest, relative to the workspace.
        rejected_files: of the refused records.

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


def ingested_sources(storage: Storage) -> list[str]:
    """Return the sources that have complete records in the workspace, sorted."""
    names = storage.list_folders("records")
    found = (name.removeprefix("source=") for name in names if name.startswith("source="))
    return sorted(source for source in found if storage.exists(f"{records_folder(source)}/{INGEST_SUMMARY}"))


def read_ingest_summary(storage: Storage, source: str) -> IngestSummary:
    """Return what the ingest of a source did.

    Raises:
        UsageError: the source was not ingested into this workspace.

    """
    name = f"{records_folder(source)}/{INGEST_SUMMARY}"
    if not storage.exists(name):
        raise UsageError(
            f"{storage.describe()} has no records of source {source}", f"run `handdata ingest --source {source}` first"
        )
    return IngestSummary(**json.loads(storage.read_bytes(name)))


def read_record_keys(storage: Storage, source: str, columns: list[str]) -> pa.Table:
    """Return some columns of all of a source's records, with ``file`` (position in the summary) and ``row`` of each.

    Raises:
        RunError: the folder holds no record file although its ingest is complete.

    """
    tables = []
    for position, name in enumerate(read_ingest_summary(storage, source).files):
        table = storage.read_parquet(name, columns)
        table = table.append_column("file", pa.array([position] * len(table), pa.int32()))
        tables.append(table.append_column("row", pa.array(range(len(table)), pa.int32())))
    if not tables:
        raise RunError(f"no record of source {source} is usable", "`handdata ingest` shows why they were rejected")
    return pa.concat_tables(tables).combine_chunks()
