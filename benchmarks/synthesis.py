"""Speed of the synthetic hand renderer, and what MediaPipe finds in its images.

Run ``python benchmarks/synthesis.py [--frames N] [--prototype DIR]``. Each image is one random frame of a random view
of its own sequence of eight identities, so the figures hold for what ``handdata synth`` writes. ``--prototype``
times the first sketch of this renderer in the same run, if its folder exists. Times are CPU times, so that other
work on the machine does not count; run it with OMP_NUM_THREADS=1.
"""

import argparse
import importlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision
from numpy.typing import NDArray

from handdata.adapters.synthesis.dataset import noise_generator, plan_sequences, sample_planned_sequence
from handdata.adapters.synthesis.scene import Scene
from handdata.adapters.synthesis.sequence import View
from handdata.pipeline.weights import require_weights
from handdata.schemas.joints import HAND_EDGES

SIZE = 256
IDENTITIES = 8
MATCHED_WITHIN = 0.25
"""A detection is the labelled hand if its mean joint error is below this share of the hand's box."""


@dataclass
class Found:
    """What MediaPipe finds of one labelled hand."""

    hands_in_image: int
    error_px: float | None
    right_side: bool


def main() -> None:
    """Render, detect and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cameras", type=int, default=2)
    default = Path(__file__).parents[1].parent / "shared" / "prototypes" / "synthhand"
    parser.add_argument("--prototype", type=Path, default=default)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first 36 images here")
    arguments = parser.parse_args()

    cv2.setNumThreads(1)
    seconds = dict.fromkeys(("motion and views of a sequence", "scene", "render", "MediaPipe"), 0.0)
    found: list[Found] = []
    tiles: list[NDArray[np.uint8]] = []
    landmarker = create_landmarker()
    try:
        for plan in plan_sequences(IDENTITIES, arguments.frames, 30, arguments.cameras, SIZE, arguments.seed):
            frame = (plan.index * 7) % plan.frames
            camera = plan.index % plan.cameras
            start = time.process_time()
            sequence = sample_planned_sequence(plan)
            drawn = time.process_time()
            scene = sequence.scene(frame)
            posed = time.process_time()
            rendering = sequence.render(scene, camera, noise_generator(plan, frame, camera))
            rendered = time.process_time()
            detections = detect(landmarker, rendering.image)
            done = time.process_time()
            for name, spent in zip(
                seconds, (drawn - start, posed - drawn, rendered - posed, done - rendered), strict=True
            ):
                seconds[name] += spent
            hands = score(scene, sequence.views[camera], detections)
            found += hands
            if len(tiles) < 36:
                tiles.append(draw_labels(rendering.image, scene, sequence.views[camera], hands))
    finally:
        landmarker.close()

    print(f"{arguments.frames} images of {SIZE} px, {arguments.cameras} cameras, seed {arguments.seed}; CPU time each:")
    for name, total in seconds.items():
        print(f"  {name:36s} {1e3 * total / arguments.frames:6.1f} ms")
    report("all hands", found)
    for count, name in ((1, "one hand in the image"), (2, "two hands in the image")):
        report(name, [hand for hand in found if hand.hands_in_image == count])
    if arguments.sheet:
        rows = [np.hstack(tiles[i : i + 6]) for i in range(0, len(tiles) - len(tiles) % 6, 6)]
        cv2.imwrite(str(arguments.sheet), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    if arguments.prototype.is_dir():
        time_prototype(arguments.prototype, min(arguments.frames, 60))


def create_landmarker() -> vision.HandLandmarker:
    """Open MediaPipe's detector."""
    model = require_weights("hand_landmarker")
    options = vision.HandLandmarkerOptions(
        base_options=BaseOptions(model_asset_buffer=model.read_bytes()), num_hands=2, min_hand_detection_confidence=0.3
    )
    return vision.HandLandmarker.create_from_options(options)


def detect(landmarker: vision.HandLandmarker, image: NDArray[np.uint8]) -> list[tuple[NDArray[np.float64], str]]:
    """Return the joints (21, 2) in pixels and the side of each hand that MediaPipe finds."""
    result = landmarker.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image))
    height, width = image.shape[:2]
    return [
        (np.array([[mark.x * width - 0.5, mark.y * height - 0.5] for mark in marks]), side[0].category_name.lower())
        for marks, side in zip(result.hand_landmarks, result.handedness, strict=True)
    ]


def score(scene: Scene, view: View, detections: list[tuple[NDArray[np.float64], str]]) -> list[Found]:
    """Match each labelled hand with its nearest detection; a detection matches one hand."""
    labels = [view.camera.project(hand.joints) for hand in scene.hands]
    pairs = sorted(
        (float(np.linalg.norm(joints - label, axis=1).mean()), h, d)
        for h, label in enumerate(labels)
        for d, (joints, _) in enumerate(detections)
    )
    chosen: dict[int, tuple[float, int]] = {}
    for error, h, d in pairs:
        if h not in chosen and d not in {taken for _, taken in chosen.values()}:
            chosen[h] = (error, d)
    found = []
    for h, label in enumerate(labels):
        box = float(np.ptp(label, axis=0).max())
        error, d = chosen.get(h, (np.inf, -1))
        matched = error < MATCHED_WITHIN * box
        side_is_right = matched and detections[d][1] == scene.hands[h].side
        found.append(Found(len(labels), error if matched else None, side_is_right))
    return found


def draw_labels(image: NDArray[np.uint8], scene: Scene, view: View, found: list[Found]) -> NDArray[np.uint8]:
    """Draw the labels: green where MediaPipe agrees, red where it finds no hand."""
    drawn = image.copy()
    for hand, result in zip(scene.hands, found, strict=True):
        joints = np.rint(view.camera.project(hand.joints)).astype(int)
        colour = (0, 220, 0) if result.error_px is not None else (255, 0, 0)
        for start, end in HAND_EDGES:
            cv2.line(drawn, joints[start].tolist(), joints[end].tolist(), colour, 1, cv2.LINE_AA)
    return drawn


def report(name: str, found: list[Found]) -> None:
    """Print detection rate, error and side of a group of hands."""
    errors = np.array([hand.error_px for hand in found if hand.error_px is not None])
    sides = np.mean([hand.right_side for hand in found if hand.error_px is not None])
    print(
        f"  {name:26s} {len(found):4d} hands: found {100 * len(errors) / len(found):5.1f}%, "
        f"mean error {errors.mean():.2f} px (median {np.median(errors):.2f}), side right {100 * sides:5.1f}%"
    )


def time_prototype(folder: Path, frames: int) -> None:
    """Print the first sketch's time an image, on its own random scenes."""
    sys.path.insert(0, os.fspath(folder))
    sketch = importlib.import_module("handsynth")
    rng = np.random.default_rng(0)
    identities = [sketch.Identity(rng) for _ in range(IDENTITIES)]
    posing = rendering = 0.0
    for index in range(frames):
        start = time.process_time()
        hands, k, rotation, translation = sketch.random_scene(rng, identities, ("right", "left", "both")[index % 3])
        posed = time.process_time()
        sketch.render(hands, k, rotation, translation, sketch.Light(rng), rng)
        posing, rendering = posing + posed - start, rendering + time.process_time() - posed
    each_ms = 1e3 * np.array([posing, rendering]) / frames
    print(f"prototype, {frames} images, CPU time each: scene {each_ms[0]:.1f} ms, render {each_ms[1]:.1f} ms")


if __name__ == "__main__":
    main()
