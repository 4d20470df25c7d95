"""The hands of several people in one photograph: the two that belong together become its sample, the others are marked.

Labels of several people are sorted by the adapter (``coco``); here they are hands that the detector found.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from handdata.pipeline.annotation.detector import Detection
from handdata.schemas import WRIST, HandRecord

MOST_IN_PHOTOGRAPH: Final = 8
"""Hands that are looked for in a photograph of which nothing is known."""
_MOST_UNLIKE: Final = 2.0
"""Two hands of one person are no more than this many times as large as one another."""
_FARTHEST_WRISTS: Final = 12.0
"""Nor are their wrists farther apart, in sizes of the larger hand."""


def may_show_people(record: HandRecord) -> bool:
    """Return whether a record is of an image of which nothing is known: whose hands, how many and where."""
    hints = {"boxes_xyxy_px", "centres_xy_px", "person_box_xyxy_px", "other_hands_xyxy_px"}
    return (
        record.viewpoint == "exo"
        and record.hand_state == ("unknown", "unknown")
        and hints.isdisjoint(record.extra or {})
    )


def of_one_person(detections: Sequence[Detection]) -> tuple[list[Detection], list[Detection]]:
    """Return the hands of the person whose hands are the largest, and those of others.

    Two hands of different sides are one person's where each is the nearest to the other, by their wrists, of those
    whose sizes fit; so are any two, as long as nothing else is seen.

    Args:
        detections: Hands of one photograph, each once.

    """
    if len(detections) <= 2:
        return list(detections), []
    nearest = [_nearest_that_fits(hand, detections) for hand in detections]
    persons = [
        [hand, detections[other]] if other is not None and nearest[other] == number else [hand]
        for number, (hand, other) in enumerate(zip(detections, nearest, strict=True))
    ]
    kept = max(persons, key=lambda hands: (sum(hand.size for hand in hands), hands[0].score))
    return kept, [hand for hand in detections if not any(hand is one for one in kept)]


def _nearest_that_fits(hand: Detection, detections: Sequence[Detection]) -> int | None:
    """Return which hand is likely the other one of a hand's person; None for none."""
    distances = {
        number: float(np.linalg.norm(hand.keypoints[WRIST] - other.keypoints[WRIST]))
        for number, other in enumerate(detections)
        if other.side != hand.side and max(hand.size, other.size) <= _MOST_UNLIKE * min(hand.size, other.size)
    }
    number = min(distances, key=lambda number: distances[number], default=None)
    if number is None or distances[number] > _FARTHEST_WRISTS * max(hand.size, detections[number].size):
        return None
    return number
