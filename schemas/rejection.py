"""Rejections: records that cannot become rows, and the one place that makes them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from handdata.schemas.errors import RecordError, RejectReason
from handdata.schemas.tables import columns_of, models_to_table

_MAX_DETAIL_CHARACTERS = 1000
"""A label of megabytes, quoted in the message about it, helps nobody."""

_ADDRESS: Final = re.compile(r" (at|@) 0x[0-9a-fA-F]{8,}")
"""Where Python or FFmpeg says at which address an object lies: another one each time, so that equal rows differ."""


class Rejection(BaseModel):
    """A rejected record, with a fixed reason code and the detail for a person."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record_id: Annotated[str, pa.string()]
    image_uri: Annotated[str, pa.string()]
    reason: Annotated[RejectReason, pa.string()]
    detail: Annotated[str, pa.string()]


REJECTION_SCHEMA: Final = pa.schema(list(columns_of(Rejection).values()))
"""Columns of ``W/rejected/<stage>/source=<s>/*.parquet``."""


def rejections_to_table(rejections: Sequence[Rejection]) -> pa.Table:
    """Return rejections as a table with ``REJECTION_SCHEMA``."""
    return models_to_table(rejections, REJECTION_SCHEMA)


def rejection(
    record_id: str, image_uri: str, error: RecordError | ValidationError, where: Path | str = ""
) -> Rejection:
    """Return the row of the rejected table for a record that ``error`` made unusable.

    Args:
        record_id: Id of the record, or of what would have been one.
        image_uri: Path or URL of its image.
        error: What is wrong with it. A ``ValidationError`` of ``HandRecord`` is a label that no record can hold, so
            that the reason is ``label_corrupt``.
        where: Place of the label, for the detail: a ``ValidationError`` does not know its file.

    """
    if isinstance(error, ValidationError):
        error = RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {error.errors()[0]['msg']}")
    return Rejection(
        record_id=printable(record_id),
        image_uri=printable(image_uri),
        reason=error.reason,
        detail=shortened(printable(_ADDRESS.sub("", error.detail))),
    )


def printable(text: str) -> str:
    """Return ``text`` with what UTF-8 cannot encode written as escapes, so that tables can hold it."""
    return text.encode("utf-8", "backslashreplace").decode()


def in_one_line(text: str) -> str:
    """Return ``text`` with line ends, control characters and what UTF-8 cannot encode written as escapes.

    Names of files hold any of these, and a terminal obeys some.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def shortened(text: str, characters: int = _MAX_DETAIL_CHARACTERS) -> str:
    """Return a text without its middle where it is longer than ``characters``."""
    if len(text) <= characters:
        return text
    return f"{text[: characters // 2]} ... {text[5 - characters // 2 :]}"
