"""How good generated hands are: beside the truth, and beside baselines that know nothing of diffusion.

Pairs are moments of one video whose hands have moved. The network draws the target from the reference and the target's
keypoints. What it must beat learns nothing: the reference copied, the reference carried to the target's keypoints bone
by bone (``handdata.trainer.geometry``), and the mean image of the training split. ``metrics`` has the measures.
Intervals come from resampling videos, not pairs, since pairs of one video resemble each other (Efron and Tibshirani
1993, section 8.3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from handdata.schemas import SIDES, hand_rows
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.trainer.data.augment import Frame
from handdata.trainer.geometry.carrying import carry
from handdata.trainer.geometry.poses import Pose
from handdata.trainer.metrics import FindHands, hand_length, picture_marks, pose_marks

LEAST_MOTION: Final = 0.3
"""Smallest mean motion of a pair, in hand lengths, where the dataset has pairs that move so far."""
_RESAMPLES: Final = 10_000


@dataclass(frozen=True, slots=True)
class MovedPair:
    """Two moments of one video.

    Args:
        sequence: Sequence of both.
        motion: Mean distance of the joints that both show, in hand lengths of the target.
        reference: Frame that the network is given.
        target: Frame that it has to draw.

    """

    sequence: str
    motion: float
    reference: Frame
    target: Frame


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


def carried_references(pairs: Sequence[tuple[Frame, Frame]], painted_out: bool = True) -> list[ByteArray]:
    """Return each reference carried to its target's keypoints (S, S, 3): geometry alone, without learning.

    Args:
        pairs: References and targets of one size S.
        painted_out: What the reference's hands leave is filled from around them; else they stay to be seen.

    """
    images: list[ByteArray] = []
    for shown, wanted in pairs:
        reference, target = (
            Pose(torch.from_numpy(frame.keypoints)[None].float(), torch.from_numpy(frame.valid)[None])
            for frame in (shown, wanted)
        )
        picture = torch.from_numpy(shown.image).permute(2, 0, 1)[None].float()
        mask = torch.from_numpy(shown.mask > 127)[None, None].float()
        carried = carry(picture, mask, target, reference)
        drawn = carried.base if painted_out else torch.lerp(picture, carried.picture, carried.coverage)
        images.append(drawn[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    return images


def mean_motion(reference: Frame, target: Frame) -> float:
    """Return how far the joints that both frames show lie apart, in hand lengths of the target; 0 if there are none."""
    motions = joint_motions((reference.keypoints, reference.valid), (target.keypoints, target.valid))
    return float(np.mean(motions)) if motions else 0.0


def joint_motions(reference: tuple[FloatArray, BoolArray], target: tuple[FloatArray, BoolArray]) -> list[float]:
    """Return how far each joint that two frames show has moved, in hand lengths of the target.

    Args:
        reference: Keypoints (42, 2) of one frame, and which are there (42,).
        target: Those of the other one.

    """
    distances: list[float] = []
    for rows in map(hand_rows, SIDES):
        both = reference[1][rows] & target[1][rows]
        length = hand_length(target[0][rows], target[1][rows])
        if both.any() and length > 0:
            apart = np.hypot(*(target[0][rows] - reference[0][rows])[both].T)
            distances += (apart / length).tolist()
    return distances


def interval(values: Sequence[float], groups: Sequence[str], seed: int = 0) -> Interval:
    """Return the mean of values with its 95% bootstrap interval, which resamples groups; infinite ones may be there."""
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(group)
    chosen = np.random.default_rng(seed).integers(len(names), size=(_RESAMPLES, len(names)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, 0.025, method="lower"), np.quantile(means, 0.975, method="higher")
    return Interval(float(np.mean(values)), float(low), float(high))


Scores = dict[str, Interval]
"""Mean and interval of each measure."""


def compare(
    pairs: Sequence[MovedPair], images: Mapping[str, Sequence[ByteArray]], ours: str, find_hands: FindHands
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Return the scores of each way to make images of the targets, and by how much ``ours`` is above each other way.

    Args:
        pairs: Pairs with the true targets.
        images: One image (S, S, 3) a pair, for each way.
        ours: Way that is compared with each other one, pair by pair.
        find_hands: Detector of the drawn pose.

    """
    marks = {
        way: [
            picture_marks(image, pair.target) | pose_marks(image, pair.target, find_hands)
            for pair, image in zip(pairs, made, strict=True)
        ]
        for way, made in images.items()
    }
    return summed_up(marks, ours, [pair.sequence for pair in pairs])


def summed_up(
    marks: Mapping[str, Sequence[Mapping[str, float]]], ours: str, videos: Sequence[str]
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Return the scores of each way, and by how much ``ours`` is above each other way, pair by pair.

    Args:
        marks: Marks of each pair's image, by way.
        ours: Way that is compared with each other one.
        videos: Video of each pair.

    """
    above = {
        way: [
            {name: 0.0 if mark == other[name] else mark - other[name] for name, mark in mine.items()}  # infinite, too
            for mine, other in zip(marks[ours], of_way, strict=True)
        ]
        for way, of_way in marks.items()
        if way != ours
    }
    return (
        {way: mean_scores(of_way, videos) for way, of_way in marks.items()},
        {way: mean_scores(of_way, videos) for way, of_way in above.items()},
    )


def pose_of_truth(pairs: Sequence[MovedPair], find_hands: FindHands) -> Scores:
    """Return how much of the pose the detector finds in the true targets: the most that a generator can reach."""
    marks = [pose_marks(pair.target.image, pair.target, find_hands) for pair in pairs]
    return mean_scores(marks, [pair.sequence for pair in pairs])


def mean_scores(marks: Sequence[Mapping[str, float]], videos: Sequence[str]) -> Scores:
    """Return the means of the marks of some images, with intervals over their videos."""
    return {name: interval([mark[name] for mark in marks], videos) for name in marks[0]}


def mean_image(images: Sequence[ByteArray]) -> ByteArray:
    """Return the mean of images (S, S, 3)."""
    total: NDArray[np.float64] = np.mean(np.stack(images), axis=0)
    return np.asarray(np.round(total), dtype=np.uint8)
