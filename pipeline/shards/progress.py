"""How far a dataset is: from its plan and its markers alone, so that any machine that sees the workspace can ask.

Rates come from the times at which the storage saw the markers; nothing else records when a unit was finished.
"""

import time
from dataclasses import dataclass

from handdata.pipeline.shards.lost import LostUnit, confirmed_lost
from handdata.pipeline.shards.state import read_state
from handdata.pipeline.storage import Dataset
from handdata.schemas import Split, SplitCounts, UsageError

RATE_WINDOW_S = 600.0
"""The rate is that of the units of this long before the last one was finished."""


@dataclass(frozen=True, slots=True)
class SplitProgress:
    """One split of one source.

    Args:
        planned_records: Number of records in all its units.
        planned_units: Number of units planned so far.
        done: What the finished units hold.

    """

    planned_records: int
    planned_units: int
    done: SplitCounts


@dataclass(frozen=True, slots=True)
class DatasetProgress:
    """How far a dataset is.

    Args:
        splits: Progress by source and split, sorted.
        records_to_do: Number of records of the units that are not finished.
        records_per_s: Rate of the last ten minutes in which units were finished; None where none was.
        last_unit_age_s: Age of the last finished unit, by this machine's clock; None before the first.
        lost: Finished units that have lost files; they count as not finished.

    """

    splits: dict[tuple[str, Split], SplitProgress]
    records_to_do: int
    records_per_s: float | None
    last_unit_age_s: float | None
    lost: tuple[LostUnit, ...] = ()

    @property
    def total(self) -> SplitCounts:
        """The finished units of all sources."""
        total = SplitCounts()
        for progress in self.splits.values():
            total.units += progress.done.units
            total.records += progress.done.records
            total.samples += progress.done.samples
            total.rejected += progress.done.rejected
            total.flags += progress.done.flags
            total.bytes += progress.done.bytes
        return total

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at that rate; None where there is no rate."""
        return self.records_to_do / self.records_per_s if self.records_per_s else None


def dataset_progress(dataset: Dataset) -> DatasetProgress:
    """Return how far a dataset is, running or finished.

    Raises:
        UsageError: The workspace has no such dataset.
        StorageError: A file of the dataset is damaged.

    """
    state = read_state(dataset)
    units = [unit for of_source in state.units.values() for unit in of_source]
    if not units:
        raise UsageError(f"{dataset.describe()} is no annotated dataset", "run `handdata annotate` first")
    times = dataset.storage.modified_times(dataset.markers_folder, ".json")
    lost = confirmed_lost(state)
    markers = state.with_markers((), [unit.marker.unit_id for unit in lost]).markers
    finished = {marker.unit_id for marker in markers}
    counts = {(unit.source, unit.split): SplitCounts() for unit in units}
    for marker in markers:
        counts.setdefault((marker.source, marker.split), SplitCounts()).add(marker)
    splits = {}
    for source, split in sorted(counts):
        own = [unit for unit in units if (unit.source, unit.split) == (source, split)]
        splits[source, split] = SplitProgress(sum(unit.rows for unit in own), len(own), counts[source, split])
    rate = age = None
    if times:
        last = max(times.values())
        age = max(0.0, time.time() - last)
        # A run writes into the plan's folder when it starts.
        started = max(dataset.storage.modified_times(dataset.plans_folder, ".json").values())
        start = max(last - RATE_WINDOW_S, min(started, last))
        names = {dataset.marker_file(marker.source, marker.unit_id): marker for marker in markers}
        recent = sum(marker.records for name, marker in names.items() if times.get(name, 0) > start)
        rate = recent / (last - start) if recent else None
    return DatasetProgress(
        splits=splits,
        records_to_do=sum(unit.rows for unit in units if unit.unit_id not in finished),
        records_per_s=rate,
        last_unit_age_s=age,
        lost=tuple(lost),
    )
