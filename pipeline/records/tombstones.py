"""What was dropped from a workspace and must never come back: consent withdrawn, a licence ended.

A tombstone is one small file, ``W/dropped/source=<s>/<when>-<token>.json``. Ingest, planning and annotation skip
whatever it names. To take something back, delete its tombstone and ingest the source again.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.damage import damaged, parse_document
from handdata.pipeline.storage.layout import TOMBSTONES, list_sources, tombstones_folder
from handdata.schemas import SPLITS
from handdata.schemas.arrays import BoolArray

DropKind = Literal["source", "sequence", "subject", "record"]

_COLUMN: Final[dict[DropKind, str]] = {"sequence": "sequence_id", "subject": "subject_id", "record": "record_id"}

KEY_COLUMNS: Final = ("record_id", *(column for column in _COLUMN.values() if column != "record_id"))
"""Columns of records and samples by which tombstones name rows."""


class Tombstone(BaseModel):
    """Records of one source that must not exist any more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    kind: DropKind
    values: tuple[str, ...]
    """Sequence, subject or record ids; none where the whole source is dropped."""
    when: str
    """Time of the command, UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Tombstones:
    """All tombstones of one source."""

    source: str
    entries: tuple[Tombstone, ...]

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def digest(self) -> str:
        """A hash of all of them, empty where there are none: what markers and plans say they have honoured."""
        if not self.entries:
            return ""
        documents = sorted(entry.model_dump_json() for entry in self.entries)
        return hashlib.sha256("\n".join(documents).encode()).hexdigest()[:16]

    def of_source(self) -> Tombstone | None:
        """Return the tombstone of the whole source, None where there is none."""
        return next((entry for entry in self.entries if entry.kind == "source"), None)

    def values(self, kind: DropKind) -> list[str]:
        """Return what tombstones of one kind name."""
        return sorted({value for entry in self.entries if entry.kind == kind for value in entry.values})

    def strike(self, keys: pa.Table) -> BoolArray:
        """Return which rows of a table with ``KEY_COLUMNS`` are dropped."""
        if self.of_source():
            return np.ones(len(keys), dtype=bool)
        dropped = np.zeros(len(keys), dtype=bool)
        for kind, column in _COLUMN.items():
            if values := self.values(kind):
                dropped |= is_among(keys[column], values)
        return dropped

    def strike_rejected(self, record_ids: pa.ChunkedArray, dropped: pa.Table) -> BoolArray:
        """Return which rejected records are dropped; their tables hold ids only.

        Args:
            record_ids: Ids of the rejected records.
            dropped: ``KEY_COLUMNS`` and ``split`` of usable records that are dropped: a rejected record goes as well
                where its sequence shows a dropped subject.

        """
        if self.of_source():
            return np.ones(len(record_ids), dtype=bool)
        struck = is_among(record_ids, self.values("record"))
        sequences = {(split, sequence) for split in SPLITS for sequence in self.values("sequence")}
        subjects = dropped.filter(pa.array(is_among(dropped["subject_id"], self.values("subject"))))
        sequences.update(zip(subjects["split"].to_pylist(), subjects["sequence_id"].to_pylist(), strict=True))
        for split, sequence in sorted(sequences):
            struck |= pc.starts_with(record_ids, f"{self.source}/{split}/{sequence}/").to_numpy(zero_copy_only=False)
        return struck


def is_among(column: pa.ChunkedArray, values: Iterable[str]) -> BoolArray:
    """Return which items of a text column are among some values; null never is."""
    found = pc.is_in(column, value_set=pa.array(list(values), pa.string()))
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=bool) if len(column) else np.zeros(0, dtype=bool)


def named_values(keys: pa.Table, kind: DropKind, values: Iterable[str]) -> set[str]:
    """Return which of some ids a table with ``KEY_COLUMNS`` has."""
    column = keys[_COLUMN[kind]]
    return set(pc.unique(column.filter(pa.array(is_among(column, values)))).to_pylist())


def names_rejected(source: str, kind: DropKind, value: str, record_ids: pa.ChunkedArray) -> bool:
    """Return whether an id is that of a rejected record, or of its sequence; rejected tables hold no subjects."""
    stone = Tombstone(source=source, kind=kind, values=(value,), when="")
    nothing = pa.schema([(column, pa.string()) for column in (*KEY_COLUMNS, "split")]).empty_table()
    return bool(Tombstones(source, (stone,)).strike_rejected(record_ids, nothing).any())


def dropped_sources(storage: Storage) -> list[str]:
    """Return the sources that have tombstones, sorted."""
    return list_sources(storage, TOMBSTONES)


def read_tombstones(storage: Storage, source: str) -> Tombstones:
    """Return all tombstones of a source.

    Raises:
        StorageError: One is damaged: what it named must not come back, so nothing goes on without it.

    """
    names = storage.list_files(tombstones_folder(source), ".json")
    entries = []
    for name, data in zip(names, storage.read_many(names), strict=True):
        where = storage.describe(name)
        entries.append(parse_document(data, Tombstone, where, name))
        if entries[-1].source != source:
            raise damaged(where, name, f"it is of source {entries[-1].source}")
    return Tombstones(source, tuple(entries))


def proposed_tombstones(storage: Storage, source: str, kind: DropKind, values: Iterable[str] = ()) -> Tombstones:
    """Return the tombstones of a source with one more, unless earlier ones already name all of it."""
    before = read_tombstones(storage, source)
    new = sorted(set(values) - set(before.values(kind)))
    if before.of_source() or (kind != "source" and not new):
        return before
    when = datetime.now(UTC).isoformat(timespec="seconds")
    added = Tombstone(source=source, kind=kind, values=tuple(new), when=when)
    return Tombstones(source, (*before.entries, added))


def write_tombstones(storage: Storage, tombstones: Tombstones) -> None:
    """Store the tombstones of a source that are not stored yet."""
    stored = read_tombstones(storage, tombstones.source).entries
    for entry in tombstones.entries:
        if entry not in stored:
            data = entry.model_dump_json(indent=2).encode()
            when = "".join(character for character in entry.when[:19] if character not in ":-")
            name = f"{when}Z-{hashlib.sha256(data).hexdigest()[:8]}.json"
            storage.write_bytes(f"{tombstones_folder(entry.source)}/{name}", data)
