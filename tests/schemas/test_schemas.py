"""Records and samples: what cannot be built, and what survives a round trip."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from handdata.schemas import (
    FLIP_PERMUTATION,
    KEYPOINT_NAMES,
    RECORD_SCHEMA,
    SKELETON_EDGES,
    HandRecord,
    hand_states,
    records_from_table,
    records_to_table,
)

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
    )
    table = records_to_table([record, record])
    assert table.schema.equals(RECORD_SCHEMA)
    for copy in records_from_table(table):
        assert copy.record_id == record.record_id
        assert np.array_equal(copy.keypoints_2d, np.where(valid[:, None], keypoints, 0))
        assert np.array_equal(copy.keypoints_valid, valid)
        assert (copy.keypoints_3d is None) == (points is None)
        assert copy.extra == record.extra
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
