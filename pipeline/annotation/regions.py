"""The part of a photograph that someone marks, by a mask or by a box."""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from PIL import Image

from handdata.pipeline.annotation.photo import read_alpha, read_photo
from handdata.schemas import UsageError
from handdata.schemas.arrays import BoolArray, ByteArray

COUNTS_FROM: Final = 128
"""Least level of a mask's pixel that counts."""
_PAINT: Final = 240
"""Least level of white paint."""
_COMPRESSION: Final = 32
"""Most levels by which a copy of a photograph differs from it."""
_LEAST_GREY: Final = 0.05
"""Share of a painted photograph that is neither black nor white, at least; a mask has less."""
_MOST_CHANGED: Final = 0.1
"""Share of a painted photograph, without the paint, that differs from it, at most."""
_LEAST_PAINTED: Final = 0.3
"""Share of a white part that differs from the photograph, at least, where it is paint."""


def marked_region(photo: Path, mask: Path | None, box_xyxy: Sequence[int] | None) -> BoolArray | None:
    """Return the pixels (H, W) of a photograph that a mask or a box marks; None without either.

    Raises:
        UsageError: Both are given, or as ``read_mask`` and ``region_of_box`` say.

    """
    if mask is not None and box_xyxy is not None:
        raise UsageError("--mask and --box both say what is drawn anew", "give one of them")
    if mask is not None:
        return read_mask(mask, photo)
    return None if box_xyxy is None else region_of_box(box_xyxy, photo)


def read_mask(file: Path, photo: Path) -> BoolArray:
    """Return the pixels (H, W) of a photograph that a mask marks: with a level of at least 128, as grey.

    A mask may also be the photograph with a part painted white, as those of FoundHand are. Then that part alone counts,
    and what was bright before does not. Pixels that are more than half transparent mark nothing, whatever their colour.

    Raises:
        UsageError: One of the files is no readable image, their upright sizes differ, nothing is marked, or the mask is
            the photograph itself.

    """
    pixels, image = read_photo(file), read_photo(photo)
    require_size(pixels, image, f"--mask {file}")
    levels = np.asarray(Image.fromarray(pixels).convert("L"))
    if (alpha := read_alpha(file)) is not None:  # paint programs leave the colour of a transparent pixel to chance
        levels = np.where(alpha >= COUNTS_FROM, levels, np.uint8(0))
    if levels.max() < COUNTS_FROM:
        raise UsageError(
            f"--mask {file} marks nothing: its brightest pixel has level {levels.max()}",
            f"white is drawn anew; a pixel counts from {COUNTS_FROM} of 255",
        )
    marked = np.asarray(levels >= COUNTS_FROM)
    painted = _painted(pixels, image, levels)
    if not (marked & painted).any():
        raise UsageError(
            f"--mask {file} is the photograph itself, and no part of it is painted white",
            "a mask is black and white, or the photograph with what is drawn anew painted white",
        )
    return marked & painted


def _painted(pixels: ByteArray, photo: ByteArray, levels: ByteArray) -> BoolArray:
    """Return where a photograph was painted white to be a mask; everywhere where the mask is no such copy of it."""
    differs = np.abs(pixels.astype(np.int16) - photo).max(axis=2) > _COMPRESSION
    white = levels >= _PAINT
    grey = (levels >= _COMPRESSION) & ~white
    if grey.mean() < _LEAST_GREY or differs[~white].mean() > _MOST_CHANGED:
        return np.ones_like(white)
    count, parts = cv2.connectedComponents(white.astype(np.uint8))
    changed = np.bincount(parts[differs & white], minlength=count)
    is_paint = changed > _LEAST_PAINTED * np.bincount(parts[white], minlength=count)
    painted = is_paint[parts] & white
    # The border between paint and photograph has levels of both.
    return np.asarray(painted | (differs & (cv2.dilate(painted.astype(np.uint8), np.ones((5, 5))) > 0)))


def region_of_box(box_xyxy: Sequence[int], photo: Path) -> BoolArray:
    """Return the pixels (H, W) of a photograph in a box: columns X0 to X1 - 1, rows Y0 to Y1 - 1.

    Raises:
        UsageError: The photograph is no readable image, or none of its pixels lies in the box.

    """
    height, width, _ = read_photo(photo).shape
    if len(box_xyxy) != 4 or not all(isinstance(each, Integral) for each in box_xyxy):
        raise UsageError(
            f"--box is {box_xyxy}, and should be 4 whole numbers",
            "give left, top, right and bottom of the upright photograph",
        )
    left, top, right, bottom = box_xyxy
    region = np.zeros((height, width), np.bool_)
    region[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    if not region.any():
        raise UsageError(
            f"--box {left} {top} {right} {bottom} holds no pixel of {photo}, which has {width} x {height}",
            "give left, top, right and bottom of the upright photograph: X0 < X1 and Y0 < Y1",
        )
    return region


def require_size(pixels: ByteArray | BoolArray, photo: ByteArray, name: str) -> None:
    """Check that a mask has the size of its photograph.

    Raises:
        UsageError: It has another one.

    """
    if pixels.shape[:2] != photo.shape[:2]:
        sizes = [f"{shape[1]} x {shape[0]}" for shape in (pixels.shape, photo.shape)]
        raise UsageError(
            f"{name} has {sizes[0]} pixels, the upright photograph {sizes[1]}",
            "a mask has a pixel for each of the photograph, as viewers show it",
        )
