from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handdata.schemas import FLIP_PERMUTATION, inside
from handdata.trainer.data.augment import Frame, augment_pair, change_gamma, crop, mirror, resize
from handdata.trainer.presets import AugmentationConfig

SIZE = 96
PLACES = st.lists(st.tuples(st.integers(6, SIZE - 7), st.integers(6, SIZE - 7)), min_size=42, max_size=42)
NOTHING = AugmentationConfig(max_gamma=1, flip=0, hand_swap=0, smallest_crop=1)


def frame_with(places: list[tuple[int, int]], seen: int = 42) -> Frame:
    keypoints = np.array(places, np.float32)
    rng = np.random.default_rng(0)
    return Frame(
        image=rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8),
        mask=rng.integers(0, 2, (SIZE, SIZE)).astype(np.uint8) * np.uint8(255),
        known=np.full((SIZE, SIZE), 255, np.uint8),
        keypoints=keypoints,
        valid=np.arange(42) < seen,
    )


def frame_with_dot(place: tuple[int, int], joint: int) -> Frame:
    """One joint is annotated; its place is a bright square of five pixels, in the image and in the mask."""
    frame = frame_with([place] * 42)
    x, y = place
    image, mask = np.zeros_like(frame.image), np.zeros_like(frame.mask)
    image[y - 2 : y + 3, x - 2 : x + 3] = 255
    mask[y - 2 : y + 3, x - 2 : x + 3] = 255
    return replace(frame, image=image, mask=mask, valid=np.arange(42) == joint)


def centre(plane: np.ndarray) -> np.ndarray:
    weight = plane.astype(float)
    rows, columns = np.indices(weight.shape)
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def assert_equal(one: Frame, other: Frame) -> None:
    for name in Frame.__slots__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@settings(deadline=None, max_examples=50)
@given(places=PLACES, seen=st.integers(0, 42))
def test_mirroring_twice_changes_nothing(places: list[tuple[int, int]], seen: int) -> None:
    frame = frame_with(places, seen)
    assert_equal(mirror(mirror(frame)), frame)


def test_mirroring_exchanges_the_hands() -> None:
    frame = frame_with([(10, 20)] * 42, seen=21)
    flipped = mirror(frame)
    assert flipped.valid.tolist() == frame.valid[FLIP_PERMUTATION].tolist()
    np.testing.assert_array_equal(flipped.keypoints[30], [SIZE - 1 - 10, 20])


@settings(max_examples=60, deadline=None)
@given(
    place=st.tuples(st.integers(6, SIZE - 7), st.integers(6, SIZE - 7)),
    joint=st.integers(0, 41),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([32, 64, 96, 160]),
)
def test_a_joint_stays_on_its_dot_through_any_augmentation(
    place: tuple[int, int], joint: int, seed: int, size: int
) -> None:
    frame = frame_with_dot(place, joint)
    config = AugmentationConfig(max_gamma=1, flip=0.5, hand_swap=0.5, smallest_crop=0.6)
    pair = augment_pair(frame, frame, False, size, config, np.random.default_rng(seed))
    for made in pair:
        assert made is not None
        assert made.image.shape == (size, size, 3)
        (row,) = np.flatnonzero(made.valid) if made.valid.any() else (None,)
        reach = 3.5 * size / (0.6 * SIZE)  # half of the dot's side at the strongest enlargement, and a little
        if row is None or not inside(made.keypoints[row] - reach, size, size):
            continue  # the crop has cut the dot, or a part of it
        if not inside(made.keypoints[row] + reach, size, size):
            continue
        assert row in (joint, FLIP_PERMUTATION[joint])
        assert np.linalg.norm(made.keypoints[row] - centre(made.mask)) < 1
        assert np.linalg.norm(made.keypoints[row] - centre(made.image[..., 0])) < 1


@settings(max_examples=60, deadline=None)
@given(places=PLACES, seed=st.integers(0, 2**32 - 1), seen=st.integers(0, 42))
def test_valid_means_annotated_and_inside(places: list[tuple[int, int]], seed: int, seen: int) -> None:
    frame = frame_with(places, seen)
    config = AugmentationConfig(flip=0, hand_swap=0, smallest_crop=0.5)
    target, _ = augment_pair(frame, None, False, 32, config, np.random.default_rng(seed))
    np.testing.assert_array_equal(target.valid, frame.valid & inside(target.keypoints, 32, 32))


def test_cropping_moves_joints_with_their_pixels() -> None:
    frame = frame_with([(40, 50)] * 42)
    cut = crop(frame, 30, 35, 40)
    np.testing.assert_array_equal(cut.keypoints[0], [10, 15])
    np.testing.assert_array_equal(cut.image[15, 10], frame.image[50, 40])
    assert not crop(frame, 41, 0, 40).valid.any()


def test_resizing_keeps_pixel_centres() -> None:
    frame = frame_with([(0, 95)] * 42)
    np.testing.assert_allclose(resize(frame, 48).keypoints[0], [-0.25, 47.25])


def test_gamma_and_flip_are_the_same_for_both_frames_of_a_pair() -> None:
    frame = frame_with([(40, 50)] * 42)
    config = AugmentationConfig(max_gamma=2, flip=0.5, hand_swap=0, smallest_crop=1)
    seen = set()
    for seed in range(12):
        target, reference = augment_pair(frame, frame, False, SIZE, config, np.random.default_rng(seed))
        assert reference is not None
        assert_equal(target, reference)
        seen.add((bool(target.keypoints[0, 0] != 40), bool(target.image.mean() > frame.image.mean())))
    assert len(seen) == 4  # flipped or not, brighter or darker


def test_the_hand_swap_mirrors_the_reference_alone_and_never_another_view() -> None:
    frame = frame_with([(40, 50)] * 42)
    config = NOTHING.model_copy(update={"hand_swap": 1.0})
    target, reference = augment_pair(frame, frame, False, SIZE, config, np.random.default_rng(0))
    assert reference is not None
    assert_equal(target, frame)
    assert_equal(reference, mirror(frame))
    _, view = augment_pair(frame, frame, True, SIZE, config, np.random.default_rng(0))
    assert view is not None
    assert_equal(view, frame)


def test_gamma_above_one_darkens_and_keeps_black_and_white() -> None:
    frame = frame_with([(40, 50)] * 42)
    image = np.zeros((1, 3, 3), np.uint8)
    image[0, 1], image[0, 2] = 128, 255
    changed = change_gamma(replace(frame, image=image), 2.0).image[0, :, 0]
    assert changed.tolist() == [0, pytest.approx(64, abs=1), 255]
