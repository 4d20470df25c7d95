"""What becomes of an error over one frame: usually a row of the rejected table, and never the end of all others."""

import traceback
from pathlib import Path
from typing import TypeGuard

from pydantic import ValidationError

from handdata.adapters.reading.listing import cannot_be_read
from handdata.schemas.errors import HandDataError, RecordError, RejectReason
from handdata.schemas.rejection import Rejection, printable, rejection, shortened


def frame_rejection(record_id: str, image_uri: str, error: Exception, where: Path | str = "") -> Rejection:
    """Return the row of the rejected table for whatever an adapter raised over one frame.

    Adapters wrap each frame in ``try`` and ``except Exception``: what nobody foresaw costs that frame alone. It becomes
    ``adapter_failed``, with the place in the code.

    Args:
        record_id: Id of the record, or of what would have been one.
        image_uri: Path or URL of its image.
        error: What was raised.
        where: Place of the label, for the detail.

    Raises:
        HandDataError: The error says nothing about the frame (a disk that is away, a wrong option).
        MemoryError: There is no memory, and the next frame would find none either.

    """
    if isinstance(error, ValidationError):
        return rejection(record_id, image_uri, error, where)
    return rejection(record_id, image_uri, frame_error(error, where or image_uri))


def frame_error(error: Exception, where: Path | str) -> RecordError:
    """Return what was raised over frames as the error that rejects them: ``adapter_failed`` if nobody foresaw it.

    Args:
        error: What was raised.
        where: Place of the label, or the file that several frames share.

    Raises:
        HandDataError: The error says nothing about the frames (a disk that is away, a wrong option).
        MemoryError: There is no memory, and the next frame would find none either.

    """
    if isinstance(error, RecordError):
        return error
    if isinstance(error, HandDataError | MemoryError):
        raise error
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return RecordError(RejectReason.LABEL_MISSING, f"{error.filename or where} does not exist")
    if is_of_disk(error):
        cannot_be_read(where, error)
    return RecordError(RejectReason.ADAPTER_FAILED, f"{where}: {describe_error(error)}")


def is_of_disk(error: Exception) -> TypeGuard[OSError]:
    """Return whether an error says that the system could not read: libraries derive their own errors from its type."""
    return isinstance(error, OSError) and error.errno is not None


def describe_error(error: Exception) -> str:
    """Return, in one line, kind, message and place in the code of an error that should not have been raised."""
    steps = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(steps[-1].filename).name}, line {steps[-1].lineno})" if steps else ""
    try:
        message = str(error)
    except Exception as second:  # the message may quote a value that cannot be written
        message = f"its message cannot be written: {type(second).__name__}"
    return f"{type(error).__name__}: {shortened(' '.join(printable(message).split()))}{place}"
