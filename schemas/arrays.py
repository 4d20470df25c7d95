"""Numpy arrays as fields of pydantic models."""

import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ValidationInfo

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def _reader(dtype: type[np.generic], shape: tuple[int, ...], *, zero_where_not_valid: bool = False) -> BeforeValidator:
    """Make a validator that reads an array of one shape.

    Args:
        dtype: Type of the array's numbers.
        shape: Shape of the array.
        zero_where_not_valid: Whether rows become zero where the model's ``keypoints_valid``, read before, is False.

    """
    size = math.prod(shape)

    def read(value: Any, info: ValidationInfo) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # a number that float32 cannot hold becomes infinity, which is rejected below
            array = np.array(value, dtype=dtype)
        if array.size != size:
            raise ValueError(f"expected shape {shape}, got {np.shape(value)}")
        array = array.reshape(shape)
        if zero_where_not_valid and "keypoints_valid" in info.data:
            array[~info.data["keypoints_valid"]] = 0
        if dtype is np.float32 and not np.logical_and.reduce(np.isfinite(array), axis=None):
            raise ValueError("expected finite numbers, got NaN or infinity")
        array.setflags(write=False)
        return array

    return BeforeValidator(read)


KeypointsValid = Annotated[BoolArray, _reader(np.bool_, (42,))]
Keypoints2D = Annotated[FloatArray, _reader(np.float32, (42, 2))]
Keypoints3D = Annotated[FloatArray, _reader(np.float32, (42, 3))]
Labels2D = Annotated[FloatArray, _reader(np.float32, (42, 2), zero_where_not_valid=True)]
Labels3D = Annotated[FloatArray, _reader(np.float32, (42, 3), zero_where_not_valid=True)]
Matrix3 = Annotated[FloatArray, _reader(np.float32, (3, 3))]
Matrix4 = Annotated[FloatArray, _reader(np.float32, (4, 4))]
