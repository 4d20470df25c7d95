"""Labelled hands whose side the dataset does not name: moved to the rows of the side that the detector names.

An adapter puts such a hand into the right rows, and a second one of the image into the left, and sets ``extra["side"]``
to ``unknown``. Such a record has no ``keypoints_3d``.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from handdata.pipeline.annotation.detector import Detection
from handdata.pipeline.annotation.keypoints import label_distance, labelled_sides
from handdata.schemas import FLIP_PERMUTATION, SIDES, WRIST, HandRecord, RecordError, RejectReason, Side, hand_rows


def on_named_sides(record: HandRecord, detections: Sequence[Detection]) -> HandRecord:
    """Return a record with its labels in the rows of the sides that the detector names.

    A single hand has the side of the nearest detection, if that shows the same hand; otherwise the record is returned
    as it is, and so it is where another hand has the better claim to that side. Of two hands each has the detection of
    the same hand whose wrist is the nearest; they need different sides.

    Args:
        record: Record of the frame.
        detections: Hands that MediaPipe found, each once.

    Raises:
        RecordError: ``side_unknown``: the detector does not tell two hands apart.

    """
    if not record.is_side_unknown:
        return record
    stands, *more = [side for side, state in zip(SIDES, record.hand_state, strict=True) if state == "labelled"]
    if not more:
        near = [detection for detection in detections if stands in labelled_sides(record, detection)]
        if not near:
            return record
        nearest = min(near, key=lambda detection: label_distance(record, stands, detection))
        others = [other for other in detections if stands not in labelled_sides(record, other)]
        if any(other.side == nearest.side and other.score >= nearest.score for other in others):
            return record
        side = nearest.side
    else:
        named = [
            (_distance_of_wrists(record, "right", first) + _distance_of_wrists(record, "left", second), first.side)
            for first, second in permutations(detections, 2)
            if "right" in labelled_sides(record, first)
            and "left" in labelled_sides(record, second)
            and first.side != second.side
        ]
        if not named:
            detail = (
                f"{record.image_uri}: two hands have labels without sides, and the detector does not tell them apart"
            )
            raise RecordError(RejectReason.SIDE_UNKNOWN, detail)
        side = min(named)[1]
    extra = {**(record.extra or {}), "side": "detector"}
    if side == stands:
        return record.model_copy(update={"extra": extra})
    moved = {
        "keypoints_2d": record.keypoints_2d[FLIP_PERMUTATION],
        "keypoints_valid": record.keypoints_valid[FLIP_PERMUTATION],
        "hand_state": record.hand_state[::-1],
    }
    return record.model_copy(update={"extra": extra, **moved})


def _distance_of_wrists(record: HandRecord, side: Side, detection: Detection) -> float:
    """Return the distance of a labelled hand's wrist from a detection's; that of all joints where it has no wrist."""
    wrist = hand_rows(side).start + WRIST
    if not record.keypoints_valid[wrist]:
        return label_distance(record, side, detection)
    return float(np.linalg.norm(record.keypoints_2d[wrist] - detection.keypoints[WRIST]))
