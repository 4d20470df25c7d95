"""``handdata evaluate``: generated hands beside the truth, a copied and a carried reference, and the mean image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from handdata.jobs.figures import CARRIED, OURS, TRUTH, side_by_side
from handdata.pipeline.annotation.detector import HandDetector
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.storage import Storage
from handdata.pipeline.weights import require_weights
from handdata.schemas import Split, UnreadableImageError, UsageError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.data.pairs import open_pairs
from handdata.trainer.data.splits import TRAINED_FIRST
from handdata.trainer.evaluation import (
    MovedPair,
    Scores,
    carried_references,
    compare,
    mean_image,
    moved_pairs,
    pose_of_truth,
)
from handdata.trainer.metrics import FoundHand
from handdata.trainer.presets import PairConfig, Preset, SamplingOptions
from handdata.trainer.tasks import gesture_transfer, load_sampler

COPY, MEAN = "copied reference", "mean picture"
CARRIED_OVER = "carried reference, hand left in"

_MEAN_OF = 1000
"""Largest number of training images that the mean image is made of."""
_BATCH = 32
_DETECTOR_PX = 256
"""Side to which small images are enlarged for the detector."""


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What ``handdata evaluate`` was asked for.

    Args:
        checkpoint: Path or URL of a file of weights, or of a checkpoint's or a run's folder.
        dataset: Dataset of the pairs; None takes the one that the checkpoint was trained on.
        split: Split of the pairs.
        count: Largest number of pairs.
        least_motion: Smallest mean motion of a pair's joints, in hand lengths; None as in ``moved_pairs``.
        options: Steps, guidance and seed; the same seed also gives the same pairs.
        shown: Number of pairs in the figure.
        device: Device to generate on; None takes CUDA's where there is one.
        checkpoint_preset: Preset of weights that carry no settings.

    """

    checkpoint: str
    dataset: str | None = None
    split: Split = "val"
    count: int = 200
    least_motion: float | None = None
    options: SamplingOptions = SamplingOptions()
    shown: int = 8
    device: str | None = None
    checkpoint_preset: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found; means with 95% intervals.

    Args:
        pairs: Number of pairs.
        sequences: Number of their videos.
        motion: Mean motion of the pairs in hand lengths.
        scores: Scores of each way to make the image.
        above: Differences of generated images and each baseline, pair by pair.
        truth: What the detector finds in the true targets.
        figure: Titled columns: reference, pose, carried reference, generated image, truth, mean image (H, W, 3).

    """

    pairs: int
    sequences: int
    motion: float
    scores: dict[str, Scores]
    above: dict[str, Scores]
    truth: Scores
    figure: ByteArray

    def document(self) -> dict[str, Any]:
        """Return all but the figure as plain values."""
        return {name: value for name, value in asdict(self).items() if name != "figure"}


def evaluate(
    request: EvaluationRequest,
    storage: Storage,
    weights: Path | None = None,
    on_pair: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Draw moved pairs of a split, generate their targets, and score them beside the baselines.

    Args:
        request: Checkpoint, pairs and options.
        storage: Workspace of the dataset.
        weights: Folder of MediaPipe's model; None looks in the usual places.
        on_pair: Called with (pairs generated, pairs in all).
        on_note: Called with a line on each image that cannot be decoded and is passed over.

    Raises:
        UsageError: The split has no pair that moves so far.
        WeightsError: The checkpoint is missing or not one of ours, or MediaPipe's model is nowhere.

    """
    sampler = load_sampler(request.checkpoint, request.dataset, request.device, request.checkpoint_preset, on_note)
    preset, options = sampler.preset, request.options
    moving = preset.pairs.model_copy(update={"video": 1.0, "view": 0.0, "still": 0.0, "sources": {}})
    dataset = open_pairs(storage, preset, request.split, pairs=moving, seed=options.seed)
    pairs = moved_pairs(dataset, request.count, request.least_motion, on_note)
    generated: list[ByteArray] = []
    remaining = iter(pairs)
    while part := list(islice(remaining, _BATCH)):
        references, targets = [pair.reference for pair in part], [pair.target for pair in part]
        of_part = replace(options, seed=options.seed + len(generated))
        generated += list(gesture_transfer(sampler, references, targets, of_part))
        if on_pair:
            on_pair(len(generated), len(pairs))
    mean = _mean_of_training(storage, preset, on_note)
    frames = [(pair.reference, pair.target) for pair in pairs]
    images = {
        OURS: generated,
        COPY: [pair.reference.image for pair in pairs],
        CARRIED: carried_references(frames),
        CARRIED_OVER: carried_references(frames, painted_out=False),
        MEAN: [mean] * len(pairs),
    }
    with HandDetector(require_weights("hand_landmarker", weights), AnnotateSettings().detection_confidence) as detector:

        def find(image: ByteArray) -> list[FoundHand]:
            return find_hands(detector, image)

        scores, above = compare(pairs, images, OURS, find)
        truth = pose_of_truth(pairs, find)
    return Evaluation(
        pairs=len(pairs),
        sequences=len({pair.sequence for pair in pairs}),
        motion=float(np.mean([pair.motion for pair in pairs])),
        scores=scores,
        above=above,
        truth=truth,
        figure=_figure(pairs, images, request.shown),
    )


def _mean_of_training(storage: Storage, preset: Preset, on_note: Callable[[str], None] | None) -> ByteArray:
    """Return the mean image of the split to train on, or of what the preset chooses of the others."""
    for split in TRAINED_FIRST:
        try:
            dataset = open_pairs(storage, preset, split, pairs=PairConfig())
        except UsageError:
            continue
        rows = [dataset.rows_at(position)[0] for position in range(min(len(dataset), _MEAN_OF))]
        images = []
        for row in rows:
            try:
                images.append(dataset.frame(row).image)
            except UnreadableImageError as error:
                if on_note:
                    on_note(f"passed over {error.message}")
        if images:
            return mean_image(images)
    raise UsageError(f"{storage.describe()} has no samples", "run `handdata annotate` first")


def find_hands(detector: HandDetector, image: ByteArray) -> list[FoundHand]:
    """Return the hands in an image, which is enlarged where it is small."""
    size = image.shape[0]
    scale = max(_DETECTOR_PX / size, 1.0)
    enlarged = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    found = detector.detect(np.asarray(enlarged, dtype=np.uint8))
    return [FoundHand(hand.side, np.asarray((hand.keypoints + 0.5) / scale - 0.5, np.float32)) for hand in found]


def _figure(pairs: Sequence[MovedPair], images: Mapping[str, Sequence[ByteArray]], shown: int) -> ByteArray:
    """Lay out pairs of different videos, a row each, below the titles of their columns."""
    first = {pair.sequence: number for number, pair in reversed(list(enumerate(pairs)))}
    chosen = list(first.values())[::-1][:shown]
    columns = {CARRIED: images[CARRIED], OURS: images[OURS], TRUTH: [pair.target.image for pair in pairs]}
    columns[MEAN] = images[MEAN]
    return side_by_side(
        [(pairs[number].reference, pairs[number].target) for number in chosen],
        {title: [of_way[number] for number in chosen] for title, of_way in columns.items()},
    )
