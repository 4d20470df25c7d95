"""Hands are tracked along runs: where a run ends, what is noticed on the way, what a hand's number means.

The detector here sees coloured squares for hands: red the right one, green the left one. Real hands are tracked in
``test_annotate`` and ``benchmarks/accuracy.py``.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handdata.pipeline.annotation.detector import Detection
from handdata.pipeline.annotation.tracking import CHECK_FRAMES, RUN_GAP_FRAMES, RUN_GAP_S, HandTracker, runs_of
from handdata.schemas import SIDES, HandRecord, Side
from handdata.schemas.arrays import ByteArray

SIZE, HAND = 200, 40

Middles = Mapping[Side, tuple[int, int]]


def record(
    frame: int, camera: str = "0", sequence: str = "s", time: float | None = None, width: int = SIZE
) -> HandRecord:
    return HandRecord(
        source="synthetic",
        split="train",
        sequence_id=sequence,
        frame_index=frame,
        camera_id=camera,
        timestamp_s=time,
        image_uri=f"/{sequence}/{camera}/{frame}.jpg",
        width=width,
        height=SIZE,
        viewpoint="exo",
        keypoints_2d=np.zeros((42, 2)),
        keypoints_valid=np.zeros(42, bool),
        hand_state=("unknown", "unknown"),
    )


def image_of(middles: Middles, level: int = 40) -> ByteArray:
    """Squares around these points before a grey wall."""
    image = np.full((SIZE, SIZE, 3), level, np.uint8)
    for side, (x, y) in middles.items():
        image[y - HAND // 2 : y + HAND // 2, x - HAND // 2 : x + HAND // 2] = (
            (255, 0, 0) if side == "right" else (0, 255, 0)
        )
    return image


class SquareDetector:
    """Sees all squares of an image; in video mode it may lose its way.

    Args:
        drift: Pixels that the video mode strays more with each frame since its restart.

    """

    def __init__(self, drift: float = 0.0) -> None:
        self.drift = drift
        self.stills, self.restarts, self._frames = 0, 0, 0

    def detect(self, image: ByteArray, hands: int = 2) -> list[Detection]:
        self.stills += 1
        return self._seen(image, 0)

    def track(self, image: ByteArray, hands: int, *, restart: bool) -> list[Detection]:
        self.restarts += restart
        self._frames = 0 if restart else self._frames + 1
        return self._seen(image, self.drift * self._frames)[:hands]

    def close(self) -> None:
        pass

    @staticmethod
    def _seen(image: ByteArray, strayed: float) -> list[Detection]:
        colours = {"right": (255, 0, 0), "left": (0, 255, 0)}
        found = []
        for side in SIDES:
            rows, columns = np.nonzero((image == colours[side]).all(axis=2))
            if len(rows) == HAND**2:  # a part of one, at the border of a window, is no hand
                grid = np.stack(np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 3)), -1).reshape(21, 2)
                joints = grid * [np.ptp(columns), np.ptp(rows)] + [columns.min() + strayed, rows.min()]
                found.append(Detection(side, 0.95, joints.astype(np.float32), HAND / max(image.shape[:2])))
        return found


def located(detector: SquareDetector, images: Sequence[ByteArray]) -> list[dict[int, tuple[float, float]]]:
    """The middle of each hand of each frame of a run, by its number."""
    tracker = HandTracker(detector)  # type: ignore[arg-type]
    return tracked(tracker, images)


def tracked(tracker: HandTracker, images: Sequence[ByteArray]) -> list[dict[int, tuple[float, float]]]:
    tracker.start_run(len(images))
    frames = [tracker.locate(record(number), pixels) for number, pixels in enumerate(images)]
    return [{hand.track: (float(hand.centre[0]), float(hand.centre[1])) for hand in hands} for hands in frames]


@given(
    frames=st.lists(st.tuples(st.integers(0, 40), st.sampled_from("ab"), st.sampled_from([SIZE, 300])), unique=True),
    timed=st.booleans(),
)
def test_runs_are_unbroken_and_hold_every_record_once(frames: list[tuple[int, str, int]], timed: bool) -> None:
    records = [
        record(frame, camera, time=frame / 10 if timed else None, width=width) for frame, camera, width in frames
    ]
    runs = list(runs_of(records))
    assert sorted(position for run in runs for position in run) == list(range(len(records)))
    largest = RUN_GAP_S * 10 if timed else RUN_GAP_FRAMES
    for run in runs:
        assert len({(records[position].camera_id, records[position].width) for position in run}) == 1
        for earlier, later in pairwise(run):
            assert 0 <= records[later].frame_index - records[earlier].frame_index <= largest
    for earlier, later in pairwise(runs):  # none could have gone on
        last, first = records[earlier[-1]], records[later[0]]
        assert (
            last.camera_id != first.camera_id
            or last.width != first.width
            or first.frame_index - last.frame_index > largest
        )


def test_hands_keep_their_numbers_and_one_search_begins_the_run() -> None:
    detector = SquareDetector()
    images = [image_of({"right": (60 + 2 * frame, 60), "left": (150, 150 - frame)}) for frame in range(CHECK_FRAMES)]
    hands = located(detector, images)
    assert {frozenset(frame) for frame in hands} == {frozenset(hands[0])}
    assert len(hands[0]) == 2
    assert detector.stills == 1
    assert detector.restarts == 1


def test_a_cut_begins_anew() -> None:
    detector = SquareDetector()
    first = [image_of({"right": (60, 60)}, level=20)] * 4
    second = [image_of({"right": (66, 60)}, level=200)] * 4
    hands = located(detector, [*first, *second])
    assert not set(hands[3]) & set(hands[4]), "another shot may show another hand at the same point"
    assert set(hands[4]) == set(hands[7])
    assert detector.stills == 2


def test_what_strays_is_found_out_by_a_still_search_now_and_then() -> None:
    detector = SquareDetector(drift=1.0)
    hands = located(detector, [image_of({"right": (60, 60)})] * (CHECK_FRAMES + 4))
    error = [abs(x - 59.5) for frame in hands for x, _ in frame.values()]
    assert max(error[:CHECK_FRAMES]) > HAND / 4
    assert max(error[CHECK_FRAMES:]) < HAND / 4
    assert [len(frame) for frame in hands] == [1] * len(hands)


def test_a_hand_that_comes_in_is_seen_at_the_next_check() -> None:
    one, two = image_of({"right": (60, 60)}), image_of({"right": (60, 60), "left": (150, 150)})
    hands = located(SquareDetector(), [one] * 3 + [two] * CHECK_FRAMES)
    assert len(hands[3]) == 1
    assert len(hands[-1]) == 2
    assert set(hands[0]) < set(hands[-1])


@pytest.mark.parametrize("hidden", [1, 4, 8])
def test_a_hand_that_is_hidden_for_a_moment_keeps_its_number(hidden: int) -> None:
    both, one = image_of({"right": (60, 60), "left": (150, 150)}), image_of({"right": (60, 60)})
    hands = located(SquareDetector(), [both] * 3 + [one] * hidden + [both] * 3)
    assert [len(frame) for frame in hands] == [2] * 3 + [1] * hidden + [2] * 3
    assert set(hands[-1]) == set(hands[0])


def test_what_is_seen_of_a_run_does_not_depend_on_the_run_before() -> None:
    images = [image_of({"right": (60 + 3 * frame, 60)}) for frame in range(12)]
    tracker = HandTracker(SquareDetector())  # type: ignore[arg-type]
    tracked(tracker, [image_of({"left": (150, 150), "right": (60, 150)}, level=41)] * 5)
    again = tracked(tracker, images)
    fresh = located(SquareDetector(), images)
    assert [list(frame.values()) for frame in again] == [list(frame.values()) for frame in fresh]
    assert len({number for frame in again for number in frame}) == 1
