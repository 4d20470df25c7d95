"""``handdata ingest``: a downloaded dataset becomes normalized records, in parallel over its partitions.

The new records are written to a hidden folder, checked for ids that occur twice, and compared with those of the last
ingest; then they take the old ones' place at once (``replacing``). An ingest that fails or is interrupted leaves the
old records in force, and the rejected table as it was.
"""

import gc
import os
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from handdata.adapters import Adapter, AdapterOptions, BatchAdapter, Partition
from handdata.adapters.base import refuse_foreign_options, unused_parts
from handdata.adapters.processes import process_pool
from handdata.adapters.reading.listing import Visits, noted_visits
from handdata.adapters.reading.paths import Fence, fenced
from handdata.adapters.reading.unread import unread_parts
from handdata.adapters.roots import find_root, release_of
from handdata.pipeline.records.guarded import guarded_rows, list_partitions, list_warnings, warning_of_failures
from handdata.pipeline.records.provenance import absolute_uri, with_relative_uris
from handdata.pipeline.records.replacing import (
    put_in_force,
    refuse_losses,
    remove_earlier,
    remove_staging,
    require_records,
    require_under_way,
    staging_of,
    with_earlier_counts,
)
from handdata.pipeline.records.stored import (
    RECORD_FILE_ROWS,
    RECORD_ROW_GROUP_ROWS,
    IngestSummary,
    drop_records,
    find_ingest_summary,
    label_counts,
    recounted,
    strike_records,
)
from handdata.pipeline.records.tombstones import read_tombstones
from handdata.pipeline.storage import Storage, table_to_parquet
from handdata.pipeline.storage.layout import staged_folder, tombstones_folder
from handdata.schemas import (
    FORMAT_VERSION,
    RECORD_SCHEMA,
    DuplicateRecordError,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    RunError,
    Split,
    StorageError,
    UsageError,
    license_id_of,
    records_to_table,
    rejections_to_table,
)
from handdata.schemas.rejection import in_one_line, printable, rejection

_ROWS_AT_ONCE: Final = 4096
"""Records that are checked one by one become a table when there are so many."""
_GARBAGE_THRESHOLDS: Final = (50_000, 20, 100)
"""Of Python's collector (default 700, 10, 10): labels are lists by the million, without cycles; looking through them
took a twentieth of the time."""
_IMAGE_COLUMNS: Final = ["image_uri", "video_frame"]
"""What names one image."""


@dataclass(slots=True)
class PartitionCounts:
    """What one partition gave."""

    records: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    visits: Visits = field(default_factory=Visits)


@dataclass(frozen=True, slots=True)
class _Job:
    """All that a worker needs to ingest one partition."""

    adapter: Adapter
    root: Path
    partition: Partition
    ordinal: int
    storage: Storage
    staging: str
    limit: int | None
    stride: int
    follow_links: bool = False


def ingest(
    adapter_type: type[Adapter],
    root: Path,
    storage: Storage,
    *,
    split: Split | None = None,
    limit: int | None = None,
    stride: int = 1,
    options: AdapterOptions | None = None,
    force: bool = False,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> IngestSummary:
    """Replace a source's records in a workspace by those of the dataset at ``root``.

    Args:
        adapter_type: Adapter of the source.
        root: Folder of the dataset, or the folder that holds it.
        storage: The workspace.
        split: The only split to take; None for all.
        limit: Number of records after which to stop.
        stride: Number by which the numbers of kept frames are divisible; stills are numbered 0 and all kept.
        options: Options for the adapter.
        force: Whether to replace the earlier records also where a split or more than a tenth of them is not there now.
        on_progress: Function called with (finished partitions, all partitions, records so far).

    Raises:
        UsageError: ``root`` is not a folder, or not this dataset, or an option is not one of the source; or a limit or
            stride is below 1.
        DuplicateRecordError: Two label files gave one id; both are named.
        RunError: The dataset gave no record, or too few without ``force``; the source's earlier records stay. Or
            tombstones name every record that it gave; then there is none any more.
        DatasetReadError: A folder or file of the dataset cannot be read.
        LeaseLostError: Another ingest of the source has begun, whose records will count.
        StorageError: The workspace cannot be written.

    """
    for name, number in (("limit", limit), ("stride", stride)):
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}, the smallest one is 1")
    source = adapter_type.card.name
    options = options or AdapterOptions()
    refuse_foreign_options(adapter_type, options)
    if stride > 1 and options.fps is not None:
        raise UsageError("--stride and --fps both say which frames are kept", "give one of them")
    root = find_root(adapter_type, root)
    storage.check_writable()
    tombstones = read_tombstones(storage, source)
    if stone := tombstones.of_source():
        raise UsageError(
            f"{source} was dropped from {storage.describe()} on {stone.when[:10]}",
            f"to take it back, delete {storage.describe(tombstones_folder(source))}",
        )
    if find_ingest_summary(storage, source):
        drop_records(storage, tombstones)  # what an interrupted drop has left
    adapter = adapter_type(options)
    with noted_visits() as visits:
        partitions = [part for part in list_partitions(adapter, root) if split is None or part.split == split]
    if not partitions:
        wanted = f" of split {split}" if split else ""
        raise RunError(f"{root} has no labels{wanted} of source {source}", f"see `handdata sources {source}`")
    warnings = list_warnings(adapter, root)
    with staging_of(storage, source) as staging:
        jobs = [
            _Job(adapter, root, partition, ordinal, storage, staging, limit, stride, options.follow_links)
            for ordinal, partition in enumerate(partitions)
        ]
        total = _stage(jobs, on_progress)
        if split is None and (limit is None or total.records < limit):
            visits.add(total.visits)
            warnings += tuple(map(in_one_line, unread_parts(root, visits, unused_parts(adapter))))
        files = tuple(storage.list_files(staged_folder(staging, "records"), ".parquet"))
        staged = IngestSummary(
            source=source,
            root=printable(str(root)),
            partitions=len(partitions),
            records=total.records,
            splits=dict(sorted(total.splits.items())),
            rejected=dict(sorted(total.rejected.items())),
            license=options.licence or adapter.card.license,
            license_id=license_id_of(options.licence) if options.licence else adapter.card.license_id,
            release=release_of(adapter_type, root),
            format_version=FORMAT_VERSION,
            files=files,
            rejected_files=tuple(storage.list_files(staged_folder(staging, "rejected"), ".parquet")),
            warnings=(*warnings, *warning_of_failures(total.rejected[RejectReason.ADAPTER_FAILED.value])),
            split=split,
            limit=limit,
            stride=stride,
            options=options.own(),
            labels=label_counts(storage, files),
        )
        require_records(storage, staged)
        tombstones = read_tombstones(storage, source)
        if tombstones:
            strike_records(storage, staged.files, staged.rejected_files, tombstones)
            staged = recounted(storage, staged, tombstones)
        if not force:
            refuse_losses(storage, staged)
        summary = put_in_force(storage, with_earlier_counts(storage, staged), staging)
    summary = _cleared(storage, summary, staging)
    drop_records(storage, read_tombstones(storage, source))  # what was dropped meanwhile
    if not summary.records:
        raise RunError(
            f"all {summary.dropped:,} records of {source} that {root} gave were dropped before: none is left",
            f"to take them back, delete what names them in {storage.describe(tombstones_folder(source))}",
        )
    return summary


def _cleared(storage: Storage, summary: IngestSummary, staging: str) -> IngestSummary:
    """Remove what the ingest in force does not need, and return its summary, with a warning where that fails."""
    try:
        remove_earlier(storage, summary.source)
        remove_staging(storage, summary.source, staging)
    except StorageError as error:
        left = f"files of earlier ingests are left, which the next ingest removes: {error.message}"
        return replace(summary, warnings=(*summary.warnings, left))
    return summary


def _collect_garbage_seldom() -> None:
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


def _stage(jobs: Sequence[_Job], on_progress: Callable[[int, int, int], None] | None) -> PartitionCounts:
    """Write the records of all partitions to the staging folder, each id once, and return what they gave."""
    total = PartitionCounts()
    for finished, counts in enumerate(_run(jobs), start=1):
        total.records += counts.records
        total.splits.update(counts.splits)
        total.rejected.update(counts.rejected)
        total.visits.add(counts.visits)
        if on_progress:
            on_progress(finished, len(jobs), total.records)
    _reject_duplicates(jobs, total)
    _reject_shared_images(jobs, total)
    require_under_way(jobs[0].storage, jobs[0].adapter.card.name, jobs[0].staging)
    _require_all(jobs[0].storage, jobs[0].staging, total.records)
    return total


def _require_all(storage: Storage, staging: str, records: int) -> None:
    """Raise where the staged files do not hold all records."""
    staged = 0
    for name in storage.list_files(staged_folder(staging, "records"), ".parquet"):
        with storage.open_parquet(name) as file:
            staged += file.metadata.num_rows
    if staged != records:
        raise RunError(
            f"{records} records were written to {storage.describe(staging)} and {staged} are left",
            "run one ingest of a source at a time",
        )


def _run(jobs: Sequence[_Job]) -> Iterator[PartitionCounts]:
    """Run the jobs in order, in parallel unless a limit makes each depend on those before it.

    An adapter that a script or notebook defines is one that other processes cannot import.
    """
    limit = jobs[0].limit
    is_importable = type(jobs[0].adapter).__module__ != "__main__"
    workers = min(os.cpu_count() or 1, len(jobs)) if is_importable else 1
    if limit is not None or workers == 1:
        remaining = limit
        for job in jobs:
            counts = _ingest_partition(job, remaining)
            yield counts
            if remaining is not None:
                remaining -= counts.records
                if remaining <= 0:
                    return
        return
    with process_pool(workers, _collect_garbage_seldom) as pool:
        try:
            yield from pool.map(_ingest_partition, jobs)
        except BrokenProcessPool:
            raise RunError(
                f"a process that read {jobs[0].root} was killed, mostly for want of memory",
                "free some memory, or let fewer processes run beside, then ingest again: nothing was changed",
            ) from None


class _PartWriter:
    """Writes the rows of one partition to the staging folder, in files of bounded size."""

    def __init__(self, job: _Job, folder: str) -> None:
        self._job, self._folder = job, folder
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._files = 0

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._rows += len(table)
        while self._rows >= RECORD_FILE_ROWS:
            self._write(RECORD_FILE_ROWS)

    def flush(self) -> None:
        if self._rows:
            self._write(self._rows)

    def _write(self, rows: int) -> None:
        table = pa.concat_tables(self._tables).combine_chunks()
        name = f"{self._folder}/part-{self._job.ordinal:05d}-{self._files:04d}.parquet"
        self._job.storage.write_bytes(name, table_to_parquet(table.slice(0, rows), RECORD_ROW_GROUP_ROWS))
        self._files += 1
        self._rows -= rows
        self._tables = [table.slice(rows)]


def _ingest_partition(job: _Job, limit: int | None = None) -> PartitionCounts:
    """Write one partition's records and rejections to the staging folder."""
    require_under_way(job.storage, job.adapter.card.name, job.staging)
    records = _PartWriter(job, staged_folder(job.staging, "records"))
    rejections = _PartWriter(job, staged_folder(job.staging, "rejected"))
    with noted_visits() as visits:
        counts = PartitionCounts(visits=visits)
        for table, rejected in _taken(job, limit):
            records.add(with_relative_uris(table, str(job.root)))
            rejections.add(with_relative_uris(rejections_to_table(rejected), str(job.root)))
            counts.records += len(table)
            counts.rejected.update(row.reason.value for row in rejected)
            visits.folders.update(row.image_uri.rpartition("/")[0] for row in rejected)  # it was told
    records.flush()
    rejections.flush()
    counts.splits = Counter({job.partition.split: counts.records} if counts.records else {})
    return counts


def _taken(job: _Job, limit: int | None) -> Iterator[tuple[pa.Table, list[Rejection]]]:
    """Yield the rows that the job's stride and a limit of records leave, some at a time, from either way in."""
    adapter, fence = job.adapter, Fence(job.root, job.follow_links)
    if isinstance(adapter, BatchAdapter):

        def read_batches(root: Path, partition: Partition) -> Iterator[tuple[pa.Table, list[tuple[int, Rejection]]]]:
            return (_fenced_batch(fence, *batch.read()) for batch in adapter.record_batches(root, partition))

        batches = (
            (RECORD_SCHEMA.empty_table(), [(0, batch)]) if isinstance(batch, Rejection) else batch
            for batch in guarded_rows(adapter, job.root, job.partition, read_batches)
        )
        yield from _taken_of_batches(batches, job.stride, limit)
        return

    def read_rows(root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        return (fenced(fence, row) for row in adapter.records(root, partition))

    found = guarded_rows(adapter, job.root, job.partition, read_rows)
    rows = _taken_of_rows(found, job.stride, limit)
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        records = records_to_table([row for row in some if isinstance(row, HandRecord)])
        yield records, [row for row in some if isinstance(row, Rejection)]


def _taken_of_rows(
    rows: Iterator[HandRecord | Rejection], stride: int, limit: int | None
) -> Iterator[HandRecord | Rejection]:
    taken = 0
    for row in rows:
        if isinstance(row, HandRecord):
            if row.frame_index % stride:
                continue
            taken += 1
        yield row
        if limit is not None and taken >= limit:
            return


def _fenced_batch(
    fence: Fence, table: pa.Table, rejected: list[tuple[int, Rejection]]
) -> tuple[pa.Table, list[tuple[int, Rejection]]]:
    """Return what ``RecordBatch.read`` does, with the rejections that ``fenced`` makes."""
    outside: list[tuple[int, Rejection]] = []
    for row, image_uri in enumerate(table["image_uri"].to_pylist()):
        try:
            fence.check(image_uri)
        except RecordError as error:
            outside.append((row, rejection(table["record_id"][row].as_py(), image_uri, error)))
    if not outside:
        return table, rejected
    rows = [row for row, _ in outside]
    left = table.take(np.delete(np.arange(len(table)), rows))
    every = sorted([*rejected, *outside], key=lambda numbered: numbered[0])
    return left, [(row - bisect_left(rows, row), found) for row, found in every]


def _taken_of_batches(
    batches: Iterator[tuple[pa.Table, list[tuple[int, Rejection]]]], stride: int, limit: int | None
) -> Iterator[tuple[pa.Table, list[Rejection]]]:
    for table, rejected in batches:
        kept = np.flatnonzero(table["frame_index"].to_numpy() % stride == 0)[:limit]
        if len(kept) < len(table):
            table = table.take(kept)
        if limit is None:
            yield table, [row for _, row in rejected]
            continue
        # As row by row: what comes after the last record that the limit leaves is not reached.
        yield table, [row for before, row in rejected if np.searchsorted(kept, before) < limit]
        limit -= len(kept)
        if limit <= 0:
            return


def _reject_duplicates(jobs: Sequence[_Job], total: PartitionCounts) -> None:
    """Reject staged records whose id another one has: the later ones of a label file that names a frame twice.

    Such a key is bad input, and the first record stands. Two label files that name one frame are a dataset that is
    there twice, or an adapter that does not merge what it should.

    Raises:
        DuplicateRecordError: Two label files gave one id, or two images of a folder; both are named.

    """
    root, storage, staging = jobs[0].root, jobs[0].storage, jobs[0].staging
    files = storage.list_files(staged_folder(staging, "records"), ".parquet")
    doubled = _doubled_ids(storage, files)
    if not doubled:
        return
    first: dict[str, tuple[Partition, str]] = {}
    for name in files:
        partition = _partition_of(jobs, name)
        rows = pl.DataFrame(storage.read_parquet(name, ["record_id", "image_uri"])).with_row_index()
        later: list[int] = []
        rejected: list[Rejection] = []
        for row, record_id, image_uri in rows.filter(pl.col("record_id").is_in(doubled)).iter_rows():
            if record_id not in first:
                first[record_id] = (partition, image_uri)
                continue
            earlier, earlier_uri = first[record_id]
            in_label_files = all((root / path).is_file() for path in partition.paths)
            if earlier.paths != partition.paths or (earlier_uri != image_uri and not in_label_files):
                raise DuplicateRecordError(
                    f"{len(doubled)} record ids occur more than once; {record_id} comes from "
                    f"{absolute_uri(earlier_uri, str(root))} (labels: {', '.join(earlier.paths)}) and from "
                    f"{absolute_uri(image_uri, str(root))} (labels: {', '.join(partition.paths)})",
                    "is the same part of the dataset unpacked twice below the root?",
                )
            later.append(row)
            detail = f"{', '.join(partition.paths)}: names {record_id} more than once; the first one was taken"
            rejected.append(rejection(record_id, image_uri, RecordError(RejectReason.LABEL_CORRUPT, detail)))
        _reject_rows(storage, name, partition.split, later, rejected, total)


def _reject_shared_images(jobs: Sequence[_Job], total: PartitionCounts) -> None:
    """Reject staged records whose image, or frame of a video, a record of another split has: a model sees its test.

    Of one label file that names an image in two splits the first record stands. Two label files that do are those of
    two releases, whose splits differ.

    Raises:
        DuplicateRecordError: Two label files name one image in different splits; both are named.

    """
    storage = jobs[0].storage
    files = storage.list_files(staged_folder(jobs[0].staging, "records"), ".parquet")
    suspects = _hashes_in_several_splits(jobs, files) if len(total.splits) > 1 else pl.Series(dtype=pl.UInt64)
    if suspects.is_empty():
        return
    suspects = suspects.implode()
    first: dict[tuple[str, int | None], Partition] = {}
    for name in files:
        partition = _partition_of(jobs, name)
        rows = pl.DataFrame(storage.read_parquet(name, ["record_id", *_IMAGE_COLUMNS])).with_row_index()
        later: list[int] = []
        rejected: list[Rejection] = []
        for row, record_id, image_uri, frame in rows.filter(_image_hashes(rows).is_in(suspects)).iter_rows():
            earlier = first.setdefault((image_uri, frame), partition)
            if earlier.split == partition.split:
                continue
            labels = ", ".join(partition.paths)
            if earlier.paths != partition.paths:
                raise DuplicateRecordError(
                    f"{absolute_uri(image_uri, str(jobs[0].root))} is in the split {earlier.split} (labels: "
                    f"{', '.join(earlier.paths)}) and in {partition.split} (labels: {labels})",
                    "keep the labels of one release of the dataset, and move the others away",
                )
            later.append(row)
            detail = f"{labels}: the image is of the split {earlier.split} too, which was taken"
            rejected.append(rejection(record_id, image_uri, RecordError(RejectReason.LABEL_CORRUPT, detail)))
        _reject_rows(storage, name, partition.split, later, rejected, total)


def _hashes_in_several_splits(jobs: Sequence[_Job], files: Sequence[str]) -> pl.Series:
    """Return hashes, among them those of all images that records of several splits have; eight bytes an image."""
    by_split: dict[Split, list[pl.Series]] = {}
    for name in files:
        images = pl.DataFrame(jobs[0].storage.read_parquet(name, _IMAGE_COLUMNS))
        by_split.setdefault(_partition_of(jobs, name).split, []).append(_image_hashes(images))
    if not by_split:  # another ingest has begun, and removed them
        return pl.Series(dtype=pl.UInt64)
    every = pl.concat([pl.concat(hashes).unique() for hashes in by_split.values()])
    return every.filter(every.is_duplicated()).unique()


def _image_hashes(rows: pl.DataFrame) -> pl.Series:
    return rows.select(_IMAGE_COLUMNS).hash_rows()


def _partition_of(jobs: Sequence[_Job], name: str) -> Partition:
    """Return the partition whose rows a staged file holds."""
    return jobs[int(name.rpartition("/part-")[2].partition("-")[0])].partition


def _reject_rows(
    storage: Storage, name: str, split: Split, rows: Sequence[int], rejected: list[Rejection], total: PartitionCounts
) -> None:
    """Move rows of a staged file of records, all of one split, to a file of rejections, and count them so."""
    if not rows:
        return
    left = storage.read_parquet(name)
    left = left.take(np.delete(np.arange(len(left)), rows))
    storage.write_bytes(name, table_to_parquet(left, RECORD_ROW_GROUP_ROWS))
    folder, _, file = name.rpartition("/")
    token = uuid.uuid4().hex[:8]
    storage.write_bytes(
        f"{folder.removesuffix('records')}rejected/{Path(file).stem}-{token}.parquet",
        table_to_parquet(rejections_to_table(rejected), RECORD_ROW_GROUP_ROWS),
    )
    total.records -= len(rows)
    total.rejected.update(row.reason.value for row in rejected)
    total.splits.subtract({split: len(rows)})
    total.splits = +total.splits


def _doubled_ids(storage: Storage, files: Sequence[str]) -> list[str]:
    """Return the ids that occur more than once in staged records.

    Only the hashes of all ids are held at once, eight bytes each. Ids that share a hash are compared at the end.
    """
    hashes = [pl.Series(storage.read_parquet(name, ["record_id"])["record_id"]).hash() for name in files]
    if not hashes:
        return []
    every = pl.concat(hashes)
    suspects = every.filter(every.is_duplicated()).unique()
    if suspects.is_empty():
        return []
    suspects = suspects.implode()
    found = [
        ids.filter(of_file.is_in(suspects))
        for name, of_file in zip(files, hashes, strict=True)
        if of_file.is_in(suspects).any()
        for ids in [pl.Series(storage.read_parquet(name, ["record_id"])["record_id"])]
    ]
    ids = pl.concat(found)
    return sorted(ids.filter(ids.is_duplicated()).unique().to_list())
