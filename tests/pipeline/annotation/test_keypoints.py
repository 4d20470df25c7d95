"""Labels and detections are joined under each policy."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from handdata.pipeline.annotation.detector import Detection
from handdata.pipeline.annotation.keypoints import join_keypoints, needs_detector
from handdata.schemas import HandRecord, HandState, RecordError, Side, hand_rows
from tests.fixtures.hands import hand


def record(states: tuple[HandState, HandState], right: NDArray[np.float32] | None = None) -> HandRecord:
    keypoints, valid = np.zeros((42, 2)), np.zeros(42, bool)
    if right is not None:
        keypoints[:21], valid[:21] = right, True
    return HandRecord(
        source="synthetic",
        split="train",
        sequence_id="s",
        frame_index=0,
        image_uri="/a.jpg",
        width=640,
        height=480,
        viewpoint="exo",
        keypoints_2d=keypoints,
        keypoints_valid=valid,
        hand_state=states,
    )


def detection(side: Side, x: float, y: float, score: float = 0.9) -> Detection:
    return Detection(side, score, hand(x, y))


def test_detector_is_asked_only_where_a_hand_is_unknown() -> None:
    assert needs_detector(record(("unknown", "absent")), "prefer-dataset")
    assert not needs_detector(record(("absent", "absent")), "prefer-dataset")
    assert not needs_detector(record(("unknown", "unknown")), "dataset")
    assert needs_detector(record(("absent", "absent")), "mediapipe")


def test_labels_come_first_and_the_detector_fills_the_unknown_hand() -> None:
    labels = hand(100, 100)
    joined = join_keypoints(
        record(("labelled", "unknown"), labels),
        [detection("right", 102, 101), detection("left", 300, 100)],
        "prefer-dataset",
    )
    assert joined.origin == ("dataset", "mediapipe")
    assert np.array_equal(joined.keypoints[hand_rows("right")], labels)
    assert np.array_equal(joined.keypoints[hand_rows("left")], hand(300, 100))
    assert joined.hand_state == ("labelled", "labelled")
    assert joined.agreement[0] == pytest.approx(np.hypot(2, 1))
    assert joined.agreement[1] is None
    assert joined.flags == frozenset()


def test_a_detection_of_a_hand_known_to_be_absent_is_an_extra_hand() -> None:
    joined = join_keypoints(
        record(("labelled", "absent"), hand(100, 100)), [detection("left", 300, 100)], "prefer-dataset"
    )
    assert joined.origin == ("dataset", None)
    assert joined.flags == {"extra_hands", "unlabelled_hand"}


def test_two_hands_never_get_one_side_without_side_conflict() -> None:
    joined = join_keypoints(
        record(("unknown", "unknown")),
        [detection("right", 100, 100, 0.9), detection("right", 300, 100, 0.6)],
        "mediapipe",
    )
    assert joined.origin == ("mediapipe", "mediapipe")
    assert "side_conflict" in joined.flags
    assert joined.score == pytest.approx((0.9, 0.6))


def test_a_side_against_the_evidence_is_a_side_conflict() -> None:
    joined = join_keypoints(
        record(("unknown", "unknown")),
        [replace(detection("left", 100, 100), contested=True), detection("right", 300, 100)],
        "mediapipe",
    )
    assert joined.origin == ("mediapipe", "mediapipe")
    assert joined.flags == {"side_conflict"}


def test_mediapipe_policy_ignores_labels_but_measures_agreement() -> None:
    joined = join_keypoints(record(("labelled", "absent"), hand(100, 100)), [detection("left", 103, 104)], "mediapipe")
    assert joined.origin == (None, "mediapipe")
    assert joined.hand_state == ("unknown", "labelled")
    assert joined.agreement[0] == pytest.approx(5)


def test_no_hand_at_all_is_rejected() -> None:
    with pytest.raises(RecordError, match="no_hand_found"):
        join_keypoints(record(("unknown", "unknown")), [], "prefer-dataset")
