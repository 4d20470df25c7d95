"""A pair of frames as tensors, and batches of pairs that are filled in place."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from handdata.schemas import KEYPOINT_COUNT
from handdata.schemas.arrays import ByteArray
from handdata.trainer.conditioning import Task
from handdata.trainer.data.augment import Frame


class FramePair(NamedTuple):
    """One pair, or a batch of N pairs (then each field has a first axis N).

    Images are uint8; S is the training size in pixels. With stored latents (``DataConfig.latents``) the two images are
    float16 moments of the posterior instead, (2, C, h, w) mean and log variance or (1, C, h, w) the latent itself, and
    weight and mask have the latent's size.
    """

    target_image: Tensor
    """(3, S, S) RGB."""
    target_weight: Tensor
    """(1, S, S) 255 where the crop shows the source image, 0 where it lies outside: the loss counts nothing there."""
    target_keypoints: Tensor
    """(42, 2) float32, pixels, (0, 0) the centre of the top-left pixel."""
    target_valid: Tensor
    """(42,) bool, annotated and inside the image."""
    reference_image: Tensor
    reference_mask: Tensor
    """(1, S, S) 255 on the hands."""
    reference_keypoints: Tensor
    reference_valid: Tensor
    reference_dropped: Tensor
    """() bool: there is no reference; its fields are zeros."""
    task: Tensor
    """() int64, a ``Task``. A still asks for a pose change, as the published repair without a reference does."""


def stack_pairs(pairs: Iterable[tuple[Frame, Frame | None]], tasks: Sequence[Task], size: int) -> FramePair:
    """Stack pairs of target and reference of ``size`` pixels. Where there is no reference, its fields are zeros."""
    stack = PairStack(len(tasks), size)
    for number, (target, reference) in enumerate(pairs):
        stack.put(number, target, reference)
    return stack.pairs(tasks)


class PairStack:
    """A batch that is filled pair by pair: images are copied, if at all, while the processor's cache holds them."""

    def __init__(self, count: int, size: int) -> None:
        self._targets, self._references = _FrameStack(count, size), _FrameStack(count, size)

    def images(self, number: int) -> tuple[ByteArray, ByteArray]:
        """Return the memory of a pair's images: an image that is made in it need not be copied."""
        return self._targets.image[number], self._references.image[number]

    def put(self, number: int, target: Frame, reference: Frame | None) -> None:
        """Fill in one pair; without a reference its fields are zeros."""
        self._targets.put(number, target, target.known)
        if reference is None:
            self._references.clear(number)
        else:
            self._references.put(number, reference, reference.mask)

    def pairs(self, tasks: Sequence[Task]) -> FramePair:
        """Return the batch as tensors that share its memory."""
        targets, references = self._targets, self._references
        return FramePair(
            target_image=_channels_first(targets.image),
            target_weight=torch.from_numpy(targets.plane[:, None]),
            target_keypoints=torch.from_numpy(targets.keypoints),
            target_valid=torch.from_numpy(targets.valid),
            reference_image=_channels_first(references.image),
            reference_mask=torch.from_numpy(references.plane[:, None]),
            reference_keypoints=torch.from_numpy(references.keypoints),
            reference_valid=torch.from_numpy(references.valid),
            reference_dropped=torch.from_numpy(~references.present),
            task=torch.tensor(tasks),
        )


class _FrameStack:
    """The target or reference frames of a batch."""

    def __init__(self, count: int, size: int) -> None:
        self.image = np.empty((count, size, size, 3), np.uint8)
        self.plane = np.empty((count, size, size), np.uint8)
        self.keypoints = np.empty((count, KEYPOINT_COUNT, 2), np.float32)
        self.valid = np.empty((count, KEYPOINT_COUNT), np.bool_)
        self.present = np.ones(count, np.bool_)

    def put(self, number: int, frame: Frame, plane: ByteArray) -> None:
        if not np.may_share_memory(frame.image, self.image):
            self.image[number] = frame.image
        self.plane[number] = plane
        self.keypoints[number], self.valid[number] = frame.keypoints, frame.valid

    def clear(self, number: int) -> None:
        for field in (self.image, self.plane, self.keypoints, self.valid, self.present):
            field[number] = 0


def _channels_first(images: ByteArray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)
