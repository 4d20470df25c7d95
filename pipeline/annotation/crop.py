"""The square crop around the hands: its position, and how pixels, keypoints and intrinsics map into it."""

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from handdata.schemas import RecordError, RejectReason, inside
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray

MAX_SIDE_IN_IMAGES = 4.0
"""A square wider than this many times the image's longer side comes from a broken label."""

MIN_SIDE_PX = 8
"""Least side of a square: a hand with a single known joint gets some pixels, too."""


@dataclass(frozen=True, slots=True)
class CropSquare:
    """A square of whole full-image pixels and the size that it is resized to.

    Args:
        left: Column of the square's first pixel; may be negative.
        top: Row of the square's first pixel; may be negative.
        side: Length of its side in full-image pixels.
        size: Length of its side in crop pixels.

    """

    left: int
    top: int
    side: int
    size: int

    @property
    def scale(self) -> float:
        """Number of full-image pixels per crop pixel."""
        return self.side / self.size

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """Corners in full-image coordinates such that x_full = x0 + x_crop * (x1 - x0) / S holds at pixel centres.

        With (0, 0) at the centre of the top-left pixel, resizing maps the centre of crop pixel 0 onto
        left - 0.5 + scale / 2: that is x0. (The outer edge of the square is half a crop pixel further out.)
        """
        shift = (self.scale - 1) / 2
        x0, y0 = self.left + shift, self.top + shift
        return x0, y0, x0 + self.side, y0 + self.side

    @classmethod
    def from_xyxy(cls, xyxy: tuple[float, float, float, float], size: int) -> Self:
        """Return the square whose ``xyxy`` this is."""
        side = round(xyxy[2] - xyxy[0])
        shift = (side / size - 1) / 2
        return cls(left=round(xyxy[0] - shift), top=round(xyxy[1] - shift), side=side, size=size)

    def to_crop(self, points: NDArray[np.floating]) -> FloatArray:
        """Map (..., 2) full-image pixels to crop pixels."""
        x0, y0, _, _ = self.xyxy
        return np.asarray((points - np.array([x0, y0])) / self.scale, dtype=np.float32)

    def to_full(self, points: NDArray[np.floating]) -> FloatArray:
        """Map (..., 2) crop pixels to full-image pixels."""
        x0, y0, _, _ = self.xyxy
        return np.asarray(np.array([x0, y0]) + points * self.scale, dtype=np.float32)

    def intrinsics(self, camera_k: NDArray[np.floating]) -> FloatArray:
        """Return the (3, 3) intrinsics of the crop from those of the full image."""
        x0, y0, _, _ = self.xyxy
        crop_t_full = np.array(
            [[1 / self.scale, 0, -x0 / self.scale], [0, 1 / self.scale, -y0 / self.scale], [0, 0, 1]]
        )
        return np.asarray(crop_t_full @ camera_k, dtype=np.float32)

    def padding(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the crop pixels at left, top, right and bottom that lie outside an image of this size."""
        overhang = (
            -self.left,
            -self.top,
            self.left + self.side - width,
            self.top + self.side - height,
        )
        left, top, right, bottom = (min(max(pixels, 0), self.side) / self.scale for pixels in overhang)
        return left, top, right, bottom

    def cut(self, image: ByteArray) -> ByteArray:
        """Return the (size, size, ...) crop of an image, black outside the image.

        Shrinking averages over areas, enlarging interpolates with cubics.
        """
        return self._resize(image, cv2.INTER_AREA if self.side >= self.size else cv2.INTER_CUBIC)

    def cut_mask(self, mask: BoolArray) -> BoolArray:
        """Return the (size, size) crop of a mask; a crop pixel is in it where at least half of its area is."""
        interpolation = cv2.INTER_AREA if self.side >= self.size else cv2.INTER_LINEAR
        return self._resize(mask.astype(np.uint8) * np.uint8(255), interpolation) >= 128

    def paste(self, image: ByteArray, crop: ByteArray, region: BoolArray) -> ByteArray:
        """Return a copy of an image in which the ``region`` (N, N) of the square shows ``crop`` (M, M, 3)."""
        enlarges = crop.shape[0] < self.side
        pixels = cv2.resize(crop, (self.side, self.side), interpolation=cv2.INTER_CUBIC if enlarges else cv2.INTER_AREA)
        shown = cv2.resize(region.astype(np.uint8), (self.side, self.side), interpolation=cv2.INTER_NEAREST) > 0
        top, left = max(self.top, 0), max(self.left, 0)
        pasted = image.copy()
        part = pasted[top : max(self.top + self.side, 0), left : max(self.left + self.side, 0)]
        inside_square = (
            slice(top - self.top, top - self.top + part.shape[0]),
            slice(left - self.left, left - self.left + part.shape[1]),
        )
        part[shown[inside_square]] = pixels[inside_square][shown[inside_square]]
        return pasted

    def _resize(self, image: ByteArray, interpolation: int) -> ByteArray:
        right, bottom = self.left + self.side, self.top + self.side
        pixels = image[max(self.top, 0) : max(bottom, 0), max(self.left, 0) : max(right, 0)]
        if pixels.shape[:2] != (self.side, self.side):
            square = np.zeros((self.side, self.side, *image.shape[2:]), dtype=np.uint8)
            row, column = max(-self.top, 0), max(-self.left, 0)
            square[row : row + pixels.shape[0], column : column + pixels.shape[1]] = pixels
            pixels = square
        return np.asarray(cv2.resize(pixels, (self.size, self.size), interpolation=interpolation), dtype=np.uint8)


def require_in_image(joints: FloatArray, width: int, height: int) -> None:
    """Check that at least one of (N, 2) joints lies in an image of this size.

    Raises:
        RecordError: ``hand_outside_image``: none does.

    """
    if not inside(joints, width, height).any():
        raise RecordError(RejectReason.HAND_OUTSIDE_IMAGE, f"none of {len(joints)} joints lies in {width} x {height}")


def square_around(joints: FloatArray, width: int, height: int, scale: float, size: int) -> CropSquare:
    """Return the square around (N, 2) joints.

    Args:
        joints: Full-image pixels, at least one joint.
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        scale: Side of the square over the longer side of the joints' box.
        size: Side of the crop, pixels.

    Raises:
        RecordError: ``label_implausible``: the square would be many times larger than the image.

    """
    low, high = joints.min(axis=0).astype(np.float64), joints.max(axis=0).astype(np.float64)
    side = max(round(scale * float((high - low).max())), MIN_SIDE_PX)
    if side > MAX_SIDE_IN_IMAGES * max(width, height):
        raise RecordError(
            RejectReason.LABEL_IMPLAUSIBLE, f"the joints span {side / scale:.0f} px in an image of {width} x {height}"
        )
    left, top = np.round((low + high) / 2 - (side - 1) / 2).astype(int)
    return CropSquare(left=int(left), top=int(top), side=side, size=size)
