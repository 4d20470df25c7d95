"""The state of a dataset: its plan, its markers, its manifest and the tombstones of its sources, read together.

On an object store a reading of all markers is a request a unit. A command therefore reads the state before it takes the
lease, to see whether there is anything to do, once more when it has the lease, and follows its own changes from there.

Why the second reading is enough: once the lease is taken, nobody else commits, rewrites or removes a unit, with one
exception: a writer of an earlier run that passed its last check of the lease a moment before. What such a writer does
to a unit after the reading is safe whether or not the holder of the lease sees it:

- The unit is one that the holder processes: markers are created, never overwritten, so that the holder's worker
  receives the marker that counts, whoever made it, and so does the state.
- The unit is planned, but of a source that the holder does not process: the state counts it as unfinished, so that its
  files are no orphans. The manifest lacks it until the next run, which sees that the markers sum up to another one.
- The unit is not planned any more (dropped, or to be annotated again): the next command finds the dataset unsettled and
  removes the marker, as it would if the writer were later still.
- The unit is rewritten late: the holder makes the same of it, by the same tombstones and thresholds, or the next
  command finds it unsettled. One case is not covered, here or before: a request that writes a shard and takes longer
  than all that its successor does to the unit can bring the former rows back under the new marker.

Where files of unfinished units are removed (``settle.remove_unfinished``), the markers of just those units are read
again, so that a marker and its files stay together. The plans are read again before the last manifest is written, since
planning takes no lease.

Readers of samples read the markers themselves (``list_shards``): they see each unit once at any time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from handdata.pipeline.records.tombstones import Tombstones, read_tombstones
from handdata.pipeline.settings import QualitySettings
from handdata.pipeline.shards.lease import Lease
from handdata.pipeline.shards.manifest import encode_manifest, find_manifest, sum_manifest
from handdata.pipeline.shards.markers import read_markers
from handdata.pipeline.shards.plan import PlannedUnit, generation_of, plan_gone, planned_sources, stored_units
from handdata.pipeline.storage import Dataset
from handdata.pipeline.storage.damage import damaged
from handdata.schemas import DatasetManifest, UnitMarker


@dataclass(frozen=True, slots=True)
class DatasetState:
    """What a dataset was when it was read, with the changes that its reader has made since.

    Args:
        dataset: The dataset.
        units: Planned units by source, in the order of their generations.
        tombstones: Tombstones of the planned sources.
        manifest: The manifest; None before the first run has written it.
        markers: Markers of the finished units, in the order of their files.

    """

    dataset: Dataset
    units: Mapping[str, tuple[PlannedUnit, ...]]
    tombstones: Mapping[str, Tombstones]
    manifest: DatasetManifest | None
    markers: tuple[UnitMarker, ...]

    @property
    def finished(self) -> set[str]:
        """Ids of the finished units."""
        return {marker.unit_id for marker in self.markers}

    @property
    def planned(self) -> dict[str, PlannedUnit]:
        """Planned units of all sources by their ids."""
        return {unit.unit_id: unit for units in self.units.values() for unit in units}

    def to_do(self, sources: Iterable[str]) -> list[PlannedUnit]:
        """Return the planned units of some sources that are not finished."""
        finished = self.finished
        return [unit for source in sources for unit in self.units.get(source, ()) if unit.unit_id not in finished]

    def thresholds_of(self, marker: UnitMarker) -> Mapping[str, float]:
        """Return the thresholds by which the samples of a unit are to be flagged."""
        return self.manifest.quality if self.manifest and self.manifest.quality else marker.thresholds

    def tombstones_of(self, marker: UnitMarker) -> Tombstones:
        """Return the tombstones that the rows of a unit are to honour."""
        return self.tombstones.get(marker.source) or Tombstones(marker.source, ())

    def unsettled(self) -> Iterator[UnitMarker]:
        """Yield the markers that do not say that their units follow plan, thresholds and tombstones."""
        planned = self.planned
        for marker in self.markers:
            settled = marker.tombstones == self.tombstones_of(marker).digest
            if not (settled and marker.unit_id in planned and marker.thresholds == self.thresholds_of(marker)):
                yield marker

    def with_units(self, source: str, units: Iterable[PlannedUnit]) -> "DatasetState":
        """Return the state with another plan of a source."""
        return replace(self, units={**self.units, source: tuple(units)})

    def with_tombstones(self, tombstones: Tombstones) -> "DatasetState":
        """Return the state with other tombstones of a source."""
        return replace(self, tombstones={**self.tombstones, tombstones.source: tombstones})

    def with_markers(self, made: Iterable[UnitMarker], removed: Iterable[str] = ()) -> "DatasetState":
        """Return the state with some markers new or replaced, and those of some units removed."""
        markers = {marker.unit_id: marker for marker in (*self.markers, *made)}
        for unit_id in removed:
            markers.pop(unit_id, None)

        def file_of(marker: UnitMarker) -> str:
            return self.dataset.marker_file(marker.source, marker.unit_id)

        return replace(self, markers=tuple(sorted(markers.values(), key=file_of)))

    def sum_up(
        self,
        *,
        image_size: int | None = None,
        annotators: Mapping[str, dict[str, object]] | None = None,
        licenses: Mapping[str, str] | None = None,
        license_ids: Mapping[str, str] | None = None,
        roots: Mapping[str, str] | None = None,
        warnings: Mapping[str, Sequence[str]] | None = None,
        quality: Mapping[str, float] | None = None,
    ) -> DatasetManifest:
        """Return the manifest that this state should have; ``sum_manifest`` describes the arguments."""
        return sum_manifest(
            self.manifest,
            self.markers,
            sum(map(len, self.units.values())),
            image_size=image_size,
            annotators=annotators,
            licenses=licenses,
            license_ids=license_ids,
            roots=roots,
            warnings=warnings,
            quality=quality,
        )

    def is_summed_up(self, manifest: DatasetManifest) -> bool:
        """Return whether the manifest says the same as this one; which version of handdata wrote it does not count."""
        if self.manifest is None:
            return False
        version = {"handdata_version": self.manifest.handdata_version}
        return encode_manifest(self.manifest) == encode_manifest(manifest.model_copy(update=version))

    def with_stored_plans(self) -> "DatasetState":
        """Return the state with the plans as they are stored now: planning takes no lease, and others may plan, too."""
        stored = {source: tuple(stored_units(self.dataset, source)) for source in planned_sources(self.dataset)}
        return replace(self, units=stored)


def read_state(dataset: Dataset) -> DatasetState:
    """Read the state of a dataset; it is empty where there is none.

    Raises:
        StorageError: A file of it is damaged, or the plan of finished units is gone.

    """
    manifest = find_manifest(dataset)
    sources = planned_sources(dataset)
    state = DatasetState(
        dataset=dataset,
        units={source: tuple(stored_units(dataset, source)) for source in sources},
        tombstones={source: read_tombstones(dataset.storage, source) for source in sources},
        manifest=manifest,
        markers=tuple(read_markers(dataset)),
    )
    if manifest:
        _require_thresholds(dataset, dataset.manifest_file, manifest.quality)
    for marker in state.markers:
        _require_thresholds(dataset, dataset.marker_file(marker.source, marker.unit_id), marker.thresholds)
    _require_plans(state)
    return state


def _require_thresholds(dataset: Dataset, name: str, thresholds: Mapping[str, float]) -> None:
    """Check that the thresholds in a file are some that the settings can have.

    Raises:
        StorageError: They are not, so that the file is damaged.

    """
    try:
        QualitySettings.model_validate(thresholds)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise damaged(dataset.storage.describe(name), name, why) from None


def _require_plans(state: DatasetState) -> None:
    """Check that the plan of each finished unit is there: what no plan names any more is removed.

    Plans that were abandoned, or whose records were dropped, keep their files.

    Raises:
        StorageError: A file of a plan is gone.

    """
    dataset, planned = state.dataset, state.planned
    unplanned = {(marker.source, marker.unit_id) for marker in state.markers if marker.unit_id not in planned}
    generations = {(source, generation_of(unit_id)) for source, unit_id in unplanned}
    for source, generation in sorted((source, number) for source, number in generations if number is not None):
        name = dataset.generation_file(source, generation)
        if not dataset.storage.exists(name):
            raise plan_gone(dataset.storage, name)


def write_manifest(lease: Lease, state: DatasetState, manifest: DatasetManifest) -> DatasetState:
    """Store a manifest unless the stored one says the same, and return the state with it.

    The stored one is read again: a run that has just lost the lease may have written it.

    Raises:
        LeaseLostError: Another run has taken the dataset over.

    """
    dataset = lease.dataset
    if not replace(state, manifest=find_manifest(dataset)).is_summed_up(manifest):
        lease.check()
        dataset.storage.write_bytes(dataset.manifest_file, encode_manifest(manifest))
    return replace(state, manifest=manifest)
