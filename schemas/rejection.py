"""Rejected rows: the one place that makes them from an error."""

from pathlib import Path

from pydantic import ValidationError

from handdata.schemas.errors import RecordError, RejectReason
from handdata.schemas.record import Rejection

_MAX_DETAIL_CHARACTERS = 1000
"""A label of megabytes, quoted in the message about it, helps nobody."""


def printable(text: str) -> str:
    """Return ``text`` with what UTF-8 cannot encode written as escapes, so that tables can hold it."""
    return text.encode("utf-8", "backslashreplace").decode()


def rejection(
    record_id: str, image_uri: str, error: RecordError | ValidationError, where: Path | str = ""
) -> Rejection:
    """Return the row of the rejected table for a record that ``error`` made unusable.

    A ``ValidationError`` of ``HandRecord`` is a label that holds what no record can: ``label_corrupt``. It knows no
    file, so ``where`` names the label's place.
    """
    if isinstance(error, ValidationError):
        error = RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {error.errors()[0]['msg']}")
    return Rejection(
        record_id=printable(record_id),
        image_uri=printable(image_uri),
        reason=error.reason,
        detail=shortened(printable(error.detail)),
    )


def shortened(text: str, characters: int = _MAX_DETAIL_CHARACTERS) -> str:
    """Return a text without its middle where it is longer than ``characters``."""
    if len(text) <= characters:
        return text
    return f"{text[: characters // 2]} ... {text[5 - characters // 2 :]}"
