"""All errors that handdata raises on purpose.

    HandDataError                  catch this one to catch them all
    +-- UsageError                 the command cannot be run as typed: exit code 2
    |   +-- UnknownSourceError
    |   +-- LayoutError            a folder is not the dataset that the user named
    |   +-- NoPairsError           a dataset has no pairs of frames as the settings ask for them
    |   +-- NoHandError            a photograph shows no hand that is found
    +-- RunError                   the run as a whole failed: exit code 1
    |   +-- StorageError           a workspace that cannot be read or written
    |   +-- DatasetReadError       a folder or file of a dataset is there and cannot be read
    |   +-- LeaseLostError         another run has started on the dataset
    |   +-- ClusterLostError       the Ray cluster of a run is gone
    |   +-- DuplicateRecordError   two records of one source share an id
    |   +-- WeightsError           a model file is missing or another file than expected
    |   |   +-- DamagedWeightsError    it cannot be read, or holds numbers that are not finite
    |   +-- UnreadableImageError   a stored image cannot be decoded
    +-- RecordError                one record is unusable: it becomes a row of the rejected table

Errors cross process borders (Ray pickles them), so every class hands all its arguments to ``Exception.__init__`` and
formats them in ``__str__``.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from typing import Final


class RejectReason(StrEnum):
    """Why a record was rejected: the fixed codes of the rejected tables."""

    IMAGE_MISSING = "image_missing"
    """The labels name an image that is not there."""
    IMAGE_EMPTY = "image_empty"
    """The image file has no bytes."""
    IMAGE_CORRUPT = "image_corrupt"
    """The image file's header cannot be read."""
    IMAGE_FORMAT_MISMATCH = "image_format_mismatch"
    """The file's content is another format than its name says."""
    IMAGE_SIZE_MISMATCH = "image_size_mismatch"
    """The decoded image is not as large as the record says, so its labels do not fit."""
    IMAGE_DUPLICATE = "image_duplicate"
    """The file has the same content as another one of the dataset."""
    IMAGE_TOO_LARGE = "image_too_large"
    """The header announces more pixels than a photograph has (a decompression bomb)."""
    LABEL_MISSING = "label_missing"
    """The image has no label file."""
    LABEL_CORRUPT = "label_corrupt"
    """The label cannot be parsed or has the wrong shape."""
    LABEL_UNSAFE = "label_unsafe"
    """The label file holds pickled objects, which are never loaded."""
    LABEL_NOT_FINITE = "label_not_finite"
    """A valid joint or a camera has a NaN or infinite number."""
    LABEL_IMPLAUSIBLE = "label_implausible"
    """The labelled hand is larger than the image by far."""
    SIDE_UNKNOWN = "side_unknown"
    """Several hands have labels, and nothing tells which of them is the right one."""
    PATH_ESCAPES_ROOT = "path_escapes_root"
    """The label names a file outside the dataset's folder."""
    FRAME_MISSING = "frame_missing"
    """The image or video frame exists but its pixels cannot be decoded."""
    MASK_UNREADABLE = "mask_unreadable"
    """The settings ask for the dataset's own mask, and it cannot be opened."""
    NO_HAND_FOUND = "no_hand_found"
    """No label gives a hand and the detector found none."""
    WORKER_CRASHED = "worker_crashed"
    """The process that annotates the record dies or gets stuck over it, again and again, and over it alone."""
    HAND_OUTSIDE_IMAGE = "hand_outside_image"
    """No joint of any hand lies inside the image."""
    QUALITY_BLURRY = "quality_blurry"
    """The quality settings reject samples with this flag; so do the codes below."""
    QUALITY_EXTRA_HANDS = "quality_extra_hands"
    QUALITY_LABELS_DISAGREE = "quality_labels_disagree"
    QUALITY_LOW_MASK_COVERAGE = "quality_low_mask_coverage"
    QUALITY_MASK_SPILL = "quality_mask_spill"
    QUALITY_NEAR_DUPLICATE = "quality_near_duplicate"
    QUALITY_NO_CONTENT = "quality_no_content"
    QUALITY_SIDE_CONFLICT = "quality_side_conflict"
    QUALITY_SIDE_UNKNOWN = "quality_side_unknown"
    QUALITY_SMALL_HAND = "quality_small_hand"
    QUALITY_TRUNCATED = "quality_truncated"
    QUALITY_UNLABELLED_HAND = "quality_unlabelled_hand"
    ADAPTER_FAILED = "adapter_failed"
    """The adapter raised an error that it should not raise: a defect of it, or of a library under it."""


class HandDataError(Exception):
    """Base of all errors that handdata raises on purpose.

    Args:
        message: What is wrong.
        hint: What to do about it.

    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(HandDataError):
    """The command cannot be run as typed."""

    exit_code = 2


class UnknownSourceError(UsageError):
    """No adapter has this name."""


class LayoutError(UsageError):
    """A folder does not have the layout of the source that the user named."""


class NoPairsError(UsageError):
    """A dataset has no pairs of frames as the settings ask for them."""


class NoHandError(UsageError):
    """A photograph of the user's own shows no hand that is found."""


class RunError(HandDataError):
    """The run as a whole failed."""


class StorageError(RunError):
    """A workspace or file cannot be read or written.

    Args:
        message: What is wrong.
        hint: What to do about it.
        transient: Whether trying again may help: a server that is away for a moment, not a disk that is full.

    """

    def __init__(self, message: str, hint: str = "", transient: bool = False) -> None:
        Exception.__init__(self, message, hint, transient)
        self.message = message
        self.hint = hint
        self.transient = transient


class DatasetReadError(RunError):
    """A folder or file of a dataset is there and cannot be read: no rights, or a disk that is away."""


class LeaseLostError(RunError):
    """Another run has started on the dataset, or ingest of the source: this one may not change it any more."""


class ClusterLostError(RunError):
    """The Ray cluster that a driver waits for is gone, or its own node is."""


class DuplicateRecordError(RunError):
    """Two records of one source share an id."""


class WeightsError(RunError):
    """A model file is missing, or another file than expected."""


class DamagedWeightsError(WeightsError):
    """A file of weights cannot be read, or holds numbers that are not finite."""


class UnreadableImageError(RunError):
    """An image of a shard cannot be decoded, or is not what the shard says of it."""


class RecordError(HandDataError):
    """One record is unusable.

    Args:
        reason: Fixed code for the rejected table.
        detail: The file, and what is wrong with it; lines of it, as other packages' errors have, become one.

    """

    def __init__(self, reason: RejectReason, detail: str) -> None:
        Exception.__init__(self, reason, detail)
        self.reason = reason
        self.detail = " ".join(map(str.strip, detail.splitlines()))

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


_EXTRAS: Final = {
    "ray": "annotate",
    "mediapipe": "annotate",
    "rerun": "rerun",
    "segment_anything": "sam",
    **dict.fromkeys(
        ("diffusers", "safetensors", "tensorboard", "timm", "torch", "torchmetrics", "torchvision"), "train"
    ),
}
"""The extra of ``pip install "handdata[...]"`` that brings a package."""


def missing_package(error: ModuleNotFoundError) -> UsageError | None:
    """Return what to tell where a package of an extra is not installed; None where another module is missing."""
    name = (error.name or "").partition(".")[0]
    if name not in _EXTRAS:
        return None
    return UsageError(
        f"this needs the package {name}, which is not installed", f'pip install "handdata[{_EXTRAS[name]}]"'
    )


def known_names(name: str, names: Iterable[str]) -> str:
    """Return a hint for a name that is not there: the nearest one that is, if any is near, and all that are."""
    known = list(names)
    close = get_close_matches(name, known, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}there are {', '.join(known)}"
