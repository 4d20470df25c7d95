"""Masks from keypoints: what the numbers mean, where the wrist is cut, and how well GrabCut finds hands."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from handdata.adapters.synthesis.scene import build_identity
from handdata.adapters.synthesis.sequence import sample_sequence
from handdata.pipeline.annotation.crop import square_around
from handdata.pipeline.annotation.masks import (
    choose_mask,
    cut_forearm,
    grabcut_mask,
    hand_length,
    mask_score,
    mask_spill,
    sam_prompts,
)
from handdata.schemas import SIDES, Side, hand_rows

SIZE = 96

unhurried = settings(deadline=None)  # the first call is slow, and so are shared machines

Labels = tuple[NDArray[np.float32], NDArray[np.bool_]]


def open_hand(x: float, y: float, length: float, angle: float = 0.0) -> NDArray[np.float32]:
    """An open hand, (21, 2) pixels around (x, y); fingers up, turned by ``angle`` radians."""
    wrist = np.array([[0.0, 0.5]])
    thumb = np.array([[-0.2, 0.4], [-0.32, 0.25], [-0.42, 0.12], [-0.5, 0.0]])
    fingers = [
        np.stack([column * np.array([0.8, 0.9, 1.0, 1.1]), top + np.array([0.5, 0.27, 0.13, 0.0])], axis=1)
        for column, top in ((-0.18, -0.47), (0.0, -0.5), (0.15, -0.46), (0.28, -0.36))
    ]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = np.concatenate([wrist, thumb, *fingers]) @ turn.T
    return (shape * length + (x, y)).astype(np.float32)


def labels_of(right: NDArray[np.float32] | None = None, left: NDArray[np.float32] | None = None) -> Labels:
    keypoints, valid = np.zeros((42, 2), dtype=np.float32), np.zeros(42, dtype=bool)
    for side, hand in zip(SIDES, (right, left), strict=True):
        if hand is not None:
            keypoints[hand_rows(side)], valid[hand_rows(side)] = hand, True
    return keypoints, valid


def filled_hull(points: NDArray[np.float32], size: int = SIZE) -> NDArray[np.bool_]:
    canvas = np.zeros((size, size), dtype=np.uint8)
    cv2.fillConvexPoly(canvas, np.round(cv2.convexHull(points)).astype(np.int32), 1)
    return canvas.astype(bool)


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())


@st.composite
def plausible_hands(draw: st.DrawFn, joints_missing: bool = False) -> Labels:
    """One or two hands inside a crop of SIZE, turned, sized, squeezed and shaken at will, on quarters of a pixel."""
    number = st.floats(0, 1, width=32)
    keypoints, valid = np.zeros((42, 2), dtype=np.float32), np.zeros(42, dtype=bool)
    for side in draw(st.sampled_from([("right",), ("left",), ("right", "left")])):
        hand = open_hand(0, 0, 20 + 30 * draw(number), 2 * np.pi * draw(number))
        hand *= [0.2 + 0.8 * draw(number), 1]
        hand += np.random.default_rng(draw(st.integers(0, 2**32 - 1))).normal(0, 2 * draw(number), hand.shape)
        hand += [30 + 36 * draw(number), 30 + 36 * draw(number)]
        keypoints[hand_rows(side)] = np.round(hand.clip(0, SIZE - 1) * 4) / 4
        valid[hand_rows(side)] = True
    if joints_missing:
        valid &= np.array(draw(st.lists(st.booleans(), min_size=42, max_size=42)))
    return keypoints, valid


random_masks = st.integers(0, 2**32 - 1).map(
    lambda seed: cv2.resize(np.random.default_rng(seed).random((6, 6)), (SIZE, SIZE)) > 0.5
)


class TestScore:
    @unhurried
    @given(plausible_hands(joints_missing=True))
    def test_is_one_for_a_full_mask_and_zero_for_an_empty_one(self, labels: Labels) -> None:
        full = np.ones((SIZE, SIZE), dtype=bool)
        assert mask_score(full, *labels) == (1.0 if labels[1].any() else 0.0)
        assert mask_score(~full, *labels) == 0.0

    def test_is_the_share_of_valid_keypoints_whose_nearest_pixel_is_inside(self) -> None:
        keypoints, valid = labels_of()
        keypoints[:4] = (10.4, 20), (10.6, 20), (10, 20), (10, 20)
        valid[:3] = True
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        mask[20, 10] = True
        assert mask_score(mask, keypoints, valid) == pytest.approx(2 / 3)

    def test_counts_keypoints_outside_the_crop_as_missed(self) -> None:
        keypoints, valid = labels_of()
        keypoints[:3] = (-0.6, 5), (5, SIZE), (-0.4, 5)
        valid[:3] = True
        assert mask_score(np.ones((SIZE, SIZE), dtype=bool), keypoints, valid) == pytest.approx(1 / 3)


class TestSpill:
    @unhurried
    @given(plausible_hands())
    def test_is_zero_for_the_hulls_themselves(self, labels: Labels) -> None:
        keypoints, valid = labels
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        for side in SIDES:
            if valid[hand_rows(side)].any():
                mask |= filled_hull(keypoints[hand_rows(side)])
        assert mask_spill(mask, keypoints, valid) == 0.0

    def test_is_the_share_of_area_farther_than_the_limit_from_the_hull(self) -> None:
        hand = open_hand(150, 150, 80)
        keypoints, valid = labels_of(right=hand)
        limit = 0.35 * hand_length(hand, np.ones(21, dtype=bool))
        y, x = np.mgrid[:300, :300]
        hull = cv2.convexHull(hand)
        distances = [
            -cv2.pointPolygonTest(hull, (float(a), float(b)), True) for b, a in zip(y.flat, x.flat, strict=True)
        ]
        expected = float(np.mean(np.array(distances) > limit))
        assert mask_spill(np.ones((300, 300), dtype=bool), keypoints, valid) == pytest.approx(expected, abs=0.01)

    def test_of_an_empty_mask_is_zero_and_of_a_mask_without_hands_one(self) -> None:
        nothing = np.zeros((SIZE, SIZE), dtype=bool)
        assert mask_spill(nothing, *labels_of(right=open_hand(48, 48, 40))) == 0.0
        assert mask_spill(~nothing, *labels_of()) == 1.0


class TestHandLength:
    def test_of_an_open_hand_is_wrist_to_middle_tip(self) -> None:
        assert hand_length(open_hand(0, 0, 80), np.ones(21, dtype=bool)) == pytest.approx(80, rel=0.15)

    def test_hardly_changes_when_fingers_curl(self) -> None:
        hand = open_hand(0, 0, 80)
        curled = hand.copy()
        for base in (5, 9, 13, 17):
            curled[base + 2 : base + 4, 1] = 2 * hand[base + 1, 1] - hand[base + 2 : base + 4, 1]
        everything = np.ones(21, dtype=bool)
        assert hand_length(curled, everything) == pytest.approx(hand_length(hand, everything), rel=0.1)

    def test_is_zero_without_joints(self) -> None:
        assert hand_length(np.zeros((21, 2), dtype=np.float32), np.zeros(21, dtype=bool)) == 0.0


class TestInvalidJointsAndPosition:
    @unhurried
    @given(plausible_hands(joints_missing=True), random_masks, st.integers(0, 2**32 - 1))
    def test_joints_that_are_not_valid_change_nothing(self, labels: Labels, mask: NDArray[np.bool_], seed: int) -> None:
        keypoints, valid = labels
        other = keypoints.copy()
        other[~valid] = np.random.default_rng(seed).uniform(-500, 500, (int((~valid).sum()), 2))
        assert mask_score(mask, other, valid) == mask_score(mask, keypoints, valid)
        assert mask_spill(mask, other, valid) == mask_spill(mask, keypoints, valid)
        np.testing.assert_array_equal(cut_forearm(mask, other, valid), cut_forearm(mask, keypoints, valid))
        for first, second in zip(sam_prompts(other, valid), sam_prompts(keypoints, valid), strict=True):
            np.testing.assert_array_equal(first.points, second.points)
            np.testing.assert_array_equal(first.box_xyxy, second.box_xyxy)

    @unhurried
    @given(plausible_hands(), random_masks, st.integers(0, 60), st.integers(0, 60))
    def test_moving_hands_and_mask_together_changes_nothing(
        self, labels: Labels, mask: NDArray[np.bool_], dx: int, dy: int
    ) -> None:
        keypoints, valid = labels
        still, moved = np.zeros((160, 160), dtype=bool), np.zeros((160, 160), dtype=bool)
        still[:SIZE, :SIZE] = mask
        moved[dy : dy + SIZE, dx : dx + SIZE] = mask
        shifted = keypoints + np.float32([dx, dy])
        assert mask_score(moved, shifted, valid) == mask_score(still, keypoints, valid)
        assert mask_spill(moved, shifted, valid) == pytest.approx(mask_spill(still, keypoints, valid), abs=2e-3)
        cut, cut_moved = cut_forearm(still, keypoints, valid), cut_forearm(moved, shifted, valid)
        assert np.count_nonzero(cut_moved[dy : dy + SIZE, dx : dx + SIZE] != cut[:SIZE, :SIZE]) <= 10


class TestForearmCut:
    @unhurried
    @given(plausible_hands(joints_missing=True), random_masks)
    def test_only_removes_and_keeps_every_joint(self, labels: Labels, mask: NDArray[np.bool_]) -> None:
        cut = cut_forearm(mask, *labels)
        assert not (cut & ~mask).any()
        assert mask_score(cut, *labels) == mask_score(mask, *labels)

    @pytest.mark.parametrize("angle", [0.0, 1.0, np.pi / 2, 4.0])
    def test_removes_the_arm_and_keeps_the_hand(self, angle: float) -> None:
        hand = open_hand(150, 150, 80, angle)
        keypoints, valid = labels_of(left=hand)
        down = (hand[0] - hand[9]) / np.linalg.norm(hand[0] - hand[9])
        arm = np.zeros((300, 300), dtype=np.uint8)
        cv2.line(arm, hand[0].round().astype(int).tolist(), (hand[0] + 300 * down).astype(int).tolist(), 1, 24)
        hand_only = filled_hull(hand, 300)

        cut = cut_forearm(hand_only | (arm > 0), keypoints, valid)

        assert cut[hand_only].all()
        y, x = np.nonzero(cut)
        behind = (np.stack([x, y], axis=1) - hand[0]) @ down
        assert 0 < behind.max() < 0.2 * 80
        assert mask_spill(hand_only | (arm > 0), keypoints, valid) > 0.2
        assert mask_spill(cut, keypoints, valid) == 0.0

    def test_keeps_the_other_hand_behind_the_wrist(self) -> None:
        upper, lower = open_hand(100, 60, 60), open_hand(100, 180, 60, np.pi)
        both = filled_hull(upper, 240) | filled_hull(lower, 240)
        np.testing.assert_array_equal(cut_forearm(both, *labels_of(right=upper, left=lower)), both)

    def test_leaves_a_hand_without_a_wrist_as_it_is(self) -> None:
        keypoints, valid = labels_of(right=open_hand(48, 48, 40))
        valid[0] = False
        mask = np.ones((SIZE, SIZE), dtype=bool)
        assert cut_forearm(mask, keypoints, valid).all()

    def test_removes_the_arm_of_a_hand_that_points_at_the_camera(self) -> None:
        hand = open_hand(100, 100, 80)
        hand[1:] = hand[0] + (hand[1:] - hand[0]) * [1.0, 0.15]
        keypoints, valid = labels_of(right=hand)
        mask = cut_forearm(np.ones((200, 200), dtype=bool), keypoints, valid)
        assert mask_score(mask, keypoints, valid) == 1.0
        assert mask.mean() < 0.3


class TestChoice:
    def test_takes_the_hand_rather_than_a_finger_the_arm_or_everything(self) -> None:
        hand = open_hand(150, 100, 80)
        hull = filled_hull(hand, 300)
        arm = hull.copy()
        arm[140:, 135:165] = True
        finger = filled_hull(hand[5:9], 300)
        candidates = np.stack([np.ones_like(hull), finger, hull, arm])
        assert choose_mask(candidates, *labels_of(right=hand)) == 2

    def test_of_equals_takes_the_first(self) -> None:
        assert choose_mask(np.ones((3, SIZE, SIZE), dtype=bool), *labels_of(right=open_hand(48, 48, 40))) == 0


class TestPrompts:
    def test_name_all_valid_joints_and_a_box_around_them(self) -> None:
        keypoints, valid = labels_of(left=open_hand(48, 48, 40))
        valid[25] = False
        (prompt,) = sam_prompts(keypoints, valid)
        np.testing.assert_array_equal(prompt.points, keypoints[valid])
        assert (prompt.labels == 1).all()
        assert (prompt.points > prompt.box_xyxy[:2]).all()
        assert (prompt.points < prompt.box_xyxy[2:]).all()

    def test_name_the_other_hands_joints_in_the_box_but_not_those_it_may_cover(self) -> None:
        right, left = open_hand(100, 100, 80), open_hand(150, 100, 80)
        first, second = sam_prompts(*labels_of(right=right, left=left))
        np.testing.assert_array_equal(first.points[:21], right)
        np.testing.assert_array_equal(second.points[:21], left)
        beside = first.points[first.labels == 0]
        assert 0 < len(beside) < 21
        assert all(cv2.pointPolygonTest(cv2.convexHull(right), point.tolist(), True) < -5 for point in beside)

    def test_are_none_without_hands(self) -> None:
        assert sam_prompts(*labels_of()) == []


def skin_on_noise(size: int, hand: NDArray[np.float32], seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An image of a skin-coloured glove on a bluish ground, and where the glove is."""
    truth = np.zeros((size, size), dtype=np.uint8)
    length = hand_length(hand, np.ones(21, dtype=bool))
    for base in (1, 5, 9, 13, 17):
        for a, b in ((0, base), (base, base + 1), (base + 1, base + 2), (base + 2, base + 3)):
            ends = hand[a].round().astype(int).tolist(), hand[b].round().astype(int).tolist()
            cv2.line(truth, *ends, 1, max(1, round(0.11 * length)))
    noise = np.random.default_rng(seed).normal(0, 12, (size, size, 3))
    image = np.where(truth[..., None] > 0, (205, 150, 120), (70, 90, 140)) + noise
    return image.clip(0, 255).astype(np.uint8), truth > 0


class TestGrabCut:
    def test_finds_the_hand_and_repeats_itself(self) -> None:
        hand = open_hand(128, 128, 150)
        image, truth = skin_on_noise(256, hand)
        mask = grabcut_mask(image, *labels_of(right=hand))
        assert iou(mask, truth) > 0.9
        cv2.setRNGSeed(5)
        np.testing.assert_array_equal(grabcut_mask(image, *labels_of(right=hand)), mask)

    def test_of_a_larger_crop_is_the_same_hand_at_its_size(self) -> None:
        hand = open_hand(256, 256, 300)
        image, truth = skin_on_noise(512, hand)
        mask = grabcut_mask(image, *labels_of(right=hand))
        assert mask.shape == (512, 512)
        assert iou(mask, truth) > 0.9

    def test_leaves_out_what_lies_outside_the_image(self) -> None:
        hand = open_hand(128, 128, 150)
        image, _ = skin_on_noise(256, hand)
        outside = np.zeros((256, 256), dtype=bool)
        outside[:, :90] = True
        image[outside] = 0
        mask = grabcut_mask(image, *labels_of(right=hand), outside)
        assert mask.any()
        assert not mask[outside].any()

    def test_without_joints_is_empty(self) -> None:
        image, _ = skin_on_noise(64, open_hand(32, 32, 40))
        assert not grabcut_mask(image, *labels_of()).any()

    @settings(unhurried, max_examples=25)
    @given(plausible_hands(joints_missing=True), st.integers(0, 255))
    def test_takes_any_joints_and_any_image(self, labels: Labels, grey: int) -> None:
        image = np.full((SIZE, SIZE, 3), grey, dtype=np.uint8)
        mask = grabcut_mask(image, *labels)
        assert mask.shape == (SIZE, SIZE)
        assert mask.dtype == bool

    @pytest.mark.slow
    def test_reaches_the_promised_overlap_on_rendered_hands(self) -> None:
        rng = np.random.default_rng(24)
        identities = [build_identity(rng) for _ in range(3)]
        kinds: tuple[tuple[Side, ...], ...] = (("right",), ("left",), ("right", "left"))
        exact, jittered = [], []
        for number in range(24):
            sequence = sample_sequence(rng, identities[number % 3], kinds[number // 3 % 3], 1, 1, 256)
            rendering = sequence.render(sequence.scene(0), 0, rng)
            keypoints, valid = labels_of()
            for motion in sequence.motions:
                rows = hand_rows(motion.side)
                keypoints[rows] = sequence.views[0].camera.project(sequence.joints(motion)[0])
                valid[rows] = True
            square = square_around(keypoints[valid], 256, 256, 1.6, 256)
            image, truth = square.cut(rendering.image), square.cut_mask(rendering.mask > 0)
            outside = ~square.cut_mask(np.ones((256, 256), dtype=bool))
            joints = square.to_crop(keypoints)
            exact.append(iou(grabcut_mask(image, joints, valid, outside), truth))
            # A detector is off by about a fortieth of the crop.
            joints = (joints + rng.normal(0, 4.5, joints.shape)).astype(np.float32)
            jittered.append(iou(grabcut_mask(image, joints, valid, outside), truth))
        assert np.mean(exact) > 0.9
        assert np.min(exact) > 0.8
        assert np.mean(jittered) > 0.85
