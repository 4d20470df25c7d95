"""Numpy arrays as fields of pydantic models, and as columns of Arrow tables."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BeforeValidator

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]


def _reader(dtype: type[np.generic], shape: tuple[int, ...]) -> BeforeValidator:
    def read(value: Any) -> NDArray[Any]:
        array = np.array(value, dtype=dtype).reshape(-1)
        if array.size != np.prod(shape):
            raise ValueError(f"expected shape {shape}, got {np.shape(value)}")
        if dtype is np.float32 and not np.isfinite(array).all():
            raise ValueError("expected finite numbers, got NaN or infinity")
        array = array.reshape(shape)
        array.setflags(write=False)
        return array

    return BeforeValidator(read)


Keypoints2D = Annotated[FloatArray, _reader(np.float32, (42, 2))]
KeypointsValid = Annotated[BoolArray, _reader(np.bool_, (42,))]
Keypoints3D = Annotated[FloatArray, _reader(np.float32, (42, 3))]
Matrix3 = Annotated[FloatArray, _reader(np.float32, (3, 3))]
Matrix4 = Annotated[FloatArray, _reader(np.float32, (4, 4))]


def fixed_list_column(arrays: Sequence[NDArray[Any] | None], column_type: pa.FixedSizeListType) -> pa.Array:
    """Stack arrays of one size into a fixed-size-list column; ``None`` becomes a null row."""
    width = column_type.list_size
    dtype = column_type.value_type.to_pandas_dtype()
    missing = np.array([array is None for array in arrays], dtype=bool)
    values = np.zeros((len(arrays), width), dtype=dtype)
    for row, array in zip(values, arrays, strict=True):
        if array is not None:
            row[:] = array.reshape(-1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1), type=column_type.value_type),
        type=column_type,
        mask=pa.array(missing) if missing.any() else None,
    )
