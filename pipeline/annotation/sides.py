"""The sides of hands, right or left: decided for a unit as a whole, not frame by frame.

Labels come first: a hand whose side, or whose other hand, the dataset names votes with certainty. A hand has one side
along its run of frames, a single hand in synchronised views is the same hand in all of them, and two hands of a frame
have different sides. A hand whose side goes against its own evidence is marked as contested, and so is a second hand
that one view sees and the others do not.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from handdata.pipeline.annotation.detector import Detection
from handdata.pipeline.annotation.keypoints import labelled_sides, open_sides
from handdata.pipeline.settings import KeypointsPolicy
from handdata.schemas import OTHER_SIDE, HandRecord, Side

_CERTAIN: Final = 10.0
"""Vote of a label; that of a detection is at most 1."""

_MOST_WITH_TWO: Final = 0.1
"""A sequence shows a single hand if no more than this share of its frames show two: detections err, too."""

_WELL_KNOWN: Final = 5.0
"""Votes from which on a hand is real, not a passing error of the detector."""

Hand = int
"""Number of one hand of a unit, along its run and over the views."""


@dataclass(frozen=True, slots=True)
class Located:
    """A frame with the hands that were found in it, and those of other people."""

    record: HandRecord
    detections: Sequence[Detection]
    others: Sequence[Detection] = ()


def agree_on_sides(frames: Sequence[Located], policy: KeypointsPolicy) -> list[Located]:
    """Return the frames of a unit with the sides on which runs and views agree."""
    hands, doubted = _hands(frames)
    votes: dict[Hand, float] = defaultdict(float)
    first_frame: dict[Hand, int] = {}
    together: dict[Hand, Counter[Hand]] = defaultdict(Counter)
    for frame in frames:
        seen = {hands[detection.track] for detection in frame.detections}
        for detection in frame.detections:
            hand = hands[detection.track]
            votes[hand] += _vote(frame.record, detection, policy)
            first_frame[hand] = min(frame.record.frame_index, first_frame.get(hand, frame.record.frame_index))
            together[hand].update(seen - {hand})
    sides: dict[Hand, Side] = {}
    contested: set[Hand] = set()
    for hand in sorted(votes, key=lambda hand: (-abs(votes[hand]), hand)):
        sides[hand] = "right" if votes[hand] > 0 else "left"
        rivals = sum(frames for other, frames in together[hand].items() if sides.get(other) == sides[hand])
        allies = sum(frames for other, frames in together[hand].items() if sides.get(other) == OTHER_SIDE[sides[hand]])
        if rivals > allies and rivals >= abs(votes[hand]):
            sides[hand] = OTHER_SIDE[sides[hand]]
            contested.add(hand)

    def claim(detection: Detection) -> tuple[float, int, float]:
        """Return a hand's claim to its side: of two hands with one side in a frame, the larger claim keeps it.

        Of two well-known hands the earlier one has the larger claim: a new track may begin between two hands that cover
        each other.
        """
        hand = hands[detection.track]
        return min(abs(votes[hand]), _WELL_KNOWN), -first_frame[hand], abs(votes[hand])

    def with_sides(frame: Located) -> Located:
        detections: list[Detection] = []
        taken: set[Side] = set()
        for detection in sorted(frame.detections, key=claim, reverse=True):
            hand = hands[detection.track]
            conflict = sides[hand] in taken
            side = OTHER_SIDE[sides[hand]] if conflict else sides[hand]
            taken.add(side)
            doubtful = conflict or hand in contested or detection.track in doubted
            detections.append(replace(detection, side=side, contested=doubtful))
        return Located(frame.record, detections, frame.others)

    return [with_sides(frame) for frame in frames]


def _vote(record: HandRecord, detection: Detection, policy: KeypointsPolicy) -> float:
    """Return the evidence for the right hand (above 0) or for the left (below 0)."""
    certain: Sequence[Side] = labelled_sides(record, detection) if policy != "mediapipe" else ()
    if not certain:
        certain = open_sides(record, policy)
    if len(certain) != 1:
        return detection.side_vote
    return _CERTAIN if certain[0] == "right" else -_CERTAIN


def _hands(frames: Sequence[Located]) -> tuple[Mapping[int, Hand], set[int]]:
    """Return the hand that each track shows, and the tracks that the other views do not confirm.

    Tracks of synchronised views show the same hand if hardly any frame of the sequence shows two hands, in any view:
    nothing else tells which of two hands a view sees. A second hand in such a view is doubted.
    """
    parent = {detection.track: detection.track for frame in frames for detection in frame.detections}

    def root(track: int) -> int:
        while parent[track] != track:
            parent[track] = parent[parent[track]]
            track = parent[track]
        return track

    moments: dict[tuple[str, int], list[list[int]]] = defaultdict(list)
    with_hands: Counter[str] = Counter()
    with_two: Counter[str] = Counter()
    for frame in frames:
        if frame.detections:
            sequence = frame.record.sequence_id
            with_hands[sequence] += 1
            with_two[sequence] += len(frame.detections) > 1
            best_first = sorted(frame.detections, key=lambda detection: -detection.score)
            moments[sequence, frame.record.frame_index].append([detection.track for detection in best_first])
    doubted: set[int] = set()
    for (sequence, _), views in moments.items():
        if len(views) > 1 and with_two[sequence] <= _MOST_WITH_TWO * with_hands[sequence]:
            for best, *others in views:
                parent[root(best)] = root(views[0][0])
                doubted.update(others)
    return {track: root(track) for track in parent}, doubted
