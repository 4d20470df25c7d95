"""The layout of the released FoundHand-10M: square crops as ``.jpg``, a ``.npz`` beside each.

    <source>/processed_seq/<split>/<sequence>/<frame>-<camera>.jpg
    <source>/processed_seq/<split>/<sequence>/<frame>-<camera>.npz

A label holds ``kpts`` (42, 2), pixels, right hand first, (0, 0) where there is no joint, and ``hand_mask`` (S, S), 0 or
1; of a sample without a mask it holds none. ``joint_valid`` (42,) is there where something is known of both hands: who
reads a label without it takes a hand of zeros for one of which nothing is known. ``campos``, ``camrot``, ``focal`` and
``princpt`` hold a pinhole camera, ``joint3d`` the 3D joints where each joint has one, in millimetres. ``sample_id`` and
``license_id`` name the sample and its licence.
"""

import io
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from handdata.jobs.exports.rows import (
    Row,
    frame_name,
    keypoints_of,
    license_id,
    mask_of,
    naming_rows,
    path_name,
    rows_of,
)
from handdata.pipeline.shards import Shard
from handdata.schemas.arrays import BoolArray

_MILLIMETRES_PER_METRE: Final = 1000.0


def file_names(_: Shard, chosen: pl.DataFrame) -> list[str]:
    """Return the names of the files of the chosen samples of a shard."""
    return [f"{_stem(row)}{suffix}" for row in naming_rows(chosen) for suffix in (".jpg", ".npz")]


def encode(_: Shard, tables: Iterable[pa.Table]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of samples with their content."""
    for table in tables:
        for row in rows_of(table):
            yield f"{_stem(row)}.jpg", row["image"]["bytes"]
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **_label(row))
            yield f"{_stem(row)}.npz", buffer.getvalue()


def _stem(row: Row) -> str:
    folder = f"{path_name(row['source'])}/processed_seq/{row['split']}/{path_name(row['sequence_id'])}"
    return f"{folder}/{frame_name(row)}"


def _label(row: Row) -> dict[str, Any]:
    keypoints, valid = keypoints_of(row)
    label: dict[str, Any] = {
        "kpts": keypoints,
        "sample_id": np.array(row["sample_id"]),
        "license_id": np.array(license_id(row)),
    }
    mask = mask_of(row)
    if mask is not None:
        label["hand_mask"] = mask.astype(np.uint8)
    if "unknown" not in row["hand_state"]:
        label["joint_valid"] = valid.astype(np.float32)
    return label | _camera(row, valid)


def _camera(row: Row, valid: BoolArray) -> dict[str, NDArray[np.float64]]:
    """Return the camera and, where all valid joints have one, their places; empty where the layout has none for it."""
    if row["camera_k"] is None or row["camera_model"] != "pinhole":
        return {}
    camera_k = np.array(row["camera_k"], np.float64).reshape(3, 3)
    if camera_k[0, 1] or camera_k[1, 0]:
        return {}
    # Without a world of its own the camera's frame is the world.
    pose = np.eye(4) if row["camera_t_world"] is None else np.array(row["camera_t_world"], np.float64).reshape(4, 4)
    rotation, translation = pose[:3, :3], pose[:3, 3]
    camera = {
        "campos": -rotation.T @ translation * _MILLIMETRES_PER_METRE,
        "camrot": rotation,
        "focal": camera_k[[0, 1], [0, 1]],
        "princpt": camera_k[:2, 2],
    }
    joints = np.array(row["keypoints_3d"] or np.zeros(126), np.float64).reshape(-1, 3)
    if not (joints[valid] != 0).any(axis=1).all():  # zeros, which the layout takes for a place
        return camera
    return camera | {"joint3d": (joints - translation) @ rotation * _MILLIMETRES_PER_METRE}
