"""The square crop: pixels, keypoints and intrinsics map together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handdata.pipeline.annotation.crop import CropSquare, require_in_image, square_around
from handdata.schemas import RecordError, RejectReason

squares = st.builds(
    CropSquare,
    left=st.integers(-300, 300),
    top=st.integers(-300, 300),
    side=st.integers(8, 900),
    size=st.sampled_from([64, 256, 512]),
)


@given(squares, st.floats(-500, 1500), st.floats(-500, 1500))
def test_full_to_crop_and_back_is_the_same_point(square: CropSquare, x: float, y: float) -> None:
    point = np.array([[x, y]])
    assert np.allclose(square.to_full(square.to_crop(point)), point, atol=0.01)


@given(squares, st.floats(0, 511), st.floats(0, 511))
def test_crop_xyxy_maps_crop_pixels_by_the_published_formula(square: CropSquare, x: float, y: float) -> None:
    x0, y0, x1, y1 = square.xyxy
    expected = [x0 + x * (x1 - x0) / square.size, y0 + y * (y1 - y0) / square.size]
    assert np.allclose(square.to_full(np.array([x, y])), expected, atol=0.01)


@given(st.integers(-20, 90), st.integers(-20, 90), st.integers(40, 220), st.sampled_from([64, 128]), st.data())
def test_a_bright_dot_lands_where_its_keypoint_lands(
    left: int, top: int, side: int, size: int, data: st.DataObject
) -> None:
    square = CropSquare(left, top, side, size)
    x = data.draw(st.integers(max(left + 4, 4), min(left + side - 5, 155)))
    y = data.draw(st.integers(max(top + 4, 4), min(top + side - 5, 155)))
    image = np.zeros((160, 160, 3), np.uint8)
    image[y - 2 : y + 3, x - 2 : x + 3] = 255
    crop = square.cut(image)[..., 0].astype(float)
    rows, columns = np.indices(crop.shape)
    centroid = [(columns * crop).sum() / crop.sum(), (rows * crop).sum() / crop.sum()]
    assert np.allclose(centroid, square.to_crop(np.array([x, y])), atol=0.3)


@given(squares)
def test_padding_counts_the_black_columns_and_rows(square: CropSquare) -> None:
    image = np.full((200, 240, 3), 255, np.uint8)
    left, top, right, bottom = square.padding(240, 200)
    crop = square.cut(image)[..., 0]
    inside = crop > 127
    visible = max(square.size - left - right, 0) * max(square.size - top - bottom, 0)
    assert abs(inside.sum() - visible) <= 2 * square.size * (1 + 1 / square.scale) + 4


@given(squares)
def test_intrinsics_project_to_the_mapped_pixel(square: CropSquare) -> None:
    k = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    point = np.array([0.1, -0.05, 0.8])
    full = (k @ point)[:2] / point[2]
    crop = (square.intrinsics(k) @ point)[:2] / point[2]
    assert np.allclose(crop, square.to_crop(full), atol=0.02)


def test_square_is_centred_and_scaled_by_the_longer_side() -> None:
    joints = np.array([[100.0, 50], [200, 90]], np.float32)
    square = square_around(joints, 640, 480, scale=1.6, size=256)
    assert square.side == 160
    centre = square.to_full(np.array([127.5, 127.5]))
    assert np.allclose(centre, [150, 70], atol=0.5)


def test_a_label_many_times_larger_than_the_image_is_implausible() -> None:
    joints = np.array([[0.0, 0], [1e6, 10]], np.float32)
    with pytest.raises(RecordError, match=r"label_implausible: .* 640 x 480"):
        square_around(joints, 640, 480, scale=1.6, size=256)


def test_a_hand_without_a_joint_in_the_image_is_rejected() -> None:
    with pytest.raises(RecordError) as caught:
        require_in_image(np.array([[-5.0, 3], [700, 20]], np.float32), 640, 480)
    assert caught.value.reason is RejectReason.HAND_OUTSIDE_IMAGE


def test_masks_keep_half_covered_pixels() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:, 32:] = True
    crop = CropSquare(0, 0, 64, 32).cut_mask(mask)
    assert crop[:, 16:].all()
    assert not crop[:, :16].any()
