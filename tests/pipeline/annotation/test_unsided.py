"""Labelled hands without a side take the one that the detector names, or are told apart from the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from handdata.pipeline.annotation.detector import Detection
from handdata.pipeline.annotation.keypoints import FrameKeypoints, join_keypoints, needs_detector
from handdata.pipeline.annotation.sides import Located, agree_on_sides
from handdata.pipeline.annotation.unsided import on_named_sides
from handdata.pipeline.settings import KeypointsPolicy
from handdata.schemas import HandRecord, RecordError, Side, hand_rows, hand_states
from tests.fixtures.hands import hand

Hand = NDArray[np.float32]


def record(*hands: Hand, **extra: Any) -> HandRecord:
    """Return a record of one or two hands of unknown sides."""
    keypoints, valid = np.zeros((42, 2)), np.zeros(42, bool)
    for number, joints in enumerate(hands):
        keypoints[21 * number :][:21], valid[21 * number :][:21] = joints, True
    return HandRecord(
        source="coco",
        split="train",
        sequence_id="s",
        frame_index=0,
        image_uri="/a.jpg",
        width=640,
        height=480,
        viewpoint="exo",
        keypoints_2d=keypoints,
        keypoints_valid=valid,
        hand_state=hand_states(valid, "unknown"),
        extra={"side": "unknown", **extra},
    )


def detection(side: Side, x: float, y: float, score: float = 0.9, track: int = -1) -> Detection:
    return Detection(side, score, hand(x, y), track=track)


def joined(
    labels: HandRecord, detections: Sequence[Detection], policy: KeypointsPolicy = "prefer-dataset"
) -> FrameKeypoints:
    return join_keypoints(on_named_sides(labels, detections), detections, policy)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_single_hand_takes_the_side_of_the_nearest_detection(side: Side) -> None:
    other: Side = "left" if side == "right" else "right"
    found = joined(record(hand(100, 100)), [detection(other, 118, 100, 0.99), detection(side, 102, 100)])
    assert found.origin == (("dataset", None) if side == "right" else (None, "dataset"))
    assert np.array_equal(found.keypoints[hand_rows(side)], hand(100, 100))
    assert not found.valid[hand_rows(other)].any()
    assert found.agreement[0 if side == "right" else 1] is not None
    assert "side_unknown" not in found.flags


def test_the_other_hand_is_then_the_detector_s() -> None:
    found = joined(record(hand(100, 100)), [detection("left", 102, 100), detection("right", 300, 100)])
    assert found.origin == ("mediapipe", "dataset")
    assert found.flags == frozenset()


@pytest.mark.parametrize("detections", [[], [detection("left", 126, 100)], [detection("left", 300, 100)]])
def test_a_hand_that_no_detection_shows_stays_and_is_flagged(detections: list[Detection]) -> None:
    found = joined(record(hand(100, 100)), detections)
    assert found.origin[0] == "dataset"
    assert "side_unknown" in found.flags


def test_a_hand_stays_and_is_flagged_where_another_one_has_the_better_claim_to_its_side() -> None:
    nearest = detection("left", 102, 100, 0.7)
    assert "side_unknown" in joined(record(hand(100, 100)), [nearest, detection("left", 300, 100, 0.9)]).flags
    assert "side_unknown" not in joined(record(hand(100, 100)), [nearest, detection("left", 300, 100, 0.6)]).flags


def test_a_hand_is_flagged_where_the_detector_is_not_asked() -> None:
    assert joined(record(hand(100, 100)), [], "dataset").flags == {"side_unknown"}
    assert "side_unknown" not in joined(record(hand(100, 100)), [detection("left", 300, 100)], "mediapipe").flags


def test_two_hands_take_the_sides_of_the_detections_with_the_nearest_wrists() -> None:
    first, second = hand(100, 100), hand(120, 100)  # each shows the same hand as both detections
    for sides in (("right", "left"), ("left", "right")):
        found = joined(record(first, second), [detection(sides[1], 121, 100), detection(sides[0], 101, 100)])
        assert np.array_equal(found.keypoints[hand_rows(sides[0])], first)
        assert np.array_equal(found.keypoints[hand_rows(sides[1])], second)
        assert found.flags == frozenset()


@pytest.mark.parametrize(
    "detections",
    [
        [],
        [detection("right", 100, 100)],
        [detection("right", 100, 100), detection("right", 300, 100)],
        [detection("right", 100, 100), detection("left", 400, 100)],
    ],
)
def test_two_hands_that_the_detector_does_not_tell_apart_are_rejected(detections: list[Detection]) -> None:
    with pytest.raises(RecordError, match="side_unknown"):
        on_named_sides(record(hand(100, 100), hand(300, 100)), detections)


def test_the_detector_is_asked_for_sides_of_two_labelled_hands() -> None:
    two = record(hand(100, 100), hand(300, 100))
    assert needs_detector(two, "prefer-dataset") and not needs_detector(two, "dataset")
    told = on_named_sides(two, [detection("left", 100, 100), detection("right", 300, 100)])
    assert not told.is_side_unknown


def test_the_side_that_was_named_holds_when_the_unit_agrees_on_sides() -> None:
    seen = [detection("left", 102, 100, 0.99, track=0), detection("left", 300, 100, 0.6, track=1)]
    (located,) = agree_on_sides([Located(on_named_sides(record(hand(100, 100)), seen), seen)], "prefer-dataset")
    assert [(found.track, found.side) for found in sorted(located.detections, key=lambda found: found.track)] == [
        (0, "left"),
        (1, "right"),
    ]


def test_labelled_hands_of_other_people_take_no_side() -> None:
    others = [[290.0, 90.0, 360.0, 160.0]]
    found = joined(record(hand(100, 100), other_hands_xyxy_px=others), [
        detection("right", 100, 100), detection("left", 300, 100),
    ])  # fmt: skip
    assert found.origin == ("dataset", None)
    assert found.flags == {"extra_hands"}
    near = joined(record(hand(100, 100), other_hands_xyxy_px=[[160, 100, 190, 130]]), [detection("right", 100, 100)])
    assert near.flags == {"extra_hands", "unlabelled_hand"}
