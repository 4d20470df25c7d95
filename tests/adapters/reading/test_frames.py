"""Whatever is raised over one frame costs that frame alone, unless it says nothing about the frame."""

import errno

import pytest

from handdata.adapters.reading.frames import describe_error, frame_rejection
from handdata.schemas import DatasetReadError, RecordError, RejectReason, StorageError, UsageError


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


class UnwritableError(Exception):
    def __str__(self) -> str:
        return str(10**5000)


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), ZeroDivisionError("by zero"), TypeError("t"), RecursionError(), AssertionError(), OverflowError()],
)
def test_an_unforeseen_error_names_file_record_and_exception(error: Exception) -> None:
    row = frame_rejection("s/train/1", "/d/1.jpg", raised(error), "/d/labels.json")
    assert (row.record_id, row.image_uri, row.reason) == ("s/train/1", "/d/1.jpg", RejectReason.ADAPTER_FAILED)
    assert row.detail.startswith(f"/d/labels.json: {type(error).__name__}: {error}") and "test_frames.py" in row.detail


def test_a_message_that_cannot_be_written_and_an_image_without_label_file_have_details() -> None:
    assert (
        "UnwritableError: its message cannot be written" in frame_rejection("r", "u", raised(UnwritableError())).detail
    )
    assert frame_rejection("r", "/d/1.jpg", raised(KeyError(1))).detail.startswith("/d/1.jpg: KeyError: 1")


def test_the_message_of_an_unforeseen_error_is_one_line_that_can_be_printed() -> None:
    described = describe_error(ValueError("a\ud800\nb" + "x" * 10**6))
    assert described.startswith("ValueError: a\\ud800 b") and len(described) < 2000


def test_errors_of_records_keep_their_reason() -> None:
    assert frame_rejection("r", "u", RecordError(RejectReason.IMAGE_EMPTY, "d")).reason == "image_empty"
    assert frame_rejection("r", "u", FileNotFoundError(errno.ENOENT, "", "a")).detail == "a does not exist"


@pytest.mark.parametrize(
    "error", [StorageError("s"), DatasetReadError("d"), UsageError("u"), MemoryError()], ids=lambda error: type(error)
)
def test_what_says_nothing_about_the_frame_passes(error: Exception) -> None:
    with pytest.raises(type(error)):
        frame_rejection("r", "u", error)


def test_a_disk_that_is_away_ends_it() -> None:
    with pytest.raises(DatasetReadError, match=r"/d/labels\.json cannot be read: gone"):
        frame_rejection("r", "u", OSError(errno.EIO, "gone"), "/d/labels.json")
