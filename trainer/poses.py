"""Poses without an image: from a file of 42 keypoints, and as frames that tasks take for targets."""

import json
from pathlib import Path

import numpy as np

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
    if keypoints.shape != (KEYPOINT_COUNT, 2):
        raise UsageError(f"{path} has shape {keypoints.shape}", expected)
    valid = np.isfinite(keypoints).all(axis=1) & (keypoints != 0).any(axis=1)
    if not valid.any():
        raise UsageError(f"{path} has no keypoints", expected)
    keypoints[~valid] = 0
    return keypoints, valid


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
