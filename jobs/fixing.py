"""``handdata sample fix``: the hands of a photograph drawn anew, and nothing else of it touched."""

from pathlib import Path

import cv2
import numpy as np

from handdata.pipeline.annotation.photo import PhotoHand, annotate_hands, read_photo
from handdata.pipeline.settings import AnnotateSettings
from handdata.schemas.arrays import BoolArray, ByteArray
from handdata.trainer.data.augment import Frame
from handdata.trainer.presets import SamplingOptions
from handdata.trainer.samplers import Progress
from handdata.trainer.tasks import Sampler, repair

_MARGIN = 0.25
"""Margin around a hand that is drawn anew, in sizes of the hand."""


def fix_photo(
    sampler: Sampler,
    photo: Path,
    settings: AnnotateSettings,
    weights: Path | None = None,
    options: SamplingOptions = SamplingOptions(),
    progress: Progress | None = None,
) -> ByteArray:
    """Return a photograph (H, W, 3) RGB with its hands drawn anew where MediaPipe finds their keypoints.

    Each hand is drawn in a square of its own: two hands far apart would be small in one around both, and what lies
    between them is not drawn.

    Args:
        sampler: Network, autoencoder and preset.
        photo: Image file.
        settings: Annotation of photographs.
        weights: Folder of MediaPipe's model; None looks in the usual places.
        options: Steps, guidance and seed.
        progress: Called after each denoising step.

    Raises:
        UsageError: The file is no readable image, or shows no hand that MediaPipe finds.

    """
    hands = annotate_hands(photo, settings, weights)
    image = read_photo(photo)
    for number, hand in enumerate(hands):

        def of_all(step: int, total: int, before: int = number) -> None:
            if progress:
                progress(before * total + step, len(hands) * total)

        # What was drawn of the other hand is part of the image that this hand has to fit.
        frame = Frame(
            image=hand.square.cut(image),
            mask=hand.mask.astype(np.uint8) * np.uint8(255),
            known=hand.known.astype(np.uint8) * np.uint8(255),
            keypoints=hand.keypoints,
            valid=hand.valid,
        )
        region = _around_hand(hand)
        image = hand.square.paste(image, repair(sampler, frame, region, options, progress=of_all), region)
    return image


def _around_hand(hand: PhotoHand) -> BoolArray:
    """Return where a hand is in its square, with a margin (S, S)."""
    joints = hand.keypoints[hand.own]
    margin = _MARGIN * float(np.ptp(joints, axis=0).max())
    hull = cv2.convexHull(np.round(joints).astype(np.int32))
    region = np.zeros(hand.mask.shape, np.uint8)
    cv2.fillConvexPoly(region, hull, 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(margin) + 1,) * 2)
    return np.asarray((cv2.dilate(region, kernel) > 0) | hand.mask)
