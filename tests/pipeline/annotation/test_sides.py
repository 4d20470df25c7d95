"""A unit agrees on sides: labels, runs, views, two hands of a frame."""

from dataclasses import replace

import numpy as np

from handdata.pipeline.annotation.detector import Detection
from handdata.pipeline.annotation.sides import Located, agree_on_sides
from handdata.schemas import HandRecord, HandState, Side


def record(frame: int, camera: str = "0", states: tuple[HandState, HandState] = ("unknown", "unknown")) -> HandRecord:
    return HandRecord(
        source="synthetic",
        split="train",
        sequence_id="s",
        frame_index=frame,
        camera_id=camera,
        image_uri="/a.jpg",
        width=640,
        height=480,
        viewpoint="exo",
        keypoints_2d=np.zeros((42, 2)),
        keypoints_valid=np.zeros(42, bool),
        hand_state=states,
    )


def seen(side: Side, track: int, score: float = 0.9) -> Detection:
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 3)), -1).reshape(21, 2)
    return Detection(side, score, (grid * 50 + 100 * track).astype(np.float32), track=track)


def sides(frames: list[Located]) -> list[list[Side]]:
    agreed = agree_on_sides(frames, "prefer-dataset")
    return [[d.side for d in sorted(frame.detections, key=lambda d: d.track)] for frame in agreed]


def test_a_hand_keeps_one_side_along_its_run() -> None:
    seen_sides: list[Side] = ["right", "right", "left", "right", "left", "right"]
    frames = [Located(record(frame), [seen(side, 0)]) for frame, side in enumerate(seen_sides)]
    assert sides(frames) == [["right"]] * 6


def test_views_of_one_hand_vote() -> None:
    frames = [
        Located(record(0, "a"), [seen("right", 0, 0.99)]),
        Located(record(0, "b"), [seen("left", 1, 0.8)]),
        Located(record(0, "c"), [seen("right", 2, 0.9)]),
        Located(record(0, "d"), []),
    ]
    assert sides(frames) == [["right"], ["right"], ["right"], []]


def test_views_do_not_vote_where_two_hands_are_about() -> None:
    frames = [
        Located(record(0, "a"), [seen("right", 0, 0.99)]),
        Located(record(0, "b"), [seen("left", 1, 0.8)]),
        Located(record(1, "a"), [seen("right", 0, 0.99), seen("left", 2)]),
    ]
    assert sides(frames)[:2] == [["right"], ["left"]]


def test_what_a_dataset_says_of_one_frame_names_the_hand_in_all() -> None:
    frames = [Located(record(frame), [seen("right", 0, 0.99)]) for frame in range(5)]
    frames.append(Located(record(5, states=("absent", "unknown")), [seen("right", 0, 0.99)]))
    assert sides(frames) == [["left"]] * 6


def test_two_hands_of_a_frame_differ_and_the_weaker_claim_is_contested() -> None:
    (agreed,) = agree_on_sides([Located(record(0), [seen("right", 0, 0.99), seen("right", 1, 0.7)])], "mediapipe")
    by_track = {detection.track: detection for detection in agreed.detections}
    assert (by_track[0].side, by_track[0].contested) == ("right", False)
    assert (by_track[1].side, by_track[1].contested) == ("left", True)


def test_a_second_hand_that_one_of_many_views_sees_is_contested() -> None:
    frames = [Located(record(0, str(camera)), [seen("right", camera)]) for camera in range(12)]
    frames.append(Located(record(0, "12"), [seen("right", 12), seen("left", 13, 0.85)]))
    *others, last = agree_on_sides(frames, "mediapipe")
    assert not any(detection.contested for frame in others for detection in frame.detections)
    assert {d.track: (d.side, d.contested) for d in last.detections} == {12: ("right", False), 13: ("left", True)}


def test_one_frame_of_two_right_hands_does_not_rename_a_run() -> None:
    frames = [Located(record(frame), [seen("right", 0)]) for frame in range(9)]
    frames.append(Located(record(9), [seen("right", 0), seen("right", 1)]))
    frames += [Located(record(frame), [seen("right", 1)]) for frame in range(10, 30)]
    agreed = agree_on_sides(frames, "mediapipe")
    assert {d.side for frame in agreed[:9] + agreed[10:] for d in frame.detections} == {"right"}
    # Both are well known, and the first was there before.
    assert {d.track: (d.side, d.contested) for d in agreed[9].detections} == {0: ("right", False), 1: ("left", True)}


def test_a_passing_error_has_no_claim_against_a_hand_that_stays() -> None:
    frames = [Located(record(0), [seen("right", 0)]), Located(record(1), [seen("right", 0), seen("right", 1, 0.8)])]
    frames += [Located(record(frame), [seen("right", 1, 0.8)]) for frame in range(2, 20)]
    agreed = agree_on_sides(frames, "mediapipe")
    assert {d.track: (d.side, d.contested) for d in agreed[1].detections} == {0: ("left", True), 1: ("right", False)}


def test_the_order_of_frames_changes_nothing() -> None:
    frames = [Located(record(frame), [seen("right", 0, 0.6 + frame / 20), seen("left", 1)]) for frame in range(6)]
    backwards = agree_on_sides([replace(frame) for frame in frames[::-1]], "mediapipe")[::-1]
    assert [f.detections for f in agree_on_sides(frames, "mediapipe")] == [f.detections for f in backwards]
