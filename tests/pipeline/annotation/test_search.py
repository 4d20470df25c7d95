"""The search for hands: windows, hints, merging, and small hands that only a closer search finds."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from handdata.adapters.synthesis.scene import build_identity
from handdata.adapters.synthesis.sequence import sample_sequence
from handdata.pipeline.annotation.detector import Detection, HandDetector, side_vote, thumb_opposition
from handdata.pipeline.annotation.search import Window, _tiles, box_hint, find_hands, merge, record_hints
from handdata.pipeline.weights import require_weights
from handdata.schemas import HandRecord, Side


@pytest.fixture(scope="module")
def detector() -> Iterator[HandDetector]:
    with HandDetector(require_weights("hand_landmarker"), 0.3) as made:
        yield made


@pytest.fixture(scope="module")
def hand_image() -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A right hand at 192 px and its joints."""
    rng = np.random.default_rng(5)
    sequence = sample_sequence(rng, build_identity(rng), ("right",), 1, 1, 192)
    rendering = sequence.render(sequence.scene(0), 0, rng)
    return rendering.image, sequence.views[0].camera.project(sequence.joints(sequence.motions[0])[0])


def hand(x: float, y: float, size: float = 50) -> NDArray[np.float32]:
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 3)), -1).reshape(21, 2)
    return (grid * size + [x, y]).astype(np.float32)


def detection(side: Side, x: float, y: float, score: float = 0.9, share: float = 0.22) -> Detection:
    return Detection(side, score, hand(x, y), share)


def test_a_window_over_the_border_repeats_the_last_pixels_and_maps_back() -> None:
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    window = Window(-2, 1, 4, 5)
    assert window.cut(image).shape == (5, 4, 3)
    assert (window.cut(image)[0, :3] == image[1, 0]).all()
    (moved,) = window.moved_to_full([detection("right", 2, 0)])
    assert np.array_equal(moved.keypoints, hand(0, 1))


def test_the_detection_with_the_best_size_is_kept_and_all_detections_vote_on_the_side() -> None:
    detections = [
        detection("left", 100, 100, 0.6, share=0.05),
        detection("right", 104, 100, 0.8, share=0.2),
        detection("right", 103, 101, 0.9, share=0.7),
    ]
    (merged,) = merge(detections)
    assert merged.side == "right"
    assert np.array_equal(merged.keypoints, detections[1].keypoints)


def test_two_hands_that_cover_each_other_stay_two() -> None:
    assert len(merge([detection("left", 100, 100, 0.97), detection("right", 112, 100, 0.97)])) == 2
    assert len(merge([detection("right", 100, 100, 0.97), detection("right", 112, 100, 0.97)])) == 1


def test_hints_of_all_adapters_have_the_same_names() -> None:
    record = HandRecord(
        source="visor",
        split="train",
        sequence_id="s",
        frame_index=0,
        image_uri="/a.jpg",
        width=400,
        height=200,
        viewpoint="ego",
        keypoints_2d=np.zeros((42, 2)),
        keypoints_valid=np.zeros(42, bool),
        hand_state=("unknown", "unknown"),
        extra={
            "boxes_xyxy_px": [[10, 20, 50, 60]],
            "box_sides": ["left"],
            "centres_xy_px": [[200, 100]],
            "centre_sides": ["right"],
        },
    )
    box, centre = record_hints(record)
    assert (box.side, centre.side) == ("left", "right")
    assert (box.window.width, box.window.height) == (80, 80)
    assert box.meets(detection("right", 10, 30, share=0.1))
    assert not centre.meets(detection("right", 0, 0))


def test_a_small_hand_of_a_wide_frame_is_found_by_tiles_and_by_a_hint(
    detector: HandDetector, hand_image: tuple[NDArray[np.uint8], NDArray[np.float64]]
) -> None:
    image, joints = hand_image
    frame = np.full((540, 960, 3), 90, np.uint8)
    small = cv2.resize(image, (84, 84), interpolation=cv2.INTER_AREA)
    frame[300:384, 700:784] = small
    truth = (joints + 0.5) * 84 / 192 - 0.5 + [700, 300]
    assert not detector.detect(frame)
    for hints in ((), (box_hint(np.array([700, 300, 784, 384], np.float32), "left"),)):
        (found,) = find_hands(detector, frame, hints=hints)
        size = np.ptp(truth, axis=0).max()
        assert np.linalg.norm(found.keypoints - truth, axis=1).mean() < 0.1 * size
        assert found.side == ("left" if hints else "right"), "the side of a hint is a label"


def test_a_clear_hand_costs_one_search(
    detector: HandDetector,
    hand_image: tuple[NDArray[np.uint8], NDArray[np.float64]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, _ = hand_image
    searches = []
    detect = HandDetector.detect
    monkeypatch.setattr(HandDetector, "detect", lambda self, *of: searches.append(1) or detect(self, *of))
    assert len(find_hands(detector, image)) == 1
    assert len(searches) == 1


@pytest.mark.parametrize(("width", "height", "count"), [(640, 480, 2), (12000, 3000, 4), (2000, 2, 12), (2, 3000, 12)])
def test_a_strip_is_not_searched_in_a_thousand_squares(width: int, height: int, count: int) -> None:
    tiles = _tiles(np.zeros((height, width, 3), np.uint8), None)
    assert len(tiles) == count
    seen = np.zeros((height, width), bool)
    for tile in tiles:
        seen[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = True
    assert seen.all()


def open_right_hand() -> np.ndarray:
    """Joints of an open right hand, palm towards the camera: x right, y down, z away; the thumb a little in front."""
    world = np.zeros((21, 3))
    for finger, x in enumerate((0.4, 0.1, -0.1, -0.3)):  # index to little finger
        for joint in range(4):
            world[5 + 4 * finger + joint] = [x, -1 - 0.3 * joint, 0]
    for joint in range(1, 5):
        world[joint] = [0.3 + 0.15 * joint, -0.2 * joint, -0.1 * joint]
    return world


@pytest.mark.parametrize("seed", range(5))
def test_the_thumb_tells_the_side_however_the_hand_is_turned(seed: int) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    right = open_right_hand()
    left = right * [-1, 1, 1]
    assert thumb_opposition(right) > 0
    for scale in (0.01, 1.0, 30.0):
        opposition = thumb_opposition(scale * right @ turn.T + 5)
        assert opposition == pytest.approx(thumb_opposition(right))
        assert thumb_opposition(scale * left @ turn.T + 5) == pytest.approx(-opposition)


def test_a_clear_shape_overrules_a_doubtful_name_and_not_a_certain_one() -> None:
    assert side_vote("left", 0.6, 1.0) > 0
    assert side_vote("left", 0.95, 1.0) < 0
    assert side_vote("right", 0.6, -1.0) < 0
    assert -1 <= side_vote("left", 1.0, -1.0) < side_vote("left", 0.8, 0.0) < 0
