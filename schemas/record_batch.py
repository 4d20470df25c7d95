"""Many records at once, as columns, for sources whose label files hold millions of frames.

One ``HandRecord`` costs more than a hundred microseconds from its fields to its row of a table. A ``RecordBatch`` holds
what ``HandRecord`` holds, a column a field, and is checked and turned into a table by whole columns. A row that the
column checks do not pass goes to ``HandRecord``, which accepts it or says what is wrong. Both ways therefore accept the
same rows, make the same table and give the same reasons.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_args

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Gt, MinLen
from numpy.typing import NDArray
from pydantic import ValidationError

from handdata.schemas import (
    KEYPOINT_COUNT,
    KEYPOINTS_PER_HAND,
    RECORD_SCHEMA,
    HandRecord,
    HandState,
    RecordError,
    Rejection,
    record_name,
    records_to_table,
)
from handdata.schemas.arrays import MOST_M, MOST_PX, BoolArray, is_intrinsics, is_rigid
from handdata.schemas.record import is_encodable_json, stored_extra
from handdata.schemas.rejection import rejection

Item = TypeVar("Item")
BATCH_ROWS: Final = 1024
"""Enough that the cost of a batch is shared by many, and few enough that its arrays stay in the processor's cache."""

Column = Sequence[Any] | NDArray[Any]

_Read = Callable[[Column, BoolArray], tuple[pa.Array, BoolArray]]
"""Takes a column and ``keypoints_valid``; returns the Arrow column, and which rows ``HandRecord`` would accept.

It raises one of ``_NOT_CONVERTIBLE`` where some row cannot be converted at all.
"""

_NOT_CONVERTIBLE = (ValueError, TypeError, OverflowError)
"""What Arrow and numpy raise; Arrow's own errors are subclasses."""


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutive frames of one partition, and the rejections among them.

    Args:
        shared: Fields of ``HandRecord`` that are the same in all rows; ``source`` and ``split`` are among them.
        columns: One value a row for each other field: a sequence, or an array whose first axis is the rows.
            ``keypoints_valid`` (N, 42), ``keypoints_2d`` (N, 42, 2) and ``hand_state`` (N, 2; see
            ``hand_states_of_rows``) are always among them. Fields with few possible words are shared ones.
        places: Place of each row's label, for the detail of a rejection.
        rejections: Rejections by the adapter itself, each with the number of rows before it, in this order.

    """

    shared: Mapping[str, Any]
    columns: Mapping[str, Column]
    places: Sequence[str]
    rejections: Sequence[tuple[int, Rejection]] = ()

    def __post_init__(self) -> None:
        unknown = self.columns.keys() - _READERS.keys() - {"attributes"}
        if unknown:
            raise ValueError(f"not columns of a batch: {sorted(unknown)}; share them, or yield HandRecord one by one")
        lengths = {name: len(column) for name, column in self.columns.items()}
        if set(lengths.values()) - {len(self.places)}:
            raise ValueError(f"expected {len(self.places)} rows in each column, got {lengths}")

    def rows(self) -> Iterator[HandRecord | Rejection]:
        """Yield each frame through ``HandRecord``, in order."""
        rejections = iter(self.rejections)
        before, found = next(rejections, (len(self.places), None))
        for row in range(len(self.places) + 1):
            while found is not None and before == row:
                yield found
                before, found = next(rejections, (0, None))
            if row < len(self.places):
                yield self._row(row)

    def read(self) -> tuple[pa.Table, list[tuple[int, Rejection]]]:
        """Return the table of the usable rows, and all rejections with the number of those rows before each."""
        first = self._row(0) if self.places else None
        if isinstance(first, HandRecord):
            try:
                table, fits = self._read_columns(first)
            except _NOT_CONVERTIBLE:
                pass
            else:
                return self._replace_misfits(table, fits)
        # What all rows share is wrong, or a column holds what no column can.
        return self._replace_misfits(RECORD_SCHEMA.empty_table(), np.zeros(len(self.places), dtype=np.bool_))

    def _row(self, row: int) -> HandRecord | Rejection:
        fields = {**self.shared, **{name: _plain(column[row]) for name, column in self.columns.items()}}
        try:
            return HandRecord(**fields)
        except ValidationError as error:
            frame = fields.get("frame_index")
            name = record_name(
                fields["source"],
                fields["split"],
                str(fields["sequence_id"]),
                frame if isinstance(frame, int) else 0,
                str(fields.get("camera_id", "0")),
            )
            return rejection(name, str(fields["image_uri"]), error, self.places[row])

    def _read_columns(self, first: HandRecord) -> tuple[pa.Table, BoolArray]:
        """Return all rows as a table, and which of them fit; ``first`` says what the rows share."""
        count = len(self.places)
        repeated = records_to_table([first]).take(np.zeros(count, dtype=np.int64))
        valid = np.asarray(self.columns["keypoints_valid"])
        if valid.dtype != np.bool_:  # one by one: what is 0 or 1 passes
            raise TypeError(f"keypoints_valid: expected booleans, got {valid.dtype}")
        columns = {name: repeated.column(name).combine_chunks() for name in RECORD_SCHEMA.names}
        fits = np.ones(count, dtype=np.bool_)
        for name, column in self._stored_columns().items():
            columns[name], fit = _READERS[name](column, valid)
            fits &= fit
        names = (columns[name].to_pylist() for name in ("sequence_id", "frame_index", "camera_id"))
        ids = [
            record_name(first.source, first.split, sequence_id, frame_index or 0, camera_id)
            for sequence_id, frame_index, camera_id in zip(*names, strict=True)
        ]
        columns["record_id"] = pa.array(ids, pa.string())
        # Rows that do not fit may hold nulls here; they are replaced before anyone reads the table.
        return pa.Table.from_arrays(list(columns.values()), schema=RECORD_SCHEMA), fits

    def _stored_columns(self) -> Mapping[str, Column]:
        """Return the columns as they are stored, with the attributes inside ``extra``."""
        if "attributes" not in self.columns and not ("extra" in self.columns and self.shared.get("attributes")):
            return self.columns
        names = ("extra", "attributes")
        extra, attributes = (self.columns.get(name, [self.shared.get(name)] * len(self.places)) for name in names)
        merged = [stored_extra(*both) for both in zip(extra, attributes, strict=True)]
        return {name: column for name, column in self.columns.items() if name not in names} | {"extra": merged}

    def _replace_misfits(self, table: pa.Table, fits: BoolArray) -> tuple[pa.Table, list[tuple[int, Rejection]]]:
        """Give the rows that do not fit, which may be all rows, to ``HandRecord``."""
        misfits = np.flatnonzero(~fits).tolist()
        if not misfits:
            return table, list(self.rejections)
        pieces, rejections, start = [RECORD_SCHEMA.empty_table()], list(self.rejections), 0
        lost = []
        for row in misfits:
            if row > start:
                pieces.append(table.slice(start, row - start))
            start = row + 1
            found = self._row(row)
            if isinstance(found, HandRecord):
                pieces.append(records_to_table([found]))
            else:
                rejections.append((row, found))
                lost.append(row)
        if start < len(self.places):
            pieces.append(table.slice(start))
        rejections.sort(key=lambda place: place[0])  # stable: what the adapter rejected before a row stays before it
        return pa.concat_tables(pieces), [(row - int(np.searchsorted(lost, row)), found) for row, found in rejections]


def _plain(value: Any) -> Any:
    """Return one row of a column as ``HandRecord`` takes it: numpy's numbers and texts become Python's."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.dtype.kind == "U"):
        return value.tolist()
    return value


def gather(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield the items as lists of the size of a batch.

    Raises:
        RecordError: The error of ``items``, after the items before it.

    """
    some: list[Item] = []
    try:
        for item in items:
            some.append(item)
            if len(some) == BATCH_ROWS:
                yield some
                some = []
    except RecordError:
        if some:
            yield some
        raise
    if some:
        yield some


def hand_states_of_rows(valid: BoolArray, otherwise: HandState) -> NDArray[np.str_]:
    """Return (N, 2) what ``hand_states`` returns for each row of (N, 42) ``valid``."""
    return np.where(np.logical_or.reduceat(valid, (0, KEYPOINTS_PER_HAND), axis=1), "labelled", otherwise)


# ---------------------------------------------------------------------------------------------------- columns


def _read_plain(field: pa.Field) -> _Read:
    """Make a reader of numbers or texts."""
    least = _least(field.name)

    def read(column: Column, valid: BoolArray) -> tuple[pa.Array, BoolArray]:
        # Given its type, Arrow silently cuts 1.5 to 1; a cast raises an error.
        if not isinstance(column, np.ndarray) and bool in set(map(type, column)):  # Arrow takes True for 1.0
            raise TypeError(f"{field.name}: expected {field.type}, got a boolean")
        found = pa.array(column)
        if not pa.types.is_string(field.type) and (pa.types.is_boolean(found.type) or pa.types.is_string(found.type)):
            raise TypeError(f"{field.name}: expected numbers, got {found.type}")
        values = found.cast(field.type)
        fits = np.ones(len(values), dtype=np.bool_)
        if pa.types.is_floating(field.type):
            fits &= np.isfinite(np.asarray(values.fill_null(0)))
        if values.null_count and not field.nullable:
            fits &= ~np.asarray(values.is_null())
        if least is not None and pa.types.is_string(field.type):
            fits &= np.diff(np.frombuffer(values.buffers()[1], np.int32, len(values) + 1)) >= least
        elif least is not None:
            fits &= np.asarray(values.fill_null(least)) >= least
        return values, fits

    return read


def _least(name: str) -> int | None:
    """Return the smallest number, or the length of the shortest text, that a field of ``HandRecord`` takes."""
    for bound in HandRecord.model_fields[name].metadata:
        match bound:
            case Ge(ge=int(least)) | MinLen(min_length=least):
                return least
            case Gt(gt=int(below)):
                return below + 1
    return None


def _read_numbers(field: pa.Field) -> _Read:
    """Make a reader of arrays of finite numbers; joints that are not valid become 0."""
    size = field.type.list_size
    of_joints = field.name in _MOST
    most = _MOST.get(field.name, _LARGEST)

    def read(column: Column, valid: BoolArray) -> tuple[pa.Array, BoolArray]:
        found = np.asarray(column)
        if found.dtype.kind not in "iuf":
            raise TypeError(f"{field.name}: expected numbers, got {found.dtype}")
        with np.errstate(over="ignore"):  # infinity then is what does not fit
            values = np.array(found, dtype=np.float32, order="C")
        if values.size != len(values) * size:
            raise ValueError(f"{field.name}: expected {size} numbers a row, got shape {values.shape}")
        if of_joints:
            values.reshape(len(values), KEYPOINT_COUNT, -1)[~valid] = 0
        flat = values.reshape(-1)
        column_values = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type)
        fits = (np.abs(flat.reshape(-1, size)) <= most).all(axis=1)  # not of NaN
        if field.name == "camera_k":
            fits &= is_intrinsics(values.reshape(-1, 3, 3))
        elif field.name == "camera_t_world":
            fits &= is_rigid(values.reshape(-1, 4, 4))
        return column_values, np.asarray(fits)

    return read


def _read_keypoints_valid(field: pa.Field) -> _Read:
    def read(column: Column, valid: BoolArray) -> tuple[pa.Array, BoolArray]:
        if valid.shape[1:] != (KEYPOINT_COUNT,):
            raise ValueError(f"{field.name}: expected (N, {KEYPOINT_COUNT}), got {valid.shape}")
        values = pa.FixedSizeListArray.from_arrays(pa.array(valid.reshape(-1)), type=field.type)
        return values, np.ones(len(valid), np.bool_)

    return read


def _read_hand_state(field: pa.Field) -> _Read:
    def read(column: Column, valid: BoolArray) -> tuple[pa.Array, BoolArray]:
        states = np.asarray(column, dtype=np.str_)
        if states.shape != (len(valid), 2):
            raise ValueError(f"{field.name}: expected ({len(valid)}, 2), got {states.shape}")
        labelled = np.logical_or.reduceat(valid, (0, KEYPOINTS_PER_HAND), axis=1)
        fits = (np.isin(states, _HAND_STATES) & ((states == "labelled") == labelled)).all(axis=1)
        offsets = pa.array(np.arange(0, 2 * len(states) + 1, 2, dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(states.reshape(-1).tolist(), field.type.value_type)), fits

    return read


def _read_extra(field: pa.Field) -> _Read:
    def read(column: Column, valid: BoolArray) -> tuple[pa.Array, BoolArray]:
        fits = np.array([value is None or _is_extra(value) for value in column], dtype=np.bool_)
        texts = [None if value is None else _to_json(value) for value in column]
        fits &= np.array([text is None or is_encodable_json(text) for text in texts], dtype=np.bool_)
        return pa.array(texts, field.type), fits

    return read


def _is_extra(value: Any) -> bool:
    attributes = value.get("attributes", {}) if type(value) is dict else None
    if type(attributes) is not dict:
        return False
    return set(map(type, (*value, *attributes, *attributes.values()))) <= {str}


_MOST: Final = {"keypoints_2d": MOST_PX, "keypoints_3d": MOST_M}
_LARGEST: Final = float(np.finfo(np.float32).max)
_HAND_STATES: Final = get_args(HandState)
_to_json = json.JSONEncoder(sort_keys=True).encode

_SHARED_ONLY: Final = {"source", "split", "viewpoint", "camera_model", "camera_dist", "has_mask", "mask_extent"}
"""Fields that all rows of a batch share: they have few values."""

_SPECIAL: Final = {
    "keypoints_valid": _read_keypoints_valid,
    "hand_state": _read_hand_state,
    "extra": _read_extra,
}


def _reader(name: str) -> _Read:
    field = RECORD_SCHEMA.field(name)
    if name in _SPECIAL:
        return _SPECIAL[name](field)
    return _read_numbers(field) if pa.types.is_fixed_size_list(field.type) else _read_plain(field)


_READERS: Final = {
    name: _reader(name) for name in HandRecord.model_fields if name in RECORD_SCHEMA.names and name not in _SHARED_ONLY
}
"""Readers of the fields that a batch may hold as columns."""
