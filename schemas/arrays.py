"""Numpy arrays as fields of pydantic models."""

import math
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ValidationInfo

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]

MOST_PX: Final = 1e6
"""No labelled joint lies further from the corner of its image: float32 rounds such places by a tenth of a pixel."""
MOST_M: Final = 100.0
"""No labelled joint is further from its camera: larger numbers are millimetres, or damaged."""


def _reader(
    dtype: type[np.generic], shape: tuple[int, ...], *, zero_where_not_valid: bool = False, most: float = math.inf
) -> BeforeValidator:
    """Make a validator that reads an array of one shape.

    Args:
        dtype: Type of the array's numbers.
        shape: Shape of the array.
        zero_where_not_valid: Whether rows become zero where the model's ``keypoints_valid``, read before, is False.
        most: Largest number, whatever its sign.

    """
    size = math.prod(shape)

    def read(value: Any, info: ValidationInfo) -> NDArray[Any]:
        found = np.asarray(value)
        if not _is_kind(found, dtype):
            raise ValueError(f"expected {'booleans' if dtype is np.bool_ else 'numbers'}, got {found.dtype}")
        with np.errstate(over="ignore"):  # a number that float32 cannot hold becomes infinity, which is rejected below
            array = np.array(found, dtype=dtype)
        if array.size != size:
            raise ValueError(f"expected shape {shape}, got {np.shape(value)}")
        array = array.reshape(shape)
        if zero_where_not_valid and "keypoints_valid" in info.data:
            array[~info.data["keypoints_valid"]] = 0
        if dtype is np.float32 and not np.logical_and.reduce(np.isfinite(array), axis=None):
            raise ValueError("expected finite numbers, got NaN or infinity")
        if most < math.inf and np.abs(array).max() > most:
            raise ValueError(
                f"expected numbers from {-most:,.0f} to {most:,.0f}, got {array.flat[np.abs(array).argmax()]:g}"
            )
        array.setflags(write=False)
        return array

    return BeforeValidator(read)


def _is_kind(found: NDArray[Any], dtype: type[np.generic]) -> bool:
    """Return whether an array holds what it should: numpy would take "1.5" and True for numbers, and "no" for True."""
    if dtype is not np.bool_ or found.dtype.kind == "b":
        return found.dtype.kind in ("b" if dtype is np.bool_ else "iuf") or not found.size
    return found.dtype.kind in "iuf" and bool(((found == 0) | (found == 1)).all())


def is_intrinsics(k: NDArray[np.floating[Any]]) -> BoolArray:
    """Return which of (..., 3, 3) matrices are intrinsics of a camera: the focal lengths are positive.

    Below the diagonal are zeros, and the last number is 1: in a transposed matrix (other programs write one) or a
    scaled one, the principal point and the focal lengths would be read from the wrong numbers.
    """
    fixed = np.abs(k[..., [1, 2, 2, 2], [0, 0, 1, 2]] - (0, 0, 0, 1)) < _ROUNDING
    return np.asarray((k[..., 0, 0] > 0) & (k[..., 1, 1] > 0) & fixed.all(axis=-1))


def is_rigid(t: NDArray[np.floating[Any]]) -> BoolArray:
    """Return which of (..., 4, 4) matrices are a rotation and a translation; a mirror image is no rotation."""
    rotation = t[..., :3, :3].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        products = np.matmul(rotation, np.swapaxes(rotation, -1, -2))
        square = (np.abs(products - np.eye(3)) < _RIGID_TOLERANCE).all(axis=(-2, -1))
        right_handed = np.linalg.det(rotation) > 0
    return np.asarray(square & right_handed & (t[..., 3, :] == (0, 0, 0, 1)).all(axis=-1))


def is_rigid_matrix(t: NDArray[np.floating[Any]]) -> bool:
    """Return ``is_rigid`` of one (4, 4) matrix of finite numbers: a tenth of numpy's time for so few numbers."""
    x, y, z, last = t.tolist()
    (a, b, c, _), (d, e, f, _), (g, h, i, _) = x, y, z
    off = (
        a * a + b * b + c * c - 1,
        d * d + e * e + f * f - 1,
        g * g + h * h + i * i - 1,
        a * d + b * e + c * f,
        a * g + b * h + c * i,
        d * g + e * h + f * i,
    )
    right_handed = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) > 0
    return bool(right_handed) and min(off) > -_RIGID_TOLERANCE and max(off) < _RIGID_TOLERANCE and last == [0, 0, 0, 1]


_ROUNDING = 1e-6
"""Largest error of a number that is 0 or 1 in all intrinsics."""

_RIGID_TOLERANCE = 5e-3
"""Largest error of an entry of R R^T: calibrations are printed with few digits, a scale is off by far more."""

KeypointsValid = Annotated[BoolArray, _reader(np.bool_, (42,))]
Keypoints2D = Annotated[FloatArray, _reader(np.float32, (42, 2))]
Keypoints3D = Annotated[FloatArray, _reader(np.float32, (42, 3))]
Labels2D = Annotated[FloatArray, _reader(np.float32, (42, 2), zero_where_not_valid=True, most=MOST_PX)]
Labels3D = Annotated[FloatArray, _reader(np.float32, (42, 3), zero_where_not_valid=True, most=MOST_M)]
Matrix3 = Annotated[FloatArray, _reader(np.float32, (3, 3))]
Matrix4 = Annotated[FloatArray, _reader(np.float32, (4, 4))]
