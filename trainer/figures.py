"""Figures of generated hands: rows of images, grids and skeletons."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from handdata.schemas import KEYPOINT_COUNT, SIDES, SKELETON_EDGES, hand_rows
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.trainer.data.augment import Frame, resize

_HAND_COLOURS = {"right": (255, 140, 0), "left": (0, 170, 255)}
_UNKNOWN = 128
"""Grey level that stands for an image that is not known."""
_BORDER = ((2, 2), (2, 2), (0, 0))


def grid(images: Sequence[ByteArray], tile_px: int = 128) -> ByteArray:
    """Lay out images in a square, row by row."""
    side = math.ceil(math.sqrt(len(images)))
    tiles = [np.pad(_enlarged(image, tile_px), _BORDER, constant_values=255) for image in images]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % side)
    return np.asarray(np.vstack([np.hstack(tiles[row : row + side]) for row in range(0, len(tiles), side)]), np.uint8)


def draw_skeleton(size: int, keypoints: FloatArray, valid: BoolArray) -> ByteArray:
    """Draw keypoints (42, 2), pixels of an image of ``size``, as bones on black: right hand orange, left hand blue."""
    picture = np.zeros((size, size, 3), np.uint8)
    sub_pixel = 16
    fixed = np.round(keypoints * sub_pixel).astype(int)
    thickness = max(1, size // 96)
    for side in SIDES:
        rows = range(KEYPOINT_COUNT)[hand_rows(side)]
        for start, end in SKELETON_EDGES:
            if start in rows and valid[start] and valid[end]:
                ends = tuple(map(int, fixed[start])), tuple(map(int, fixed[end]))
                cv2.line(picture, *ends, _HAND_COLOURS[side], thickness, cv2.LINE_AA, shift=4)
    return picture


def figure(
    references: Sequence[Frame], targets: Sequence[Frame], generated: Sequence[ByteArray], tile_px: int = 128
) -> ByteArray:
    """Lay out results, a row each: reference, target pose, target image (grey where unknown), generated image."""
    rows = []
    for reference, target, image in zip(references, targets, generated, strict=True):
        pose = resize(target, tile_px)
        tiles = [_enlarged(reference.image, tile_px), draw_skeleton(tile_px, pose.keypoints, pose.valid)]
        tiles += [truth_of(pose), _enlarged(np.asarray(image), tile_px)]
        rows.append(np.hstack([np.pad(tile, _BORDER, constant_values=255) for tile in tiles]))
    return np.asarray(np.vstack(rows), dtype=np.uint8)


def truth_of(target: Frame) -> ByteArray:
    """Return a target's own image, or grey where a target is a pose alone."""
    return target.image if target.known.any() else np.full_like(target.image, _UNKNOWN)


def _enlarged(image: ByteArray, size: int) -> ByteArray:
    interpolation = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size, size), interpolation=interpolation), dtype=np.uint8)
