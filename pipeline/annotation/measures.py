"""Measures of a crop: its sharpness and a perceptual hash."""

import cv2
import numpy as np

from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray


def sharpness(image: ByteArray, keypoints: FloatArray, valid: BoolArray) -> float:
    """Return the variance of the Laplacian inside the box of the valid keypoints of an (S, S, 3) crop."""
    size = image.shape[0]
    low = np.clip(np.floor(keypoints[valid].min(axis=0)).astype(int), 0, size - 2)
    high = np.clip(np.ceil(keypoints[valid].max(axis=0)).astype(int) + 1, low + 2, size)
    grey = cv2.cvtColor(image[low[1] : high[1], low[0] : high[0]], cv2.COLOR_RGB2GRAY)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))
    return float(deviation.item() ** 2)


def perceptual_hash(image: ByteArray) -> int:
    """Return the 64-bit DCT hash of an RGB image as a signed integer; near-duplicates differ in few bits."""
    digest = cv2.img_hash.pHash(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return int.from_bytes(digest.tobytes(), "big", signed=True)
