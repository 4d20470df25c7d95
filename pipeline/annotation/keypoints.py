"""The keypoints of a frame: the dataset's labels, MediaPipe's detections, or both joined."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from handdata.pipeline.annotation.detector import Detection
from handdata.pipeline.settings import KeypointsPolicy
from handdata.schemas import (
    KEYPOINT_COUNT,
    OTHER_SIDE,
    SIDES,
    HandRecord,
    HandState,
    RecordError,
    RejectReason,
    Side,
    hand_rows,
)
from handdata.schemas.arrays import BoolArray, FloatArray
from handdata.schemas.sample import KeypointsOrigin, Pair

SAME_HAND_DISTANCE = 0.5
"""Two sets of keypoints show the same hand if their joints are, on average, closer than this many hand sizes."""
_WIDEST_CROP = 2.0
"""Side of the square around a frame's hands in which another one is in view, over the longer side of their box."""


@dataclass(frozen=True, slots=True)
class FrameKeypoints:
    """The keypoints of one frame in full-image pixels; pairs are (right, left).

    Args:
        keypoints: (42, 2), 0 where not valid.
        valid: (42,) which joints have a label or a detection.
        hand_state: ``labelled`` where there are keypoints, else what the dataset says.
        origin: What located each hand.
        score: MediaPipe's confidence, 1 for dataset labels, 0 where absent.
        agreement: Mean distance of dataset and MediaPipe keypoints in full-image pixels, where both exist.
        flags: Observations that no later number shows: ``side_conflict``, ``side_unknown``, ``extra_hands``,
            ``unlabelled_hand``.

    """

    keypoints: FloatArray
    valid: BoolArray
    hand_state: tuple[HandState, HandState]
    origin: tuple[KeypointsOrigin | None, KeypointsOrigin | None]
    score: Pair
    agreement: tuple[float | None, float | None]
    flags: frozenset[str]

    def hand_px(self) -> Pair:
        """Return the longer side of each hand's keypoint box, 0 where absent."""
        right, left = (hand_size(self.keypoints[rows], self.valid[rows]) for rows in map(hand_rows, SIDES))
        return Pair(right, left)


def hand_size(keypoints: FloatArray, valid: BoolArray) -> float:
    """Return the longer side of the box of the valid joints, 0 without a valid joint."""
    if not valid.any():
        return 0.0
    joints = keypoints[valid]
    return float((joints.max(axis=0) - joints.min(axis=0)).max())


def needs_detector(record: HandRecord, policy: KeypointsPolicy) -> bool:
    """Return whether MediaPipe must search this frame: always, never, or where a hand's state or side is unknown."""
    unknown = "unknown" in record.hand_state or record.is_side_unknown
    return policy == "mediapipe" or (policy == "prefer-dataset" and unknown)


def open_sides(record: HandRecord, policy: KeypointsPolicy) -> tuple[Side, ...]:
    """Return the sides that a detection may have: those that the labels, where the policy uses them, leave open."""
    if policy == "mediapipe":
        return SIDES
    return tuple(side for side, state in zip(SIDES, record.hand_state, strict=True) if state == "unknown")


def labelled_sides(record: HandRecord, detection: Detection) -> tuple[Side, ...]:
    """Return the sides of the labelled hands of a frame that a detection shows."""
    return tuple(side for side in SIDES if _same_hand(detection, record, side))


def join_keypoints(
    record: HandRecord,
    detections: Sequence[Detection],
    policy: KeypointsPolicy,
    others: Sequence[Detection] = (),
) -> FrameKeypoints:
    """Join a frame's labels and detections under a policy.

    Labels come first unless the policy is ``mediapipe``. A detection of a hand that has a label measures the agreement.
    Any other detection takes its own side, or, where that side is taken, the other side if it is free. That change of
    side is a ``side_conflict``, and so is a side against the evidence (``Detection.contested``). A detection for which
    no side is free is an ``extra_hands``, and so are hands of other people, labelled or found. A label is
    ``side_unknown`` where neither dataset nor detector names its side.

    Args:
        record: Record of the frame, with its labels.
        detections: Hands that MediaPipe found, each once.
        policy: Choice of labels, detections or both.
        others: Hands of other people that MediaPipe found.

    Raises:
        RecordError: ``no_hand_found``: no label is used, and no detection takes a side.

    """
    keypoints = np.zeros((KEYPOINT_COUNT, 2), dtype=np.float32)
    valid = np.zeros(KEYPOINT_COUNT, dtype=bool)
    origin: dict[Side, KeypointsOrigin | None] = dict.fromkeys(SIDES, None)
    score = dict.fromkeys(SIDES, 0.0)
    agreement: dict[Side, float | None] = dict.fromkeys(SIDES, None)
    flags: set[str] = set()

    free = set(open_sides(record, policy))
    if policy != "mediapipe":
        for side in SIDES:
            rows = hand_rows(side)
            if record.keypoints_valid[rows].any():
                keypoints[rows], valid[rows] = record.keypoints_2d[rows], record.keypoints_valid[rows]
                origin[side], score[side] = "dataset", 1.0
        if record.is_side_unknown:
            flags.add("side_unknown")
    of_others = [np.asarray(box) for box in (record.extra or {}).get("other_hands_xyxy_px", ())]

    for detection in sorted(detections, key=lambda detection: -detection.score):
        labelled = labelled_sides(record, detection)
        for side in labelled:
            agreement[side] = label_distance(record, side, detection)
        if (labelled and policy != "mediapipe") or (not labelled and _is_in_any(detection, of_others)):
            continue
        side = detection.side
        if side not in free and OTHER_SIDE[side] in free:
            side = OTHER_SIDE[side]
            flags.add("side_conflict")
        elif side in free and detection.contested:
            flags.add("side_conflict")
        if side not in free:
            flags |= {"extra_hands", "unlabelled_hand"}
            continue
        free.remove(side)
        rows = hand_rows(side)
        keypoints[rows], valid[rows] = detection.keypoints, True
        origin[side], score[side] = "mediapipe", detection.score

    if not valid.any():
        searched = "the detector found none" if needs_detector(record, policy) else "the detector was not asked"
        raise RecordError(RejectReason.NO_HAND_FOUND, f"{record.image_uri}: no label gives a hand and {searched}")
    of_others += [np.concatenate([other.keypoints.min(axis=0), other.keypoints.max(axis=0)]) for other in others]
    if of_others:
        flags.add("extra_hands")
        if any(_is_near(box, keypoints[valid]) for box in of_others):
            flags.add("unlabelled_hand")
    states = {
        side: _state(origin[side] is not None, state) for side, state in zip(SIDES, record.hand_state, strict=True)
    }
    return FrameKeypoints(
        keypoints=keypoints,
        valid=valid,
        hand_state=(states["right"], states["left"]),
        origin=(origin["right"], origin["left"]),
        score=Pair(score["right"], score["left"]),
        agreement=(agreement["right"], agreement["left"]),
        flags=frozenset(flags),
    )


def _is_near(box: FloatArray, joints: FloatArray) -> bool:
    """Return whether a box meets the square that may become the crop around the joints."""
    corners = np.array([joints.min(axis=0), joints.max(axis=0)])
    reach = _WIDEST_CROP / 2 * float(np.ptp(corners, axis=0).max())
    middle = corners.mean(axis=0)
    return bool(((box[:2] <= middle + reach) & (box[2:] >= middle - reach)).all())


def _is_in_any(detection: Detection, boxes: Sequence[FloatArray]) -> bool:
    """Return whether the middle of a hand lies in one of the boxes (x and y of two corners)."""
    return any(((box[:2] <= detection.centre) & (detection.centre <= box[2:])).all() for box in boxes)


def _state(located: bool, before: HandState) -> HandState:
    """Return a hand's state after detection; a label that the policy ignores leaves it unknown."""
    if located:
        return "labelled"
    return "unknown" if before == "labelled" else before


def label_distance(record: HandRecord, side: Side, detection: Detection) -> float:
    """Return the mean distance, in pixels, of a labelled hand's joints from those of a detection."""
    rows = hand_rows(side)
    valid = record.keypoints_valid[rows]
    return float(np.linalg.norm(detection.keypoints[valid] - record.keypoints_2d[rows][valid], axis=1).mean())


def _same_hand(detection: Detection, record: HandRecord, side: Side) -> bool:
    rows = hand_rows(side)
    valid = record.keypoints_valid[rows]
    size = hand_size(record.keypoints_2d[rows], valid)
    return size > 0 and label_distance(record, side, detection) < SAME_HAND_DISTANCE * size
