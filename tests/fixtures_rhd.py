"""Writes RHD's layout: 42 known points of a camera's frame, their projections, part labels."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 320
FINGERS = ("thumb", "index", "middle", "ring", "little")
JOINTS = ("wrist", *(f"{finger}_{joint}" for finger in FINGERS for joint in ("tip", "distal", "middle", "base")))
"""The dataset's own order within a hand: each finger from the tip to the palm."""


@dataclass(frozen=True)
class Person:
    """A picture's truth: for (side, joint name) a point in metres, and whether it can be seen."""

    points_m: dict[tuple[str, str], tuple[float, float, float]]
    focal: float
    hidden: frozenset[tuple[str, str]]

    def pixel(self, side: str, joint: str) -> tuple[float, float]:
        x, y, z = self.points_m[side, joint]
        return self.focal * x / z + SIZE / 2, self.focal * y / z + SIZE / 2

    def annotation(self) -> dict[str, NDArray[Any]]:
        """Return the entry of the pickle: the left hand first."""
        keys = [(side, joint) for side in ("left", "right") for joint in JOINTS]
        return {
            "uv_vis": np.array([(*self.pixel(*key), float(key not in self.hidden)) for key in keys]),
            "xyz": np.array([self.points_m[key] for key in keys]),
            "K": np.array([[self.focal, 0, SIZE / 2], [0, self.focal, SIZE / 2], [0, 0, 1]]),
        }


def make_person(seed: int = 0, hidden: frozenset[tuple[str, str]] = frozenset()) -> Person:
    rng = np.random.default_rng(seed)
    points = {
        (side, joint): (float(rng.uniform(-0.3, 0.3)), float(rng.uniform(-0.3, 0.3)), float(rng.uniform(0.5, 0.9)))
        for side in ("left", "right")
        for joint in JOINTS
    }
    return Person(points, focal=float(rng.uniform(260, 310)), hidden=hidden)


def part_labels() -> NDArray[np.uint8]:
    """Return a mask with each of the 34 labels in a block of its own, 9 pixels high and 3 wide, side by side."""
    labels = np.zeros((SIZE, SIZE), dtype=np.uint8)
    for label in range(34):
        labels[100:109, 10 + 3 * label : 13 + 3 * label] = label
    return labels


def write_split(
    root: Path,
    folder: str,
    samples: dict[int, dict[str, NDArray[Any]]],
    *,
    without_image: tuple[int, ...] = (),
    with_masks: bool = True,
    protocol: int = 2,
) -> Path:
    """Write one split; return its label file."""
    for name in ("color", "mask", "depth"):
        (root / folder / name).mkdir(parents=True, exist_ok=True)
    for sample_id in samples:
        if sample_id not in without_image:
            Image.new("RGB", (SIZE, SIZE), (120, 90, 60)).save(root / folder / f"color/{sample_id:05d}.png")
        if with_masks:
            Image.fromarray(part_labels()).save(root / folder / f"mask/{sample_id:05d}.png")
    path = root / folder / f"anno_{folder}.pickle"
    path.write_bytes(pickle.dumps(samples, protocol=protocol))
    return path


LEFT_HIDDEN = frozenset(("left", joint) for joint in JOINTS)


def write_rhd(root: Path) -> None:
    """Write both splits, whose ids overlap: one hidden hand, one hidden joint, one picture that is missing."""
    training = {
        0: make_person(seed=0).annotation(),
        1: make_person(seed=1, hidden=LEFT_HIDDEN).annotation(),
        2: make_person(seed=2, hidden=frozenset({("right", "ring_tip")})).annotation(),
        3: make_person(seed=3).annotation(),
    }
    write_split(root, "training", training, without_image=(3,))
    write_split(root, "evaluation", {0: make_person(seed=4).annotation(), 1: make_person(seed=5).annotation()})
