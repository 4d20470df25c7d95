"""The measures of an evaluation: those that need no weights, and those of learned features whose weights are here."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, overload

import torch
from torch import Tensor

from handdata.pipeline.weights import find_weights
from handdata.schemas.arrays import ByteArray
from handdata.trainer.alignment import ImageEncoder
from handdata.trainer.data.augment import Frame
from handdata.trainer.metrics import (
    BOX_MARGIN,
    Features,
    FindHands,
    PictureDistance,
    feature_similarity,
    load_inception,
    load_lpips,
    picture_distances,
    picture_marks,
    pose_marks,
    set_marks,
    skin_distance,
)
from handdata.trainer.presets import AlignmentConfig

Marks = dict[str, float]
"""What one image is worth, by measure."""

REGION: Final = (
    "psnr, ssim, lpips, fid, kid: whole image, as in FoundHand's tables; psnr_box, ssim_box, dinov2: target's hand box "
    f"grown by {BOX_MARGIN:g} of its longer side; skin: target's mask"
)
"""Which pixels the measures compare."""

LOWER_IS_BETTER: Final = frozenset({"error", "fid", "flicker", "kid", "lpips", "skin"})
"""Measures of which less is better."""

_DINOV2_GRID: Final = 16
"""Patches of a side that an image is seen as."""


@dataclass(frozen=True, slots=True)
class LearnedMeasures:
    """The networks behind measures of learned features; None where their weights are not here.

    Args:
        lpips: LPIPS of two batches.
        inception: Features of FID and KID.
        dinov2: Features of the similarity of identities.
        missing: A line on each measure whose weights are not here.

    """

    lpips: PictureDistance | None = None
    inception: Features | None = None
    dinov2: Features | None = None
    missing: tuple[str, ...] = ()


def load_learned(weights: Path | None, device: str | torch.device) -> LearnedMeasures:
    """Load the networks whose weights are here.

    Args:
        weights: Folder of weights; None looks in the usual places.
        device: Device that computes.

    Raises:
        WeightsError: A file holds other weights.

    """
    files = {name: find_weights(name, weights) for name in ("alexnet", "inception", "dinov2")}
    needed = {"alexnet": "lpips", "inception": "fid and kid", "dinov2": "dinov2"}
    return LearnedMeasures(
        lpips=load_lpips(file, device) if (file := files["alexnet"]) else None,
        inception=_remembered(load_inception(file, device)) if (file := files["inception"]) else None,
        dinov2=_dinov2(file, device) if (file := files["dinov2"]) else None,
        missing=tuple(
            f"not measured: {measures}, whose weights are not here: run `handdata weights fetch {name}`"
            for name, measures in needed.items()
            if files[name] is None
        ),
    )


def _dinov2(file: Path, device: str | torch.device) -> Features:
    encoder = ImageEncoder(AlignmentConfig(weights=str(file)), _DINOV2_GRID, device)
    return lambda images: encoder(images.to(device)).mean(dim=1).cpu()


def _remembered(features: Features) -> Features:
    """Return a function of features that computes those of the same batch once: each way is beside the same truth."""
    known: dict[bytes, Tensor] = {}

    def of(images: Tensor) -> Tensor:
        key = hashlib.sha256(images.numpy().tobytes()).digest()
        if key not in known:
            known[key] = features(images)
        return known[key]

    return of


def marks_of(image: ByteArray, target: Frame, find_hands: FindHands, learned: LearnedMeasures) -> Marks:
    """Return what an image (S, S, 3) of a target is worth."""
    marks = picture_marks(image, target) | pose_marks(image, target, find_hands)
    marks["skin"] = skin_distance(image, target)
    if learned.lpips:
        (marks["lpips"],) = picture_distances([image], [target.image], learned.lpips)
    if learned.dinov2:
        (marks["dinov2"],) = feature_similarity([image], [target], learned.dinov2)
    return marks


def marks_of_set(
    image: Callable[[int], ByteArray], truth: Callable[[int], ByteArray], count: int, inception: Features
) -> Marks:
    """Return FID and KID of a number of images, each made when it is asked for by its number."""
    return set_marks(_Images(image, count), _Images(truth, count), inception)


class _Images(Sequence[ByteArray]):
    """Images that are made when they are asked for: together they may not fit into memory."""

    def __init__(self, make: Callable[[int], ByteArray], count: int) -> None:
        self._make, self._numbers = make, range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, wanted: int) -> ByteArray: ...
    @overload
    def __getitem__(self, wanted: slice) -> list[ByteArray]: ...
    def __getitem__(self, wanted: int | slice) -> ByteArray | list[ByteArray]:
        if isinstance(wanted, slice):
            return [self._make(number) for number in self._numbers[wanted]]
        return self._make(self._numbers[wanted])
