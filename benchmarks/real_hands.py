"""Hands of photographs: a checkpoint beside copying and carrying, on all ordered pairs of real frames that move.

    python benchmarks/real_hands.py ../shared/data [--checkpoint RUN_OR_FILE] [--steps 1] [--out DIR]

The folder holds ``phone_video/NAME/*.jpg`` with ``NAME_keypoints.npz`` (frames of a video, in order) and below
``FoundHand10M`` views of one moment, a ``.npz`` beside each ``.jpg``. No network is trained on either. Intervals
resample blocks of neighbouring target frames, or target views: frames of one video resemble each other.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from handdata.console import print_table
from handdata.jobs.evaluate import CARRIED_OVER, COPY, find_hands
from handdata.jobs.figures import CARRIED, OURS, TRUTH, side_by_side
from handdata.pipeline.annotation.detector import HandDetector
from handdata.pipeline.annotation.masks import grabcut_mask
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.weights import require_weights
from handdata.schemas.arrays import ByteArray, FloatArray
from handdata.trainer.conditioning import Task
from handdata.trainer.data.augment import Frame, resize
from handdata.trainer.evaluation import MovedPair, Scores, carried_references, compare, mean_motion, pose_of_truth
from handdata.trainer.presets import SamplingOptions
from handdata.trainer.tasks import Sampler, gesture_transfer, load_sampler

BLOCK_FRAMES: Final = 3
"""Neighbouring frames of a video that are resampled together."""
LEAST_MOTIONS: Final = (0.12, 0.2)
"""Smallest mean motions of the pairs of each table, in hand lengths."""
_BATCH = 32
_SHOWN = 8


def video_frames(folder: Path) -> list[tuple[str, Frame]]:
    """Return the frames of the phone video and the block of each; masks are by GrabCut."""
    frames = []
    for labels in sorted((folder / "phone_video").glob("*_keypoints.npz")):
        clip = labels.name.removesuffix("_keypoints.npz")
        images = sorted((folder / "phone_video" / clip).glob("*.jpg"))
        with np.load(labels) as stored:
            for number, keypoints in zip(stored["frames"].tolist(), stored["kpts"], strict=True):
                valid = np.abs(keypoints).sum(axis=1) > 0
                image = cv2.cvtColor(cv2.imread(str(images[number])), cv2.COLOR_BGR2RGB)
                mask = grabcut_mask(image, keypoints, valid)
                frames.append((f"{clip}-{number // BLOCK_FRAMES}", _frame(image, keypoints, valid, mask)))
    return frames


def view_frames(folder: Path) -> list[tuple[str, Frame]]:
    """Return the published views and the name of each."""
    frames = []
    for path in sorted((folder / "FoundHand10M").rglob("*.jpg")):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        with np.load(path.with_suffix(".npz")) as stored:
            keypoints, valid = stored["kpts"], stored["joint_valid"].reshape(-1) > 0
            valid &= ((keypoints >= 0) & (keypoints < image.shape[0])).all(axis=1)
            frames.append((path.stem, _frame(image, keypoints, valid, stored["hand_mask"] > 0)))
    return frames


def _frame(image: ByteArray, keypoints: FloatArray, valid: np.ndarray, mask: np.ndarray) -> Frame:
    whole = np.full(image.shape[:2], 255, np.uint8)
    return Frame(image, mask.astype(np.uint8) * np.uint8(255), whole, keypoints.astype(np.float32), valid)


def moving_pairs(frames: Sequence[tuple[str, Frame]], size: int, least_motion: float) -> list[MovedPair]:
    """Return all ordered pairs that move so far, at the network's size; the target's block is their sequence."""
    sized = [(block, resize(frame, size)) for block, frame in frames]
    pairs = [
        MovedPair(block, mean_motion(reference, target), reference, target)
        for (_, reference), (block, target) in permutations(sized, 2)
    ]
    return [pair for pair in pairs if pair.motion >= least_motion]


def generated(sampler: Sampler, pairs: Sequence[MovedPair], task: Task, options: SamplingOptions) -> list[ByteArray]:
    """Return the network's image of each target."""
    images: list[ByteArray] = []
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        references, targets = [pair.reference for pair in part], [pair.target for pair in part]
        images += list(gesture_transfer(sampler, references, targets, options, task=task))
    return images


def table(scores: dict[str, Scores], above: dict[str, Scores], truth: Scores) -> dict[str, str]:
    """Return a line for each way to make images, each difference and the truth."""
    rows = {**scores, **{f"{OURS} above {way}": marks for way, marks in above.items()}, "truth": truth}
    return {
        name: ", ".join(f"{measure} {it.mean:.3f} ({it.low:.3f} to {it.high:.3f})" for measure, it in marks.items())
        for name, marks in rows.items()
    }


def figure(pairs: Sequence[MovedPair], images: dict[str, list[ByteArray]]) -> ByteArray:
    """Lay out pairs spread over all, below the titles of their columns."""
    shown = np.linspace(0, len(pairs) - 1, min(_SHOWN, len(pairs))).astype(int).tolist()
    columns = {way: [images[way][number] for number in shown] for way in (CARRIED, OURS)}
    columns[TRUTH] = [pairs[number].target.image for number in shown]
    return side_by_side([(pairs[number].reference, pairs[number].target) for number in shown], columns)


def main() -> None:
    """Score a checkpoint on both sets, print tables, and write them and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--checkpoint")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("real-hands"))
    arguments = parser.parse_args()
    if arguments.folder is None or arguments.checkpoint is None:  # `make bench` runs all scripts
        print("name a folder of real images and a --checkpoint")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    sampler = load_sampler(arguments.checkpoint)
    options = SamplingOptions(steps=arguments.steps)
    sets = {
        "phone video": (video_frames(arguments.folder), Task.POSE_CHANGE),
        "published views": (view_frames(arguments.folder), Task.VIEW_CHANGE),
    }
    found = {}
    with HandDetector(require_weights("hand_landmarker"), AnnotateSettings().detection_confidence) as detector:
        for name, (frames, task) in sets.items():
            for least in LEAST_MOTIONS:
                pairs = moving_pairs(frames, sampler.preset.image_size, least)
                if not pairs:
                    print(f"{arguments.folder} has no frames of {name} that move {least} hand lengths")
                    continue
                two = [(pair.reference, pair.target) for pair in pairs]
                images = {
                    OURS: generated(sampler, pairs, task, options),
                    COPY: [pair.reference.image for pair in pairs],
                    CARRIED: carried_references(two),
                    CARRIED_OVER: carried_references(two, painted_out=False),
                }
                find = partial(find_hands, detector)
                scores, above = compare(pairs, images, OURS, find)
                truth = pose_of_truth(pairs, find)
                title = f"{name}, {len(pairs)} pairs that move at least {least} hand lengths"
                print_table(title, table(scores, above, truth))
                found[title] = {
                    "scores": {way: {k: asdict(v) for k, v in marks.items()} for way, marks in scores.items()},
                    "above": {way: {k: asdict(v) for k, v in marks.items()} for way, marks in above.items()},
                    "truth": {k: asdict(v) for k, v in truth.items()},
                }
                picture = arguments.out / f"{name.replace(' ', '-')}-{least}.png"
                cv2.imwrite(str(picture), cv2.cvtColor(figure(pairs, images), cv2.COLOR_RGB2BGR))
    (arguments.out / "scores.json").write_text(json.dumps(found, indent=2) + "\n")
    print(f"figures and scores in {arguments.out}")


if __name__ == "__main__":
    main()
