"""How good generated hands are: beside the truth, and beside baselines that know nothing of diffusion.

Pairs are moments of one video whose hands have moved. The network draws the target from the reference and the target's
keypoints. What it must beat learns nothing: the reference copied, the reference carried to the target's keypoints bone
by bone (``handdata.trainer.geometry``), and the mean image of the training split. Images are compared
inside the target's hand box, grown by ``BOX_MARGIN``: the background would decide otherwise. Intervals come
from resampling videos, not pairs, since pairs of one video resemble each other (Efron and Tibshirani 1993, section
8.3).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from handdata.schemas import FINGERS, SIDES, WRIST, UnreadableImageError, UsageError, hand_rows
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray
from handdata.trainer.data.augment import Frame
from handdata.trainer.geometry.carrying import carry
from handdata.trainer.geometry.poses import Pose

if TYPE_CHECKING:
    from handdata.trainer.data.pairs import PairDataset  # here alone: machines without polars score images, too

BOX_MARGIN: Final = 0.25
"""Share of the hand box's longer side that is added on each side."""
SMALLEST_BOX_PX: Final = 16
"""Smallest side of a box: SSIM looks through a window of 11 pixels."""
PCK_SHARES: Final = (0.1, 0.2)
"""Shares of the hand's length within which a drawn joint is right."""
LEAST_MOTION: Final = 0.3
"""Smallest mean motion of a pair, in hand lengths, where the dataset has pairs that move so far."""
_RESAMPLES: Final = 10_000
_CANDIDATES: Final = 200
"""Largest number of pairs that are looked at for each one wanted, until enough have moved."""

FindHands = Callable[[ByteArray], Sequence[FloatArray]]
"""An (S, S, 3) RGB image -> the (21, 2) joints, pixels, of each hand that a detector finds in it."""


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


def moved_pairs(
    dataset: "PairDataset",
    count: int,
    least_motion: float | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[MovedPair]:
    """Return up to ``count`` video pairs whose joints move at least ``least_motion`` hand lengths, no pair twice.

    Left out are pairs without a hand that both frames show, of whose motion nothing can be said, and those with an
    image that cannot be decoded. By default pairs move ``LEAST_MOTION``; where none does, as in slow or short videos,
    the half of the pairs that moves most is taken.

    Args:
        dataset: Pairs of the split.
        count: Largest number of pairs.
        least_motion: Smallest motion; None as above.
        on_note: Called with a line on each pair with an image that cannot be decoded.

    Raises:
        UsageError: No pair moves so far.

    """
    least = LEAST_MOTION if least_motion is None else least_motion
    found: list[MovedPair] = []
    slower: dict[tuple[int, int], float] = {}
    seen: set[tuple[int, int]] = set()
    for position in range(count * _CANDIDATES):
        target, reference, _ = dataset.rows_at(position)
        if reference is None or (target, reference) in seen:
            continue
        seen.add((target, reference))
        try:
            frames = dataset.frame(reference), dataset.frame(target)
        except UnreadableImageError as error:
            if on_note:
                on_note(f"passed over {error.message}")
            continue
        motions = _joint_motions(*frames)
        if not motions:
            continue
        motion = float(np.mean(motions))
        if motion < least:
            slower[target, reference] = motion
            continue
        found.append(MovedPair(dataset.sequence_id(target), motion, *frames))
        if len(found) == count:
            break
    if not found and slower and least_motion is None:
        median = float(np.median(list(slower.values())))
        moving = [(*rows, motion) for rows, motion in slower.items() if motion >= median][:count]
        found = [
            MovedPair(dataset.sequence_id(target), motion, dataset.frame(reference), dataset.frame(target))
            for target, reference, motion in moving
        ]
    if not found:
        raise UsageError(
            f"no pair of frames of {dataset.storage.describe()} moves {least} hand lengths",
            "lower --min-motion, or let pairs.max_gap_s be longer",
        )
    return found


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


def hand_length(keypoints: FloatArray, valid: BoolArray) -> float:
    """Return the longest way from a hand's wrist to a fingertip along its joints (21, 2), in pixels."""
    ways = (keypoints[[joint for joint in (WRIST, *finger) if valid[joint]]] for finger in FINGERS.values())
    return max(float(np.hypot(*np.diff(way, axis=0).T).sum()) for way in ways)


def mean_motion(reference: Frame, target: Frame) -> float:
    """Return how far the joints that both frames show lie apart, in hand lengths of the target; 0 if there are none."""
    motions = _joint_motions(reference, target)
    return float(np.mean(motions)) if motions else 0.0


def _joint_motions(reference: Frame, target: Frame) -> list[float]:
    """Return how far each joint that both frames show has moved, in hand lengths of the target."""
    distances: list[float] = []
    for rows in map(hand_rows, SIDES):
        both = reference.valid[rows] & target.valid[rows]
        length = hand_length(target.keypoints[rows], target.valid[rows])
        if both.any() and length > 0:
            apart = np.hypot(*(target.keypoints[rows] - reference.keypoints[rows])[both].T)
            distances += (apart / length).tolist()
    return distances


def hand_box(frame: Frame) -> tuple[slice, slice]:
    """Return rows and columns of the box around a frame's joints, grown by ``BOX_MARGIN``, inside the image."""
    size = frame.image.shape[0]
    joints = frame.keypoints[frame.valid]
    low, high = joints.min(axis=0), joints.max(axis=0)
    grown = np.maximum((high - low) / 2 + BOX_MARGIN * (high - low).max(), SMALLEST_BOX_PX / 2)
    first = np.clip(np.floor((low + high) / 2 - grown).astype(int), 0, size - SMALLEST_BOX_PX)
    last = np.clip(np.ceil((low + high) / 2 + grown).astype(int) + 1, first + SMALLEST_BOX_PX, size)
    return slice(int(first[1]), int(last[1])), slice(int(first[0]), int(last[0]))


def similarity(image: ByteArray, target: Frame) -> dict[str, float]:
    """Return PSNR (dB) and SSIM of an image (S, S, 3) and the true target inside the target's hand box."""
    box = hand_box(target)
    drawn, true = (
        torch.from_numpy(np.ascontiguousarray(pixels[box])).permute(2, 0, 1)[None].float()
        for pixels in (image, target.image)
    )
    ssim = structural_similarity_index_measure(drawn, true, data_range=255.0)
    assert isinstance(ssim, torch.Tensor)  # without its map of local values
    return {"psnr": float(peak_signal_noise_ratio(drawn, true, data_range=255.0)), "ssim": float(ssim)}


def correct_joints(image: ByteArray, target: Frame, find_hands: FindHands) -> dict[str, float]:
    """Return how much of the target's pose a detector finds in an image (S, S, 3), as shares of hands and joints.

    ``detected``: hands for which a detection lies within a hand's length on average; ``pck@...``: visible joints
    within that share of the hand's length, those of hands that are not detected counted as wrong. A detection counts
    for one hand: they are shared out such that the distances are smallest in all.
    """
    hands = [(target.keypoints[rows], target.valid[rows]) for rows in map(hand_rows, SIDES)]
    hands = [hand for hand in hands if hand_length(*hand) > 0]
    # A row a hand, a column a detection, and columns of "not detected", which is worse than any hit.
    missed = [[np.full(int(valid.sum()), np.inf) for _ in hands] for _, valid in hands]
    found = list(find_hands(image))
    apart = [
        [np.hypot(*(joints - keypoints)[valid].T) / hand_length(keypoints, valid) for joints in found] + columns
        for (keypoints, valid), columns in zip(hands, missed, strict=True)
    ]
    chosen = min(
        permutations(range(len(found) + len(hands)), len(hands)),
        key=lambda columns: sum(min(float(apart[row][column].mean()), 1.0) for row, column in enumerate(columns)),
    )
    nearest = [apart[row][column] for row, column in enumerate(chosen)]
    detected = [float(distance.mean()) < 1 for distance in nearest]
    distances = np.concatenate(
        [distance if hit else np.full_like(distance, np.inf) for distance, hit in zip(nearest, detected, strict=True)]
    )
    shares = {f"pck@{share}": float((distances < share).mean()) for share in PCK_SHARES}
    return {"detected": float(np.mean(detected)), **shares}


def interval(values: Sequence[float], groups: Sequence[str], seed: int = 0) -> Interval:
    """Return the mean of values with its 95% bootstrap interval, which resamples whole groups."""
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(group)
    chosen = np.random.default_rng(seed).integers(len(names), size=(_RESAMPLES, len(names)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
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
            similarity(image, pair.target) | correct_joints(image, pair.target, find_hands)
            for pair, image in zip(pairs, made, strict=True)
        ]
        for way, made in images.items()
    }
    above = {
        way: [
            {name: mark - other[name] for name, mark in mine.items()}
            for mine, other in zip(marks[ours], of_way, strict=True)
        ]
        for way, of_way in marks.items()
        if way != ours
    }
    return (
        {way: _summed_up(of_way, pairs) for way, of_way in marks.items()},
        {way: _summed_up(of_way, pairs) for way, of_way in above.items()},
    )


def pose_of_truth(pairs: Sequence[MovedPair], find_hands: FindHands) -> Scores:
    """Return how much of the pose the detector finds in the true targets: the most that a generator can reach."""
    return _summed_up([correct_joints(pair.target.image, pair.target, find_hands) for pair in pairs], pairs)


def _summed_up(marks: Sequence[Mapping[str, float]], pairs: Sequence[MovedPair]) -> Scores:
    groups = [pair.sequence for pair in pairs]
    return {name: interval([mark[name] for mark in marks], groups) for name in marks[0]}


def mean_image(images: Sequence[ByteArray]) -> ByteArray:
    """Return the mean of images (S, S, 3)."""
    total: NDArray[np.float64] = np.mean(np.stack(images), axis=0)
    return np.asarray(np.round(total), dtype=np.uint8)
