"""Poses without an image: from a file of 42 keypoints, and as frames that tasks take for targets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handdata.schemas import KEYPOINT_COUNT, UsageError, inside
from handdata.schemas.arrays import BoolArray, FloatArray
from handdata.trainer.data.augment import Frame


def read_keypoints(path: Path) -> tuple[FloatArray, BoolArray]:
    """Read 42 keypoints, pixels, from a .npy file or a .json list; absent ones are null, NaN or (0, 0).

    Returns:
        Keypoints (42, 2), zeros where absent, and which are there (42,).

    Raises:
        UsageError: The file holds anything else.

    """
    expected = "expected 42 rows of x and y, the right hand's 21 joints first, in a .npy or .json file"
    try:
        content = (
            np.load(path, allow_pickle=False)
            if path.suffix.lower() == ".npy"
            else json.loads(path.read_text("utf-8-sig"))
        )
        if isinstance(content, list):
            content = [[np.nan, np.nan] if row is None else row for row in content]
        keypoints = np.array(content, dtype=np.float32)
    except (OSError, ValueError, TypeError, EOFError, MemoryError, RecursionError) as error:
        raise UsageError(f"cannot read keypoints from {path}: {error}", expected) from error
    return require_keypoints(keypoints, str(path))


def require_keypoints(keypoints: NDArray[Any], name: str) -> tuple[FloatArray, BoolArray]:
    """Check that an array holds 42 keypoints, or those of two hands (2, 21, 2); absent ones are NaN or (0, 0).

    Args:
        keypoints: The array.
        name: What it is called in messages.

    Returns:
        Keypoints (42, 2), zeros where absent, and which are there (42,).

    Raises:
        UsageError: It has another shape, or no keypoint.

    """
    expected = "expected 42 rows of x and y, the right hand's 21 joints first"
    if keypoints.shape not in ((KEYPOINT_COUNT, 2), (2, KEYPOINT_COUNT // 2, 2)):
        raise UsageError(f"{name} has shape {keypoints.shape}", expected)
    found = np.array(keypoints, dtype=np.float32).reshape(KEYPOINT_COUNT, 2)
    valid = np.isfinite(found).all(axis=1) & (found != 0).any(axis=1)
    if not valid.any():
        raise UsageError(f"{name} has no keypoints", expected)
    found[~valid] = 0
    return found, valid


def pose_frame(keypoints: FloatArray, valid: BoolArray, size: int) -> Frame:
    """Return a frame of ``size`` pixels that has keypoints (42, 2), in its pixels, and no image."""
    empty = np.zeros((size, size), np.uint8)
    return Frame(
        image=np.zeros((size, size, 3), np.uint8),
        mask=empty,
        known=empty,
        keypoints=keypoints,
        valid=valid & inside(keypoints, size, size),
    )
