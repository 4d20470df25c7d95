"""Of several people's hands in one photograph, the two that belong together become its sample."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handdata.pipeline.annotation.detector import Detection
from handdata.pipeline.annotation.keypoints import FrameKeypoints, join_keypoints
from handdata.pipeline.annotation.people import may_show_people, of_one_person
from handdata.pipeline.annotation.photo import annotate_photo
from handdata.pipeline.settings import AnnotateSettings
from handdata.schemas import HandRecord, HandState, Side
from tests.fixtures.hands import hand

States = tuple[HandState, HandState]


def record(state: States = ("unknown", "unknown"), **changes: Any) -> HandRecord:
    return HandRecord(
        source="folder",
        split="train",
        sequence_id="s",
        frame_index=0,
        image_uri="/a.jpg",
        width=2000,
        height=1000,
        viewpoint="exo",
        keypoints_2d=np.zeros((42, 2)),
        keypoints_valid=np.zeros(42, bool),
        hand_state=("unknown", "unknown"),
    ).model_copy(update={"hand_state": state, **changes})


def found(side: Side, x: float, y: float, size: float = 100, score: float = 0.9) -> Detection:
    return Detection(side, score, hand(x, y, size))


def test_the_hands_of_the_person_whose_hands_are_the_largest_stay() -> None:
    right, left = found("right", 100, 100), found("left", 700, 100, 80)
    far = [found("left", 1500, 200, 30, 0.99), found("right", 1400, 200, 30, 0.99)]
    for detections in ([right, left, *far], [*far, left, right]):
        kept, others = of_one_person(detections)
        assert {*map(id, kept)} == {id(right), id(left)} and {*map(id, others)} == {*map(id, far)}


def test_of_hands_that_may_be_the_other_one_the_nearest_wrist_is() -> None:
    right = found("right", 500, 100)
    near, farther = found("left", 800, 100, 90), found("left", 100, 900, 110)
    kept, (other,) = of_one_person([farther, right, near])
    assert {*map(id, kept)} == {id(right), id(near)} and other is farther


@pytest.mark.parametrize(
    "other", [found("left", 700, 100, 40), found("right", 700, 100, 100), found("left", 1900, 100, 100)]
)
def test_hands_of_unlike_sizes_of_one_side_or_far_apart_are_not_one_person_s(other: Detection) -> None:
    large = found("right", 100, 100, 130)
    kept, others = of_one_person([large, other, found("right", 1200, 800, 20)])
    assert [*map(id, kept)] == [id(large)] and len(others) == 2


def test_two_hands_are_one_person_s_as_long_as_nothing_else_is_seen() -> None:
    hands = [found("right", 100, 100), found("right", 1500, 100, 20)]
    assert of_one_person(hands) == (hands, [])


def joined(*others: Detection) -> FrameKeypoints:
    return join_keypoints(record(), [found("right", 100, 100)], "prefer-dataset", others)


def test_hands_of_others_are_flagged_and_stay_unknown() -> None:
    assert joined().flags == set()
    assert joined(found("left", 1500, 100)).flags == {"extra_hands"}
    assert joined(found("left", 160, 120)).flags == {"extra_hands", "unlabelled_hand"}
    assert joined(found("left", 160, 120)).hand_state == ("labelled", "unknown")
    assert joined(found("left", 160, 120)).valid[:21].all(), "a hand that another one covers is not lost"


def test_only_images_of_which_nothing_is_known_are_searched_for_people() -> None:
    assert may_show_people(record())
    assert not may_show_people(record(("labelled", "unknown")))
    assert not may_show_people(record(viewpoint="ego"))
    assert not may_show_people(record(extra={"person_box_xyxy_px": [0, 0, 9, 9]}))


def test_a_photograph_of_two_people_gives_the_hands_of_the_nearer_one(shared_dir: Path, tmp_path: Path) -> None:
    """The nearer person shows both hands, the other one, far behind, two more."""
    stills = shared_dir / "data/stills"
    left, right = (
        Image.open(stills / name).convert("RGB").resize((400, 400)) for name in ("sample1.jpg", "sample11.jpg")
    )
    canvas = Image.new("RGB", (1600, 700), (128, 128, 128))
    for hand_image, size, place in (
        (right, 400, (50, 250)),
        (left, 400, (500, 250)),
        (right, 180, (1150, 60)),
        (left, 180, (1390, 60)),
    ):
        canvas.paste(hand_image.resize((size, size)), place)
    canvas.save(tmp_path / "party.png")
    sample = annotate_photo(tmp_path / "party.png", AnnotateSettings(image_size=64))
    assert "extra_hands" in sample.flags
    assert sample.hand_state == ("labelled", "labelled") and min(*sample.hand_px) > 170
    assert sample.crop_xyxy[2] < 1150
