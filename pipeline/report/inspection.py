"""The inspection of a dataset before any ingest: frames spread over it, with their labels drawn."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from handdata.adapters import Adapter, AdapterOptions
from handdata.adapters.reading.paths import Fence, fenced
from handdata.adapters.roots import find_root
from handdata.pipeline.annotation.frames import open_frames
from handdata.pipeline.report.sheets import inspection_sheet
from handdata.schemas import HandRecord, RecordError, RunError
from handdata.schemas.arrays import BoolArray, ByteArray

Item = TypeVar("Item")

_SCANNED_ROWS = 400
"""Number of a partition's rows among which frames are chosen; a partition may hold millions."""


def inspect_source(
    adapter_type: type[Adapter], root: Path, count: int, columns: int, options: AdapterOptions | None = None
) -> ByteArray:
    """Return a sheet of ``count`` frames, spread over the partitions, with keypoints, sides and masks drawn.

    Raises:
        UsageError: ``root`` does not hold this dataset.
        RunError: None of the chosen frames can be opened.

    """
    options = options or AdapterOptions()
    adapter = adapter_type(options)
    root = find_root(adapter_type, root)
    records = _spread_records(adapter, root, Fence(root, options.follow_links), count)
    frames = list(_opened(adapter, records))
    if not frames:
        raise RunError(
            f"none of {len(records)} frames of {adapter.card.name} can be opened",
            "`handdata ingest` lists what is wrong with each",
        )
    return inspection_sheet(frames, columns)


def _spread_records(adapter: Adapter, root: Path, fence: Fence, count: int) -> list[HandRecord]:
    partitions = list(adapter.partitions(root))
    chosen = _evenly(partitions, count)
    each = -(-count // max(len(chosen), 1))
    records: list[HandRecord] = []
    for partition in chosen:
        rows = (fenced(fence, row) for row in islice(adapter.records(root, partition), _SCANNED_ROWS))
        records += _evenly([row for row in rows if isinstance(row, HandRecord)], each)
    return records[:count]


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
            yield record, image, mask
