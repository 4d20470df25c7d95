"""Writes InterHand2.6M's layout: images of two sizes, and the three label files of each split."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZES = {"400002": (334, 512), "400012": (334, 512), "410028": (512, 334)}
"""Width and height of a camera's images; those named 41xxxx are monochrome."""
CAMERAS = tuple(SIZES)

Side = Literal["right", "left", "interacting"]

# Written out on purpose: the dataset's names in its own order (skeleton.txt).
SKELETON = tuple(
    f"{side}_{joint}"
    for side in ("r", "l")
    for joint in (
        *(f"{finger}{number}" for finger in ("thumb", "index", "middle", "ring", "pinky") for number in (4, 3, 2, 1)),
        "wrist",
    )
)


def skeleton_name(row: int) -> str:
    """Return the dataset's name of one of our 42 rows."""
    side, joint = ("r", row) if row < 21 else ("l", row - 21)
    if joint == 0:
        return f"{side}_wrist"
    finger = ("thumb", "index", "middle", "ring", "pinky")[(joint - 1) // 4]
    return f"{side}_{finger}{(joint - 1) % 4 + 1}"


@dataclass(frozen=True)
class Shot:
    """One moment of a capture: its frame number, what is labelled, and the joints' truth."""

    capture: int
    sequence: str
    frame: int
    hand_type: Side = "interacting"

    def point_mm(self, name: str) -> NDArray[np.float64]:
        """Return the world position of a joint by the dataset's name."""
        rng = np.random.default_rng([self.capture, self.frame, SKELETON.index(name)])
        return np.array([*rng.uniform(-150, 150, 2), rng.uniform(-60, 60)])

    def labels(self, name: str) -> bool:
        """Return whether ``joint_3d.json`` calls a joint valid; the left ring's third joint never is."""
        side = {"r": "right", "l": "left"}[name[0]]
        return self.hand_type in (side, "interacting") and name != "l_ring3"


def rotation(camera: str) -> NDArray[np.float64]:
    turn = {"400002": 0.0, "400012": 0.6, "410028": -0.7}[camera]
    cosine, sine = np.cos(turn), np.sin(turn)
    return np.array([[cosine, 0, sine], [0.0, 1, 0], [-sine, 0, cosine]])


def centre_mm(camera: str) -> NDArray[np.float64]:
    """Return the camera's position: a metre from the world's origin, looking at it."""
    return -1000.0 * rotation(camera)[2] + [3.0, -2.0, 1.0]


def focal(camera: str) -> tuple[float, float]:
    return (1290.0, 1280.5) if camera.startswith("40") else (1260.25, 1265.0)


def principal(camera: str) -> tuple[float, float]:
    width, height = SIZES[camera]
    return width / 2 + 3.5, height / 2 - 4.25


def project(camera: str, point_mm: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return u, v in pixels and the depth in metres, coordinate by coordinate."""
    turn, centre = rotation(camera), centre_mm(camera)
    x, y, z = (sum(turn[i, j] * (point_mm[j] - centre[j]) for j in range(3)) for i in range(3))
    (fx, fy), (cx, cy) = focal(camera), principal(camera)
    return fx * x / z + cx, fy * y / z + cy, z / 1000


def file_name(shot: Shot, camera: str) -> str:
    return f"Capture{shot.capture}/{shot.sequence}/cam{camera}/image{shot.frame}.jpg"


def image_entry(number: int, shot: Shot, camera: str) -> dict[str, Any]:
    width, height = SIZES[camera]
    return {
        "id": number,
        "file_name": file_name(shot, camera),
        "width": width,
        "height": height,
        "capture": shot.capture,
        "subject": 5 + shot.capture,
        "seq_name": shot.sequence,
        "camera": camera,
        "frame_idx": shot.frame,
    }


def annotation_entry(number: int, shot: Shot, invalid_here: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": number,
        "bbox": [33.56839370727539, 164.92373657226562, 185.057861328125, 142.7256622314453],
        "joint_valid": [[int(shot.labels(name) and name not in invalid_here)] for name in SKELETON],
        "hand_type": shot.hand_type,
        "hand_type_valid": 1,
    }


def joint_3d(shots: Sequence[Shot]) -> dict[str, Any]:
    """Return joint_3d.json: the filler 1, 1, 1 where a joint is not valid, but a real looking point at l_ring3."""
    captures: dict[str, Any] = {}
    for shot in shots:
        captures.setdefault(str(shot.capture), {})[str(shot.frame)] = {
            "world_coord": [
                shot.point_mm(name).tolist() if shot.labels(name) or name == "l_ring3" else [1.0, 1.0, 1.0]
                for name in SKELETON
            ],
            "joint_valid": [[shot.labels(name)] for name in SKELETON],
            "hand_type": shot.hand_type,
            "hand_type_valid": True,
            "seq": shot.sequence,
        }
    return captures


def cameras_of(captures: Sequence[int]) -> dict[str, Any]:
    return {
        str(capture): {
            "campos": {camera: centre_mm(camera).tolist() for camera in CAMERAS},
            "camrot": {camera: rotation(camera).tolist() for camera in CAMERAS},
            "focal": {camera: list(focal(camera)) for camera in CAMERAS},
            "princpt": {camera: list(principal(camera)) for camera in CAMERAS},
        }
        for capture in captures
    }


def label_path(root: Path, split: str, kind: str) -> Path:
    return root / f"annotations/{split}/InterHand2.6M_{split}_{kind}.json"


def write_labels(root: Path, split: str, kind: str, content: Any, indent: int | None = None) -> None:
    path = label_path(root, split, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent))


def write_images(root: Path, split: str, images: Sequence[dict[str, Any]]) -> None:
    for entry in images:
        path = root / f"images/{split}" / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (entry["width"], entry["height"])).save(path)


def write_split(
    root: Path,
    split: str,
    shots: Sequence[Shot],
    *,
    cameras: Sequence[str] = CAMERAS,
    invalid_here: Sequence[str] = (),
    missing_images: Sequence[str] = (),
    indent: int | None = None,
) -> list[dict[str, Any]]:
    """Write one split; return its entries of ``images``. ``invalid_here`` are joints invalid in the images only."""
    pairs = [(shot, camera) for shot in shots for camera in cameras]
    images = [image_entry(1000 + 3 * number, shot, camera) for number, (shot, camera) in enumerate(pairs)]
    annotations = [annotation_entry(1000 + 3 * number, shot, invalid_here) for number, (shot, _) in enumerate(pairs)]
    write_labels(root, split, "data", {"images": images, "annotations": annotations}, indent)
    write_labels(root, split, "camera", cameras_of(sorted({shot.capture for shot in shots})), indent)
    write_labels(root, split, "joint_3d", joint_3d(shots), indent)
    write_images(root, split, [entry for entry in images if entry["file_name"] not in missing_images])
    return images


TRAIN = [
    Shot(0, "0266_dh_pray", 44669),
    Shot(0, "0266_dh_pray", 44687),
    Shot(0, "0002_good_luck", 44705, "right"),
    Shot(3, "0115_rocker_backside", 29590, "left"),
]
VAL = [Shot(0, "ROM01_No_Interaction_2_Hand", 2000 + 6 * step) for step in range(2)]
TEST = [Shot(1, "0007_thumbup_normal", 2017, "right")]


def _parent(number: int) -> int:
    """Return the row of the next joint towards the wrist, as skeleton.txt has it."""
    if number % 21 == 20:
        return -1
    return number + 1 if number % 21 % 4 != 3 else number // 21 * 21 + 20


def write_interhand26m(root: Path) -> None:
    """Write three splits of three cameras: 20 records, and one image that is missing."""
    missing = file_name(TRAIN[0], "400012")
    write_split(root, "train", TRAIN, missing_images=[missing])
    write_split(root, "val", VAL, indent=4)
    write_split(root, "test", TEST)
    lines = [f"{name} {number} {_parent(number)}\n" for number, name in enumerate(SKELETON)]
    (root / "annotations/skeleton.txt").write_text("".join(lines))
    (root / "annotations/subject.txt").write_text("")
