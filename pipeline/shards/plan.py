"""Units of work: which records one worker annotates and commits together.

A unit is a run of frames of a block of cameras of one sequence; short sequences and stills are packed, many to a unit.
Planning reads only the keys of the records and is deterministic; its result is stored before any work is done, and
includes the records themselves in the order of the units, so that a later ingest cannot change a unit that is under
way. Records that a later ingest adds become units of a further generation of the plan. Unit ids carry the number of
their generation, and numbers are not used twice: a worker of an abandoned plan can never commit a unit of the next one.
"""

import hashlib
import json
import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from handdata.pipeline.records.provenance import absolute_row, with_relative_uris
from handdata.pipeline.records.stored import (
    RECORD_ROW_GROUP_ROWS,
    IngestSummary,
    read_ingest_summary,
    read_record_keys,
)
from handdata.pipeline.records.tombstones import KEY_COLUMNS, Tombstones, read_tombstones
from handdata.pipeline.shards.lease import Lease
from handdata.pipeline.storage import Dataset, Storage
from handdata.pipeline.storage.damage import advice, damaged, parse_document
from handdata.pipeline.storage.layout import list_sources, records_folder
from handdata.schemas import (
    RECORD_SCHEMA,
    ROW_GROUP_ROWS,
    SPLITS,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    Split,
    StorageError,
    UsageError,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.record import record_from_row
from handdata.schemas.rejection import rejection

MAX_UNIT_ROWS: Final = 2048
MAX_UNIT_BYTES: Final = 128 << 20
BYTES_PER_PIXEL: Final = 0.5
"""Room planned for an encoded crop and its mask, per crop pixel; photographs at quality 95 take 0.2 to 0.4."""

MIN_UNIT_ROWS: Final = 64
UNITS_PER_SOURCE: Final = 32
"""A small source is still cut into about this many units, so that all workers have something to do."""

CAMERA_BLOCK: Final = 16
"""Cameras of a sequence that stay together in a unit and in its row groups."""

_MAKING_OPTIONS: Final = ("mirrored", "frames_as_video")
"""Options of sources that make other records of the same images."""

_PLAN_SCHEMA: Final = pa.schema([field.with_nullable(True) for field in RECORD_SCHEMA])
"""Columns of planned records: null may be where no record can have it, since one such row must not stop the others."""


_GENERATION_FILE: Final = re.compile(r"/generation-\d{3,}\.json$")
_UNIT_ID: Final = re.compile(r"-(\d{3,})-\d{6,}$")


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """One unit and where its records lie.

    Args:
        unit_id: Unique name, also of the files that the unit writes.
        source: Source of all its records.
        split: Split of all its records.
        rows: Number of records.
        plan_file: Parquet file that holds the records, relative to the workspace.
        row_group: The unit's row group in that file.
        tombstones: Digest of the source's tombstones that the records honour.

    """

    unit_id: str
    source: str
    split: Split
    rows: int
    plan_file: str
    row_group: int
    tombstones: str = ""


@dataclass(frozen=True, slots=True)
class _Generation:
    """The list of units of a generation of a source's plan, as its file holds it.

    Args:
        records: Number of records of all its units.
        units: The units; none where the plan was abandoned.
        ingest: Token of the ingest that the records are of.
        options: The source's own options of that ingest.
        root: Folder that this ingest has read; empty in plans of format version 1.

    """

    records: int
    units: tuple[PlannedUnit, ...]
    ingest: str = ""
    options: dict[str, str | float | bool] = field(default_factory=dict)
    root: str = ""

    def encoded(self) -> bytes:
        """Return the content of its file."""
        return json.dumps(asdict(self)).encode()


def planned_sources(dataset: Dataset) -> list[str]:
    """Return the sources that a dataset has a plan of, sorted."""
    return list_sources(dataset.storage, dataset.plans_folder)


def annotated_sources(dataset: Dataset) -> list[str]:
    """Return the sources that a dataset has a plan or finished units of, sorted."""
    return sorted({*planned_sources(dataset), *list_sources(dataset.storage, dataset.markers_folder)})


def unit_rows(image_size: int, records: int) -> int:
    """Return the most rows of a unit, for crops of this size in a source of this many records."""
    by_bytes = int(MAX_UNIT_BYTES / (BYTES_PER_PIXEL * image_size**2))
    return max(1, min(MAX_UNIT_ROWS, by_bytes, max(MIN_UNIT_ROWS, records // UNITS_PER_SOURCE)))


def stored_units(dataset: Dataset, source: str) -> list[PlannedUnit]:
    """Return the units that were planned so far, in the order of their generations."""
    units: list[PlannedUnit] = []
    for name in _generations(dataset, source):
        units += _read_generation(dataset, source, name).units
    return units


def _read_generation(dataset: Dataset, source: str, name: str) -> _Generation:
    return _parse_generation(dataset.storage, source, name, dataset.storage.read_bytes(name))


def _parse_generation(storage: Storage, source: str, name: str, data: bytes) -> _Generation:
    """Return the list of units that a file holds.

    Raises:
        StorageError: The file is damaged.

    """
    where = storage.describe(name)
    generation = parse_document(data, _Generation, where, name)
    if any(unit.source != source for unit in generation.units):
        raise damaged(where, name, f"it has units of another source than {source}")
    if sum(unit.rows for unit in generation.units) != generation.records:
        raise damaged(where, name, f"its units have another number of records than {generation.records}")
    return generation


def plan_source(
    dataset: Dataset,
    source: str,
    image_size: int,
    *,
    limit: int | None = None,
    sample: int | None = None,
    has_moved: bool = False,
) -> list[PlannedUnit]:
    """Plan the records of a source that no unit has yet, store them, and return all units of the source.

    Args:
        dataset: The dataset.
        source: An ingested source.
        image_size: Side of the crops, pixels; bounds the bytes of a unit.
        limit: Number of records to plan, the first in the order of sequences and frames.
        sample: Number of records to plan, spread evenly over the sequences.
        has_moved: Whether records of another folder than the planned ones are of the same dataset, elsewhere.

    Raises:
        UsageError: Records are of another split, or another folder, than when they were planned.

    """
    while True:
        tombstones = read_tombstones(dataset.storage, source).digest  # before the keys: they honour these at least
        units, parts = preview_source(dataset, source, image_size, limit=limit, sample=sample, has_moved=has_moved)
        if not parts:
            return units
        ingest = read_ingest_summary(dataset.storage, source)
        made = _Generation(0, (), _token_of(ingest), ingest.options, ingest.root)
        _store_generation(dataset, source, parts, _gathered(dataset.storage, source, parts), made, tombstones)


def plan_rows(
    dataset: Dataset,
    source: str,
    keys: pl.DataFrame,
    records_of: Callable[[pl.DataFrame], pa.Table],
    most_rows: int,
    options: Mapping[str, str | float | bool],
) -> list[PlannedUnit]:
    """Plan records that no unit has yet and no ingest gave, store them, and return all units of their source.

    Args:
        dataset: The dataset.
        source: Source of the records; none that is ingested.
        keys: ``KEY_COLUMNS``, ``split``, ``frame_index`` and ``camera_id`` of each record, and what ``records_of``
            needs of it.
        records_of: Function that returns the records of some rows of ``keys``, as a table with ``RECORD_SCHEMA``.
        most_rows: Most rows of a unit.
        options: Settings of the whole source.

    Raises:
        UsageError: Records are planned with other options, or a frame that is planned in one split is to be planned in
            another, too.

    """
    while True:
        _refuse_other_options(dataset, source, options)
        stones = read_tombstones(dataset.storage, source)
        kept = keys.filter(~pl.Series(stones.strike(keys.select(KEY_COLUMNS).to_arrow())))
        units = stored_units(dataset, source)
        named = ["sequence_id", "frame_index", "camera_id"]
        if files := sorted({unit.plan_file for unit in units}):
            planned = pl.concat(
                pl.DataFrame(dataset.storage.read_parquet(name, ["record_id", "split", *named])) for name in files
            ).select("record_id", *named, before=pl.col("split").cast(pl.String))
            kept = kept.join(planned, on="record_id", how="anti", maintain_order="left")
            moved = kept.join(planned.drop("record_id"), on=named).sort("record_id")
            if not moved.is_empty():
                first = moved.row(0, named=True)
                raise UsageError(
                    f"{len(moved):,} frames of {source} in {dataset.describe()} were of another split, such as "
                    f"{first['record_id']}, which was of {first['before']}",
                    "--dataset NAME makes another dataset",
                )
        parts = list(_cut_into_units(_in_unit_order(kept), most_rows)) if len(kept) else []
        if not parts:
            return units
        tables = (records_of(part).cast(_PLAN_SCHEMA) for part in parts)
        _store_generation(dataset, source, parts, tables, _Generation(0, (), options=dict(options)), stones.digest)


def preview_source(
    dataset: Dataset,
    source: str,
    image_size: int,
    *,
    limit: int | None = None,
    sample: int | None = None,
    has_moved: bool = False,
) -> tuple[list[PlannedUnit], list[pl.DataFrame]]:
    """Return the stored units of a source, and the keys of each unit that ``plan_source`` would add; store nothing."""
    keys = _sorted_keys(dataset.storage, source)
    if limit is not None:
        keys = keys.head(limit)
    if sample is not None and sample < len(keys):
        keys = keys[np.arange(sample) * len(keys) // sample]
    most_rows = unit_rows(image_size, len(keys))
    generations = [_read_generation(dataset, source, name) for name in _generations(dataset, source)]
    units = [unit for generation in generations for unit in generation.units]
    if not has_moved:
        _refuse_other_root(dataset, source, generations)
    planned = _planned_ids(dataset.storage, units)
    if planned is not None:
        keys = keys.join(planned, on="record_id", how="anti", maintain_order="left")
        _refuse_moved(dataset.storage, source, units, keys)
    return units, list(_cut_into_units(keys, most_rows)) if len(keys) else []


def _store_generation(
    dataset: Dataset,
    source: str,
    parts: Sequence[pl.DataFrame],
    records: Iterable[pa.Table],
    made: _Generation,
    tombstones: str,
) -> None:
    """Store units as the next generation of a source's plan; nothing happens where another run is faster.

    The records come first, under a name that no other run writes; the list of units, which names them, is created last.

    Args:
        dataset: The dataset.
        source: Source of the records.
        parts: Keys of each unit.
        records: Records of each unit.
        made: What the generation says beside its units.
        tombstones: Digest of the tombstones that the records honour.

    """
    generation = len(_generations(dataset, source))
    name = dataset.generation_file(source, generation)
    plan_file = dataset.generation_records_file(source, generation, uuid.uuid4().hex[:8])
    units = []
    for ordinal, part in enumerate(parts):
        split: Split = part["split"][0]
        unit_id = f"{source}-{split}-{generation:03d}-{ordinal:06d}"
        units.append(PlannedUnit(unit_id, source, split, len(part), plan_file, ordinal, tombstones))
    _write_records(dataset.storage, records, plan_file)
    made = replace(made, records=sum(map(len, parts)), units=tuple(units))
    stored = dataset.storage.create_bytes(name, made.encoded())
    _remove_unnamed(dataset.storage, name, _parse_generation(dataset.storage, source, name, stored))


def ingest_token(storage: Storage, source: str) -> str:
    """Return a token of a source's last ingest: another ingest has another one."""
    return _token_of(read_ingest_summary(storage, source))


def _token_of(ingest: IngestSummary) -> str:
    return hashlib.sha256("\n".join(ingest.files).encode()).hexdigest()[:16]


def is_of_last_ingest(dataset: Dataset, source: str) -> bool:
    """Return whether all planned records of a source are those of its last ingest."""
    token = ingest_token(dataset.storage, source)
    generations = [_read_generation(dataset, source, name) for name in _generations(dataset, source)]
    return all(generation.ingest == token for generation in generations if generation.units)


def is_of_older_format(dataset: Dataset, source: str) -> bool:
    """Return whether planned records of a source have the whole URIs of format version 1."""
    generations = [_read_generation(dataset, source, name) for name in _generations(dataset, source)]
    return any(generation.units and not generation.root for generation in generations)


def planned_otherwise(dataset: Dataset, source: str) -> list[str]:
    """Return what differs between the options of a source's last ingest and those of its planned records.

    Only options count that make other records of the same images: ``mirrored`` and ``frames_as_video``.

    Returns:
        ``name old -> new`` for each option that differs.

    """
    now = read_ingest_summary(dataset.storage, source).options
    generations = [_read_generation(dataset, source, name) for name in _generations(dataset, source)]
    return [
        f"{name.replace('_', '-')} {before} -> {after}"
        for name in _MAKING_OPTIONS
        for before, after in {
            (generation.options.get(name, "unset"), now.get(name, "unset"))
            for generation in generations
            if generation.units
        }
        if before != after
    ]


def abandon_plan(lease: Lease, source: str) -> None:
    """Take all units of a source back, so that its records are planned anew; their numbers are not used again."""
    for name in _generations(lease.dataset, source):
        generation = _read_generation(lease.dataset, source, name)
        _replace_generation(lease, name, replace(generation, records=0, units=()))


def honours(units: Iterable[PlannedUnit], tombstones: Tombstones) -> bool:
    """Return whether the planned units of a source have no record that its tombstones name."""
    return all(unit.tombstones == tombstones.digest for unit in units)


def strike_plan(lease: Lease, tombstones: Tombstones) -> None:
    """Take the dropped records of a source out of its plan, and remove units that have none left."""
    storage = lease.dataset.storage
    for name in _generations(lease.dataset, tombstones.source):
        generation = _read_generation(lease.dataset, tombstones.source, name)
        units = list(generation.units)
        if all(unit.tombstones == tombstones.digest for unit in units):
            _remove_unnamed(storage, name, generation)  # of a drop that was interrupted
            continue
        kept = {unit.unit_id: ~tombstones.strike(read_unit_keys(storage, unit)) for unit in units}
        if not all(rows.all() for rows in kept.values()):
            plan_file = f"{name.removesuffix('.json')}-{uuid.uuid4().hex[:8]}.parquet"
            units = _copy_units(storage, units, kept, plan_file)
        struck = tuple(replace(unit, tombstones=tombstones.digest) for unit in units)
        records = sum(unit.rows for unit in struck)
        _replace_generation(lease, name, replace(generation, records=records, units=struck))


def _copy_units(
    storage: Storage, units: Sequence[PlannedUnit], kept: Mapping[str, BoolArray], plan_file: str
) -> list[PlannedUnit]:
    """Write the kept records of units to another file, and return the units that have any, as they lie there."""
    left = [unit for unit in units if kept[unit.unit_id].any()]
    with _record_writer(storage, plan_file) as writer:
        for unit in left:
            rows = read_unit_rows(storage, unit).filter(pa.array(kept[unit.unit_id]))
            writer.write_table(rows.cast(_PLAN_SCHEMA), row_group_size=len(rows))  # an older version wrote another
    return [
        replace(unit, rows=int(kept[unit.unit_id].sum()), plan_file=plan_file, row_group=ordinal)
        for ordinal, unit in enumerate(left)
    ]


def _generations(dataset: Dataset, source: str) -> list[str]:
    """Return the files of the generations of a source's plan, in their order.

    Raises:
        StorageError: One of them is gone, or there is a file that is none, as a copy by other software.

    """
    found = dataset.storage.list_files(dataset.plan_folder(source), ".json")
    names = [dataset.generation_file(source, generation) for generation in range(len(found))]
    for name in sorted({*found} - {*names}):
        if not _GENERATION_FILE.search(name):
            raise StorageError(f"{dataset.storage.describe(name)} is no file of a plan", "move it away")
        raise plan_gone(dataset.storage, min({*names} - {*found}))
    return names


def plan_gone(storage: Storage, name: str) -> StorageError:
    """Return the error for a file of a plan that was there: without it, its units look like abandoned ones."""
    return StorageError(f"cannot read {storage.describe(name)}: it is gone", advice(name, gone=True))


def generation_of(unit_id: str) -> int | None:
    """Return the generation of its source's plan that a unit is of; None where its id does not say."""
    found = _UNIT_ID.search(unit_id)
    return int(found[1]) if found else None


def _replace_generation(lease: Lease, name: str, generation: _Generation) -> None:
    """Replace the list of units of a generation, then remove its files of records that the new list does not name."""
    lease.check()
    lease.dataset.storage.write_bytes(name, generation.encoded())
    _remove_unnamed(lease.dataset.storage, name, generation)


def _remove_unnamed(storage: Storage, generation_file: str, generation: _Generation) -> None:
    """Remove files of records of a generation that its list of units does not name."""
    named = {unit.plan_file for unit in generation.units}
    base = generation_file.removesuffix(".json")
    for name in storage.list_files(base.rpartition("/")[0], ".parquet"):
        if name.startswith(f"{base}-") and name not in named:
            storage.remove(name)


def read_unit_keys(storage: Storage, unit: PlannedUnit) -> pa.Table:
    """Return the ``KEY_COLUMNS`` of a unit's records."""
    return read_unit_rows(storage, unit, KEY_COLUMNS)


def read_unit_rows(storage: Storage, unit: PlannedUnit, columns: Sequence[str] = RECORD_SCHEMA.names) -> pa.Table:
    """Return columns of a unit's records.

    Raises:
        StorageError: The file of its records is missing, damaged, or of another plan.

    """
    table = storage.read_parquet(unit.plan_file, columns, unit.row_group)
    if len(table) != unit.rows:
        why = f"unit {unit.unit_id} has {unit.rows} records in the plan and {len(table)} here"
        raise damaged(storage.describe(unit.plan_file), unit.plan_file, why)
    return table


def read_unit(storage: Storage, unit: PlannedUnit, root: str | None = None) -> list[HandRecord | Rejection]:
    """Return the records of a unit, in order of sequence, frame and camera.

    A row that is no valid record, as a damaged file or other software leaves it, becomes a rejection.

    Args:
        storage: The workspace.
        unit: Unit of a plan.
        root: Folder in which the dataset lies now; by default the one that was ingested.

    """
    root = read_ingest_summary(storage, unit.source).root if root is None else root
    return _records_of(read_unit_rows(storage, unit), root, records_folder(unit.source))


def read_previewed(storage: Storage, source: str, keys: pl.DataFrame, root: str | None = None) -> list[HandRecord]:
    """Return the valid records of some keys of ``preview_source``, in their order; ``root`` as in ``read_unit``."""
    root = read_ingest_summary(storage, source).root if root is None else root
    rows = _records_of(next(_gathered(storage, source, [keys])), root, records_folder(source))
    return [row for row in rows if isinstance(row, HandRecord)]


def _records_of(table: pa.Table, root: str, where: str) -> list[HandRecord | Rejection]:
    """Return the records of a table, and a rejection for each row that is none.

    Args:
        table: Rows with the columns of ``RECORD_SCHEMA``, as they are stored.
        root: Folder that their URIs are relative to.
        where: Where the rows are from, for the rejections.

    """
    records: list[HandRecord | Rejection] = []
    for stored in table.to_pylist():
        row = absolute_row(stored, root)
        record_id, image_uri = str(row["record_id"]), str(row["image_uri"])
        try:
            if missing := [field.name for field in RECORD_SCHEMA if not field.nullable and row[field.name] is None]:
                raise _no_record(where, f"it has no {', '.join(missing)}")
            record = record_from_row(row)
            if record.record_id != record_id:
                raise _no_record(where, f"its columns make it {record.record_id}")
            records.append(record)
        except (RecordError, ValidationError) as error:
            records.append(rejection(record_id, image_uri, error, where))
        except (TypeError, ValueError, RecursionError) as error:  # a list with null inside, ``extra`` that is no JSON
            records.append(rejection(record_id, image_uri, _no_record(where, str(error))))
    return records


def _no_record(where: str, why: str) -> RecordError:
    return RecordError(RejectReason.LABEL_CORRUPT, f"{where}: this row is no record: {why}")


def row_group_sizes(records: Sequence[tuple[str, int]]) -> list[int]:
    """Return the rows of each row group for rows given as (sequence_id, frame_index), in order.

    A row group holds at most ``ROW_GROUP_ROWS`` rows and whole frames (all cameras of a moment), so that view pairs
    and short video pairs are read with one request.
    """
    sizes = [0]
    start = 0
    for position in range(1, len(records) + 1):
        if position < len(records) and records[position] == records[position - 1]:
            continue
        frame_rows = position - start
        start = position
        if sizes[-1] and sizes[-1] + frame_rows > ROW_GROUP_ROWS:
            sizes.append(0)
        sizes[-1] += frame_rows
    return [size for size in sizes if size]


def _sorted_keys(storage: Storage, source: str) -> pl.DataFrame:
    """Return the keys of all records that are not dropped, with their camera block, in the order of units.

    Keys that no record can have are replaced, so that their rows are planned as well: annotation rejects them.
    """
    table = read_record_keys(storage, source, [*KEY_COLUMNS, "split", "frame_index", "camera_id"])
    # An ingest or a drop that was interrupted may have left dropped records.
    table = table.filter(pa.array(~read_tombstones(storage, source).strike(table))).drop_columns("subject_id")
    split = pl.col("split").cast(pl.String)
    keys = pl.DataFrame(table).with_columns(
        pl.when(split.is_in(SPLITS)).then(split).otherwise(pl.lit(SPLITS[0])).alias("split"),
        pl.col("sequence_id", "camera_id").fill_null(""),
        pl.col("frame_index").fill_null(0),
    )
    return _in_unit_order(keys)


def _in_unit_order(keys: pl.DataFrame) -> pl.DataFrame:
    """Return keys with their camera ``block``, in the order of units."""
    camera = pl.col("camera_id").rank("dense").over("split", "sequence_id") - 1
    keys = keys.with_columns(block=(camera // CAMERA_BLOCK).cast(pl.Int32))
    return keys.sort("split", "sequence_id", "block", "frame_index", "camera_id", "record_id")


def _planned_ids(storage: Storage, units: Sequence[PlannedUnit]) -> pl.DataFrame | None:
    files = sorted({unit.plan_file for unit in units})
    if not files:
        return None
    return pl.concat(pl.DataFrame(storage.read_parquet(name, ["record_id"])) for name in files)


def _refuse_other_root(dataset: Dataset, source: str, generations: Sequence[_Generation]) -> None:
    """Raise where planned records are of another folder than the last ingest's: equal names may be other images.

    Raises:
        UsageError: They are.

    """
    root = read_ingest_summary(dataset.storage, source).root
    planned = [generation.root for generation in generations if generation.units and generation.root]
    if planned and planned[-1] != root:
        raise UsageError(
            f"{dataset.describe()} holds {source} from {planned[-1]}, its records now are of {root}",
            f"--root {source}={root} says that the dataset has moved there; --overwrite annotates {source} again; "
            "--dataset NAME keeps both",
        )


def _refuse_moved(storage: Storage, source: str, units: Sequence[PlannedUnit], keys: pl.DataFrame) -> None:
    """Raise where images that are planned in one split are to be planned in another, too: a model would see its test.

    Raises:
        UsageError: There are such images; the message names one.

    """
    files = sorted({unit.plan_file for unit in units})
    if keys.is_empty() or not files:
        return
    image, named = ["image_uri", "video_frame"], ["sequence_id", "frame_index", "camera_id"]
    planned = pl.concat(pl.DataFrame(storage.read_parquet(name, [*named, *image, "split"])) for name in files)
    suspects = keys.select("record_id", "split", *named).join(planned.select(named), on=named, how="semi")
    if suspects.is_empty():  # the images' names of millions of records are read in doubt only
        return
    images = pl.DataFrame(read_record_keys(storage, source, ["record_id", *image]))
    suspects = suspects.join(images.unique("record_id"), on="record_id").with_columns(
        pl.col("video_frame").fill_null(-1)
    )
    planned = planned.with_columns(pl.col("video_frame").fill_null(-1), before=pl.col("split").cast(pl.String))
    moved = suspects.join(planned.select(*image, "before"), on=image).filter(pl.col("split") != pl.col("before"))
    if not moved.is_empty():
        first = moved.sort("record_id").row(0, named=True)
        raise UsageError(
            f"{len(moved):,} records of {source} were of another split in an earlier ingest, such as "
            f"{first['record_id']}, which was of {first['before']}",
            f"--overwrite annotates {source} again; or ingest it so that the splits stay as they were",
        )


def _refuse_other_options(dataset: Dataset, source: str, options: Mapping[str, str | float | bool]) -> None:
    """Raise where records of a source are planned with other options.

    Raises:
        UsageError: They are; the message names what differs.

    """
    for name in _generations(dataset, source):
        generation = _read_generation(dataset, source, name)
        before = generation.options
        if generation.units and before != options:
            changes = "; ".join(
                f"{key.replace('_', ' ')} {before.get(key, 'unset')} -> {options.get(key, 'unset')}"
                for key in sorted(before.keys() | options.keys())
                if before.get(key) != options.get(key)
            )
            raise UsageError(
                f"{dataset.describe()} holds {source} made with other settings: {changes}",
                "repeat the earlier ones; --dataset NAME keeps both",
            )


def _cut_into_units(keys: pl.DataFrame, most_rows: int) -> Iterator[pl.DataFrame]:
    """Yield the rows of each unit. Long sequences are cut between frames, short ones are packed."""
    groups = keys.select(split=pl.col("split"), run=pl.struct("split", "sequence_id", "block").rle_id())
    sizes = groups.group_by("run", maintain_order=True).agg(pl.len(), pl.col("split").first())
    start = stop = 0  # the pack under way
    pack_split = None
    for rows, split in sizes.select("len", "split").iter_rows():
        if stop > start and (stop - start + rows > most_rows or split != pack_split):
            yield keys[start:stop]
            start = stop
        pack_split = split
        if rows <= most_rows:
            stop += rows
            continue
        yield from _cut_sequence(keys[start : start + rows], most_rows)
        start = stop = start + rows
    if stop > start:
        yield keys[start:stop]


def _cut_sequence(rows: pl.DataFrame, most_rows: int) -> Iterator[pl.DataFrame]:
    """Yield runs of whole frames of one sequence and camera block, about equally long."""
    most_frames = max(1, most_rows // rows["camera_id"].n_unique())
    frame_rank = rows["frame_index"].rank("dense").cast(pl.Int64) - 1
    frames = int(frame_rank[-1]) + 1
    frames_per_unit = math.ceil(frames / math.ceil(frames / most_frames))
    edges = np.flatnonzero(np.diff((frame_rank // frames_per_unit).to_numpy())) + 1
    for start, stop in pairwise([0, *edges.tolist(), len(rows)]):
        yield rows[start:stop]


@contextmanager
def _record_writer(storage: Storage, name: str) -> Iterator[pq.ParquetWriter]:
    with (
        storage.open_output(name) as stream,
        pq.ParquetWriter(stream, _PLAN_SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield writer


def _write_records(storage: Storage, units: Iterable[pa.Table], name: str) -> None:
    """Write the units' records to one Parquet file, a row group a unit; holds a few row groups at a time."""
    with _record_writer(storage, name) as writer:
        for records in units:
            writer.write_table(records, row_group_size=len(records))


def _gathered(storage: Storage, source: str, parts: Sequence[pl.DataFrame]) -> Iterator[pa.Table]:
    """Yield the records of each part, read from where their keys say."""
    ingest = read_ingest_summary(storage, source)

    @lru_cache(maxsize=64)
    def row_group(file: int, group: int) -> pa.Table:
        name = ingest.files[file]
        table = storage.read_parquet(name, RECORD_SCHEMA.names, group)
        try:
            return with_relative_uris(table, ingest.root).cast(_PLAN_SCHEMA)  # an older version stored whole URIs
        except (pa.ArrowException, ValueError) as error:
            raise damaged(storage.describe(name), name, f"its columns are not those of records: {error}") from None

    for part in parts:
        wanted = part.select("file", "row").with_row_index("order")
        wanted = wanted.with_columns(group=pl.col("row") // RECORD_ROW_GROUP_ROWS)
        tables, order = [], []
        for (file, group), rows in wanted.group_by("file", "group", maintain_order=True):
            offsets = (rows["row"] - int(group) * RECORD_ROW_GROUP_ROWS).to_arrow()
            tables.append(row_group(int(file), int(group)).take(offsets))
            order.append(rows["order"].to_numpy())
        yield pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(order))))
