"""Joint orders, cameras and pixels: checked against OpenCV, inverses and first principles."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from handdata.adapters.reading.geometry import (
    apply_affine,
    camera_t_world_at,
    intrinsics,
    invert_rigid,
    metres_from_millimetres,
    pixel_affine,
    place_hands,
    place_validity,
    project,
    project_fisheye,
    project_rational,
    rational_fold_radius,
    reorder_joints,
    rigid_transform,
    transform_points,
)

K = intrinsics((900.0, 910.0), (640.0, 355.0))
INTERHAND_ORDER = [20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16]
ARCTIC_LIKE_LENS = (0.5, -0.3, 0.001, -0.0008, 0.02, 0.8, -0.1, 0.05)

coordinates = st.floats(-1, 1)
points_in_front = arrays(np.float64, (7, 3), elements=coordinates).map(lambda p: p * [0.4, 0.4, 0.4] + [0, 0, 1])
rotations = arrays(np.float64, 3, elements=st.floats(-3, 3)).map(lambda v: Rotation.from_rotvec(v).as_matrix())
translations = arrays(np.float64, 3, elements=st.floats(-5, 5))


@given(order=st.permutations(range(21)))
def test_each_joint_is_taken_from_the_row_that_the_order_names(order: list[int]) -> None:
    values = np.arange(42.0).reshape(21, 2)
    assert (reorder_joints(values, order) == np.array([values[row] for row in order])).all()


def test_interhand_tips_come_first_and_its_wrist_last() -> None:
    names = [f"{finger}{joint}" for finger in ("thumb", "index", "middle", "ring", "little") for joint in (4, 3, 2, 1)]
    named = reorder_joints(np.arange(21), INTERHAND_ORDER).tolist()
    assert named[0] == 20
    assert [names[row] for row in named[1:6]] == ["thumb1", "thumb2", "thumb3", "thumb4", "index1"]


def test_a_joint_that_the_dataset_lacks_is_zero_and_invalid() -> None:
    order = [-1, *range(20)]
    assert (reorder_joints(np.ones((20, 3)), order)[0] == 0).all()
    assert reorder_joints(np.ones(20, dtype=bool), order).tolist() == [False] + [True] * 20


def test_reordering_leaves_the_input_as_it_is() -> None:
    values = np.ones((21, 2))
    values.setflags(write=False)
    reorder_joints(values, [-1] * 21)
    assert (values == 1).all()


@pytest.mark.parametrize("order", [range(20), [*range(20), 21], [*range(20), -2]])
def test_an_order_that_does_not_fit_is_an_error(order: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 21 rows"):
        reorder_joints(np.zeros((21, 2)), order)


def test_hands_lie_in_their_rows_and_a_missing_hand_is_zero() -> None:
    right, left = np.full((21, 3), 1.0), np.full((21, 3), 2.0)
    both = place_hands(right, left, dimensions=3)
    assert (both[:21] == 1).all()
    assert (both[21:] == 2).all()
    assert (place_hands(left=left, dimensions=3)[:21] == 0).all()
    assert place_validity(left=[1] * 20 + [0]).tolist() == [False] * 21 + [True] * 20 + [False]
    assert place_validity(right=True).tolist() == [True] * 21 + [False] * 21


@given(points=points_in_front)
def test_pinhole_agrees_with_opencv(points: np.ndarray) -> None:
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, None)
    np.testing.assert_allclose(project(points, K), expected[:, 0], atol=1e-6)


@given(points=points_in_front, lens=st.sampled_from([ARCTIC_LIKE_LENS, ARCTIC_LIKE_LENS[:5], ARCTIC_LIKE_LENS[:4]]))
def test_the_rational_lens_agrees_with_opencv_before_it_folds(points: np.ndarray, lens: tuple[float, ...]) -> None:
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(lens))
    found = project_rational(points, K, lens)
    radius = np.hypot(points[:, 0], points[:, 1]) / points[:, 2]
    seen = radius < rational_fold_radius(lens)
    np.testing.assert_allclose(found[seen], expected[seen, 0], atol=1e-6)
    assert np.isnan(found[~seen]).all()


lens_numbers = st.floats(-1.5, 1.5).filter(lambda value: value == 0 or abs(value) > 1e-3)


@given(numbers=st.lists(lens_numbers, min_size=8, max_size=8))
def test_up_to_the_fold_radius_points_farther_out_appear_farther_out(numbers: list[float]) -> None:
    lens = (numbers[0], numbers[1], 0.0, 0.0, *numbers[4:])
    radii = np.linspace(0, min(rational_fold_radius(lens), 5.0), 200)[:-1]
    points = np.stack([radii, np.zeros_like(radii), np.ones_like(radii)], axis=1)
    seen = project_rational(points, np.eye(3), lens)[:, 0]
    assert (np.diff(seen) > -1e-9).all()


def test_the_fold_radius_of_a_cubic_lens_is_known() -> None:
    # r + k1 r^3 turns at r = sqrt(-1 / (3 k1)).
    assert rational_fold_radius((-0.25, 0, 0, 0)) == pytest.approx((4 / 3) ** 0.5)
    assert rational_fold_radius((0.25, 0, 0, 0)) == np.inf
    assert rational_fold_radius((0.0,) * 8) == np.inf


def test_a_lens_of_a_wrong_number_of_coefficients_is_an_error() -> None:
    with pytest.raises(ValueError, match="4, 5 or 8"):
        project_rational(np.ones((1, 3)), K, (0.1,))


@given(
    points=points_in_front, lens=st.sampled_from([(0.0,) * 4, (0.05, -0.01, 0.002, -0.0003), (-0.02, 0.0, 0.0, 0.0)])
)
def test_fisheye_agrees_with_opencv(points: np.ndarray, lens: tuple[float, ...]) -> None:
    expected, _ = cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), K, np.array(lens))
    np.testing.assert_allclose(project_fisheye(points, K, lens), expected[:, 0], atol=1e-6)


def test_fisheye_points_past_the_turn_of_the_lens_are_not_seen() -> None:
    # t + k1 t^3 turns at t = sqrt(1 / 3) for k1 = -1, which is 33 degrees.
    points = np.array([[np.tan(0.57), 0, 1], [np.tan(0.58), 0, 1], [0, 0, 1]])
    assert np.isfinite(project_fisheye(points, K, (-1.0, 0, 0, 0))).all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize("depth", [0.0, -1.0, np.nan])
def test_points_that_are_not_in_front_of_the_camera_are_nan(depth: float) -> None:
    points = np.array([[0.1, 0.2, depth], [0.1, 0.2, 1.0]])
    for pixels in (
        project(points, K),
        project_rational(points, K, ARCTIC_LIKE_LENS),
        project_fisheye(points, K, (0,) * 4),
    ):
        assert np.isfinite(pixels).all(axis=1).tolist() == [False, True]


@given(rotation=rotations, translation=translations, points=points_in_front)
def test_an_inverse_takes_points_back(rotation: np.ndarray, translation: np.ndarray, points: np.ndarray) -> None:
    camera_t_world = rigid_transform(rotation, translation)
    back = transform_points(invert_rigid(camera_t_world), transform_points(camera_t_world, points))
    np.testing.assert_allclose(back, points, atol=1e-9)
    np.testing.assert_allclose(invert_rigid(camera_t_world[:3]), np.linalg.inv(camera_t_world), atol=1e-9)


@given(rotation=rotations, centre=translations)
def test_a_camera_sits_at_its_own_origin(rotation: np.ndarray, centre: np.ndarray) -> None:
    np.testing.assert_allclose(transform_points(camera_t_world_at(rotation, centre), [centre]), 0, atol=1e-9)


@pytest.mark.parametrize("matrix", [np.diag([2.0, 2, 2, 1]), np.diag([1.0, 1, -1, 1]), np.full((4, 4), np.nan)])
def test_what_is_not_rigid_is_not_inverted(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not a rigid transform"):
        invert_rigid(matrix)


def test_millimetres_become_metres() -> None:
    assert metres_from_millimetres([1500, -20]).tolist() == [1.5, -0.02]


@given(
    points=points_in_front,
    scale=st.tuples(st.floats(0.1, 4), st.floats(0.1, 4)),
    offset=st.tuples(coordinates, coordinates),
)
def test_projecting_with_a_crops_intrinsics_is_cropping_the_projection(
    points: np.ndarray, scale: tuple[float, float], offset: tuple[float, float]
) -> None:
    crop = pixel_affine(scale, [1000 * value for value in offset])
    np.testing.assert_allclose(project(points, crop @ K), apply_affine(crop, project(points, K)), atol=1e-6)
