"""The tracking of hands through a run of frames with MediaPipe's video mode.

The first frame of a run is searched as a still image (``search.find_hands``). From then on the video mode tracks the
hands that were found; it receives their number, so that its detector rests. Its results are checked: a hand that jumps,
that two tracks share, or that a search of the still frame now and then does not confirm is searched for again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Final

import numpy as np

from handdata.pipeline.annotation.detector import MOST_HANDS, Detection, HandDetector, distance_in_sizes
from handdata.pipeline.annotation.people import MOST_IN_PHOTOGRAPH, may_show_people
from handdata.pipeline.annotation.search import (
    BEST_SHARE,
    SAME_HAND,
    SMALL_SHARE,
    Hint,
    Window,
    box_hint,
    find_hands,
    merge,
    person_window,
    record_hints,
    search,
    search_around,
    square_window,
)
from handdata.schemas import HandRecord
from handdata.schemas.arrays import ByteArray, FloatArray

RUN_GAP_S: Final = 0.25
"""Largest time between neighbouring frames of a run."""
RUN_GAP_FRAMES: Final = 3
"""Largest step between neighbouring frame numbers of a run, where no times are known."""
CHECK_FRAMES: Final = 30
"""Frames between two still searches, which find hands that came in and tracks that drifted."""
SOON_FRAMES: Final = 3
"""Frames between two still searches after a hand was lost: most hands come back soon."""

_FARTHEST_STEP = 0.8
"""Largest step of a hand between two frames, in hand sizes; one that moves its joints farther is another hand."""
_WRONG_SIDE = 0.4
"""Added length, in hand sizes, of a step to a hand that looks like the other side, where both are certain."""
_VOTE_MEMORY = 0.9
"""Weight of a track's earlier votes on its side beside the newest."""
_MIXED_FRAMES = 5
"""Frames after hands met, or one was lost, in which a track may have changed hands."""
_MEETING = 1.0
"""Distance of two hands' middles, in hand sizes, below which they may be mixed up."""
_CHANGED_HANDS = 0.5
"""A track changed hands where its earlier vote times the newest, each from -1 to 1, is less than minus this."""
_DRIFT = 0.25
"""Distance, in hand sizes, from where a still search sees a tracked hand, from which on it has drifted."""
_PATIENCE_FRAMES = 10
"""Frames for which a lost hand is expected back."""
_SOON_CHECKS = 6
"""Number of still searches that follow soon after a hand was lost."""
_EMPTY_FRAMES = 5
"""In a run without hands, windows are searched in one of this many frames only."""
_CUT_LEVEL = 40.0
"""Mean difference of two frames, in grey levels, above which a cut lies between them."""
_MOST_HANDS = 2


def runs_of(records: Sequence[HandRecord]) -> Iterator[list[int]]:
    """Yield the positions of each run: consecutive frames of one sequence and camera, in order of their numbers."""
    cameras: dict[tuple[str, str], list[int]] = {}
    for position, record in enumerate(records):
        cameras.setdefault((record.sequence_id, record.camera_id), []).append(position)
    for positions in cameras.values():
        positions.sort(key=lambda position: records[position].frame_index)
        run = positions[:1]
        for position in positions[1:]:
            if not _follows(records[run[-1]], records[position]):
                yield run
                run = []
            run.append(position)
        yield run


def _follows(earlier: HandRecord, later: HandRecord) -> bool:
    if (earlier.width, earlier.height) != (later.width, later.height):
        return False
    if earlier.timestamp_s is None or later.timestamp_s is None:
        return later.frame_index - earlier.frame_index <= RUN_GAP_FRAMES
    return later.timestamp_s - earlier.timestamp_s <= RUN_GAP_S


class HandTracker:
    """Locates the hands of one run after another, frame by frame.

    The ``track`` of each detection numbers the hand of the run that it shows. The results depend on the frames of the
    run alone.
    """

    def __init__(self, detector: HandDetector) -> None:
        self._detector = detector
        self._next_track = 0
        self.start_run(1)

    def start_run(self, frames: int) -> None:
        """Forget the previous run; the next one has this many frames."""
        self._alone = frames == 1
        self._thumbnail: FloatArray | None = None
        self._forget()

    def _forget(self) -> None:
        self._hands: list[Detection] = []
        self._window: Window | None = None
        self._restart = True
        self._votes: dict[int, float] = {}
        self._mixed_for = 0
        self._since_check = self._lost_for = self._empty_for = 0
        self._soon_checks = self._seen = 0

    def locate(self, record: HandRecord, image: ByteArray) -> list[Detection]:
        """Return the hands in the next frame of the run, each once, the most confident first."""
        hints, person = record_hints(record), person_window(record)
        if self._alone:
            most = MOST_IN_PHOTOGRAPH if may_show_people(record) else MOST_HANDS
            found = find_hands(self._detector, image, hints=hints, person=person, expected=len(hints), most=most)
            return self._numbered(found)
        if self._is_cut(image):
            self._forget()
        self._mixed_for = _MIXED_FRAMES if self._lost_for or _meet(self._hands) else max(self._mixed_for - 1, 0)
        hands = self._tracked(image) if self._hands and not hints else None
        if hands is None:
            hands = self._found(image, hints, person)
        if len(hands) < self._seen:
            self._soon_checks = _SOON_CHECKS
        self._seen = len(hands)
        return hands

    def _is_cut(self, image: ByteArray) -> bool:
        rows, columns = max(image.shape[0] // 32, 1), max(image.shape[1] // 32, 1)
        thumbnail = image[rows // 2 :: rows, columns // 2 :: columns].mean(axis=2, dtype=np.float32)
        before, self._thumbnail = self._thumbnail, thumbnail
        return before is not None and float(np.abs(thumbnail - before).mean()) > _CUT_LEVEL

    def _found(self, image: ByteArray, hints: list[Hint], person: Window | None) -> list[Detection]:
        """Search the frame as a still image, with the hands known before as hints, and begin to track what is found."""
        before = self._hands
        hands = find_hands(
            self._detector,
            image,
            hints=[*hints, *map(_hint, before)],
            person=person,
            expected=max(len(hints), len(before)),
            closer=self._empty_for % _EMPTY_FRAMES == 0,
        )
        self._empty_for = 0 if hands else self._empty_for + 1
        return self._track_anew(image, self._numbered(hands))

    def _tracked(self, image: ByteArray) -> list[Detection] | None:
        """Return the hands where the video mode tracked them; None where the frame must be searched anew."""
        window = self._window
        pixels = image if window is None else window.cut(image)
        seen = self._detector.track(pixels, len(self._hands), restart=self._restart)
        self._restart = False
        hands = self._numbered(merge(seen if window is None else window.moved_to_full(seen)))
        known = {hand.track for hand in self._hands}
        lost = [hand for hand in self._hands if hand.track not in {hand.track for hand in hands}]
        if any(hand.track not in known for hand in hands):
            return None
        if lost:
            self._lost_for += 1
            if self._lost_for > _PATIENCE_FRAMES or not hands:
                return None
            around = [other for hand in lost for other in search_around(self._detector, image, hand)]
            hands = self._numbered(merge([*hands, *around]))[:_MOST_HANDS]
            still_lost = [hand for hand in lost if hand.track not in {hand.track for hand in hands}]
            self._hands = [*hands, *still_lost][:_MOST_HANDS]
            return hands
        self._lost_for = 0
        self._since_check += 1
        if self._since_check >= (SOON_FRAMES if self._soon_checks else CHECK_FRAMES):
            return self._checked(image, hands)
        self._hands = hands
        if window is not None and _leaves(window, hands, image):
            return self._track_anew(image, hands)
        return hands

    def _checked(self, image: ByteArray, hands: list[Detection]) -> list[Detection]:
        """Compare the tracked hands with what a still search sees.

        Soon after a hand was lost, others may still be half covered: then only new hands count.
        """
        soon, self._soon_checks, self._since_check = self._soon_checks > 0, max(self._soon_checks - 1, 0), 0
        seen = search(self._detector, image, self._window)
        confirmed = []
        for hand in hands:
            near = [other for other in seen if distance_in_sizes(hand, other) < _DRIFT]
            confirmed += [hand] if near or soon or self._sees(image, hand) else []
        new = [other for other in seen if all(distance_in_sizes(hand, other) > SAME_HAND for hand in confirmed)]
        if len(confirmed) == len(hands) and not new:
            self._hands = hands
            return hands
        return self._track_anew(image, self._numbered([*confirmed, *new]))

    def _sees(self, image: ByteArray, hand: Detection) -> bool:
        return any(distance_in_sizes(hand, other) < _DRIFT for other in search_around(self._detector, image, hand))

    def _track_anew(self, image: ByteArray, hands: list[Detection]) -> list[Detection]:
        self._hands = sorted(hands[:_MOST_HANDS], key=lambda hand: -hand.score)
        self._window = _window_for(self._hands, image)
        self._restart = True
        self._since_check = self._lost_for = 0
        return hands

    def _numbered(self, hands: Sequence[Detection]) -> list[Detection]:
        """Give each hand the number of the hand in the previous frame that it continues, or a new number."""
        numbered = []
        for hand, number in zip(hands, self._continued(hands), strict=True):
            if number is None or (self._mixed_for > 0 and self._votes[number] * hand.side_vote < -_CHANGED_HANDS):
                number, self._next_track = self._next_track, self._next_track + 1
            before = self._votes.get(number, hand.side_vote)
            self._votes[number] = _VOTE_MEMORY * before + (1 - _VOTE_MEMORY) * hand.side_vote
            numbered.append(replace(hand, track=number))
        return numbered

    def _continued(self, hands: Sequence[Detection]) -> list[int | None]:
        """Return the number of the hand in the previous frame that each hand continues, None for a new hand.

        The choice is the one in which the hands together move least and none moves too far. Where hands cover each
        other, their positions tell little: then the side that each looks like decides.
        """
        before = self._hands
        if not before:
            return [None] * len(hands)
        steps = [[distance_in_sizes(old, new) for old in before] for new in hands]

        def cost(new: int, old: int | None) -> float:
            if old is None:
                return _FARTHEST_STEP
            vote = self._votes.get(before[old].track, 0.0) * hands[new].side_vote
            return steps[new][old] + _WRONG_SIDE * max(-vote, 0.0)

        slots: list[int | None] = [*range(len(before)), *[None] * len(hands)]
        best = min(
            permutations(slots, len(hands)),
            key=lambda chosen: sum(cost(new, old) for new, old in enumerate(chosen)),
        )
        return [
            None if old is None or steps[new][old] > _FARTHEST_STEP else before[old].track
            for new, old in enumerate(best)
        ]


def _meet(hands: Sequence[Detection]) -> bool:
    return any(
        float(np.linalg.norm(one.centre - other.centre)) < _MEETING * max(one.size, other.size)
        for one, other in combinations(hands, 2)
    )


def _hint(hand: Detection) -> Hint:
    box = np.concatenate([hand.keypoints.min(axis=0), hand.keypoints.max(axis=0)])
    return box_hint(np.asarray(box, dtype=np.float32))


def _window_for(hands: Sequence[Detection], image: ByteArray) -> Window | None:
    """Return the part of the image in which small hands are large enough to be found again; None for all of it."""
    height, width = image.shape[:2]
    if not hands or min(hand.size for hand in hands) >= SMALL_SHARE * max(width, height):
        return None
    joints = np.concatenate([hand.keypoints for hand in hands])
    low, high = joints.min(axis=0), joints.max(axis=0)
    side = max(max(hand.size for hand in hands) / BEST_SHARE, 1.6 * float((high - low).max()))
    window = square_window((low + high) / 2, side).clipped(width, height)
    return None if max(window.width, window.height) >= max(width, height) else window


def _leaves(window: Window, hands: Sequence[Detection], image: ByteArray) -> bool:
    """Return whether a hand comes near a border of the window that is not a border of the image."""
    height, width = image.shape[:2]
    margin = 0.06 * max(window.width, window.height)
    joints = np.concatenate([hand.keypoints for hand in hands])
    low, high = joints.min(axis=0) - margin, joints.max(axis=0) + margin
    right, bottom = window.left + window.width, window.top + window.height
    return bool(
        (low[0] < window.left and window.left > 0)
        or (low[1] < window.top and window.top > 0)
        or (high[0] > right and right < width)
        or (high[1] > bottom and bottom < height)
    )
