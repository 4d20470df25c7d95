"""Writes DARTset's layout: an orthographic hand, its cut-out, and the picture in front of a background."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RENDER, COMPOSED = 512, 384
BONES = (
    "wrist",
    *(f"{finger}_{bone}" for finger in ("index", "middle", "little", "ring", "thumb") for bone in (1, 2, 3)),
    *(f"{finger}_tip" for finger in ("index", "middle", "little", "ring", "thumb")),
)
"""The dataset's own order of joints."""


class Hand:
    """A picture's truth: named points in metres (x right, y up, z to the viewer) and the orthographic camera."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.points_m = {bone: rng.uniform(-0.09, 0.09, 3) for bone in BONES}
        self.scale = float(rng.uniform(1800, 2400))
        self.centre = rng.uniform(230, 280, 2)

    def pixel(self, bone: str, image_size: int) -> tuple[float, float]:
        """Return u, v in a picture of this size; pixels count from the top left corner."""
        x, y, _ = self.points_m[bone]
        u, v = self.centre[0] + self.scale * x, self.centre[1] - self.scale * y
        return u * image_size / RENDER, v * image_size / RENDER

    def joint2d(self) -> NDArray[np.float32]:
        return np.array([self.pixel(bone, RENDER) for bone in BONES], dtype=np.float32)

    def joint3d(self) -> NDArray[np.float32]:
        return np.array([self.points_m[bone] for bone in BONES], dtype=np.float32)


def alpha(seed: int) -> NDArray[np.uint8]:
    """Return a soft-edged cut-out of 512 x 512."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((RENDER, RENDER), dtype=np.uint8)
    mask[100:301, 150:351] = rng.integers(0, 256, (201, 201))
    mask[140:260, 190:310] = 255
    return mask


def write_part(
    root: Path,
    split: str,
    part: str,
    names: list[str],
    *,
    first_seed: int = 0,
    without_image: tuple[str, ...] = (),
    with_cutouts: bool = True,
    one_array: bool = False,
    nested: bool = False,
    replace: dict[str, Any] | None = None,
) -> Path:
    """Write one part, whose pictures have the seeds ``first_seed``, ...; return its label file."""
    folder = root / split / f"part_{part}" if nested else root / split
    for name in (part, f"{part}_wbg"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    hands = [Hand(first_seed + index) for index in range(len(names))]
    for index, name in enumerate(names):
        if name not in without_image:
            Image.new("RGB", (COMPOSED, COMPOSED), (40, 90, 60)).save(folder / f"{part}_wbg" / name)
        if with_cutouts:
            picture = np.full((RENDER, RENDER, 4), 120, dtype=np.uint8)
            picture[..., 3] = alpha(first_seed + index)
            Image.fromarray(picture).save(folder / part / name)
    joint2d: Any = [hand.joint2d() for hand in hands]
    content = {
        "img": names,
        "pose": [np.zeros((16, 3), dtype=np.float32) for _ in hands],
        "joint3d": [hand.joint3d() for hand in hands],
        "joint2d": np.array(joint2d) if one_array else joint2d,
    }
    path = folder / f"part_{part}.pkl"
    path.write_bytes(pickle.dumps(content | (replace or {}), protocol=4))
    return path


def write_dart(root: Path) -> None:
    """Write three parts of both splits, whose file names repeat; one picture is missing, one part has no cut-outs."""
    write_part(root, "train", "2", ["000000.png", "000001.png"], first_seed=0)
    write_part(root, "train", "10", ["000000.png", "000001.png"], first_seed=2, without_image=("000001.png",))
    write_part(root, "test", "0", ["000000.png"], first_seed=4, with_cutouts=False, one_array=True)
