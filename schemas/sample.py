"""The annotated sample: one row a crop, written by ``handdata annotate``, read by the trainer."""

import json
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from handdata.schemas.arrays import Keypoints2D, Keypoints3D, KeypointsValid, Matrix3, Matrix4
from handdata.schemas.record import RECORD_SCHEMA, HandState, MaskExtent
from handdata.schemas.tables import models_to_table

KeypointsOrigin = Literal["dataset", "mediapipe"]
MaskOrigin = Literal["dataset", "sam_vit_h", "sam_vit_l", "sam_vit_b", "grabcut"]
CropMode = Literal["frame", "stable"]
Flag = Literal[
    "blurry",
    "extra_hands",
    "labels_disagree",
    "low_mask_coverage",
    "mask_spill",
    "near_duplicate",
    "no_content",
    "side_conflict",
    "side_unknown",
    "small_hand",
    "truncated",
    "unlabelled_hand",
]

ROW_GROUP_ROWS: Final = 128
"""Most rows of a row group of an annotated shard."""

JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
"""First bytes of a JPEG file."""


class EncodedImage(BaseModel):
    """An encoded image inside a row, in the form that Hugging Face ``datasets`` decodes."""

    model_config = ConfigDict(frozen=True)

    bytes: bytes
    path: str | None = None


class Pair(NamedTuple):
    """A value for the right hand and one for the left."""

    right: float
    left: float


class AnnotatedSample(BaseModel):
    """One crop around the hands of one record, S x S pixels.

    Keypoints are crop pixels, (0, 0) the centre of the crop's top-left pixel. Pairs are (right, left).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    sample_id: str
    record_id: str
    unit_id: str
    source: str
    split: str
    sequence_id: str
    frame_index: int
    camera_id: str
    timestamp_s: float | None
    subject_id: str | None
    origin_id: str | None
    viewpoint: str
    hand_state: tuple[HandState, HandState]
    image_uri: str
    video_frame: int | None
    width: int
    height: int
    """Size of the full image in pixels."""
    camera_model: str
    camera_dist: tuple[float, ...] | None
    camera_t_world: Matrix4 | None
    license: str
    """Licence of the data, as the source's card or the user says it."""
    license_id: str | None = None
    """SPDX id of the licence, or a ``LicenseRef-``; this and the next three are null in rows of format version 1."""
    source_release: str | None = None
    """Release of the dataset, where its files tell."""
    handdata_version: str | None = None
    """Version of handdata that made the row."""
    attributes: dict[str, str] | None = None
    """What the dataset says beside hands and camera: ``gesture``, ``gloss``, ``action``, ``object``; stored as JSON."""
    image: EncodedImage
    """JPEG, RGB, S x S."""
    hand_mask: EncodedImage | None
    """PNG, one channel, 0 or 255, S x S."""
    keypoints_2d: Keypoints2D
    keypoints_valid: KeypointsValid
    """Whether the joint is annotated and inside the crop."""
    keypoints_origin: tuple[KeypointsOrigin | None, KeypointsOrigin | None]
    keypoints_score: Pair
    """MediaPipe's confidence, 1 for dataset labels, 0 where absent."""
    agreement_px: tuple[float | None, float | None]
    """Mean distance of dataset and MediaPipe keypoints in crop pixels, where both exist."""
    hand_px: Pair
    """Longer side of the hand's keypoint box in full-image pixels, 0 where absent."""
    mask_origin: MaskOrigin | None
    mask_extent: MaskExtent | None
    mask_score: float | None
    """Share of the valid keypoints inside the mask."""
    mask_spill: float | None
    """Share of the mask's area farther than 0.35 hand lengths from the keypoints' hull."""
    sharpness: float
    """Variance of the Laplacian inside the hand box of the crop."""
    contrast: float | None = None
    """Standard deviation of the grey levels of 8 x 8 parts of the hand box; null in rows of older versions."""
    phash: int
    """64-bit perceptual hash of the crop, as a signed integer."""
    crop_xyxy: tuple[float, float, float, float]
    """The square in full-image pixels: x_full = x0 + x_crop * (x1 - x0) / S, exact at pixel centres."""
    pad_ltrb: tuple[float, float, float, float]
    """Crop pixels of each side that lie outside the full image; they are black."""
    crop_mode: CropMode
    keypoints_3d: Keypoints3D | None
    camera_k: Matrix3 | None
    """(3, 3) intrinsics of the crop."""
    flags: tuple[str, ...]
    annotator_hash: str


_IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _column(name: str, column_type: pa.DataType) -> pa.Field:
    return pa.field(name, column_type, nullable=False)


SAMPLE_SCHEMA: Final = pa.schema(
    [
        _column("sample_id", pa.string()),
        *(
            RECORD_SCHEMA.field(name)
            for name in (
                *("record_id", "source", "split", "sequence_id", "frame_index", "camera_id", "timestamp_s"),
                *("subject_id", "origin_id", "viewpoint", "hand_state", "image_uri", "video_frame", "width", "height"),
                *("camera_model", "camera_dist", "camera_t_world"),
            )
        ),
        _column("license", pa.string()),
        ("license_id", pa.string()),
        ("source_release", pa.string()),
        ("handdata_version", pa.string()),
        ("attributes", pa.string()),
        _column("unit_id", pa.string()),
        ("image", _IMAGE),  # never null; Hugging Face `datasets` takes its metadata only for a nullable field
        ("hand_mask", _IMAGE),
        RECORD_SCHEMA.field("keypoints_2d"),
        RECORD_SCHEMA.field("keypoints_valid"),
        _column("keypoints_origin", pa.list_(pa.string())),
        _column("keypoints_score", pa.list_(pa.float32())),
        _column("agreement_px", pa.list_(pa.float32())),
        _column("hand_px", pa.list_(pa.float32())),
        ("mask_origin", pa.string()),
        RECORD_SCHEMA.field("mask_extent"),
        ("mask_score", pa.float32()),
        ("mask_spill", pa.float32()),
        _column("sharpness", pa.float32()),
        ("contrast", pa.float32()),
        _column("phash", pa.int64()),
        _column("crop_xyxy", pa.list_(pa.float32())),
        _column("pad_ltrb", pa.list_(pa.float32())),
        _column("crop_mode", pa.string()),
        RECORD_SCHEMA.field("keypoints_3d"),
        RECORD_SCHEMA.field("camera_k"),
        _column("flags", pa.list_(pa.string())),
        _column("annotator_hash", pa.string()),
    ],
    metadata={
        # Tells Hugging Face `datasets` to decode the two struct columns; it infers the others from their Arrow types.
        "huggingface": json.dumps(
            {"info": {"features": {"image": {"_type": "Image"}, "hand_mask": {"_type": "Image"}}}}
        )
    },
)
"""Columns of ``W/dataset/data/source=<s>/split=<sp>/*.parquet``."""

MADE_ANEW: Final = ("hand_state", "keypoints_2d", "keypoints_valid", "mask_extent", "camera_k")
"""Columns that a record has too, and that annotation makes anew for the crop."""

COPIED_COLUMNS: Final = tuple(
    name for name in RECORD_SCHEMA.names if name in SAMPLE_SCHEMA.names and name not in MADE_ANEW
)
"""Columns that a sample takes from its record as they are."""

VERSION_2_COLUMNS: Final = frozenset({"license_id", "source_release", "handdata_version", "attributes"})
"""Columns that rows of format version 1 lack."""

PIXEL_COLUMNS: Final = ("image", "hand_mask")
"""The columns that hold encoded images; all others are small."""


def samples_to_table(samples: Sequence[AnnotatedSample]) -> pa.Table:
    """Return samples as a table with ``SAMPLE_SCHEMA``."""
    return models_to_table(samples, SAMPLE_SCHEMA)
