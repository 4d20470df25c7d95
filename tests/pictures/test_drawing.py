"""What is drawn lies where the numbers say, and tells the two hands apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from handdata.pictures.drawing import (
    FINGER_COLOURS,
    FLAG_COLOUR,
    MASK_COLOUR,
    draw_flags,
    draw_keypoints,
    draw_mask,
    fit,
    tile,
)
from handdata.schemas import FLIP_PERMUTATION, SIDES, SKELETON_EDGES, hand_rows


def grey(size: int) -> NDArray[np.uint8]:
    return np.full((size, size, 3), 128, dtype=np.uint8)


def open_hands(size: int) -> NDArray[np.float32]:
    """Two fans of fingers: the right hand in the right half, the left one in the left half."""
    angles = np.deg2rad([-150, -115, -95, -75, -55])
    reach = np.array([0.1, 0.15, 0.2, 0.25])
    hand = np.zeros((21, 2))
    fingers = reach[None, :, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None]
    hand[1:] = fingers.reshape(20, 2)
    return (np.concatenate([hand + np.array([0.72, 0.7]), hand + np.array([0.28, 0.7])]) * size).astype(np.float32)


def only(rows: list[int]) -> NDArray[np.bool_]:
    valid = np.zeros(42, dtype=bool)
    valid[rows] = True
    return valid


def changed(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((before != after).any(axis=2))


@pytest.mark.parametrize("size", [64, 192, 256, 512, 1024])
def test_skeleton_is_visible_on_every_bone_at_every_size(size: int) -> None:
    keypoints = open_hands(size)

    drawn = draw_keypoints(grey(size), keypoints, np.ones(42, dtype=bool))

    touched = changed(grey(size), drawn)
    for start, end in SKELETON_EDGES:
        x, y = np.round((keypoints[start] + keypoints[end]) / 2).astype(int)
        assert touched[y, x], f"bone {start}-{end} left no mark at {x}, {y}"
    assert touched.mean() < 0.25, "the drawing covers the image"


@given(st.floats(100, 150), st.floats(100, 150))
@settings(max_examples=30, deadline=None)
def test_joint_is_drawn_at_its_sub_pixel_position(x: float, y: float) -> None:
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    keypoints = np.zeros((42, 2), dtype=np.float32)
    keypoints[0], keypoints[4] = (20, 20), (x, y)  # the mark belongs to the wrist, which is far away

    dot = draw_keypoints(image, keypoints, only([0, 4]))[80:170, 80:170].astype(float).sum(axis=2)

    rows, columns = np.mgrid[80:170, 80:170]
    centre = np.array([(columns * dot).sum(), (rows * dot).sum()]) / dot.sum()
    np.testing.assert_allclose(centre, [x, y], atol=0.15)


def test_right_hands_are_warm_and_left_hands_are_cool() -> None:
    keypoints = open_hands(256)

    drawn = draw_keypoints(grey(256), keypoints, np.ones(42, dtype=bool)).astype(int)

    for side, warmer in zip(SIDES, (1, -1), strict=True):
        for finger, colour in enumerate(FINGER_COLOURS[side]):
            tip = hand_rows(side).start + 4 * finger + 4
            x, y = np.round(keypoints[tip]).astype(int)
            red, _, blue = drawn[y, x]
            assert warmer * (red - blue) > 0
            assert np.abs(drawn[y, x] - colour).max() < 60


def test_exchanged_hands_give_another_picture() -> None:
    keypoints, valid = open_hands(128), np.ones(42, dtype=bool)

    drawn = draw_keypoints(grey(128), keypoints, valid)
    exchanged = draw_keypoints(grey(128), keypoints[FLIP_PERMUTATION], valid)

    assert changed(drawn, exchanged).any()


def test_joints_that_are_not_valid_leave_no_mark() -> None:
    keypoints = open_hands(256)
    right_only = np.arange(42) < 21

    drawn = draw_keypoints(grey(256), keypoints, right_only)

    assert not changed(grey(256), drawn)[:, :100].any()
    assert np.array_equal(draw_keypoints(grey(256), keypoints, only([])), grey(256))


@pytest.mark.parametrize("far", [1e9, -1e9, np.inf, np.nan, 700.0, -300.0])
def test_joints_far_outside_or_not_finite_do_not_stop_the_drawing(far: float) -> None:
    keypoints = open_hands(256)
    keypoints[8] = far

    drawn = draw_keypoints(grey(256), keypoints, np.ones(42, dtype=bool))

    assert changed(grey(256), drawn).any()


def test_the_side_mark_stays_inside_the_image() -> None:
    keypoints = np.zeros((42, 2), dtype=np.float32)
    keypoints[0], keypoints[9] = (0, 0), (40, 40)

    touched = changed(grey(256), draw_keypoints(grey(256), keypoints, only([0, 9])))

    assert touched[:8, :8].mean() > 0.7


def test_mask_tints_its_pixels_and_no_others_beyond_the_outline() -> None:
    mask = np.zeros((256, 256), dtype=bool)
    mask[60:200, 80:180] = True
    mask[100:140, 110:150] = False

    drawn = draw_mask(grey(256), mask)

    touched = changed(grey(256), drawn)
    assert touched[mask].all()
    assert not touched[104:136, 114:146].any(), "the hole is tinted"
    assert not touched[:57].any()
    assert not touched[:, 184:].any()
    assert np.abs(drawn[60, 120].astype(int) - MASK_COLOUR).max() < 60, "no outline"


def test_drawing_leaves_its_input_as_it_was() -> None:
    image = grey(96)
    image.setflags(write=False)

    draw_keypoints(image, open_hands(96), np.ones(42, dtype=bool))
    draw_mask(image, np.ones((96, 96), dtype=bool))
    draw_flags(image, ["blurry"])

    assert np.array_equal(image, grey(96))


def test_flags_stand_at_the_lower_edge() -> None:
    drawn = draw_flags(grey(192), ["blurry", "a_flag_whose_name_is_far_too_long_for_the_image_it_is_on"])

    assert (drawn == FLAG_COLOUR).all(axis=2)[160:].mean() > 0.2
    assert np.array_equal(drawn[:120], grey(192)[:120])
    assert np.array_equal(draw_flags(grey(192), []), grey(192))


@pytest.mark.parametrize(("width", "height"), [(640, 480), (100, 400), (16, 16)])
def test_fit_keeps_the_proportions(width: int, height: int) -> None:
    fitted = fit(np.zeros((height, width, 3), dtype=np.uint8), 200, 200)

    rows, columns = np.nonzero((fitted < 128).all(axis=2))
    assert fitted.shape == (200, 200, 3)
    assert np.ptp(columns) + 1 == pytest.approx(200 * width / max(width, height), abs=1)
    assert np.ptp(rows) + 1 == pytest.approx(200 * height / max(width, height), abs=1)


def test_tile_places_every_image_and_a_caption_below_it() -> None:
    images = [np.full((50, 50, 3), value, dtype=np.uint8) for value in (10, 60, 110)]

    sheet = tile(images, 2, 6, ["first\nline two", "second", ""])

    below = sheet[56 : sheet.shape[0] // 2, 6:56]
    assert sheet.shape[1] == 2 * 56 + 6
    assert [(sheet == value).all(axis=2).sum() >= 2500 for value in (10, 60, 110)] == [True] * 3
    assert np.array_equal(sheet[6:56, 6:56], images[0])
    assert np.array_equal(sheet[6:56, 62:112], images[1])
    assert (below < 100).any()


@pytest.mark.parametrize(("images", "captions"), [(0, 0), (2, 1)])
def test_tile_rejects_a_wrong_number_of_captions(images: int, captions: int) -> None:
    with pytest.raises(ValueError, match=f"got {images} and {captions}"):
        tile([grey(16)] * images, 3, 2, ["x"] * captions)


def test_a_caption_that_is_too_long_keeps_both_ends_and_stays_in_its_cell() -> None:
    sheet = tile([grey(120), grey(120)], 2, 10, ["/".join(["long"] * 40), ""])

    assert (sheet[131:, 10:130] < 100).any()
    assert (sheet[131:, 131:] == 250).all()
