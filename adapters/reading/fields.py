"""Fields of label files that hold numbers or flags: what only looks like one is rejected, by all sources alike."""

import reprlib
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from handdata.schemas.arrays import BoolArray
from handdata.schemas.errors import RecordError, RejectReason

_FLAG_TYPES: Final = frozenset({bool, int, float})
_FLAGS: Final = frozenset({0, 1})


def label_numbers(where: Path | str, name: str, values: object) -> NDArray[np.float64]:
    """Return the numbers of a list, or of lists of one length, as they stand in a JSON file.

    (``number_array`` is for pickles too, whose lists may be larger than they look; it takes seven times as long.)

    Args:
        where: Place of the label, for the detail.
        name: Name of the field, for the detail.
        values: Content of the field; numbers in texts, booleans and nothing (``null``) are no numbers.

    Raises:
        RecordError: ``label_corrupt``.

    """
    try:
        array = np.array(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {name}: {error}") from None
    if not array.size and isinstance(values, list):
        return np.zeros(array.shape)
    if array.dtype.kind not in "iuf" or _holds_boolean(values):
        detail = f"{where}: {name} should hold numbers, holds {_kind(array)}"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    return array.astype(np.float64)


def label_flags(where: Path | str, name: str, values: Any, count: int) -> BoolArray:
    """Return validity: ``count`` booleans, or numbers that are 0 or 1, each alone or in a list of one.

    Raises:
        RecordError: ``label_corrupt``: there are others, among them 0.5, 2, NaN, texts and nothing (``null``).

    """
    listed: Any
    if isinstance(values, np.ndarray):
        listed, fits = values.ravel().tolist(), values.shape in ((count,), (count, 1))
    else:
        listed = _unpacked(values) if isinstance(values, list) and values and type(values[0]) is list else values
        fits = isinstance(listed, list) and len(listed) == count
    if not fits or not _FLAG_TYPES.issuperset(map(type, listed)):
        detail = f"{where}: {name} should hold {count} flags, is {reprlib.repr(values)}"
        raise RecordError(RejectReason.LABEL_CORRUPT, detail)
    if not _FLAGS.issuperset(listed):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {name} should hold flags, 0 or 1 each")
    return np.array(listed, dtype=np.bool_)


def _unpacked(values: list[Any]) -> list[Any] | None:
    """Return what lists of one hold; None where one of them is no such list."""
    try:
        return [value for (value,) in values]
    except (TypeError, ValueError):
        return None


def _holds_boolean(values: Any) -> bool:
    while isinstance(values, list) and values and isinstance(values[0], list):
        values = list(chain.from_iterable(values))
    return isinstance(values, list) and bool in set(map(type, values))


def _kind(array: NDArray[Any]) -> str:
    kinds = {"b": "booleans", "U": "texts", "O": "something else", "S": "bytes"}
    return kinds.get(array.dtype.kind, str(array.dtype))
