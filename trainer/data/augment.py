"""Geometry and colour changes of one frame: image, mask, keypoints and validity together.

Every function takes a ``Frame`` and returns a new one whose labels are true of its image. Pixel (0, 0) is the centre
of the top-left pixel, so that mirroring is x' = W - 1 - x and resizing by a factor s is x' = (x + 0.5) s - 0.5.

The paper names random gamma, a left/right hand swap, a horizontal flip that teaches chirality, and crops. A mirrored
image of a right hand is an image of a left hand, so both mirrorings exchange the 42 rows. They differ in what they are
applied to, see ``augment_pair``: the flip mirrors both frames, so that each hand is seen as right and as left; the swap
mirrors the reference alone, so that a right hand's appearance is carried to the left hand's pose.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.schemas.joints import FLIP_PERMUTATION, inside
from handdata.trainer.presets import AugmentationConfig


@dataclass(frozen=True, slots=True)
class Frame:
    """One image and its labels.

    Args:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) uint8, 255 on the hands; zeros where there is no mask.
        known: (H, W) uint8, 255 where the crop shows the source image, 0 in its padding.
        keypoints: (42, 2) pixels.
        valid: (42,) annotated and inside the image.

    """

    image: ByteArray
    mask: ByteArray
    known: ByteArray
    keypoints: FloatArray
    valid: BoolArray


def mirror(frame: Frame) -> Frame:
    """Mirror left and right; the right hand's rows become the left's."""
    keypoints = frame.keypoints[FLIP_PERMUTATION]
    keypoints[:, 0] = frame.image.shape[1] - 1 - keypoints[:, 0]
    return Frame(
        image=_mirrored(frame.image),
        mask=_mirrored(frame.mask),
        known=_mirrored(frame.known),
        keypoints=keypoints,
        valid=frame.valid[FLIP_PERMUTATION],
    )


def crop(frame: Frame, left: int, top: int, side: int) -> Frame:
    """Cut the square of whole pixels whose first one is (left, top); it must lie inside the image."""
    rows, columns = slice(top, top + side), slice(left, left + side)
    keypoints = frame.keypoints - np.array([left, top], dtype=np.float32)
    return Frame(
        image=frame.image[rows, columns],
        mask=frame.mask[rows, columns],
        known=frame.known[rows, columns],
        keypoints=keypoints,
        valid=frame.valid & inside(keypoints, side, side),
    )


def resize(frame: Frame, size: int) -> Frame:
    """Resize a square frame to ``size`` pixels: averaged areas when it shrinks, cubic (mask: linear) when it grows."""
    side = frame.image.shape[0]
    if side == size:
        return frame
    shrinks = side > size

    def resized(plane: ByteArray, enlarging: int) -> ByteArray:
        interpolation = cv2.INTER_AREA if shrinks else enlarging
        return np.asarray(cv2.resize(plane, (size, size), interpolation=interpolation), dtype=np.uint8)

    keypoints = np.asarray((frame.keypoints + 0.5) * (size / side) - 0.5, dtype=np.float32)
    return Frame(
        image=resized(frame.image, cv2.INTER_CUBIC),
        mask=resized(frame.mask, cv2.INTER_LINEAR),
        known=resized(frame.known, cv2.INTER_LINEAR),
        keypoints=keypoints,
        # Rounding can carry a joint on the last pixel's edge over it.
        valid=frame.valid & inside(keypoints, size, size),
    )


def change_gamma(frame: Frame, gamma: float) -> Frame:
    """Raise brightness (0 to 1) to the power ``gamma``: above 1 darkens."""
    table = np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    return replace(frame, image=np.asarray(cv2.LUT(frame.image, table), dtype=np.uint8))


def random_crop(frame: Frame, smallest: float, rng: np.random.Generator) -> Frame:
    """Cut a square of between ``smallest`` and all of a square frame's side, anywhere inside it."""
    whole = frame.image.shape[0]
    side = round(whole * rng.uniform(smallest, 1))
    left, top = rng.integers(0, whole - side, size=2, endpoint=True)
    return crop(frame, int(left), int(top), side)


def augment_pair(
    target: Frame,
    reference: Frame | None,
    keeps_sides: bool,
    size: int,
    config: AugmentationConfig,
    rng: np.random.Generator,
) -> tuple[Frame, Frame | None]:
    """Change a pair at random and resize it to ``size`` pixels.

    Crops are drawn for each frame, gamma and flip for the pair.

    Args:
        target: Square frame.
        reference: Square frame, or None for a still.
        keeps_sides: Hands are not swapped: both frames show one moment, and the mirror image of a view is not another
            camera's view of it; or nothing is known of one of the hands.
        size: Side of both results, pixels.
        config: Ranges and chances of the changes.
        rng: Source of all draws.

    """
    # All draws are made always: what one pair becomes does not depend on whether it has a reference.
    flips, swaps = rng.random(2) < (config.flip, config.hand_swap)
    gamma = float(np.exp(rng.uniform(-1, 1) * np.log(config.max_gamma)))
    target = resize(random_crop(target, config.smallest_crop, rng), size)
    target = change_gamma(mirror(target) if flips else target, gamma)
    if reference is None:
        return target, None
    reference = resize(random_crop(reference, config.smallest_crop, rng), size)
    if flips != (swaps and not keeps_sides):
        reference = mirror(reference)
    return target, change_gamma(reference, gamma)


def augment_alone(
    frame: Frame, size: int, config: AugmentationConfig, shared: np.random.Generator, own: np.random.Generator
) -> Frame:
    """Change one frame at random and resize it to ``size`` pixels.

    Args:
        frame: Square frame.
        size: Side of the result, pixels.
        config: Ranges and chances of the changes.
        shared: Source of flip and gamma, equal for frames that may become a pair.
        own: Source of the crop.

    """
    flips = shared.random() < config.flip
    gamma = float(np.exp(shared.uniform(-1, 1) * np.log(config.max_gamma)))
    frame = resize(random_crop(frame, config.smallest_crop, own), size)
    return change_gamma(mirror(frame) if flips else frame, gamma)


def _mirrored(plane: ByteArray) -> ByteArray:
    # 30 times faster than a copy of plane[:, ::-1].
    return np.asarray(cv2.flip(plane, 1), dtype=np.uint8)
