"""Records and samples: what cannot be built, and what survives a round trip."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import BaseModel, ValidationError

from handdata.schemas import (
    FLIP_PERMUTATION,
    KEYPOINT_NAMES,
    OTHER_SIDE,
    RECORD_SCHEMA,
    REJECTION_SCHEMA,
    SAMPLE_SCHEMA,
    SIDES,
    SKELETON_EDGES,
    AnnotatedSample,
    HandRecord,
    Rejection,
    hand_states,
    inside,
    records_from_table,
    records_to_table,
)
from handdata.schemas.sample import COPIED_COLUMNS, MADE_ANEW
from handdata.schemas.tables import columns_of

FIELDS = {
    "source": "synthetic",
    "split": "train",
    "sequence_id": "s",
    "frame_index": 3,
    "image_uri": "/a.jpg",
    "width": 64,
    "height": 48,
    "viewpoint": "exo",
    "keypoints_2d": np.zeros((42, 2)),
    "keypoints_valid": np.zeros(42, bool),
    "hand_state": ("unknown", "absent"),
}


def test_record_id_follows_the_contract() -> None:
    assert HandRecord(**FIELDS, camera_id="c1").record_id == "synthetic/train/s/000003-c1"


@given(
    arrays.arrays(np.float32, (42, 2), elements=st.floats(-1000, 1000, width=32)),
    arrays.arrays(np.bool_, 42),
    st.one_of(st.none(), arrays.arrays(np.float32, (42, 3), elements=st.floats(-5, 5, width=32))),
)
def test_a_record_survives_the_round_trip_through_arrow(keypoints, valid, points) -> None:
    states = hand_states(valid, "absent")
    record = HandRecord(
        **FIELDS | {"keypoints_2d": keypoints, "keypoints_valid": valid, "hand_state": states},
        keypoints_3d=points,
        camera_dist=(0.1, 0.2),
        extra={"mask": "/m.png"},
        attributes={"gesture": "call"},
    )
    table = records_to_table([record, record])
    assert table.schema.equals(RECORD_SCHEMA)
    for copy in records_from_table(table):
        assert copy.record_id == record.record_id
        assert np.array_equal(copy.keypoints_2d, np.where(valid[:, None], keypoints, 0))
        assert np.array_equal(copy.keypoints_valid, valid)
        assert (copy.keypoints_3d is None) == (points is None)
        assert (copy.extra, copy.attributes) == (record.extra, record.attributes)
        assert copy.camera_dist == pytest.approx((0.1, 0.2))


def test_keypoints_that_are_not_valid_are_zero_even_where_the_label_was_nan() -> None:
    record = HandRecord(**FIELDS | {"keypoints_2d": np.full((42, 2), np.nan)})
    assert not record.keypoints_2d.any()


def test_arrays_of_a_record_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        HandRecord(**FIELDS).keypoints_2d[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints_2d": np.zeros((21, 2))}, "expected shape"),
        ({"keypoints_2d": np.full((42, 2), np.inf), "keypoints_valid": np.ones(42, bool)}, "finite"),
        ({"hand_state": ("labelled", "absent")}, "right hand is 'labelled' but 0 of its joints are valid"),
        ({"width": 0}, "greater than 0"),
        ({"split": "training"}, "'train', 'val' or 'test'"),
        ({"has_mask": True}, "has_mask needs mask_extent"),
        ({"nonsense": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_bad_record_cannot_be_built(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HandRecord(**FIELDS | change)


def test_flip_permutation_exchanges_the_hands_and_undoes_itself() -> None:
    flipped = [KEYPOINT_NAMES[row] for row in FLIP_PERMUTATION]
    assert all(
        name.replace("left", "right") == flip.replace("left", "right")
        for name, flip in zip(KEYPOINT_NAMES, flipped, strict=True)
    )
    assert all(name.split("_")[0] != flip.split("_")[0] for name, flip in zip(KEYPOINT_NAMES, flipped, strict=True))
    assert np.array_equal(FLIP_PERMUTATION[FLIP_PERMUTATION], np.arange(42))


def test_every_joint_but_the_wrists_has_one_bone_towards_the_palm() -> None:
    ends = [end for _, end in SKELETON_EDGES]
    assert sorted(ends) == [row for row in range(42) if row not in (0, 21)]


def test_the_columns_of_a_record_are_those_of_the_contract() -> None:
    assert RECORD_SCHEMA.names == [
        *("record_id", "source", "split", "sequence_id", "frame_index", "camera_id", "timestamp_s", "subject_id"),
        *("origin_id", "image_uri", "video_frame", "width", "height", "viewpoint", "keypoints_2d", "keypoints_valid"),
        *("hand_state", "keypoints_3d", "camera_k", "camera_t_world", "camera_model", "camera_dist", "has_mask"),
        *("mask_extent", "extra"),
    ]
    assert REJECTION_SCHEMA.names == ["record_id", "image_uri", "reason", "detail"]
    nullable = {field.name for field in RECORD_SCHEMA if field.nullable}
    assert nullable == {
        *("timestamp_s", "subject_id", "origin_id", "video_frame", "keypoints_3d", "camera_k", "camera_t_world"),
        *("camera_dist", "mask_extent", "extra"),
    }


def test_a_column_without_an_arrow_type_is_an_error() -> None:
    class Row(BaseModel):
        number: int

    with pytest.raises(TypeError, match=r"Row\.number: expected one Arrow type"):
        columns_of(Row)


@pytest.mark.parametrize(
    ("model", "schema"), [(HandRecord, RECORD_SCHEMA), (Rejection, REJECTION_SCHEMA), (AnnotatedSample, SAMPLE_SCHEMA)]
)
def test_a_model_and_its_schema_have_the_same_columns(model: type[BaseModel], schema: pa.Schema) -> None:
    fields = {*model.model_fields}
    if model is HandRecord:
        fields = fields - {"attributes"} | {"record_id"}  # attributes are stored inside extra
    assert set(schema.names) == fields


def test_what_a_sample_shares_with_its_record_has_one_type_and_is_copied_or_made_anew() -> None:
    shared = [name for name in SAMPLE_SCHEMA.names if name in RECORD_SCHEMA.names]
    for name in shared:
        assert SAMPLE_SCHEMA.field(name).equals(RECORD_SCHEMA.field(name)), name
    assert sorted(shared) == sorted([*COPIED_COLUMNS, *MADE_ANEW])
    assert set(RECORD_SCHEMA.names) - set(shared) == {"has_mask", "extra"}
    assert set(COPIED_COLUMNS) == {
        *("record_id", "source", "split", "sequence_id", "frame_index", "camera_id", "timestamp_s", "subject_id"),
        *("origin_id", "viewpoint", "image_uri", "video_frame", "width", "height", "camera_model", "camera_dist"),
        *("camera_t_world", "keypoints_3d"),
    }


def test_inside_means_on_the_pixels_of_the_image() -> None:
    corners = np.array([[-0.5, 0], [-0.4, -0.4], [0, 47.5], [63.4, 47.4], [63.5, 0], [np.nan, 0], [47, 48]], np.float32)
    assert inside(corners, width=64, height=48).tolist() == [False, True, False, True, False, False, False]
    assert inside(corners[None], 48, 64).shape == (1, 7)


def test_the_other_side_of_the_other_side_is_the_side() -> None:
    assert [OTHER_SIDE[OTHER_SIDE[side]] for side in SIDES] == list(SIDES)
    assert [OTHER_SIDE[side] for side in SIDES] == list(reversed(SIDES))
