"""Generated samples and their parents: the reference that gave the looks, and the target that gave the pose.

A planned record of the source ``generated`` names its two parents in ``extra``, with all by which tombstones name rows.
So a drop finds the children of what it drops in any dataset of the workspace, drawn or still to be drawn.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import pyarrow as pa

from handdata.pipeline.records.tombstones import (
    KEY_COLUMNS,
    Tombstones,
    dropped_sources,
    proposed_tombstones,
    read_tombstones,
)
from handdata.pipeline.shards.plan import planned_sources, read_unit_rows, stored_units
from handdata.pipeline.storage import Storage, list_datasets
from handdata.schemas import GENERATED, HandRecord

Role = Literal["reference", "target"]
ROLES: Final[tuple[Role, ...]] = ("reference", "target")

_PARENTS: Final = "parents"
"""Key of ``extra`` in records of generated samples."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A sample that a generated one is made of, and where it lay when the other was planned.

    Args:
        dataset: Dataset of the workspace that holds it.
        shard: File of its unit, relative to the workspace.
        sample_id: Its name.
        record_id: Record that it was made of.
        source: Source of that record.
        sequence_id: Sequence of that record.
        subject_id: Person of that record, where known.

    """

    dataset: str
    shard: str
    sample_id: str
    record_id: str
    source: str
    sequence_id: str
    subject_id: str | None


def parents_as_extra(parents: Mapping[Role, Parent]) -> dict[str, Any]:
    """Return what ``extra`` of a generated sample's record holds."""
    return {_PARENTS: {role: asdict(parents[role]) for role in ROLES}}


def parents_of(record: HandRecord) -> dict[Role, Parent]:
    """Return the parents of a generated sample's record."""
    return _parents(record.extra or {})


def _parents(extra: Mapping[str, Any]) -> dict[Role, Parent]:
    return {role: Parent(**extra[_PARENTS][role]) for role in ROLES}


def children_tombstones(storage: Storage, tombstones: Sequence[Tombstones] = ()) -> Tombstones:
    """Return the tombstones of generated samples, with those added whose parents are dropped.

    Args:
        storage: The workspace.
        tombstones: Tombstones that are not stored yet.

    """
    dropped = {source: read_tombstones(storage, source) for source in dropped_sources(storage)}
    dropped |= {stones.source: stones for stones in tombstones}
    made = dropped.pop(GENERATED, Tombstones(GENERATED, ()))
    if not (dropped or made):
        return made
    parents = list(_planned_parents(storage))
    while True:  # what was generated may have children of its own
        struck = _with_struck_parent(parents, {**dropped, GENERATED: made})
        earlier = {value for entry in made.entries for value in entry.values}
        if made.of_source() or struck <= earlier:
            return made
        made = proposed_tombstones(storage, GENERATED, "record", struck | set(made.values("record")))


def _planned_parents(storage: Storage) -> Iterable[tuple[str, Parent]]:
    """Yield each planned generated record's id with each of its parents."""
    for dataset in list_datasets(storage):
        for unit in stored_units(dataset, GENERATED) if GENERATED in planned_sources(dataset) else ():
            for row in read_unit_rows(storage, unit, ("record_id", "extra")).to_pylist():
                for parent in _parents(json.loads(row["extra"])).values():
                    yield row["record_id"], parent


def _with_struck_parent(parents: Sequence[tuple[str, Parent]], dropped: Mapping[str, Tombstones]) -> set[str]:
    struck: set[str] = set()
    for source, stones in dropped.items():
        own = [(child, parent) for child, parent in parents if parent.source == source]
        keys = pa.table(
            {name: pa.array([getattr(parent, name) for _, parent in own], pa.string()) for name in KEY_COLUMNS}
        )
        struck |= {child for (child, _), gone in zip(own, stones.strike(keys), strict=True) if gone}
    return struck
