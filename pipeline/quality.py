"""Numbers that describe a sample's quality, and the flags that follow from them."""

from collections.abc import Iterable
from typing import Final

import cv2
import numpy as np

from handdata.pipeline.settings import QualitySettings
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray

OBSERVED_FLAGS: Final = frozenset({"side_conflict", "extra_hands", "unlabelled_hand"})
"""Flags that annotation saw and no stored number shows; recomputing flags keeps them."""


def sharpness(image: ByteArray, keypoints: FloatArray, valid: BoolArray) -> float:
    """Return the variance of the Laplacian inside the box of the valid keypoints of an (S, S, 3) crop."""
    size = image.shape[0]
    low = np.clip(np.floor(keypoints[valid].min(axis=0)).astype(int), 0, size - 2)
    high = np.clip(np.ceil(keypoints[valid].max(axis=0)).astype(int) + 1, low + 2, size)
    grey = cv2.cvtColor(image[low[1] : high[1], low[0] : high[0]], cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def perceptual_hash(image: ByteArray) -> int:
    """Return the 64-bit DCT hash of an RGB image as a signed integer; near-duplicates differ in few bits."""
    digest = cv2.img_hash.pHash(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return int.from_bytes(digest.tobytes(), "big", signed=True)


def quality_flags(
    *,
    observed: Iterable[str],
    mask_score: float | None,
    mask_spill: float | None,
    hand_px: tuple[float, float],
    agreement_px: tuple[float | None, float | None],
    image_sharpness: float,
    full_px_per_crop_px: float,
    joints_outside_picture: bool,
    settings: QualitySettings,
) -> tuple[str, ...]:
    """Return the sorted flags of a sample from its stored numbers and the thresholds.

    Args:
        observed: flags of ``OBSERVED_FLAGS`` that annotation saw.
        mask_score: share of valid keypoints inside the mask.
        mask_spill: share of the mask's area away from the hands.
        hand_px: (right, left) hand sizes in full-image pixels, 0 where absent.
        agreement_px: (right, left) distance of dataset and MediaPipe keypoints in crop pixels.
        image_sharpness: variance of the Laplacian.
        full_px_per_crop_px: full-image pixels per crop pixel, to compare the two former.
        joints_outside_picture: whether an annotated joint lies in the crop's padding or beyond the crop.
        settings: the thresholds.

    """
    flags = set(observed)
    if mask_score is not None and mask_score < settings.min_mask_score:
        flags.add("low_mask_coverage")
    if mask_spill is not None and mask_spill > settings.max_mask_spill:
        flags.add("mask_spill")
    if any(0 < size < settings.min_hand_px for size in hand_px):
        flags.add("small_hand")
    if image_sharpness < settings.min_sharpness:
        flags.add("blurry")
    if joints_outside_picture:
        flags.add("truncated")
    for size, distance in zip(hand_px, agreement_px, strict=True):
        if distance is not None and size > 0 and distance * full_px_per_crop_px > settings.max_disagreement * size:
            flags.add("labels_disagree")
    return tuple(sorted(flags))
