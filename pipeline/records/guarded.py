"""What a dataset gives through its adapter, whatever the adapter raises: partitions, warnings and rows.

Ingest and inspection read datasets through these functions alone.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from handdata.adapters import Adapter, Partition
from handdata.adapters.base import warnings_of
from handdata.adapters.reading.frames import describe_error, is_of_disk
from handdata.adapters.reading.listing import cannot_be_read
from handdata.schemas import HandDataError, RecordError, Rejection, RejectReason, RunError
from handdata.schemas.rejection import in_one_line, rejection

Item = TypeVar("Item")


def list_partitions(adapter: Adapter, root: Path) -> list[Partition]:
    """Return an adapter's partitions.

    Raises:
        DatasetReadError: A folder cannot be read.
        RunError: The adapter fails in another way.

    """
    return _listed(adapter, root, adapter.partitions)


def list_warnings(adapter: Adapter, root: Path) -> tuple[str, ...]:
    """Return what an adapter warns of, a line each.

    Raises:
        DatasetReadError: A folder cannot be read.
        RunError: The adapter fails in another way.

    """
    return tuple(map(in_one_line, _listed(adapter, root, lambda root: warnings_of(adapter, root))))


def _listed(adapter: Adapter, root: Path, listing: Callable[[Path], Iterable[Item]]) -> list[Item]:
    try:
        return list(listing(root))
    except (HandDataError, MemoryError):
        raise
    except Exception as error:
        if is_of_disk(error):
            cannot_be_read(root, error)
        raise RunError(
            f"the adapter of {adapter.card.name} failed while it listed {root}: {describe_error(error)}",
            "this is a defect of the adapter, or of a library under it; nothing was changed",
        ) from error


def guarded_rows(
    adapter: Adapter, root: Path, partition: Partition, read: Callable[[Path, Partition], Iterable[Item]]
) -> Iterator[Item | Rejection]:
    """Yield the rows of a partition, and where reading them fails, one rejection for all that are left.

    Args:
        adapter: Adapter of the dataset.
        root: Folder of the dataset.
        partition: The partition.
        read: Function that reads its rows, such as ``adapter.records``.

    Raises:
        DatasetReadError: A file of the dataset cannot be read.

    """
    try:
        yield from read(root, partition)
    except (HandDataError, MemoryError):
        raise
    except Exception as error:
        if is_of_disk(error) and not isinstance(error, FileNotFoundError | NotADirectoryError):
            cannot_be_read(root, error)
        detail = f"the rest of partition {partition.name} ({', '.join(partition.paths[:3])}): {describe_error(error)}"
        yield rejection(
            f"{adapter.card.name}/{partition.split}/{partition.name}/rest",
            str(root / partition.paths[0]) if partition.paths else str(root),
            RecordError(RejectReason.ADAPTER_FAILED, detail),
        )


def warning_of_failures(count: int) -> tuple[str, ...]:
    """Return the warning about rows with ``adapter_failed``, in a tuple; none where there is no such row."""
    if not count:
        return ()
    what = "1 record, or rest of a partition," if count == 1 else f"{count:,} records, or rests of partitions,"
    return (
        f"{RejectReason.ADAPTER_FAILED}: the adapter, or a library under it, failed over {what} which may be good; "
        "the rejected table names file, record and error",
    )
