"""Rerun: a recording for each sequence, with its cameras, images, 2D keypoints and 3D joints on one timeline.

    <split>/<source>/<sequence>/<unit>.rrd

A sequence that several units hold has a file from each of them, with one recording id: the viewer joins them.
Entities::

    world/<camera>                  the camera's pose; its image below, and in it the keypoints
    world/<camera>/joints           the 3D joints that this camera's labels give, in its frame

The timelines are ``frame`` (the dataset's own numbers) and, where the dataset has time stamps, ``time``.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from handdata.jobs.exports.rows import Row, image_size, keypoints_of, naming_rows, path_name, rows_of
from handdata.pipeline.shards import Shard
from handdata.schemas import HAND_EDGES, JOINT_NAMES, KEYPOINTS_PER_HAND, SIDES, hand_rows
from handdata.schemas.arrays import BoolArray, FloatArray

if TYPE_CHECKING:
    from rerun import BinaryStream, RecordingStream

CONDITION: Final = (
    "keypoints_3d IS NOT NULL AND camera_k IS NOT NULL AND camera_model IN ('pinhole', 'opencv_rational')"
)
"""The samples that have a place in space, seen through a lens that a pinhole stands for."""

_COLOURS: Final = {"right": (255, 165, 0), "left": (0, 191, 255)}
_HALF_PIXEL: Final = np.float32(0.5)
"""Rerun's (0, 0) is the corner of the top-left pixel, ours is its centre."""
_IMAGE_PLANE_M: Final = 0.2
"""Distance of the drawn image from its camera, metres."""


def file_names(shard: Shard, chosen: pl.DataFrame) -> list[str]:
    """Return the names of the recordings of the chosen samples of a shard."""
    return sorted({_file_name(shard, row) for row in naming_rows(chosen)})


def encode(shard: Shard, tables: Iterable[pa.Table]) -> Iterator[tuple[str, bytes]]:
    """Yield the recordings of a shard with their content."""
    recordings: dict[str, tuple[RecordingStream, BinaryStream]] = {}
    for table in tables:
        for row in rows_of(table):
            name = _file_name(shard, row)
            if name not in recordings:
                recordings[name] = _begin(row)
            _log(recordings[name][0], row)
    for name, (_, stream) in recordings.items():
        data = stream.read()
        assert data is not None
        yield name, data


def _file_name(shard: Shard, row: Row) -> str:
    return f"{row['split']}/{path_name(row['source'])}/{path_name(row['sequence_id'])}/{shard.stem}.rrd"


def _begin(row: Row) -> "tuple[RecordingStream, BinaryStream]":
    """Return a new recording of the sequence of a row, and the stream of its bytes."""
    import rerun as rr

    rr.set_strict_mode(True)  # else what cannot be logged is left out with a warning
    name = f"{row['source']}/{row['split']}/{row['sequence_id']}"
    recording = rr.RecordingStream("handdata", recording_id=name)
    stream = rr.binary_stream(recording)
    recording.send_recording_name(name)
    recording.log("world", rr.ViewCoordinates.RIGHT_HAND_Y_DOWN, static=True)
    recording.log("world", _skeletons(), static=True)
    recording.log("licence", rr.TextDocument(row["license"]), static=True)
    return recording, stream


def _skeletons() -> Any:
    """Return names, colours and bones of both hands: class 1 is the right one, class 2 the left."""
    import rerun as rr

    return rr.AnnotationContext(
        [
            rr.ClassDescription(
                info=rr.AnnotationInfo(number, f"{side} hand", _COLOURS[side]),
                keypoint_annotations=[rr.AnnotationInfo(joint, name) for joint, name in enumerate(JOINT_NAMES)],
                keypoint_connections=list(HAND_EDGES),
            )
            for number, side in enumerate(SIDES, start=1)
        ]
    )


def _log(recording: "RecordingStream", row: Row) -> None:
    """Add a sample to the recording of its sequence."""
    import rerun as rr

    recording.reset_time()
    recording.set_time("frame", sequence=row["frame_index"])
    if row["timestamp_s"] is not None:
        recording.set_time("time", duration=row["timestamp_s"])
    camera = f"world/{rr.escape_entity_path_part(row['camera_id'])}"
    if row["camera_t_world"] is not None:
        pose = np.array(row["camera_t_world"], np.float64).reshape(4, 4)
        rotation = pose[:3, :3].T
        recording.log(camera, rr.Transform3D(translation=-rotation @ pose[:3, 3], mat3x3=rotation))
    camera_k = np.array(row["camera_k"], np.float64).reshape(3, 3)
    camera_k[:2, 2] += _HALF_PIXEL
    recording.log(
        f"{camera}/image",
        rr.Pinhole(
            image_from_camera=camera_k,
            resolution=image_size(row),
            camera_xyz=rr.ViewCoordinates.RDF,
            image_plane_distance=_IMAGE_PLANE_M,
        ),
        rr.EncodedImage(contents=row["image"]["bytes"], media_type="image/jpeg"),
    )
    keypoints, valid = keypoints_of(row)
    joints = np.array(row["keypoints_3d"], np.float32).reshape(-1, 3)
    _log_points(recording, f"{camera}/image/keypoints", keypoints + _HALF_PIXEL, valid)
    _log_points(recording, f"{camera}/joints", joints, (joints != 0).any(axis=1))


def _log_points(recording: "RecordingStream", entity: str, points: FloatArray, there: BoolArray) -> None:
    """Add the points (42, 2) or (42, 3) of both hands, those that are there."""
    import rerun as rr

    kind = rr.Points2D if points.shape[1] == 2 else rr.Points3D
    for number, side in enumerate(SIDES, start=1):
        known = there[hand_rows(side)]
        joints = np.arange(KEYPOINTS_PER_HAND)[known]
        radius = rr.Radius.ui_points(3) if points.shape[1] == 2 else 0.003
        recording.log(
            f"{entity}/{side}",
            kind(points[hand_rows(side)][known], radii=radius, class_ids=number, keypoint_ids=joints),
        )
