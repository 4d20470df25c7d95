"""How the records of an ingest take the place of earlier ones, and when they must not.

The new files are moved beside the old ones, under names of their own. The summary, which names them, is written last:
with it they take the old ones' place, on disk and on object stores alike. Whatever fails before leaves the old records.

Of two ingests of a source at once the one that began last counts: it takes away the mark of the other one, which looks
for it before it changes anything. Each removes files that its own summary does not name, those of the other one too.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from handdata.pipeline.records.provenance import absolute_uri
from handdata.pipeline.records.stored import IngestSummary, find_ingest_summary, write_ingest_summary
from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import records_folder, rejected_folder, staging_folder, staging_mark
from handdata.schemas import SPLITS, LeaseLostError, RunError, StorageError

MOST_LOST: Final = 0.1
"""Share of the earlier records that may be missing from a later ingest without a word; of their labels, too."""
_MOST_OF_A_RECORD: Final = 2
"""Most labelled hands, masks or cameras that go with a record that was dropped."""


@contextmanager
def staging_of(storage: Storage, source: str) -> Iterator[str]:
    """Yield the folder of a new ingest, which is removed where the ingest fails.

    Those of earlier ingests, which were killed or are under way, are removed first.

    Raises:
        LeaseLostError: The block failed to write, since another ingest has begun and removed its files.

    """
    storage.remove(staging_folder(source))
    staging = f"{staging_folder(source)}/{uuid.uuid4().hex[:8]}"
    storage.write_bytes(staging_mark(staging), b"")
    try:
        yield staging
    except BaseException as error:
        try:
            if isinstance(error, StorageError) and not error.transient:
                require_under_way(storage, source, staging)
        finally:
            with suppress(StorageError):
                remove_staging(storage, source, staging)
        raise


def require_under_way(storage: Storage, source: str, staging: str) -> None:
    """Raise where another ingest of a source has begun since.

    Raises:
        LeaseLostError: It has.

    """
    if not storage.exists(staging_mark(staging)):
        raise LeaseLostError(
            f"another ingest of {source} into {storage.describe()} has begun, and its records will count",
            "run one ingest of a source at a time; this one changed nothing",
        )


def remove_staging(storage: Storage, source: str, staging: str) -> None:
    """Remove what an ingest has staged; another one may be under way beside it."""
    storage.remove(staging)
    if not storage.list_files(staging_folder(source), ""):
        storage.remove(staging_folder(source))


def require_records(storage: Storage, staged: IngestSummary) -> None:
    """Raise where an ingest gave no record.

    Raises:
        RunError: It gave none; the message has the first reason.

    """
    if not staged.records:
        raise RunError(
            f"{staged.root} gave no record of source {staged.source}{_reasons(storage, staged, {})}",
            f"see `handdata sources {staged.source}`; records of earlier ingests stay as they were",
        )


def with_earlier_counts(storage: Storage, staged: IngestSummary) -> IngestSummary:
    """Return a summary with what earlier ingests of other selections gave, with which later ones are compared."""
    before = find_ingest_summary(storage, staged.source)
    counts = before.counts() if before else ()
    return replace(staged, earlier=tuple(found for found in counts if found.selection != staged.selection))


def refuse_losses(storage: Storage, staged: IngestSummary) -> None:
    """Raise where an ingest lacks what the last one of its kind had: a split, or more than a tenth of some counts.

    These are the records, and their labelled hands, masks and cameras: a part of the labels may be what is away.

    Only ingests of one selection are compared: those that were asked for the same split, limit and stride. Others may
    have been in force since; of their records, what was dropped meanwhile is not missed.

    Args:
        storage: The workspace.
        staged: The ingest that would take its place; its files are staged.

    Raises:
        RunError: Too much would be lost; the message says of which splits, and the first reason.

    """
    before = find_ingest_summary(storage, staged.source)
    counts = before.counts() if before else ()
    earlier = next((found for found in counts if found.selection == staged.selection), None)
    if earlier is None:
        return
    had, has = earlier.splits, staged.splits
    if not had:  # of an earlier version
        had, has = {"records": earlier.records}, {"records": staged.records}
    lost = {name: had[name] - has.get(name, 0) for name in had if had[name] > has.get(name, 0)}
    dropped = max(0, staged.dropped - earlier.dropped)
    fewer = {name: count - staged.labels[name] for name, count in earlier.labels.items() if name in staged.labels}
    of_labels = [
        name for name, count in fewer.items() if count - _MOST_OF_A_RECORD * dropped > MOST_LOST * earlier.labels[name]
    ]
    splits_are_there = all(has.get(name) or had[name] <= dropped for name in lost)
    is_whole = splits_are_there and sum(lost.values()) - dropped <= MOST_LOST * earlier.records
    if is_whole and not of_labels:
        return
    if is_whole:
        changes = [f"{name} {earlier.labels[name]:,} -> {staged.labels[name]:,}" for name in of_labels]
    else:
        changes = [f"{name} {had[name]:,} -> {has.get(name, 0):,}" for name in (*SPLITS, "records") if name in lost]
    what = "labels" if is_whole else "records"
    raise RunError(
        f"{staged.root} lacks {what} of source {staged.source} that the last ingest had: {', '.join(changes)}"
        f"{_reasons(storage, staged, earlier.rejected)}",
        "nothing was changed; see that all of the dataset is there, or replace the earlier records with --force",
    )


def _reasons(storage: Storage, staged: IngestSummary, earlier: dict[str, int]) -> str:
    """Return why an ingest rejected records: how many for which reason, and the first for the one that rose most."""
    dropped = f"; dropped before: {staged.dropped:,}" if staged.dropped else ""
    if not staged.rejected:
        return dropped
    counts = ", ".join(f"{reason} {count:,}" for reason, count in staged.rejected.items())
    most = max(staged.rejected, key=lambda reason: staged.rejected[reason] - earlier.get(reason, 0))
    for name in staged.rejected_files:
        for row in storage.read_parquet(name, ["image_uri", "reason", "detail"]).to_pylist():
            if row["reason"] == most:
                where = absolute_uri(row["image_uri"], staged.root)
                return f"{dropped}; rejected: {counts}; the first: {most}, {where}: {row['detail']}"
    return f"{dropped}; rejected: {counts}"


def put_in_force(storage: Storage, staged: IngestSummary, staging: str) -> IngestSummary:
    """Move the files staged in a folder beside those of earlier ingests, write the summary, and return it.

    Where that fails, the files that were moved are removed, unless the summary in force names them after all.

    Raises:
        LeaseLostError: Another ingest has begun: it may have removed the files that were moved.

    """
    token = uuid.uuid4().hex[:8]
    folders = records_folder(staged.source), rejected_folder("ingest", staged.source)
    files, rejected_files = (
        tuple(f"{folder}/{Path(name).stem}-{token}.parquet" for name in names)
        for folder, names in zip(folders, (staged.files, staged.rejected_files), strict=True)
    )
    try:
        for folder in folders:
            storage.make_folder(folder)
        for source, target in zip((*staged.files, *staged.rejected_files), (*files, *rejected_files), strict=True):
            storage.move(source, target)
        summary = replace(staged, files=files, rejected_files=rejected_files)
        require_under_way(storage, staged.source, staging)
        write_ingest_summary(storage, summary)
    except BaseException as error:
        # Where the server is away it will not remove anything either: the next ingest does.
        if not (isinstance(error, StorageError) and error.transient):
            with suppress(StorageError):
                _remove_unnamed(storage, staged.source, (*files, *rejected_files))
        raise
    return summary


def _remove_unnamed(storage: Storage, source: str, files: Sequence[str]) -> None:
    """Remove those files that the summary in force does not name."""
    summary = find_ingest_summary(storage, source)
    named = {*summary.files, *summary.rejected_files} if summary else set()
    for name in files:
        if name not in named:
            storage.remove(name)


def remove_earlier(storage: Storage, source: str) -> None:
    """Remove the files of earlier ingests, which the summary in force does not name."""
    if find_ingest_summary(storage, source) is None:
        return  # nobody knows which files are in force
    for folder in (records_folder(source), rejected_folder("ingest", source)):
        _remove_unnamed(storage, source, storage.list_files(folder, ".parquet"))
