"""What each part of the network's own geometry is worth after a minute of one thread.

Run ``OMP_NUM_THREADS=1 python benchmarks/geometry.py ROW [--seed N] [--seconds S]`` for a row of the table in
``docs/results/geometry.md``; ``--list`` names the rows, ``--table`` prints the results so far. Each row trains the same
small network by CPU time on synthetic frames of 64 px, which are rendered once (about four minutes) and cached with
the results in ``~/.cache/handdata/geometry``, then draws 64 pairs of identities that were not trained on, whose joints
move at least 0.3 hand lengths. The training is that of ``handdata train``, but for frames that are decoded before.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from handdata.adapters.synthesis.dataset import (
    noise_generator,
    plan_sequences,
    sample_planned_sequence,
    sequence_labels,
)
from handdata.jobs.evaluate import find_hands
from handdata.jobs.figures import CARRIED, TRUTH, side_by_side
from handdata.pictures.png import encode_png
from handdata.pipeline.annotation.crop import square_around
from handdata.pipeline.annotation.detector import HandDetector
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.weights import require_weights
from handdata.schemas import inside
from handdata.trainer.conditioning import Task
from handdata.trainer.data.augment import Frame, augment_pair
from handdata.trainer.data.batch import FramePair, stack_pairs
from handdata.trainer.evaluation import MovedPair, carried_references, compare, mean_motion
from handdata.trainer.presets import AugmentationConfig, Preset, SamplingOptions, merged
from handdata.trainer.tasks import Sampler, gesture_transfer
from handdata.trainer.trainer import Trainer

CACHE: Final = Path.home() / ".cache" / "handdata" / "geometry"
SIZE: Final = 64
IDENTITIES, VIDEOS, FRAMES, EVERY, RENDERED_PX = 120, 360, 37, 6, 128
PAIRS, PAIRS_A_VIDEO, LEAST_MOTION = 64, 3, 0.3
STEPS: Final = (1, 2, 4)
BATCH: Final = 8

BASE: Final[dict[str, Any]] = {
    "image_size": SIZE,
    "autoencoder": {"kind": "pixel"},
    "model": {
        "input_size": SIZE, "patch_size": 8, "latent_channels": 3,
        "hidden_size": 128, "depth": 4, "num_heads": 4, "learn_sigma": False,
    },
    "diffusion": {"prediction": "clean"},
    "dropout": {"reference": 0.05, "target_keypoints": 0.05, "reference_mask": 0.05, "both": 0.0},
    "augmentation": {"max_gamma": 1.2, "hand_swap": 0.0, "smallest_crop": 1.0},
    "optimisation": {
        "steps": 100_000, "batch_size": BATCH, "learning_rate": 3e-3, "warmup_steps": 20, "decay": "cosine",
        "weight_decay": 0.01, "adam_beta2": 0.95, "ema_decay": 0.98,
    },
    "sampling": {"scheduler": "ddim", "steps": 1, "guidance_scale": 1.0, "clip_x0": 1.0},
}  # fmt: skip
"""What all rows have in common: the design before, of 1.4 M parameters."""

SHARP: Final = {"diffusion": {"loss": "l1+gradient"}}


def _with(*, sharp: bool = False, optimiser: str = "adamw", **geometry: Any) -> dict[str, Any]:
    changes = {"model": {"geometry": geometry}, "optimisation": {"optimiser": optimiser}}
    return merged(changes, SHARP) if sharp else changes


ROWS: Final[dict[str, dict[str, Any]]] = {
    "before": {},
    "before, Muon": _with(optimiser="muon"),
    "before, L1 + gradients": SHARP,
    "limbs": _with(limbs=True),
    "reference": _with(reference_at_target=True, residual="reference"),
    "reference, limbs, conv": _with(reference_at_target=True, residual="reference", limbs=True, head="conv"),
    "carried": _with(reference_at_target=True, residual="carried"),
    "carried, limbs": _with(reference_at_target=True, residual="carried", limbs=True),
    "carried, conv": _with(reference_at_target=True, residual="carried", head="conv"),
    "full": _with(reference_at_target=True, residual="carried", limbs=True, head="conv"),
    "full, L1 + gradients": _with(
        reference_at_target=True, residual="carried", limbs=True, head="conv", sharp=True
    ),
    "full, L1 + gradients, Muon": _with(
        reference_at_target=True, residual="carried", limbs=True, head="conv", sharp=True, optimiser="muon"
    ),
}  # fmt: skip
"""Settings of each row, as changes of ``BASE``."""


def main() -> None:
    """Train and score a row, or show the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", nargs="?", help="what to train: one of --list, or 'nothing' for the baselines alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="CPU time of training")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--table", action="store_true", help="print what was measured so far")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(ROWS))
    elif arguments.table:
        print_table()
    elif arguments.row is None:  # `make bench` runs all scripts: the whole table takes an hour
        print("name a row: --list has them")
    else:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        measure(arguments.row, arguments.seed, arguments.seconds, arguments.precision)


def measure(row: str, seed: int, seconds: float, precision: str) -> None:
    """Train a row, score what it draws, and add the result to the table's."""
    frames = cached_frames()
    pairs = held_out_pairs(frames)
    images: dict[str, list[NDArray[np.uint8]]]
    both = [(pair.reference, pair.target) for pair in pairs]
    result: dict[str, Any] = {"row": row, "seed": seed, "seconds": seconds, "precision": precision}
    if row == "nothing":
        images = {
            "copied reference": [pair.reference.image for pair in pairs],
            CARRIED: carried_references(both),
            "carried reference, hand left in": carried_references(both, painted_out=False),
            "truth": [pair.target.image for pair in pairs],
        }
    else:
        settings = merged(merged(BASE, ROWS[row]), {"optimisation": {"seed": seed, "precision": precision}})
        preset = Preset.model_validate(settings)
        started = time.process_time()
        trainer = Trainer(preset, "cpu", share_done=lambda: (time.process_time() - started) / seconds)
        started = time.process_time()
        losses = []
        for batch in batches(frames, preset.augmentation, seed):
            losses.append(trainer.training_step([batch]))
            if time.process_time() - started >= seconds:
                break
        result |= {
            "steps": trainer.step,
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "loss": float(np.mean(losses[-100:])),
        }
        trainer.averaged_model.eval()
        sampler = Sampler(trainer.averaged_model, trainer.autoencoder, preset)
        references, targets = [pair.reference for pair in pairs], [pair.target for pair in pairs]
        images = {
            f"{steps} steps": list(gesture_transfer(sampler, references, targets, SamplingOptions(steps=steps)))
            for steps in STEPS
        }
    with HandDetector(require_weights("hand_landmarker"), AnnotateSettings().detection_confidence) as detector:
        scores, _ = compare(pairs, images, next(iter(images)), lambda image: find_hands(detector, image))
    result["scores"] = {way: {name: vars_of(found) for name, found in of_way.items()} for way, of_way in scores.items()}
    CACHE.joinpath("results").mkdir(exist_ok=True)
    name = f"{row} {seconds:g}s seed {seed} {precision}"
    (CACHE / "results" / f"{name}.json").write_text(json.dumps(result))
    (CACHE / "results" / f"{name}.png").write_bytes(encode_png(figure(pairs, images)))
    print_table()


def vars_of(found: Any) -> list[float]:
    """Return an interval as mean, low and high."""
    return [round(value, 4) for value in (found.mean, found.low, found.high)]


def print_table() -> None:
    """Print all results as a table."""
    print("| | seed | steps | sampling | PSNR, dB | SSIM | found | PCK@0.2 |\n" + "| --- " * 8 + "|")
    for file in sorted((CACHE / "results").glob("*.json")):
        found = json.loads(file.read_text())
        for way, scores in found["scores"].items():
            means = [scores[name][0] for name in ("psnr_box", "ssim_box", "detected", "pck@0.2")]
            numbers = f"{means[0]:.2f} | {means[1]:.3f} | {means[2]:.0%} | {means[3]:.3f}"
            run = f"{found['row']} {found['seconds']:g} s | {found['seed']} | {found.get('steps', '')}"
            print(f"| {run} | {way} | {numbers} |")


def figure(pairs: list[MovedPair], images: dict[str, list[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Lay out every sixth pair, a row each."""
    shown = [(pair.reference, pair.target) for pair in pairs[::6]]
    columns = {CARRIED: carried_references(shown), **{way: made[::6] for way, made in images.items()}}
    return side_by_side(shown, {**columns, TRUTH: [target.image for _, target in shown]})


def held_out_pairs(frames: dict[str, NDArray[Any]]) -> list[MovedPair]:
    """Return the pairs that all rows are scored on: up to three of each held-out video."""
    held_out = np.flatnonzero(frames["split"] != "train")
    candidates = [
        (target, reference)
        for target in held_out
        for reference in held_out[frames["video"][held_out] == frames["video"][target]]
        if target != reference
    ]
    pairs: list[MovedPair] = []
    of_video: dict[int, int] = {}
    for number in np.random.default_rng(123).permutation(len(candidates)):
        target, reference = candidates[number]
        video = int(frames["video"][target])
        shown, drawn = frame(frames, reference), frame(frames, target)
        motion = mean_motion(shown, drawn)
        if motion >= LEAST_MOTION and of_video.get(video, 0) < PAIRS_A_VIDEO:
            of_video[video] = of_video.get(video, 0) + 1
            pairs.append(MovedPair(str(video), motion, shown, drawn))
        if len(pairs) == PAIRS:
            break
    return pairs


def batches(frames: dict[str, NDArray[Any]], augmentation: AugmentationConfig, seed: int) -> Iterator[FramePair]:
    """Draw batches of two moments of one training video without end."""
    rng = np.random.default_rng(seed)
    trained = np.flatnonzero(frames["split"] == "train")
    while True:
        pairs = []
        for target in rng.choice(trained, BATCH):
            others = np.flatnonzero(frames["video"] == frames["video"][target])
            reference = rng.choice(others[others != target])
            two = frame(frames, target), frame(frames, reference)
            pairs.append(augment_pair(*two, keeps_sides=True, size=SIZE, config=augmentation, rng=rng))
        yield stack_pairs(pairs, [Task.POSE_CHANGE] * BATCH, SIZE)


def frame(frames: dict[str, NDArray[Any]], row: int) -> Frame:
    """Return a frame of the cache."""
    return Frame(*(frames[name][row] for name in ("image", "mask", "known", "keypoints", "valid")))


def cached_frames() -> dict[str, NDArray[Any]]:
    """Return all frames by column, rendered the first time: as ``--masks dataset --crop stable`` would have them."""
    file = CACHE / f"frames-{SIZE}.npz"
    if file.exists():
        return dict(np.load(file))
    print(f"rendering {VIDEOS} videos once, into {file}", file=sys.stderr)
    rows: dict[str, list[Any]] = {}
    for plan in plan_sequences(IDENTITIES, VIDEOS, FRAMES, cameras=1, size=RENDERED_PX, seed=0):
        sequence = sample_planned_sequence(plan)
        labels = sequence_labels(plan, sequence)
        there, joints = np.asarray(labels["keypoints_valid"]), np.asarray(labels["keypoints_2d"])[:, 0]
        shown = joints[::EVERY, there].reshape(-1, 2).astype(np.float32)
        square = square_around(shown, RENDERED_PX, RENDERED_PX, 1.6, SIZE)
        known = square.cut(np.full((RENDERED_PX, RENDERED_PX), 255, np.uint8))
        for number in range(0, FRAMES, EVERY):
            drawn = sequence.render(sequence.scene(number), 0, noise_generator(plan, number, 0))
            keypoints = square.to_crop(joints[number])
            valid = there & inside(keypoints, SIZE, SIZE)
            values = {
                "image": square.cut(drawn.image),
                "mask": square.cut_mask(drawn.mask > 0).astype(np.uint8) * 255,
                "known": known,
                "keypoints": np.where(valid[:, None], keypoints, 0).astype(np.float32),
                "valid": valid,
                "video": plan.index,
                "split": plan.split,
            }
            for name, value in values.items():
                rows.setdefault(name, []).append(value)
    CACHE.mkdir(parents=True, exist_ok=True)
    frames = {name: np.array(values) for name, values in rows.items()}
    np.savez(file, **frames)  # type: ignore[arg-type]
    return frames


if __name__ == "__main__":
    main()
