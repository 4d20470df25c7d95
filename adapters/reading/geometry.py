"""Joint orders, cameras and pixels, as the adapters need them.

Conventions, as ``schemas.record``: a camera looks along z, x right, y down, metres; pixels have (0, 0) at the centre of
the top-left pixel; a matrix ``a_t_b`` takes points of frame b to frame a. Everything is computed in float64. A point
that a camera cannot see by its model (behind it, or beyond the radius where the lens model folds back) projects to NaN,
so that an adapter marks it invalid by ``np.isfinite``.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handdata.schemas.arrays import MOST_PX
from handdata.schemas.joints import KEYPOINT_COUNT, KEYPOINTS_PER_HAND, hand_rows

Array = NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.generic)
MILLIMETRES_PER_METRE = 1000.0

# ---------------------------------------------------------------------------------------------------- joints


def reorder_joints(values: NDArray[Scalar], order: Sequence[int]) -> NDArray[Scalar]:
    """Return the 21 joints of one hand in handdata's order.

    Args:
        values: (J, ...) values in the dataset's order.
        order: The dataset's row of each of our 21 joints; -1 where the dataset lacks the joint, which gives zeros or
            False.

    Raises:
        ValueError: ``order`` has not 21 entries, or names a row that is not there.

    """
    rows = np.asarray(order)
    if rows.shape != (KEYPOINTS_PER_HAND,) or rows.min() < -1 or rows.max() >= len(values):
        raise ValueError(f"expected 21 rows between -1 and {len(values) - 1}, got {list(order)}")
    result: NDArray[Scalar] = values[rows]
    result[rows < 0] = 0
    return result


def place_hands(right: ArrayLike | None = None, left: ArrayLike | None = None, dimensions: int = 2) -> Array:
    """Return (42, dimensions) with each hand's (21, dimensions) in its rows and zeros for a hand that is None."""
    rows = np.zeros((KEYPOINT_COUNT, dimensions))
    if right is not None:
        rows[hand_rows("right")] = right
    if left is not None:
        rows[hand_rows("left")] = left
    return rows


def place_validity(right: ArrayLike = False, left: ArrayLike = False) -> NDArray[np.bool_]:
    """Return (42,) validity from each hand's (21,), or from one flag for the whole hand."""
    valid = np.zeros(KEYPOINT_COUNT, dtype=np.bool_)
    valid[hand_rows("right")] = np.asarray(right).astype(np.bool_)
    valid[hand_rows("left")] = np.asarray(left).astype(np.bool_)
    return valid


# ---------------------------------------------------------------------------------------------------- frames


def metres_from_millimetres(values: ArrayLike) -> Array:
    """Return lengths in metres."""
    return np.asarray(values, dtype=np.float64) / MILLIMETRES_PER_METRE


def rigid_transform(rotation: ArrayLike, translation: ArrayLike) -> Array:
    """Return the 4x4 of x -> rotation x + translation, from a 3x3 and 3 numbers of any nesting."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = np.reshape(translation, 3)
    return matrix


def camera_t_world_at(rotation: ArrayLike, centre_m: ArrayLike) -> Array:
    """Return world-to-camera from its rotation and the camera's position in the world (InterHand2.6M's ``campos``)."""
    turn = np.asarray(rotation, dtype=np.float64)
    return rigid_transform(turn, -turn @ np.reshape(centre_m, 3))


def invert_rigid(a_t_b: ArrayLike) -> Array:
    """Return ``b_t_a`` of a rigid 4x4 or 3x4, using the transpose of its rotation.

    Raises:
        ValueError: The matrix is not a rotation and a translation.

    """
    matrix = np.asarray(a_t_b, dtype=np.float64)
    rotation = matrix[:3, :3]
    # Calibrations are printed with few digits; a scale or a mirrored axis is off by far more than this.
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise ValueError(f"not a rigid transform: {matrix.tolist()}")
    return rigid_transform(rotation.T, -rotation.T @ matrix[:3, 3])


def transform_points(a_t_b: ArrayLike, points_b: ArrayLike) -> Array:
    """Return (..., N, 3) points in frame a from (..., N, 3) in frame b; the matrices are (..., 4, 4) or (..., 3, 4)."""
    matrix = np.asarray(a_t_b, dtype=np.float64)
    turned = np.asarray(points_b, dtype=np.float64) @ matrix[..., :3, :3].swapaxes(-1, -2)
    return np.asarray(turned + matrix[..., None, :3, 3])


# ---------------------------------------------------------------------------------------------------- projection


def intrinsics(focal: Sequence[float], principal_point: Sequence[float]) -> Array:
    """Return the 3x3 of (fx, fy) and (cx, cy) in pixels."""
    return np.array([[focal[0], 0, principal_point[0]], [0, focal[1], principal_point[1]], [0, 0, 1]], dtype=np.float64)


def project(points_camera: ArrayLike, k: ArrayLike) -> Array:
    """Return the (..., N, 2) pixels of (..., N, 3) camera points by the pinhole model; NaN where z is not positive.

    Args:
        points_camera: (..., N, 3) metres in the camera frame.
        k: (3, 3) intrinsics, or (..., 3, 3) for as many cameras.

    """
    return _pixels(_rays(points_camera), k)


def project_rational(points_camera: ArrayLike, k: ArrayLike, distortion: Sequence[float]) -> Array:
    """Return the (N, 2) pixels of (N, 3) camera points by OpenCV's rational model.

    A point behind the camera, or beyond ``rational_fold_radius``, where the model would fold far points back into the
    image (ARCTIC, issue 51), becomes NaN. No built-in source calls this function; adapters of other packages need it.

    Args:
        points_camera: (N, 3) metres in the camera frame.
        k: (3, 3) intrinsics.
        distortion: (k1, k2, p1, p2, k3, k4, k5, k6); shorter lists as OpenCV reads them.

    Raises:
        ValueError: A list of another length than 4, 5 or 8.

    """
    k1, k2, p1, p2, k3, k4, k5, k6 = _rational_coefficients(distortion)
    rays = _rays(points_camera)
    x, y = rays.T
    r2 = x * x + y * y
    with np.errstate(all="ignore"):  # at the pole of the rational function, which lies beyond the fold
        radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    distorted = np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        axis=1,
    )
    distorted[r2 >= rational_fold_radius(distortion) ** 2] = np.nan
    return _pixels(distorted, k)


def rational_fold_radius(distortion: Sequence[float]) -> float:
    """Return the radius sqrt(x^2 + y^2) / z at which the rational model stops growing; infinity if it never does.

    The distorted radius is r P(r^2) / D(r^2). It turns where its derivative or D crosses zero.
    """
    k1, k2, _, _, k3, k4, k5, k6 = _rational_coefficients(distortion)
    s = np.polynomial.Polynomial([0.0, 1.0])  # r^2
    numerator, denominator = 1 + s * (k1 + s * (k2 + s * k3)), 1 + s * (k4 + s * (k5 + s * k6))
    slope = (numerator + 2 * s * numerator.deriv()) * denominator - 2 * s * numerator * denominator.deriv()
    return float(np.sqrt(min(_smallest_positive_root(slope), _smallest_positive_root(denominator))))


def project_fisheye(points_camera: ArrayLike, k: ArrayLike, distortion: Sequence[float]) -> Array:
    """Return the (N, 2) pixels of (N, 3) camera points by OpenCV's fisheye model.

    With t the angle to the axis, the distorted radius is t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8) (Re:InterHand's head
    camera). A point behind the camera, or where that radius has stopped growing, becomes NaN.

    Args:
        points_camera: (N, 3) metres in the camera frame.
        k: (3, 3) intrinsics.
        distortion: (k1, k2, k3, k4).

    """
    k1, k2, k3, k4 = (float(value) for value in distortion)
    rays = _rays(points_camera)
    radius = np.hypot(*rays.T)
    angle = np.arctan(radius)
    a2 = angle * angle
    distorted = angle * (1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4))))
    turn = _smallest_positive_root(np.polynomial.Polynomial([1, 3 * k1, 5 * k2, 7 * k3, 9 * k4])) ** 0.5
    with np.errstate(invalid="ignore"):
        factor = np.where(radius > 0, distorted / np.where(radius > 0, radius, 1), 1.0)
    factor[(angle >= turn) | np.isnan(radius)] = np.nan
    return _pixels(rays * factor[:, None], k)


def _rational_coefficients(distortion: Sequence[float]) -> tuple[float, ...]:
    if len(distortion) not in (4, 5, 8):
        raise ValueError(f"expected 4, 5 or 8 distortion coefficients, got {len(distortion)}")
    return (*(float(value) for value in distortion), *(0.0,) * (8 - len(distortion)))


def _rays(points_camera: ArrayLike) -> Array:
    """Return (..., N, 2) x / z, y / z; NaN where the point is not in front of the camera."""
    points = np.asarray(points_camera, dtype=np.float64)
    depth = np.where(points[..., 2] > 0, points[..., 2], np.nan)
    return points[..., :2] / depth[..., None]


def _pixels(rays: Array, k: ArrayLike) -> Array:
    """Return pixels; NaN where a point lies so near the plane of the camera that it is seen by no image."""
    matrix = np.asarray(k, dtype=np.float64)
    pixels = np.asarray(rays @ matrix[..., :2, :2].swapaxes(-1, -2) + matrix[..., None, :2, 2])
    pixels[(np.abs(pixels) > MOST_PX).any(axis=-1)] = np.nan
    return pixels


def _smallest_positive_root(polynomial: np.polynomial.Polynomial) -> float:
    roots = np.asarray(polynomial.trim().roots(), dtype=np.complex128)
    real: Array = roots[np.abs(roots.imag) < 1e-9].real
    return float(np.min(real[real > 0], initial=np.inf))


# ---------------------------------------------------------------------------------------------------- pixels


def pixel_affine(scale: Sequence[float], offset: Sequence[float] = (0.0, 0.0)) -> Array:
    """Return the 3x3 of (u, v) -> (scale_x u + offset_x, scale_y v + offset_y), as a dataset defines its own crop.

    ``apply_affine`` maps keypoints by it; ``affine @ k`` are the intrinsics of the new image.
    """
    return intrinsics(scale, offset)


def apply_affine(affine: ArrayLike, pixels: ArrayLike) -> Array:
    """Return (N, 2) pixels mapped by a 3x3 or 2x3 affine map."""
    matrix = np.asarray(affine, dtype=np.float64)
    return np.asarray(pixels, dtype=np.float64) @ matrix[:2, :2].T + matrix[:2, 2]
