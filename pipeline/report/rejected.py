"""Rejected records: how many for which reason, some of them, and their pictures on a sheet."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow.compute as pc

from handdata.pictures.drawing import draw_flags, draw_keypoints, fit, tile
from handdata.pipeline.annotation.frames import decode_image, open_frames, read_image_file
from handdata.pipeline.records.provenance import absolute_uri
from handdata.pipeline.records.stored import find_ingest_summary, ingested_sources
from handdata.pipeline.report.sheets import tail
from handdata.pipeline.shards import read_markers
from handdata.pipeline.shards.manifest import find_manifest
from handdata.pipeline.shards.plan import PlannedUnit, planned_sources, read_unit, stored_units
from handdata.pipeline.storage import Dataset
from handdata.schemas import HandRecord, RecordError, StorageError
from handdata.schemas.arrays import ByteArray

Stage = Literal["ingest", "annotate"]
Kind = tuple[Stage, str, str]
"""Stage, source and reason."""

_TILE_PX: Final = 256
_BLANK: Final = 230


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that was rejected.

    Args:
        stage: The command that rejected it.
        source: Its source.
        record_id: Its id, or that of what would have been a record.
        image_uri: Whole path or URL of its image or video.
        reason: Code of the reason.
        detail: The reason in words.
        unit_id: Unit of work that it belongs to; empty where ``ingest`` rejected it.

    """

    stage: Stage
    source: str
    record_id: str
    image_uri: str
    reason: str
    detail: str
    unit_id: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """An ingest, or a unit of a dataset: the tables of its rejected records, and how many they have of each reason."""

    stage: Stage
    source: str
    files: tuple[str, ...]
    counts: Mapping[str, int]
    unit_id: str = ""


@dataclass(frozen=True, slots=True)
class Rejections:
    """The rejected records of a dataset and of the ingests of its workspace.

    Args:
        counts: Records by stage, source and reason.
        chosen: Some of them, of each stage, source and reason in turn.

    """

    counts: dict[Kind, int]
    chosen: tuple[RejectedRecord, ...]


def read_rejections(dataset: Dataset, most: int, *, source: str | None = None, reason: str | None = None) -> Rejections:
    """Return how many records were rejected for which reasons, and some of them.

    Args:
        dataset: The dataset.
        most: Largest number of records to read.
        source: The only source; None for all.
        reason: The only reason; None for all.

    Raises:
        StorageError: A table is missing or damaged.

    """
    places = [place for place in _places(dataset) if source in (None, place.source)]
    counts = Counter[Kind]()
    for place in places:
        for name, count in place.counts.items():
            if reason in (None, name):
                counts[place.stage, place.source, name] += count
    counts = +counts
    roots = _roots(dataset)
    chosen: dict[Kind, list[RejectedRecord]] = {kind: [] for kind in sorted(counts)}
    for place in places:
        kinds: list[Kind] = [(place.stage, place.source, name) for name in place.counts]
        for file in place.files:
            if any(kind in chosen and len(chosen[kind]) < most for kind in kinds):
                rows = dataset.storage.read_parquet(file)
                for kind in filter(chosen.__contains__, kinds):
                    found = rows.filter(pc.equal(rows["reason"], kind[2])).slice(0, most - len(chosen[kind]))
                    root = roots.get((place.stage, place.source), "")
                    chosen[kind] += [_record(place, row, root) for row in found.to_pylist()]
    return Rejections(dict(sorted(counts.items())), tuple(_in_turn(list(chosen.values()), most)))


def _record(place: _Place, row: Mapping[str, Any], root: str) -> RejectedRecord:
    return RejectedRecord(
        place.stage,
        place.source,
        row["record_id"],
        absolute_uri(row["image_uri"], root),
        row["reason"],
        row["detail"],
        place.unit_id,
    )


def _in_turn(groups: Sequence[Sequence[RejectedRecord]], most: int) -> Iterator[RejectedRecord]:
    """Yield the first of each group, then the second of each, until there are enough; sorted by group."""
    shares = [0] * len(groups)
    left = most
    while left > 0 and any(share < len(group) for share, group in zip(shares, groups, strict=True)):
        for number, group in enumerate(groups):
            if left > 0 and shares[number] < len(group):
                shares[number] += 1
                left -= 1
    for share, group in zip(shares, groups, strict=True):
        yield from group[:share]


def _places(dataset: Dataset) -> Iterator[_Place]:
    """Yield the ingests of the workspace and the finished units of the dataset that have rejected records."""
    storage = dataset.storage
    for source in ingested_sources(storage):
        if (summary := find_ingest_summary(storage, source)) and summary.rejected:
            yield _Place("ingest", source, summary.rejected_files, summary.rejected)
    for marker in read_markers(dataset):
        if marker.rejected:
            yield _Place("annotate", marker.source, marker.rejected_files, marker.rejected, marker.unit_id)


def _roots(dataset: Dataset) -> dict[tuple[Stage, str], str]:
    """Return the folders that the URIs of rejected records are relative to."""
    roots: dict[tuple[Stage, str], str] = {}
    manifest = find_manifest(dataset)
    for source in ingested_sources(dataset.storage):
        if summary := find_ingest_summary(dataset.storage, source):
            roots["ingest", source] = roots["annotate", source] = summary.root
    for source, root in (manifest.roots if manifest else {}).items():
        roots["annotate", source] = root
    return roots


def rejected_sheet(dataset: Dataset, rejected: Sequence[RejectedRecord], columns: int = 4) -> ByteArray:
    """Return one picture of rejected records with their labels and reasons; grey where an image cannot be opened."""
    records = _records(dataset, rejected)
    pictures = [
        draw_flags(fit(_opened(row, records.get(row.record_id)), _TILE_PX, _TILE_PX), [row.reason]) for row in rejected
    ]
    return tile(pictures, columns, 10, [f"{row.source}, {row.stage}\n{tail(row.record_id)}" for row in rejected])


def _records(dataset: Dataset, rejected: Sequence[RejectedRecord]) -> dict[str, HandRecord]:
    """Return the records that annotation rejected, by their ids: they know frames of videos, and labels."""
    wanted = {row.unit_id: row.image_uri for row in rejected if row.unit_id}
    ids = {row.record_id for row in rejected}
    roots = _roots(dataset)
    units: list[PlannedUnit] = []
    for source in planned_sources(dataset) if wanted else ():
        units += [unit for unit in stored_units(dataset, source) if unit.unit_id in wanted]
    found = {}
    for unit in units:
        for row in read_unit(dataset.storage, unit, roots.get(("annotate", unit.source))):
            if isinstance(row, HandRecord) and row.record_id in ids:
                found[row.record_id] = row
    return found


def _opened(row: RejectedRecord, record: HandRecord | None) -> ByteArray:
    """Return the image of a rejected record with its labels, or grey."""
    try:
        if record is None:
            return decode_image(read_image_file(row.image_uri), row.image_uri)
        ((_, image),) = open_frames([record])
        if isinstance(image, RecordError):
            raise image
        return draw_keypoints(image, record.keypoints_2d, record.keypoints_valid)
    except (RecordError, StorageError):
        return np.full((_TILE_PX, _TILE_PX, 3), _BLANK, dtype=np.uint8)
