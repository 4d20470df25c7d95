"""The inspection of a dataset before any ingest: frames spread over it, with their labels drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from handdata.adapters import Adapter, AdapterOptions
from handdata.adapters.reading.listing import cannot_be_read
from handdata.adapters.reading.paths import Fence, fenced
from handdata.adapters.roots import find_root
from handdata.pipeline.annotation.frames import open_frames
from handdata.pipeline.records.guarded import guarded_rows, list_partitions, list_warnings, warning_of_failures
from handdata.pipeline.report.sheets import inspection_sheet
from handdata.schemas import HandRecord, RecordError, RejectReason, RunError
from handdata.schemas.arrays import BoolArray, ByteArray

Item = TypeVar("Item")

_SCANNED_ROWS = 400
"""Number of a partition's rows among which frames are chosen; a partition may hold millions."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an inspection found.

    Args:
        sheet: Picture of the chosen frames.
        warnings: What an ingest would warn of; of rows, only those that were looked at count.

    """

    sheet: ByteArray
    warnings: tuple[str, ...]


def inspect_source(
    adapter_type: type[Adapter], root: Path, count: int, columns: int, options: AdapterOptions | None = None
) -> Inspection:
    """Return a sheet of ``count`` frames, spread over the partitions, with keypoints, sides and masks drawn.

    Raises:
        UsageError: ``root`` does not hold this dataset.
        RunError: None of the chosen frames can be opened.

    """
    options = options or AdapterOptions()
    adapter = adapter_type(options)
    root = find_root(adapter_type, root)
    records, failures = _spread_records(adapter, root, Fence(root, options.follow_links), count)
    warnings = list_warnings(adapter, root)
    frames = list(_opened(adapter, records))
    if not frames:
        raise RunError(
            f"none of {len(records)} frames of {adapter.card.name} can be opened",
            "`handdata ingest` lists what is wrong with each",
        )
    return Inspection(inspection_sheet(frames, columns), (*warnings, *warning_of_failures(failures)))


def _spread_records(adapter: Adapter, root: Path, fence: Fence, count: int) -> tuple[list[HandRecord], int]:
    """Return records that are spread over the partitions, and how many of the rows read are ``adapter_failed``."""
    chosen = _evenly(list_partitions(adapter, root), count)
    each = -(-count // max(len(chosen), 1))
    records: list[HandRecord] = []
    failures = 0
    for partition in chosen:
        found = islice(guarded_rows(adapter, root, partition, adapter.records), _SCANNED_ROWS)
        rows = [fenced(fence, row) for row in found]
        records += _evenly([row for row in rows if isinstance(row, HandRecord)], each)
        failures += sum(not isinstance(row, HandRecord) and row.reason is RejectReason.ADAPTER_FAILED for row in rows)
    return records[:count], failures


def _evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Return up to ``count`` items, spread evenly over all."""
    if len(items) <= count:
        return list(items)
    return [items[position * len(items) // count] for position in range(count)]


def _opened(adapter: Adapter, records: list[HandRecord]) -> Iterator[tuple[HandRecord, ByteArray, BoolArray | None]]:
    for record in records:
        for _, image in open_frames([record]):
            if isinstance(image, RecordError):
                continue
            try:
                mask = adapter.open_mask(record) if record.has_mask else None
            except RecordError:
                mask = None
            except OSError as error:
                cannot_be_read(record.image_uri, error)
            yield record, image, mask
