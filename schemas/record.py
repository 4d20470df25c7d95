"""The normalized record: one row an image, written by ``handdata ingest``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from handdata.schemas.arrays import (
    KeypointsValid,
    Labels2D,
    Labels3D,
    Matrix3,
    Matrix4,
    fixed_list_column,
)
from handdata.schemas.errors import RejectReason
from handdata.schemas.joints import KEYPOINTS_PER_HAND, SIDES, Side, hand_rows

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
HandState = Literal["labelled", "absent", "unknown"]
Viewpoint = Literal["ego", "exo"]
CameraModel = Literal["pinhole", "opencv_rational", "fisheye", "orthographic"]
MaskExtent = Literal["hand", "hand_forearm", "hand_accessory", "unknown"]

CATEGORY: Final = pa.dictionary(pa.int32(), pa.string())
"""Arrow type of columns with few values; equal to what pyarrow infers from ``source=...`` folder names."""


class HandRecord(BaseModel):
    """What a dataset says about one image: identity, file, hands, camera.

    Pixels are those of the full image: x right, y down, (0, 0) the centre of the top-left pixel. Cameras look along z,
    x right, y down; lengths are metres. Keypoint rows 0-20 are the person's right hand, 21-41 the left
    (``handdata.schemas.joints``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    source: str = Field(min_length=1)
    split: Split
    """The dataset's own split, mapped to these three."""
    sequence_id: str = Field(min_length=1)
    """Frames that share it and a camera are one video, frames that share it and ``frame_index`` synchronised views."""
    frame_index: int = Field(ge=0, lt=2**31)
    """The dataset's own frame number, 0 for stills."""
    camera_id: str = Field(default="0", min_length=1)
    timestamp_s: float | None = None
    """Seconds since the sequence began, where the dataset's rate is known."""
    subject_id: str | None = None
    origin_id: str | None = None
    """The same physical frame's identity upstream, where this source repacks another."""
    image_uri: str = Field(min_length=1)
    """Path or URL of the image, or of the video that holds the frame."""
    video_frame: int | None = Field(default=None, ge=0)
    """Index of the frame in the video, in presentation order; null for image files."""
    width: int = Field(gt=0, lt=2**31)
    height: int = Field(gt=0, lt=2**31)
    viewpoint: Viewpoint
    keypoints_valid: KeypointsValid
    """(42,) whether the dataset annotates the joint; it may lie outside the image."""
    keypoints_2d: Labels2D
    """(42, 2) pixels; 0, 0 where not valid."""
    hand_state: tuple[HandState, HandState]
    """Right and left: labelled, known to be absent, or unknown (the dataset says nothing)."""
    keypoints_3d: Labels3D | None = None
    """(42, 3) metres in the camera frame; 0 where not valid."""
    camera_k: Matrix3 | None = None
    """(3, 3) intrinsics."""
    camera_t_world: Matrix4 | None = None
    """(4, 4) world to camera, metres."""
    camera_model: CameraModel = "pinhole"
    camera_dist: tuple[float, ...] | None = None
    """Distortion coefficients of ``camera_model``; the keypoints are those of the distorted image."""
    has_mask: bool = False
    """The adapter's ``open_mask`` can open a mask of this frame on a worker."""
    mask_extent: MaskExtent | None = None
    extra: dict[str, Any] | None = None
    """What the adapter needs on a worker to open the image or mask; stored as JSON."""

    @model_validator(mode="after")
    def _hand_state_agrees_with_joints(self) -> Self:
        labelled = np.logical_or.reduceat(self.keypoints_valid, (0, KEYPOINTS_PER_HAND))
        for side, state, any_valid in zip(SIDES, self.hand_state, labelled, strict=True):
            if (state == "labelled") != any_valid:
                raise ValueError(f"{side} hand is {state!r} but {self.valid_joints(side)} of its joints are valid")
        if self.has_mask and self.mask_extent is None:
            raise ValueError("has_mask needs mask_extent")
        return self

    def valid_joints(self, side: Side) -> int:
        """Return how many joints of one hand the dataset annotates."""
        return int(self.keypoints_valid[hand_rows(side)].sum())

    @property
    def record_id(self) -> str:
        """Unique name of the record; opaque, never parsed."""
        return record_name(self.source, self.split, self.sequence_id, self.frame_index, self.camera_id)


def record_name(source: str, split: str, sequence_id: str, frame_index: int = 0, camera_id: str = "0") -> str:
    """Return the ``record_id`` of a frame, also of one that is refused before it becomes a record."""
    return f"{source}/{split}/{sequence_id}/{frame_index:06d}-{camera_id}"


RECORD_SCHEMA: Final = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("source", CATEGORY, nullable=False),
        pa.field("split", CATEGORY, nullable=False),
        pa.field("sequence_id", pa.string(), nullable=False),
        pa.field("frame_index", pa.int32(), nullable=False),
        pa.field("camera_id", pa.string(), nullable=False),
        ("timestamp_s", pa.float64()),
        ("subject_id", pa.string()),
        ("origin_id", pa.string()),
        pa.field("image_uri", pa.string(), nullable=False),
        ("video_frame", pa.int32()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("viewpoint", pa.string(), nullable=False),
        pa.field("keypoints_2d", pa.list_(pa.float32(), 84), nullable=False),
        pa.field("keypoints_valid", pa.list_(pa.bool_(), 42), nullable=False),
        pa.field("hand_state", pa.list_(pa.string()), nullable=False),
        ("keypoints_3d", pa.list_(pa.float32(), 126)),
        ("camera_k", pa.list_(pa.float32(), 9)),
        ("camera_t_world", pa.list_(pa.float32(), 16)),
        pa.field("camera_model", pa.string(), nullable=False),
        ("camera_dist", pa.list_(pa.float32())),
        pa.field("has_mask", pa.bool_(), nullable=False),
        ("mask_extent", pa.string()),
        ("extra", pa.string()),
    ]
)
"""Columns of ``W/records/source=<s>/*.parquet``."""


def models_to_table(models: Sequence[BaseModel], schema: pa.Schema) -> pa.Table:
    """Return the models as a table; a field that the schema does not name is left out."""
    columns = []
    for field in schema:
        values = [getattr(model, field.name) for model in models]
        if pa.types.is_fixed_size_list(field.type):
            columns.append(fixed_list_column(values, field.type))
        elif field.name == "extra":
            texts = [None if value is None else json.dumps(value, sort_keys=True) for value in values]
            columns.append(pa.array(texts, field.type))
        else:
            plain = [value.model_dump() if isinstance(value, BaseModel) else value for value in values]
            columns.append(pa.array(plain, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def records_to_table(records: Sequence[HandRecord]) -> pa.Table:
    """Return records as a table with ``RECORD_SCHEMA``."""
    return models_to_table(records, RECORD_SCHEMA)


def records_from_table(table: pa.Table) -> Iterable[HandRecord]:
    """Yield the records of a table with ``RECORD_SCHEMA``, in order.

    Raises:
        pydantic.ValidationError: a row is not a valid record.

    """
    for row in table.select([name for name in RECORD_SCHEMA.names if name != "record_id"]).to_pylist():
        yield record_from_row(row)


def record_from_row(row: Mapping[str, Any]) -> HandRecord:
    """Return the record of one row (a mapping of column to plain value)."""
    fields = {name: value for name, value in row.items() if name != "record_id" and value is not None}
    if "extra" in fields:
        fields["extra"] = json.loads(fields["extra"])
    return HandRecord.model_validate(fields)


class Rejection(BaseModel):
    """A record that was refused, with a fixed reason code and the detail for a person."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record_id: str
    image_uri: str
    reason: RejectReason
    detail: str


REJECTION_SCHEMA: Final = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
"""Columns of ``W/rejected/<stage>/source=<s>/*.parquet``."""


def rejections_to_table(rejections: Sequence[Rejection]) -> pa.Table:
    """Return rejections as a table with ``REJECTION_SCHEMA``."""
    return models_to_table(rejections, REJECTION_SCHEMA)


def hand_states(valid: Any, otherwise: HandState | tuple[HandState, HandState]) -> tuple[HandState, HandState]:
    """Return the state of both hands: ``labelled`` where any of a hand's joints is valid, else ``otherwise``.

    Args:
        valid: (42,) booleans.
        otherwise: what an unlabelled hand is in this dataset, for both hands or for right and left.

    """
    fallback = (otherwise, otherwise) if isinstance(otherwise, str) else otherwise
    right, left = np.logical_or.reduceat(np.asarray(valid, dtype=bool), (0, KEYPOINTS_PER_HAND))
    return ("labelled" if right else fallback[0]), ("labelled" if left else fallback[1])
