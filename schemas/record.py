"""The normalized record: one row an image, written by ``handdata ingest``."""

import json
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self, get_args

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from handdata.schemas.arrays import KeypointsValid, Labels2D, Labels3D, Matrix3, Matrix4, is_intrinsics, is_rigid_matrix
from handdata.schemas.joints import KEYPOINTS_PER_HAND, SIDES, Side, hand_rows
from handdata.schemas.tables import columns_of, models_to_table

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
HandState = Literal["labelled", "absent", "unknown"]
Viewpoint = Literal["ego", "exo"]
CameraModel = Literal["pinhole", "opencv_rational", "fisheye", "orthographic"]
MaskExtent = Literal["hand", "hand_forearm", "hand_accessory", "unknown"]

_SURROGATES: Final = re.compile("[\ud800-\udfff]")

CATEGORY: Final = pa.dictionary(pa.int32(), pa.string())
"""Arrow type of columns with few values; equal to what pyarrow infers from ``source=...`` folder names."""


class HandRecord(BaseModel):
    """What a dataset says about one image: identity, file, hands, camera.

    Pixels are those of the full image: x right, y down, (0, 0) the centre of the top-left pixel. Cameras look along z,
    x right, y down; lengths are metres. Keypoint rows 0-20 are the person's right hand, 21-41 the left
    (``handdata.schemas.joints``).

    Each field names the Arrow type of its column; ``RECORD_SCHEMA`` and ``RecordBatch`` follow from them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    source: Annotated[str, CATEGORY] = Field(min_length=1)
    split: Annotated[Split, CATEGORY]
    """The dataset's own split, mapped to these three."""
    sequence_id: Annotated[str, pa.string()] = Field(min_length=1)
    """Frames that share it and a camera are one video, frames that share it and ``frame_index`` synchronised views."""
    frame_index: Annotated[int, pa.int32()] = Field(ge=0, lt=2**31)
    """The dataset's own frame number, 0 for stills."""
    camera_id: Annotated[str, pa.string()] = Field(default="0", min_length=1)
    timestamp_s: Annotated[float | None, pa.float64()] = Field(default=None, allow_inf_nan=False)
    """Seconds since the sequence began, where the dataset's rate is known."""
    subject_id: Annotated[str | None, pa.string()] = None
    origin_id: Annotated[str | None, pa.string()] = None
    """The same physical frame's identity upstream, where this source repacks another."""
    image_uri: Annotated[str, pa.string()] = Field(min_length=1)
    """Path or URL of the image, or of the video that holds the frame. Stored, it is relative to the dataset's folder
    where it lies there; in a process it is whole (``pipeline.records.provenance``)."""
    video_frame: Annotated[int | None, pa.int32()] = Field(default=None, ge=0, lt=2**31)
    """Index of the frame in the video, in presentation order; null for image files."""
    width: Annotated[int, pa.int32()] = Field(gt=0, lt=2**31)
    height: Annotated[int, pa.int32()] = Field(gt=0, lt=2**31)
    viewpoint: Annotated[Viewpoint, pa.string()]
    keypoints_valid: Annotated[KeypointsValid, pa.list_(pa.bool_(), 42)]
    """(42,) whether the dataset annotates the joint; it may lie outside the image."""
    keypoints_2d: Annotated[Labels2D, pa.list_(pa.float32(), 84)]
    """(42, 2) pixels; 0, 0 where not valid."""
    hand_state: Annotated[tuple[HandState, HandState], pa.list_(pa.string())]
    """Right and left: labelled, known to be absent, or unknown (the dataset says nothing)."""
    keypoints_3d: Annotated[Labels3D | None, pa.list_(pa.float32(), 126)] = None
    """(42, 3) metres in the camera frame; 0 where not valid."""
    camera_k: Annotated[Matrix3 | None, pa.list_(pa.float32(), 9)] = None
    """(3, 3) intrinsics."""
    camera_t_world: Annotated[Matrix4 | None, pa.list_(pa.float32(), 16)] = None
    """(4, 4) world to camera, metres."""
    camera_model: Annotated[CameraModel, pa.string()] = "pinhole"
    camera_dist: Annotated[tuple[FiniteFloat, ...] | None, pa.list_(pa.float32())] = None
    """Distortion coefficients of ``camera_model``; the keypoints are those of the distorted image."""
    has_mask: Annotated[bool, pa.bool_()] = False
    """The adapter's ``open_mask`` can open a mask of this frame on a worker."""
    mask_extent: Annotated[MaskExtent | None, pa.string()] = None
    extra: Annotated[dict[str, Any] | None, pa.string()] = None
    """What the adapter needs on a worker to open the image or mask, and hints; stored as JSON.

    ``upright``: the image is turned as its EXIF orientation says, and the record's pixels are those of the turned one.
    ``mirrored``: the image is a mirror image, in which a right hand looks like a left one.
    ``file_bytes``: size of the file of the image, by which a replaced one is noticed.
    ``side``: ``unknown`` where nobody says whether the labelled hands are right or left; such a record has no 3D.
    ``other_hands_xyxy_px``: boxes of labelled hands of other people.
    """
    attributes: dict[str, str] | None = None
    """What the dataset says beside hands and camera: ``gesture``, ``gloss``, ``action``, ``object``; stored inside
    ``extra``, and a column of its own in samples."""

    @field_validator("frame_index", "timestamp_s", "video_frame", "width", "height", mode="before")
    @classmethod
    def _is_number(cls, value: Any) -> Any:
        if isinstance(value, str | bytes | bool | np.bool_):
            raise ValueError(f"expected a number, got {reprlib.repr(value)}")
        return value

    @model_validator(mode="after")
    def _texts_can_be_stored(self) -> Self:
        texts = (self.source, self.sequence_id, self.camera_id, self.subject_id, self.origin_id, self.image_uri)
        if not all(text is None or is_encodable(text) for text in texts):
            raise ValueError("a text holds half of a character (a lone surrogate), which cannot be stored")
        extra = stored_extra(self.extra, self.attributes)
        if extra is not None and not is_encodable_json(json.dumps(extra)):
            raise ValueError("extra or attributes hold half of a character (a lone surrogate), which cannot be stored")
        return self

    @model_validator(mode="after")
    def _camera_is_one(self) -> Self:
        if self.camera_k is not None and not is_intrinsics(self.camera_k):
            raise ValueError(f"camera_k is no matrix of focal lengths and a principal point: {self.camera_k.tolist()}")
        if self.camera_t_world is not None and not is_rigid_matrix(self.camera_t_world):
            raise ValueError("camera_t_world is no rotation and translation: it scales, shears or mirrors")
        return self

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
    def is_upright(self) -> bool:
        """Whether the image file is turned as its EXIF orientation says."""
        return self.extra is not None and self.extra.get("upright") is True

    @property
    def is_mirrored(self) -> bool:
        """Whether the image shows right hands as left ones."""
        return self.extra is not None and self.extra.get("mirrored") is True

    @property
    def is_side_unknown(self) -> bool:
        """Whether its labels are of hands of which nobody says the side."""
        return self.extra is not None and self.extra.get("side") == "unknown" and bool(self.keypoints_valid.any())

    @property
    def record_id(self) -> str:
        """Unique name of the record; opaque, never parsed."""
        return record_name(self.source, self.split, self.sequence_id, self.frame_index, self.camera_id)


def is_encodable(text: str) -> bool:
    """Return whether a text can be stored: half of a character, as broken JSON escapes give, cannot."""
    return text.isascii() or not _SURROGATES.search(text)


def is_encodable_json(text: str) -> bool:
    """Return ``is_encodable`` of all texts of a JSON document in ASCII."""
    return "\\ud" not in text or not _SURROGATES.search(json.dumps(json.loads(text), ensure_ascii=False))


def stored_extra(extra: dict[str, Any] | None, attributes: dict[str, str] | None) -> dict[str, Any] | None:
    """Return what the column ``extra`` holds of a record.

    Raises:
        ValueError: ``extra`` has a key of its own for the attributes.

    """
    if extra is not None and "attributes" in extra:
        raise ValueError("extra: attributes are a field of their own")
    return {**(extra or {}), "attributes": attributes} if attributes else extra


def record_name(source: str, split: str, sequence_id: str, frame_index: int = 0, camera_id: str = "0") -> str:
    """Return the ``record_id`` of a frame, also of one that is rejected before it becomes a record."""
    return f"{source}/{split}/{sequence_id}/{frame_index:06d}-{camera_id}"


def _record_schema() -> pa.Schema:
    columns = {
        "record_id": pa.field("record_id", pa.string(), nullable=False),
        **columns_of(HandRecord, ("attributes",)),
    }
    names = list(columns)
    # The model reads keypoints_valid first, since it zeroes the keypoints that are not valid. The files hold it second.
    points, valid = names.index("keypoints_2d"), names.index("keypoints_valid")
    names[points], names[valid] = names[valid], names[points]
    return pa.schema([columns[name] for name in names])


RECORD_SCHEMA: Final = _record_schema()
"""Columns of ``W/records/source=<s>/*.parquet``: ``record_id`` and the fields of ``HandRecord``."""


def records_to_table(records: Sequence[HandRecord]) -> pa.Table:
    """Return records as a table with ``RECORD_SCHEMA``."""
    extra = [stored_extra(record.extra, record.attributes) for record in records]
    return models_to_table(records, RECORD_SCHEMA, {"extra": extra})


def records_from_table(table: pa.Table) -> Iterable[HandRecord]:
    """Yield the records of a table with ``RECORD_SCHEMA``, in order.

    Raises:
        pydantic.ValidationError: A row is not a valid record.

    """
    for row in table.select([name for name in RECORD_SCHEMA.names if name != "record_id"]).to_pylist():
        yield record_from_row(row)


def record_from_row(row: Mapping[str, Any]) -> HandRecord:
    """Return the record of one row (a mapping of column to plain value)."""
    fields = {name: value for name, value in row.items() if name != "record_id" and value is not None}
    if "extra" in fields:
        fields["extra"] = json.loads(fields["extra"])
        if isinstance(fields["extra"], dict) and "attributes" in fields["extra"]:
            fields["attributes"] = fields["extra"].pop("attributes")
            fields["extra"] = fields["extra"] or None
    return HandRecord.model_validate(fields)


def hand_states(valid: Any, otherwise: HandState | tuple[HandState, HandState]) -> tuple[HandState, HandState]:
    """Return the state of both hands: ``labelled`` where any of a hand's joints is valid, else ``otherwise``.

    Args:
        valid: (42,) booleans.
        otherwise: State of an unlabelled hand in this dataset, for both hands or for right and left.

    """
    fallback = (otherwise, otherwise) if isinstance(otherwise, str) else otherwise
    right, left = np.logical_or.reduceat(np.asarray(valid, dtype=bool), (0, KEYPOINTS_PER_HAND))
    return ("labelled" if right else fallback[0]), ("labelled" if left else fallback[1])
