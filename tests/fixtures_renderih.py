"""Writes RenderIH's layout: MANO parameters of two hands and a camera, and the joints that step 7 makes of them."""

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from fixtures_mano import VERTICES, exponential, made_up_model, reference_joints
from numpy.typing import NDArray
from PIL import Image

SIZE = 256
TIPS = (745, 317, 444, 556, 673)
FIRST_ID = 366358

Floats = NDArray[np.float64]


@functools.cache
def corrected_models() -> dict[str, dict[str, NDArray[Any]]]:
    """Return the models of ``write_mano`` as the authors use them: the left hand's shape turned along x."""
    right, left = made_up_model(seed=1), made_up_model(seed=2)
    left["shapedirs"] = right["shapedirs"] * np.array([-1.0, 1.0, 1.0]).reshape(1, 3, 1)
    assert left["shapedirs"].shape == (VERTICES, 3, 10)
    return {"right": right, "left": left}


class Scene:
    """A picture's truth: parameters of both hands in float32, as stored, and the camera."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.parameters = {
            side: {
                "R": exponential(rng.normal(size=3))[None].astype(np.float32),
                "pose": rng.normal(scale=0.5, size=(1, 45)).astype(np.float32),
                "shape": rng.normal(size=(1, 10)).astype(np.float32),
                "trans": rng.normal(scale=0.05, size=(1, 3)).astype(np.float32),
            }
            for side in ("left", "right")
        }
        self.rotation = exponential(rng.normal(size=3)).astype(np.float32)
        self.translation = np.array([[0.01, -0.02, 1.1]], dtype=np.float32)
        self.camera = np.array([[900, 0, 120.5], [0, 905, 131], [0, 0, 1]], dtype=np.float32)

    def joints(self, side: str) -> Floats:
        """Return the (21, 3) joints in the camera's frame, by the textbook."""
        model = corrected_models()[side]
        values = {name: value[0].astype(np.float64) for name, value in self.parameters[side].items()}
        pose = values["pose"] @ model["hands_components"] + model["hands_mean"]
        world = reference_joints(model, values["R"], pose, values["shape"], values["trans"], TIPS)
        return world @ self.rotation.astype(np.float64).T + self.translation

    def pixels(self, side: str) -> list[tuple[float, float]]:
        k = self.camera.astype(np.float64)
        return [(k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]) for x, y, z in self.joints(side)]

    def annotation(self, number: int) -> dict[str, Any]:
        return {
            "inter_idx": number,
            "image": {"file_name": "Capture0/ROM04_RT/cam400002/image0.jpg", "camera": "400002", "width": 334},
            "annotation": {"bbox": [1.0, 2.0, 3.0, 4.0], "hand_type": "interacting"},
            "mano_params": {side: {**values, "oripose": np.zeros(48)} for side, values in self.parameters.items()},
            "camera": {"R": self.rotation, "t": self.translation, "camera": self.camera},
        }

    def handdict(self) -> dict[str, Any]:
        return {
            side: {
                "hms": [],
                "joints3d": self.joints(side).astype(np.float32),
                "joints2d": np.array(self.pixels(side), dtype=np.float32),
                "verts3d": np.zeros((VERTICES, 3), dtype=np.float32),
                "camera": self.camera,
            }
            for side in ("left", "right")
        }


def write_picture(
    folder: Path,
    number: int,
    *,
    with_image: bool = True,
    with_label: bool = True,
    with_handdict: bool = True,
    replace: dict[str, Any] | None = None,
) -> Scene:
    """Write one picture into ``folder`` (``<root>/train``); return its truth, whose seed is its number."""
    scene = Scene(number)
    for name in ("color_img", "color_annot", *(["ori_handdict"] if with_handdict else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if with_image:
        Image.new("RGB", (SIZE, SIZE), (90, 60, 70)).save(folder / f"color_img/{number}.jpg")
    if with_label:
        label = scene.annotation(number) | (replace or {})
        (folder / f"color_annot/{number}.pkl").write_bytes(pickle.dumps(label, protocol=4))
    if with_handdict:
        np.save(folder / f"ori_handdict/{number}.npy", scene.handdict(), allow_pickle=True)
    return scene


def write_renderih(root: Path) -> None:
    """Write two runs of ids with a gap, all with step 7's joints; one picture and one label are missing."""
    for number in (FIRST_ID, FIRST_ID + 1, FIRST_ID + 3, 1_000_002):
        write_picture(root / "train", number)
    write_picture(root / "train", FIRST_ID + 4, with_image=False)
    write_picture(root / "train", 1_000_000, with_label=False)
