"""Numbers and flags of label files: what only looks like one is rejected."""

from typing import Any

import numpy as np
import pytest

from handdata.adapters.reading.fields import label_flags, label_numbers
from handdata.schemas.errors import RecordError, RejectReason


@pytest.mark.parametrize(
    ("values", "shape"), [([], (0,)), ([1, 2.5], (2,)), ([[0.1, 2], [3, -4]], (2, 2)), ([[[1]]], (1, 1, 1)), (7, ())]
)
def test_numbers_in_lists_are_read(values: Any, shape: tuple[int, ...]) -> None:
    array = label_numbers("a.json", "points", values)
    assert (array.shape, array.dtype) == (shape, np.float64)
    assert array.tolist() == values


@pytest.mark.parametrize(
    "values", ["text", None, {}, True, ["1", "2"], [1, "2"], [True, False], [1.5, True], [[1], [1, 2]], [[0.1, None]]]
)
def test_what_is_no_number_is_label_corrupt(values: Any) -> None:
    with pytest.raises(RecordError, match=r"a\.json: points") as error:
        label_numbers("a.json", "points", values)
    assert error.value.reason is RejectReason.LABEL_CORRUPT


@pytest.mark.parametrize(
    "values",
    [
        [1, 0, 1],
        [1.0, 0.0, 1.0],
        [True, False, True],
        [True, 0, 1.0],
        [[1], [0], [1]],
        np.array([1, 0, 1]),
        np.array([1.0, 0.0, 1.0], dtype=np.float32),
        np.array([[True], [False], [True]]),
    ],
)
def test_flags_are_booleans_or_0_and_1(values: Any) -> None:
    flags = label_flags("a.json", "joint_valid", values, 3)
    assert (flags.dtype, flags.tolist()) == (np.bool_, [True, False, True])


@pytest.mark.parametrize(
    "values",
    [
        None,
        "101",
        {},
        [],
        [1, 0],
        [1, 0, 1, 1],
        [1, 0, 2],
        [1, 0, -1],
        [1, 0, 0.5],
        [1, 0, float("nan")],
        [1, 0, None],
        [1, 0, "1"],
        [[1], [0], 1],
        [[1, 0], [1]],
        [[1, 0], [], [1]],
        [[1, 0, 1]],
        10**400,
        [1, 0, 10**400],
        np.array([1, 0, 2]),
        np.array([1, 0, np.nan]),
        np.array(["1", "0", "1"]),
        np.array([[1, 0, 1]]),
    ],
)
def test_what_is_no_flag_is_label_corrupt(values: Any) -> None:
    with pytest.raises(RecordError, match=r"a\.json: joint_valid should hold") as error:
        label_flags("a.json", "joint_valid", values, 3)
    assert error.value.reason is RejectReason.LABEL_CORRUPT
