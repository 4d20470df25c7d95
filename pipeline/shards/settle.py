"""Changing a dataset after annotation: other thresholds, dropped records, a source that is annotated again.

A command first stores what is to hold, in one small file: thresholds in the manifest, a tombstone, an emptied plan.
``settle`` then brings the units into line with it. Whatever was interrupted, the next command that takes the dataset's
lease, ``annotate`` included, settles it first.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO

import numpy as np
import pyarrow as pa

from handdata.adapters.reading.images import read_image_size_from
from handdata.pipeline.quality import JUDGED_COLUMNS, flags_of
from handdata.pipeline.records.stored import drop_records, ingested_sources, read_ingest_summary, struck_rows
from handdata.pipeline.records.tombstones import (
    KEY_COLUMNS,
    DropKind,
    Tombstones,
    dropped_sources,
    is_among,
    named_values,
    names_rejected,
    proposed_tombstones,
    read_tombstones,
    write_tombstones,
)
from handdata.pipeline.settings import FLAG_THRESHOLDS, QualitySettings
from handdata.pipeline.shards.commit import remove_derived, remove_orphans, remove_unit, rewrite_unit, unit_of
from handdata.pipeline.shards.lease import Lease, take_lease
from handdata.pipeline.shards.lost import LostUnit, find_lost
from handdata.pipeline.shards.manifest import read_manifest
from handdata.pipeline.shards.markers import files_of, read_marker, read_markers
from handdata.pipeline.shards.parents import children_tombstones
from handdata.pipeline.shards.plan import (
    PlannedUnit,
    annotated_sources,
    honours,
    planned_sources,
    read_unit_keys,
    stored_units,
    strike_plan,
)
from handdata.pipeline.shards.state import DatasetState, read_state, write_manifest
from handdata.pipeline.storage import Dataset, Storage, list_datasets
from handdata.pipeline.storage.damage import damaged
from handdata.schemas import GENERATED, SAMPLE_SCHEMA, DatasetManifest, UnitMarker, UsageError
from handdata.schemas.arrays import BoolArray
from handdata.schemas.rejection import printable
from handdata.schemas.sample import VERSION_2_COLUMNS

SETTLING_THREADS = 4
"""Units rewritten at once; each takes several times its images in memory, which are up to 128 MiB."""


@dataclass(slots=True)
class Settled:
    """What changed in one dataset.

    Args:
        units: Number of units that were compared.
        rewritten: Number of those that lost rows or got other flags.
        samples: Number of samples that were removed.
        rejected: Number of rejected records that were removed.
        flags_before: Samples per flag in the compared units, before.
        flags_after: Samples per flag in the compared units, now.
        lost: Units that have lost files, and were left as they are.

    """

    units: int = 0
    rewritten: int = 0
    samples: int = 0
    rejected: int = 0
    flags_before: Counter[str] = field(default_factory=Counter)
    flags_after: Counter[str] = field(default_factory=Counter)
    lost: list[LostUnit] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class UnitChange:
    """What a finished unit has to become.

    Args:
        marker: Marker as it is.
        new: Marker as it has to be; None where the unit goes.
        kept_samples: Which of its rows stay.
        kept_rejected: Which of its rejected records stay.
        flags: Flags of the samples that stay; None where they have them already.
        is_older: Whether its samples lack a column of ``SAMPLE_SCHEMA``.

    """

    marker: UnitMarker
    new: UnitMarker | None
    kept_samples: BoolArray
    kept_rejected: BoolArray
    flags: Sequence[tuple[str, ...]] | None
    is_older: bool = False

    @property
    def touches_rows(self) -> bool:
        """Whether a table changes, and not only the marker."""
        return self.touches_samples or not self.kept_rejected.all()

    @property
    def touches_samples(self) -> bool:
        """Whether the table of its samples changes."""
        return self.flags is not None or self.is_older or not self.kept_samples.all()


@dataclass(frozen=True, slots=True)
class DropSummary:
    """What ``drop`` removed, or would remove.

    Args:
        source: Source of the dropped records.
        records: Number of ingested records that were removed.
        rejected: Number of removed records that the ingest had rejected.
        datasets: What changed in each dataset, by name; generated samples go with a parent.
        left: Number of records of the source that stay.
        dropped_before: Whether earlier tombstones name all of it, so that only what they left is removed.

    """

    source: str
    records: int
    rejected: int
    datasets: dict[str, Settled]
    left: int
    dropped_before: bool = False

    @property
    def lost(self) -> dict[str, list[LostUnit]]:
        """Units that have lost files, by dataset: what was dropped may be in what is left of them."""
        lost = {
            name: [unit for unit in settled.lost if unit.marker.source in (self.source, GENERATED)]
            for name, settled in self.datasets.items()
        }
        return {name: units for name, units in lost.items() if units}


@dataclass(frozen=True, slots=True)
class FlagSummary:
    """What ``flag`` changed.

    Args:
        settled: Units and flags that changed.
        changed: New thresholds by name: before and after.
        manifest: Manifest of the dataset now.

    """

    settled: Settled
    changed: dict[str, tuple[float | None, float]]
    manifest: DatasetManifest


def is_settled(state: DatasetState) -> bool:
    """Return whether all units of a dataset are as its plan, its thresholds and the tombstones say."""
    if not all(honours(state.units[source], tombstones) for source, tombstones in state.tombstones.items()):
        return False
    return not any(True for _ in state.unsettled())


def settle(
    lease: Lease,
    state: DatasetState,
    on_unit: Callable[[int, int], None] | None = None,
    *,
    remove_late: bool = False,
) -> tuple[DatasetState, Settled]:
    """Bring all units of a dataset into line with its plan, its thresholds and the tombstones.

    Units that have lost files stay as they are, unless none of their records is planned any more.

    Args:
        lease: Lease of the run on the dataset.
        state: State of the dataset, read under this lease.
        on_unit: Function called with (units done, units to compare).
        remove_late: Whether to take ``late`` lost units back: for a run that annotates them again.

    Returns:
        The state afterwards, and what changed.

    Raises:
        LeaseLostError: Another run has taken the dataset over.
        StorageError: A file cannot be read or written.

    """
    total = Settled()
    lost = {unit.marker.unit_id: unit for unit in find_lost(state) if not (remove_late and unit.late)}
    pending = [unit for unit in _pending(state) if unit.marker.unit_id not in lost]
    made, removed = [], []
    with ThreadPoolExecutor(SETTLING_THREADS) as pool:
        for done, change in enumerate(pool.map(partial(_settle_unit, lease), pending), start=1):
            _add(total, change)
            if change.new is None:
                removed.append(change.marker.unit_id)
            else:
                made.append(change.new)
            if on_unit:
                on_unit(done, len(pending))
    state = state.with_markers(made, removed)
    for source, tombstones in state.tombstones.items():
        if tombstones:
            if not honours(state.units[source], tombstones):
                remove_unfinished(lease, state, source)
            strike_plan(lease, tombstones)
            state = state.with_units(source, stored_units(state.dataset, source))
    for unit_id in lost.keys() - state.planned.keys():
        remove_unit(lease, lost.pop(unit_id).marker)
        state = state.with_markers((), [unit_id])
    total.lost = list(lost.values())
    remove_orphans(lease, state)
    if state.manifest:
        state = write_manifest(lease, state, state.sum_up())
    return state, total


@dataclass(frozen=True, slots=True)
class _Pending:
    """A unit that may have to change, and what it is compared with."""

    dataset: Dataset
    marker: UnitMarker
    unit: PlannedUnit | None
    tombstones: Tombstones
    thresholds: Mapping[str, float]
    image_size: int


def _pending(state: DatasetState) -> Iterator[_Pending]:
    """Yield the finished units that may have to change."""
    units = state.planned
    for marker in state.unsettled():
        image_size = _image_size(state.manifest, marker) if state.manifest else 0
        unit, stones = units.get(marker.unit_id), state.tombstones_of(marker)
        yield _Pending(state.dataset, marker, unit, stones, state.thresholds_of(marker), image_size)


def _image_size(manifest: DatasetManifest, marker: UnitMarker) -> int:
    settings = manifest.annotator_hashes.get(marker.annotator_hash, {}).get("settings")
    size = settings.get("image_size") if isinstance(settings, dict) else None
    return size if isinstance(size, int) else manifest.image_size


def _stored_image_size(storage: Storage, name: str) -> int:
    """Return the side of a shard's crops, pixels, for a dataset whose manifest is gone."""
    image = storage.read_parquet(name, ["image"], row_group=0)["image"][0].as_py()
    return read_image_size_from(BytesIO(image["bytes"]), name)[0]


def _compare(pending: _Pending) -> UnitChange:
    """Return what has to change in a unit; reads small columns only."""
    dataset, marker, unit = pending.dataset, pending.marker, pending.unit
    storage = dataset.storage
    nothing = np.zeros(0, dtype=bool)
    if unit is None or not all(storage.exists(name) for name in files_of(dataset, marker)):
        # Taken back, or committed by a writer that was thought dead after its files were removed.
        return UnitChange(
            marker, None, np.zeros(marker.samples, bool), np.zeros(marker.records - marker.samples, bool), None
        )
    keys = read_unit_keys(storage, unit)
    allowed = keys["record_id"].filter(pa.array(~pending.tombstones.strike(keys))).to_pylist()
    kept_samples = kept_rejected = nothing
    flags: list[tuple[str, ...]] | None = None
    is_older = False
    changes: dict[str, object] = {
        "thresholds": dict(pending.thresholds),
        "tombstones": pending.tombstones.digest,
        "samples": 0,
        "rejected": {},
        "flags": {},
        "bytes": 0,
        "rejected_bytes": 0,
    }
    for name in marker.files:
        rows = storage.read_parquet(dataset.path(name), ["record_id", *JUDGED_COLUMNS], optional=["contrast"])
        is_older = "contrast" not in rows.column_names
        kept_samples = is_among(rows["record_id"], allowed)
        rows = rows.filter(pa.array(kept_samples))
        before = [tuple(names) for names in rows["flags"].to_pylist()]
        after = before
        if pending.thresholds:
            image_size = pending.image_size or _stored_image_size(storage, dataset.path(name))
            after = flags_of(rows, image_size, QualitySettings(**pending.thresholds))
        flags = None if after == before else after
        counts = Counter(flag for names in after for flag in names)
        size = storage.size(dataset.path(name))
        changes |= {"samples": len(rows), "flags": dict(sorted(counts.items())), "bytes": size}
    for name in marker.rejected_files:
        rows = storage.read_parquet(name, ["record_id", "reason"])
        kept_rejected = is_among(rows["record_id"], allowed)
        reasons = Counter(rows.filter(pa.array(kept_rejected))["reason"].to_pylist())
        changes |= {"rejected": dict(sorted(reasons.items())), "rejected_bytes": storage.size(name)}
    new = marker.model_copy(update=changes)
    new = new.model_copy(update={"records": new.samples + sum(new.rejected.values())})
    if new.records != len(allowed):
        name = next(iter(files_of(dataset, marker)), dataset.marker_file(marker.source, marker.unit_id))
        why = f"unit {unit.unit_id} has {new.records:,} of its {len(allowed):,} records"
        raise damaged(storage.describe(name), name, why)
    return UnitChange(marker, new if allowed else None, kept_samples, kept_rejected, flags, is_older)


def _settle_unit(lease: Lease, pending: _Pending) -> UnitChange:
    dataset, marker, storage = pending.dataset, pending.marker, pending.dataset.storage
    change = _compare(pending)
    if change.new is None:
        remove_unit(lease, marker)
        return change
    samples = rejections = None
    if change.touches_samples:
        (name,) = marker.files
        samples = storage.read_parquet(dataset.path(name)).filter(pa.array(change.kept_samples))
        samples = _with_all_columns(samples)
        # The byte ranges of its images will be others.
        samples = samples.replace_schema_metadata(SAMPLE_SCHEMA.metadata)
        if change.flags is not None:
            column = SAMPLE_SCHEMA.field("flags")
            flags = pa.array([list(names) for names in change.flags], column.type)
            samples = samples.set_column(samples.schema.get_field_index("flags"), column, flags)
    if not change.kept_samples.all():
        remove_derived(lease, marker)  # before the rows that they belong to move
    if not change.kept_rejected.all():
        (name,) = marker.rejected_files
        rejections = storage.read_parquet(name).filter(pa.array(change.kept_rejected))
    return replace(change, new=rewrite_unit(lease, change.new, samples, rejections))


def _with_all_columns(samples: pa.Table) -> pa.Table:
    """Return samples of an older version with the columns of their format version that it did not write, null.

    Polars and HF datasets do not open a folder whose files have different columns; all files of a dataset are of one
    format version, but for those of an interrupted ``annotate --overwrite``.
    """
    own = [
        column
        for column in SAMPLE_SCHEMA
        if column.name not in VERSION_2_COLUMNS or column.name in samples.schema.names
    ]
    for place, column in enumerate(own):
        if column.name not in samples.column_names:
            samples = samples.add_column(place, column, pa.nulls(len(samples), column.type))
    return samples


def _add(total: Settled, change: UnitChange) -> None:
    total.units += 1
    total.rewritten += change.touches_rows or change.new is None
    total.samples += int((~change.kept_samples).sum())
    total.rejected += int((~change.kept_rejected).sum())
    total.flags_before.update(change.marker.flags)
    total.flags_after.update(change.new.flags if change.new else {})


def remove_unfinished(lease: Lease, state: DatasetState, source: str) -> None:
    """Remove what killed writers left of a source's unfinished units: it may show what was dropped."""
    dataset, storage = lease.dataset, lease.dataset.storage
    files = storage.list_files(dataset.source_data_folder(source), ".parquet")
    files += storage.list_files(dataset.rejected_folder(source), ".parquet")
    named = {name for marker in state.markers for name in files_of(dataset, marker)}
    unnamed = [name for name in files if name not in named]
    # A late writer may have committed since the state was read: its marker and its files stay together.
    planned = state.planned
    late = [read_marker(dataset, planned[unit]) for unit in {unit_of(name) for name in unnamed} & planned.keys()]
    kept = {name for marker in late if marker for name in files_of(dataset, marker)}
    lease.check()
    for name in unnamed:
        if name not in kept:
            storage.remove(name)


def flag(
    dataset: Dataset,
    thresholds: Mapping[str, float],
    on_unit: Callable[[int, int], None] | None = None,
) -> FlagSummary:
    """Recompute the flags of a dataset for other thresholds, from stored numbers.

    Args:
        dataset: The dataset.
        thresholds: New values by the names of their settings; the others stay.
        on_unit: Function called with (units done, units to compare).

    Raises:
        UsageError: There is no such dataset, or a gate with one of the thresholds rejects records in it.

    """
    manifest = read_manifest(dataset)
    wanted = {**QualitySettings().thresholds(), **manifest.quality, **thresholds}
    changed = {
        name: (manifest.quality.get(name), value)
        for name, value in wanted.items()
        if manifest.quality.get(name) != value
    }
    _require_no_gates(dataset, manifest, changed)
    lease = take_lease(dataset)
    state = read_state(dataset)
    state = write_manifest(lease, state, state.sum_up(quality=wanted))
    state, settled = settle(lease, state, on_unit)
    return FlagSummary(settled, changed, state.manifest or manifest)


def _require_no_gates(dataset: Dataset, manifest: DatasetManifest, changed: Mapping[str, object]) -> None:
    in_use = {marker.annotator_hash for marker in read_markers(dataset)}
    for annotator_hash in sorted(in_use & manifest.annotator_hashes.keys()):
        settings = manifest.annotator_hashes[annotator_hash]["settings"]
        gates = settings.get("gates", {}) if isinstance(settings, dict) else {}
        for gate in gates:
            name = next((name for flag, name in FLAG_THRESHOLDS.items() if flag == gate), None)
            if name in changed:
                raise UsageError(
                    f"{gate} rejects records of {dataset.describe()}, so {name} decides which samples there are",
                    "annotate again with --overwrite, or into another --dataset",
                )


def drop(
    storage: Storage,
    kind: DropKind,
    values: Sequence[str],
    source: str | None,
    *,
    dry_run: bool = False,
    on_unit: Callable[[int, int], None] | None = None,
) -> DropSummary:
    """Remove records for good, from all datasets of a workspace, and leave a tombstone.

    What was generated of them goes, too.

    Args:
        storage: The workspace.
        kind: What ``values`` name.
        values: Ids of sequences, subjects or records; none with kind ``source``.
        source: Source of the ids; None where only one source has them.
        dry_run: Whether to count only.
        on_unit: Function called with (units done, units to compare) for each dataset.

    Raises:
        UsageError: The source, or one of the ids, is nowhere in the workspace; or several sources have them.
        StorageError: A file cannot be read or written.

    """
    source = _source_of(storage, kind, values, source)
    tombstones = proposed_tombstones(storage, source, kind, values)
    dropped_before = tombstones == read_tombstones(storage, source)
    children = children_tombstones(storage, [tombstones])
    if dry_run:
        return replace(_preview(storage, [tombstones, children]), dropped_before=dropped_before)
    write_tombstones(storage, children)  # first: where this ends here, none outlives its parent
    write_tombstones(storage, tombstones)
    children = children_tombstones(storage)  # with those that were planned meanwhile
    write_tombstones(storage, children)
    datasets: dict[str, Settled] = {}
    for dataset in list_datasets(storage):
        if _concerns(dataset, source, children):
            datasets[dataset.name] = Settled()
            state = read_state(dataset)
            if not (is_settled(state) and state.is_summed_up(state.sum_up())):
                lease = take_lease(dataset)
                _, datasets[dataset.name] = settle(lease, read_state(dataset), on_unit)
    records, rejected = drop_records(storage, tombstones)
    left = read_ingest_summary(storage, source).records if source in ingested_sources(storage) else 0
    return DropSummary(source, records, rejected, datasets, left, dropped_before)


def _concerns(dataset: Dataset, source: str, children: Tombstones) -> bool:
    """Return whether a dataset may hold what a drop removes: records of a source, or samples generated of them."""
    there = annotated_sources(dataset)
    return source in there or (bool(children) and GENERATED in there)


def _preview(storage: Storage, proposed: Sequence[Tombstones]) -> DropSummary:
    """Return what a drop would remove by the tombstones of a source, and of what was generated of it."""
    tombstones, children = proposed
    source = tombstones.source
    records = left = rejected = 0
    if source in ingested_sources(storage):
        summary = read_ingest_summary(storage, source)
        gone = struck_rows(storage, summary.files, summary.rejected_files, tombstones)
        records = sum(int(rows.sum()) for rows in gone[0].values())
        rejected = sum(int(rows.sum()) for rows in gone[1].values())
        left = summary.records - records
    datasets: dict[str, Settled] = {}
    for dataset in list_datasets(storage):
        if _concerns(dataset, source, children):
            state = read_state(dataset)
            for stones in proposed:
                state = state.with_tombstones(stones)
            settled = datasets[dataset.name] = Settled(lost=find_lost(state))
            lost = {unit.marker.unit_id for unit in settled.lost}
            for pending in _pending(state):
                if pending.marker.source in (source, GENERATED) and pending.marker.unit_id not in lost:
                    _add(settled, _compare(pending))
    return DropSummary(source, records, rejected, datasets, left)


def _source_of(storage: Storage, kind: DropKind, values: Sequence[str], source: str | None) -> str:
    """Return the one source in which ids occur, or the given one where it has them all.

    Raises:
        UsageError: An id is in no source, or ids are in several.

    """
    where = storage.describe()
    sources = _all_sources(storage)
    if source is not None and source not in sources:
        raise UsageError(f"{where} has no source {source}", f"it has {', '.join(sorted(sources)) or 'none'}")
    possible = [value for value in values if printable(value) == value]  # no table holds what is not Unicode
    known = {name: _known(storage, name, kind, possible) for name in ([source] if source else sorted(sources))}
    found = [name for name in known if source or known[name]]
    if len(found) > 1:
        raise UsageError(f"{kind} {', '.join(values)} occurs in {', '.join(found)}", "say which one with --source")
    unknown = [value for value in values if not found or value not in known[found[0]]]
    if unknown:
        raise UsageError(
            f"no record of {f'{found[0]} in ' if found else ''}{where} has the {kind} {printable(', '.join(unknown))}",
            "check how it is spelled; nothing was dropped",
        )
    return found[0]


def _all_sources(storage: Storage) -> set[str]:
    annotated = (source for dataset in list_datasets(storage) for source in annotated_sources(dataset))
    return {*ingested_sources(storage), *annotated, *dropped_sources(storage)}


def _known(storage: Storage, source: str, kind: DropKind, values: Sequence[str]) -> set[str]:
    """Return which ids a source has, or had before they were dropped."""
    tombstones = read_tombstones(storage, source)
    unknown = set() if tombstones.of_source() else set(values) - set(tombstones.values(kind))
    for keys in _key_tables(storage, source):
        if not unknown:
            break
        unknown -= named_values(keys, kind, unknown)
    if unknown and source in ingested_sources(storage):
        for name in read_ingest_summary(storage, source).rejected_files:
            ids = storage.read_parquet(name, ["record_id"])["record_id"]
            unknown -= {value for value in unknown if names_rejected(source, kind, value, ids)}
    return set(values) - unknown


def _key_tables(storage: Storage, source: str) -> Iterator[pa.Table]:
    """Yield the ``KEY_COLUMNS`` of the ingested and the planned records of a source."""
    for name in read_ingest_summary(storage, source).files if source in ingested_sources(storage) else ():
        yield storage.read_parquet(name, KEY_COLUMNS)
    for dataset in list_datasets(storage):
        for unit in stored_units(dataset, source) if source in planned_sources(dataset) else ():
            yield read_unit_keys(storage, unit)
